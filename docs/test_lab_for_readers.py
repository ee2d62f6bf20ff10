"""What the course adds to JupyterLab for readers, in a real browser.

Every figure's description can be heard and seen, a figure is no white slab on a dark
page, and a link leads to the section that it names.
"""

import json

import make_screenshots as shots
import pytest

import real_browser
from course import paths
from course.testing.tree_copies import copy_tree

CHAPTER = "ch02/01_main-chapter-code/ch02.ipynb"
IMAGES = ".jp-NotebookPanel .jp-RenderedImage img"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(page, function that opens a file) of a JupyterLab as a reader starts it."""
    if real_browser.problem():
        pytest.skip(real_browser.problem())
    place = tmp_path_factory.mktemp("lab")
    with shots.lab(copy_tree(place), place) as address:
        front, _, token = address.partition("?token=")
        with real_browser.page(address) as page:

            def open_file(name):
                page.goto(
                    f"{front.partition('/lab')[0]}/lab/tree/{name}?token={token}&reset"
                )

            yield page, open_file


@pytest.fixture(scope="module")
def chapter(lab):
    """(page, the alt texts that the notebook stores), with the chapter open."""
    page, open_file = lab
    notebook = json.loads((paths.ROOT / CHAPTER).read_text(encoding="utf-8"))
    stored = [
        output["metadata"]["image/png"]["alt"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]
    open_file(CHAPTER)
    count = f"document.querySelectorAll('{IMAGES}').length"
    page.wait_for_function(f"{count} == {len(stored)}")
    return page, stored


def test_every_figure_of_a_chapter_has_its_alt_text(chapter):
    page, stored = chapter
    assert len(stored) > 5
    found = page.evaluate(f"[...document.querySelectorAll('{IMAGES}')].map(i => i.alt)")
    assert found == stored


def test_the_description_unfolds_below_the_figure(chapter):
    page, stored = chapter
    figure = page.locator(".jp-RenderedImage").first
    figure.scroll_into_view_if_needed()
    text = figure.locator("details p")
    assert not text.is_visible()
    figure.locator("summary").focus()
    page.keyboard.press("Enter")
    text.wait_for(state="visible")
    assert text.inner_text() == stored[0]


def test_a_figure_is_dimmed_on_a_dark_page_only(chapter):
    page, _ = chapter
    look = f"getComputedStyle(document.querySelector('{IMAGES}')).filter"
    assert page.evaluate(look) == "none"
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    assert "brightness" in page.evaluate(look)
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")


def top_of(page, heading):
    """How far below the top of the window a heading begins, once it stays there."""
    script = """heading => {
        const all = [...document.querySelectorAll("h1, h2, h3")];
        const one = all.find(e => e.offsetParent && e.textContent.startsWith(heading));
        return one ? one.getBoundingClientRect().top : 1e6;
    }"""
    page.wait_for_function(f"heading => ({script})(heading) < 400", arg=heading)
    page.wait_for_timeout(1500)
    return page.evaluate(script, heading)


def test_a_link_within_the_first_page_leads_to_its_section(lab):
    page, open_file = lab
    open_file("README.md")
    link = page.locator(".jp-MarkdownViewer a[href='#start']").first
    link.click()
    assert 0 < top_of(page, "Start") < 400


def test_read_again_opens_the_chapter_at_the_section(lab):
    """At the first click, with the notebook not yet open."""
    page, open_file = lab
    open_file("ch01/quiz.md")
    last = page.locator(".jp-MarkdownViewer details").last
    last.locator("summary").click()
    link = last.locator("a").last
    number = link.inner_text()
    link.click()
    assert 0 < top_of(page, number) < 400
