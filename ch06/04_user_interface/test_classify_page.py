"""The page that sorts messages, in a real browser."""

import runpy
from pathlib import Path

import pytest

import real_browser
from course.runs import registry
from page_models import Shelf
from page_server import running
from test_reasons import TEXT, made

FOLDER = Path(__file__).parent
APP = runpy.run_path(str(FOLDER / "app.py"))


@pytest.fixture(scope="module")
def page():
    if real_browser.problem():
        pytest.skip(real_browser.problem())
    shelf = Shelf({"one": "The one"}, lambda name: made(max_length=60))
    with running(APP["make_app"](shelf)) as address, real_browser.page(address) as page:
        page.set_default_timeout(10_000)
        page.wait_for_selector("#go")
        yield page


def sort(page, text):
    page.fill("#message", text)
    page.click("#go")
    page.wait_for_function(
        "() => !document.body.classList.contains('asking')"
        " && document.querySelector('#result table')"
    )


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
    page.wait_for_function(
        "() => document.getElementById('status').textContent.includes('no message')"
    )
    sort(page, "<img src=x onerror=alert(1)> <b>prize</b>")
    assert page.locator("#result img, #result b").count() == 0
    sort(page, "Prize!")
    assert "A single word" in page.text_content("#result")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everybody_can_use_it(page, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    sort(page, TEXT)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=f"/tmp/uc_{scheme}_{width}.png", full_page=True)


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
