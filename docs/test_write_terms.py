"""The words of the field: each in bold once, in a sentence that explains it."""

import pytest
import write_terms as script

from course.testing.tiny_trees import miniature, notebook

LISTED = [(path, term) for path, words in script.terms().items() for term in words]


@pytest.fixture(scope="module")
def explained():
    return script.explained()


@pytest.mark.parametrize(("path", "term"), LISTED, ids=[term for _, term in LISTED])
def test_a_word_is_in_bold_once_where_it_is_explained(path, term, explained):
    found = explained[term]
    assert [place.path for place in found] == [path], found
    (place,) = found
    assert len(place.sentence.split()) >= len(term.split()) + 5, (
        f"no explanation: {place.sentence}"
    )


def test_no_word_is_listed_twice():
    words = [term.lower() for _, term in LISTED]
    assert len(words) == len(set(words))


def test_the_page_is_what_the_script_writes():
    text = script.PAGE.read_text(encoding="utf-8")
    assert text == script.written(), "run `python docs/write_terms.py`"


@pytest.fixture
def tree(tmp_path):
    cells = [
        "# Chapter 9: Nine\n\nA title.",
        "## 9.1 First\n\nCut. A unit\nis called a **token**, see\n[here](b.md).",
        "x = 1",
        "## 9.2 Next\n\nA **Token** again, and `2**8` with `f(**g)`.\n\n"
        "- 1\n- its number, an **id**",
    ]
    listed = '"ch09/ch09.ipynb" = ["token", "id", "window"]\n'
    files = {"ch09/ch09.ipynb": notebook(*cells), "docs/terms.toml": listed}
    miniature(tmp_path, files)
    return tmp_path


def test_a_sentence_is_found_with_its_heading(tree):
    found = script.explained(tree)
    assert [place.sentence for place in found["token"]] == [
        "A unit is called a **token**, see [here](b.md).",
        "A **Token** again, and `2**8` with `f(**g)`.",
    ]
    assert found["id"][0].heading == "9.2 Next"
    assert found["window"] == []


def test_the_page_links_each_sentence(tree):
    first, second = (
        f"[{title}](../ch09/ch09.ipynb#{title.replace(' ', '-')})\n"
        for title in ("9.1 First", "9.2 Next")
    )
    assert script.written(tree).endswith(
        f"- **id**: its number, an id {second}"
        f"- **token**: A unit is called a token, see here. {first}"
        f"- **token**: A Token again, and `2**8` with `f(**g)`. {second}"
    )


def test_the_page_is_written(tree, monkeypatch):
    monkeypatch.setattr(script, "PAGE", tree / "docs" / "terms.md")
    monkeypatch.setattr(script, "written", lambda: "new\n")
    script.main()
    assert script.PAGE.read_text(encoding="utf-8") == "new\n"
