"""Pages that lead somewhere: links, anchors, commands, alike in both languages."""

import contextlib
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from posixpath import join, normpath
from urllib.parse import unquote

from course import command_line, folders
from course.gates.numbers import quoted
from course.gates.tree import Finding, Tree, chapter, folder
from course.markdown import Link, Page, jupyter_anchor

ENGLISH, JAPANESE = "README.md", "README.ja.md"
# JupyterLab's own options that the pages may add to `lab`.
LAB_OPTIONS = {"--port", "--ip", "--allow-root"}


def resolved(page: Page, link: Link) -> tuple[str, str] | None:
    """(path from the root, anchor) of a link within the project; None for others."""
    if re.match(r"[a-zA-Z][\w+.-]+:|//", link.target):
        return None
    target, _, anchor = link.target.partition("#")
    target = unquote(target.partition("?")[0])
    path = normpath(join(folder(page.path), target)) if target else page.path
    return path, unquote(anchor)


def links_lead_somewhere(tree: Tree) -> Iterator[Finding]:
    """Every relative link names a file or folder of the project, case included."""
    for page in tree.all_pages():
        for link in page.links:
            goal = resolved(page, link)
            if goal is None:
                continue
            where = page.where(link.offset)
            if link.target.startswith("/"):
                yield Finding(
                    page.path,
                    where,
                    f"the link {link.target} begins with a slash, which works only on "
                    "a web server; write it relative to this file.",
                )
            elif goal[0] not in tree.entries:
                yield Finding(
                    page.path,
                    where,
                    f"the link {link.target} leads nowhere; correct it, or write plain "
                    "text until that file exists.",
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
            near = ", ".join(sorted(known, key=lambda k: _distance(k, wanted))[:2])
            yield Finding(
                page.path,
                page.where(link.offset),
                f"{path} has no heading with the anchor #{wanted}; the nearest are "
                f"{near or 'none'}.",
            )


def _anchors(tree: Tree, path: str) -> set[str] | None:
    """The anchors of a page (as GitHub makes them) or notebook (as JupyterLab does)."""
    if path in tree.pages:
        return set(tree.pages[path].anchors) | tree.pages[path].ids
    if path in tree.notebooks:
        pages = [page for _, page in tree.notebooks[path].prose]
        headings = (h.text for page in pages for h in page.headings)
        return {jupyter_anchor(h) for h in headings}.union(*(p.ids for p in pages))
    if path in tree.files:
        lines = tree.text(path).count("\n") + 1
        return {f"L{number}" for number in range(1, lines + 1)}
    return None


def _distance(one: str, other: str) -> int:
    """How many letters two anchors do not share, order aside."""
    a, b = Counter(one.lower()), Counter(other.lower())
    return ((a - b) + (b - a)).total()


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
        for offset, arguments in course_commands(page):
            problem = arguments and _problem(tree, arguments)
            if problem:
                yield Finding(
                    page.path,
                    page.where(offset),
                    f"shows `python3 -m course {' '.join(arguments)}`, but {problem}; "
                    "correct the command.",
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
                    page.path,
                    page.where(match.start()),
                    f"names {match.group()}, which nothing in course/ reads; correct "
                    "the name.",
                )


def languages_agree(tree: Tree) -> Iterator[Finding]:
    """README.ja.md has the structure, links, commands and numbers of README.md."""
    if ENGLISH not in tree.pages or JAPANESE not in tree.pages:
        return
    english, japanese = tree.pages[ENGLISH], tree.pages[JAPANESE]
    apart = [
        *_tables_differ(english, japanese),
        *((0, problem) for problem in _links_differ(english, japanese)),
        *((0, problem) for problem in _structure_differs(english, japanese)),
    ]
    for offset, problem in apart:
        where = japanese.where(offset)
        yield Finding(JAPANESE, where, f"{problem}; bring the two into line.")


def _tables_differ(english: Page, japanese: Page) -> Iterator[tuple[int, str]]:
    """(offset of the table, difference)."""
    counts = len(japanese.tables), len(english.tables)
    if counts[0] != counts[1]:
        yield 0, f"has {counts[0]} tables where {ENGLISH} has {counts[1]}"
        return
    for one, other in zip(english.tables, japanese.tables):
        counts = len(other.rows), len(one.rows)
        if counts[0] != counts[1]:
            yield (
                other.offset,
                f"the table has {counts[0]} rows where {ENGLISH} has {counts[1]}",
            )
            continue
        for ours, theirs in zip(one.rows, other.rows):
            # A row may name things in another order; each cell links the same.
            a = [_goals(english, Page(ENGLISH, cell)) for cell in ours]
            b = [_goals(japanese, Page(JAPANESE, cell)) for cell in theirs]
            if a != b:
                more, less = sum(b, Counter()), sum(a, Counter())
                yield (
                    other.offset,
                    f"the row {theirs[0]!r} differs from {ENGLISH}: it lacks "
                    f"{_listed(less - more)} and links {_listed(more - less)} instead",
                )


def _listed(goals: Counter) -> str:
    return ", ".join(sorted(goals.elements())) or "nothing"


def _goals(page: Page, part: Page) -> Counter:
    """What a part of a page links; anchors within the page as the heading's number."""
    goals = Counter()
    for link in part.links:
        goal = resolved(part, link)
        if goal is None:
            goals[link.target] += 1
        elif goal[0] == page.path:
            goals[f"heading {page.anchors.get(goal[1])}"] += 1
        elif goal[0] not in (ENGLISH, JAPANESE):
            goals[goal[0]] += 1
    return goals


def _links_differ(english: Page, japanese: Page) -> Iterator[str]:
    ours, theirs = _goals(english, english), _goals(japanese, japanese)
    for goal in sorted((ours - theirs) | (theirs - ours)):
        yield f"links {goal} {theirs[goal]} times, {ENGLISH} {ours[goal]} times"


def _structure_differs(english: Page, japanese: Page) -> Iterator[str]:
    ours = [heading.level for heading in english.headings]
    theirs = [heading.level for heading in japanese.headings]
    if ours != theirs:
        yield f"has headings of the levels {theirs} where {ENGLISH} has {ours}"
    ours = Counter(" ".join(words) for _, words in course_commands(english))
    theirs = Counter(" ".join(words) for _, words in course_commands(japanese))
    for command in sorted((ours - theirs) | (theirs - ours)):
        yield (
            f"shows `course {command}` {theirs[command]} times, {ENGLISH} "
            f"{ours[command]} times"
        )
    ours = {number.value for number in quoted(english)}
    theirs = {number.value for number in quoted(japanese)}
    for value in sorted(ours ^ theirs):
        yield f"and {ENGLISH} do not both have the number {value:g}"


GATES = (
    links_lead_somewhere,
    anchors_exist,
    commands_parse,
    settings_exist,
    languages_agree,
)
