"""The real 270M, if the reader has fetched it: text and loss as the references give.

And the tables in `results`, which need no file.
"""

from pathlib import Path

import gguf
import pytest
import torch
from torch.nn import functional as F

from course import assets
from course.tables import read
from gemma3 import GEMMA3_270M, gemma3_cache
from gguf_files import read_gguf
from gguf_weights import dequantise
from gpt import generate_text_simple
from pretrained import load_pretrained

RESULTS = Path(__file__).parent / "results"
with_file = pytest.mark.skipif(
    assets.status("gemma3-270m") != "present",
    reason="gemma3-270m is not in the cache: it has terms of use, see the README",
)


@pytest.fixture(scope="module")
def real():
    path = assets.check("gemma3-270m")
    model, tokenizer, _ = load_pretrained("gemma3-270m", path=path)
    return model, tokenizer, path


@with_file
def test_weights_are_the_library_s(real):
    """Three tensors of each format; norms less 1."""
    model, _, path = real
    assert model.cfg == GEMMA3_270M
    seen = {}
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, tensor in read_gguf(path).tensors.items():
        seen[tensor.format] = seen.get(tensor.format, 0) + 1
        if seen[tensor.format] <= 3 and "token_embd" not in name:
            raw = theirs[name]
            expected = gguf.quants.dequantize(raw.data, raw.tensor_type)
            assert torch.equal(dequantise(tensor), torch.tensor(expected))
    assert seen == {"F32": 109, "Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9}
    stored = dequantise(read_gguf(path).tensors["output_norm.weight"])
    assert torch.equal(1 + model.final_norm.scale, stored)
    for name, parameter in model.named_parameters():  # as they were learned
        if "norm" in name:
            assert torch.equal(parameter.bfloat16().float(), parameter)


@with_file
@torch.no_grad()
def test_text_and_loss(real):
    """3.325 nats a token, as transformers gives; without the first token far more."""
    model, tokenizer, _ = real
    story = assets.fetch("short-story").read_text(encoding="utf-8")
    ids = torch.tensor([[tokenizer.bos_token, *tokenizer.encode(story)][:513]])
    loss = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:]).item()
    assert loss == pytest.approx(3.325, abs=0.002)
    without = F.cross_entropy(model(ids[:, 1:-1])[0], ids[0, 2:]).item()
    assert without > loss + 0.5
    prompt = [tokenizer.bos_token, *tokenizer.encode("The capital of France is")]
    text = generate_text_simple(
        model, torch.tensor([prompt]), 12, 32768, cache=gemma3_cache(model.cfg)
    )
    assert tokenizer.decode(text[0, len(prompt) :].tolist()) == (
        " the capital of the country of France. It is the largest"
    )


def test_it_is_never_fetched_without_consent(monkeypatch, tmp_path):
    from course import CourseError

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with pytest.raises(CourseError, match=r"terms of use: https://ai\.google\.dev"):
        load_pretrained("gemma3-270m")


def test_committed_tables_say_what_the_notebook_says():
    """Same text as transformers; as llama.cpp, or nearly level where they part."""
    text, loss = read(RESULTS / "text.csv"), read(RESULTS / "loss.csv")
    assert len(text) == 10
    for row in text:
        assert row["tokens"] == row["as_transformers"] == "24"
        assert int(row["as_llama_cpp"]) == 24 or row["our_token"]
        if row["our_token"]:
            leads = float(row["our_lead"]), float(row["their_lead"])
            assert 0 < min(leads) <= max(leads) < 0.35
            assert max(leads) < float(row["apart"])  # of the places before
    found = {(row["text"], row["contestant"]): float(row["loss"]) for row in loss}
    ours, theirs, cpp = dict.fromkeys(row["contestant"] for row in loss)
    for name in ("the story", "its beginning"):
        assert found[name, ours] == pytest.approx(found[name, theirs], abs=2e-4)
    begun = "its beginning"
    assert found[begun, cpp] == pytest.approx(found[begun, ours], abs=0.05)
    norms = {row["norm"]: row for row in read(RESULTS / "norms.csv")}
    assert float(norms["norm1"]["median"]) > 13
    assert max(float(row["share_within_0.1_of_1"]) for row in norms.values()) < 0.1
    (loading,) = read(RESULTS / "loading.csv")
    assert int(loading["peak_megabytes"]) < 4000
    speed = {row["contestant"]: row for row in read(RESULTS / "speed.csv")}
    assert float(speed[ours]["times_as_fast"]) > 0.9
    assert 0.5 < float(speed["ours, int8"]["times_as_fast"]) < 1


def test_a_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path):
    assert experiments.main(["--tiny", "--rounds", "2", "--out", str(tmp_path)]) == 0
    for name in ("text", "norms", "loss", "speed"):
        rows, stored = read(tmp_path / f"{name}.csv"), read(RESULTS / f"{name}.csv")
        assert list(rows[0]) == list(stored[0])
    assert all(row["as_transformers"] == "4" for row in read(tmp_path / "text.csv"))
