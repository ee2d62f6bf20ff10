"""With an address the notebook's own cells ask the server; without one, nobody."""

import json
from pathlib import Path

import pytest

from course.assets import fetch
from course.testing import servers
from course.testing.notebook_cells import code_cells, run_cells
from course.testing.servers import answer, refuse
from instruction_data import read_instructions
from passive_makers import EXAMPLES, INSTRUCTIONS, gold_pairs

NOTEBOOK = Path(__file__).with_name("create-passive-voice-entries.ipynb")
NOWHERE = 'SERVER = ""'


def run_up_to_the_server(address, monkeypatch):
    """Run the cells that the server's cell needs, and this one; return all names."""
    sources = code_cells(NOTEBOOK)
    assert sources["server"].count(NOWHERE) == 1
    # Only what the model at home writes is left out: `judge` and the sentences are not.
    model = sources["smollm2"].split("replies = {}")[0]
    changed = {
        "smollm2": model.replace('load_pretrained("smollm2-135m")', "None, None, None"),
        "server": sources["server"].replace(NOWHERE, f"SERVER = {address!r}"),
    }
    return run_cells(
        NOTEBOOK, monkeypatch, ["setup", "gold", "smollm2", "server"], changed
    )


@pytest.fixture(scope="module")
def passives():
    """The course's passive of each sentence."""
    entries = read_instructions(fetch("instructions-2"))
    return {active: passive for active, passive, _ in gold_pairs(entries)}


@pytest.fixture
def server(passives):
    """A server of both kinds; it knows every second passive, and repeats the others."""

    def speak(request):
        prompt = request.json["messages"][-1]["content"]
        active = prompt.rsplit("Active: ", 1)[-1].removesuffix("\nPassive:")
        even = list(passives).index(active) % 12 == 0  # the cell asks every sixth
        message = {"content": f"Passive: {passives[active] if even else active}"}
        said = {"choices": [{"message": message}]}
        if request.path == "/api/chat":
            said = {"message": message, "done": True}
        answer(json.dumps(said))(request)

    with servers.Server() as here:
        here.always["/"] = answer("here")
        here.default = speak
        yield here


def posts(server):
    return [request for request in server.asked if request.command == "POST"]


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_the_cell_asks_the_server_and_judges_what_it_says(
    server, passives, monkeypatch, capsys, path
):
    names = run_up_to_the_server(server.address + path, monkeypatch)
    asked, some = posts(server), names["some"]
    assert len(asked) == len(some) == 20
    for request, (active, _, _) in zip(asked, some):
        (message,) = request.json["messages"]
        assert message["content"].endswith(f"Active: {active}\nPassive:")
        assert all(passive in message["content"] for _, passive in EXAMPLES)
        assert INSTRUCTIONS[0] not in message["content"]  # that is without examples
        assert request.json["model"] == names["SERVER_MODEL"]
        assert "Authorization" not in request.headers
    said = [passives[a] if i % 2 == 0 else a for i, (a, _, _) in enumerate(some)]
    assert names["from_server"] == said
    taken, right = names["judge"](said, some)
    assert right == [i % 2 == 0 for i in range(20)]
    assert not any(taken[1::2])
    assert 8 <= sum(taken) <= 10  # the check refuses a few right ones
    assert f"server: taken {sum(taken)}, right 10" in capsys.readouterr().out


def test_a_server_that_goes_in_the_middle_leaves_what_it_said(
    server, monkeypatch, capsys
):
    server.script = [server.default] * 5 + [refuse(404)]
    names = run_up_to_the_server(server.address + "/api/chat", monkeypatch)
    made = names["from_server"]
    assert all(made[:5])
    assert made[5:] == [None] * 15
    assert "5 of 20 answered: " in capsys.readouterr().out


def test_without_an_address_or_a_server_nothing_is_asked(server, monkeypatch, capsys):
    for address in ("", "http://127.0.0.1:9/api/chat"):
        names = run_up_to_the_server(address, monkeypatch)
        assert names["from_server"] == [None] * 20
        assert "No server: this part is left out." in capsys.readouterr().out
    assert server.asked == []
