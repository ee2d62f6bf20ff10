"""A published model that was tuned to answer, served from its folder: a Qwen3."""

import base64
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fast_copies import Int8Linear
from moe import SoftmaxRouter
from page_props import ask_page
from page_server import running
from qwen3 import Experts, Qwen3Config
from qwen3_files import load_qwen3_tokenizer, qwen3_settings
from qwen3_tokenizer import QWEN3_SPECIAL
from small_models import TINY_LLAMA

APP = runpy.run_path(str(Path(__file__).parent / "app.py"))
SIZES = {"vocab_size": 256 + len(QWEN3_SPECIAL), "context_length": 400}
OTHERS = {"tie_weights": False, "experts": None}
DENSE = Qwen3Config.of({**TINY_LLAMA, **SIZES, **OTHERS})
EXPERTS = {"hidden_dim": 9, "experts": Experts(num_experts=5, top_k=2, normalise=True)}
CONFIGS = {"dense": DENSE, "experts": Qwen3Config.of({**DENSE, **EXPERTS})}


@pytest.fixture(scope="module", params=CONFIGS)
def published(request, tmp_path_factory):
    """A random model and its folder, as transformers writes it, with a vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = AutoConfig.for_model(**qwen3_settings(CONFIGS[request.param]))
    theirs = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(float("norm" in name), 0.5)
    theirs.save_pretrained(folder)
    lines = [f"{base64.b64encode(bytes([b])).decode()} {b}" for b in range(256)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines), encoding="ascii")
    return theirs, folder


@pytest.fixture(scope="module")
def address(published):
    """Of the page that somebody starts with that folder."""
    started = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("page_server.serve", lambda app, *_: started.append(app))
        assert APP["main"](["--model", str(published[1])]) == 0
    with running(started[0]) as address:
        yield address


@torch.no_grad()
def likeliest(theirs, ids, n):
    """What transformers writes behind these tokens."""
    idx = torch.tensor([ids])
    for _ in range(n):
        idx = torch.cat((idx, theirs(idx).logits[:, -1:].argmax(dim=-1)), dim=1)
    return idx[0, len(ids) :].tolist()


def answered(address, **question):
    events = ask_page(address, max_new_tokens=8, **question)
    return [event["id"] for event in events if event["kind"] == "token"]


def said(*texts):
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]


def test_two_questions_are_answered_as_transformers_would(published, address):
    theirs, folder = published
    tokenizer = load_qwen3_tokenizer(folder / "qwen.tiktoken")
    first = answered(address, question="A colour?")
    ids = tokenizer.render_chat(said("A colour?"))
    expected = likeliest(theirs, ids, 8)
    assert tokenizer.eot_token not in expected
    assert first == expected
    again = answered(
        address, question="And?", turns=[{"question": "A colour?", "ids": first}]
    )
    one, two = tokenizer.render_chat(said("x", "", "And?")), said("x")
    ids += [*first, *one[len(tokenizer.render_chat(two)) :]]
    assert again == likeliest(theirs, ids, 8)


def test_thoughts_are_read_once(published, address):
    """Known mistake: a model that is given the thoughts of its earlier answers."""
    theirs, folder = published
    tokenizer = load_qwen3_tokenizer(folder / "qwen.tiktoken")
    answer = "<think>\nHm.\n</think>\n\nBlue."
    turn = {"question": "A?", "ids": tokenizer.encode(answer, allowed_special="all")}
    ids = tokenizer.render_chat(said("A?", answer, "B?"))
    assert "Hm" not in tokenizer.decode(ids)
    found = answered(address, question="B?", turns=[turn])
    assert found == likeliest(theirs, ids, 8)
    ids[-1:-1] = turn["ids"]  # the model does feel them
    assert found != likeliest(theirs, ids, 8)


def test_in_eight_bits_its_routers_stay_exact(published):
    theirs, folder = published
    writer = APP["load_chat"](str(folder), int8=True)
    parts = list(writer.model.modules())
    assert sum(isinstance(part, Int8Linear) for part in parts) > 4
    routers = [part for part in parts if isinstance(part, SoftmaxRouter)]
    assert len(routers) == sum("gate.weight" in n for n in theirs.state_dict())
    *_, end = writer.start([5, 6, 7], 4)
    assert end.written == 4


def test_a_model_that_was_not_tuned_to_answer_is_refused_at_once(
    published, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("page_server.serve", lambda *_: pytest.fail("it serves"))
    theirs, _ = published
    theirs.save_pretrained(tmp_path)  # without a vocabulary
    assert APP["main"](["--model", str(tmp_path)]) == 2
    assert "no chat template" in capsys.readouterr().err
    assert APP["main"](["--model", str(tmp_path / "nothing")]) == 2
    assert "nor a folder" in capsys.readouterr().err
