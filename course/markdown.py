"""Just enough Markdown: links, images, headings, code, maths, anchors.

Code and comments are blanked out with spaces rather than cut, so that an offset means
the same place in every view of the text and a finding can name its line.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

_FENCE = re.compile(
    r"^(?P<indent>[ \t>]*)(?P<mark>`{3,}|~{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)"
    r"(?:^[ \t>]*(?P=mark)[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_SPAN = re.compile(
    r"(?<!`)(?P<mark>`+)(?!`)(?P<body>(?:(?!\n\s*\n).)+?)(?<!`)(?P=mark)(?!`)",
    re.DOTALL,
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_MATHS = re.compile(
    r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)"
    r"|(?<![\\$\w])\$(?=[^\s$])[^$\n]*(?:\n[^$\n]+)?(?<=[^\s\\])\$(?![\d$])",
    re.DOTALL,
)
_LABEL = r"(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)"
_TARGET = (
    r"\(\s*(?P<target><[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)"
    r"(?:\s+(?:\"[^\"]*\"|'[^']*'))?\s*\)"
)
_LINK = re.compile(rf"(?<![!\\])\[{_LABEL}\]{_TARGET}")
_IMAGE = re.compile(rf"(?<!\\)!\[{_LABEL}\]{_TARGET}")
_REFERENCE = re.compile(
    r"^ {0,3}\[(?!\^)(?P<text>[^\]\n]+)\]:\s*(?P<target>\S+)", re.MULTILINE
)
_TAG = re.compile(r"<(?P<name>a|img|source)\b(?P<attributes>[^<>]*)>", re.IGNORECASE)
_ATX = re.compile(
    r"^ {0,3}(?P<marks>#{1,6})[ \t]+(?P<text>\S.*?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE
)


@dataclass(frozen=True)
class Link:
    """A link or image: its target as written, its text or alt text, and its offset."""

    target: str
    text: str
    offset: int
    image: bool = False


@dataclass(frozen=True)
class Heading:
    level: int
    text: str
    offset: int


def blank(pattern: re.Pattern, text: str) -> str:
    """`text` with every match replaced by as many spaces; line ends stay."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


class Page:
    """One Markdown text: a file, or the cell of a notebook at the place `cell`."""

    def __init__(self, path: str, text: str, cell: str = "") -> None:
        self.path = path
        self.text = text
        self._cell = cell

    def place(self, offset: int) -> str:
        """The place of an offset for a finding: the cell, or the line of a file."""
        line = self.text.count("\n", 0, offset) + 1
        return self._cell or f"{self.path}:{line}"

    @cached_property
    def without_fences(self) -> str:
        """The text with fenced code and HTML comments blanked; spans of code stay."""
        return blank(_COMMENT, blank(_FENCE, self.text))

    @cached_property
    def prose(self) -> str:
        """The text with all code and all comments blanked."""
        return blank(_SPAN, self.without_fences)

    @cached_property
    def without_code(self) -> str:
        """The text with all code blanked; comments stay."""
        return blank(_SPAN, blank(_FENCE, self.text))

    @cached_property
    def without_maths(self) -> str:
        """The text with comments and formulas blanked; code stays."""
        formulas = [m.span() for m in _MATHS.finditer(self.prose)]
        text = blank(_COMMENT, self.text)
        for start, end in formulas:
            hidden = re.sub(r"[^\n]", " ", text[start:end])
            text = text[:start] + hidden + text[end:]
        return text

    @cached_property
    def links(self) -> list[Link]:
        """Links, images, reference definitions and their HTML forms, in page order."""
        found = []
        for pattern, image in ((_LINK, False), (_IMAGE, True), (_REFERENCE, False)):
            for match in pattern.finditer(self.prose):
                start, end = match.span("text")
                text, target = self.text[start:end], match["target"].strip("<>")
                found.append(Link(target, text, match.start(), image))
        for match in _TAG.finditer(self.prose):
            values = attributes(match["attributes"])
            image = match["name"].lower() != "a"
            target = values.get("src") if image else values.get("href")
            if target is not None:
                alt = values.get("alt", "")
                found.append(Link(target, alt, match.start(), image))
        return sorted(found, key=lambda link: link.offset)

    @cached_property
    def headings(self) -> list[Heading]:
        return [
            Heading(len(match["marks"]), match["text"], match.start())
            for match in _ATX.finditer(self.without_fences)
        ]

    @cached_property
    def anchors(self) -> dict[str, int]:
        """GitHub's anchors of the headings, each with its heading's place in the page.

        A second heading of the same text gets ``-1``, a third ``-2``.
        """
        seen, found = Counter(), {}
        for place, heading in enumerate(self.headings):
            slug = github_slug(heading.text)
            found[f"{slug}-{seen[slug]}" if seen[slug] else slug] = place
            seen[slug] += 1
        return found

    def fences(self) -> Iterator[tuple[int, str, str]]:
        """(offset, language, code) of each fenced block."""
        for match in _FENCE.finditer(blank(_COMMENT, self.text)):
            yield match.start("body"), match["info"].strip(), match["body"]

    def code(self) -> Iterator[tuple[int, str]]:
        """(offset, code) of each line of the fenced blocks and of each span of code."""
        for offset, _, body in self.fences():
            for line in body.split("\n"):
                yield offset, line
                offset += len(line) + 1
        for match in _SPAN.finditer(self.without_fences):
            yield match.start(), match["body"]


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """The lines of a table.

    >>> table(["a", "b"], [["x", 2]])
    ['| a | b |', '| --- | --- |', '| x | 2 |']
    """
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def attributes(text: str) -> dict[str, str]:
    """The attributes of an HTML tag, names in lower case, entities resolved."""
    found = re.findall(r"([\w-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))", text)
    return {name.lower(): html.unescape(a or b or c) for name, a, b, c in found}


def plain(markdown: str) -> str:
    """A heading's text as it is rendered: no link targets, images, emphasis or tags."""
    text = _IMAGE.sub("", markdown)
    text = _LINK.sub(lambda match: match["text"], text)
    pieces = re.split(r"(`+[^`]*`+)", text)
    for index, piece in enumerate(pieces):
        if piece.startswith("`"):
            pieces[index] = piece.strip("`").strip()
            continue
        piece = re.sub(r"<[^>]*>", "", piece)
        piece = re.sub(r"(?<!\w)_+(?=\S)|(?<=\S)_+(?!\w)", "", piece)
        pieces[index] = html.unescape(re.sub(r"\*+", "", piece))
    return "".join(pieces).strip()


def github_slug(heading: str) -> str:
    """The anchor that GitHub gives a heading.

    Lower case; letters, marks, digits, connectors, hyphens and spaces stay, in every
    script; each space becomes a hyphen.

    >>> github_slug("What it is, and `make_it` (2 steps)")
    'what-it-is-and-make_it-2-steps'
    """
    kept = []
    for letter in plain(heading).lower():
        category = unicodedata.category(letter)
        if category[0] in "LM" or category in ("Nd", "Pc") or letter in "- ":
            kept.append(letter)
    return "".join(kept).replace(" ", "-")


def jupyter_anchor(heading: str) -> str:
    """The anchor that JupyterLab gives a heading of a notebook: spaces to hyphens."""
    return plain(heading).replace(" ", "-")
