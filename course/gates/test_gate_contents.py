"""Fine points of the gates on folders and of the tables made from them."""

from pathlib import Path

import pytest

from course.gates import contents as gate
from course.running import made_parts, statements
from course.testing.tiny_trees import check_gate, every_gate, miniature, notebook

ROOT_FILE = """
title = "A course"
title_ja = "K"
[planned.appendix-A]
title = "PyTorch"
title_ja = "P"
order = 25
[planned.appendix-B]
title = "Reading"
title_ja = "R"
code = false
[planned."ch02/06_swa"]
title = "sliding windows"
title_ja = "S"
[planned."ch02/05_mla"]
title = "not used: the folder is there"
title_ja = "X"
"""
CHAPTER = """
title = "Data"
title_ja = "D"
order = 20
contents = ["ch02.ipynb", "one.py", "two.py", "exercise-solutions.ipynb"]
summaries = ["one.py", "two.py"]
"""
BONUS = """
title = "latent attention"
title_ja = "L"
about = "small caches"
pages = [{file = "more.ipynb", title = "more of it", title_ja = "M"}]
"""
SETUP = 'title = "Set-up"\ntitle_ja = "U"\ncode = false\n'
MAIN = "ch02/01_main-chapter-code"
STATEMENT = notebook(
    "md:### Exercise 2.1 - Windows\n\n*Level 2, 15 minutes.* Write it."
)


def marked(*names: str) -> str:
    return "# A\n" + "".join(
        f"\n<!-- folders: {name} -->\n<!-- /folders -->\n" for name in names
    )


FILES = {
    "folder.toml": ROOT_FILE,
    "README.md": marked("contents", "bonus", "exercises"),
    "README.ja.md": marked("contents", "bonus", "exercises"),
    "setup/folder.toml": SETUP,
    "setup/README.md": "# S\n",
    "ch02/folder.toml": CHAPTER,
    "ch02/README.md": marked("bonus", "exercise-list"),
    "ch02/quiz.md": "<details>1</details>\n<details>2</details>\n",
    f"{MAIN}/ch02.ipynb": STATEMENT,
    f"{MAIN}/one.py": "",
    f"{MAIN}/two.py": "",
    f"{MAIN}/exercise-solutions.ipynb": notebook("# S"),
    "ch02/05_mla/folder.toml": BONUS,
    "ch02/05_mla/README.md": "# L\n",
    "ch02/05_mla/more.ipynb": notebook("x = 1"),
}


@pytest.fixture
def filled(tmp_path):
    """A small tree whose pages have been filled."""
    miniature(tmp_path, FILES)
    made_parts.fill(tmp_path)
    return tmp_path


def lines(root: Path, page: str) -> list[str]:
    return (root / page).read_text(encoding="utf-8").splitlines()


def test_rows_of_the_contents(filled):
    shown = lines(filled, "README.md")
    start = shown.index("| Chapter | Main code | Supplement |")
    assert shown[start + 2 : start + 6] == [
        "| Set-up | - | [`setup/`](setup/README.md) |",
        f"| Ch 2: Data | [`ch02.ipynb`]({MAIN}/ch02.ipynb), [`one.py`]({MAIN}/one.py), "
        f"[`two.py`]({MAIN}/two.py) (summaries), "
        f"[`exercise-solutions.ipynb`]({MAIN}/exercise-solutions.ipynb) "
        "| [`ch02/`](ch02/README.md) |",
        "| Appendix A: PyTorch | in preparation | - |",
        "| Appendix B: Reading | no code | in preparation |",
    ]


def test_bonus_material_with_and_without_link(filled):
    assert (
        "- **Ch 2**: [latent attention](ch02/05_mla/README.md); "
        "[more of it](ch02/05_mla/more.ipynb)"
    ) in lines(filled, "README.md")
    assert "- **Planned**: sliding windows (Ch 2)" in lines(filled, "README.md")
    assert (
        "- **\u7b2c 2 \u7ae0**: [L](ch02/05_mla/README.md)\u3001"
        "[M](ch02/05_mla/more.ipynb)"
    ) in lines(filled, "README.ja.md")
    assert ("- **\u6e96\u5099\u4e2d**: S\uff08\u7b2c 2 \u7ae0\uff09") in lines(
        filled, "README.ja.md"
    )
    assert "| [`05_mla`](05_mla/README.md) | small caches |" in lines(
        filled, "ch02/README.md"
    )


def test_exercises(filled):
    shown = f"| 2 | 1 | [solutions]({MAIN}/exercise-solutions.ipynb) | "
    assert f"{shown}[2 questions](ch02/quiz.md) |" in lines(filled, "README.md")
    inner = MAIN.removeprefix("ch02/")
    assert (
        f"| 2.1 | [Windows]({inner}/ch02.ipynb#Exercise-2.1---Windows) | 2 | 15 "
        f"| [solution]({inner}/exercise-solutions.ipynb#Exercise-2.1---Windows) |"
    ) in lines(filled, "ch02/README.md")


def test_exercises_of_a_notebook_below_its_bonus_folder(tmp_path):
    deeper = {
        "ch02/05_mla/more.ipynb": STATEMENT,
        "ch02/05_mla/part/deep.ipynb": STATEMENT,
        "ch02/05_mla/part/exercise-solutions.ipynb": notebook("# S"),
        f"{MAIN}/part/no.ipynb": STATEMENT,
    }
    miniature(tmp_path, FILES | deeper)
    found = [
        (one.folder, one.place.partition("#")[0], one.solution)
        for one in statements.everywhere(tmp_path)
        if one.folder != "ch02"
    ]
    beside = "ch02/05_mla/part/exercise-solutions.ipynb#Exercise-2.1---Windows"
    assert found == [
        ("ch02/05_mla", "ch02/05_mla/more.ipynb", None),
        ("ch02/05_mla", "ch02/05_mla/part/deep.ipynb", beside),
    ]
    assert len(statements.everywhere(tmp_path)) == 3


def test_a_list_without_plans_has_no_line_for_them(tmp_path):
    without = FILES | {"folder.toml": 'title = "A"\ntitle_ja = "K"\n'}
    miniature(tmp_path, without)
    made_parts.fill(tmp_path)
    assert "Planned" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_how_many_there_are_in_a_sentence(tmp_path):
    mark = "<!-- folders: {0} -->{1}<!-- /folders -->".format
    text = f"{mark('notebooks', '')}, {mark('exercise-count', '')}\n"
    miniature(tmp_path, FILES | {"a.md": text})
    made_parts.fill(tmp_path)
    said = f"{mark('notebooks', 3)}, {mark('exercise-count', 1)}"
    assert lines(tmp_path, "a.md") == [said]


def test_the_reading_order_in_a_sentence(tmp_path):
    page = {"README.md": "Read <!-- folders: order --><!-- /folders -->."}
    miniature(tmp_path, page)
    made_parts.fill(tmp_path)
    assert lines(tmp_path, "README.md") == [
        "Read <!-- folders: order -->1, 2, A, 3, 4, 5, D, 6, E, 7<!-- /folders -->."
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, ""),
        ({"ch02/05_mla/folder.toml": ""}, "ch02/05_mla/README.md:1: has no folder.t"),
        ({"ch02/05_mla/README.md": ""}, "ch02/05_mla/folder.toml:1: has no README.md"),
        ({f"{MAIN}/folder.toml": BONUS}, f"{MAIN}/folder.toml:1: is not read there"),
        ({"ch02/05_mla/x/folder.toml": BONUS}, "x/folder.toml:1: is not read there"),
        ({f"{MAIN}/one.py": ""}, f"names one.py, and there is no {MAIN}/one.py"),
        ({"ch02/folder.toml": CHAPTER + 'apps = ["app"]'}, "apps names app.py, and"),
        ({"ch02/folder.toml": CHAPTER + 'needs = ["ch09"]'}, "needs names ch09, which"),
        ({"ch02/folder.toml": CHAPTER + 'needs = ["appendix-A"]'}, ""),
        ({"ch02/folder.toml": CHAPTER + 'assets = ["x"]'}, "assets names x, which"),
        (
            {"ch02/folder.toml": CHAPTER.replace('es = ["one', 'es = ["three')},
            "summaries names three.py, which contents lacks",
        ),
        (
            {"ch02/05_mla/folder.toml": BONUS.replace("latent", "hidden")},
            "README.md:1: differs from what ledger.csv and the folder.toml of",
        ),
        (
            {"ch02/folder.toml": CHAPTER, f"{MAIN}/two.py": "fetch('story')"},
            "uses story",
        ),
        ({"ch02/05_mla/x.py": 'fetch("story")'}, "ch02/05_mla/x.py:1: uses story, wh"),
        ({"README.ja.md": "# A\n"}, "README.ja.md:1: does not show the folders' bonus"),
        ({"ch02/README.md": "# A\n"}, "ch02/README.md:1: does not show the folders'"),
        ({"ch02/README.md": marked("bonus", "x")}, "has a mark `folders: x`"),
    ],
)
def test_findings(filled, files, message):
    for name in [name for name, text in files.items() if not text]:
        (filled / name).unlink()
    files = {"folder.toml": ROOT_FILE} | {k: v for k, v in files.items() if v}
    check_gate(every_gate(gate), filled, files, message)
