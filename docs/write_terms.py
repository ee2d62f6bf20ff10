"""The words of the field, with the sentence that explains each and a link to it.

``terms.toml`` lists, for each main notebook, the words that it explains. Such a word is
in bold once in all those notebooks, in the sentence that says what it means. This
script collects the sentences in ``terms.md``:

    python docs/write_terms.py
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

from course import paths
from course.markdown import jupyter_anchor

LIST = paths.ROOT / "docs" / "terms.toml"
PAGE = paths.ROOT / "docs" / "terms.md"
INTRODUCTION = """\
# Words of the field

What a word means, in the sentence that explains it where the course first needs it, and
a link to that place. In the notebooks these words are in bold there, and only there.
`python docs/write_terms.py` writes this page from [terms.toml](terms.toml).
"""

_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
_BOLD = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)
_PARTS = re.compile(  # paragraphs, list items, sentences
    r"\n\s*\n|\n(?=(?:[-*]|\d+\.) )"
    r"|(?:(?<=[.!?])|(?<=[.!?][*)])|(?<=[.!?]\*\*))\s+(?=[A-Z\"(*$`])"
)
_CODE = re.compile(r"`[^`]*`")
_STARS = re.compile(r"(`[^`]*`)|\*\*")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True)
class Place:
    """Something in bold, its sentence, and the heading under which that stands."""

    path: str
    heading: str
    sentence: str
    bold: str

    def says(self, term: str) -> bool:
        """Whether the words in bold are `term`, in one or several."""
        wanted = rf"{re.escape(term)}(?:s|es)?"
        return bool(re.fullmatch(wanted, self.bold, re.IGNORECASE))


def terms(path: Path = LIST) -> dict[str, list[str]]:
    """Return the words to explain by notebook, as listed."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def places(path: str, root: Path = paths.ROOT) -> Iterator[Place]:
    """Yield everything that stands in bold in a notebook's text."""
    notebook = nbformat.reads((root / path).read_text(encoding="utf-8"), as_version=4)
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        if titles := _HEADING.findall(cell.source):
            heading = titles[-1]
        for sentence in sentences(cell.source):
            # Two stars in code are a power or the entries of a dictionary.
            for bold in _BOLD.findall(_CODE.sub("`", sentence)):
                yield Place(path, heading, sentence, bold)


def sentences(text: str) -> list[str]:
    """Return the sentences and list items of a cell, each on one line, no headings.

    >>> sentences("# Units\\nCut it. The units\\nare **tokens**.\\n\\n- one\\n- two")
    ['Cut it.', 'The units are **tokens**.', '- one', '- two']
    """
    parts = (" ".join(part.split()) for part in _PARTS.split(_HEADING.sub("\n", text)))
    return [part for part in parts if part]


def explained(root: Path = paths.ROOT) -> dict[str, list[Place]]:
    """Return, for each listed word, every place where it is in bold."""
    listed = terms(root / "docs" / LIST.name)
    found = [place for path in listed for place in places(path, root)]
    return {
        term: [place for place in found if place.says(term)]
        for listed_terms in listed.values()
        for term in listed_terms
    }


def written(root: Path = paths.ROOT) -> str:
    """Return the page, in the order of the alphabet."""
    lines = [INTRODUCTION]
    for term, found in sorted(explained(root).items(), key=lambda one: one[0].lower()):
        for place in found:
            sentence = _STARS.sub(lambda star: star[1] or "", place.sentence)
            sentence = re.sub(r"^[-*] +|^\((?!.*\))", "", _LINK.sub(r"\1", sentence))
            goal = f"../{place.path}#{jupyter_anchor(place.heading)}"
            lines.append(f"- **{term}**: {sentence} [{place.heading}]({goal})")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    paths.write_text_atomically(PAGE, written())
    print(f"{PAGE.name}: up to date")


if __name__ == "__main__":
    main()
