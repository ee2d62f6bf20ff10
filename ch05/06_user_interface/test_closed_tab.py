"""Who closes the tab stops the model, as who presses stop does."""

import http.client
import json
import runpy
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tiktoken

import real_browser
from page_models import Shelf
from page_server import running
from small_models import small_configs, small_model
from writer import Writer

FOLDER = Path(__file__).parent
MODEL = small_model(small_configs(context_length=700, vocab_size=50_257)["GPT"])
TOKENS = 600  # six seconds at the speed of this test


@pytest.fixture(scope="module")
def computed():
    """When the model computed something; each step takes a hundredth of a second."""
    times = []

    def note(*_):
        times.append(time.monotonic())
        time.sleep(0.01)

    hook = MODEL.register_forward_pre_hook(note)
    yield times
    hook.remove()


@pytest.fixture(scope="module")
def address(computed):
    if real_browser.problem():
        pytest.skip(real_browser.problem())
    tokenizer = tiktoken.get_encoding("gpt2")
    shelf = Shelf({"slow": "The slow one"}, lambda name: Writer(MODEL, tokenizer))
    with running(runpy.run_path(str(FOLDER / "app.py"))["make_app"](shelf)) as address:
        yield address


@pytest.fixture(scope="module")
def browser(address):
    with real_browser.page(address) as page:
        yield page.context.browser


@pytest.mark.parametrize("leave", ["closed", "elsewhere", "loaded again"])
def test_who_closes_the_tab_stops_the_model(browser, address, computed, leave):
    page = browser.new_page()
    page.set_default_timeout(15_000)
    page.goto(address)
    page.wait_for_selector("#go")
    page.evaluate("document.getElementById('settings').open = true")
    page.fill("#max_new_tokens", str(TOKENS))
    page.dispatch_event("#max_new_tokens", "change")
    computed.clear()
    page.click("#go")
    page.wait_for_function(
        "() => document.getElementById('answer').textContent.length > 20"
    )
    if leave == "closed":
        page.close()
    elif leave == "elsewhere":
        page.goto("about:blank")
    else:
        page.reload()
    left = time.monotonic()
    time.sleep(1)  # a hundred steps, if it went on
    assert 1 < len(computed) < TOKENS
    assert sum(when > left for when in computed) <= 1
    page.close()
    assert answered(address)


def answered(address):
    """Whether somebody else is served now."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request("POST", "/ask", json.dumps({"text": "A", "max_new_tokens": 2}))
    return b'"kind": "end"' in connection.getresponse().read()
