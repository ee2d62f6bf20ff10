"""The page that sorts messages, in a real browser."""

import json
import runpy
import time
from pathlib import Path

import pytest
import torch

import real_browser
from course.runs import registry
from page_models import Shelf
from page_props import idle, status, words
from page_server import running
from reasons import MOST_WORDS, Reasons
from test_reasons import TEXT, made

FOLDER = Path(__file__).parent
APP = runpy.run_path(str(FOLDER / "app.py"))


class Slow(Reasons):
    """A classifier that takes its time."""

    def shares(self, texts):
        time.sleep(0.25)
        return super().shares(texts)


class Sure(Reasons):
    """A classifier that two words move, and another hardly."""

    MOVES = {"prize": 0.2, "free": -0.1, "the": -0.001}

    def shares(self, texts):
        spam = [0.5 + sum(self.MOVES.get(w, 0) for w in t.split()) for t in texts]
        return torch.tensor([[share, 1 - share] for share in spam])


def load(name):
    found = made(max_length=60)
    found.__class__ = {"one": Reasons, "slow": Slow, "sure": Sure}[name]
    return found


@pytest.fixture(scope="module")
def opened():
    if real_browser.problem():
        pytest.skip(real_browser.problem())
    shelf = Shelf({"one": "The one", "slow": "A slow one", "sure": "A sure one"}, load)
    with running(APP["make_app"](shelf)) as address, real_browser.page(address) as page:
        page.set_default_timeout(10_000)
        page.wait_for_selector("#go")
        yield page


@pytest.fixture
def page(opened):
    opened.select_option("#model", "one")
    opened.select_option("#language", "en")
    return opened


def sort(page, text):
    page.fill("#message", text)
    page.click("#go")
    idle(page)
    page.wait_for_selector("#result table")


def test_it_shows_all_classes_and_each_word(page):
    sort(page, TEXT)
    decision, *parts, _ = made(max_length=60).start(TEXT)
    rows = page.locator(".shares tr")
    assert [row.split()[0] for row in rows.all_inner_texts()] == [*decision.labels]
    assert f"{100 * decision.shares[0]:.0f} %" in rows.nth(0).inner_text()
    marks = page.locator("mark")
    assert marks.count() == len(TEXT.split())
    assert "without You: " in marks.nth(0).get_attribute("title")
    assert "the model read the first 60" in page.text_content("#status")


def test_what_is_refused_and_what_is_markup(page):
    page.fill("#message", " ")
    page.click("#go")
    status(page, "no message")
    sort(page, "<img src=x onerror=alert(1)> <b>prize</b>")
    assert page.locator("#result img, #result b").count() == 0
    sort(page, "Prize!")
    assert "A single word" in page.text_content("#result")


def test_a_message_that_is_refused_has_no_decision_of_another(page):
    """Known mistake: the last one's table stood below it."""
    sort(page, "A prize for you")
    page.fill("#message", " ")
    page.click("#go")
    status(page, "no message")
    assert page.locator("#result table").count() == 0


def test_it_says_how_far_it_is_and_stops(page):
    """Known mistake: until the words came, it said that there was a single one."""
    page.select_option("#model", "slow")
    page.fill("#message", " ".join(f"w{n}" for n in range(40)))
    page.click("#go")
    page.wait_for_selector("#result table")
    assert page.text_content("#status") == "Sorting."
    assert "Now each word is left out once." in page.inner_text("#result")
    page.select_option("#language", "ja")
    assert page.text_content("#status") == words("ja")["writing_classify"]
    page.select_option("#language", "en")
    page.wait_for_selector("mark")
    page.keyboard.press("Escape")
    status(page, "Stopped.")
    tried = page.locator("mark").count()
    assert 0 < tried < 40
    assert f"The first {tried} of 40 words were left out" in page.inner_text("#result")
    page.click("#go")
    page.wait_for_selector("#result table")
    page.keyboard.press("Escape")
    status(page, "Stopped.")
    assert "A single word" not in page.inner_text("#result")


def test_what_breaks_off_before_the_first_word_counts_none(page):
    """Known mistake: "The first 0 of 2 words were left out" stood there."""
    decision = {"kind": "decision", "labels": ["ham", "spam"], "shares": [0.9, 0.1]}
    decision |= {"parts": ["", "A", " ", "prize", ""], "tokens": 2, "read": 2}
    page.route(
        "**/ask",
        lambda route: route.fulfill(
            body=f"data: {json.dumps(decision)}\n\n", content_type="text/event-stream"
        ),
    )
    sort(page, "A prize")
    page.unroute("**/ask")
    said = page.inner_text("#result")
    assert "left out" not in said
    assert words("en")["ended_error"] in said


def test_it_says_what_it_did_in_its_own_words(page):
    sort(page, "A prize for you")
    assert page.text_content("#status") == "Done."
    assert "Each word was left out once." in page.inner_text("#result")


def test_words_that_are_not_tried_are_counted(page):
    sort(page, "a " * 150)
    assert page.locator("mark").count() == MOST_WORDS
    told_of = f"The first {MOST_WORDS} of 150 words were left out"
    assert told_of in page.inner_text("#result")


def test_words_are_those_of_the_server(page):
    """Known mistake: browsers end a word at U+FEFF, and Python does not."""
    sort(page, "\U0001f642 one\ufefftwo three\x1ffour five")
    marks = page.locator("mark")
    titles = [marks.nth(n).get_attribute("title") for n in range(marks.count())]
    told = [title.removeprefix("without ").partition(":")[0] for title in titles]
    assert told == ["\U0001f642", "one\ufefftwo", "three", "four", "five"]


def test_what_moves_next_to_nothing_is_not_underlined(page):
    page.select_option("#model", "sure")
    sort(page, "the prize is free")
    classes = page.locator("mark").evaluate_all("all => all.map(one => one.className)")
    assert classes == ["for", "for", "for", "against"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everybody_can_use_it(page, scheme, width, tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    sort(page, TEXT)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_it_is_kept(page):
    sort(page, "A prize for you")
    page.reload()
    page.wait_for_selector("#result table")
    assert page.input_value("#message") == "A prize for you"
    assert page.locator("mark").count() == 4


def test_the_classifier_is_the_one_that_the_chapter_makes():
    made_by_the_chapter = registry()["ch06-classifier"].files
    assert APP["TRAINED"] in made_by_the_chapter
    with pytest.raises(ValueError, match="train a classifier"):
        APP["classifiers_here"](["nowhere"])
