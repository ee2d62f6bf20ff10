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
    """Link what packages keep outside site-packages: Jupyter's pages, and ruff.

    Scripts are left out: they would start in the lender's environment.
    """
    here, there = (environment.python_of(p).parent for p in (sys.prefix, prefix))
    sources = {prefix / name: Path(sys.prefix, name) for name in ("share", "etc")}
    sources |= {there / ruff.name: ruff for ruff in here.glob("ruff*")}
    for target, source in sources.items():
        if source.exists() and not target.exists():
            with contextlib.suppress(OSError):  # Windows without the right to link
                target.symlink_to(source.resolve(), source.is_dir())
