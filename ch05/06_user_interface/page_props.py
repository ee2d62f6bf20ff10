"""What the tests of all pages share: a slow model, others who ask, and eyes: support.

Nothing here is taught. The functions look at a page of `real_browser`.

>>> issubclass(Slow, Writer)
True
"""

# It talks to a server that the test itself has started:
# ruff: noqa: TID251

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from writer import Writer


class Slow(Writer):
    """A writer that takes a hundredth of a second for each step.

    Attributes:
        steps: how many all such writers have made.
    """

    steps = 0

    def start(self, *arguments: Any, **options: Any) -> Any:
        """Begin, as `Writer` does."""

        def steps():
            for step in super(Slow, self).start(*arguments, **options):
                Slow.steps += 1
                time.sleep(0.01)
                yield step

        return steps()


def ask_page(address: str, timeout: float = 60, **question: Any) -> Any:
    """The events of an answer, or the error."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=timeout)
    connection.request("POST", "/ask", json.dumps(question))
    body = connection.getresponse().read().decode()
    if not body.startswith("data: "):
        return json.loads(body)
    return [json.loads(line[6:]) for line in body.split("\n\n") if line]


@contextlib.contextmanager
def somebody_before(address: str, **question: Any) -> Iterator[None]:
    """Another one who asks, and is served until this is over."""
    line = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    line.request("POST", "/ask", json.dumps(question))
    line.getresponse().readline()
    yield
    line.sock.close()
    line.close()


def words(language: str) -> dict[str, str]:
    """What the pages say in a language, by name."""
    file = Path(__file__).parent / "page/words.json"
    return json.loads(file.read_text(encoding="utf-8"))[language]


def status(page: Any, text: str) -> None:
    """Wait until the page says something in which this text is."""
    said = "document.getElementById('status').textContent"
    page.wait_for_function(f"text => {said}.includes(text)", arg=text)


def forget(page: Any) -> None:
    """Empty what the browser keeps for a page."""
    page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")


def put_back(page: Any, name: str, text: str) -> None:
    """Load a page that had kept this when its browser was killed."""
    page.evaluate(
        "([name, text]) => [localStorage, sessionStorage]"
        ".forEach(store => store.setItem(name, text))",
        [name, text],
    )
    page.reload()


def another_tab(page: Any) -> Any:
    """The same page once more, in a tab that the reader opens."""
    with page.expect_popup() as found:
        page.evaluate("() => { window.open(location.href); }")
    found.value.wait_for_selector("#export")
    found.value.wait_for_selector("textarea")
    return found.value


def idle(page: Any) -> None:
    """Wait until nothing is being written."""
    page.wait_for_function("() => !document.body.classList.contains('asking')")


def focused(page: Any) -> str:
    """The id, or else the classes, of what the keyboard speaks to."""
    return page.evaluate(
        "document.activeElement.id || document.activeElement.className"
    )
