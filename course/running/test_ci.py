"""What machines run to check this project is the command that the README names."""

import os
import re
import tomllib

import pytest
import yaml

from course import PYTHON_NEWEST, PYTHON_OLDEST, paths

COMMAND = "python3 -m course test"


def read(name: str) -> str:
    return (paths.ROOT / name).read_text(encoding="utf-8")


def test_the_script_runs_the_readmes_command_with_an_empty_cache():
    for page in ("README.md", "README.ja.md"):
        assert COMMAND in read(page).splitlines()
    lines = read(".ci/run").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1] == COMMAND
    assert "set -euo pipefail" in lines
    assert "COURSE_CACHE=$(mktemp -d)" in lines
    assert "export COURSE_CACHE" in lines
    assert any(re.match(r"trap 'rm -rf .*COURSE_CACHE.*' EXIT", line) for line in lines)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_the_script_can_be_executed():
    assert os.access(paths.ROOT / ".ci" / "run", os.X_OK)


def test_the_workflow_runs_it_on_every_system_and_both_ends_of_the_range():
    workflow = yaml.safe_load(read(".github/workflows/tests.yml"))
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow[True]) == {"push", "pull_request"}
    job = workflow["jobs"]["test"]
    # On Windows only the name without the 3 is certain to be there.
    assert job["steps"][-1] == {"run": COMMAND.replace("python3", "python")}
    matrix = job["strategy"]["matrix"]
    systems = {name.partition("-")[0] for name in matrix["os"]}
    assert systems == {"ubuntu", "windows", "macos"}
    ends = [".".join(map(str, version)) for version in (PYTHON_OLDEST, PYTHON_NEWEST)]
    assert matrix["python"] == ends


def test_a_clone_on_windows_has_the_same_bytes():
    """Or checksums of data and the layout of code would differ there."""
    assert "* text=auto eol=lf" in read(".gitattributes").splitlines()


def test_the_project_file_says_the_same_range_of_pythons_as_the_set_up():
    project = tomllib.loads(read("pyproject.toml"))
    newest = f"{PYTHON_NEWEST[0]}.{PYTHON_NEWEST[1] + 1}"
    oldest = ".".join(map(str, PYTHON_OLDEST))
    assert project["project"]["requires-python"] == f">={oldest},<{newest}"
    assert "build-system" not in project
