"""Trained models on demand: made once, complete or not at all, named when missing."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from course import CourseError, runs
from course.paths import ROOT
from course.testing.tiny_trees import write_notebook

SCRIPT = """
import argparse, os, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path)
options = parser.parse_args()
print("epoch 1 \\u2713", flush=True)
with open(pathlib.Path(__file__).with_name("log"), "a", encoding="utf-8") as log:
    print(os.environ["COURSE_PRESET"], file=log)
"""
WRITES = "(options.out / 'model.bin').write_text('7', encoding='utf-8')\n"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Return a function that gives the registry one run, made by a script."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("COURSE_PRESET", raising=False)
    monkeypatch.setattr(runs, "ROOT", tmp_path)

    def make(ending=WRITES, name="train.py"):
        (tmp_path / name).write_text(SCRIPT + ending, encoding="utf-8")
        run = runs.Run(
            script=name,
            about="the tiny model of this test",
            files=("model.bin",),
            minutes=0.1,
        )
        monkeypatch.setattr(runs, "registry", lambda: {"ch99-tiny": run})
        return tmp_path / "runs"

    return make


def log(tmp_path):
    """Return the presets that the script noted, one at each start."""
    path = tmp_path / "log"
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []


def left_in(folder):
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def failure(*arguments):
    with pytest.raises(CourseError) as caught:
        runs.get("ch99-tiny", *arguments)
    return str(caught.value)


def test_the_registry_names_scripts_that_exist():
    assert runs.registry()
    for name, run in runs.registry().items():
        assert (ROOT / run.script).is_file(), f"{name}: {run.script} is missing"
        assert run.files, f"{name} promises no file"


def test_a_missing_run_is_announced_and_made(script, tmp_path, capsys):
    folder = script()
    assert runs.get("ch99-tiny") == folder / "ch99-tiny-quick"
    assert (folder / "ch99-tiny-quick" / "model.bin").read_text(encoding="utf-8") == "7"
    assert log(tmp_path) == ["quick"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "ch99-tiny-quick is missing."
    assert shown[1].startswith(
        "Making the tiny model of this test with train.py, preset"
    )
    assert shown[1].endswith("quick (about 0.1 min).")
    assert shown[2] == "epoch 1 \u2713"
    assert shown[-1].startswith("Made the tiny model of this test in ")


def test_each_preset_has_its_own_folder_and_what_is_there_is_only_found(
    script, tmp_path, monkeypatch, capsys
):
    folder = script()
    assert runs.get("ch99-tiny", "full") == folder / "ch99-tiny-full"
    monkeypatch.setenv("COURSE_PRESET", "full")
    capsys.readouterr()
    assert runs.get("ch99-tiny") == folder / "ch99-tiny-full"
    assert capsys.readouterr().out == ""
    assert runs.get("ch99-tiny", "quick") == folder / "ch99-tiny-quick"
    assert log(tmp_path) == ["full", "quick"]


def test_unknown_names(script):
    script()
    with pytest.raises(CourseError, match="no run 'ch99-tyni'. Did you mean 'ch99-tin"):
        runs.get("ch99-tyni")
    assert "There is no preset 'big'. Use 'quick' or 'full'" in failure("big")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (
            "raise SystemExit('out of memory')",
            "(?s)train.py could not make the tiny model of this test: .*exit code 1"
            ".*  epoch 1 \u2713\n  out of memory$",
        ),
        ("", "train.py ended well but did not write model.bin"),
    ],
)
def test_a_script_that_fails_is_shown_and_leaves_nothing(script, ending, message):
    folder = script(ending)
    assert re.search(message, failure())
    assert left_in(folder) == []


def test_what_got_lost_is_named(script, tmp_path):
    script()
    (runs.get("ch99-tiny") / "model.bin").unlink()
    assert "but model.bin is not in it. Delete or rename that folder" in failure()
    (tmp_path / "train.py").unlink()
    assert "and so is the script that makes it, train.py" in failure("full")


def test_an_interrupted_run_leaves_nothing_and_ends_the_script(script, monkeypatch):
    folder = script("import time; time.sleep(20)\n" + WRITES)
    started = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            started.append(self)

    def interrupt(*words, **keywords):
        if started:
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    monkeypatch.setattr(runs, "print", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        runs.get("ch99-tiny")
    assert started[0].returncode not in (None, 0), "it was left to its end"
    assert left_in(folder) == []


def test_what_a_killed_process_left_is_cleared(script):
    folder = script()
    stale = folder / ".ch99-tiny-quick.unfinished"
    stale.mkdir(parents=True)
    (stale / "half.bin").write_text("", encoding="utf-8")
    assert not (runs.get("ch99-tiny") / "half.bin").exists()


def test_a_place_that_cannot_be_written(script, monkeypatch, tmp_path):
    script()
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "file" / "runs"))
    assert "cannot be written: " in failure()
    assert "Set COURSE_RUNS to a folder that you may write" in failure()


def test_what_a_notebook_asks_for_is_read_from_its_code(tmp_path):
    cells = [
        'from course import runs\nfolder = runs.get("one")',
        "%matplotlib inline\nruns.get('magic')",
        '# runs.get("comment")\nget("two"), runs.get(name)',
        'print(runs.get("three", "full"), runs.get("one"))',
    ]
    notebook = write_notebook(tmp_path / "n.ipynb", *cells)
    assert runs.asked_for(notebook) == ["one", "three"]
    (tmp_path / "damaged.ipynb").write_text('{"cells": [', encoding="utf-8")
    assert runs.asked_for(tmp_path / "damaged.ipynb") == []


def test_runs_are_prepared_in_the_quick_preset_with_given_variables(script, tmp_path):
    folder = script(
        "(options.out / 'threads').write_text(os.environ['OMP_NUM_THREADS'])\n" + WRITES
    )
    cell = 'runs.get("ch99-tiny")'
    notebook = write_notebook(tmp_path / "n.ipynb", cell)
    assert runs.minutes(notebook) == runs.registry()["ch99-tiny"].minutes > 0
    variables = {"OMP_NUM_THREADS": "7", "COURSE_PRESET": "full"}
    runs.prepare(notebook, {**os.environ, **variables})
    made = folder / "ch99-tiny-quick"
    assert (made / "threads").read_text(encoding="utf-8") == "7"
    assert log(tmp_path) == ["quick"]
    runs.prepare(notebook)
    assert len(log(tmp_path)) == 1


def test_two_at_once_make_a_run_once(script, tmp_path):
    script("import time; time.sleep(0.2)\n" + WRITES)
    with ThreadPoolExecutor(2) as pool:
        made = set(pool.map(runs.get, ["ch99-tiny"] * 2))
    assert [folder.name for folder in made] == ["ch99-tiny-quick"]
    assert len(log(tmp_path)) == 1
