"""Models are asked in the same words, here and behind an HTTP interface."""

import json

import pytest

from course.assets import fetch
from course.testing import servers
from course.testing.llama_server import llama_cpp
from course.testing.servers import answer, refuse
from passive_makers import (
    EXAMPLES,
    INSTRUCTIONS,
    ask_model,
    ask_url,
    first_sentence,
    gold_pairs,
    passive_entry,
    passive_prompt,
)
from passive_voice import passive_problem

SENTENCES = ["Bees make honey.", "The dog ate the sausage.", "She opened it."]


def test_the_examples_are_right_and_none_of_the_courses():
    entries = json.loads(fetch("instructions-2").read_text("utf-8"))
    gold = {active for active, _, _ in gold_pairs(entries)}
    for active, passive in EXAMPLES:
        assert passive_problem(active, passive) == ""
        assert active not in gold


def test_a_sentence_always_gets_the_same_wording():
    made = [passive_entry(one, "x")["instruction"] for one in SENTENCES * 2]
    assert made[:3] == made[3:]
    many = {passive_entry(f"It is {i}.", "x")["instruction"] for i in range(40)}
    assert many == set(INSTRUCTIONS)


REPLIES = {
    "Honey is made by bees.": "Honey is made by bees.",
    'Passive: "Honey is made by bees."\n\nActive: ...': "Honey is made by bees.",
    "\n\nHoney is made by bees. \nI hope so.": "Honey is made by bees.",
    "**Passive voice:** Honey is made.": "Passive voice:** Honey is made.",
    "": "",
    "\n": "",
}


@pytest.mark.parametrize(("reply", "sentence"), REPLIES.items())
def test_the_first_line_of_a_reply_counts(reply, sentence):
    assert first_sentence(reply) == sentence


class Model(servers.Server):
    """Says of each sentence that it is asked about what `says` has for it."""

    says = {"Bees make honey.": "Passive: Honey is made by bees."}

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.url = self.address + form
        self.default = self.reply

    def reply(self, request):
        prompt = request.json["messages"][-1]["content"]
        active = prompt.rsplit("Active: ", 1)[-1].removesuffix("\nPassive:")
        text = self.says.get(active, "I cannot.")
        if self.form == "/api/chat":
            body = {"message": {"content": text}, "done": True}
        else:
            body = {"choices": [{"message": {"content": text}}]}
        answer(json.dumps(body))(request)


@pytest.mark.parametrize("form", ["/api/chat", "/v1/chat/completions"])
def test_a_server_of_either_kind_is_asked(form):
    with Model(form) as server:
        made = ask_url(SENTENCES, server.url, "m", timeout=5.0)
        assert made == ["Honey is made by bees.", "I cannot.", "I cannot."]
        sent = [one.json["messages"][0]["content"] for one in server.asked]
        assert sent == [passive_prompt(one) for one in SENTENCES]
        assert all("Authorization" not in one.headers for one in server.asked)


def test_a_server_that_goes_loses_no_answer(capsys):
    with Model("/api/chat") as server:
        server.script = [server.reply, refuse(500), refuse(500)]
        made = ask_url(SENTENCES, server.url, "m", retries=1, wait=0.0, timeout=5.0)
    assert made == ["Honey is made by bees.", None, None]
    assert "1 of 3 answered: " in capsys.readouterr().out


@pytest.fixture(scope="module")
def real():
    """The address of llama.cpp with SmolLM2."""
    with llama_cpp() as address:
        yield address + "/v1/chat/completions"


def test_a_real_server_and_the_model_here_are_asked_alike(real):
    from pretrained import load_pretrained

    model, tokenizer, _ = load_pretrained("smollm2-135m")
    here = ask_model(SENTENCES, model, tokenizer)
    there = ask_url(SENTENCES, real, "smollm2", timeout=60.0)
    assert len(here) == len(there) == 3
    assert all(text and "\n" not in text for text in (*here, *there))
    # The server computes with other roundings, so only the beginnings must agree.
    same = sum(a.split()[0] == b.split()[0] for a, b in zip(here, there))
    assert same >= 2
