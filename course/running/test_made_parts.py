"""Parts that depend on the course's address, and numbers from tables of results."""

import pytest

from course import CourseError, paths
from course.gates import page_commands
from course.markdown import Page
from course.running import addresses, made_parts
from course.testing.tiny_trees import miniature

ADDRESS = "https://github.com/somebody/gpt-by-hand"
ROOT_FILE = 'title = "A"\ntitle_ja = "K"\n'
TABLE = "method,accuracy,messages\nwords,86.93,895\nall,91.60,895\n"


def filled(root, text, address="", page="setup/cloud.md"):
    """A page of a small course, filled."""
    known = ROOT_FILE + (f'address = "{address}"\n' if address else "")
    miniature(root, {"folder.toml": known, page: text, "r/a.csv": TABLE})
    made_parts.fill(root)
    return (root / page).read_text(encoding="utf-8")


def mark(kind, name):
    return f"<!-- {kind}: {name} --><!-- /{kind} -->"


@pytest.mark.parametrize("name", ["clone", "services", "notebook", "report"])
@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_a_course_without_an_address_shows_no_link_that_needs_one(tmp_path, name, page):
    if page == "README.ja.md" and name in ("services", "notebook"):
        pytest.skip("this page has no such part")
    text = filled(tmp_path, mark("address", name), page=page)
    assert "http" not in text
    assert "OWNER" not in text
    assert "badges" not in text
    assert len(text) > len(mark("address", name)) + 5


def test_with_an_address_the_first_command_fetches_the_course(tmp_path):
    text = filled(tmp_path, mark("address", "clone"), ADDRESS, page="README.md")
    (block,) = page_commands.blocks(Page("README.md", text))
    assert block.code.splitlines() == [
        f"git clone {ADDRESS} gpt-by-hand",
        "cd gpt-by-hand",
        "python3 -m course lab",
    ]
    assert block.reason  # it is not run by the tests, which have no network


def test_with_an_address_every_service_opens_the_course(tmp_path):
    text = filled(tmp_path, mark("address", "services"), ADDRESS)
    links = list(Page("setup/cloud.md", text).links)
    pictures = [link for link in links if link.target.endswith(".svg")]
    opened = [link.target for link in links if link not in pictures]
    assert len(opened) == len(pictures) == len(addresses.OPENS)
    assert all("somebody/gpt-by-hand" in target for target in opened)
    for picture in pictures:
        assert (paths.ROOT / "setup" / picture.target).is_file()
    assert f"{ADDRESS}/issues" in filled(tmp_path, mark("address", "report"), ADDRESS)
    assert f"!git clone {ADDRESS}" in filled(
        tmp_path, mark("address", "notebook"), ADDRESS
    )


def test_services_that_open_github_s_addresses_alone_are_not_given_others(tmp_path):
    text = filled(tmp_path, mark("address", "services"), "https://example.org/a/b")
    assert "http" not in text


@pytest.mark.parametrize(
    ("name", "number"), [("accuracy, all", "91.6"), ("messages, words", "895")]
)
def test_a_measured_number_is_taken_from_its_table(tmp_path, name, number):
    text = filled(tmp_path, mark("result", f"r/a.csv, {name}"))
    assert f"-->{number}<!--" in text
    assert filled(tmp_path, text.replace(number, "99.9")) == text


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("address", "house", "has a mark `address: house`; the names are clone, serv"),
        ("result", "r/b.csv, accuracy, all", "but there is no r/b.csv"),
        ("result", "r/a.csv, accuracy, 895", "r/a.csv has 2 rows with '895', and ne"),
        ("result", "r/a.csv, accuracy, none", "has 0 rows with 'none'"),
        ("result", "r/a.csv, colour, all", "with the column 'colour'"),
        ("result", "r/a.csv", "has 0 rows with '', and needs one"),
    ],
)
def test_marks_that_name_nothing_are_told(tmp_path, kind, name, message):
    with pytest.raises(CourseError, match=message):
        filled(tmp_path, mark(kind, name))
