"""The page that answers, in a real browser: several turns, edited, cut, marked up."""

import http.client
import json
import runpy
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tiktoken

import real_browser
from conversation import Turn, conversation_ids
from gpt_generate import Sampling
from page_models import Shelf
from page_server import running
from small_models import small_configs, small_model
from writer import Token, Writer

FOLDER = Path(__file__).parent
APP = runpy.run_path(str(FOLDER / "app.py"))
GPT2 = tiktoken.get_encoding("gpt2")
MODEL = small_model(small_configs(context_length=300, vocab_size=50_257)["GPT"])


def writer():
    made = Writer(MODEL, GPT2)
    made.style = "phi3"
    return made


@pytest.fixture(scope="module")
def address():
    shelf = Shelf({"one": "The one"}, lambda name: writer())
    with running(APP["make_app"](shelf)) as address:
        yield address


def ask(address, timeout=60, **question):
    """The events of an answer, or the error."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=timeout)
    connection.request("POST", "/ask", json.dumps(question))
    body = connection.getresponse().read().decode()
    if not body.startswith("data: "):
        return json.loads(body)
    return [json.loads(line[6:]) for line in body.split("\n\n") if line]


def tokens_of(events):
    return [event["id"] for event in events if event["kind"] == "token"]


def wanted(turns, question, n):
    ids = conversation_ids(turns, question, GPT2, "phi3")
    sampling = Sampling(eos_id=GPT2.eot_token)
    steps = Writer(MODEL, GPT2).start(ids, n, sampling)
    return [step.id for step in steps if isinstance(step, Token)]


def test_the_second_answer_reads_only_what_is_new(address):
    first = tokens_of(ask(address, question="A colour?", max_new_tokens=8))
    assert first == wanted([], "A colour?", 8)
    turn = {"question": "A colour?", "ids": first}
    events = ask(address, question="And?", turns=[turn], max_new_tokens=8)
    said = [Turn("A colour?", first)]
    assert tokens_of(events) == wanted(said, "And?", 8)
    ids = conversation_ids(said, "And?", GPT2, "phi3")
    known = len(conversation_ids([], "A colour?", GPT2, "phi3")) + len(first) - 1
    assert (events[-1]["known"], events[-1]["read"]) == (known, len(ids) - known)


def test_what_does_not_fit_is_left_out_and_told(address):
    turns = [{"question": "word " * 40, "ids": [5] * 10} for _ in range(8)]
    events = ask(address, question="And?", turns=turns, max_new_tokens=20)
    assert events[-1]["read"] + events[-1]["known"] <= 280
    left_out = next(e for e in events if e["kind"] == "leftout")["turns"]
    assert 0 < left_out < 8


def test_an_answer_can_begin_with_what_the_reader_took(address):
    begun = GPT2.encode(" Blue")
    events = ask(address, question="A colour?", begun=begun, max_new_tokens=4)
    ids = conversation_ids([], "A colour?", GPT2, "phi3")
    steps = Writer(MODEL, GPT2).start([*ids, *begun], 4, Sampling())
    assert tokens_of(events) == [s.id for s in steps if isinstance(s, Token)]
    markup = next(event for event in events if event["kind"] == "markup")
    assert "Blue" in markup["html"]
    ended = ask(address, question="A colour?", begun=[5, GPT2.eot_token])
    assert [event["kind"] for event in ended] == ["markup", "end"]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"question": " \n"}, "There is no question"),
        ({}, "There is no question"),
        ({"question": 5}, "question must be a text"),
        ({"question": "x", "turns": "none"}, "turns must be a list"),
        ({"question": "x", "turns": [[]]}, "A turn must have a question"),
        ({"question": "x", "turns": [{"question": "x"}]}, "list of token ids"),
        ({"question": "x", "turns": [{"question": "x", "ids": [-1]}]}, "list of token"),
        (
            {"question": "x", "turns": [{"question": "x", "ids": [True]}]},
            "list of token",
        ),
        ({"question": "x", "turns": [{}] * 101}, "at most 100"),
        ({"question": "x", "begun": [99_999]}, "list of token ids"),
        ({"question": "x " * 500}, "reads at most 300: shorten it"),
    ],
)
def test_what_cannot_be_answered_is_told(address, question, said):
    assert said in ask(address, **question)["error"]["message"]


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    '[x](https://example.com" onmouseover="alert(1))',
    "![x](x onerror=alert(1))",
    '<https://example.com/"onclick=alert(1)>',
    "```html\n<script>alert(1)</script>\n```",
    "`<b>`",
    "| <img src=x onerror=alert(1)> |\n|---|\n| x |",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_markup_of_an_answer_runs_nothing(text):
    html = APP["as_html"](text).lower()
    for bad in ("<script", "<img src=x", 'href="javascript', 'href="data', "<b>"):
        assert bad not in html
    for bad in ('" onmouseover=', '"onclick='):
        assert bad not in html


def test_twenty_at_once_are_served_in_turn(address):
    found = {}

    def one(number):
        found[number] = ask(address, question=f"Number {number}?", max_new_tokens=5)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(20):
        assert tokens_of(found[number]) == wanted([], f"Number {number}?", 5)
        assert found[number][-1]["kind"] == "end"


# --- In a browser ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(address):
    if real_browser.problem():
        pytest.skip(real_browser.problem())
    with real_browser.page(address) as page:
        page.set_default_timeout(15_000)
        yield page


@pytest.fixture
def page(opened, address):
    opened.goto(address)
    opened.evaluate("localStorage.clear()")
    opened.goto(address)
    opened.wait_for_selector("#send")
    opened.evaluate("document.getElementById('settings').open = true")
    return opened


def send(page, text, n=6):
    page.fill("#max_new_tokens", str(n))
    page.dispatch_event("#max_new_tokens", "change")
    page.fill("#question", text)
    page.press("#question", "Enter")
    done(page)


def done(page):
    status = "document.getElementById('status').textContent"
    page.wait_for_function(f"() => {status}.includes('Done')")
    page.wait_for_function("() => !document.body.classList.contains('asking')")


def stored(page):
    return json.loads(page.evaluate("localStorage.getItem('gpt-by-hand chat')"))[
        "turns"
    ]


def test_two_turns_are_kept_when_the_page_is_loaded_again(page):
    send(page, "A colour?")
    send(page, "And?")
    first, second = stored(page)
    ids = [token["id"] for token in first["tokens"]]
    assert ids == wanted([], "A colour?", 6)
    assert [t["id"] for t in second["tokens"]] == wanted(
        [Turn("A colour?", ids)], "And?", 6
    )
    page.reload()
    page.wait_for_selector(".answer")
    assert page.locator(".question .text").all_inner_texts() == ["A colour?", "And?"]
    assert page.get_attribute("#log", "role") == "log"


def test_a_question_can_be_edited_and_an_answer_asked_for_again(page):
    send(page, "A colour?")
    send(page, "And?")
    page.locator(".question button").nth(0).click()
    assert page.input_value("#question") == "A colour?"
    assert page.locator("article").count() == 0
    page.fill("#temperature", "1.5")
    page.dispatch_event("#temperature", "change")
    send(page, "A bird?")
    before = stored(page)
    page.get_by_role("button", name="Another one").click()
    page.wait_for_function(
        "before => localStorage.getItem('gpt-by-hand chat').includes('tokens') && "
        "JSON.stringify(JSON.parse("
        "localStorage.getItem('gpt-by-hand chat')).turns) !== before",
        arg=json.dumps(before, separators=(",", ":"), ensure_ascii=False),
    )
    done(page)
    assert [turn["question"] for turn in stored(page)] == ["A bird?"]


def test_another_token_is_taken_and_the_answer_goes_on(page):
    send(page, "A colour?")
    page.check("#boxes")
    (turn,) = stored(page)
    other = turn["tokens"][1]["likely"][2]
    page.locator(".token").nth(1).click()
    page.locator(".likely li button").nth(2).click()
    page.wait_for_function(
        "id => JSON.parse(localStorage.getItem('gpt-by-hand chat'))"
        ".turns[0].tokens[1].id === id",
        arg=other[0],
    )
    (turn,) = stored(page)
    assert turn["tokens"][0]["id"] == wanted([], "A colour?", 1)[0]


def test_html_of_a_reader_is_text(page):
    send(page, "<img src=x onerror=document.title='gone'>\n" + "\n" * 30)
    assert page.locator("#log img").count() == 0
    assert page.title() != "gone"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_everybody_can_use_it(page, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    send(page, "A colour?", 12)
    send(page, "And a bird?", 12)
    for boxes in (True, False):
        page.set_checked("#boxes", boxes)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=f"/tmp/ua_{scheme}_{width}_{boxes}.png", full_page=True)
