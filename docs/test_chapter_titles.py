"""One spelling of each chapter's title, and one of *fine-tuning* everywhere else.

A chapter is called as the book calls it: `title` in its `folder.toml`, from which the
contents are made, is the title of its README and of its main notebook, letter by
letter. In sentences the field's usual spelling stands.
"""

import re

import pytest

from course import folders, paths
from course.gates.tree import Tree
from course.markdown import Page

KNOWN = folders.read_all(paths.ROOT)
CHAPTERS = [one for one in KNOWN.values() if one.is_chapter]


def full_title(one):
    kind, number = ("Chapter", one.path[3:])
    if one.path.startswith("appendix"):
        kind, number = ("Appendix", one.path[-1])
    return f"{kind} {number}: {one.title}"


def wrong_titles(one, texts):
    """The files of a chapter, {path: text}, that do not begin with its title."""
    wanted = f"# {full_title(one)}"
    return [path for path, text in texts.items() if text.splitlines()[0] != wanted]


def other_spellings(text):
    """What in a text is spelt as the book's titles spell it, and is no title."""
    for one in CHAPTERS:
        text = text.replace(one.title, "")
    # Titles of papers, names of files and of code are as they are.
    for no_sentence in (r"\*[A-Z][^*]*\*", r"\]\([^)]*\)", r"`[^`]*`"):
        text = re.sub(no_sentence, "", text)
    return re.findall(r"(?i)(?<![-\w])finetun\w*", text)


@pytest.fixture(scope="module")
def tree():
    return Tree()


@pytest.mark.parametrize("one", CHAPTERS, ids=lambda one: one.path)
def test_a_chapter_has_one_title(tree, one):
    texts = {one.place_of("README.md"): tree.pages[one.place_of("README.md")].text}
    main = one.place(f"{one.path}.ipynb")
    if main in tree.notebooks:
        texts[main] = tree.notebooks[main].prose[0].text
    assert len(texts) == 2 or one.path[-1] in "ABC"  # A has two parts, B and C none
    assert wrong_titles(one, texts) == []


def test_in_sentences_there_is_one_spelling(tree):
    found = {}
    prose = [page for notebook in tree.notebooks.values() for page in notebook.prose]
    for page in [*tree.pages.values(), *prose]:
        spelt = other_spellings(Page(page.path, page.text).without_code)
        if spelt:
            found[page.path] = spelt
    assert found == {}


def test_another_title_and_another_spelling_are_found():
    chapter = KNOWN["ch06"]
    texts = {"a": "# Chapter 6: Fine-tuning for classification\n", "b": "# Chapter 6\n"}
    assert wrong_titles(chapter, texts) == ["a", "b"]
    assert wrong_titles(chapter, {"a": f"# {full_title(chapter)}\n\nText"}) == []
    assert other_spellings("Finetuning is fine-tuning.") == ["Finetuning"]
    assert other_spellings(f"{chapter.title}; *Finetuned Models*; fine-tuned") == []
