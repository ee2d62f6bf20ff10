"""A light environment for a copy of the tree, on the packages of the running one.

It has no packages of its own but a path file that leads to those of the running
environment, so it is made in a tenth of a second. Of scripts it has ruff alone: others
would start in the lender's environment.
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
    python = environment.python_of(prefix)
    for ruff in environment.python_of(sys.prefix).parent.glob("ruff*"):
        with contextlib.suppress(OSError):  # Windows without the right to link
            python.with_name(ruff.name).symlink_to(ruff.resolve())
    paths.write_path_file(site_packages, tree)
    stamp = {"kind": "lent", "python": "{}.{}".format(*sys.version_info)}
    (prefix / environment.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    return python


def package_folders() -> list[str]:
    """Return the folders that hold the running environment's packages, its own first.

    There are several if it lives on a loan itself.
    """
    found = [sysconfig.get_path("purelib"), *sys.path]
    own = [at for at in found if os.path.basename(at) in paths.PACKAGE_FOLDERS]
    return list(dict.fromkeys(own))
