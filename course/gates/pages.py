"""Pages that lead somewhere: links, anchors, commands, alike in both languages."""

import contextlib
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches

from course import command_line, folders
from course.gates.numbers import quoted
from course.gates.tree import Finding, Tree, chapter, resolved
from course.markdown import Page, jupyter_anchor

ENGLISH, JAPANESE = "README.md", "README.ja.md"
# JupyterLab's own options that the pages may add to `lab`.
LAB_OPTIONS = {"--port", "--ip", "--allow-root"}


def links_lead_somewhere(tree: Tree) -> Iterator[Finding]:
    """Every relative link names a file or folder of the project, case included."""
    for page in tree.all_pages():
        for link in page.links:
            goal = resolved(page, link)
            if goal is None:
                continue
            place = page.place(link.offset)
            if link.target.startswith("/"):
                yield Finding(
                    f"{place}: the link {link.target} begins with a slash, which works "
                    "only on a web server; write it relative to this file."
                )
            elif goal[0] not in tree.entries:
                yield Finding(
                    f"{place}: the link {link.target} leads nowhere; correct it, or "
                    "write plain text until that file exists."
                )


def anchors_exist(tree: Tree) -> Iterator[Finding]:
    """Every ``#anchor`` is that of a heading of the page or notebook it points into."""
    for page in tree.all_pages():
        for link in page.links:
            goal = resolved(page, link)
            if goal is None or not goal[1] or goal[0] not in tree.entries:
                continue
            known = _anchors(tree, goal[0])
            if known is None or goal[1] in known:
                continue
            path, wanted = goal
            near = ", ".join(get_close_matches(wanted, known, n=2, cutoff=0))
            yield Finding(
                f"{page.place(link.offset)}: {path} has no heading with the anchor "
                f"#{wanted}; the nearest are {near or 'none'}."
            )


def _anchors(tree: Tree, path: str) -> set[str] | None:
    """The anchors of a page (as GitHub makes them) or notebook (as JupyterLab does)."""
    if path in tree.pages:
        return set(tree.pages[path].anchors)
    if path in tree.notebooks:
        pages = tree.notebooks[path].prose
        return {jupyter_anchor(h.text) for page in pages for h in page.headings}
    if path in tree.files:
        lines = tree.text(path).count("\n") + 1
        return {f"L{number}" for number in range(1, lines + 1)}
    return None


_COMMAND = re.compile(
    r"(?:^|[\s;&|(=])(?:\S*python[\d.]*|py)(?:\.exe)?\s+(?:-m\s+course|\S*/course)(?P<rest>\s[^\n;&|<>]*|$)"
)


def course_commands(page: Page) -> Iterator[tuple[int, list[str]]]:
    """(offset, arguments) of each ``python3 -m course ...`` in a page's code."""
    for offset, line in page.code():
        for match in _COMMAND.finditer(" ".join(line.split())):
            rest = re.sub(r"\s#.*", "", match["rest"])
            try:
                yield offset, shlex.split(rest)
            except ValueError:
                yield offset, rest.split()


def commands_parse(tree: Tree) -> Iterator[Finding]:
    """Every command that a page shows is one the program understands."""
    for page in tree.all_pages():
        examples = re.findall(r"<!-- not run: (\S+) stands for your", page.text)
        for offset, arguments in course_commands(page):
            problem = arguments and _problem(tree, arguments)
            if problem and problem not in [f"there is no {name}" for name in examples]:
                yield Finding(
                    f"{page.place(offset)}: shows `python3 -m course "
                    f"{' '.join(arguments)}`, but {problem}; correct the command."
                )


def _problem(tree: Tree, arguments: list[str]) -> str | None:
    """What is wrong with a command line, or None."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            options = command_line.parse(arguments)
    except SystemExit as stopped:
        if not stopped.code:
            return None  # --help
        message = said.getvalue().strip().splitlines()
        said = message[-1].removeprefix("course: ") if message else "it does not parse"
        return said.partition(". See")[0]
    for extra in options.extra:
        if extra.startswith("-") and extra.partition("=")[0] not in LAB_OPTIONS:
            return f"`lab` does not know {extra}"
    targets = [*getattr(options, "targets", ()), getattr(options, "target", "")]
    if options.command == "copy":
        targets = [options.name]
        if options.name in tree.modules:
            return None
    for target in targets:
        if target is None:
            continue
        outside = target.startswith("../")  # a reader's own copy
        named = chapter(target) or ("/" in target and not outside)
        known = tree.entries | set(folders.plans(tree.folders))
        if named and target.strip("/") not in known:
            return f"there is no {target}"
    return None


def settings_exist(tree: Tree) -> Iterator[Finding]:
    """Every variable ``COURSE_...`` that a page names is one the course reads."""
    code = "\n".join(
        source.text
        for source in tree.sources.values()
        if source.path.startswith("course/") and not source.is_test
    )
    known = set(re.findall(r"COURSE_[A-Z]+(?:_[A-Z]+)*", code))
    for page in tree.all_pages():
        for match in re.finditer(r"COURSE_[A-Z]+(?:_[A-Z]+)*", page.text):
            if match.group() not in known:
                yield Finding(
                    f"{page.place(match.start())}: names {match.group()}, which "
                    "nothing in course/ reads; correct the name."
                )


def languages_agree(tree: Tree) -> Iterator[Finding]:
    """README.ja.md has the structure, links, commands and numbers of README.md.

    A picture may have a twin with Japanese words, ``NAME.ja.png`` beside ``NAME.png``.
    """
    if ENGLISH not in tree.pages or JAPANESE not in tree.pages:
        return
    english, japanese = tree.pages[ENGLISH], tree.pages[JAPANESE]
    links = Counter(_goals(english)), Counter(_goals(japanese))
    commands = Counter(_shown(english)), Counter(_shown(japanese))
    problems = []
    for what, (ours, theirs) in {"links": links, "shows": commands}.items():
        for goal in sorted((ours - theirs) | (theirs - ours)):
            counts = f"{theirs[goal]} times, {ENGLISH} {ours[goal]} times"
            problems.append(f"{what} {goal} {counts}")
    ours, theirs = _structure(english), _structure(japanese)
    if ours != theirs:
        problems.append(
            f"has headings and rows of tables {theirs} where {ENGLISH} has {ours}"
        )
    ours = {number.value for number in quoted(english)}
    theirs = {number.value for number in quoted(japanese)}
    for value in sorted(ours ^ theirs):
        problems.append(f"and {ENGLISH} do not both have the number {value:g}")
    for problem in problems:
        yield Finding(f"{JAPANESE}:1: {problem}; bring the two into line.")


def _goals(page: Page) -> Iterator[str]:
    """What a page links; anchors within the page as the heading's number."""
    for link in page.links:
        goal = resolved(page, link)
        if goal is None:
            yield link.target
        elif goal[0] == page.path:
            yield f"heading {page.anchors.get(goal[1])}"
        elif goal[0] not in (ENGLISH, JAPANESE):
            yield re.sub(r"\.ja(?=\.png$)", "", goal[0])  # the words in a picture


def _shown(page: Page) -> Iterator[str]:
    for _, arguments in course_commands(page):
        yield f"`course {' '.join(arguments)}`"


def _structure(page: Page) -> str:
    """The levels of the headings, and how many rows of tables follow each."""
    starts = [heading.offset for heading in page.headings]
    levels = [heading.level for heading in page.headings]
    ends = [*starts[1:], len(page.text)]
    return " ".join(
        f"{level}:{len(re.findall(r'^[|]', page.without_fences[start:end], re.M))}"
        for level, start, end in zip(levels, starts, ends)
    )
