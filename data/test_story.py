"""The story that the course learns from keeps what its page promises."""

import re

import pytest

from course import assets
from course.paths import ROOT

FOLDER = ROOT / "data"


@pytest.fixture(scope="module")
def story() -> str:
    return assets.fetch("short-story").read_text(encoding="utf-8")


def test_the_story_is_of_the_length_that_chapters_plan_with(story):
    assert 3500 <= len(story.split()) <= 5000


def test_the_page_states_the_words_and_bytes_of_the_file(story):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = re.search(
        r"^\| \[half-a-ladder\.txt\].*\| (\d+) \| (\d+) \|", page, re.MULTILINE
    )
    assert row is not None
    words, size = map(int, row.groups())
    assert words == len(story.split())
    assert size == (FOLDER / "half-a-ladder.txt").stat().st_size


def test_the_story_is_plain_text_with_one_paragraph_to_a_line(story):
    assert story.isascii()
    assert "\r" not in story
    assert "\t" not in story
    assert story.endswith(".\n")
    assert not story.endswith("\n\n")
    paragraphs = story.removesuffix("\n").split("\n\n")
    assert all(p and p == p.strip() and "\n" not in p for p in paragraphs)


@pytest.mark.parametrize("mark", ["--", "'", '"', "?", "!", ";", ":", "(", "Mr.", "40"])
def test_the_story_has_the_marks_that_chapter_2_splits_at(story, mark):
    assert mark in story


@pytest.mark.parametrize("phrase", ["Tell your uncle", "at the foot", "tarlings"])
def test_the_story_repeats_what_a_small_model_can_learn(story, phrase):
    assert story.count(phrase) >= 5
