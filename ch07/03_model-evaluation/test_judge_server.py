"""A judge on this machine, well and badly behaved, and a key that stays where it is."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import judge_server
from judge_server import (
    FAULTS,
    Judge,
    LocalJudge,
    course_speaker,
    judge_from_environment,
    local_judge,
)
from ollama_evaluate import JudgeError, check_if_running

KEY = "sk-abc123secret"
ENTRIES = [
    {
        "instruction": f"Add 1 to {number}.",
        "input": "",
        "output": str(number + 1),
        "model_response": f"It is {number + 1}.",
        "other_response": f"{number}?",
    }
    for number in range(8)
]
FAST = {"wait": 0.0, "timeout": 5.0}


@pytest.fixture
def local():
    judge = LocalJudge(
        lambda prompt: "85" if "Answer with the whole" in prompt else "A"
    )
    judge.pause = 0
    yield judge
    judge.stop()


@pytest.fixture(autouse=True)
def no_judge_is_named(monkeypatch):
    for name in ("JUDGE_URL", "JUDGE_MODEL", "JUDGE_KEY_FROM"):
        monkeypatch.delenv(name, raising=False)


# --- Both interfaces ------------------------------------------------------------------


@pytest.mark.parametrize("interface", ["ollama", "openai"])
def test_the_same_calls_go_to_both_interfaces(local, interface, capsys):
    judge = Judge("m", local.url(interface))
    assert judge.say("Hello?", **FAST) == "A"
    assert judge.grades(ENTRIES, **FAST) == [85] * 8
    keys = ["model_response", "other_response"]
    chosen = judge.preferences(ENTRIES, keys, **FAST)
    assert sum(chosen[key] for key in keys) == 8
    assert local.asked == 1 + 8 + 8
    assert "8 hold a score" in capsys.readouterr().out


# --- Nothing that was answered is lost ------------------------------------------------


@pytest.mark.parametrize("interface", ["ollama", "openai"])
@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_the_same_request_is_made_again(local, interface, fault):
    local.delay = 1.0
    judge = Judge("m", local.url(interface))
    local.faults = [fault]
    options = {**FAST, "timeout": 0.5} if fault == "slow" else FAST
    assert judge.grades(ENTRIES[:3], **options) == [85] * 3
    assert local.faults == []
    assert local.asked == 3


def test_a_busy_server_is_given_the_pause_that_it_asks_for(local):
    local.pause, local.faults = 1, ["busy"]
    start = time.monotonic()
    assert Judge("m", local.url()).say("Hi", **FAST) == "A"
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize("fault", ["broken", "garbled", "hangs up", "busy"])
def test_a_server_that_fails_in_the_middle_loses_no_answered_item(
    local, tmp_path, fault
):
    results, judge = tmp_path / "r.json", Judge("m", local.url())
    speak = local.speak
    said = iter(range(50, 58))

    def then_bad(prompt):
        number = next(said)
        if number == 53:
            local.faults = [fault] * 4
        return str(number)

    local.speak = then_bad
    options = {**FAST, "retries": 0, "results": results}
    first = judge.grades(ENTRIES, **options)
    assert first.count(None) == 4
    kept = json.loads(results.read_text("utf-8"))["answers"]
    assert [int(one["answer"]) for one in kept.values()] == [50, 51, 52, 53]
    local.speak, asked = speak, local.asked
    second = judge.grades(ENTRIES, **options)
    assert second == [50, 51, 52, 53, 85, 85, 85, 85]
    assert local.asked == asked + 4  # what was answered is not asked again


def test_a_server_that_goes_and_comes_back_goes_on_where_it_was(tmp_path):
    results = tmp_path / "r.json"

    local = LocalJudge(lambda prompt: "70")
    judge = Judge("m", local.url())
    options = {**FAST, "retries": 0, "results": results}
    assert judge.grades(ENTRIES[:3], **options) == [70] * 3
    local.stop()
    with pytest.raises(JudgeError, match=r"3 of 8 were judged and kept in"):
        judge.grades(ENTRIES, **options)
    back = LocalJudge(lambda prompt: "90", port=local.port)
    assert judge.grades(ENTRIES, **options) == [70] * 3 + [90] * 5
    assert back.asked == 5
    back.stop()


# --- The key --------------------------------------------------------------------------


def test_without_a_name_no_key_leaves_the_machine(local, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sent = []
    handler = local._server.RequestHandlerClass
    plain = handler.do_POST

    def noting(request):
        sent.append(str(request.headers))
        plain(request)

    monkeypatch.setattr(handler, "do_POST", noting)
    judge = judge_from_environment(Judge("m", local.url()))
    judge.grades(ENTRIES[:1], tmp_path / "a.json", **FAST)
    assert KEY not in sent[0]
    assert "Authorization" not in sent[0]
    monkeypatch.setenv("JUDGE_URL", local.url())
    monkeypatch.setenv("JUDGE_MODEL", "big")
    judge_from_environment(Judge("m", "x")).grades(ENTRIES[:1], **FAST)
    assert "Authorization" not in sent[1]  # a key in the environment is no permission
    monkeypatch.setenv("JUDGE_KEY_FROM", "OPENAI_API_KEY")
    judge = judge_from_environment(Judge("m", "x"))
    judge.grades(ENTRIES[:1], tmp_path / "b.json", **FAST)
    assert f"Bearer {KEY}" in sent[2]
    for text in (repr(judge), str(vars(judge)), (tmp_path / "b.json").read_text()):
        assert KEY not in text


def test_a_key_that_is_not_there_is_asked_for(local, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    judge = Judge("m", local.url(), "MY_KEY")
    with pytest.raises(ValueError, match="The variable MY_KEY is not set"):
        judge.say("Hi")
    assert local.asked == 0


def test_an_address_needs_a_model(monkeypatch):
    local = Judge("m", "http://127.0.0.1:1/api/chat")
    assert judge_from_environment(local) is local
    monkeypatch.setenv("JUDGE_URL", "https://judge.example/v1/chat/completions")
    with pytest.raises(ValueError, match="JUDGE_MODEL is not"):
        judge_from_environment(local)


def test_a_traceback_of_a_whole_program_shows_no_key(local):
    """As a reader would meet it: an error that nobody catches, in a process."""
    local.faults = ["broken"]
    program = (
        "from judge_server import Judge\n"
        f"judge = Judge('m', {local.url()!r}, 'MY_KEY')\n"
        "print(judge)\n"
        "judge.say('Hi', retries=0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "MY_KEY": KEY},
    )
    assert done.returncode == 1
    assert "HTTP 500 out of memory" in done.stderr
    assert KEY not in done.stdout + done.stderr


def test_no_notebook_or_table_of_the_folder_holds_a_key():
    folder = Path(judge_server.__file__).parent
    for path in folder.rglob("*"):
        if path.suffix in (".ipynb", ".csv", ".json", ".md", ".toml"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\bsk-[A-Za-z0-9_-]{20,}", text), path
            # But for a hidden one, and the beginning of one that a cell made up.
            shown = re.findall(r"Bearer (?!\.\.\.|sk-xxx\\\\?\")\S*", text)
            assert shown == [], path


# --- Both engines ---------------------------------------------------------------------


def test_llama_cpp_answers_through_both_interfaces():
    pytest.importorskip("xllamacpp")
    with local_judge("llama.cpp", tokens=4) as local:
        said = {
            interface: Judge("smollm2", local.url(interface)).say("What is 2 + 2?")
            for interface in ("ollama", "openai")
        }
    assert said["ollama"] == said["openai"] != ""
    with pytest.raises(JudgeError):
        Judge("smollm2", local.url()).say("Are you there?", retries=0)


def test_llama_cpp_ends_with_the_process_that_started_it():
    """A kernel that is restarted leaves no server behind, and nothing hangs."""
    pytest.importorskip("xllamacpp")
    program = (
        "import sys, time, judge_server\n"
        "with judge_server.llama_cpp(4) as one, judge_server.llama_cpp(4) as two:\n"
        "    print(one, two, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=pipe, stdout=pipe, encoding="utf-8"
    ) as process:
        urls = process.stdout.readline().split()
        there = [check_if_running(url) for url in urls]
        process.kill()
    assert there == [True, True]
    end = time.monotonic() + 20
    while any(map(check_if_running, urls)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(check_if_running, urls))


def test_a_server_that_does_not_start_is_told_in_one_sentence(monkeypatch, tmp_path):
    pytest.importorskip("xllamacpp")
    (tmp_path / "no.gguf").write_bytes(b"no model")
    monkeypatch.setattr("course.assets.fetch", lambda name: tmp_path / "no.gguf")
    with pytest.raises(RuntimeError, match="did not start"), judge_server.llama_cpp():
        pass


def test_the_courses_own_model_answers_without_a_further_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as if it were not there
    with local_judge("course", tokens=4) as local:
        said = Judge("smollm2", local.url("ollama")).say("What is 2 + 2?")
    assert said == course_speaker(4)("What is 2 + 2?") != ""
    with (
        pytest.raises(ImportError, match="xllamacpp is missing: python3 -m pip"),
        local_judge("llama.cpp"),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"one of llama\.cpp, course"),
        local_judge("x"),
    ):
        pass
