"""Notebooks as one cold run left them, readable by everyone, alike everywhere.

That an error in the output is there on purpose, the run of the notebook asks.
"""

import base64
import re
import warnings
from collections.abc import Iterator
from itertools import zip_longest

from course.gates.tree import Finding, Tree, short

MAX_BYTES = 1_000_000
MIN_ALT = 20  # characters; "a plot" helps nobody
SCALE = 2  # as in `course.figures`, which needs matplotlib
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")

# Written so that this file does not contain what it looks for.
_ABSOLUTE = re.compile(
    r"(?<![\w.:/~-])/(?:home|tmp|root|Users|work|mnt|private|var/folders|opt)/[\w.~-]+"
    r"|(?<!\w)[A-Za-z]:\\{1,2}(?:Users|Temp|Windows|Program Files)\b[^\s'\"]*"
)
# In code, or in what it displays.
_REMOTE = re.compile(
    r"<img\b[^>]*\bsrc\s*=\s*[\"']?(?:https?:)?//"
    r"|\bImage\(\s*(?:url\s*=\s*)?[\"']https?://"
)


def size(tree: Tree) -> Iterator[Finding]:
    """A notebook above a megabyte is slow to open, to review and to clone."""
    for notebook in tree.notebooks.values():
        if notebook.size > MAX_BYTES:
            yield Finding(
                f"{notebook.path}:1: has {notebook.size / 1e6:.1f} MB, more than "
                f"{MAX_BYTES / 1e6:.0f} MB; print less, or draw smaller or fewer "
                "figures."
            )


def normal_form(tree: Tree) -> Iterator[Finding]:
    """A notebook is stored as one cold run stores it, and as no editor changes it.

    In format 4.5, each cell with an id of its own, without empty code cells, counted
    from 1, and with nothing in its metadata that changes on every run: time stamps,
    widgets, folding.
    """
    from course.running import notebooks  # loads the machinery that runs notebooks

    for notebook in tree.notebooks.values():
        text = tree.text(notebook.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nbformat's, of the ids it repairs
            normal = notebooks.normal_text(text)
        here, there = text.split("\n"), normal.split("\n")
        pairs = enumerate(zip_longest(here, there, fillvalue="nothing"), start=1)
        for number, (ours, theirs) in pairs:
            if ours != theirs:
                yield Finding(
                    f"{notebook.path}:{number}: is not as `refresh` stores it: here "
                    f"`{short(ours.strip())}`, there `{short(theirs.strip())}`; run "
                    f"`python3 -m course refresh {notebook.path}`."
                )
                break


def images_are_local(tree: Tree) -> Iterator[Finding]:
    """No image from another machine, none pasted in: figures are drawn by code."""
    for page in tree.all_pages():
        for link in page.links:
            if not link.image:
                continue
            if re.match(r"(?:https?:)?//", link.target):
                yield Finding(
                    f"{page.place(link.offset)}: shows the remote image "
                    f"{short(link.target)}, which is missing offline and may change; "
                    "draw it with code or keep a file."
                )
            elif re.match(r"attachment:|data:", link.target):
                yield Finding(
                    f"{page.place(link.offset)}: shows a pasted image; draw it with "
                    "code instead."
                )
    for notebook in tree.notebooks.values():
        for cell in notebook.cells:
            if cell.raw.get("attachments"):
                yield Finding(
                    f"{cell.place}: carries a pasted attachment; delete it and draw it "
                    "with code."
                )
    for cell in tree.code_cells():
        shown = [cell.source, *(text for _, text in cell.texts())]
        if any(map(_REMOTE.search, shown)):
            yield Finding(
                f"{cell.place}: shows a remote image, which is missing offline; draw "
                "it with code."
            )


def images_have_alt_text(tree: Tree) -> Iterator[Finding]:
    """A reader who cannot see the figure is told what it shows."""
    for page in tree.all_pages():
        for link in page.links:
            if link.image and not link.text.strip():
                yield Finding(
                    f"{page.place(link.offset)}: the image {short(link.target)} has no "
                    "alt text; write in the brackets what it shows."
                )
    for cell in tree.code_cells():
        for output in cell.outputs:
            if any(len(alt) < MIN_ALT for alt in _alt_texts(output)):
                yield Finding(
                    f"{cell.place}: the figure has no alt text of {MIN_ALT} characters "
                    'or more; draw it with figures.show(fig, alt="...").'
                )


def images_are_sharp(tree: Tree) -> Iterator[Finding]:
    """A dense screen has two dots for each pixel of the page; so has each figure."""
    for cell in tree.code_cells():
        for output in cell.outputs:
            if "image/png" not in output.get("data", {}):
                continue
            picture = base64.b64decode("".join(output["data"]["image/png"]))
            across = int.from_bytes(picture[16:20], "big")  # by the format
            width = output.get("metadata", {}).get("image/png", {}).get("width", 0)
            if across // SCALE != width:
                yield Finding(
                    f"{cell.place}: the figure has {across} dots for {width} pixels of "
                    f"the page instead of {SCALE} for each; draw it with figures.show "
                    "and refresh the notebook."
                )


def _alt_texts(output: dict) -> Iterator[str]:
    """The alt text of each image in an output; "" where there is none."""
    metadata = output.get("metadata", {})
    for mime in set(IMAGES) & set(output.get("data", {})):
        alt = metadata.get(mime, {}).get("alt") or metadata.get("alt") or ""
        yield alt.strip()


def no_absolute_paths(tree: Tree) -> Iterator[Finding]:
    """Nothing names a folder that only one machine has."""
    for cell in tree.code_cells():
        texts = [cell.source, *(text for _, text in cell.texts())]
        match = next(filter(None, map(_ABSOLUTE.search, texts)), None)
        if match:
            yield Finding(
                f"{cell.place}: its code or its output holds the absolute path "
                f"{match.group()!r}; print a path relative to the project, or only its "
                "name."
            )
    for source in tree.chapter_code():
        for number, line in enumerate(source.text.split("\n"), start=1):
            match = _ABSOLUTE.search(line)
            if match:
                yield Finding(
                    f"{source.path}:{number}: holds the absolute path "
                    f"{match.group()!r}; take the path as an argument, or derive it "
                    "from the module's own place."
                )


def ascii_code(tree: Tree) -> Iterator[Finding]:
    """Code is ASCII; text in other scripts is written with escapes or read from data.

    In a notebook only names must be: a string in another script may be exactly what a
    cell on tokenizing is about.
    """
    for source in tree.sources.values():
        for number, line in enumerate(source.text.split("\n"), start=1):
            strange = next((c for c in line if not c.isascii()), None)
            if strange:
                yield Finding(
                    f"{source.path}:{number}: holds the character {strange!r}; write "
                    f"it as an escape ({ascii(strange)})."
                )
                break


def one_title(tree: Tree) -> Iterator[Finding]:
    """A notebook opens with its title, and has no second one."""
    for notebook in tree.notebooks.values():
        first = notebook.cells[:1]
        if not any(c.kind == "markdown" and c.source.startswith("# ") for c in first):
            yield Finding(
                f"{notebook.path}:cell 1: the notebook does not begin with a title; "
                "open it with a markdown cell that starts `# `."
            )
        titles = [
            page.place(heading.offset)
            for page in notebook.prose
            for heading in page.headings
            if heading.level == 1
        ]
        for place in titles[1:]:
            yield Finding(f"{place}: holds a second title; use `## ` or lower.")
