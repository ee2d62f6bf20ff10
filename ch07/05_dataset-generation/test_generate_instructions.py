"""Pairs are written once, filtered, and never lost, whatever stops the work."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import generate_instructions as chapter
from course.testing import servers
from course.testing.servers import answer as plain
from course.testing.servers import hang_up
from generate_instructions import (
    ORDER,
    PairJournal,
    generate_pairs,
    judged_pairs,
    write_instructions,
    yield_table,
)
from instruction_data import read_instructions
from judge_requests import ServerError
from pair_filters import PairFilter
from raw_prompts import CHAT_MARKS, Sampled, ServerWriter, WrittenText

QUESTIONS = [
    "What is dew made of?",
    "I like trains.",
    "Which bird cannot fly at all?",
    "What is dew made of, please?",
    "How many legs has a spider?",
    "Summarize the following text.",
    "Why is the sky blue at noon?",
]
ANSWERS = {
    "What is dew made of?": "Of water.",
    "Which bird cannot fly at all?": "Which bird do you mean?",
    "How many legs has a spider?": "A spider has eight legs.",
    "Why is the sky blue at noon?": "Blue light is scattered most.",
}
KEPT = [
    "What is dew made of?",
    "How many legs has a spider?",
    "Why is the sky blue at noon?",
]


class Script:
    """A writer that says what is written down, and counts what it was asked."""

    marks = CHAT_MARKS["chatml"]
    system, name = "", "script"

    def __init__(self, batch_size=3):
        self.batch_size = batch_size
        self.asked = []

    def write(self, prompts, sampled, seeds):
        self.asked.append((list(prompts), sampled, list(seeds)))
        for prompt, seed in zip(prompts, seeds, strict=True):
            if prompt.endswith("assistant\n"):
                question = prompt.split("user\n")[1].split("<|im_end|>")[0]
                yield WrittenText(f" {ANSWERS.get(question, 'No idea.')}\n", True)
            else:
                yield WrittenText(QUESTIONS[seed - 123], True)


def kept(pairs):
    return [pair["question"] for pair in judged_pairs(pairs) if not pair["faults"]]


# --- Writing --------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_questions_without_a_fault_are_answered_and_others_are_not(batch_size):
    journal = PairJournal()
    writer = Script(batch_size)
    assert generate_pairs(writer, 7, journal) == []
    pairs = list(journal.pairs.values())
    assert [pair["question"] for pair in pairs] == QUESTIONS
    assert [pair["question"] for pair in pairs if "answer" in pair] == list(ANSWERS)
    assert pairs[0]["answer"] == "Of water."
    assert kept(pairs) == KEPT
    sampled = {asked[1] for asked in writer.asked}
    assert sampled == {chapter.QUESTIONS, chapter.ANSWERS}


def test_all_are_answered_to_see_what_the_filters_throw_away():
    journal = PairJournal()
    generate_pairs(Script(), 7, journal, answer_all=True)
    assert all("answer" in pair for pair in journal.pairs.values())
    assert kept(journal.pairs.values()) == KEPT
    faults = [pair["faults"] for pair in judged_pairs(journal.pairs.values())]
    assert faults[1] == ["no request"]
    assert faults[3] == ["seen before"]
    assert faults[5] == ["no input"]


def test_questions_begin_in_turn_with_the_openings():
    journal = PairJournal()
    writer = Script()
    generate_pairs(writer, 4, journal, openings=["", "What"], system="Be brief.")
    (prompts, _, seeds), *_ = writer.asked
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert prompts == [start, start + "What", start]
    assert seeds == [123, 124, 125]
    assert journal.pairs[1]["question"] == "WhatI like trains."


def test_a_question_with_marks_is_never_put_into_raw_text():
    writer = Script()
    journal = PairJournal()
    journal.add(0, question="Who?<|im_end|> you?", question_ended=True)
    generate_pairs(writer, 1, journal, answer_all=True)
    assert writer.asked == []
    (pair,) = judged_pairs(journal.pairs.values())
    assert "chat marks" in pair["faults"]


def test_known_questions_are_not_asked_again():
    journal = PairJournal()
    generate_pairs(Script(), 7, journal, known=["How many legs has a spider?"])
    assert "answer" not in journal.pairs[4]
    (faults,) = (
        pair["faults"]
        for pair in judged_pairs(
            journal.pairs.values(), ["How many legs has a spider?"]
        )
        if pair["number"] == 4
    )
    assert faults == ["seen before"]


# --- The journal ----------------------------------------------------------------------


def test_a_journal_goes_on_where_it_was_and_the_result_is_the_same(tmp_path):
    whole = PairJournal(tmp_path / "whole.jsonl", {"seed": 1})
    generate_pairs(Script(), 7, whole)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        for torn in (b"", lines[count][:-5], lines[count][:1]):
            path = tmp_path / f"{count}-{len(torn)}.jsonl"
            path.write_bytes(b"".join(lines[:count]) + torn)
            again = PairJournal(path, {"seed": 1})
            generate_pairs(Script(), 7, again)
            assert again.pairs == whole.pairs
            assert PairJournal(path, {"seed": 1}).pairs == whole.pairs


def test_what_is_in_the_journal_is_not_written_again(tmp_path):
    for number in (3, 7, 7):
        journal, writer = PairJournal(tmp_path / "j.jsonl"), Script()
        generate_pairs(writer, number, journal)
    assert writer.asked == []
    assert kept(journal.pairs.values()) == KEPT


def test_texts_of_all_kinds_come_back_from_the_journal(tmp_path):
    path = tmp_path / "made" / "j.jsonl"
    said = 'A "b"\n\u2028\u0085\u4f60\U0001f600 \ud800 \\ \x00'
    PairJournal(path).add(3, question=said, question_ended=False)
    found = PairJournal(path).pairs[3]["question"]
    assert found == said.replace("\ud800", "\\ud800") or found == said
    assert path.read_text("utf-8").count("\n") == 2


def test_another_file_or_other_settings_are_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    PairJournal(path, {"seed": 1, "model": "a"})
    with pytest.raises(ValueError, match="written with another seed: go on"):
        PairJournal(path, {"seed": 2, "model": "a"})
    for text in ("[]\n", "hello\n", '{"number": 1}\n', '{"settings": {}}\n5\n'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="is no journal"):
            PairJournal(path)


# --- What is left ---------------------------------------------------------------------


def test_the_table_counts_each_fault_and_what_is_left():
    journal = PairJournal()
    generate_pairs(Script(), 7, journal, answer_all=True)
    rows = yield_table(judged_pairs(journal.pairs.values()))
    assert rows == [
        {"filter": "no request", "found": 1, "removed": 1, "left": 6},
        {"filter": "no input", "found": 1, "removed": 1, "left": 5},
        {"filter": "seen before", "found": 1, "removed": 1, "left": 4},
        {"filter": "asks back", "found": 1, "removed": 1, "left": 3},
    ]


def test_every_filter_has_its_place_in_the_order():
    judge = PairFilter()
    bad = "\ufffd the the the the the the the the the the the the (User: [name] below"
    names = judge.question_faults(bad, False) + judge.answer_faults(bad, bad, False)
    assert set(names) < set(ORDER)
    assert names == sorted(names, key=ORDER.index)
    assert len(ORDER) == len(set(ORDER)) == 18


def test_the_file_is_one_of_instructions_and_never_overwritten(tmp_path):
    journal = PairJournal()
    generate_pairs(Script(), 7, journal)
    judged = judged_pairs(journal.pairs.values())
    path = tmp_path / "instructions.json"
    assert write_instructions(path, judged, "script") == 3
    entries = read_instructions(path)
    assert [entry["instruction"] for entry in entries] == KEPT
    assert entries[0] == {
        "instruction": "What is dew made of?",
        "input": "",
        "output": "Of water.",
        "source": "script, question 0",
    }
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"instructions\.json is there already"):
        write_instructions(path, judged, "other")
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="No pair is without a fault"):
        write_instructions(tmp_path / "none.json", judged[1:2], "script")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["instructions.json"]


# --- A server that misbehaves ---------------------------------------------------------


def speak(request):
    """Answer like Ollama, from the script."""
    body = request.json
    assert body["raw"] is True
    writer = Script()
    seeds = [body["options"]["seed"]]
    (written,) = writer.write([body["prompt"]], None, seeds)
    said = {"response": written.text, "done": True, "done_reason": "stop"}
    plain(json.dumps(said))(request)


@pytest.fixture
def stub():
    with servers.Server() as server:
        server.default = speak
        server.always["/"] = plain("Ollama is running")
        yield server


def ask(stub, **options):
    options = {"retries": 0, "wait": 0.0, "timeout": 5.0, **options}
    return ServerWriter(stub.address + "/api/generate", "m", "chatml", **options)


def posts(stub):
    return [request for request in stub.asked if request.command == "POST"]


TROUBLE = [
    plain("", 500),
    plain("slow down", 429),
    hang_up,
    plain("<html>"),
    plain("{"),
]


@pytest.mark.parametrize("at", range(11))
def test_one_request_that_fails_loses_nothing_and_is_made_again(stub, tmp_path, at):
    """At each place in turn: seven questions and four answers are asked for."""
    stub.script = [speak] * at + [TROUBLE[at % len(TROUBLE)]]
    journal = PairJournal(tmp_path / "j.jsonl")
    failed = generate_pairs(ask(stub), 7, journal)
    assert len(failed) == 1
    assert "gave no answer" in failed[0]
    before = len(posts(stub))
    journal = PairJournal(tmp_path / "j.jsonl")
    assert generate_pairs(ask(stub), 7, journal) == []
    found = sorted(kept(journal.pairs.values()))
    other = "What is dew made of, please?"  # it came first, where the first one failed
    assert found in (sorted(KEPT), sorted([*KEPT[1:], other]))
    assert 1 <= len(posts(stub)) - before <= 2


def test_a_server_that_goes_away_stops_the_work_and_the_rest_comes_later(
    stub, tmp_path
):
    nobody = servers.nobody() + "/api/generate"
    path = tmp_path / "j.jsonl"

    class Going(ServerWriter):
        def write(self, prompts, sampled, seeds):
            if len(posts(stub)) == 5:
                self.url = nobody
            return super().write(prompts, sampled, seeds)

    going = Going(
        stub.address + "/api/generate", "m", "chatml", retries=0, wait=0.0, timeout=5.0
    )
    with pytest.raises(ServerError, match=r"3 questions were written, 2 of them") as e:
        generate_pairs(going, 7, PairJournal(path))
    assert f"kept in {path}; run the same again" in str(e.value)
    journal = PairJournal(path)
    assert len(journal.pairs) == 3
    generate_pairs(ask(stub), 7, journal)
    assert kept(journal.pairs.values()) == KEPT
    assert len(posts(stub)) == 11


def test_each_question_of_a_server_has_its_own_seed(stub):
    generate_pairs(ask(stub), 7, PairJournal())
    bodies = [request.json for request in posts(stub)]
    empty = [b for b in bodies if b["prompt"].endswith("user\n")]
    assert [b["options"]["seed"] for b in empty] == list(range(123, 130))
    assert empty[0]["options"]["num_predict"] == chapter.QUESTIONS.most
    assert Sampled(*chapter.ANSWERS).temperature == 0


# --- The script -----------------------------------------------------------------------


@pytest.fixture
def few_known(monkeypatch, tmp_path):
    """Not the 2,206 of the course, which take a second to read."""
    known = tmp_path / "known.json"
    known.write_text('[{"instruction": "x", "output": "y"}]', encoding="utf-8")
    monkeypatch.setattr(chapter, "course_instructions", lambda: known)


def test_the_script_writes_a_file_and_says_how_many_were_left(
    stub, tmp_path, capsys, few_known, monkeypatch
):
    monkeypatch.setenv("MINE", "secret-key")
    out = tmp_path / "made" / "new.json"
    words = ["--number", "7", "--out", str(out), "--url", stub.address]
    words[-1] += "/api/generate"
    words += ["--family", "chatml", "--model", "m", "--key-from", "MINE"]
    assert chapter.main(words) == 0
    shown = capsys.readouterr()
    assert "7 questions" in shown.out
    assert "no request                 1 removed,    6 left" in shown.out
    assert "3 instructions are in" in shown.out
    assert [e["instruction"] for e in read_instructions(out)] == KEPT
    assert posts(stub)[0].headers["Authorization"] == "Bearer secret-key"
    files = list(out.parent.iterdir())
    assert sorted(f.name for f in files) == ["new.journal.jsonl", "new.json"]
    assert not any("secret-key" in f.read_text("utf-8") for f in files)
    assert "secret-key" not in shown.out + shown.err
    count = len(posts(stub))
    assert chapter.main(words) == 2
    assert "is there already: give another file" in capsys.readouterr().err
    out.unlink()
    assert chapter.main(words) == 0
    assert len(posts(stub)) == count


def test_the_script_tells_what_is_wrong_in_one_line(stub, tmp_path, capsys, few_known):
    out = ["--out", str(tmp_path / "new.json"), "--number", "2"]
    for words, code, named in (
        (["--url", "http://x/api/chat"], 2, "takes no raw text"),
        (["--url", servers.nobody() + "/api/generate"], 1, "start the server"),
        (["--url", stub.address + "/v1/completions", "--seed", "x"], 2, "seed"),
    ):
        (tmp_path / "new.journal.jsonl").unlink(missing_ok=True)
        try:
            found = chapter.main([*words, *out])
        except SystemExit as stopped:
            found = stopped.code
        assert found == code
        assert named in capsys.readouterr().err


def test_a_killed_script_goes_on_and_asks_for_nothing_twice(stub, tmp_path):
    def never(request):
        request.owner.closing.wait(30)

    stub.script = [speak] * 5 + [never]
    out = tmp_path / "new.json"
    command = [sys.executable, chapter.__file__, "--number", "7", "--out", out]
    command += ["--url", stub.address + "/api/generate", "--family", "chatml"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while len(posts(stub)) < 6:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(posts(stub)) == 6 + 6
    assert [e["instruction"] for e in read_instructions(out)] == KEPT
