"""The parts of the test command; whole runs of it are in test_planted_defects.py."""

from pathlib import Path

import pytest

from course import CourseError, paths, settings
from course.running import run_tests


def test_a_kernel_has_the_settings_of_tests_and_no_profile_of_the_reader(monkeypatch):
    reader = {"MPLBACKEND": "tkagg", "IPYTHONDIR": "mine", "PYTHONSTARTUP": "my.py"}
    reader |= {"COURSE_PRESET": "full", "OMP_NUM_THREADS": "8", "PYTHONPATH": "ros"}
    for name, value in reader.items():
        monkeypatch.setenv(name, value)
    found = settings.kernel_environment("empty")
    assert found.items() >= (settings.FIXED | {"MPLBACKEND": settings.INLINE}).items()
    assert found["IPYTHONDIR"] == "empty"
    theirs = settings.environment_of_readers("empty")
    assert (theirs["IPYTHONDIR"], theirs["COURSE_PRESET"]) == ("empty", "full")
    assert not {"PYTHONSTARTUP", "PYTHONPATH"} & {*found, *theirs}
    assert "MPLBACKEND" not in theirs


def test_this_test_itself_runs_on_one_thread():
    import torch

    assert torch.get_num_threads() == 1


def test_changes_are_named_and_many_are_counted():
    assert run_tests.changes({"a": "1"}, {"a": "1"}) == ""
    many = run_tests.changes({}, {f"file-{n:02d}": "1" for n in range(20)})
    assert many.startswith("new file-00, file-01, ")
    assert many.endswith("file-07 and 12 more")


@pytest.mark.parametrize(
    ("cores", "gigabytes", "files", "count"),
    [(2, 24, 99, 2), (8, 24, 99, 4), (8, 8, 99, 1), (8, 4, 99, 1), (8, 64, 1, 1)],
)
def test_as_many_processes_as_cores_and_memory_allow(
    monkeypatch, cores, gigabytes, files, count
):
    monkeypatch.delenv(run_tests.PROCESSES, raising=False)
    monkeypatch.setattr(run_tests.this_machine, "cores", lambda: cores)

    class Memory:
        total = gigabytes * 1e9

    monkeypatch.setattr(run_tests.psutil, "virtual_memory", Memory)
    assert run_tests.processes(files) == count


def test_the_reader_may_choose_the_number_of_processes(monkeypatch):
    monkeypatch.setenv(run_tests.PROCESSES, "3")
    assert run_tests.processes(1) == 3
    for wrong in ("0", "-1", "many"):
        monkeypatch.setenv(run_tests.PROCESSES, wrong)
        with pytest.raises(CourseError, match="set it to a whole number above 0"):
            run_tests.processes(1)


def test_a_module_brings_its_tests_and_a_folder_the_gates():
    chapter = paths.ROOT / "ch02"
    module = chapter / "01_main-chapter-code" / "dataloader.py"
    tests = module.with_name("test_dataloader.py")
    assert run_tests._tested([module], True) == [module, tests]
    assert run_tests._tested([module, tests], True) == [module, tests]
    assert run_tests._tested([chapter], True) == [chapter, run_tests.GATES]
    assert run_tests._tested([paths.ROOT], True) == [paths.ROOT]


def test_what_holds_no_tests_is_said_to_be_nothing_to_test():
    notebook = paths.ROOT / "ch02" / "01_main-chapter-code" / "ch02.ipynb"
    page = paths.ROOT / "README.md"
    assert run_tests._tested([notebook, page], True) == [notebook]
    assert run_tests._tested([notebook, page], False) == []
    assert run_tests._pytest([page], True, 0.0) == run_tests.NOTHING_COLLECTED
    said = run_tests._nothing([page, notebook], with_notebooks=False)
    assert said.startswith("There is nothing to test in README.md, ch02/01_main-chap")
    assert said.endswith("ch02.ipynb without its notebooks; name something else.")


def test_style_is_checked_of_the_same_files_however_a_place_is_named(monkeypatch):
    calls = []
    monkeypatch.setattr(
        run_tests.notebooks, "wait_for", lambda call, cwd: calls.append(call) or 0
    )
    chapter = paths.ROOT / "ch02"
    monkeypatch.chdir(paths.ROOT)
    assert [run_tests.check_style([place]) for place in (chapter, Path("ch02"))] == [
        "",
        "",
    ]
    whole, relative = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    assert whole == relative
    assert str(chapter / "01_main-chapter-code" / "ch02.ipynb") in whole[-1]
    with pytest.raises(CourseError, match="no chapter, folder or file called"):
        run_tests.check_style([Path("ch99")])


def test_a_target_outside_cannot_be_tested(monkeypatch):
    monkeypatch.chdir(paths.ROOT)
    with pytest.raises(CourseError, match="lies outside the course's folder"):
        run_tests.main([".."])
