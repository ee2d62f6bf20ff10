"""The doctor: all in order here, and each planted trouble named with its fix."""

import os
import subprocess
import sys
from collections import defaultdict
from types import SimpleNamespace

import psutil
import pytest
import torch

from course import CourseError, assets, doctor, paths
from course.installation import pip_runs
from course.running import ledger

SECTIONS = ["Machine", "Python", "PyTorch and your choices", "Modules", "Files"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Leave the benchmark out; one test runs it."""
    monkeypatch.setattr(doctor, "benchmark", lambda: doctor.REFERENCE_SCORE)
    for name in ("COURSE_PRESET", "COURSE_DEVICE", "COURSE_DTYPE", "COURSE_MODEL"):
        monkeypatch.delenv(name, raising=False)


def lines(section):
    return list(doctor._examined(doctor.SECTIONS[section]))


def said(section):
    return "\n".join(line.text for line in lines(section))


def fixes(section):
    return {line.text: line.fix for line in lines(section) if line.fix}


def test_the_report_has_all_sections_and_a_verdict(capsys, monkeypatch):
    # What the tests run on may be small, and their cache is theirs.
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 0)
    monkeypatch.setattr(doctor, "LEAST_DISK", 0)
    monkeypatch.setattr(assets, "status", lambda name: "present")
    code = doctor.main()
    report = capsys.readouterr().out
    places = [report.index(f"\n{title}\n") for title in doctor.SECTIONS]
    assert places == sorted(places)
    assert list(doctor.SECTIONS)[:5] == SECTIONS
    assert f"PyTorch {torch.__version__}" in report
    assert "cannot be found out" not in report
    assert (code == 0) == report.endswith("Nothing has to be fixed.\n")
    # A tree that runs its own tests is in order; if not, the report says why.
    assert code == 0, report


def test_the_command_runs_from_anywhere(tmp_path):
    environment = os.environ | {"COURSE_DTYPE": "float99"}
    done = subprocess.run(
        [sys.executable, str(paths.ROOT / "course"), "doctor"],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 1, done.stderr
    assert "! COURSE_DTYPE is 'float99'" in done.stdout
    assert "Set COURSE_DTYPE as that line says" in done.stdout
    assert done.stderr == ""


def test_what_has_to_be_mended_is_said_once_at_the_end(capsys, monkeypatch):
    def section():
        yield doctor.Line("fine")
        yield doctor.Line("broken one", "run this")
        yield doctor.Line("broken two", "run this")

    monkeypatch.setattr(doctor, "SECTIONS", {"Only": section})
    assert doctor.main() == 1
    assert capsys.readouterr().out == (
        "\nOnly\n  fine\n  ! broken one\n  ! broken two\n\n"
        "2 things have to be fixed (marked with !):\n  - Run this.\n"
    )


def test_a_section_that_breaks_does_not_end_the_report(capsys, monkeypatch):
    def broken():
        yield doctor.Line("first")
        raise OSError("no such thing")

    def refusing():
        raise CourseError("The ledger is damaged.")
        yield

    sections = {"A": broken, "B": refusing, "C": lambda: iter([doctor.Line("last")])}
    monkeypatch.setattr(doctor, "SECTIONS", sections)
    assert doctor.main() == 1
    report = capsys.readouterr().out
    assert "first\n  (cannot be found out: OSError: no such thing)" in report
    assert "! The ledger is damaged." in report
    assert "C\n  last" in report


def test_a_machine_that_is_too_small(monkeypatch):
    memory = SimpleNamespace(total=2e9, available=1e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    usage = SimpleNamespace(total=1e12, free=5e8)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    found = fixes("Machine")
    assert found["memory: 2.0 GB, 1.0 GB free"] == "use a machine with 4 GB of memory"
    assert sum(text.startswith("disk for") for text in found) == 3


def test_packages_that_are_missing_or_of_another_version(monkeypatch):
    have = {"torch": "2.1.0", "tiktoken": ""}
    installed = pip_runs.installed
    monkeypatch.setattr(pip_runs, "installed", lambda *a: installed(*a) | have)
    monkeypatch.setattr(paths, "ENV", doctor.Path(sys.prefix))
    pins = pip_runs.pins("requirements.txt")
    found = fixes("Python")
    assert found[f"torch: 2.1.0 is installed, {pins['torch']} is pinned"]
    assert (
        "python3 -m course setup"
        in found[f"tiktoken: nothing is installed, {pins['tiktoken']} is pinned"]
    )
    assert f"requirements.txt: {len(pins) - 2} of {len(pins)} packages" in said(
        "Python"
    )


def test_an_environment_of_somebody_elses_keeps_its_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "ENV", tmp_path)
    have = defaultdict(str, torch="2.1")
    monkeypatch.setattr(pip_runs, "installed", lambda *_: have)
    found = fixes("Python")
    assert not any(text.startswith("torch") for text in found)
    assert any(text.startswith("tiktoken") for text in found)
    assert "torch: 2.1 is installed" in said("Python")


def test_missing_test_packages_are_no_fault(monkeypatch):
    monkeypatch.setattr(pip_runs, "installed", lambda *_: defaultdict(str))
    assert list(doctor._packages("requirements-test.txt", ""))[1:] == []


def test_a_python_out_of_range(monkeypatch):
    monkeypatch.setattr(doctor, "PYTHON_OLDEST", (3, 99))
    [fix] = [m for text, m in fixes("Python").items() if "tested: 3.99" in text]
    assert fix.startswith("install a Python from 3.99 to")


def test_choices_are_shown_with_their_origin(monkeypatch):
    monkeypatch.setenv("COURSE_PRESET", "full")
    report = said("PyTorch and your choices")
    assert "COURSE_PRESET: full (set by you)" in report
    assert "COURSE_DEVICE: cpu (default)" in report
    assert "COURSE_DTYPE: float32 (default)" in report


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("COURSE_DEVICE", "mps")
    [(text, fix)] = fixes("PyTorch and your choices").items()
    assert "finds no such device on this machine" in text
    assert fix == "set COURSE_DEVICE as that line says, or unset it"


def test_graphics_cards_are_named(monkeypatch):
    card = SimpleNamespace(name="Wonder 9", total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    assert "devices: cpu, cuda (Wonder 9, 24 GB)" in said("PyTorch and your choices")


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Put the modules in order, whatever the environment; return where each is."""
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    text = paths.path_file_text(site_packages)
    (site_packages / paths.PATH_FILE).write_text(text, encoding="utf-8")
    found = {name: str(path) for name, path in paths.summary_modules().items()}
    found["course"] = str(paths.ROOT / "course" / "__init__.py")
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(site_packages))
    monkeypatch.setattr(doctor, "_found_from_elsewhere", lambda names: found)
    monkeypatch.chdir(tmp_path)
    return found


def test_modules_in_order(modules):
    assert fixes("Modules") == {}
    assert f"{len(modules)} of {len(modules)} modules are importable" in said("Modules")


def test_a_path_file_that_is_missing_or_old(modules, tmp_path):
    file = tmp_path / "site-packages" / paths.PATH_FILE
    file.write_text("something else\n", encoding="utf-8")
    assert fixes("Modules") == {f"path file {file}: out of date": doctor.SETUP}
    file.unlink()
    assert fixes("Modules") == {f"path file {file}: missing": doctor.SETUP}


def test_a_module_that_something_hides(modules, tmp_path):
    modules["dataloader"] = other = str(tmp_path / "elsewhere" / "dataloader.py")
    [(text, fix)] = fixes("Modules").items()
    assert f"`import dataloader` finds {other} instead of" in text
    assert fix == f"rename or remove {other}, which hides the course's module"
    assert f"{len(modules) - 1} of {len(modules)} modules" in said("Modules")


def test_modules_that_cannot_be_imported(modules):
    names = list(modules)
    modules.clear()
    found = fixes("Modules")
    assert len(found) == len(names)
    assert set(found.values()) == {doctor.SETUP}


def test_a_file_in_the_current_folder_that_hides_a_module(modules, tmp_path):
    (tmp_path / "dataloader.py").write_text("", encoding="utf-8")
    [(text, fix)] = fixes("Modules").items()
    assert "hides the course's module dataloader in this folder" in text
    assert fix == f"rename {tmp_path / 'dataloader.py'}"


def test_where_a_script_elsewhere_finds_its_modules():
    found = doctor._found_from_elsewhere(["json", "no_such_module"])
    assert found["json"].endswith("__init__.py")
    assert found["no_such_module"] is None


def test_files_that_are_missing_or_damaged(monkeypatch):
    states = {"gpt2-vocab.bpe": "missing", "short-story": "damaged"}
    monkeypatch.setattr(assets, "status", lambda name: states.get(name, "present"))
    found = fixes("Files")
    assert found == {
        "gpt2-vocab.bpe (456 kB): missing": doctor.SETUP,
        f"short-story ({story_size()}): damaged": (
            f"take {assets.manifest()['short-story'].place()} from a fresh copy of "
            "the course"
        ),
    }


def story_size():
    return assets.readable_size(assets.manifest()["short-story"].size)


def test_a_file_that_is_fetched_only_when_needed_is_no_fault(monkeypatch, tmp_path):
    path = tmp_path / "assets.toml"
    path.write_text(
        '[big]\nfile = "big"\nsize = 98362432\nlicence = "MIT"\n'
        f'sha256 = "{"0" * 64}"\nsources = [{{url = "https://files.example/big"}}]\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(assets.entries, "MANIFEST", path)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    assert "big (98.4 MB): missing, fetched when needed" in said("Files")
    assert fixes("Files") == {}


def test_a_readers_own_folder_for_tiktoken_is_mentioned(monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/elsewhere")
    assert "tiktoken keeps files of its own there" in said("Files")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(paths.cache_dir() / "tiktoken"))
    assert "TIKTOKEN_CACHE_DIR" not in said("Files")


def row(seconds, peak_mb, machine=doctor.REFERENCE_MACHINE):
    return ledger.Row("ch02/a.ipynb", 1, seconds, peak_mb, machine, "3", "2")


def test_the_ledger_is_scaled_to_this_machine(monkeypatch):
    monkeypatch.setattr(doctor, "benchmark", lambda: doctor.REFERENCE_SCORE / 2)
    monkeypatch.setattr(ledger, "read", lambda: {1: row(20.0, 500)})
    report = said("What it takes here (one thread)")
    assert "has 0.50 times the speed of the reference" in report
    assert "ch02/a.ipynb: about 40 s, 500 MB of memory" in report


def test_a_figure_of_another_machine_is_not_scaled(monkeypatch):
    monkeypatch.setattr(doctor, "benchmark", lambda: doctor.REFERENCE_SCORE / 2)
    monkeypatch.setattr(ledger, "read", lambda: {1: row(20.0, 500, "8 cores, X")})
    assert ": 20 s on 8 cores, X" in said("What it takes here (one thread)")


def test_memory_that_is_taken_by_something_else_is_mentioned(monkeypatch):
    memory = SimpleNamespace(total=16e9, available=3e8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(ledger, "read", lambda: {1: row(20.0, 500)})
    assert "only 300 MB are free now" in said("What it takes here (one thread)")


def test_an_empty_ledger(monkeypatch):
    monkeypatch.setattr(ledger, "read", dict)
    assert said("What it takes here (one thread)") == (
        "ledger.csv has no measurements yet"
    )


REAL_BENCHMARK = doctor.benchmark


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


def test_the_benchmark_follows_the_work(monkeypatch):
    work = doctor._work()
    once = doctor._rate(work, 0.1)
    thrice = doctor._rate(lambda: (work(), work(), work()), 0.1)
    assert 1.5 < once / thrice < 6
