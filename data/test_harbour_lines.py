"""The parallel sentences keep what their page promises."""

import json
import re

from course import assets
from course.paths import ROOT

PAGE = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
TEXT = assets.fetch("parallel-lines").read_text(encoding="utf-8")
LINES = json.loads(TEXT)


def test_the_page_states_sentences_words_and_bytes():
    row = re.search(r"harbour-lines\.json\) \| (\d+) .*\| (\d+) \| (\d+) \|", PAGE)
    assert row is not None
    words = sum(len(text.split()) for line in LINES for text in line.values())
    assert [*map(int, row.groups())] == [len(LINES), words, len(TEXT.encode())]


def test_each_sentence_stands_on_a_line_in_three_languages():
    assert len(TEXT.splitlines()) == len(LINES) + 2
    for line in LINES:
        assert list(line) == ["en", "de", "ja"]
        assert line["en"].isascii()
        assert re.search(r"[\u3041-\u30ff]", line["ja"])
        assert not re.search(r"[\u3041-\u9fff]", line["de"])
        assert line["de"].endswith(".")
        assert line["ja"].endswith("\u3002")
        assert all(text == text.strip() for text in line.values())


def test_no_sentence_comes_twice():
    for language in ("en", "de", "ja"):
        assert len({line[language] for line in LINES}) == len(LINES)
