"""Chapter 7's judge takes the page as its server: real HTTP, small models."""

import json
import runpy
from pathlib import Path

import pytest
import tiktoken
import torch

from conversation import conversation_ids
from gpt_generate import Sampling
from ollama_evaluate import (
    JudgeError,
    check_if_running,
    compare_answers,
    generate_model_scores,
    main,
    query_model,
)
from page_models import Shelf
from page_server import running
from small_models import small_configs, small_model
from writer import Reading, Writer

GPT2 = tiktoken.get_encoding("gpt2")
CONTEXT = 700
MODEL = small_model(small_configs(context_length=CONTEXT, vocab_size=50_257)["GPT"])
ENTRIES = [
    {
        "instruction": f"Add 1 to {number}.",
        "input": "",
        "output": str(number + 1),
        "model_response": f"It is {number + 1}.",
        "untuned_response": f"{number}?",
    }
    for number in range(3)
]


class SaysOneThing(torch.nn.Module):
    """A model that answers every question with the same words."""

    def __init__(self, text):
        super().__init__()
        self.cfg = {"context_length": CONTEXT, "n_layers": 1}
        self.tok_emb = torch.nn.Embedding(1, 1)
        ids = GPT2.encode(text)
        self.first, self.after = ids[0], dict(zip(ids, [*ids[1:], GPT2.eot_token]))

    def forward(self, idx, cache=None):
        cache.layer(0).append(*[torch.zeros(1, 1, idx.shape[1], 1)] * 2)
        logits = torch.zeros(1, idx.shape[1], GPT2.n_vocab)
        logits[0, -1, self.after.get(idx[0, -1].item(), self.first)] = 9
        return logits


JUDGES = {
    "small": MODEL,
    "grades": SaysOneThing("Score: 85").eval(),
    "chooses": SaysOneThing("A").eval(),
}


@pytest.fixture(scope="module")
def url():
    def load(name):
        writer = Writer(JUDGES[name], GPT2)
        writer.style = "phi3"
        return writer

    make_app = runpy.run_path(str(Path(__file__).parent / "app.py"))["make_app"]
    shelf = Shelf({name: f"It {name}" for name in JUDGES}, load)
    with running(make_app(shelf)) as address:
        yield f"{address}/v1/chat/completions"


def test_it_is_there_and_answers_what_the_model_says(url):
    assert check_if_running(url)
    ids = conversation_ids([], "Is it cold?", GPT2, "phi3")
    steps = Writer(MODEL, GPT2).start(ids, 256, Sampling(eos_id=GPT2.eot_token))
    said = "".join(step.text for step in steps if not isinstance(step, Reading))
    assert len(said) > 100
    assert query_model("Is it cold?", "small", url) == said


def test_scores_and_choices_are_read_from_its_answers(url, tmp_path, capsys):
    results = tmp_path / "scores.json"
    scores = generate_model_scores(ENTRIES, "model_response", "grades", url)
    assert scores == [85, 85, 85]
    keys = ["model_response", "untuned_response"]
    chosen = compare_answers(ENTRIES, keys, "chooses", url, results=results)
    assert sum(chosen[key] for key in keys) == 3
    assert "3 hold a choice" in capsys.readouterr().out
    assert len(json.loads(results.read_text(encoding="utf-8"))["answers"]) == 3


def test_what_cannot_be_read_as_a_score_is_counted(url, capsys):
    assert generate_model_scores(ENTRIES[:1], "model_response", "small", url) == []
    assert "0 hold a score, 1 malformed" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_told_at_once(url):
    with pytest.raises(JudgeError, match="There is no model 'llama3'"):
        query_model("Is it cold?", "llama3", url)


def test_the_script_judges_a_file_with_it(url, tmp_path, capsys):
    data = tmp_path / "answers.json"
    data.write_text(json.dumps(ENTRIES), encoding="utf-8")
    assert main(["--data", str(data), "--model", "grades", "--url", url]) == 0
    assert "Mean score 85.0" in capsys.readouterr().out
