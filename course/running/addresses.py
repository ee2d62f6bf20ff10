"""What pages say about the place on the network where this course is kept.

That place stands once, as ``address`` in the `folder.toml` at the root. Pages show what
depends on it between marks of the kind ``address`` (`course.running.made_parts`). The
names are ``clone``, how to get the course and start it; ``services``, the table of
machines in the cloud; ``notebook``, the first cell there; ``report``, whom to tell. A
copy that does not know its address shows no link that would lead nowhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from course import CourseError, folders
from course.markdown import table
from course.running.contents import words_for

GITHUB = "https://github.com/"
FOLDER = "gpt-by-hand"
START = "python3 -m course lab"
#: Where a service opens a place on GitHub, and the badge that says so.
OPENS = {
    "Google Colab": ("colab", "https://colab.research.google.com/github/{at}{file}"),
    "Kaggle": (
        "kaggle",
        "https://www.kaggle.com/kernels/welcome?src=https://github.com/{at}{file}",
    ),
    "GitHub Codespaces": ("codespaces", "https://codespaces.new/{at}"),
    "SageMaker Studio Lab": (
        "sagemaker",
        "https://studiolab.sagemaker.aws/import/github/{at}{file}",
    ),
    "Binder": ("binder", "https://mybinder.org/v2/gh/{at}/main?urlpath=lab/tree/{top}"),
}
FILE = "/blob/main/ch02/01_main-chapter-code/ch02.ipynb"
NOT_RUN = "<!-- not run: needs the network; without its first lines it is run below -->"


def part(name: str, page: Path, root: Path) -> str:
    """Return the text for a mark of that name on a page."""
    known = folders.read_all(root)
    address = known[folders.ROOT_FOLDER].address if folders.ROOT_FOLDER in known else ""
    made = {"clone": _clone, "services": _services, "notebook": _notebook}
    if name == "report":
        words = words_for(page)
        return words["report_at"].format(address) if address else words["report"]
    if name not in made:
        place = page.relative_to(root).as_posix()
        raise CourseError(
            f"{place} has a mark `address: {name}`; the names are "
            f"{', '.join(made)} and report."
        )
    return "\n".join(["", "", *made[name](address, page, root), "", ""])


def _clone(address: str, page: Path, root: Path) -> list[str]:
    words = words_for(page)
    if not address:
        return [words["unpacked"], "", "```", START, "```"]
    lines = [f"git clone {address} {FOLDER}", f"cd {FOLDER}", START]
    return [words["clone"], "", "```", *lines, "```", "", NOT_RUN]


def _services(address: str, page: Path, root: Path) -> list[str]:
    words = words_for(page)
    opens = address.startswith(GITHUB)
    rows = []
    for service, what in zip(OPENS, words["services"], strict=True):
        badge, form = OPENS[service]
        if opens:
            at = address.removeprefix(GITHUB)
            goal = form.format(at=at, file=FILE, top="README.md")
            picture = os.path.relpath(root / "docs/badges" / badge, page.parent)
            image = f"![{service}]({Path(picture).as_posix()}.svg)"
            rows.append([f"[{image}]({goal})", what])
        else:
            rows.append([service, what])
    lines = table(words["service"], rows)
    return lines if opens else [*lines, "", words["no_links"]]


def _notebook(address: str, page: Path, root: Path) -> list[str]:
    words = words_for(page)
    lines = [
        "```ipython",
        f"!git clone {address or 'ADDRESS'} {FOLDER}",
        f"%cd {FOLDER}",
        "!python3 -m course run ch02",
        "```",
        "",
        "<!-- not run: needs the network; the last command is run by a test -->",
    ]
    return lines if address else [*lines, "", words["no_address"]]
