"""Notebooks as one cold run left them, readable by everyone, alike everywhere."""

import ast
import re
from collections.abc import Iterator

from course.gates.tree import Cell, Finding, Notebook, Tree, is_address, joined

MAX_BYTES = 1_000_000
MAX_COLUMNS = 80
MIN_ALT = 20  # characters; "a plot" helps nobody
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")

# Written so that this file does not contain what it looks for.
_ABSOLUTE = re.compile(
    r"(?<![\w.:/~-])/(?:home|tmp|root|Users|work|mnt|private|var/folders|opt)/[\w.~-]+"
    r"|(?<!\w)[A-Za-z]:\\{1,2}(?:Users|Temp|Windows|Program Files)\b[^\s'\"]*"
)


def readable(tree: Tree) -> Iterator[Finding]:
    """Every notebook is JSON in notebook format 4.5 or later, every text is UTF-8."""
    for notebook in tree.notebooks.values():
        if notebook.broken:
            yield Finding(
                notebook.path,
                "1",
                f"cannot be read as a notebook ({notebook.broken}); restore it from an "
                "earlier version or save it again from JupyterLab.",
            )
            continue
        version = tuple(notebook.raw.get(k, 0) for k in ("nbformat", "nbformat_minor"))
        if version < (4, 5):
            yield Finding(
                notebook.path,
                "1",
                "is in notebook format {}.{}, which has no cell ids; save it with a "
                "current JupyterLab (format 4.5).".format(*version),
            )
    for path in [*tree.notebooks, *tree.sources, *tree.pages]:
        tree.text(path)
        if path in tree.undecodable:
            yield Finding(path, "1", "is not valid UTF-8; save it in that encoding.")


def size(tree: Tree) -> Iterator[Finding]:
    """A notebook above a megabyte is slow to open, to review and to clone."""
    for notebook in tree.notebooks.values():
        if notebook.size > MAX_BYTES:
            yield Finding(
                notebook.path,
                "1",
                f"has {notebook.size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} "
                "MB; print less, or draw smaller or fewer figures.",
            )


def cell_ids(tree: Tree) -> Iterator[Finding]:
    """Every cell has its own id: links and translations hold on to them."""
    for notebook in tree.notebooks.values():
        seen = {}
        for cell in notebook.cells:
            identity = cell.raw.get("id")
            if not identity:
                message = "has no id; open and save the notebook in JupyterLab."
            elif identity in seen:
                message = (
                    f"has the id {identity!r} of {seen[identity]} too; delete the id "
                    "of the copy and save the notebook in JupyterLab."
                )
            else:
                seen[identity] = cell.where
                continue
            yield Finding(notebook.path, cell.where, message)


def cold_run(tree: Tree) -> Iterator[Finding]:
    """The stored outputs come from one run from top to bottom: counts 1 to n."""
    for notebook in tree.notebooks.values():
        refresh = f"run `python3 -m course refresh {notebook.path}`."
        counts = [cell.raw.get("execution_count") for cell in notebook.code]
        if counts and all(count is None for count in counts):
            yield Finding(
                notebook.path,
                notebook.code[0].where,
                "no cell was ever run, so no output would be compared (a stripped "
                f"notebook?); {refresh}",
            )
            continue
        for expected, cell in enumerate(notebook.code, start=1):
            count = cell.raw.get("execution_count")
            if count != expected:
                was = "was never run" if count is None else f"has the count [{count}]"
                yield Finding(
                    notebook.path,
                    cell.where,
                    f"{was} where a cold run from top to bottom gives [{expected}]; "
                    f"{refresh}",
                )
                break
        for cell in notebook.cells:
            if cell.kind == "code" and not cell.source.strip():
                yield Finding(
                    notebook.path, cell.where, "is an empty code cell; delete it."
                )


def no_run_traces(tree: Tree) -> Iterator[Finding]:
    """No time stamps, widget states or editor folding: they change on every save."""
    unwanted = {"execution", "ExecuteTime", "executionInfo", "outputId", "colab"}
    for notebook in tree.notebooks.values():
        for cell in notebook.cells:
            for key in sorted(unwanted & set(cell.raw.get("metadata", {}))):
                yield Finding(
                    notebook.path,
                    cell.where,
                    f"keeps {key!r} in its metadata, which changes with every run; "
                    f"run `python3 -m course refresh {notebook.path}`.",
                )
        for key in sorted({"widgets", "colab"} & set(notebook.raw.get("metadata", {}))):
            yield Finding(
                notebook.path,
                "1",
                f"keeps {key!r} in the notebook's metadata; remove that entry.",
            )


def errors_are_meant(tree: Tree) -> Iterator[Finding]:
    """An error in the output is there on purpose, and its tag says so."""
    for notebook in tree.notebooks.values():
        for cell in notebook.code:
            raised = [o for o in cell.outputs if o.get("output_type") == "error"]
            if raised and "raises-exception" not in cell.tags:
                yield Finding(
                    notebook.path,
                    cell.where,
                    f"ends in {raised[0].get('ename', 'an error')}; mend the code, or "
                    "tag the cell raises-exception if the error is the point.",
                )


def images_are_local(tree: Tree) -> Iterator[Finding]:
    """No image from another machine, none pasted in: figures are drawn by code."""
    for page in tree.all_pages():
        for link in page.links:
            if not link.image:
                continue
            if re.match(r"(?:https?:)?//", link.target):
                yield Finding(
                    page.path,
                    page.where(link.offset),
                    f"shows the remote image {_short(link.target)}, which is missing "
                    "offline and may change; draw it with code or keep a file.",
                )
            elif re.match(r"attachment:|data:", link.target):
                yield Finding(
                    page.path,
                    page.where(link.offset),
                    "shows a pasted image; draw it with code instead.",
                )
    for notebook in tree.notebooks.values():
        for cell in notebook.cells:
            if cell.raw.get("attachments"):
                yield Finding(
                    notebook.path,
                    cell.where,
                    "carries a pasted attachment; delete it and draw it with code.",
                )
            yield from _remote_in_code(notebook, cell)


def _remote_in_code(notebook: Notebook, cell: Cell) -> Iterator[Finding]:
    """Images that a code cell fetches: ``Image(url=...)``, ``<img src="http...``."""
    if cell.kind != "code":
        return
    source = r"<img\b[^>]*\bsrc\s*=\s*[\"']?(?:https?:)?//"
    from_markup = any(re.search(source, text) for _, text in cell.texts())
    from_call = any(
        isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Image"
        and any(is_address(part) for part in ast.walk(node))
        for node in cell.nodes
    )
    if from_markup or from_call:
        yield Finding(
            notebook.path,
            cell.where,
            "shows a remote image, which is missing offline; draw it with code.",
        )


def images_have_alt_text(tree: Tree) -> Iterator[Finding]:
    """A reader who cannot see the figure is told what it shows."""
    for page in tree.all_pages():
        for link in page.links:
            if link.image and not link.text.strip():
                yield Finding(
                    page.path,
                    page.where(link.offset),
                    f"the image {_short(link.target)} has no alt text; write in the "
                    "brackets what it shows.",
                )
    for notebook in tree.notebooks.values():
        for cell in notebook.code:
            for output in cell.outputs:
                for mime in IMAGES:
                    if mime in output.get("data", {}) and not _described(output, mime):
                        yield Finding(
                            notebook.path,
                            cell.where,
                            f"the figure has no alt text of {MIN_ALT} characters or "
                            'more; draw it with figures.show(fig, alt="...").',
                        )


def _described(output: dict, mime: str) -> bool:
    metadata = output.get("metadata", {})
    alt = metadata.get(mime, {}).get("alt") or metadata.get("alt") or ""
    return len(joined(alt).strip()) >= MIN_ALT


def no_absolute_paths(tree: Tree) -> Iterator[Finding]:
    """Nothing names a folder that only one machine has."""
    for notebook in tree.notebooks.values():
        for cell in notebook.code:
            places = [("its output", text) for _, text in cell.texts()]
            for place, text in [("its code", cell.source), *places]:
                match = _ABSOLUTE.search(text)
                if match:
                    yield Finding(
                        notebook.path,
                        cell.where,
                        f"{place} holds the absolute path {match.group()!r}; print a "
                        "path relative to the project, or only its name.",
                    )
                    break
    for source in tree.chapter_code():
        for number, line in enumerate(source.text.split("\n"), start=1):
            match = _ABSOLUTE.search(line)
            if match:
                yield Finding(
                    source.path,
                    str(number),
                    f"holds the absolute path {match.group()!r}; take the path as an "
                    "argument, or derive it from the module's own place.",
                )


def line_length(tree: Tree) -> Iterator[Finding]:
    """Code in cells fits a page without a scroll bar."""
    for notebook in tree.notebooks.values():
        for cell in notebook.code:
            for number, line in enumerate(cell.source.split("\n"), start=1):
                if len(line) > MAX_COLUMNS:
                    yield Finding(
                        notebook.path,
                        cell.where,
                        f"line {number} has {len(line)} columns, more than "
                        f"{MAX_COLUMNS}; break it.",
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
                    source.path,
                    str(number),
                    f"holds the character {strange!r}; write it as an escape "
                    f"({ascii(strange)}).",
                )
                break
    for notebook in tree.notebooks.values():
        for cell in notebook.code:
            for name in _names(cell.nodes):
                if not name.isascii():
                    yield Finding(
                        notebook.path,
                        cell.where,
                        f"the name {name!r} is not ASCII; rename it.",
                    )


def _names(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        for attribute in ("id", "name", "arg", "attr"):
            value = getattr(node, attribute, None)
            if isinstance(value, str):
                yield value


def threads_are_left_alone(tree: Tree) -> Iterator[Finding]:
    """How many threads compute is the choice of `test` (one) and `lab` (all)."""
    setters = {"set_num_threads", "set_num_interop_threads"}
    for notebook in tree.notebooks.values():
        for cell in notebook.code:
            strings = (getattr(node, "value", None) for node in cell.nodes)
            variable = any(
                isinstance(text, str) and text.endswith("_NUM_THREADS")
                for text in strings
            )
            if variable or setters & cell.names:
                yield Finding(
                    notebook.path,
                    cell.where,
                    "sets the number of threads, which changes results and slows down "
                    "what runs beside it; leave it to `course test` and `course lab`.",
                )


def one_title(tree: Tree) -> Iterator[Finding]:
    """A notebook opens with its title, and has no second one."""
    for notebook in tree.notebooks.values():
        if notebook.broken:
            continue
        first = notebook.cells[:1]
        if not any(c.kind == "markdown" and c.source.startswith("# ") for c in first):
            yield Finding(
                notebook.path,
                "cell 1",
                "the notebook does not begin with a title; open it with a markdown "
                "cell that starts `# `.",
            )
        titles = [
            cell
            for cell, page in notebook.prose
            for heading in page.headings
            if heading.level == 1
        ]
        for cell in titles[1:]:
            yield Finding(
                notebook.path, cell.where, "holds a second title; use `## ` or lower."
            )


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


GATES = (
    readable,
    size,
    cell_ids,
    cold_run,
    no_run_traces,
    errors_are_meant,
    images_are_local,
    images_have_alt_text,
    no_absolute_paths,
    line_length,
    ascii_code,
    threads_are_left_alone,
    one_title,
)
