"""Critique and revision: what is asked, what is read, and nothing lost on the way."""

import json

import pytest

from course.testing import servers
from course.testing.servers import answer as plain
from instruction_data import user_text
from judge_requests import ServerError
from pretrained import load_pretrained
from raw_prompts import LocalWriter
from revise_instructions import (
    LocalChat,
    ServerChat,
    critique_prompt,
    question_critique_prompt,
    question_revision_prompt,
    read_revision,
    revise_answers,
    revise_questions,
    revision_counts,
    revision_prompt,
)

ENTRIES = [
    {"instruction": "Name the opposite.", "input": "deep", "output": "Shallow."},
    {"instruction": "What is dew?", "input": "", "output": "Water."},
    {"instruction": "Add 2 and 2.", "input": "", "output": "4"},
]
ANSWERS = ["High.", "Dew is water.", "5"]


# --- Requests and replies -------------------------------------------------------------


def test_the_requests_hold_question_answer_and_critique():
    entry = ENTRIES[0]
    asked = critique_prompt(entry, "High.")
    for part in ("Name the opposite.\n\ndeep", "High.", "What is wrong"):
        assert part in asked
    assert entry["output"] not in asked  # who revises does not know the right answer
    better = revision_prompt(entry, "High.", "It is wrong.")
    assert "What is wrong with it:\nIt is wrong." in better
    assert "What is wrong" not in revision_prompt(entry, "High.")
    assert user_text(entry) in question_critique_prompt(entry)
    assert "It is unclear." in question_revision_prompt(entry, "It is unclear.")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Shallow.", ("Shallow.", "revision")),
        ('"Shallow."', ("Shallow.", "revision")),
        ("\u201cShallow.\u201d", ("Shallow.", "revision")),
        ('"Yes", he said, "no".', ('"Yes", he said, "no".', "revision")),
        ("Sure! Here is the improved answer: Shallow.", ("Shallow.", "revision")),
        ("Here's a better version:\n\nShallow.", ("Shallow.", "revision")),
        (
            "Here is the revised answer to the question:\n1. a\n2. b",
            ("1. a\n2. b", "revision"),
        ),
        ("New answer: Shallow.", ("Shallow.", "revision")),
        ("**Answer:** 5", ("5", "revision")),
        (
            "The new law: it forbids cars.",
            ("The new law: it forbids cars.", "revision"),
        ),
        ("A better day came.", ("A better day came.", "revision")),
        ("<think>Is it 5?</think>4", ("4", "revision")),
        ("", (None, "empty")),
        ("<think>only thoughts", (None, "empty")),
        ("Here is the improved answer:", (None, "empty")),
        ("I'm sorry, I can't do that.", (None, "refusal")),
        ("No changes are needed.", (None, "no change")),
        ("The answer is correct.", (None, "no change")),
        (
            "The answer is correct if x is 4.",
            ("The answer is correct if x is 4.", "revision"),
        ),
    ],
)
def test_a_revision_is_read_or_what_it_is_instead(reply, expected):
    assert read_revision(reply) == expected


# --- All of them ----------------------------------------------------------------------


class Said:
    """A chat that answers by rule and keeps what it was asked."""

    def __init__(self, fails=()):
        self.asked, self.fails = [], fails

    def __call__(self, prompts):
        self.asked.append(list(prompts))
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt):
        if any(text in prompt for text in self.fails):
            return None
        if "in one or two sentences" in prompt:
            return "It is wrong."
        return "4" if "Add 2" in prompt else "No change is needed."


def test_each_answer_is_criticised_and_then_revised():
    chat = Said()
    results = revise_answers(ENTRIES, ANSWERS, chat)
    assert [len(prompts) for prompts in chat.asked] == [3, 3]
    assert all("It is wrong." in prompt for prompt in chat.asked[1])
    assert [r["kind"] for r in results] == ["no change", "no change", "revision"]
    assert results[2] == {
        "critique": "It is wrong.",
        "reply": "4",
        "revision": "4",
        "kind": "revision",
    }
    chat = Said()
    results = revise_answers(ENTRIES, ANSWERS, chat, criticise=False)
    assert [len(prompts) for prompts in chat.asked] == [3]
    assert results[2]["critique"] == ""
    assert "What is wrong" not in chat.asked[0][0]
    with pytest.raises(ValueError, match="shorter"):
        revise_answers(ENTRIES, ANSWERS[:2], Said())


def test_questions_are_revised_without_their_answers():
    chat = Said()
    results = revise_questions(ENTRIES, chat)
    assert "Shallow." not in "".join(chat.asked[0] + chat.asked[1])
    assert [r["kind"] for r in results] == ["no change", "no change", "revision"]


def test_where_the_critique_failed_no_revision_is_asked_and_places_are_kept():
    chat = Said(fails=["What is dew?"])
    results = revise_answers(ENTRIES, ANSWERS, chat)
    assert [len(prompts) for prompts in chat.asked] == [3, 2]
    assert [r["kind"] for r in results] == ["no change", "failed", "revision"]
    assert results[1]["critique"] is results[1]["reply"] is None


def test_the_counts_say_what_was_gained_and_lost():
    found = revision_counts(
        [True, True, False, False, False], [True, False, True, 0, 0]
    )
    assert found == {
        "repaired": 1,
        "broken": 1,
        "right both times": 1,
        "wrong both times": 2,
    }


# --- A server -------------------------------------------------------------------------


def speak(request):
    prompt = request.json["messages"][0]["content"]
    message = {"message": {"content": Said().answer(prompt)}, "done": True}
    plain(json.dumps(message))(request)


@pytest.fixture
def stub():
    with servers.Server() as server:
        server.default = speak
        server.always["/"] = plain("Ollama is running")
        yield server


def posts(stub):
    return [request for request in stub.asked if request.command == "POST"]


@pytest.mark.parametrize("at", range(6))
def test_a_request_that_fails_loses_nothing_and_is_made_again(
    stub, tmp_path, at, capsys
):
    trouble = [plain("", 500), plain("slow down", 429), plain("<html>")][at % 3]
    stub.script = [speak] * at + [trouble]
    results = tmp_path / "answers.json"
    chat = ServerChat(
        "m", stub.address + "/api/chat", results, retries=0, wait=0.0, api_key="secret"
    )
    revised = revise_answers(ENTRIES, ANSWERS, chat)
    assert sum(row["kind"] == "failed" for row in revised) == 1
    assert "1 requests failed" in capsys.readouterr().out
    before = len(posts(stub))
    revised = revise_answers(ENTRIES, ANSWERS, chat)
    assert [row["kind"] for row in revised] == ["no change", "no change", "revision"]
    assert len(posts(stub)) - before == (2 if at < 3 else 1)
    assert posts(stub)[0].headers["Authorization"] == "Bearer secret"
    assert "secret" not in results.read_text("utf-8")


def test_a_server_that_is_gone_stops_the_work_and_the_same_call_goes_on(stub, tmp_path):
    results = tmp_path / "answers.json"
    url = stub.address + "/api/chat"
    chat = ServerChat("m", url, results, retries=0, wait=0.0)
    chat([critique_prompt(ENTRIES[0], ANSWERS[0])])
    nobody = ServerChat(
        "m", servers.nobody() + "/api/chat", tmp_path / "b.json", retries=0, wait=0.0
    )
    with pytest.raises(ServerError, match="0 of 3 were answered and kept in"):
        revise_answers(ENTRIES, ANSWERS, nobody)
    revise_answers(ENTRIES, ANSWERS, chat)
    assert len(posts(stub)) == 6
    other = ServerChat("other", url, results)
    with pytest.raises(ValueError, match="those of two models cannot be mixed"):
        other(["Hi"])


# --- The course's own model -----------------------------------------------------------


def test_the_local_chat_answers_in_the_order_of_the_requests():
    model, tokenizer, _ = load_pretrained("smollm2-135m")
    writer = LocalWriter(model, tokenizer)
    writer.batch_size = 2
    chat = LocalChat(writer, most=10)
    asked = ["What is the capital of France? Answer in one word.", "Say hello.", "Hi"]
    together = chat(asked)
    assert together == [chat([one])[0] for one in asked]
    assert "Paris" in together[0]
    assert chat([]) == []
    assert chat(["Say <|im_end|>"]) != [None]  # typed text never ends a turn
