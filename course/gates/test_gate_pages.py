"""Fine points of the gates on pages: links, anchors, commands, languages."""

import pytest

from course.gates import pages
from course.markdown import Page, github_slug
from course.testing.tiny_trees import check_gate, notebook

# ---------------------------------------------------------------------------- markdown


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("Start here", "start-here"),
        ("What it is, and `make_it()` (2 steps)", "what-it-is-and-make_it-2-steps"),
        ("**Bold** and _thin_ [link](x.md)", "bold-and-thin-link"),
        ("\u76ee\u6b21", "\u76ee\u6b21"),
        ("\u59cb\u3081\u308b: 2\u3064\u306e\u30b3\u30de\u30f3\u30c9\u3002",
         "\u59cb\u3081\u308b-2\u3064\u306e\u30b3\u30de\u30f3\u30c9"),
        ("\u8aad\u3080\u30fb\u52d5\u304b\u3059", "\u8aad\u3080\u52d5\u304b\u3059"),
        ("A \U0001f600 B", "a--b"),
        ("C & D", "c--d"),
        ("\u00bd and \u00e9", "-and-\u00e9"),
    ],
)  # fmt: skip
def test_github_slug(heading, slug):
    assert github_slug(heading) == slug


def test_links_of_a_page():
    text = (
        "[a](a.md) ![b](b.png) [![c](c.png)](d.md) `[e](e.md)` <!-- [f](f.md) -->\n"
        "```\n[g](g.md)\n```\n[h]: h.md\n<a href='i.md'>i</a> [j](<j k.md>)\n"
        "[l](l_(m).md) [n](n.md 'title') \\[o](o.md) [^1]: p.md\n"
    )
    links = Page("x.md", text).links
    targets = ["a.md", "b.png", "d.md", "c.png", "h.md", "i.md", "j k.md"]
    assert [link.target for link in links] == [*targets, "l_(m).md", "n.md"]
    assert [link.target for link in links if link.image] == ["b.png", "c.png"]


def test_headings_of_a_page():
    page = Page("x.md", "# A #\n\n```\n# not\n```\n<!--\n# nor\n-->\n## B\n")
    assert [(h.level, h.text) for h in page.headings] == [(1, "A"), (2, "B")]
    again = Page("x.md", "# A\n# A\n# A\n")
    assert list(again.anchors) == ["a", "a-1", "a-2"]


# ------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[a](docs/a.md) [a](docs) [a](docs/) [a](./docs/../docs/a.md)", 0),
        ("[a](docs/b.md)", 1),
        ("[a](Docs/a.md)", 1),
        ("[a](docs/two%20words.md)", 0),
        ("[a](https://x.org) [a](mailto:a@x.org) [a](#top)", 0),
        ("[a](/docs/a.md)", 1),
        ("[a](../outside.md)", 1),
        ("![a](docs/a.png)", 1),
        ("[a]: docs/b.md", 1),
    ],
)
def test_links(tmp_path, text, count):
    files = {"docs/a.md": "", "docs/two words.md": "", "README.md": f"# Top\n{text}\n"}
    check_gate(pages.links_lead_somewhere, tmp_path, files, count)


def test_links_in_notebooks(tmp_path):
    files = {"ch02/a.ipynb": notebook("# T", "md:[a](b.py) [b](c.py)"), "ch02/b.py": ""}
    words = "ch02/a.ipynb:cell 2: the link c.py leads nowhere"
    check_gate(pages.links_lead_somewhere, tmp_path, files, words)


@pytest.mark.parametrize(
    ("link", "good"),
    [
        ("#two-words", True),
        ("#Two-words", False),
        ("#\u76ee\u6b21", True),
        ("#%E7%9B%AE%E6%AC%A1", True),
        ("#nowhere", False),
        ("a.ipynb#Two-Words", True),
        ("a.ipynb#two-words", False),
        ("b.py#L2", True),
        ("b.py#L9", False),
    ],
)
def test_anchors(tmp_path, link, good):
    files = {
        "README.md": f"# Two words\n# \u76ee\u6b21\n[a]({link})\n",
        "a.ipynb": notebook("# T", "## Two Words"),
        "b.py": "1\n2\n",
    }
    check_gate(pages.anchors_exist, tmp_path, files, int(not good))


# ---------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("python3 -m course lab", ""),
        ("py -m course test ch02 --no-notebooks", ""),
        ("COURSE_PRESET=full python3 -m course run ch02  # minutes", ""),
        ("cd x && python PATH/course doctor", ""),
        ("python3 -m course run FILE.py --any thing", ""),
        ("python3 -m course lab --port 9999", ""),
        ("python3 -m course copy dataloader my-folder", ""),
        ("python3 -m course --help", ""),
        ("python3 -m course", ""),
        ("python3 -m pip install course", ""),
        ("python3 -m course labb", "there is no command 'labb'"),
        ("python3 -m course test --notebooks", "does not know --notebooks"),
        ("python3 -m course lab --no-browzer", "does not know --no-browzer"),
        ("python3 -m course lab --preset huge", "invalid choice: 'huge'"),
        ("python3 -m course copy dataloader", "FOLDER"),
        ("python3 -m course run ch99", "there is no ch99"),
        ("python3 -m course test ch02/gone.py", "there is no ch02/gone.py"),
    ],
)
@pytest.mark.parametrize("form", ["```\n{}\n```\n", "Run `{}` now.\n"])
def test_commands(tmp_path, line, problem, form):
    files = {
        "README.md": form.format(line),
        "ch02/01_main-chapter-code/dataloader.py": "",
    }
    check_gate(pages.commands_parse, tmp_path, files, problem)


def test_a_command_may_be_broken_over_two_lines(tmp_path):
    files = {"README.md": "Run `python3\n-m course labb` now.\n"}
    check_gate(pages.commands_parse, tmp_path, files, "README.md:1:")


def test_settings(tmp_path):
    names = "`COURSE_ONE`, COURSE_TWO"
    files = {"course/a.py": 'get("COURSE_ONE")', "README.md": names}
    check_gate(pages.settings_exist, tmp_path, files, "names COURSE_TWO")


# --------------------------------------------------------------------------- languages

PAIR = (
    "# A\n[ja](README.ja.md)\n## B\n[x](a.md) [y](#b) 3.14\n`python3 -m course lab`\n"
    "| a | b |\n|---|---|\n| [x](a.md) | y |\n![m](map.png)\n"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# A", "# \u3042", ""),
        ("| [x](a.md) | y |", "| x | [y](a.md) |", ""),
        ("| [x](a.md) | y |\n", "", "rows of tables 1:0 2:2 where README.md has 1:0"),
        ("[x](a.md) [y]", "[y]", "links a.md 1 times, README.md 2"),
        ("## B", "### B", "headings and rows of tables 1:0 3:3"),
        ("course lab", "course test", "shows `course test` 1 times"),
        ("3.14", "3.15", "do not both have the number 3.14"),
        ("(#b)", "(#a)", "links heading"),
        ("(map.png)", "(map.ja.png)", ""),
        ("(map.png)", "(map.ja.svg)", "links map.ja.svg 1 times, README.md 0"),
        ("(map.png)", "(other.ja.png)", "links other.png 1 times, README.md 0"),
    ],
)
def test_languages(tmp_path, old, new, message):
    japanese = PAIR.replace("[ja](README.ja.md)", "[en](README.md)")
    files = {"README.md": PAIR, "README.ja.md": japanese.replace(old, new)}
    check_gate(pages.languages_agree, tmp_path, files, message)
