"""The references are well formed, and they are those that the course cites.

A citation is an identifier (arXiv, DOI, RFC) in a notebook, module or README of a
chapter, or a title in italics in the section *Sources* of a notebook, where titles may
be cut short.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from course import folders, paths

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
LISTS = ("appendix-B", "appendix-C")
KNOWN = folders.read_all(paths.ROOT)
ENTRY = re.compile(
    r"- (?P<authors>[^*]+?) \((?P<year>(?:read )?\d{4}|no year)\)\. "
    r"\*(?P<title>[^*]+)\*\. (?:\[(?P<name>[^\]]+)\]\((?P<link>\S+)\)\. "
    r"|(?P<journal>C Users Journal 12\(2\))\. )?"
    r"(?P<about>[A-Z][^*]+[.?])(?P<further> \*Further reading\.\*)?"
)
POINTER = re.compile(r"- See [^*]+ \(\d{4}\), \*(?P<title>[^*]+)\*: [^*]+\.")
IDENTIFIER = re.compile(
    r"arXiv:\s?(?P<arxiv>\d{4}\.\d+)|DOI\s(?P<doi>10\.\d{4,9}/[^\s,;:)\]]*[^\s,;:.)\]])"
    r"|RFC\s(?P<rfc>\d+)"
)
# An identifier on a page: its name, and where it leads.
FORMS = {
    r"arXiv:((\d\d)(?:0[1-9]|1[0-2])\.\d{4,5})": r"https://arxiv.org/abs/\1",
    r"DOI (10\.\d{4,9}/\S*\w)": r"https://doi.org/\1",
    r"RFC (\d+)": r"https://www.rfc-editor.org/rfc/rfc\1",
    r"ACL Anthology ([A-Z]\d\d-\d{4})": r"https://aclanthology.org/\1",
    r"([a-z][\w-]*(?:\.[a-z][\w-]*)+)": r"https://\1/",
}


@dataclass(frozen=True)
class Work:
    section: str
    authors: str
    year: str
    title: str
    name: str
    link: str
    further: bool

    @property
    def identifier(self):
        """What a notebook would write: arXiv:..., DOI ... or RFC ..., else ""."""
        return self.name if IDENTIFIER.fullmatch(self.name) else ""


def plain(text):
    """Letters and digits of a text, for comparing titles."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def items(page):
    """(section, one item of its list on a single line) of a page."""
    section = ""
    for block in re.split(r"\n(?=#|- )|\n\n", page):
        if block.startswith("#"):
            section = block.partition("\n")[0].strip("# ")
        elif block.startswith("- "):
            yield section, " ".join(block.split())


def works(page):
    found = [(section, ENTRY.fullmatch(item)) for section, item in items(page)]
    return [
        Work(
            section,
            *(match[key] or "" for key in ("authors", "year", "title", "name", "link")),
            further=bool(match["further"]),
        )
        for section, match in found
        if match
    ]


def wrong_forms(page):
    """What is wrong with the entries of a page, each by itself."""
    listed = works(page)
    titles = {work.title for work in listed}
    for section, item in items(page):
        pointer = POINTER.fullmatch(item)
        if not pointer and not ENTRY.fullmatch(item):
            yield f"{section}: neither an entry nor a pointer: {item}"
        elif pointer and pointer["title"] not in titles:
            yield f"{section}: no entry has the title {pointer['title']}"
    for work in listed:
        forms = [(re.fullmatch(form, work.name), FORMS[form]) for form in FORMS]
        forms = [(match, goal) for match, goal in forms if match]
        if work.name and not forms:
            yield f"{work.name} has the form of no identifier"
        for match, goal in forms:
            exact = match.expand(goal)
            prefix = exact.endswith("/")
            if not (work.link.startswith(exact) if prefix else work.link == exact):
                yield f"{work.name} leads to {work.link}"
        if work.name.startswith("arXiv:"):
            number = work.name.removeprefix("arXiv:")
            year = 2000 + int(number[:2])
            if len(number) != (9 if year < 2015 else 10):
                yield f"{work.name} has the wrong number of digits"
            if abs(year - int(work.year[-4:])) > 1:
                yield f"{work.name} is not of {work.year}"
    for key in ("title", "link"):
        counted = Counter(plain(getattr(work, key)) for work in listed)
        for value, count in counted.items():
            if value and count > 1:
                yield f"listed {count} times: {value}"


def missing_sections(page):
    """Chapters and bonus folders, those in preparation too, without their section."""
    shown = {section.partition(": ")[2] or section for section, _ in items(page)}
    for path, one in {**folders.plans(KNOWN), **KNOWN}.items():
        top = path.partition("/")[0]
        cites = folders.CHAPTER.fullmatch(top) and top not in LISTS
        if cites and one.title not in shown:
            yield f"{path} has no section with entries, called {one.title}"


@pytest.fixture(scope="module")
def sources():
    """{path: text of its section Sources} of the notebooks, in single lines."""
    return {
        path: "\n".join(" ".join(one.split()) for one in re.split(r"\n- ", cell))
        for path, cells in prose().items()
        for cell in cells
        if cell.startswith("## Sources\n")
    }


def prose():
    """{path: markdown cells} of the notebooks of the chapters."""
    return {
        path.relative_to(paths.ROOT).as_posix(): [
            cell.source
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "markdown"
        ]
        for path in chapter_files(".ipynb")
        if not paths.is_translation(path)
    }


def chapter_files(suffix):
    for path in paths.tree_files():
        top = path.relative_to(paths.ROOT).parts[0]
        cites = folders.CHAPTER.fullmatch(top) and top not in LISTS
        if cites and path.suffix == suffix and not path.name.startswith("test_"):
            yield path


@pytest.fixture(scope="module")
def texts():
    """{path: text} of all that may cite: notebooks, modules and READMEs."""
    files = [*chapter_files(".py"), *chapter_files(".md")]
    found = {p.relative_to(paths.ROOT).as_posix(): p.read_text("utf-8") for p in files}
    found |= {path: "\n".join(cells) for path, cells in prose().items()}
    return {path: " ".join(text.split()) for path, text in found.items()}


def cited_identifiers(texts):
    """{identifier: a file that has it}."""
    return {
        " ".join(match[0].replace("arXiv: ", "arXiv:").split()): path
        for path, text in texts.items()
        for match in IDENTIFIER.finditer(text)
    }


def cited_titles(sources):
    """(path, title, the identifier behind it or "") in the sections *Sources*."""
    for path, text in sources.items():
        for line in text.splitlines():
            if "written for this course" in line:
                continue
            for match in re.finditer(r"\*([^*]+)\*(?:, |: )?", line):
                behind = IDENTIFIER.match(line, match.end())
                yield path, match[1], " ".join(behind[0].split()) if behind else ""


def disagreements(page, sources, texts):
    """Works that are cited and not listed, and the other way round."""
    listed = works(page)
    by_identifier = {work.identifier: work for work in listed if work.identifier}
    identifiers = cited_identifiers(texts)
    for identifier in sorted(identifiers.keys() - by_identifier.keys()):
        yield f"{identifier} is cited by {identifiers[identifier]} and not listed"
    cited = {by_identifier[one].title for one in identifiers if one in by_identifier}
    for path, title, identifier in cited_titles(sources):
        fits = [w for w in listed if plain(w.title).startswith(plain(title))]
        if not fits:
            yield f"{title} is cited by {path} and not listed"
        elif identifier and identifier not in [work.identifier for work in fits]:
            yield f"{title} is {identifier} in {path}, and {fits[0].name} here"
        cited |= {work.title for work in fits}
    everything = plain(" ".join(sources.values()))
    cited |= {work.title for work in listed if plain(work.title) in everything}
    planned = {plan.title for plan in folders.plans(KNOWN).values()}
    for work in listed:
        waits = (work.section.partition(": ")[2] or work.section) in planned
        if work.further and work.title in cited:
            yield f"{work.title} is cited; take away *Further reading.*"
        elif not work.further and work.title not in cited and not waits:
            yield f"{work.title} is cited nowhere; mark it as *Further reading.*"


def test_each_entry_has_the_form():
    assert list(wrong_forms(README)) == []
    assert len(works(README)) > 150


def test_each_folder_has_its_section():
    assert list(missing_sections(README)) == []


def test_what_is_listed_is_what_is_cited(sources, texts):
    assert list(disagreements(README, sources, texts)) == []
    assert len(sources) > 10


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "[arXiv:1706.03762]",
            "[arXiv:1713.03762]",
            "arXiv:1713.03762 has the form of",
        ),
        ("[arXiv:1706.03762]", "[arXiv:1706.03761]", "arXiv:1706.03761 leads to"),
        ("1706.03762", "1706.3762", "arXiv:1706.3762 has the wrong number of digits"),
        ("1706.03762", "1206.0376", "arXiv:1206.0376 is not of 2017"),
        ("1706.03762", "1706.03761", "arXiv:1706.03762 is cited by"),
        ("[DOI 10.1119", "[DOI 11.1119", "DOI 11.1119/1.1707018 has the form of no"),
        (
            "https://doi.org/10.1119",
            "https://dx.doi.org/10.1119",
            "leads to https://dx",
        ),
        (
            "https://github.com/tat",
            "http://github.com/tat",
            "github.com leads to http:",
        ),
        ("https://aclanthology.org/P11", "https://aclanthology.org/P12", "leads to"),
        ("- Vaswani et al. (2017). ", "- Vaswani et al. ", "neither an entry nor a"),
        (
            "*Attention Is All You Need*",
            "*Attention Is Enough*",
            "All You Need is cited",
        ),
        (
            "1508.07909",
            "1508.07908",
            "Rare Words with Subword Units is arXiv:1508.07909",
        ),
        ("*Layer Normalization*", "*Dropout*", "Layer Normalization is cited by ch04"),
        ("### Gemma 3\n", "### Gemma 4\n", "ch05/12_gemma3 has no section"),
        (" *Further reading.*", "", "is cited nowhere; mark it as *Further reading.*"),
        (": the loop that", " the loop that", "neither an entry nor a pointer"),
    ],
)
def test_a_planted_mistake_is_found(old, new, problem, sources, texts):
    page = README.replace(old, new)
    assert page != README
    found = [
        *wrong_forms(page),
        *missing_sections(page),
        *disagreements(page, sources, texts),
    ]
    assert problem in "\n".join(found)


def test_a_mark_too_many_and_an_entry_twice_are_found(sources, texts):
    first = next(item for _, item in items(README) if "Attention Is All" in item)
    assert "listed 2 times" in "\n".join(wrong_forms(f"{README}\n{first}\n"))
    marked = re.sub(
        r"(1706\.03762\)\.[^-]+?\.)\n(?=- )", r"\1 *Further reading.*\n", README
    )
    found = "\n".join(disagreements(marked, sources, texts))
    assert "Attention Is All You Need is cited; take away" in found


def test_a_new_citation_is_asked_for(sources, texts):
    more = {**texts, "ch02/new.py": "See arXiv:2401.12345, and DOI 10.1000/xyz123."}
    found = list(disagreements(README, sources, more))
    assert found == [
        "DOI 10.1000/xyz123 is cited by ch02/new.py and not listed",
        "arXiv:2401.12345 is cited by ch02/new.py and not listed",
    ]
    more = {**sources, "ch02/x.ipynb": "## Sources\nX (1999), *A Paper of Ours*: x."}
    assert list(disagreements(README, more, texts)) == [
        "A Paper of Ours is cited by ch02/x.ipynb and not listed"
    ]
