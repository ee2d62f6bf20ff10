"""A key that nobody sees, and a server that asks for patience: real HTTP."""

import email.utils
import json
import time

import pytest

import judge_requests
from course.testing import servers
from course.testing.servers import answer
from judge_requests import message_in, usable_key
from ollama_evaluate import JudgeError, generate_model_scores, query_model

KEY = "sk-abc123secret"
FINE = answer(json.dumps({"choices": [{"message": {"content": "85"}}]}))
ENTRIES = [
    {
        "instruction": f"Add 1 to {number}.",
        "input": "",
        "output": str(number + 1),
        "model_response": f"It is {number + 1}.",
    }
    for number in range(5)
]


@pytest.fixture
def server():
    with servers.Server() as one:
        one.default = FINE
        one.always["/"] = answer("here")
        yield one


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(judge_requests.time, "sleep", found.append)
    return found


def url_of(server):
    return server.address + "/v1/chat/completions"


def posted(server):
    return [asked for asked in server.asked if asked.command == "POST"]


def busy(pause, status=429):
    """A refusal that asks for a pause."""

    def step(request):
        request.start(status, {"Retry-After": pause, "Content-Length": 4})
        request.write(b"busy")

    return step


# --- Patience -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_the_pause_that_a_server_asks_for_is_made(server, waits, status):
    server.script = [busy("7", status), busy("0.5", status)]
    assert query_model("Hi", "m", url_of(server)) == "85"
    assert waits == [7.0, 2.0]  # the second is shorter than the own wait


def test_a_pause_until_a_time(server, waits):
    server.script = [busy(email.utils.formatdate(time.time() + 30, usegmt=True))]
    assert query_model("Hi", "m", url_of(server)) == "85"
    assert 20 < waits[0] <= 30


@pytest.mark.parametrize("pause", ["soon", "", "-5", "nan", "inf", "1 minute"])
def test_a_pause_that_is_none_does_no_harm(server, waits, pause):
    server.script = [busy(pause)]
    assert query_model("Hi", "m", url_of(server)) == "85"
    assert waits == [1.0]


def test_a_long_pause_stops_the_run_and_keeps_what_was_answered(
    server, waits, tmp_path
):
    results = tmp_path / "scores.json"
    asked = {"model": "m", "url": url_of(server), "results": results}
    server.script = [FINE, FINE, busy("3600")]
    with pytest.raises(JudgeError, match=r"pause of 3600 s.*go on later\. 2 of 5 were"):
        generate_model_scores(ENTRIES, **asked)
    assert waits == []
    assert len(posted(server)) == 3  # the others are not even asked
    assert generate_model_scores(ENTRIES, **asked) == [85] * 5
    assert len(posted(server)) == 6


@pytest.mark.parametrize("status", [401, 403])
def test_who_has_no_right_to_ask_asks_once(server, waits, tmp_path, status):
    server.script = [FINE, answer("no", status)]
    asked = {"url": url_of(server), "results": tmp_path / "r.json"}
    said = (
        rf"HTTP {status} no\): give a key that may use the model .* 1 of 5 were judged"
    )
    with pytest.raises(JudgeError, match=said):
        generate_model_scores(ENTRIES, **asked)
    assert len(posted(server)) == 2


# --- The key --------------------------------------------------------------------------


def echo(status):
    """Sends back what it was sent, headers and all, padded so that a cut may fall."""

    def step(request):
        said = "x" * 60 + " Incorrect API key: " + request.headers["Authorization"]
        content = {"error": said} if status != 200 else None
        content = content or {"choices": [{"message": {"content": said}}]}
        answer(json.dumps(content), status)(request)

    return step


LEAKS = {
    "401": echo(401),
    "429": echo(429),
    "500": echo(500),
    "an answer": echo(200),
    "an error with status 200": answer(json.dumps({"error": f"{KEY} has no credit"})),
    "escaped": answer(json.dumps({"error": KEY}).replace("sk-", "\\u0073k-")),
    "no JSON": answer(f"<html>{KEY}</html>"),
    "where a text is cut": answer("x" * 190 + KEY, 500),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_key_is_in_no_message_answer_or_file(
    server, waits, tmp_path, capfd, caplog, leak
):
    server.default = LEAKS[leak]
    server.script = [FINE]
    results = tmp_path / "r.json"
    asked = {"url": url_of(server), "results": results, "api_key": f"{KEY}\n"}
    told = ""
    try:
        generate_model_scores(ENTRIES, **asked)
    except JudgeError as problem:
        told = f"{problem!r} {problem.__cause__!r} {problem.__context__!r}"
    assert posted(server)[0].headers["Authorization"] == f"Bearer {KEY}"
    shown = capfd.readouterr()
    written = "".join(path.read_text("utf-8") for path in tmp_path.rglob("*"))
    assert "85" in written
    for text in (told, shown.out, shown.err, caplog.text, written):
        assert KEY not in text
        assert KEY[:8] not in text  # no part of it either


def test_the_key_does_not_follow_to_another_server(server, waits):
    with servers.Server() as other:
        other.default = FINE
        to = url_of(other)

        def sends_on(request):
            request.start(302, {"Location": to, "Content-Length": 0})

        server.script = [sends_on]
        assert query_model("Hi", "m", url_of(server), api_key=KEY) == "85"
        assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
        assert "Authorization" not in other.asked[0].headers


def test_a_key_goes_only_where_nobody_can_read_it_on_the_way():
    url = "http://judge.example/v1/chat/completions"
    with pytest.raises(ValueError, match="goes over https") as found:
        query_model("Hi", "m", url, api_key=KEY)
    assert KEY not in str(found.value)
    assert usable_key(url.replace("http:", "https:"), f" {KEY}\r\n") == KEY
    assert usable_key("http://127.0.0.1:8000/v1/chat/completions", KEY) == KEY
    assert usable_key(url, "") is usable_key(url, None) is usable_key(url, " ") is None


@pytest.mark.parametrize(
    "key", ["sk-abc\nX-Evil: 1", "sk-\u043a\u043b\u044e\u0447", "sk\x00"]
)
def test_a_broken_key_is_refused_without_being_shown(key):
    with pytest.raises(ValueError, match="a sign in it that no key has") as found:
        query_model("Hi", "m", "http://localhost/v1/chat/completions", api_key=key)
    assert key not in str(found.value)


def test_what_is_no_message_is_told_without_the_key():
    with pytest.raises(ValueError, match="no message in") as found:
        message_in(json.dumps({"oh": KEY}).encode(), KEY)
    assert KEY not in str(found.value)
