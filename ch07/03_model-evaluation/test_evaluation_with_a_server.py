"""With a reader's own server the same cells run, and the key stays where it is."""

import contextlib
import json
from pathlib import Path

import pytest

import judge_server
from course.testing import servers
from course.testing.llama_server import llama_cpp
from course.testing.notebook_cells import run_cells
from course.testing.servers import answer as plain
from judge_server import PATHS, LocalJudge
from judged_replies import read_judged_replies

FOLDER = Path(__file__).parent
OLLAMA = FOLDER / "llm-instruction-eval-ollama.ipynb"
OPENAI = FOLDER / "llm-instruction-eval-openai.ipynb"
KEY = "sk-of-the-reader-1234567890"


RIGHT = {(one.question, one.reply): one.by_hand for one in read_judged_replies()}


def between(text, start, end):
    """What stands in a text between two others."""
    return text.partition(start)[2].partition(end)[0]


def good_judge(prompt):
    """What a judge says that is always of the readers' opinion."""
    question = between(prompt, "Question:\n", "\n\nA right answer:\n")
    if "Which reply is the best?" in prompt:
        first = between(prompt, "Reply A:\n", "\n\nReply B:\n")
        return "A" if RIGHT[question, first] else "B"
    right = RIGHT[question, between(prompt, "Reply to grade:\n", "\n\nG")]
    if "1, 2, 3, 4 or 5" in prompt:
        return "5" if right else "2"
    return "95" if right else "10"


@pytest.fixture(autouse=True)
def a_quick_local_judge(monkeypatch):
    """In llama.cpp's place, for the cells that show a server which fails."""

    @contextlib.contextmanager
    def quick(tokens=16):
        local = LocalJudge(lambda prompt: "A window.")
        yield local.url()
        local.stop()

    monkeypatch.setattr(judge_server, "llama_cpp", quick)
    for name in ("JUDGE_URL", "JUDGE_MODEL", "JUDGE_KEY_FROM", "JUDGE_ITEMS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stub():
    with servers.Server() as server:
        server.always["/"] = plain("here")

        def speak(request):
            text = good_judge(request.json["messages"][-1]["content"])
            message = {"role": "assistant", "content": text}
            said = {"message": message, "done": True}
            if "/chat/completions" in request.path:
                said = {"choices": [{"message": message}]}
            plain(json.dumps(said))(request)

        server.default = speak
        yield server


@pytest.mark.parametrize("interface", ["ollama", "openai"])
@pytest.mark.parametrize("notebook", [OLLAMA, OPENAI], ids=["ollama", "openai"])
def test_the_same_cells_ask_the_server_that_the_reader_names(
    stub, monkeypatch, capsys, notebook, interface
):
    monkeypatch.setenv("JUDGE_URL", stub.address + PATHS[interface])
    monkeypatch.setenv("JUDGE_MODEL", "big")
    monkeypatch.setenv("JUDGE_KEY_FROM", "KEY_OF_THE_READER")
    monkeypatch.setenv("KEY_OF_THE_READER", KEY)
    monkeypatch.setenv("JUDGE_ITEMS", "10")
    names = run_cells(notebook, monkeypatch)
    by_hand = names["by_hand"].tolist()
    assert names["grades"] == [95 if right else 10 for right in by_hand]
    assert not names["is_local"]
    posts = [request for request in stub.asked if request.command == "POST"]
    for post in posts:
        assert post.headers["Authorization"] == f"Bearer {KEY}"
        assert post.json["model"] == "big"
    asked = {OLLAMA: 10 + 2 * 6, OPENAI: 10 + 10 + 2}[notebook]
    assert len(posts) == asked
    if notebook == OLLAMA:
        assert names["for_the_right"] == 6
    else:
        assert names["by_rubric"] == [5 if right else 2 for right in by_hand]
    shown = capsys.readouterr().out
    assert KEY not in shown
    assert "1.00 (1.00 to 1.00)" in shown
    del names["os"]  # the environment holds it, and nothing else
    for name, value in names.items():
        assert KEY not in repr(value), name
        assert KEY not in repr(getattr(value, "__dict__", "")), name
    kept = [path for path in names["folder"].iterdir() if path.is_file()]
    assert len(kept) == 2
    for path in kept:
        assert KEY not in path.read_text("utf-8")


@pytest.mark.parametrize("notebook", [OLLAMA, OPENAI], ids=["ollama", "openai"])
def test_without_a_name_no_other_server_and_no_key_is_looked_at(
    stub, monkeypatch, capsys, notebook
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    names = run_cells(notebook, monkeypatch)
    assert names["is_local"]
    assert stub.asked == []
    assert KEY not in capsys.readouterr().out


def test_the_same_cells_ask_the_real_llama_cpp(monkeypatch):
    with llama_cpp() as address:
        monkeypatch.setenv("JUDGE_URL", address + PATHS["openai"])
        monkeypatch.setenv("JUDGE_MODEL", "smollm2")
        monkeypatch.setenv("JUDGE_ITEMS", "2")
        names = run_cells(OPENAI, monkeypatch)
    assert not names["is_local"]
    assert len(names["said"]) == 2
    assert all(names["said"])
    assert names["twice"][0] == names["twice"][1] != ""
