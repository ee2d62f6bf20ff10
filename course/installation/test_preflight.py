"""What is said about machines and Pythons that cannot have the environment."""

import shutil
import sys
import types

import pytest

import course
from course.installation import preflight


@pytest.mark.parametrize(
    ("system", "machine", "maxsize", "implementation", "unlocked", "fragment"),
    [
        ("linux", "x86_64", 2**31 - 1, "cpython", 0, "32-bit Python"),
        ("darwin", "x86_64", 2**63 - 1, "cpython", 0, "Intel Macs"),
        ("linux", "x86_64", 2**63 - 1, "pypy", 0, "This is pypy, and PyTorch needs"),
        ("linux", "x86_64", 2**63 - 1, "cpython", 1, "ordinary build"),
        ("linux", "aarch64", 2**63 - 1, "cpython", 0, None),
        ("darwin", "arm64", 2**63 - 1, "cpython", 0, None),
        ("win32", "AMD64", 2**63 - 1, "cpython", None, None),
    ],
)
def test_machines_without_pytorch_get_a_sentence(
    monkeypatch, system, machine, maxsize, implementation, unlocked, fragment
):
    with monkeypatch.context() as patch:  # pytest itself asks for the system
        patch.setattr(sys, "platform", system)
        patch.setattr(preflight.platform, "machine", lambda: machine)
        patch.setattr(sys, "maxsize", maxsize)
        patch.setattr(sys, "implementation", types.SimpleNamespace(name=implementation))
        patch.setattr(preflight.sysconfig, "get_config_var", lambda name: unlocked)
        problem = preflight.platform_problem()
    assert problem is None if fragment is None else fragment in problem


@pytest.mark.parametrize(
    "question",
    ["python_problem", "platform_problem", "disk_problem", "here_problem"],
)
def test_each_problem_ends_the_set_up(monkeypatch, question):
    monkeypatch.setattr(preflight, "disk_problem", lambda place: None)
    preflight.preflight(here=True)
    monkeypatch.setattr(preflight, question, lambda *_: "It cannot be done.")
    with pytest.raises(course.CourseError, match="It cannot be done"):
        preflight.preflight(here=True)


def _free(monkeypatch, amount):
    usage = types.SimpleNamespace(free=amount)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)


def test_too_little_disk_space_says_what_is_needed_first(monkeypatch, tmp_path):
    _free(monkeypatch, 1_200_000_000)
    problem = preflight.disk_problem(tmp_path / "not" / "there" / ".venv")
    assert problem.index("3.0 GB") < problem.index("1.2 GB")
    assert str(tmp_path) in problem


def test_what_is_installed_already_needs_no_space(monkeypatch, tmp_path):
    with open(tmp_path / "libtorch.so", "wb") as file:
        file.truncate(2_500_000_000)  # a hole: it takes no space on the disk
    _free(monkeypatch, 600_000_000)
    assert preflight.disk_problem(tmp_path) is None
    _free(monkeypatch, 400_000_000)
    assert "needs 0.5 GB" in preflight.disk_problem(tmp_path)


def test_the_system_python_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    monkeypatch.setattr(preflight.sysconfig, "get_path", lambda name: str(tmp_path))
    assert preflight.here_problem() is None
    (tmp_path / "EXTERNALLY-MANAGED").write_text("", encoding="utf-8")
    assert "belongs to the operating system" in preflight.here_problem()


def test_a_running_environment_must_be_writable_and_have_pip(monkeypatch):
    assert preflight.here_problem() is None
    with monkeypatch.context() as patch:
        patch.setattr(preflight.os, "access", lambda place, mode: False)
        assert "is not writable" in preflight.here_problem()
    monkeypatch.setitem(sys.modules, "pip", None)
    assert "has no pip" in preflight.here_problem()
