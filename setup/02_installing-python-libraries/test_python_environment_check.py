"""The environment check: right here, wrong where something was taken away."""

import subprocess
import sys
from pathlib import Path

import pytest

from course.installation import pip_runs

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "python_environment_check.py"
sys.path.insert(0, str(HERE))

import python_environment_check as check  # noqa: E402


def test_this_environment_is_in_order():
    done = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    for name, version in pip_runs.pins("requirements.txt").items():
        assert f"[OK]   {name} {version}\n" in done.stdout
    assert done.stdout.endswith("Everything is in order.\n")


def test_a_python_without_the_packages_is_told_what_to_do(tmp_path):
    """With any Python, from any folder: -S leaves the installed packages out."""
    done = subprocess.run(
        [sys.executable, "-S", SCRIPT],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    wanted = pip_runs.pins("requirements.txt")["torch"]
    assert f"[FAIL] torch {wanted} is wanted, nothing is installed\n" in done.stdout
    assert done.stdout.count("[FAIL]") == len(pip_runs.pins("requirements.txt"))
    assert done.stdout.endswith(check.FIX + "\n")
    assert done.stderr == ""


def test_another_version_fails(capsys):
    assert check.check_packages({"tqdm": "0.0"}) is False
    have = check.get_packages(["tqdm"])["tqdm"]
    assert (
        capsys.readouterr().out == f"[FAIL] tqdm 0.0 is wanted, {have} is installed\n"
    )


def test_a_package_that_is_there_and_broken_fails(capsys, monkeypatch):
    def broken(name):
        raise OSError("DLL load failed")

    monkeypatch.setattr(check.importlib, "import_module", broken)
    assert check.check_packages({"tqdm": check.get_packages(["tqdm"])["tqdm"]}) is False
    assert "not usable: OSError: DLL load failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "module"),
    [("scikit-learn", "sklearn"), ("torch", "torch"), ("numpy", "numpy")],
)
def test_packages_are_imported_by_their_own_name(package, module):
    assert module in check.modules_of(package)


def test_a_missing_vocabulary_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    assert check.check_work() is False
    said = capsys.readouterr().out
    assert "[OK]   PyTorch computes a gradient\n" in said
    assert "[FAIL] tiktoken" in said
    assert "course setup" in said


def test_the_list_of_packages_stands_in_one_place_only():
    wanted = check.get_requirements_dict()
    assert wanted == pip_runs.pins("requirements.txt")
    text = SCRIPT.read_text(encoding="utf-8")
    assert not [version for version in wanted.values() if version in text]
