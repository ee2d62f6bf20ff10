"""One request to a server that answers, and what it sent back (chapter 7): support.

`send` and `message_in` are the two halves of a request; what goes wrong is an exception
that `ollama_evaluate.query_model` tries again or tells. A key goes to the server that
was named and to no other: not over a line that others can read, not where the server
sends on to, and into no text that a person or a file gets to see.

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
from http.client import HTTPException


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
    text = hidden(raw.decode("utf-8-sig"), key)
    try:
        found = [json.loads(text)]
    except json.JSONDecodeError:  # no splitlines: a text may hold other line ends
        found = [json.loads(line) for line in text.split("\n") if line.strip()]
    try:
        if "error" in found[-1] and found[-1]["error"]:
            raise ValueError(f"it says {json.dumps(found[-1]['error'])[:200]}")
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
        raise ValueError(f"there is no message in {text[:80]!r}") from None
    # Who only thought has not answered; the thoughts are shown, and never read.
    return content if content or not thoughts else f"<think>{thoughts}"


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
