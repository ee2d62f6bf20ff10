"""The page in a real browser, with a model that writes slowly enough to be stopped."""

import json
import runpy
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tiktoken

import page_server
import real_browser
from gpt_generate import Sampling
from page_models import Shelf
from page_props import (
    Slow,
    another_tab,
    focused,
    forget,
    idle,
    put_back,
    somebody_before,
    status,
    words,
)
from page_server import running
from small_models import small_configs, small_model
from writer import Token, Writer

FOLDER = Path(__file__).parent
GPT2 = tiktoken.get_encoding("gpt2")
JA, EN = words("ja"), words("en")
MODEL = small_model(small_configs(context_length=400, vocab_size=50_257)["GPT"])


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
    forget(opened)
    opened.goto(address)
    opened.wait_for_selector("#go")
    yield opened
    assert opened.said == []
    hosts = {
        urlsplit(url).netloc for url in opened.asked if not url.startswith("blob:")
    }
    assert hosts == {urlsplit(address).netloc}


def settings(page, **numbers):
    page.evaluate("document.getElementById('settings').open = true")
    for name, value in numbers.items():
        page.fill(f"#{name}", str(value))
        page.dispatch_event(f"#{name}", "change")


def stored(page):
    return json.loads(page.evaluate("localStorage.getItem('gpt-by-hand continue')"))


def begins(page, letters=20):
    page.wait_for_function(
        "least => document.getElementById('answer').textContent.length > least",
        arg=letters,
    )


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
    begins(page)
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
    idle(page)
    assert page.input_value("#seed") == "6"
    assert answer(page) != first
    settings(page, seed=5)
    page.click("#go")
    idle(page)
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
    steps = [s for s in Writer(MODEL, GPT2).start(ids, 2) if token(s)]
    other = steps[1].likely[3][0]
    assert page.locator(".likely [aria-current=true]").count() == 1
    assert page.locator("[aria-current=true]").text_content() == shown(steps[1].alone)
    rows.nth(3).locator("button").focus()
    page.keyboard.press("Enter")
    status(page, "Done")
    assert page.input_value("#text") == "One day"
    begun = [steps[0].id, other]
    goes_on = [s for s in Writer(MODEL, GPT2).start([*ids, *begun], 6) if token(s)]
    tokens = stored(page)["tokens"]
    assert [token["id"] for token in tokens] == [*begun, *(s.id for s in goes_on)]
    assert tokens[1]["probability"] == steps[1].likely[3][2]
    assert (
        page.locator(".token").nth(1).evaluate("box => box === document.activeElement")
    )


def token(step):
    return isinstance(step, Token)


def shown(text):
    return text.replace("\n", "\u23ce").replace(" ", "\u2423") or "\u2205"


def test_a_text_that_is_typed_is_not_lost(page):
    """Known mistake: other settings or another language brought back the first text."""
    page.fill("#text", "My own long draft")
    page.check("#boxes")
    settings(page, seed=9)
    page.click("#usual")
    assert page.input_value("#seed") == "123"
    page.select_option("#language", "ja")
    assert page.input_value("#text") == "My own long draft"
    assert page.is_checked("#boxes")
    page.reload()
    page.wait_for_selector("#go")
    assert page.input_value("#text") == "My own long draft"
    assert page.is_checked("#boxes")  # known mistake: not after loading again
    page.click("#clear")
    assert page.is_checked("#boxes")


def test_what_is_there_when_the_page_is_left_in_the_middle_stays(page):
    """Known mistake: text and answer were kept when the answer had ended."""
    settings(page, temperature=0, max_new_tokens=300)
    page.fill("#text", "One day")
    page.click("#go")
    begins(page)
    page.reload()
    page.wait_for_selector("#go")
    assert page.input_value("#text") == "One day"
    assert len(answer(page)) > 20
    assert wanted("One day", 300).startswith(answer(page))


def test_tabs_keep_each_their_own_text(page):
    """Known mistake: the last one to press a key overwrote what the other had."""
    other = another_tab(page)
    page.fill("#text", "A long text")
    other.fill("#text", "y")
    kept = "localStorage.getItem('gpt-by-hand continue')?.includes('\"y\"')"
    other.wait_for_function(f"() => {kept}")
    for tab, text in ((page, "A long text"), (other, "y")):
        tab.reload()
        tab.wait_for_selector("#go")
        assert tab.input_value("#text") == text
    other.close()


def test_an_answer_that_is_asked_again_is_kept_until_something_came(page, address):
    """Known mistake: it was gone if the browser was killed in the meantime."""
    settings(page, max_new_tokens=5)
    page.click("#go")
    status(page, "Done")
    before = answer(page)
    with somebody_before(address, text="x", max_new_tokens=300):
        page.click("#again")
        status(page, "In line")
        page.press("#text", "Control+Enter")  # a second one takes its place
        status(page, "In line")
        kept = json.dumps(stored(page))
        page.keyboard.press("Escape")
        status(page, "Stopped.")
    assert answer(page) == before
    put_back(page, "gpt-by-hand continue", kept)
    page.wait_for_selector("#go")
    assert answer(page) == before


HALF = [  # of a character, at the end of what may be written
    {"kind": "token", "id": 3, "text": "so", "alone": "so", "probability": 0.5},
    {"kind": "token", "id": 162, "text": "", "alone": "\ufffd", "probability": 0.5},
    {"kind": "end", "text": "\ufffd", "reason": "length"},
]


def test_half_a_character_is_shown_and_goes_into_no_text(page):
    """Known mistake: U+FFFD went along, and the model went on behind it."""
    body = "".join(f"data: {json.dumps({**one, 'likely': []})}\n\n" for one in HALF)
    page.route(
        "**/ask",
        lambda route: route.fulfill(body=body, content_type="text/event-stream"),
    )
    page.fill("#text", "x")
    page.click("#go")
    status(page, "Done")
    page.unroute("**/ask")
    assert answer(page) == "so\ufffd"
    page.evaluate(
        """() => Object.defineProperty(navigator, 'clipboard', {value: {
        writeText: async text => { window.copied = text; }}})"""
    )
    page.click("#copy")
    status(page, "Copied.")
    assert page.evaluate("copied") == "xso"
    page.click("#take-over")
    assert page.input_value("#text") == "xso"
    assert stored(page)["text"] == "xso"


def test_adding_to_the_text_ends_an_answer(page):
    """Known mistake: the answer stayed marked as busy."""
    settings(page, max_new_tokens=300)
    page.click("#go")
    begins(page)
    page.check("#boxes")
    page.locator(".token").nth(1).click()
    page.locator(".likely li button").nth(2).click()
    page.click("#take-over")
    idle(page)
    assert page.get_attribute("#answer", "aria-busy") is None
    assert answer(page) == ""


def test_another_language_leaves_an_answer_as_it_is(page):
    settings(page, temperature=0, max_new_tokens=60)
    page.fill("#text", "One day")
    page.click("#go")
    begins(page)
    page.select_option("#language", "ja")
    assert page.text_content("#status") == JA["writing"]
    status(page, JA["ended_length"])
    assert answer(page) == wanted("One day", 60)
    page.select_option("#language", "en")
    assert page.text_content("#status") == EN["ended_length"]


def test_an_answer_that_does_not_come_takes_nothing_away(page):
    settings(page, max_new_tokens=5)
    page.click("#go")
    status(page, "Done")
    before = answer(page)
    page.route("**/ask", lambda route: route.abort())
    page.click("#again")
    status(page, "does not answer")
    assert answer(page) == before
    page.check("#boxes")
    page.locator(".token").nth(1).click()
    page.locator(".likely li button").nth(2).click()
    idle(page)
    page.uncheck("#boxes")
    assert answer(page) == before
    page.unroute("**/ask")
    page.said.clear()  # chromium notes what was not answered


def test_settings_between_the_steps_of_a_spinner_are_taken(page):
    """Known mistake: 0.75 and 0.92 were put back."""
    settings(page, temperature=0.75, top_p=0.92, top_k=5000)
    assert page.text_content("#status") == ""
    settings(page, top_p=0.01)
    kept = stored(page)["settings"]
    assert (kept["temperature"], kept["top_p"], kept["top_k"]) == (0.75, 0.01, 5000)
    page.press("#temperature", "ArrowUp")
    assert page.input_value("#temperature") == "0.8"
    settings(page, temperature=2.1)
    assert page.text_content("#status") == "Temperature must be from 0 to 2."
    settings(page, top_k=1.5)
    status(page, "Top-k must be a whole number from 0 to 1,000,000.")
    assert page.input_value("#top_k") == "5000"


def test_who_has_waited_is_told_when_it_is_written(page, address):
    """Known mistake: "In line: 1 before you" stood there until the end."""
    settings(page, max_new_tokens=300)
    with somebody_before(address, text="x", max_new_tokens=300):
        page.click("#go")
        status(page, "In line: 1 before you.")
    begins(page)
    assert page.text_content("#status") == "Writing."
    page.press("#text", "Control+Enter")  # the one before has nothing more to say
    begins(page)
    page.wait_for_timeout(100)
    assert page.text_content("#status") == "Writing."
    page.keyboard.press("Escape")
    status(page, "Stopped.")


def test_the_keyboard_stays_where_it_can_go_on(page):
    """Known mistake: the button that was pressed went, and the focus to nowhere."""
    settings(page, max_new_tokens=300)
    page.focus("#go")
    page.keyboard.press("Enter")
    begins(page)
    assert focused(page) == "stop"
    page.keyboard.press("Enter")
    status(page, "Stopped.")
    assert focused(page) == "go"


def test_a_token_stays_open_while_more_come(page):
    settings(page, temperature=0, max_new_tokens=60)
    page.check("#boxes")
    page.click("#go")
    page.wait_for_function("() => document.querySelectorAll('.token').length > 3")
    page.locator(".token").nth(1).click()
    assert page.locator(".likely").count() == 1
    status(page, "Done")
    assert page.locator(".token").count() == 60
    assert page.locator(".likely").count() == 1
    assert (
        page.locator(".token").nth(1).evaluate("box => box === document.activeElement")
    )


def test_what_is_far_too_long_is_told_before_it_is_sent(page):
    """Known mistake: the server hung up, and was said not to run."""
    page.evaluate("document.getElementById('text').value = 'word '.repeat(500_000)")
    page.click("#go")
    status(page, f"and may have {page_server.MOST_BYTES:,}: shorten it")
    assert not any(url.endswith("/ask") for url in page.asked[-1:])


def test_another_one_at_temperature_0_is_the_same_and_that_is_told(page):
    settings(page, temperature=0, max_new_tokens=3)
    page.click("#go")
    status(page, "Done")
    before = answer(page)
    page.click("#again")
    status(page, "At temperature 0 the text is always the same")
    assert answer(page) == before


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
    assert saved["asked"]["settings"] == saved["settings"]
    assert (saved["asked"]["text"], saved["asked"]["model"]) == (
        "Once upon a time",
        "first",
    )


def test_it_speaks_japanese(page):
    page.select_option("#language", "ja")
    assert page.get_attribute("html", "lang") == "ja"
    assert page.text_content("h1") == JA["title_continue"]
    assert page.text_content("#settings summary") == JA["settings"]
    page.reload()
    page.wait_for_selector("#go")
    assert page.get_attribute("html", "lang") == "ja"


def test_all_words_are_there_in_both_languages():
    assert set(EN) == set(JA)
    assert all([*EN.values(), *JA.values()])


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
def test_everybody_can_use_it(page, scheme, width, tmp_path):
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
    page.screenshot(path=tmp_path / "page.png", full_page=True)
