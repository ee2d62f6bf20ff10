"""The page in a real browser, with a model that writes slowly enough to be stopped."""

import json
import runpy
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tiktoken

import real_browser
from gpt_generate import Sampling
from page_models import Shelf
from page_server import running
from small_models import small_configs, small_model
from writer import Token, Writer

FOLDER = Path(__file__).parent
GPT2 = tiktoken.get_encoding("gpt2")
MODEL = small_model(small_configs(context_length=400, vocab_size=50_257)["GPT"])


class Slow(Writer):
    """A writer that takes a hundredth of a second for each step."""

    steps = 0

    def start(self, *arguments, **options):
        def steps():
            for step in super(Slow, self).start(*arguments, **options):
                Slow.steps += 1
                time.sleep(0.01)
                yield step

        return steps()


@pytest.fixture(scope="module")
def address():
    if real_browser.problem():
        pytest.skip(real_browser.problem())
    titles = {"first": "The first model", "second": "The second <b>model</b>"}
    shelf = Shelf(titles, lambda name: Slow(MODEL, GPT2))
    with running(runpy.run_path(str(FOLDER / "app.py"))["make_app"](shelf)) as address:
        yield address


@pytest.fixture(scope="module")
def opened(address):
    with real_browser.page(address) as page:
        page.set_default_timeout(15_000)
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda problem: page.said.append(str(problem)))
        yield page


@pytest.fixture
def page(opened, address):
    """The page as it is opened for the first time."""
    opened.goto(address)
    opened.evaluate("localStorage.clear()")
    opened.goto(address)
    opened.wait_for_selector("#go")
    yield opened
    assert opened.said == []
    hosts = {
        urlsplit(url).netloc for url in opened.asked if not url.startswith("blob:")
    }
    assert hosts == {urlsplit(address).netloc}


def status(page, text):
    page.wait_for_function(
        "text => document.getElementById('status').textContent.includes(text)", arg=text
    )


def settings(page, **numbers):
    page.evaluate("document.getElementById('settings').open = true")
    for name, value in numbers.items():
        page.fill(f"#{name}", str(value))
        page.dispatch_event(f"#{name}", "change")


def answer(page):
    return page.text_content("#answer")


def wanted(text, n, **choice):
    steps = Writer(MODEL, GPT2).start(GPT2.encode(text), n, Sampling(**choice))
    return "".join(step.text for step in steps if isinstance(step, Token))


def test_it_writes_what_the_model_says_token_by_token(page):
    settings(page, temperature=0, max_new_tokens=40)
    page.fill("#text", "One day")
    page.evaluate(
        """() => { window.seen = [];
        const place = document.getElementById('answer');
        new MutationObserver(() => seen.push(place.textContent))
        .observe(place, {childList: true}); }"""
    )
    page.keyboard.press("Control+Enter")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    status(page, "Done")
    assert answer(page) == wanted("One day", 40)
    seen = page.evaluate("seen")
    assert len({text for text in seen if answer(page).startswith(text)}) > 10


def test_it_stops_at_once_and_goes_on_from_where_it_is(page):
    settings(page, max_new_tokens=300)
    page.click("#go")
    page.wait_for_function(
        "() => document.getElementById('answer').textContent.length > 20"
    )
    page.keyboard.press("Escape")
    status(page, "Stopped")
    time.sleep(0.1)
    steps, text = Slow.steps, answer(page)
    time.sleep(0.2)
    assert (Slow.steps, answer(page)) == (steps, text)
    page.click("#take-over")
    assert page.input_value("#text") == "Once upon a time" + text
    settings(page, max_new_tokens=2)
    page.click("#go")
    status(page, "Done")


def test_the_same_seed_writes_the_same_and_another_one_is_drawn_on_request(page):
    settings(page, seed=5, max_new_tokens=12, temperature=1.5)
    page.click("#go")
    status(page, "Done")
    first = answer(page)
    page.click("#again")
    page.wait_for_function("() => document.body.classList.contains('asking') === false")
    assert page.input_value("#seed") == "6"
    assert answer(page) != first
    settings(page, seed=5)
    page.click("#go")
    page.wait_for_function("() => document.body.classList.contains('asking') === false")
    assert answer(page) == first


def test_a_token_tells_what_could_have_come_and_gives_way(page):
    settings(page, temperature=0, max_new_tokens=6)
    page.fill("#text", "One day")
    page.click("#go")
    status(page, "Done")
    page.check("#boxes")
    boxes = page.locator(".token")
    assert boxes.count() == 6
    boxes.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    rows = page.locator(".likely li")
    assert rows.count() == 6
    ids = GPT2.encode("One day")
    steps = [s for s in Writer(MODEL, GPT2).start(ids, 2) if isinstance(s, Token)]
    other = steps[1].likely[3][1]
    rows.nth(3).locator("button").click()
    assert page.input_value("#text") == "One day" + steps[0].text + other
    status(page, "Done")


def test_what_was_there_is_there_after_loading_again(page):
    settings(page, seed=77, max_new_tokens=5)
    page.select_option("#model", "second")
    page.fill("#text", 'A <b>bold</b> & "quoted" text\n')
    page.click("#go")
    status(page, "Done")
    text = answer(page)
    page.reload()
    page.wait_for_selector("#go")
    assert page.input_value("#text") == 'A <b>bold</b> & "quoted" text\n'
    assert answer(page) == text
    assert page.input_value("#seed") == "77"
    assert page.input_value("#model") == "second"
    page.click("#clear")
    assert answer(page) == ""


def test_all_of_it_can_be_saved(page):
    settings(page, max_new_tokens=3)
    page.click("#go")
    status(page, "Done")
    with page.expect_download() as found:
        page.click("#export")
    saved = json.loads(Path(found.value.path()).read_text(encoding="utf-8"))
    assert saved["text"] == "Once upon a time"
    assert "".join(token["text"] for token in saved["tokens"]) == answer(page)
    assert saved["settings"]["max_new_tokens"] == 3


def test_it_speaks_japanese(page):
    place = FOLDER / "page/words.json"
    words = json.loads(place.read_text(encoding="utf-8"))["ja"]
    page.select_option("#language", "ja")
    assert page.get_attribute("html", "lang") == "ja"
    assert page.text_content("h1") == words["title_continue"]
    assert page.text_content("#settings summary") == words["settings"]
    page.reload()
    page.wait_for_selector("#go")
    assert page.get_attribute("html", "lang") == "ja"


def test_all_words_are_there_in_both_languages():
    words = json.loads((FOLDER / "page/words.json").read_text(encoding="utf-8"))
    assert set(words["en"]) == set(words["ja"])
    assert all(text for language in words.values() for text in language.values())


def test_html_in_text_and_answer_is_text(page):
    page.fill("#text", "<img src=x onerror=document.title='gone'><script>1</script>")
    settings(page, max_new_tokens=2)
    page.check("#boxes")
    page.click("#go")
    status(page, "Done")
    assert page.locator("main img, main script").count() == 0
    assert page.title() != "gone"


def test_what_is_refused_is_said_on_the_page(page):
    page.fill("#text", "")
    page.click("#go")
    status(page, "There is no text to go on with: write a word.")
    page.fill("#text", "word " * 900)
    page.click("#go")
    status(page, "the model reads at most 400: shorten it.")
    assert answer(page) == ""
    page.said.clear()  # chromium notes the status 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everybody_can_use_it(page, scheme, width):
    """No violation that axe-core finds; nothing is wider than the screen."""
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    settings(page, max_new_tokens=8)
    page.check("#boxes")
    page.click("#go")
    status(page, "Done")
    page.locator(".token").nth(2).click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
