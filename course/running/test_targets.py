"""What a reader names, found: chapters, folders and files."""

from pathlib import Path

import pytest

from course import CourseError, paths
from course.running import targets


def test_a_target_counts_from_here_first_then_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert targets.find("ch02") == paths.ROOT / "ch02"
    (tmp_path / "ch02").mkdir()
    assert targets.find("ch02") == (tmp_path / "ch02").resolve()


def test_the_main_notebook_of_a_folder(tmp_path):
    chapter = tmp_path / "ch08"
    code = chapter / "01_main-chapter-code"
    code.mkdir(parents=True)
    for name in ("exercise-solutions", "part", "part.ja"):
        (code / f"{name}.ipynb").touch()
    assert targets.main_notebook(chapter) == code / "part.ipynb"
    (code / "second.ipynb").touch()
    with pytest.raises(
        CourseError, match="has several notebooks; name one: .*part.ipy"
    ):
        targets.main_notebook(chapter)
    (code / "ch08.ipynb").touch()
    assert targets.main_notebook(chapter) == code / "ch08.ipynb"


def test_notebooks_below_targets_come_once_and_in_order():
    chapter = paths.ROOT / "ch02"
    main = chapter / "01_main-chapter-code" / "ch02.ipynb"
    found = targets.below([main, chapter])
    assert found == sorted(set(found))
    assert main in found
    assert all(file.suffix == ".ipynb" for file in found)
    with pytest.raises(CourseError, match=r"no notebook in data\. Name a chapter"):
        targets.all_notebooks(["data"])


def test_places_as_they_are_typed_hold_the_same_notebooks(monkeypatch):
    """Compared with the tree's absolute paths, a relative one would hold none."""
    whole = targets.below([paths.ROOT / "ch02"])
    monkeypatch.chdir(paths.ROOT)
    assert targets.below([Path("ch02")]) == whole != []
    monkeypatch.chdir(paths.ROOT / "ch02")
    assert targets.below([Path("01_main-chapter-code")]) == [
        file for file in whole if file.parent.name == "01_main-chapter-code"
    ]
    with pytest.raises(CourseError, match="no chapter, folder or file called"):
        targets.below([Path("ch99")])
