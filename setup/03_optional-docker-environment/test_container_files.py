"""The files from which machines are built: parsed, and their steps run in a folder.

No image is built here. What Docker, a dev container or Binder would copy is copied to a
plain folder, and what they would run is run there, with the real set-up.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from course import PYTHON_NEWEST, PYTHON_OLDEST, paths
from course.gates import page_commands
from course.markdown import Page
from course.testing.command_stage import Stage

DOCKERFILE = Path(__file__).with_name("Dockerfile")
DEVCONTAINER = paths.ROOT / ".devcontainer" / "devcontainer.json"
BINDER = paths.ROOT / ".binder"

posix = pytest.mark.skipif(
    os.name == "nt" or not shutil.which("bash"), reason="needs the shell bash"
)


def steps():
    """The Dockerfile's instructions: [(name, rest)]."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def step(wanted):
    (rest,) = (rest for name, rest in steps() if name == wanted)
    return rest


def is_supported(text):
    """Whether an image or runtime names a Python that the course is made for."""
    version = tuple(map(int, re.search(r"(\d+)\.(\d+)", text).groups()))
    return PYTHON_OLDEST <= version <= PYTHON_NEWEST


def devcontainer():
    return json.loads(DEVCONTAINER.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("container"), ())


def must_run(stage, code):
    exit_code, said = stage.run(code)
    assert exit_code == 0, said
    return said


# ------------------------------------------------------------------------- Dockerfile


def test_three_steps_make_the_image():
    names = [name for name, _ in steps()]
    assert [n for n in names if n in ("FROM", "COPY", "RUN")] == ["FROM", "COPY", "RUN"]
    assert set(names) <= {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "EXPOSE", "CMD"}
    assert re.fullmatch(r"python:\d+\.\d+-slim", step("FROM"))
    assert is_supported(step("FROM"))
    assert step("COPY") == ". ."


@posix
def test_the_set_up_of_the_image_runs_in_a_plain_folder(stage):
    """With the build argument left empty, as it is by default."""
    assert step("ARG") == "PIP_EXTRA_INDEX_URL="
    said = must_run(stage, f"export {step('ARG')}\n{step('RUN')}")
    assert re.findall(r"^\[(\d)/5\]", said, re.MULTILINE) == list("12345")
    assert "is complete: everything works offline now." in said


@posix
def test_the_image_opens_jupyterlab_for_the_host(stage):
    said = must_run(stage, shlex.join(json.loads(step("CMD"))))
    assert "ready after" in said
    assert f":{step('EXPOSE')}/lab/tree/README.md?token=" in said


def test_what_belongs_to_this_machine_is_not_copied_into_the_image():
    text = (paths.ROOT / ".dockerignore").read_text(encoding="utf-8")
    patterns = [line for line in text.splitlines() if line and line[0] != "#"]

    def is_left_out(path):
        parts = path.split("/")
        starts = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        return any(
            fnmatch.fnmatch(start, pattern.replace("**/", "*"))
            for start in starts
            for pattern in patterns
        )

    for path in (
        ".venv/bin/python",
        ".git/config",
        "runs/x.pt",
        "course/__pycache__/a",
    ):
        assert is_left_out(path), path
    files = [file.relative_to(paths.ROOT).as_posix() for file in paths.tree_files()]
    assert [path for path in files if is_left_out(path)] == []


# ---------------------------------------------------------- dev container and Binder


def test_the_dev_container_is_described_where_editors_look_for_it():
    described = devcontainer()
    assert is_supported(described["image"])
    assert described["forwardPorts"] == [8888]
    # A demand for a graphics card would keep it from starting anywhere else.
    assert "runArgs" not in described
    assert "hostRequirements" not in described


@posix
def test_the_dev_container_s_command_runs_in_a_plain_folder(stage):
    said = must_run(stage, devcontainer()["postCreateCommand"])
    assert "is complete: everything works offline now." in said
    editor = devcontainer()["customizations"]["vscode"]["settings"]
    place = editor["python.defaultInterpreterPath"]
    assert (stage.tree / place.replace("${containerWorkspaceFolder}/", "")).exists()


def test_binder_s_script_runs_a_command_that_a_page_shows():
    """And what pages show is run, in an environment of its own, by their test."""
    assert is_supported((BINDER / "runtime.txt").read_text(encoding="utf-8"))
    script = BINDER / "postBuild"
    assert os.name == "nt" or os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    (command,) = (line for line in lines if line[0] != "#" and line != "set -e")
    guide = paths.ROOT / "setup/01_optional-python-setup-preferences/README.md"
    page = Page("README.md", guide.read_text(encoding="utf-8"))
    shown_and_run = [block for block in page_commands.blocks(page) if not block.reason]
    assert any(command in block.code.splitlines() for block in shown_and_run)
