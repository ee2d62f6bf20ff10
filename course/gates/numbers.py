"""Every exact number in prose is produced by something that a reader can run.

Looked at: numbers with a decimal point or with commas between thousands, in markdown
cells and Markdown files. Such a number must occur

* in a markdown cell: in the code or the outputs of that notebook,
* in a file: in the code or the outputs of a notebook beside it or linked from it,

or in a file of figures (csv, json, toml, txt, py) that the same text links. "Occur"
means the same value, however written (1,024 and 1024; 12.5% and 0.125; 1.5 million and
1500000), or, from two digits on, the value that it rounds to: 3.14 stands for 3.1416.

Left alone: formulas, link targets, versions (Python 3.11, torch==2.13.0, Apache-2.0),
numbers of sections, exercises, figures and equations, tables that the course fills in
from its ledger, and what the text accounts for itself, in a comment that the reader of
the rendered page does not see::

    <!-- number 1,542: parameters of the largest model, GPT-2 paper, table 2 -->

What such a comment names and is in reach is looked up by `course.gates.accounts`.
"""

import ast
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from course.gates.tree import Finding, Notebook, Tree, chapter, folder, resolved
from course.markdown import Page, blank

FIGURE_FILES = (".csv", ".json", ".toml", ".txt", ".py")

# A number worth asking about. Letters and dots may not touch it from the left: they
# make it part of a name or a version.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.,])"
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+)"
    r"(?P<exponent>e[-+]?\d+)?(?![\d_]|[.,]\d)"
    r"(?P<unit>\s?%|\s(?:percent|per\s+cent|thousand|million|billion)\b"
    r"|\s?[kKMBG](?![A-Za-z0-9]))?"
)
_SCALE = {
    "%": 1e-2,
    "percent": 1e-2,
    "per cent": 1e-2,
    "thousand": 1e3,
    "k": 1e3,
    "K": 1e3,
    "million": 1e6,
    "M": 1e6,
    "billion": 1e9,
    "B": 1e9,
    "G": 1e9,
}

# One number or a row of them: "2.3", "2.3, 2.4 and 3.1", "2.1 to 2.6". After a comma
# only numbers of the same chapter go on, so that "in section 2.6, 1.5 tokens" ends.
_AND = r"(?:\s*,)?\s*(?:-|/|&|and|or|to|\u2013|\uff5e)\s*"
_ROW = rf"(?:{_AND}\d+(?:\.\d+)+|\s*,\s*(?P=major)(?:\.\d+)+)*"
_ROW = r"(?P<major>\d+)(?:\.\d+)+" + _ROW
_NOT_A_FIGURE = (
    # Pointers into this text and others.
    re.compile(
        r"(?:\b(?:sections?|sec\.|chapters?|ch\.|exercises?|figures?|fig\.|tables?|"
        r"equations?|eqs?\.|appendix|appendices|listings?|questions?|"
        r"solutions?|checks?|algorithms?|theorems?)|\u00a7)\s*\(?" + _ROW,
        re.IGNORECASE,
    ),
    # The number of a heading, and the id of an exercise at the start of a cell of a
    # table, of a list item, of bold or of a link's text: "| 2.1 |", "- **2.1** ...".
    re.compile(r"^ {0,3}#{1,6}\s+(?:\*\*)?\d+(?:\.\d+)+", re.MULTILINE),
    # Versions: names of languages, libraries, models and licences, with their number.
    re.compile(
        r"\b(?:Python|PyTorch|CUDA|ROCm|versions?|v|release|Llama|Qwen|Gemma|Olmo|OLMo"
        r"|Phi|Mistral|GPT|Claude|SmolLM|Unicode|CC0?|BY(?:-\w+)*|Apache|License|Licence"
        r"|JupyterLab|Jupyter|nbformat|format|macOS|Ubuntu|Debian|Windows|HTTP|TLS)"
        r"(?:\s+(?:License|Licence|version|v))?,?\s*" + _ROW + r"(?![\w%])"
    ),
    re.compile(r"\b[A-Za-z]\w*-\d+(?:\.\d+)+\w*"),  # Apache-2.0, SmolLM2-1.7B
    re.compile(r"\b[A-Za-z][\w.-]*(?:==|~=|>=)\d+(?:\.\d+)+"),
    # Where things are to be found.
    re.compile(r"(?:https?://|www\.|doi:|doi\.org/|10\.\d{4,9}/)[^\s)>\]]+"),
    re.compile(r"\barXiv[:\s]*\d{4}\.\d{4,5}(?:v\d+)?", re.IGNORECASE),
    # HTML tags with their attributes.
    re.compile(r"<[A-Za-z/][^<>]*>"),
)
# After one of these a number is a measurement, even if a section has that number.
_UNIT = re.compile(
    r"\s?(?:%|x\b|times\b|m?s\b|seconds?\b|minutes?\b|[kKMG]i?B\b|bytes?\b|bits?\b"
    r"|nats?\b|tokens?\b|characters?\b|words?\b|percent\b|thousand\b|[mb]illion\b)"
)
_LEDGER = re.compile(r"<!--\s*ledger\b.*?-->.*?<!--\s*/ledger\s*-->", re.DOTALL)
_TARGETS = re.compile(r"(?<=\])\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*\)")
ACCOUNT = re.compile(
    r"<!--\s*number\s+(?P<number>[\d.,]+)\s*:\s*(?P<reason>.*?)-->", re.DOTALL
)
_PRODUCED = re.compile(
    r"(?<![A-Za-z_.\d])(?P<body>\d{1,3}(?:[,_]\d{3})+(?!\d)(?:\.\d+)?|\d+\.?\d*)"
    r"(?P<exponent>[eE][-+]?\d+)?(?P<percent>\s?%)?"
)
MIN_REASON = 10  # characters


@dataclass(frozen=True)
class Quoted:
    """A number as the prose has it: its value, and how far it is from the next one."""

    text: str
    value: float
    place: float
    digits: int
    offset: int


def quoted(page: Page, sections: frozenset = frozenset()) -> Iterator[Quoted]:
    """The numbers in a text that something must produce.

    `sections` are the numbers of headings, which the text may use as pointers.

    >>> [n.text for n in quoted(Page("x.md", "Section 2.6: 5,145 tokens, 1.5 each."))]
    ['5,145', '1.5']
    """
    text = Page(page.path, blank(_LEDGER, page.text)).without_maths
    for pattern in (_TARGETS, *_NOT_A_FIGURE, _exercise_ids(page)):
        text = blank(pattern, text)
    for match in _NUMBER.finditer(text):
        is_pointer = match["number"] in sections
        if is_pointer and not _UNIT.match(text, match.end("number")):
            continue
        plain = match["number"].replace(",", "")
        scale = _SCALE.get(" ".join((match["unit"] or "").split()), 1.0)
        scale *= float("1" + (match["exponent"] or "e0"))
        decimals = len(plain.partition(".")[2])
        yield Quoted(
            text=match.group().strip(),
            value=float(plain) * scale,
            place=10.0**-decimals * scale,
            digits=len(plain.replace(".", "").lstrip("0")),
            offset=match.start(),
        )


def _exercise_ids(page: Page) -> re.Pattern:
    """Ids such as 2.1 where they stand as labels, for the chapter of `page`."""
    name = chapter(page.path) or ""
    major = name.removeprefix("ch").lstrip("0") if name.startswith("ch") else r"\d+"
    start = r"(?:^\s*[-*+]\s+|\|)\s*(?:\*\*|\[)?|\*\*|\["
    end = rf"(?=[\s|:*\].,](?!\d))(?!{_UNIT.pattern})"
    return re.compile(rf"(?:{start}){major}\.\d{{1,2}}{end}", re.MULTILINE)


def holds(values: Sequence[float], number: Quoted) -> bool:
    """Whether sorted values hold a number as it is, or (two digits on) rounded."""
    slack = 1e-9 * max(abs(number.value), 1e-12)
    if number.digits >= 2:
        slack += number.place / 2
    first = bisect_left(values, number.value - slack)
    return first < len(values) and values[first] <= number.value + slack


def values_in_text(text: str) -> Iterator[float]:
    """Every number in an output or a file; a percentage counts as both its readings."""
    for match in _PRODUCED.finditer(text):
        body = re.sub("[,_]", "", match["body"])
        value = float(body + (match["exponent"] or ""))
        yield value
        if match["percent"]:
            yield value / 100
    # "1,2" may also be two numbers, as in a shape, a table or a list without spaces.
    for whole in re.findall(r"\d+(?:\.\d+)?(?:,\d+(?:\.\d+)?)+", text):
        yield from map(float, whole.split(","))


def values_in_code(tree: ast.AST) -> Iterator[float]:
    """Every number in code: literals, and what strings hold; comments do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            value = node.value
            if isinstance(value, str):
                yield from values_in_text(value)
            elif isinstance(value, (int, float)) and abs(value) < 1e300:
                yield float(value)


def values_in_notebook(notebook: Notebook) -> Iterator[float]:
    for cell in notebook.code:
        yield from values_in_code(cell.tree)
        for kind, text in cell.texts():
            if kind == "text/html":
                text = re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)
            if kind != "image/svg+xml":
                yield from values_in_text(text)


@cache
def values(tree: Tree, path: str) -> list[float]:
    """The values that a notebook or a file holds."""
    if path in tree.notebooks:
        return list(values_in_notebook(tree.notebooks[path]))
    if path in tree.sources:
        return list(values_in_code(tree.sources[path].tree))
    return list(values_in_text(tree.text(path)))


def linked(tree: Tree, page: Page) -> Iterator[str]:
    """The files that a page links, relative to the root."""
    for goal in (resolved(page, link) for link in page.links):
        if goal and goal[0] in tree.entries:
            yield goal[0]


def numbers_in_notebooks(tree: Tree) -> Iterator[Finding]:
    """Numbers in a markdown cell come from this notebook, or from figures it links."""
    for notebook in tree.notebooks.values():
        own = values(tree, notebook.path)
        figures = [
            path
            for page in notebook.prose
            for path in linked(tree, page)
            if path.endswith(FIGURE_FILES)
        ]
        produced = sorted([*own, *(v for f in figures for v in values(tree, f))])
        headings = [h.text for page in notebook.prose for h in page.headings]
        found = (re.search(r"(?:^|\s)(\d+\.\d+)\b", text) for text in headings)
        sections = frozenset(match[1] for match in found if match)
        for page in notebook.prose:
            numbers = quoted(page, sections)
            yield from _unproduced(page, numbers, produced, "code cell or output here")


def numbers_in_pages(tree: Tree) -> Iterator[Finding]:
    """Numbers in a Markdown file come from notebooks and figures that go with it."""
    for page in tree.pages.values():
        here = folder(page.path)
        beside = [] if here == "." else [p for p in tree.notebooks if _below(p, here)]
        named = [
            path
            for goal in linked(tree, page)
            for path in (goal, *(p for p in tree.notebooks if _below(p, goal)))
            if path in tree.notebooks or path.endswith(FIGURE_FILES)
        ]
        sources = {*beside, *named}
        produced = sorted(v for path in sources for v in values(tree, path))
        place = "notebook or file of figures linked here"
        yield from _unproduced(page, quoted(page), produced, place)


def _below(path: str, parent: str) -> bool:
    return path.startswith(parent + "/")


def _unproduced(
    page: Page, numbers: Iterable[Quoted], produced: Sequence[float], where: str
) -> Iterator[Finding]:
    """Numbers that nothing holds, and accounts of numbers that are not there."""
    accounts = {}
    for match in ACCOUNT.finditer(page.without_code):
        accounts[match["number"]] = match
        if len(match["reason"].strip()) < MIN_REASON:
            yield Finding(
                f"{page.place(match.start())}: the comment on the number "
                f"{match['number']} gives no reason; say where the number comes from."
            )
    unused = dict(accounts)
    for number in numbers:
        bare = re.split(r"[^\d.,]", number.text)[0]
        unused.pop(bare, None)
        if bare not in accounts and not holds(produced, number):
            yield Finding(
                f"{page.place(number.offset)}: the number {number.text} is in no "
                f"{where}; print it or assert it in a cell, link the file it comes "
                f"from, or account for it: `<!-- number {bare}: its source -->`."
            )
    for bare, match in unused.items():
        yield Finding(
            f"{page.place(match.start())}: the comment on the number {bare} is left "
            "over: the text around it has no such number; delete the comment."
        )
