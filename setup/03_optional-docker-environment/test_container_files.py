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
from course.testing import servers
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


def every(wanted):
    """What stands after each instruction of that name."""
    return [rest for name, rest in steps() if name == wanted]


def is_supported(text):
    """Whether an image or runtime names a Python that the course is made for."""
    version = tuple(map(int, re.search(r"(\d+)\.(\d+)", text).groups()))
    return PYTHON_OLDEST <= version <= PYTHON_NEWEST


def devcontainer():
    return json.loads(DEVCONTAINER.read_text(encoding="utf-8"))


#: Stands in for uv, which fetches PyTorch from where tests do not reach: it takes
#: the same arguments, says what they are, and lets pip install the list.
UV = """
import subprocess, sys
_, pip, install, _, python, _, backend, _, requirements = sys.argv
print("uv", pip, install, python, backend, requirements, flush=True)
sys.exit(subprocess.call([python, "-m", "pip", "install", "-qr", requirements]))
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    made = Stage(tmp_path_factory.mktemp("container"), ())
    files = {"uv/__init__.py": "", "uv/__main__.py": UV}
    servers.wheel(made.folder / "packages", "uv", "1.0", files, needs="")
    return made


def must_run(stage, code, tree=None):
    exit_code, said = stage.run(code, tree)
    assert exit_code == 0, said
    return said


# ------------------------------------------------------------------------- Dockerfile


def test_the_steps_of_the_image_stand_in_an_order_that_keeps_the_large_layer():
    names = [name for name, _ in steps()]
    known = {"FROM", "ARG", "ENV", "USER", "WORKDIR", "COPY", "RUN", "EXPOSE", "CMD"}
    assert set(names) <= known
    assert re.fullmatch(r"python:\d+\.\d+-slim", every("FROM")[0])
    assert is_supported(every("FROM")[0])
    lists, everything = every("COPY")
    assert everything.endswith(" . .")
    *copied, goal = lists.split()[1:]
    # Nothing else may make the packages anew.
    assert [Path(path).name for path in copied] == [
        "requirements.txt",
        "cpu-environment.sh",
    ]
    assert all((paths.ROOT / path).is_file() for path in copied)
    assert goal == "./"


def test_the_image_is_small_and_nobody_in_it_is_root():
    assert every("ARG") == ["TORCH_BACKEND=cpu"]
    assert {"PIP_NO_CACHE_DIR=1", "UV_NO_CACHE=1"} <= {*every("ENV")[0].split()}
    (user,) = every("USER")
    assert f"--uid 1000 {user}" in every("RUN")[0]
    order = [name for name, _ in steps()]
    assert order.index("USER") < order.index("COPY")
    assert all(copy.startswith(f"--chown={user} ") for copy in every("COPY"))


@pytest.fixture(scope="module")
def image(stage):
    """A plain folder in which the image's steps have been taken, and what they said."""
    course = stage.fresh()
    tree, home = course.with_name("course"), course.with_name("home")
    tree.mkdir()
    variables = every("ENV")[1].replace("/home/reader", str(home))
    lists, _ = every("COPY")
    for path in lists.split()[1:-1]:
        shutil.copy(course / path, tree)
    _, packages, setup = every("RUN")
    environ = " ".join(every("ENV")[:1])
    first = f"export {environ} {variables} {every('ARG')[0]}\n"
    said = must_run(stage, first + packages, tree)
    assert [path.name for path in tree.iterdir()] == ["requirements.txt"]
    shutil.copytree(course, tree, dirs_exist_ok=True)
    return tree, first, said + must_run(stage, first + setup, tree)


@posix
def test_the_set_up_of_the_image_runs_in_a_plain_folder(image):
    """In the environment of the image, with the CPU build of PyTorch."""
    _, _, said = image
    assert re.search(r"^uv pip install \S+/environment/bin/python cpu req", said, re.M)
    assert re.findall(r"^\[(\d)/5\]", said, re.MULTILINE) == list("12345")
    assert "is complete: everything works offline now." in said


@posix
def test_the_image_opens_jupyterlab_for_the_host(stage, image):
    tree, first, _ = image
    said = must_run(stage, first + shlex.join(json.loads(every("CMD")[0])), tree)
    assert "ready after" in said
    port = re.search(r":(\d+)/lab/tree/README.md\?token=", said)
    # Here another JupyterLab may have the first port; then the next free one is taken.
    assert port is not None
    assert 0 <= int(port[1]) - int(every("EXPOSE")[0]) < 50


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
    assert described["hostRequirements"]["memory"] == "8gb"
    assert "gpu" not in described["hostRequirements"]
    for page in described["customizations"]["codespaces"]["openFiles"]:
        assert (paths.ROOT / page).is_file()


@posix
def test_the_dev_container_s_command_runs_in_a_plain_folder(stage):
    described = devcontainer()
    said = must_run(stage, described["postCreateCommand"])
    assert " cpu requirements.txt\n" in said
    assert "is complete: everything works offline now." in said
    # `~` of the command is the home folder of the image's user.
    home = "/home/vscode"
    editor = described["customizations"]["vscode"]["settings"]
    python = editor["python.defaultInterpreterPath"]
    assert (stage.folder / python.removeprefix(f"{home}/")).exists()
    environment = described["remoteEnv"]["VIRTUAL_ENV"]
    assert python == f"{environment}/bin/python"
    assert described["remoteEnv"]["PATH"].startswith(f"{environment}/bin:")


@posix
def test_binder_s_script_makes_the_running_python_the_course_s(stage):
    assert is_supported((BINDER / "runtime.txt").read_text(encoding="utf-8"))
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK)
    active = "python3 -m venv ../conda\n. ../conda/bin/activate\n"
    said = must_run(stage, f"{active}bash .binder/postBuild", stage.fresh())
    assert " cpu requirements.txt\n" in said
    assert "/conda is complete: everything works offline now." in said
