"""A light environment for a copy of the tree, on the packages of the running one.

It has no packages of its own but a path file that leads to those of the running
environment, so it is made in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from course import paths
from course.installation import environment

PATH_FILE = "lent-packages.pth"


def lend(tree: Path) -> Path:
    """Give the copy of the course at `tree` a ``.venv``; return its interpreter."""
    prefix = Path(tree).absolute() / paths.ENV.name
    command = [sys.executable, "-m", "venv", "--without-pip", str(prefix)]
    subprocess.run(command, check=True)
    where = {"base": str(prefix), "platbase": str(prefix)}
    site_packages = Path(sysconfig.get_path("purelib", vars=where))
    lines = [paths.path_line(site_packages, folder) for folder in package_folders()]
    text = "\n".join([*lines, ""])
    (site_packages / PATH_FILE).write_text(text, encoding="utf-8")
    _link_extras(prefix)
    paths.write_path_file(site_packages, tree)
    stamp = {"kind": "lent", "python": "{}.{}".format(*sys.version_info)}
    (prefix / environment.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return environment.python_of(prefix)


def package_folders() -> list[str]:
    """Return the folders that hold the running environment's packages, its own first.

    There are several if it lives on a loan itself.
    """
    names = ("site-packages", "dist-packages")
    found = [sysconfig.get_path("purelib"), *sys.path]
    folders = [entry for entry in found if os.path.basename(entry) in names]
    return list(dict.fromkeys(folders))


def _link_extras(prefix: Path) -> None:
    """Link what packages keep outside site-packages: Jupyter's pages, compiled tools.

    Scripts are left out: they would start in the lender's environment.
    """
    for name in ("share", "etc"):
        source, target = Path(sys.prefix, name), prefix / name
        if source.is_dir() and not target.exists():
            with contextlib.suppress(OSError):  # Windows without the right to link
                target.symlink_to(source.resolve(), target_is_directory=True)
    programs = environment.python_of(prefix).parent
    for source in environment.python_of(Path(sys.prefix)).parent.iterdir():
        target = programs / source.name
        if target.exists() or source.name.startswith("python") or not source.is_file():
            continue
        with open(source, "rb") as file:
            is_script = file.read(2) == b"#!"
        if not is_script and not source.name.lower().startswith("activate"):
            with contextlib.suppress(OSError):
                target.symlink_to(source.resolve())
