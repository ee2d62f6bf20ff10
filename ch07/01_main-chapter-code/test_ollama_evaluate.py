"""The judge's client, against a server that misbehaves and against a real one.

The stub answers each request with the next of a list of misdeeds. The real server is
llama.cpp with SmolLM2, behind a front that speaks as Ollama does.
"""

import gzip
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

import judge_requests
import ollama_evaluate as chapter
from course.testing import servers
from course.testing.llama_server import llama_cpp
from course.testing.servers import answer as plain
from course.testing.servers import hang_up
from ollama_evaluate import (
    JudgeError,
    check_if_running,
    compare_answers,
    comparison_prompt,
    generate_model_scores,
    judge_prompt,
    query_model,
    read_choice,
    read_score,
)

ENTRY = {"instruction": "Opposite?", "input": "deep", "output": "Shallow."}


def entries(number=4):
    return [
        {
            "instruction": f"Add 1 to {i}.",
            "input": "",
            "output": str(i + 1),
            "model_response": f"It is {i + 1}.",
            "untuned_response": f"{i}?",
        }
        for i in range(number)
    ]


# --- A server that does as it is told -------------------------------------------------


def ollama(text, done=True):
    """A whole answer as Ollama gives it."""
    return json.dumps({"message": {"role": "assistant", "content": text}, "done": done})


def openai(text):
    return json.dumps({"choices": [{"message": {"content": text}}]})


def slow(seconds):
    def answer(handler):
        time.sleep(seconds)
        plain(ollama("late"))(handler)

    return answer


def drip(text):
    """Send each byte in time, all of them too late."""

    def answer(handler):
        handler.start(200, {"Content-Length": len(text.encode())})
        for byte in text.encode():
            handler.write(bytes([byte]))
            time.sleep(0.02)

    return answer


class Judge(servers.Server):
    """`script` is what it does next, `default` what then; `requests` were its jobs."""

    def __init__(self):
        super().__init__()
        self.default = plain(ollama("85"))
        self.always["/"] = plain("Ollama is running")
        self.url = self.address + "/api/chat"

    @property
    def requests(self):
        jobs = [asked for asked in self.asked if asked.command == "POST"]
        return [(asked.path, asked.headers, asked.json) for asked in jobs]


@pytest.fixture
def stub():
    with Judge() as judge:
        yield judge


@pytest.fixture
def nobody():
    """An address on this machine at which no server is."""
    return servers.nobody() + "/api/chat"


def ask(stub, **options):
    options = {"wait": 0.0, "timeout": 5.0, **options}
    return query_model("Hi", "llama3", stub.url, **options)


# --- Asking ---------------------------------------------------------------------------


def test_ollama_gets_its_settings_inside_options(stub):
    """At the top level Ollama ignores seed and temperature without a word."""
    stub.script = [plain(ollama("Hello."))]
    assert ask(stub, seed=7, temperature=0.5, num_ctx=512) == "Hello."
    path, headers, request = stub.requests[0]
    assert path == "/api/chat"
    assert request == {
        "model": "llama3",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": False,
        "options": {"seed": 7, "temperature": 0.5, "num_ctx": 512},
    }
    assert "Authorization" not in headers
    for name in ("seed", "temperature", "num_ctx"):
        default = inspect.signature(query_model).parameters[name].default
        assert chapter._DEFAULTS[name] == default


def test_any_openai_compatible_server_gets_them_at_the_top(stub):
    stub.script = [plain(openai("Hello."))]
    url = stub.address + "/v1/chat/completions"
    assert query_model("Hi", "m", url, seed=7, api_key="abc") == "Hello."
    path, headers, request = stub.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer abc"
    assert (request["seed"], request["temperature"]) == (7, 0.0)
    assert "options" not in request


def test_an_answer_in_pieces_is_put_together(stub):
    pieces = [ollama("Hel", done=False), ollama("lo", done=False), ollama("!")]
    stub.script = [plain("\n".join(pieces) + "\n")]
    assert ask(stub) == "Hello!"


MISDEEDS = {
    "500": plain('{"error": "out of memory"}', 500),
    "429": plain("slow down", 429),
    "503 as a page": plain("<html>busy</html>", 503),
    "slow": slow(10),
    "dripping": drip(ollama("x" * 200)),
    "hangs up": hang_up,
    "truncated JSON": plain(ollama("85")[:-9]),
    "shorter than announced": plain(ollama("85"), announced=500),
    "no JSON": plain("<html>welcome</html>"),
    "nothing": plain(""),
    "another object": plain('{"status": "ok"}'),
    "a number": plain("5"),
    "an empty list": plain("[]"),
    "no choices": plain('{"choices": []}'),
    "content of another kind": plain('{"choices": [{"message": {"content": 3}}]}'),
    "pieces that break off": plain(ollama("8", done=False)),
    "no UTF-8": plain(b'{"message": {"content": "\xff"}, "done": true}'),
    "an error with status 200": plain('{"error": "model requires more memory"}'),
}
SILENT = {"slow", "dripping", "hangs up", "shorter than announced"}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_misdeed_is_tried_again_and_told_if_it_goes_on(stub, misdeed):
    # Where nothing is to be waited for, a busy machine must not count as slow.
    timeout = 1.5 if misdeed in ("slow", "dripping") else 30.0
    stub.script = [MISDEEDS[misdeed], plain(ollama("fine"))]
    assert ask(stub, timeout=timeout) == "fine"
    assert len(stub.requests) == 2
    stub.script = [MISDEEDS[misdeed]] * 2
    start = time.monotonic()
    advice = "start the server" if misdeed in SILENT else "the server is there; see"
    if misdeed == "429":
        advice = "it takes no more requests now; go on later"
    with pytest.raises(JudgeError, match=rf"gave no answer \(.+\): {advice}"):
        ask(stub, timeout=timeout, retries=1)
    assert time.monotonic() - start < 7  # two that are slow, or drip, take longer
    assert len(stub.requests) == 4


LINE_ENDS = "Two\u2028lines,\u0085three\x0bfour"
PIECES = [ollama("Hel", done=False), ollama("lo", done=False), ollama("!")]
DEEP = "[" * 60_000 + "]" * 60_000


def unescaped(content):
    """What Ollama sends: other line ends and letters stand in it as they are."""
    message = {"message": {"content": content}, "done": True}
    return json.dumps(message, ensure_ascii=False)


def completion(**message):
    return json.dumps({"choices": [{"message": message}]})


def chat(message, **more):
    return json.dumps({"message": message, "done": True, **more})


# What a server sends, and what is read: a text, or None where it must be refused.
ODD_SERVERS = {
    "plain": (ollama("85"), "85"),
    "empty content": (ollama(""), ""),
    "blanks": (ollama(" 85\n"), " 85\n"),
    "emoji": (ollama("\U0001f600 85"), "\U0001f600 85"),
    "escapes": (ollama("\u00fc"), "\u00fc"),
    "unescaped": ('{"message": {"content": "\u00fc"}, "done": true}', "\u00fc"),
    "byte order mark": ("\ufeff" + ollama("85"), "85"),
    "indented": (json.dumps(json.loads(ollama("85")), indent=2), "85"),
    "line end behind it": (ollama("85") + "\n", "85"),
    "CRLF behind it": (ollama("85") + "\r\n\r\n", "85"),
    "blank lines before it": ("\n\n" + ollama("85"), "85"),
    "pieces": ("\n".join(PIECES), "Hello!"),
    "pieces with CRLF": ("\r\n".join(PIECES), "Hello!"),
    "pieces with blank lines": ("\n\n".join(PIECES) + "\n", "Hello!"),
    "pieces with a byte order mark": ("\ufeff" + "\n".join(PIECES), "Hello!"),
    "other line ends in a text": (
        json.dumps(
            {"message": {"content": LINE_ENDS}, "done": True}, ensure_ascii=False
        ),
        LINE_ENDS,
    ),
    "other line ends in pieces": (
        "\n".join(map(unescaped, (LINE_ENDS, "!"))),
        LINE_ENDS + "!",
    ),
    "an empty last piece": ("\n".join([PIECES[0], PIECES[1], ollama("")]), "Hello"),
    "more fields": (chat({"content": "85"}, model="x", total_duration=5), "85"),
    "no role": (chat({"content": "85"}), "85"),
    "error is null": (chat({"content": "85"}, error=None), "85"),
    "thoughts beside it": (chat({"content": "85", "thinking": "Hm."}), "85"),
    "thoughts alone": (chat({"content": "", "thinking": "85?"}), "<think>85?"),
    "thoughts in pieces": (
        "\n".join(
            json.dumps({"message": {"content": "", "thinking": x}, "done": x == "b"})
            for x in "ab"
        ),
        "<think>ab",
    ),
    "no content, thoughts": (chat({"content": None, "thinking": "85"}), "<think>85"),
    "null content": (chat({"content": None}), ""),
    "tool calls": (chat({"content": "", "tool_calls": [{"function": {}}]}), ""),
    "completion": (completion(role="assistant", content="85"), "85"),
    "completion of nothing": (completion(content=None), ""),
    "completion, thoughts": (
        completion(content=None, reasoning_content="85?"),
        "<think>85?",
    ),
    "completion in parts": (
        completion(content=[{"type": "text", "text": "8"}, {"text": "5"}]),
        "85",
    ),
    "completion of an empty list": (completion(content=[]), ""),
    "two choices": (
        json.dumps({"choices": [{"message": {"content": x}} for x in ("85", "9")]}),
        "85",
    ),
    "very long": (ollama("word " * 50_000), "word " * 50_000),
    "a NUL": (ollama("8\x005"), "8\x005"),
    "nothing": ("", None),
    "blanks alone": (" \n ", None),
    "null": ("null", None),
    "true": ("true", None),
    "a text": ('"85"', None),
    "a number": ("85", None),
    "not a number": ("NaN", None),
    "a list": ("[85]", None),
    "a list of messages": (f"[{ollama('85')}]", None),
    "an empty object": ("{}", None),
    "no message": ('{"done": true}', None),
    "message of another kind": ('{"message": "85", "done": true}', None),
    "message is null": ('{"message": null, "done": true}', None),
    "content is a number": (chat({"content": 85}), None),
    "content is an object": (chat({"content": {"text": "85"}}), None),
    "content is missing": (chat({"role": "assistant"}), None),
    "no done": ('{"message": {"content": "85"}}', None),
    "breaks off": (ollama("8", done=False), None),
    "pieces that break off": ("\n".join(PIECES[:2]), None),
    "a broken piece": ("\n".join([PIECES[0], PIECES[1][:-5], PIECES[2]]), None),
    "half": (ollama("85")[: len(ollama("85")) // 2], None),
    "two objects in a line": (ollama("8") + ollama("5"), None),
    "a web page": ("<!DOCTYPE html><html>Ollama is running</html>", None),
    "words": ("Ollama is running", None),
    "XML": ("<message>85</message>", None),
    "events": (f"data: {openai('85')}\n\ndata: [DONE]\n", None),
    "single quotes": ("{'message': {'content': '85'}, 'done': True}", None),
    "no choices": ('{"choices": []}', None),
    "choices of another kind": ('{"choices": "85"}', None),
    "choices of null": ('{"choices": null}', None),
    "a choice without a message": ('{"choices": [{"text": "85"}]}', None),
    "parts without texts": (completion(content=[{"type": "image"}]), None),
    "an error": ('{"error": "model requires more memory"}', None),
    "an error as an object": (
        '{"error": {"message": "overloaded", "code": 529}}',
        None,
    ),
    "an error behind pieces": ("\n".join([*PIECES[:2], '{"error": "oh"}']), None),
    "an error beside a choice": ('{"choices": [], "error": {"code": 1}}', None),
    "deep": (DEEP, None),
    "deep inside": ('{"message": ' + DEEP + "}", None),
    "UTF-16": (ollama("85").encode("utf-16"), None),
    "Latin-1": (
        '{"message": {"content": "\u00fc"}, "done": true}'.encode("latin-1"),
        None,
    ),
    "cut in a character": (ollama("85").encode()[:-1] + b"\xc3", None),
    "compressed": (gzip.compress(ollama("85").encode()), None),
    "zeros": (bytes(100), None),
}


def test_odd_servers_are_read_or_refused_in_one_sentence(stub):
    assert len(ODD_SERVERS) >= 60
    wrong = {}
    for name, (sent, expected) in ODD_SERVERS.items():
        stub.script = [plain(sent)]
        try:
            found = ask(stub, retries=0, timeout=30.0)
        except JudgeError as problem:
            found = None if "\n" not in str(problem) and len(str(problem)) < 500 else 0
        if found != expected:
            wrong[name] = found
    assert not wrong
    assert sum(expected is None for _, expected in ODD_SERVERS.values()) == 43


def test_a_judge_that_only_thinks_is_shown_with_its_thoughts(stub, capsys):
    thinking = {"message": {"content": "", "thinking": "It is 85."}, "done": True}
    stub.script = [plain(json.dumps(thinking))]
    assert generate_model_scores(entries(1), url=stub.url) == []
    assert "entry 1, malformed: '<think>It is 85.'" in capsys.readouterr().out


def test_the_reason_is_what_the_server_said_and_a_refusal_is_not_repeated(stub):
    stub.script = [plain('{"error": "model \'x\' not found"}', 404)]
    with pytest.raises(JudgeError, match=r"HTTP 404 .*'x' not found.*has the model"):
        ask(stub)
    assert len(stub.requests) == 1


def test_the_waits_grow(stub, monkeypatch):
    waits = []
    monkeypatch.setattr(judge_requests.time, "sleep", waits.append)
    stub.default = plain("", 500)
    with pytest.raises(JudgeError):
        ask(stub, wait=1.0, retries=3)
    assert waits == [1.0, 2.0, 4.0]


def test_whether_a_server_is_there(stub, nobody):
    assert check_if_running(stub.url)
    assert not check_if_running(nobody)
    with pytest.raises(JudgeError, match="gave no answer"):
        query_model("Hi", "llama3", nobody, wait=0.0)


def test_a_proxy_is_not_asked_for_this_machine(stub, nobody, monkeypatch):
    monkeypatch.setenv("http_proxy", nobody.removesuffix("/api/chat"))
    assert ask(stub, retries=0) == "85"


@pytest.mark.parametrize("url", ["localhost:11434", "http://x/api/tags", "ftp://x/api"])
def test_another_address_is_refused(url):
    with pytest.raises(ValueError, match="of no kind that is known"):
        query_model("Hi", "llama3", url)


# --- Reading a judge ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("85", (85, "score")),
        (" **85**.\n", (85, "score")),
        ("Score: 85", (85, "score")),
        ("The score is 85, as 2 + 2 = 4.", (85, "score")),
        ("Grade: **90** because 1 word is wrong", (90, "score")),
        ("I give it 85/100.", (85, "score")),
        ("85 out of 100, though 3 words differ", (85, "score")),
        ("84.6", (85, "score")),
        ("0", (0, "score")),
        ("100", (100, "score")),
        ("101", (None, "out of range")),
        ("-5", (None, "out of range")),
        ("Score: 1000/100", (None, "out of range")),
        ("8/10", (None, "malformed")),
        ("Score: 8/10", (None, "malformed")),
        ("8 out of 10", (None, "malformed")),
        ("Score: 85/10", (None, "malformed")),
        ("Score 0 to 100: 85", (85, "score")),
        ("either 70 or 80", (None, "malformed")),
        ("2 + 2 = 4", (None, "malformed")),
        ("good", (None, "malformed")),
        ("", (None, "malformed")),
        ("I'm sorry, I can't grade this.", (None, "refusal")),
        ("As an AI I won't choose.", (None, "refusal")),
    ],
)
def test_a_score_is_read_or_what_it_is_instead(reply, expected):
    assert read_score(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("A", (0, "choice")),
        ("**B**", (1, "choice")),
        ("Reply B.", (1, "choice")),
        ("The best reply is A because it is short.", (0, "choice")),
        ("B is better.", (1, "choice")),
        ("Answer: B", (1, "choice")),
        ("A good question! The answer is B.", (1, "choice")),
        ("tie", (None, "tie")),
        ("It is a tie.", (None, "tie")),
        ("Both are equal.", (None, "tie")),
        ("A or B", (None, "malformed")),
        ("Reply A is better than reply B.", (0, "choice")),
        ("C", (None, "malformed")),
        ("A good question.", (None, "malformed")),
        ("", (None, "malformed")),
        ("Sorry, I cannot choose.", (None, "refusal")),
    ],
)
def test_a_choice_is_read_or_what_it_is_instead(reply, expected):
    assert read_choice(reply, 2) == expected


THOUGHTS = [
    ("<think>\nA score of 40 would be too low.\n</think>\n\n85", (85, "score")),
    ("<think>\nMaybe grade: 20? No, it is the same.\n</think>\n\n95", (95, "score")),
    ("<think>\nI'd put it at 60/100 at first.\n</think>\n\n100", (100, "score")),
    ("<think>\n1945 is right.\n</think>\n100", (100, "score")),
    ("<think>I cannot find a fault.</think>\n\n90", (90, "score")),
    ("A score of 40 is too low.</think>Score: 85", (85, "score")),
    ("<Thinking>\n7 of 10?\n</Thinking>\n70", (70, "score")),
    ("[THINK]Grade: 20?[/THINK]80", (80, "score")),
    ("<|channel|>analysis<|message|>50?<|channel|>final<|message|>75", (75, "score")),
    ("<think>60?</think><think>70?</think>80", (80, "score")),
    ("<think>\nThe reply is good. Score: 85", (None, "malformed")),
    ("<think>I cannot judge this.</think>", (None, "malformed")),
    ("<think>Score: 85</think>\nSorry, I can't.", (None, "refusal")),
    # Ambiguous without any mark.
    ("A score of 40 would be too low.\n\n85", (None, "malformed")),
    ("Score: 40\nFinal answer: 85", (None, "malformed")),
    ("60/100 at first, but my score is 90.", (None, "malformed")),
    ("Score: 85\n\n**85**", (85, "score")),
    ("85/100\n85/100", (85, "score")),
    ("Score: 90\nI took off 10 points.", (90, "score")),
    ("0.9", (None, "malformed")),
]


@pytest.mark.parametrize(("reply", "expected"), THOUGHTS)
def test_what_a_judge_thinks_is_not_its_score(reply, expected):
    assert read_score(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<think>\nReply A is shorter, reply B is right.</think>\nB", (1, "choice")),
        ("Better is A.</think>\nThe second one.", (None, "malformed")),
        ("<think>Reply B is wrong.\n</think>\n\ntie", (None, "tie")),
        ("<think>The better answer is A.", (None, "malformed")),
        # No letter that is named for its faults, and no letter beside a tie.
        ("Reply B is wrong.", (None, "malformed")),
        ("The worse reply is A.", (None, "malformed")),
        ("Not B.", (None, "malformed")),
        ("It is a tie, but A is shorter.", (None, "malformed")),
        ("It is not a tie.", (None, "malformed")),
        ("B is not bad.", (None, "malformed")),
        ("B answers both questions, so the answer is B.", (1, "choice")),
        ("B. The other one is wrong.", (1, "choice")),
    ],
)
def test_what_a_judge_thinks_or_faults_is_not_its_choice(reply, expected):
    assert read_choice(reply, 2) == expected


def test_the_prompts_hold_question_answer_and_replies():
    text = judge_prompt(ENTRY, "Wide.")
    for part in ("Opposite?\n\ndeep", "Shallow.", "Wide.", "0 (useless) to 100"):
        assert part in text
    text = comparison_prompt(ENTRY, ["Wide.", "Flat."])
    assert text.index("Reply A:\nWide.") < text.index("Reply B:\nFlat.")
    assert "(A, B)" in text
    assert "model" not in text


# --- Judging a file -------------------------------------------------------------------


def test_what_cannot_be_read_is_counted_and_shown(stub, capsys):
    said = ["85", "Great!", "300", "I cannot judge.", "Score: 40"]
    stub.script = [plain(ollama(text)) for text in said]
    scores = generate_model_scores(
        entries(5), "model_response", "llama3", stub.url, wait=0.0
    )
    assert scores == [85, 40]
    assert capsys.readouterr().out.splitlines() == [
        "Of 5 answers of the judge 2 hold a score, 1 malformed, 1 out of range, "
        "1 refusal.",
        "  entry 2, malformed: 'Great!'",
        "  entry 3, out of range: '300'",
        "  entry 4, refusal: 'I cannot judge.'",
    ]


def test_a_score_can_be_set_beside_its_entry(stub):
    stub.script = [plain(ollama(text)) for text in ("Great!", "85", "300", "40")]
    asked = {"url": stub.url, "wait": 0.0}
    scores = generate_model_scores(entries(4), keep_places=True, **asked)
    assert scores == [None, 85, None, 40]


def test_one_request_that_fails_does_not_stop_the_others_and_is_repeated(
    stub, tmp_path, capsys
):
    results = tmp_path / "made" / "scores.json"
    asked = {"url": stub.url, "results": results, "wait": 0.0, "retries": 0}
    stub.script = [plain(ollama("10")), plain("", 500), plain(ollama("30"))]
    assert generate_model_scores(entries(3), **asked) == [10, 30]
    shown = capsys.readouterr().out
    assert "1 requests failed; the first: " in shown
    assert "2 hold a score, 1 failed" in shown
    stub.script = [plain(ollama("20"))]
    assert generate_model_scores(entries(3), **asked) == [10, 20, 30]
    assert len(stub.requests) == 4


def test_when_the_server_goes_nothing_is_lost(stub, nobody, tmp_path, monkeypatch):
    results = tmp_path / "scores.json"
    calls = []

    def going(prompt, model, url, **options):
        calls.append(prompt)
        url = stub.url if len(calls) < 3 else nobody
        return query_model(prompt, model, url, **options)

    monkeypatch.setattr(chapter, "query_model", going)
    monkeypatch.setattr(chapter, "check_if_running", lambda url: len(calls) < 3)
    asked = {"url": stub.url, "results": results, "wait": 0.0, "retries": 0}
    with pytest.raises(JudgeError, match=r"2 of 5 were judged and kept in .*scores"):
        generate_model_scores(entries(5), **asked)
    monkeypatch.undo()
    assert generate_model_scores(entries(5), **asked) == [85] * 5
    assert len(stub.requests) == 5


def test_another_judge_or_another_file_is_not_mixed_in(stub, tmp_path):
    results = tmp_path / "scores.json"
    asked = {"url": stub.url, "results": results}
    generate_model_scores(entries(1), **asked)
    with pytest.raises(ValueError, match="those of two models cannot be mixed"):
        generate_model_scores(entries(1), model="other", **asked)
    # A changed reply is another question; an unchanged one is not asked again.
    changed = [{**entries(1)[0], "model_response": "No."}, *entries(1)]
    generate_model_scores(changed, **asked)
    assert len(stub.requests) == 2
    for broken in (
        "{",
        "[]",
        '{"settings": 1}',
        '{"settings": {}, "answers": {"a": 1}}',
    ):
        results.write_text(broken, encoding="utf-8")
        with pytest.raises(ValueError, match="holds no answers of a model"):
            generate_model_scores(entries(1), **asked)


def test_an_entry_without_a_reply_is_named(stub):
    with pytest.raises(ValueError, match="Entry 2 has no text in the field 'answer'"):
        generate_model_scores([{**ENTRY, "answer": "x"}, ENTRY], "answer", url=stub.url)
    assert stub.requests == []


# --- Side by side ---------------------------------------------------------------------


def choosing(wanted):
    """A judge that likes the reply in which a word stands, wherever that is shown."""

    def answer(handler):
        prompt = handler.json["messages"][0]["content"]
        shown = prompt.split("Reply ")[1:]
        letter = next((one[0] for one in shown if wanted in one), "tie")
        plain(ollama(letter))(handler)

    return answer


def test_a_choice_goes_to_the_model_wherever_its_reply_was_shown(stub):
    keys = ["model_response", "untuned_response"]
    stub.default = choosing("It is")
    found = compare_answers(entries(20), keys, url=stub.url)
    assert found == {"model_response": 20, "untuned_response": 0, "tie": 0}
    prompts = [request["messages"][0]["content"] for _, _, request in stub.requests]
    first = ["Reply A:\nIt is" in prompt for prompt in prompts]
    assert 5 <= sum(first) <= 15, "the order is not drawn"
    assert not any(key in prompt for key in keys for prompt in prompts)


def test_a_judge_that_likes_a_place_likes_no_model(stub):
    stub.default = plain(ollama("A"))
    found = compare_answers(
        entries(40), ["model_response", "untuned_response"], url=stub.url
    )
    assert found["model_response"] + found["untuned_response"] == 40
    assert 11 <= found["model_response"] <= 29


def test_the_order_belongs_to_the_question_and_the_seed(stub):
    keys = ["model_response", "untuned_response"]

    def orders(data, seed):
        stub.asked.clear()
        compare_answers(data, keys, url=stub.url, seed=seed)
        return {request["messages"][0]["content"] for _, _, request in stub.requests}

    assert (
        orders(entries(12), 1) == orders(entries(12)[::-1], 1) != orders(entries(12), 2)
    )
    assert stub.requests[0][2]["options"]["seed"] == 2


def test_ties_and_unreadable_choices_are_neither(stub, capsys):
    stub.script = [plain(ollama(text)) for text in ("tie", "A or B", "A", "")]
    found = compare_answers(
        entries(4), ["model_response", "untuned_response"], url=stub.url
    )
    assert found["tie"] == 1
    assert sum(found.values()) == 2
    shown = capsys.readouterr().out
    assert "1 hold a choice, 2 malformed, 1 tie." in shown
    assert "entry 2, malformed: 'A or B'" in shown


# --- The script -----------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(entries(6)), encoding="utf-8")
    return path


def test_the_script_scores_and_compares(stub, data, capsys):
    assert chapter.main(["--file_path", str(data), "--url", stub.url]) == 0
    shown = capsys.readouterr()
    assert "Mean score 85.0, 95% interval 85.0 to 85.0." in shown.out
    assert shown.err == ""
    kept = json.loads(data.with_name("answers-scores.json").read_text("utf-8"))
    assert kept["settings"]["model"] == "llama3"
    assert [one["answer"] for one in kept["answers"].values()] == ["85"] * 6
    stub.default = choosing("It is")
    arguments = ["--data", str(data), "--url", stub.url, "--seed", "3"]
    assert chapter.main([*arguments, "--against", "untuned_response"]) == 0
    shown = capsys.readouterr().out
    assert "model_response: 6 of 6" in shown
    assert "untuned_response: 0 of 6" in shown
    assert "answers-comparison.json" in shown


def test_the_scripts_interval_draws_families_and_leaves_out_what_was_not_read(
    stub, data, capsys
):
    asked = [{**one, "family": "ab"[i % 2]} for i, one in enumerate(entries(7))]
    data.write_text(json.dumps(asked), encoding="utf-8")
    said = ["Great!", "0", "100", "0", "100", "0", "100"]
    stub.script = [plain(ollama(text)) for text in said]
    assert chapter.main(["--data", str(data), "--url", stub.url]) == 0
    assert "Mean score 50.0, 95% interval 0.0 to 100.0." in capsys.readouterr().out


def test_the_script_takes_a_key_only_from_where_it_is_told(stub, data, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("MINE", "abc")
    arguments = ["--data", str(data), "--url", stub.url, "--model"]
    assert chapter.main([*arguments, "a", "--out", str(data.with_name("a"))]) == 0
    assert not any("Authorization" in headers for _, headers, _ in stub.requests)
    more = ["b", "--out", str(data.with_name("b")), "--key-from", "MINE"]
    assert chapter.main([*arguments, *more]) == 0
    assert stub.requests[-1][1]["Authorization"] == "Bearer abc"


def test_the_script_tells_what_is_wrong_in_one_line(stub, nobody, data, capsys):
    for arguments, named in (
        (["--data", str(data), "--url", nobody], "No server answers"),
        (["--data", str(data), "--url", "http://x/y"], "of no kind that is known"),
        (["--data", str(data.with_name("no.json"))], "no.json"),
        (
            ["--data", str(data), "--url", stub.url, "--key", "x"],
            "no text in the field",
        ),
    ):
        assert chapter.main(arguments) == (1 if "No server" in named else 2)
        shown = capsys.readouterr().err
        assert named in shown
        assert shown.count("\n") == 1


def test_an_interruption_half_way_loses_nothing(stub, data, tmp_path):
    """A killed process, the hardest interruption; the same command goes on."""
    results = tmp_path / "r.json"
    stub.script = [plain(ollama("70"))] * 3 + [slow(30)]
    command = [sys.executable, chapter.__file__, "--data", data, "--url", stub.url]
    command += ["--out", results]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while len(stub.requests) < 4:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = json.loads(results.read_text("utf-8"))
    assert [one["answer"] for one in kept["answers"].values()] == ["70"] * 3
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert len(stub.requests) == 4 + 3
    assert "Of 6 answers of the judge 6 hold a score." in done.stdout
    assert "Mean score 77.5" in done.stdout


# --- A real server --------------------------------------------------------------------


def front(address):
    """A step that speaks as Ollama does, and asks llama.cpp."""

    def step(handler):
        body = handler.json
        options = body["options"]
        asked = {
            "messages": body["messages"],
            "seed": options["seed"],
            "temperature": options["temperature"],
            "max_tokens": 8,
        }
        request = urllib.request.Request(
            address + "/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            choice = json.load(answer)["choices"][0]
        plain(ollama(choice["message"]["content"]))(handler)

    return step


@pytest.fixture(scope="module")
def real():
    """The addresses of llama.cpp with SmolLM2, and of a front like Ollama's."""
    with llama_cpp() as address, Judge() as judge:
        judge.default = front(address)
        yield judge.url, address + "/v1/chat/completions"


def test_a_real_model_is_asked_through_both_interfaces(real):
    for url in real:
        assert check_if_running(url)
    prompt = "Say hello."
    asked = [query_model(prompt, "smollm2", real[0], seed=5) for _ in range(2)]
    assert asked[0] == asked[1] != ""
    assert query_model(prompt, "smollm2", real[1], seed=5).startswith(asked[0][:8])


def test_a_model_of_135_million_parameters_is_no_judge(real, tmp_path, capsys):
    """It answers; whether with a score or not, all answers are accounted for."""
    results = tmp_path / "scores.json"
    right = entries(2)
    wrong = [{**entry, "model_response": "Paris."} for entry in right]
    asked = {"model": "smollm2", "url": real[0], "results": results}
    scores = generate_model_scores(right + wrong, **asked)
    shown = capsys.readouterr().out
    assert f"Of 4 answers of the judge {len(scores)} hold a score" in shown
    kept = json.loads(results.read_text("utf-8"))["answers"]
    assert len(kept) == 4
    assert all(one["answer"].strip() for one in kept.values())
    assert generate_model_scores(right + wrong, **asked) == scores  # from the file
