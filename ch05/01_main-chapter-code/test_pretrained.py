"""`load_pretrained`: one door, two families of models, the same interface."""

import difflib
import json
import sys
from pathlib import Path

import pytest
import tiktoken
import torch
from safetensors.torch import save_file

from course import assets, settings
from gguf_tokenizer import byte_alphabet
from gpt import GPTConfig, GPTModel
from gpt2_files import check_vocabulary_beside
from gpt_download import GPT2_NAMES
from gpt_train import save_checkpoint
from pretrained import Pretrained, load_pretrained

SMOL = "smollm2-135m"
SMALL = "gpt2-small-124M"
TEXT = "Every effort counts, caf\u00e9 \U0001f600 \u732b.\n\n  Two spaces."


@pytest.fixture(scope="module")
def smol():
    return load_pretrained(SMOL)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """GPT-2's name for a model of two thin layers, its file, and the reference."""
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg = {**GPT2_NAMES[SMALL], "emb_dim": 8, "n_heads": 2, "n_layers": 2}
    monkeypatch.setitem(GPT2_NAMES, SMALL, GPTConfig.of(cfg))
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=2)).eval()
    theirs.save_pretrained(tmp_path)
    return tmp_path / "model.safetensors", theirs


# --- what every model promises to chapters 5 to 7 -------------------------------------


def check_contract(loaded):
    model, tokenizer, config = loaded
    assert isinstance(loaded, Pretrained)
    assert (loaded.model, loaded.tokenizer, loaded.config) == (model, tokenizer, config)
    assert model.cfg == config
    assert not any(module.training for module in model.modules())
    assert config["n_layers"] == len(model.trf_blocks)
    assert model.tok_emb.weight.shape == (config["vocab_size"], config["emb_dim"])
    assert model.out_head.weight.data_ptr() == model.tok_emb.weight.data_ptr()
    assert model.final_norm(torch.ones(1, config["emb_dim"])).shape[1] > 1
    assert config["context_length"] > 0

    assert tokenizer.n_vocab == config["vocab_size"]
    assert 0 <= tokenizer.eot_token < tokenizer.n_vocab
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    pieces = [tokenizer.decode_single_token_bytes(i) for i in ids]
    assert b"".join(pieces).decode() == TEXT
    end = tokenizer.decode([tokenizer.eot_token])
    assert tokenizer.encode(end, allowed_special={end}) == [tokenizer.eot_token]
    assert len(tokenizer.encode(end, disallowed_special=())) > 1  # a reader's text

    idx = torch.tensor([ids[:5], ids[1:6]])
    with torch.no_grad():
        logits = model(idx)
        assert logits.shape == (2, 5, config["vocab_size"])
        padded = torch.cat((torch.zeros_like(idx[:, :2]), idx), dim=1)
        mask = torch.ones_like(padded).bool()
        mask[:, :2] = False
        shifted = model(padded, attention_mask=mask)[:, 2:]
    assert torch.allclose(shifted, logits, rtol=0, atol=2e-4)


def test_smollm2_keeps_the_contract(smol):
    check_contract(smol)


def test_smollm2_knows_something(smol):
    """Weights in a wrong place would give noise."""
    ids = torch.tensor([smol.tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        best = smol.model(ids)[0, -1].argmax()
    assert smol.tokenizer.decode([int(best)]) == " Paris"


def test_gpt2_keeps_the_contract(small):
    path, theirs = small
    loaded = load_pretrained(SMALL, path=path)
    check_contract(loaded)
    assert loaded.config == GPT2_NAMES[SMALL]
    ids = torch.tensor([loaded.tokenizer.encode(TEXT)])
    with torch.no_grad():
        expected = theirs(ids).logits
        assert torch.allclose(loaded.model(ids), expected, rtol=0, atol=1e-5)


def test_every_model_that_the_reader_may_choose_is_known(small, monkeypatch):
    """`COURSE_MODEL` and the names of `load_pretrained` go together."""
    for name in settings.models():
        monkeypatch.setenv("COURSE_MODEL", name)
        chosen = settings.model_name()
        assert chosen == name
        assert chosen in assets.manifest()
        with pytest.raises((ValueError, OSError), match="There is no|there is no"):
            load_pretrained(chosen, path="no/such/file.safetensors")
    monkeypatch.delenv("COURSE_MODEL")
    assert settings.model_name() == SMOL
    assert assets.manifest()[SMOL].offline


# --- dtypes ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_weights_have_the_dtype_that_was_asked_for(small, dtype):
    model = load_pretrained(SMALL, dtype, small[0]).model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(torch.tensor([[1, 2]])).dtype == dtype


def test_smollm2_in_bfloat16_is_the_rounded_model(smol):
    rounded = load_pretrained(SMOL, torch.bfloat16).model
    for (name, wide), narrow in zip(
        smol.model.named_parameters(), rounded.parameters(), strict=True
    ):
        assert torch.equal(wide.to(torch.bfloat16), narrow), name


@pytest.mark.parametrize("dtype", [torch.int8, "float32", None])
def test_another_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match=r"give a floating one, such as torch"):
        load_pretrained(SMOL, dtype)


# --- what a reader may get wrong ------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smollm2", "did you mean 'smollm2-135m'?"),
        ("gpt2-small-124m", "did you mean 'gpt2-small-124M'"),
        ("GPT-4", "known are smollm2-135m, gpt2-small-124M, gpt2-medium-355M, "),
        (None, "known are smollm2-135m"),
    ],
)
def test_an_unknown_name_gets_those_that_are_close(name, words):
    with pytest.raises(ValueError, match="There is no pretrained model") as caught:
        load_pretrained(name)
    assert words in str(caught.value)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["runs/no-such", Path("no-such"), "gpt2-small-124M.pth", Path("smollm2-135m.gguf")],
)
def test_a_missing_file_is_not_taken_for_a_name(name):
    """Known mistake: "did you mean 'gpt2-small-124M'?", which would fetch 548 MB."""
    with pytest.raises(ValueError, match="There is no file or folder") as caught:
        load_pretrained(name)
    assert f"{str(name)!r}; known are smollm2-135m, " in str(caught.value)
    assert str(caught.value).endswith("gemma3-270m, and files and folders of weights.")


def test_larger_sisters_say_how_they_are_had():
    with pytest.raises(ValueError, match="holds no checksum") as caught:
        load_pretrained("gpt2-xl-1558M")
    assert "load_pretrained('gpt2-xl-1558M', path=FOLDER)" in str(caught.value)


def test_the_file_of_another_model_is_refused(small, tmp_path):
    said = []
    for name, path in (
        (SMOL, small[0]),
        (SMALL, assets.fetch(SMOL)),
    ):
        with pytest.raises(ValueError, match="file") as caught:
            load_pretrained(name, path=path)
        said.append(str(caught.value))
        assert str(path) in said[-1]
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"'wte\.weight' and 27 more are missing"):
        load_pretrained(SMALL, path=other)


def test_without_the_course_a_path_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "course.assets", None)
    for name in (SMOL, SMALL):
        with pytest.raises(ValueError, match="^Without the course nothing is fetched"):
            load_pretrained(name)


def test_the_names_of_the_models_are_told_apart():
    """A suggestion is only of use if it is one of few."""
    for name in GPT2_NAMES:
        assert difflib.get_close_matches(name, GPT2_NAMES, n=1) == [name]


# --- a checkpoint's folder is a name, too ---------------------------------------------


def test_the_readers_own_gpt_comes_from_its_checkpoint(tmp_path):
    torch.manual_seed(0)
    cfg = {**GPT2_NAMES[SMALL], "emb_dim": 8, "n_heads": 2, "n_layers": 2}
    own = GPTModel(cfg).eval()
    save_checkpoint(tmp_path, own, tokenizer=tiktoken.get_encoding("gpt2"))
    loaded = load_pretrained(str(tmp_path))
    check_contract(loaded)
    idx = torch.tensor([[5, 50_000, 7]])
    assert torch.equal(loaded.model(idx), own(idx))
    assert load_pretrained(tmp_path, torch.bfloat16).model(idx).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_checkpoint_of_another_dtype_is_loaded_as_it_is(tmp_path, dtype):
    cfg = {**GPT2_NAMES[SMALL], "emb_dim": 8, "n_heads": 2, "n_layers": 1}
    own = GPTModel(cfg).to(dtype)
    save_checkpoint(tmp_path, own)
    loaded = load_pretrained(tmp_path).model
    for one, other in zip(loaded.parameters(), own.parameters(), strict=True):
        assert torch.equal(one, other.float())


def test_a_folder_with_another_model_or_none_is_told(tmp_path):
    with pytest.raises(ValueError, match="There is no checkpoint in"):
        load_pretrained(tmp_path)
    save_checkpoint(tmp_path, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="holds a Linear, not a GPTModel"):
        load_pretrained(tmp_path)


def test_the_folder_of_a_published_llama_is_a_name(tmp_path, monkeypatch):
    """Which loader it goes to; what that does is tested beside it."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ValueError, match="config.json: The settings lack"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(
        ValueError, match="a model of type 'bert'; load_pretrained take"
    ):
        load_pretrained(tmp_path)


def test_a_checkpoint_of_another_tokenizer_is_told(tmp_path):
    """Its ids would mean other words, and nothing would look wrong but the text."""
    cfg = {**GPT2_NAMES[SMALL], "emb_dim": 8, "n_heads": 2, "n_layers": 2}
    other = tiktoken.get_encoding("gpt2")._mergeable_ranks
    pattern = r"\S+|\s+"
    other = tiktoken.Encoding(
        "other", pat_str=pattern, mergeable_ranks=other, special_tokens={}
    )
    save_checkpoint(tmp_path, GPTModel(cfg), tokenizer=other)
    with pytest.raises(ValueError, match="tokenizer"):
        load_pretrained(tmp_path)


def test_a_gpt2_with_a_vocabulary_of_its_own_is_told(tmp_path):
    """Its ids would mean other words; the sizes are the same."""
    tokenizer = tiktoken.get_encoding("gpt2")
    characters = {byte: character for character, byte in byte_alphabet().items()}
    vocabulary = {
        "".join(characters[byte] for byte in tokenizer.decode_single_token_bytes(i)): i
        for i in range(50256)
    } | {"<|endoftext|>": 50256}
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps(vocabulary), encoding="utf-8")
    check_vocabulary_beside(tmp_path, tokenizer)
    check_vocabulary_beside(tmp_path / "model.safetensors", tokenizer)
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    for wrong in (vocabulary, {"a": 60_000}, {"\u4f60": 5}, {"a": "b"}):
        file.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(ValueError, match="which GPT-2's vocabulary has not"):
            check_vocabulary_beside(tmp_path, tokenizer)
