"""One request to a server that answers, and what it sent back (chapter 7): support.

`ask_server` makes a request, and makes it again where that helps. `send` and
`message_in` are its two halves; what goes wrong is a `ServerError`. A key goes to the
server that was named and to no other: not over a line that others can read, not where
the server sends on to, and into no text that a person or a file gets to see.

>>> message_in(b'{"message": {"content": "85"}, "done": true}')
'85'
>>> hidden("HTTP 401 the key sk-abc is wrong", "sk-abc")
'HTTP 401 the key ... is wrong'
"""

# It talks to a server that the reader named:
# ruff: noqa: TID251

import email.utils
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

_LONGEST_PAUSE = 60.0  # seconds that a server may ask for before the run is stopped


class ServerError(RuntimeError):
    """The server did not answer, or not with a message.

    `for_all` says whether every other request would be refused, too.
    """

    for_all = False


def ask_server(
    url: str,
    body: dict,
    read: Callable[[bytes, str | None], Any],
    *,
    model: str,
    timeout: float = 120.0,
    retries: int = 3,
    wait: float = 1.0,
    key: str | None = None,
) -> Any:
    """What a server answers to one request, once it does.

    Args:
        url: where the request goes.
        body: what is sent, as JSON.
        read: makes of the bytes and the key what is returned, or raises `ValueError`
            with the reason why it cannot; then the server is asked again.
        model: its name, for the message.
        timeout, retries, wait: as for `ollama_evaluate.query_model`.
        key: as from `usable_key`.

    Raises:
        ServerError: no attempt gave an answer, or the server refused the request; the
            message says which and why.
    """
    reason, advice, for_all = "", "", False
    named = f"model {model!r}"
    for attempt in range(retries + 1):
        advice, pause = f"the server is there; see that it has the {named}", 0.0
        try:
            return read(send(url, body, timeout, key), key)
        except urllib.error.HTTPError as problem:
            reason, pause = told(problem, key), pause_asked(problem)
            for_all = problem.code in (401, 403) or pause > _LONGEST_PAUSE
            if problem.code in (401, 403):
                advice = f"give a key that may use the {named}"
            elif problem.code == 429 or pause > _LONGEST_PAUSE:
                advice = "it takes no more requests now; go on later"
            if pause > _LONGEST_PAUSE:
                reason += f", and asks for a pause of {pause:.0f} seconds"
            if for_all or (problem.code < 500 and problem.code not in (408, 429)):
                break  # it would be refused again
        except (OSError, HTTPException) as problem:
            reason = str(problem) or type(problem).__name__
            advice = "start the server, for instance with `ollama serve`, and see that "
            advice += f"it has the {named}"
        except (ValueError, RecursionError) as problem:
            reason = str(problem)
        if attempt < retries:
            time.sleep(max(wait * 2**attempt, pause))
    failure = ServerError(f"{url} gave no answer ({hidden(reason, key)}): {advice}.")
    failure.for_all = for_all
    raise failure


def server_is_there(url: str, timeout: float = 5.0) -> bool:
    """Whether a server answers at the host and port of an address, whatever it says."""
    try:
        start = "{0.scheme}://{0.netloc}/".format(urllib.parse.urlsplit(url))
        send(start, None, timeout)
    except urllib.error.HTTPError:
        return True
    except (OSError, HTTPException):
        return False
    return True


def checked_url(url: str) -> urllib.parse.SplitResult:
    """The parts of an address, if it is one of a kind that is known."""
    parts = urllib.parse.urlsplit(url)
    known = parts.path.endswith(("/api/chat", "/chat/completions"))
    if parts.scheme not in ("http", "https") or not parts.netloc or not known:
        raise ValueError(
            f"The address {url!r} is of no kind that is known: give one that ends with "
            "/api/chat, as Ollama's, or with /v1/chat/completions, or none for Ollama "
            "on this machine."
        )
    return parts


def is_ollama(url: str) -> bool:
    """Whether an address is of Ollama's kind."""
    return checked_url(url).path.endswith("/api/chat")


def is_here(url: str) -> bool:
    """Whether an address is on this machine."""
    return urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def usable_key(url: str, key: str | None) -> str | None:
    """A key as it may be sent to an address; no message shows it.

    Raises:
        ValueError: others could read it on the way, or no header can hold it.
    """
    key = (key or "").strip()
    if not key:
        return None
    if not is_here(url) and not url.startswith("https:"):
        raise ValueError(
            f"A key goes over https, or to a server on this machine, not to {url!r}, "
            "where others can read it on the way."
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError("The key has a sign in it that no key has: copy it again.")
    return key


def hidden(text: str, key: str | None) -> str:
    """A text in which nobody sees the key."""
    return text.replace(key, "...") if key else text


def send(url: str, body: dict | None, timeout: float, key: str | None = None) -> bytes:
    """The bytes that a server answers, all of them within the time allowed."""
    headers = {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    if key:  # and not to where the server may send on to
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    # A proxy for the world outside cannot reach a server on this machine.
    handlers = [urllib.request.ProxyHandler({})] if is_here(url) else []
    end = time.monotonic() + timeout
    parts = []
    with urllib.request.build_opener(*handlers).open(
        request, timeout=timeout
    ) as answer:
        while part := answer.read1(65536):
            parts.append(part)
            if time.monotonic() > end:  # each read may take that long, but not all
                raise TimeoutError("the answer came too slowly")
        if answer.length:  # how much of what was announced is still to come
            raise HTTPException("the answer is shorter than announced")
    return b"".join(parts)


def message_in(raw: bytes, key: str | None = None) -> str:
    """The text in a server's answer: one JSON object, or one for each piece of it.

    Raises:
        ValueError: there is none in it.
    """
    found = json_parts(raw, key)
    try:
        if "choices" in found[0]:
            parts = [found[0]["choices"][0]["message"]]
        elif found[-1]["done"]:
            parts = [part["message"] for part in found]
        else:
            raise ValueError("the answer breaks off")
        content = "".join(_text(part["content"]) for part in parts)
        thoughts = "".join(
            _text(part.get("thinking") or part.get("reasoning_content"))
            for part in parts
        )
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(f"there is no message in {shown(raw, key)}") from None
    # Who only thought has not answered; the thoughts are shown, and never read.
    content = content if content or not thoughts else f"<think>{thoughts}"
    return hidden(content, key)


def json_parts(raw: bytes, key: str | None = None) -> list[dict]:
    """The objects in a server's answer: one, or one in each line for its pieces.

    Raises:
        ValueError: it is something else, or the last of them tells of an error.
    """
    text = hidden(raw.decode("utf-8-sig"), key)
    try:
        found = [json.loads(text)]
    except json.JSONDecodeError:  # no splitlines: a text may hold other line ends
        found = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not found or not all(isinstance(part, dict) for part in found):
        raise ValueError(f"there is no message in {shown(raw, key)}")
    if found[-1].get("error"):
        raise ValueError(f"it says {json.dumps(found[-1]['error'])[:200]}")
    return found


def shown(raw: bytes, key: str | None = None) -> str:
    """The beginning of an answer, for a message."""
    return repr(hidden(raw.decode("utf-8-sig", "replace"), key)[:80])


def _text(content):
    """A text, also one that comes in parts, or as nothing."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str | None):
        raise TypeError
    return content or ""


def told(problem: urllib.error.HTTPError, key: str | None = None) -> str:
    """What an error of HTTP says, in one line."""
    try:
        said = hidden(problem.read().decode("utf-8", "replace"), key)[:200]
    except (OSError, HTTPException):
        said = ""
    return " ".join(f"HTTP {problem.code} {said}".split())


def pause_asked(problem: urllib.error.HTTPError) -> float:
    """The seconds that a server asks to wait, in seconds or until a time; or 0."""
    asked = (problem.headers.get("Retry-After") or "").strip()
    try:
        return max(0.0, float(asked)) if float(asked) < float("inf") else 0.0
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    return max(0.0, until.timestamp() - time.time())
