"""The doctor: all in order here, and each planted trouble named with its fix."""

import importlib.metadata
import re
import shutil
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from course import (
    CourseError,
    assets,
    doctor,
    first_aid,
    paths,
    settings,
    this_machine,
)
from course.installation import environment, pip_runs
from course.running import ledger, run_tests
from course.testing import programs, tree_copies

REAL_BENCHMARK = doctor.benchmark
REAL_IMPORTS = doctor._importable


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leave out the benchmark and the imports; tests of their own run them."""
    monkeypatch.setattr(doctor, "_importable", lambda: iter(()))
    monkeypatch.setattr(doctor, "benchmark", lambda: doctor.REFERENCE_SCORE)
    for name in ("COURSE_PRESET", "COURSE_DEVICE", "COURSE_DTYPE", "COURSE_MODEL"):
        monkeypatch.delenv(name, raising=False)


def lines(section):
    return list(doctor._examined(doctor.SECTIONS[section]))


def said(section):
    return "\n".join(line.text for line in lines(section))


def fixes(section):
    return {line.text: line.fix for line in lines(section) if line.fix}


def test_the_report_has_all_sections_and_a_verdict(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # What the tests run on may be small, and their cache is theirs.
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 0)
    monkeypatch.setattr(doctor, "LEAST_DISK", 0)
    monkeypatch.setattr(assets, "status", lambda name: "present")
    code = doctor.main()
    report = capsys.readouterr().out
    places = [report.index(f"\n{title}\n") for title in doctor.SECTIONS]
    assert places == sorted(places)
    assert f"PyTorch {torch.__version__}" in report
    assert "cannot be found out" not in report
    assert re.search(r"imported from \S+-packages: .*\bnumpy, .*\btorch, ", report)
    # A tree that runs its own tests is in order; if not, the report says why.
    assert code == 0, report
    assert report.endswith("Nothing has to be fixed.\n")


def test_what_has_to_be_fixed_is_said_once_at_the_end(capsys, monkeypatch):
    """And a section that breaks does not end the report."""

    def broken():
        yield doctor.Line("fine")
        yield doctor.Line("broken one", "run this")
        yield doctor.Line("broken two", "run this")
        raise OSError("no such thing")

    def refusing():
        raise CourseError("The ledger is damaged.")
        yield

    monkeypatch.setattr(doctor, "SECTIONS", {"First": broken, "Last": refusing})
    assert doctor.main() == 1
    assert capsys.readouterr().out == (
        "\nFirst\n  fine\n  ! broken one\n  ! broken two\n"
        "  ! The rest cannot be found out (OSError: no such thing).\n"
        "\nLast\n  ! The ledger is damaged.\n\n"
        "4 things have to be fixed (marked with !):\n  - Run this.\n"
        "  - Look for what that line says in setup/troubleshooting.md, or report it.\n"
        "  - Do what that line says.\n"
    )


def test_a_machine_that_is_too_small(monkeypatch):
    monkeypatch.setattr(this_machine, "memory", lambda: (2e9, 1e9))
    usage = SimpleNamespace(total=1e12, free=5e8)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    monkeypatch.setenv("COURSE_RUNS", "/not/there/yet")
    found = fixes("Machine")
    assert found["memory: 2.0 GB, 1.0 GB free"] == "use a machine with 4 GB of memory"
    assert sum(text.startswith("disk for") for text in found) == 3


@pytest.mark.parametrize("foreign", [False, True])
def test_packages_that_are_missing_or_of_another_version(
    monkeypatch, tmp_path, foreign
):
    """The owner's torch is nobody else's business, and the tests' packages can wait."""
    have = defaultdict(str, torch="2.1.0")
    monkeypatch.setattr(pip_runs, "installed", lambda *_: have)
    monkeypatch.setattr(paths, "ENV", tmp_path if foreign else Path(sys.prefix))
    pins = pip_runs.pins("requirements.txt")
    wanted = dict.fromkeys(pins, "nothing") | {"torch": "2.1.0"}
    if foreign:
        del wanted["torch"]
        assert "torch: 2.1.0 is installed" in said("Python")
    assert fixes("Python") == {
        f"{name}: {have} is installed, {pins[name]} is pinned": doctor.SETUP
        for name, have in wanted.items()
    }
    report = said("Python")
    assert f"requirements.txt: 0 of {len(pins)} packages" in report
    # Nobody needs the tests' packages to read: no versions, and no fault.
    count = len(pip_runs.pins("requirements-test.txt"))
    rest = "`python3 -m course test` installs them"
    assert f"for the tests: 0 of {count} packages; {rest}" in report


def test_packages_that_cannot_be_imported(monkeypatch, tmp_path):
    """Each is tried, also after one that takes Python down with it."""
    (tmp_path / "crashes.py").write_text("import os; os._exit(3)", encoding="utf-8")
    (tmp_path / "refuses.py").write_text("raise OSError('a\\nb')", encoding="utf-8")
    found = settings.own_environment() | {"PYTHONPATH": str(tmp_path)}
    monkeypatch.setattr(settings, "environment_of_readers", lambda: found)
    names = ["crashes", "json", "refuses", "torch"]
    monkeypatch.setattr(doctor, "_pinned_modules", lambda: names)
    monkeypatch.setattr(doctor, "_importable", REAL_IMPORTS)
    assert fixes("Python") == {
        "`import crashes` fails with Python ended with code 3": doctor.SETUP,
        "`import refuses` fails with OSError: a": doctor.SETUP,
    }
    assert "2 of 4 packages and their parts can be imported" in said("Python")


def test_a_package_that_lost_a_file_is_a_fault_and_nothing_is_changed(tmp_path):
    """The version stays, and so no version tells it."""
    tree = tree_copies.copy_tree(tmp_path)
    home = next((tree / ".venv").rglob("site-packages"))
    package = importlib.metadata.distribution("tiktoken")
    for name in {file.parts[0] for file in package.files if ".." not in file.parts}:
        shutil.copytree(package.locate_file(name), home / name)
    (home / "tiktoken" / "core.py").unlink()
    before = run_tests.snapshot(tree)
    done = tree_copies.run_course(tree, "doctor")
    assert done.returncode == 1, done.stdout
    assert "! tiktoken: files are missing: tiktoken/core.py\n" in done.stdout
    assert "! `import tiktoken` fails with ModuleNotFoundError:" in done.stdout
    assert "Run `python3 -m course setup`.\n" in done.stdout
    assert "Nothing has to be fixed" not in done.stdout
    assert run_tests.snapshot(tree) == before


def test_before_the_set_up_it_examines_and_makes_nothing(tmp_path):
    """With a bare Python; pip finds nothing here, and says so as in the set-up."""
    tree = tree_copies.copy_tree(tmp_path)
    shutil.rmtree(tree / ".venv")
    base = getattr(sys, "_base_executable", None) or sys.executable
    before = run_tests.snapshot(tree)
    done = programs.run(base, "-B", tree / "course", "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    places = [done.stdout.index(f"\n{title}\n") for title in first_aid.SECTIONS]
    assert places == sorted(places)
    assert f"! The environment {tree / '.venv'} has not been made yet." in done.stdout
    assert "! pip cannot fetch packages: pip finds no tqdm==" in done.stdout
    assert "- Run `python3 -m course setup`." in done.stdout
    assert "cannot be found out" not in done.stdout
    assert not (tree / ".venv").exists()
    assert run_tests.snapshot(tree) == before
    closed = programs.run(base, "-B", tree / "course", "doctor", COURSE_OFFLINE="1")
    assert "! COURSE_OFFLINE is set, and the set-up needs" in closed.stdout


@pytest.mark.parametrize(
    ("stamp", "python", "words"),
    [
        (None, None, "was never finished"),
        ("{}", None, "does not start: No such file"),
        ("{}", "#!/bin/sh\necho it is broken\nexit 7\n", "start: it is broken."),
        ("{}", "#!/bin/sh\necho '\"/elsewhere\"'\n", "its Python looks elsewhere"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="a script stands in for Python")
def test_an_environment_in_which_nothing_can_be_looked_at(
    tmp_path, stamp, python, words
):
    prefix = tmp_path / "env"
    (prefix / "bin").mkdir(parents=True)
    if stamp:
        (prefix / environment.STAMP).write_text(stamp, encoding="utf-8")
    if python:
        place = environment.python_of(prefix)
        place.write_text(python, encoding="utf-8")
        place.chmod(0o755)
    assert words in first_aid.start_problem(prefix)


def test_an_environment_for_other_requirements_is_a_fault(monkeypatch):
    monkeypatch.setattr(environment, "is_complete", lambda prefix: False)
    [(text, fix)] = fixes("Python").items()
    assert text.endswith("made for other requirements or another Python")
    assert fix == doctor.SETUP


def test_devices_and_choices_are_shown_with_their_origin(monkeypatch):
    card = SimpleNamespace(name="Wonder 9", total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setenv("COURSE_PRESET", "full")
    monkeypatch.setenv("COURSE_DTYPE", "float99")
    report = said("PyTorch and your choices")
    assert "devices: cpu, cuda (Wonder 9, 24 GB)" in report
    assert "COURSE_PRESET: full (set by you)" in report
    assert "COURSE_DEVICE: cpu (default)" in report
    [(text, fix)] = fixes("PyTorch and your choices").items()
    assert text.startswith("COURSE_DTYPE is 'float99'")
    assert fix == "set COURSE_DTYPE as that line says, or unset it"


@pytest.mark.parametrize("where", ["on the path", "in the current folder"])
def test_modules_that_something_hides_or_that_cannot_be_imported(
    monkeypatch, tmp_path, where
):
    modules = paths.summary_modules()
    other = tmp_path / "dataloader.py"
    lost = tmp_path / "no_such_module.py"
    other.write_text("1 / 0", encoding="utf-8")  # nothing is imported
    known = modules | {"no_such_module": lost}
    text = paths.path_file_text(sysconfig.get_path("purelib"))
    monkeypatch.setattr(paths, "path_file_text", lambda purelib: text)
    monkeypatch.setattr(paths, "summary_modules", lambda: known)
    if where == "on the path":
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.chdir(tmp_path)
    assert fixes("Modules") == {
        f"`import dataloader` finds {other} instead of {modules['dataloader']}": (
            f"rename or remove {other}, which hides the course's module"
        ),
        f"`import no_such_module` finds nothing instead of {lost}": doctor.SETUP,
    }
    assert f"{len(modules)} of {len(modules) + 2} modules are" in said("Modules")


def test_a_path_file_that_is_out_of_date_is_a_fault(monkeypatch):
    monkeypatch.setattr(paths, "path_file_text", lambda purelib: "another")
    [(text, fix)] = fixes("Modules").items()
    assert text.endswith("missing or out of date")
    assert fix == doctor.SETUP


def test_files_that_are_missing_or_damaged(monkeypatch):
    states = {"gpt2-vocab.bpe": "missing", "short-story": "damaged", "big": "missing"}
    known, big = assets.manifest(), SimpleNamespace(size=98362432, offline=False)
    monkeypatch.setattr(assets, "status", lambda name: states.get(name, "present"))
    monkeypatch.setattr(assets, "manifest", lambda: {**known, "big": big})
    story = known["short-story"]
    assert fixes("Files") == {
        "gpt2-vocab.bpe (456 kB): missing": doctor.SETUP,
        f"short-story ({assets.readable_size(story.size)}): damaged": (
            f"take {story.place()} from a fresh copy of the course"
        ),
    }
    assert "big (98.4 MB): missing, fetched when needed" in said("Files")


def test_a_readers_own_folder_for_tiktoken_is_mentioned(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/elsewhere")
    assert "tiktoken keeps files of its own there" in said("Files")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(paths.cache_dir() / "tiktoken"))
    assert "TIKTOKEN_CACHE_DIR" not in said("Files")


@pytest.mark.parametrize(
    ("machine", "free", "expected"),
    [
        (doctor.REFERENCE_MACHINE, 9e9, "about 40 s, 500 MB of memory"),
        ("8 cores, X", 9e9, "20 s on 8 cores, X, 500 MB of memory"),
        (doctor.REFERENCE_MACHINE, 3e8, "about 40 s, 500 MB of memory; only 300 MB"),
    ],
)
def test_the_ledger_is_scaled_to_this_machine(monkeypatch, machine, free, expected):
    row = ledger.Row("ch02/a.ipynb", 1, 20.0, 500, machine, "3", "2")
    monkeypatch.setattr(this_machine, "memory", lambda: (16e9, free))
    monkeypatch.setattr(doctor, "benchmark", lambda: doctor.REFERENCE_SCORE / 2)
    monkeypatch.setattr(ledger, "read", lambda: {1: row})
    report = said("What it takes here (one thread)")
    assert "has 0.50 times the speed of the reference" in report
    assert f"ch02/a.ipynb: {expected}" in report


def test_the_benchmark_measures_and_restores_the_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        state = torch.get_rng_state()
        score = REAL_BENCHMARK(seconds=0.1)
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    # From a small single-board computer to twenty times the reference.
    assert doctor.REFERENCE_SCORE / 100 < score < doctor.REFERENCE_SCORE * 20
