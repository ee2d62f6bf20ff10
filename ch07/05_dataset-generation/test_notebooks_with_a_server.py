"""With a server the notebooks' same cells run; without one nothing is asked."""

import json
from pathlib import Path

import pytest

from course.testing import servers
from course.testing.notebook_cells import run_cells
from course.testing.servers import answer as plain

FOLDER = Path(__file__).parent
WRITER = ["setup", "near", "run-pairs", "yield", "kill", "write"]
REVISER = ["setup", "chat", "answers", "critique-prompt", "critiques", "revise"]
REVISER += ["questions"]


@pytest.fixture
def stub():
    with servers.Server() as server:
        server.always["/"] = plain("here")
        yield server


def posts(stub):
    return [request for request in stub.asked if request.command == "POST"]


def test_the_generator_asks_the_server_that_the_reader_names(stub, monkeypatch, capsys):
    texts = iter(f"What is the name of lake number {i}?" for i in range(99))

    def speak(request):
        body = request.json
        asked = body["prompt"].endswith("assistant<|end_header_id|>\n\n")
        text = "It has no name yet, I fear." if asked else next(texts)
        plain(json.dumps({"choices": [{"text": text, "finish_reason": "stop"}]}))(
            request
        )

    stub.default = speak
    monkeypatch.setenv("WRITER_URL", stub.address + "/v1/completions")
    monkeypatch.setenv("WRITER_KEY", "secret-key")
    names = run_cells(FOLDER / "llama3-ollama.ipynb", monkeypatch, WRITER)
    assert names["failed"] == []
    assert names["writer"].url.endswith("/completions")
    assert len(names["kept"]) < len(names["judged"]) == 10  # they are alike
    assert posts(stub)[0].headers["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in capsys.readouterr().out
    for path in names["folder"].iterdir():
        assert "secret-key" not in path.read_text("utf-8")


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_the_reviser_asks_it_through_both_interfaces(stub, monkeypatch, capsys, path):
    def speak(request):
        message = {"role": "assistant", "content": "Here is the new answer: Forty."}
        said = {"message": message, "done": True, "choices": [{"message": message}]}
        if path == "/api/chat":
            del said["choices"]
        plain(json.dumps(said))(request)

    stub.default = speak
    monkeypatch.setenv("REVISER_URL", stub.address + path)
    monkeypatch.setenv("REVISER_KEY", "secret-key")
    names = run_cells(FOLDER / "reflection-gpt4.ipynb", monkeypatch, REVISER)
    assert [row["revision"] for row in names["revised"]] == ["Forty."] * 3
    assert posts(stub)[0].headers["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in capsys.readouterr().out
    assert "secret-key" not in (names["folder"] / "answers.json").read_text("utf-8")
