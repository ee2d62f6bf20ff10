"""What folders say of themselves: every field checked, every mistake named."""

from pathlib import Path

import pytest

from course import CourseError, folders
from course.paths import ROOT

CHAPTER = 'title = "Data"\ntitle_ja = "D"\norder = 20\n'
BONUS = 'title = "latent attention"\ntitle_ja = "L"\nabout = "small caches"\n'


def write(root: Path, **texts: str) -> dict[str, folders.Folder]:
    """Write `folder.toml` files (``ch02__05_x`` for ``ch02/05_x``) and read them."""
    for name, text in texts.items():
        place = root / name.replace("__", "/").replace("ROOT", ".")
        place.mkdir(parents=True, exist_ok=True)
        (place / folders.FILE).write_text(text, encoding="utf-8")
    return folders.read_all(root)


def test_the_folders_of_this_course_describe_themselves():
    known = folders.read_all(ROOT)
    assert {"setup", "ch02", "ch05/07_gpt_to_llama"} <= set(known)
    assert known["ch02"].home == "ch02/01_main-chapter-code"
    assert known["ch01"].home == "ch01"
    order = folders.reading_order(known)
    assert [name.removeprefix("appendix-").removeprefix("ch0") for name in order] == (
        ["1", "2", "A", "3", "4", "5", "D", "6", "E", "7"]
    )


def test_fields_of_a_chapter_and_of_its_bonus_folder(tmp_path):
    (tmp_path / "ch02" / folders.MAIN_FOLDER).mkdir(parents=True)
    run = '{script = "a.py", about = "it", files = ["f"], minutes = 2}\n'
    more = 'support = ["argument_checks"]\nmodels = ["m"]\n'
    known = write(
        tmp_path,
        ch02=f"{CHAPTER}{more}makes.ch02-x = {run}",
        ch02__05_mla=BONUS + 'apps = ["app"]\nseconds = {"a.ipynb" = 7}\n',
    )
    assert list(known) == ["ch02", "ch02/05_mla"]
    chapter, bonus = known.values()
    assert (chapter.is_chapter, chapter.is_bonus) == (True, False)
    assert (bonus.is_chapter, bonus.is_bonus, bonus.parent) == (False, True, "ch02")
    assert bonus.seconds == {"a.ipynb": 7}
    main = f"ch02/{folders.MAIN_FOLDER}"
    assert folders.files_of(known, "support") == {f"{main}/argument_checks.py"}
    assert folders.files_of(known, "apps") == {"ch02/05_mla/app.py"}
    run = folders.Run(f"{main}/a.py", "it", ("f",), 2)
    assert folders.runs(known) == {"ch02-x": run}
    assert folders.models(known) == ("m",)


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("ch02/a.ipynb", "ch02"),
        (f"ch02/{folders.MAIN_FOLDER}/a.ipynb", "ch02"),
        ("ch02/05_mla/a.ipynb", "ch02/05_mla"),
        ("ch02/06_swa/a.ipynb", "ch02"),
        ("ch03/a.ipynb", None),
    ],
)
def test_the_innermost_folder_speaks_for_a_file(tmp_path, path, owner):
    known = write(tmp_path, ROOT=CHAPTER, ch02=CHAPTER, ch02__05_mla=BONUS)
    found = folders.owner(path, known)
    assert (found and found.path) == owner


def test_a_plan_counts_until_its_folder_is_there(tmp_path):
    plan = 'planned.ch03 = {title = "Attention", title_ja = "A", order = 10}\n'
    known = write(tmp_path, ROOT=CHAPTER + plan, ch02=CHAPTER)
    assert folders.reading_order(known) == ["ch03", "ch02"]
    assert list(folders.plans(known)) == ["ch03"]
    known = write(tmp_path, ch03=CHAPTER.replace("20", "30"))
    assert folders.reading_order(known) == ["ch02", "ch03"]
    assert not folders.plans(known)


def test_only_folders_of_the_course_are_read(tmp_path):
    known = write(tmp_path, runs__x="?", my_notes="?", ch02__05_x__results="?")
    assert not known


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ch02", "title = ", r"ch02/folder\.toml: cannot be read: .* Correct it"),
        ("ch02", 'title = "x"\n', "the field 'title_ja' is missing"),
        ("ch02", CHAPTER + 'suport = ["a"]', "no field 'suport'. Did you mean 'supp"),
        ("ch02", CHAPTER + "code = 1", "'code': 1 stands where true or false is"),
        ("ch02", CHAPTER + 'about = " "', "'about': ' ' stands where a text is"),
        ("ch02", CHAPTER + 'needs = "a"', "'needs': 'a' stands where a list is"),
        ("ch02", CHAPTER + "needs = [1]", "'needs': 1 stands where a text is"),
        ("ch02", CHAPTER + "memory_mb = 0", "'memory_mb': 0 stands where a number a"),
        ("ch02", CHAPTER + "seconds = 1", "'seconds': 1 stands where a table is"),
        ("ch02", CHAPTER + 'seconds.a = "b"', "'seconds': 'b' stands where a numbe"),
        ("ch02", CHAPTER + "makes.x = {}", "the field 'script' is missing"),
        ("ch02", CHAPTER + 'pages = [{file = "a"}]', "the field 'title' is missing"),
        ("ch02", CHAPTER + "planned.ch03 = {}", "the field 'title' is missing"),
        (
            "ch02",
            CHAPTER + 'planned.ch03 = {title = "a", title_ja = "b"}',
            "'planned' belongs in the folder.toml at the root",
        ),
        ("ch02", CHAPTER + 'packages = ["a"]', "'packages' belongs in the folder.tom"),
        ("ch02", CHAPTER + 'address = "https://a.b/c"', "'address' belongs in the"),
        ("ROOT", CHAPTER + 'address = "a.b/c"', "'a.b/c' stands where an address"),
        ("ROOT", CHAPTER + 'address = "https://a.b/c/"', "without a last slash, is"),
        ("ch02", CHAPTER.replace("order = 20\n", ""), "the field 'order' is missing"),
        ("ch02__05_x", 'title = "a"\ntitle_ja = "b"', "the field 'about' is missing"),
    ],
)
def test_mistakes_are_named(tmp_path, name, text, message):
    with pytest.raises(CourseError, match=message):
        write(tmp_path, **{name: text})


def test_chapters_without_code_and_pages_of_the_setup_need_less(tmp_path):
    plain = 'title = "a"\ntitle_ja = "b"\n'
    known = write(
        tmp_path, **{"appendix-B": plain + "code = false", "setup__01_x": plain}
    )
    assert folders.reading_order(known) == []
