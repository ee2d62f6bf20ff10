"""Tokenizers from folders: the ids of the package `tokenizers`, or one sentence."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.trainers import BpeTrainer

from bpe import byte_alphabet
from gguf_tokenizer import GGUFTokenizer
from gpt import GPTModel
from hub_tokenizers import HubEncoding, NoTokenizer, folder_tokenizer
from llama import LlamaConfig, LlamaModel, llama_key_map
from llama_files import LLAMA3_PATTERN, LLAMA3_SPECIAL, Llama3Encoding
from pretrained import load_pretrained

TEXT = (
    "The lighthouse keeper counted 1, 2, 34 and 5678 lamps; it's the lamps' "
    "light that she'd kept.\n\n  Two  spaces, a tab\tand \u732b na\u00efve \U0001f600."
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITS = {
    "gpt2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]
    ),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def trained(split, special=SPECIAL, size=330):
    """A tokenizer of the package, trained on a few words."""
    theirs = Tokenizer(BPE())
    theirs.pre_tokenizer = SPLITS[split]
    theirs.train_from_iterator(
        [TEXT] * 3,
        BpeTrainer(
            vocab_size=size,
            special_tokens=list(special),
            initial_alphabet=sorted(byte_alphabet()),
            show_progress=False,
        ),
    )
    return theirs


def write(folder, theirs, eos="<|im_end|>", **notes):
    folder.mkdir(exist_ok=True, parents=True)
    theirs.save(str(folder / "tokenizer.json"))
    notes = json.dumps({"eos_token": eos, **notes})
    (folder / "tokenizer_config.json").write_text(notes, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """{split: (theirs, ours)}."""
    made = {}
    for split in SPLITS:
        theirs = trained(split)
        folder = write(tmp_path_factory.mktemp(split), theirs)
        made[split] = theirs, folder_tokenizer(folder, 1000, "llama")
    return made


@given(text=st.text() | st.sampled_from([TEXT, "12345 6", " \n\n x", "don't"]))
@settings(max_examples=150, deadline=None)
def test_the_ids_are_those_of_the_package(pairs, text):
    for split, (theirs, ours) in pairs.items():
        ids = ours.encode(text, disallowed_special=())
        assert ids == theirs.encode(text, add_special_tokens=False).ids, split
        assert ours.decode(ids) == text


def test_each_keeps_what_load_pretrained_promises(pairs):
    for theirs, ours in pairs.values():
        assert ours.n_vocab == theirs.get_vocab_size()
        assert ours.decode([ours.eot_token]) == "<|im_end|>"
        assert ours.encode("<|im_end|>", allowed_special="all") == [ours.eot_token]
        pieces = [ours.decode_single_token_bytes(i) for i in ours.encode(TEXT)]
        assert b"".join(pieces).decode() == TEXT
    kinds = [type(ours) for _, ours in pairs.values()]
    assert kinds == [HubEncoding, GGUFTokenizer, HubEncoding]


def test_digits_show_which_split_it_is(pairs):
    """Known mistake: vocab.json and merges.txt alone do not say it."""
    lengths = {split: len(ours.encode("5678")) for split, (_, ours) in pairs.items()}
    assert lengths["smollm"] == 4
    assert lengths["gpt2"] < 4


def test_llama_3_gets_its_chat(tmp_path):
    theirs = trained("llama3", special=(), size=300)
    theirs.add_special_tokens([AddedToken(t, special=True) for t in LLAMA3_SPECIAL])
    folder = write(tmp_path, theirs, eos="<|eot_id|>")
    ours = folder_tokenizer(folder, 400, "llama")
    assert isinstance(ours, Llama3Encoding)
    ids = ours.render_chat([{"role": "user", "content": "Hi"}])
    assert ids[0] == theirs.token_to_id("<|begin_of_text|>")


def test_smollm_s_template_goes_along(tmp_path):
    folder = write(tmp_path, trained("smollm"), chat_template="{{ messages }}")
    assert folder_tokenizer(folder, 400, "llama").chat_template == "{{ messages }}"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_files_are_enough_for_gpt2_alone(tmp_path, family):
    theirs = trained("gpt2", special=["<|endoftext|>"])
    theirs.model.save(str(tmp_path))
    ours = folder_tokenizer(tmp_path, 1000, family)
    if family == "gpt2":
        assert ours.encode(TEXT) == theirs.encode(TEXT).ids
        assert ours.decode([ours.eot_token]) == "<|endoftext|>"
    else:
        with pytest.raises(AttributeError, match=r"vocab\.json does not say how"):
            ours.encode("Hello")


def test_the_end_comes_from_the_file_that_says_it(tmp_path):
    theirs = trained("gpt2")
    for name, content, end in (
        ("tokenizer_config.json", {"eos_token": {"content": "<|im_start|>"}}, 1),
        ("generation_config.json", {"eos_token_id": [2, 0]}, 2),
        ("config.json", {"eos_token_id": 1}, 1),
        ("config.json", {}, 0),
    ):
        folder = tmp_path / f"{name}{end}"
        folder.mkdir()
        theirs.save(str(folder / "tokenizer.json"))
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        assert folder_tokenizer(folder, 1000, "gpt2").eot_token == end


def test_meta_s_file_is_still_read(tmp_path):
    (tmp_path / "original").mkdir()
    lines = (base64.b64encode(bytes([b])) + b" %d" % b for b in range(256))
    (tmp_path / "original" / "tokenizer.model").write_bytes(b"\n".join(lines))
    ours = folder_tokenizer(tmp_path, 512, "llama")
    assert ours.encode("ab") == [97, 98]
    assert ours.n_vocab == 512


def test_where_there_is_none_it_says_so_when_it_is_asked(tmp_path):
    ours = folder_tokenizer(tmp_path, 100, "llama")
    assert isinstance(ours, NoTokenizer)
    assert not hasattr(ours, "to_json")  # what `save_checkpoint` asks
    for name in ("encode", "n_vocab", "eot_token"):
        with pytest.raises(AttributeError, match="There is no tokenizer in .*: put"):
            getattr(ours, name)


def test_gpt2_s_own_vocabulary_is_known_by_its_size(tmp_path):
    cfg = {"vocab_size": 50257, "context_length": 4, "emb_dim": 2, "n_heads": 1}
    cfg |= {"n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}
    torch.save(
        {"state_dict": GPTModel(cfg).state_dict(), "config": cfg}, tmp_path / "a"
    )
    assert load_pretrained(tmp_path / "a").tokenizer is tiktoken.get_encoding("gpt2")


# --- Refused --------------------------------------------------------------------------


def change(folder, path, value):
    """Set an entry of tokenizer.json, by keys with slashes between."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    *way, last = path.split("/")
    place = content
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model/type", "Unigram", r"of another kind \(Unigram\); known are those of"),
        ("model/byte_fallback", True, r"another kind \(BPE of characters\)"),
        ("model/merges", [["a", "b"]], "do not make its tokens in the order"),
        ("model/merges", 3, "not a whole tokenizer.json .*TypeError"),
        ("model/vocab", {"a": 1}, "do not run from 0 up without a gap"),
        ("model/vocab", {"a": "b"}, "do not run from 0 up without a gap"),
        ("model/end_of_word_suffix", "</w>", "asks for end_of_word_suffix='</w>'"),
        ("pre_tokenizer/add_prefix_space", True, "splits a text in a way that is not"),
        ("pre_tokenizer", None, "not a whole tokenizer.json"),
        ("added_tokens/0/lstrip", True, "added token '<|endoftext|>' takes in what"),
        ("normalizer", json.loads(NFC().__getstate__()), "move the file away"),
        ("added_tokens", [{"id": 0, "content": "", "special": True}], "without a gap"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, path, value, message):
    write(tmp_path, trained("gpt2"))
    change(tmp_path, path, value)
    with pytest.raises(ValueError, match=message) as caught:
        folder_tokenizer(tmp_path, 1000, "gpt2")
    assert str(tmp_path) in str(caught.value)


def test_a_vocabulary_of_another_model_is_refused(tmp_path):
    write(tmp_path, trained("gpt2"))
    with pytest.raises(ValueError, match="has 330 tokens, but the model only 300"):
        folder_tokenizer(tmp_path, 300, "gpt2")


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_damage_is_one_sentence_or_no_harm(pairs, tmp_path, place, byte):
    folder = tmp_path / "copy"
    if not folder.exists():
        write(folder, pairs["gpt2"][0])
    file = folder / "tokenizer.json"
    content = file.read_bytes()
    at = int(place * len(content))
    file.write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
    ours, said = None, str(folder)
    try:
        ours = folder_tokenizer(folder, 1000, "gpt2")
    except ValueError as problem:
        said = str(problem)
    finally:
        file.write_bytes(content)
    assert str(folder) in said
    assert "\n" not in said
    if ours is not None:
        assert ours.decode(ours.encode(TEXT, disallowed_special=())) == TEXT


def test_other_libraries_read_the_folder_that_the_notebook_writes(tmp_path):
    """Its three cells, run on a tiny Llama: transformers and tokenizers agree."""
    from transformers import AutoModelForCausalLM

    theirs = trained("smollm")
    described = json.loads(theirs.to_str())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].get)
    cfg: LlamaConfig = {
        "vocab_size": len(tokens),
        "context_length": 32,
        "emb_dim": 24,
        "n_heads": 6,
        "n_kv_groups": 2,
        "n_layers": 2,
        "head_dim": 4,
        "hidden_dim": 40,
        "rope_base": 10_000.0,
        "rope_scaling": None,
        "norm_eps": 1e-5,
        "tie_weights": True,
    }
    torch.manual_seed(0)
    model = LlamaModel(cfg).eval()
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in described["merges"]],
    }
    names = {
        "json": json,
        "save_file": save_file,
        "llama_key_map": llama_key_map,
        "folder": tmp_path,
        "real": model.state_dict(),
        "smol": SimpleNamespace(config=cfg, tokenizer=SimpleNamespace(eot_token=0)),
        "gguf_file": SimpleNamespace(metadata=metadata),
        "tokens": tokens,
    }
    notebook = Path(__file__).with_name("weight-loading.ipynb")
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["id"] in {"write-shards", "config-json", "tokenizer-json"}:
            exec("".join(cell["source"]), names)
    ids = torch.tensor([theirs.encode(TEXT).ids[:20]])
    reread = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    with torch.no_grad():
        torch.testing.assert_close(reread(ids).logits, model(ids), atol=1e-5, rtol=1e-5)
    package = Tokenizer.from_file(str(tmp_path / "hub" / "tokenizer.json"))
    text = TEXT + SPECIAL[1]
    assert package.encode(text).ids == theirs.encode(text).ids
    assert package.decode(package.encode(TEXT).ids) == TEXT
