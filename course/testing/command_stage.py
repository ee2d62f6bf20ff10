"""A small copy of the tree in which every command of the pages can be run in seconds.

The copy asks for one tiny package, which leads to the packages of the environment that
runs the tests, so that the real set-up with the real pip makes a real environment of
it, without a network. Notebooks are cut down to a cell, tests to an assertion, and the
scripts of chapters, which their own tests run, to their command line.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from course import assets, folders, paths, settings
from course.installation import environment
from course.testing import lent_environment, programs, servers, tiny_trees

PACKAGE, VERSION = "lent_packages", "1.0"
SMALL_TEST = "def test_small():\n    assert sum([1, 2]) == 3\n"
IS_SCRIPT = 'if __name__ == "__main__":\n'
#: Ends a script as soon as its command line has been understood.
ENDS = """\
    import argparse as shell

    shell.ArgumentParser.parse_args = lambda self, *arguments: self.exit(
        bool(self.parse_known_args(*arguments)[1])
    )
"""
READY = "ready after"  # what `lab` prints when the page can be opened
PATIENCE = 120.0  # seconds, for what takes five


def build_wheels(folder: Path) -> None:
    """Write the package: a path file to the lent packages, and ruff.

    And the packages from which the set-up takes files, with the files of this machine.
    """
    folder.mkdir(parents=True)
    ruff = environment.python_of(sys.prefix).with_name("ruff")
    script = f'#!/bin/sh\nexec "{ruff}" "$@"\n'
    # As statements, because Python 3.11 reads path files with the locale's encoding.
    lines = [
        f"import sys; sys.path.append({ascii(name)})\n"
        for name in lent_environment.package_folders()
    ]
    own = {
        f"{PACKAGE}.pth": "".join(lines),
        f"lent_packages-{VERSION}.data/scripts/ruff": script,
    }
    servers.wheel(folder, PACKAGE, VERSION, own, needs="")
    carried: dict[tuple[str, str], dict[str, bytes]] = {}
    for name, asset in assets.manifest().items():
        for source in asset.sources:
            if asset.offline and source.package:
                files = carried.setdefault((source.package, source.version), {})
                files[source.member] = assets.check(name).read_bytes()
    for (package, version), files in carried.items():
        servers.wheel(folder, package, version, files, needs="")


def small_copy(folder: Path, needed: Iterable[str]) -> Path:
    """Copy the tree to `folder` without an environment; return it.

    `needed` are the notebooks that commands name, as paths from the root; the others
    are left out, and so are the course's own tests.
    """
    needed = set(needed)
    for file in paths.tree_files():
        inside = file.relative_to(paths.ROOT)
        is_test = file.match("test_*.py")
        if is_test and inside.parts[0] == "course":
            continue
        if file.suffix == ".ipynb" and inside.as_posix() not in needed:
            continue
        copy = folder / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        if is_test:
            copy.write_text(SMALL_TEST, encoding="utf-8")
        elif file.suffix == ".ipynb":
            cell = tiny_trees.code("print(1 + 2)", tiny_trees.stream("3\n"))
            tiny_trees.write_notebook(copy, cell)
        elif file.suffix == ".py" and folders.CHAPTER.fullmatch(inside.parts[0]):
            text = file.read_text(encoding="utf-8")
            copy.write_text(text.replace(IS_SCRIPT, IS_SCRIPT + ENDS), encoding="utf-8")
        else:
            shutil.copy2(file, copy)
    tools = (folder / "pyproject.toml").read_text(encoding="utf-8")
    tools = tools.replace("--doctest-modules ", "")
    (folder / "pyproject.toml").write_text(tools, encoding="utf-8")
    pin = f"{PACKAGE}=={VERSION}\n"
    (folder / "requirements.txt").write_text(pin, encoding="utf-8")
    (folder / "requirements-test.txt").write_text("", encoding="utf-8")
    return folder


class Stage:
    """A folder with a small copy, fresh ones beside it, and a reader's terminal."""

    def __init__(self, folder: Path, needed: Iterable[str]) -> None:
        self.folder, self._needed, self._copies = Path(folder), set(needed), 0
        build_wheels(self.folder / "packages")
        programs = self.folder / "programs"
        programs.mkdir()
        base = getattr(sys, "_base_executable", None) or sys.executable
        for name in ("python3", "python"):
            (programs / name).symlink_to(base)
        self.tree = self.fresh()

    def fresh(self) -> Path:
        """Return a new copy in which nothing was set up yet."""
        self._copies += 1
        return small_copy(self.folder / f"copy-{self._copies}", self._needed)

    def variables(self) -> dict[str, str]:
        """The environment variables of the terminal."""
        # Where jupyter finds what packages keep outside site-packages.
        share, etc = Path(sys.prefix, "share", "jupyter"), Path(sys.prefix, "etc")
        return programs.variables(
            self.folder / "packages",
            PATH=f"{self.folder / 'programs'}{os.pathsep}{os.environ['PATH']}",
            HOME=str(self.folder),
            JUPYTERLAB_DIR=str(share / "lab"),
            JUPYTER_PATH=str(share),
            JUPYTER_CONFIG_PATH=str(etc / "jupyter"),
            COURSE_GUARD="1",
            OMP_NUM_THREADS="1",
        )

    def run(self, code: str, tree: Path | None = None) -> tuple[int, str]:
        """Run commands in the root of the copy; return exit code and what they said.

        A started JupyterLab is stopped with Ctrl-C as soon as it is ready.
        """
        process = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", code],
            cwd=tree or self.tree,
            env=self.variables(),
            start_new_session=True,
            **settings.ONE_TEXT,
        )
        watchdog = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        said = []
        for line in process.stdout or ():
            said.append(line)
            if line.startswith(READY):
                os.killpg(process.pid, signal.SIGINT)
        watchdog.cancel()
        return process.wait(), "".join(said)
