"""A page for the model, and a door for other programs (chapter 5, user interface).

* `Desk`: one model and many who ask: who comes first is served first;
* `events`: an answer as server-sent events, the form in which a browser gets a text
  that is still being written;
* `page_app`: the web server, which gives out the page and takes questions.

What goes over the line for one question, each event a line that begins with `data: `,
with an empty line after it::

    data: {"kind": "waiting", "before": 1}
    data: {"kind": "reading", "done": 5, "new": 5}
    data: {"kind": "token", "text": " the", "probability": 0.31, "likely": [...]}
    data: {"kind": "end", "reason": "length", "known": 0, "read": 5, "written": 20}

The model computes in a thread of its own, and only one step at a time: the next token
is computed when the system has taken the last one. So a reader who presses *stop*, or
closes the page, stops the model within one token; one who reads slowly fills the
system's buffers, which hold thousands of small events, and no more. The server runs on
one thread, too, and waits for nothing but events (Tornado, https://www.tornadoweb.org).

It listens on this machine only, and answers only pages that it gave out itself: in
most browsers any page in any tab can send requests to 127.0.0.1.
"""

import asyncio
import contextlib
import dataclasses
import errno
import json
import queue
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tornado.web
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets

MOST_WAITING = 40  # who comes after them is asked to come again
MOST_BYTES = 200_000  # of a question with all that was said before it
SECONDS_FOR_A_TOKEN = 20  # to take it: who reads slower holds up all others
HERE = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """A request that cannot be answered; the text says why and what to do."""

    def __init__(self, reason: str, status: int = 400):
        super().__init__(reason)
        self.status = status


# --- One model, many who ask ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Waiting:
    """So many are served first."""

    before: int


class Desk:
    """Steps are computed in one thread, for one answer after the other.

    >>> async def ask():
    ...     desk = Desk()
    ...     return [step async for step in desk.serve(lambda: iter("abc"))]
    >>> asyncio.run(ask())
    ['a', 'b', 'c']
    """

    def __init__(self, most_waiting: int = MOST_WAITING):
        self.most_waiting = most_waiting
        self._line: list[object] = []  # who is served comes first
        self._moved = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def serve(self, start: Callable[[], Iterator]) -> AsyncIterator[Any]:
        """Yield `Waiting` until it is this one's turn, then the steps of `start()`.

        Both are called in the thread of the model. Who stops asking must close this
        iterator (`contextlib.aclosing`): that ends the answer, or leaves the line.

        Raises:
            Refused: too many are waiting.
        """
        if len(self._line) > self.most_waiting:
            raise Refused(
                f"{len(self._line)} questions are waiting already: try again in a "
                "while.",
                503,
            )
        place, steps = object(), None
        self._line.append(place)
        try:
            while (before := self._line.index(place)) > 0:
                moved = self._moved
                yield Waiting(before)
                await moved.wait()
            steps = await self._in_thread(start)
            while (step := await self._in_thread(next, steps, None)) is not None:
                yield step
        finally:
            try:
                if (close := getattr(steps, "close", None)) is not None:
                    await asyncio.shield(self._in_thread(close))
            finally:
                self._line.remove(place)
                moved, self._moved = self._moved, asyncio.Event()
                moved.set()

    async def _in_thread(self, function, *arguments):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Let the thread go when it has finished its step."""
        self._thread.shutdown(wait=False, cancel_futures=True)


# --- Questions and answers over the line ----------------------------------------------

Start = Callable[[], Iterator]


def event(data: Any) -> bytes:
    """One server-sent event.

    >>> event({"kind": "end"})
    b'data: {"kind": "end"}\\n\\n'
    """
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def as_dict(step: Any) -> dict[str, Any]:
    """A step as the page gets it: its fields, and what kind of step it is."""
    return {"kind": type(step).__name__.lower(), **dataclasses.asdict(step)}


class Door(tornado.web.RequestHandler):
    """What all answers of this server have in common."""

    def set_default_headers(self) -> None:
        """Tell the browser to load nothing from elsewhere, and to keep nothing."""
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        """Refuse other pages: those of another origin, and names that lead here.

        Any port will do, as long as page and request have the same one: a tunnel such
        as ``ssh -L`` may give the server another one than it listens at, and no browser
        lets a page choose what stands in `Host` or `Origin`.
        """
        host = self.request.host
        with contextlib.suppress(ValueError):  # what is no name is shown as it came
            host = urlsplit(f"//{host}").hostname
        if not self.settings["open"] and host not in HERE:
            raise Refused(
                f"This server answers to {' and '.join(HERE[:2])}, not to {host}.", 403
            )
        origin = self.request.headers.get("Origin")
        if origin not in (None, f"{self.request.protocol}://{self.request.host}"):
            raise Refused(f"A page of {origin} may not ask this server.", 403)

    def question(self) -> dict[str, Any]:
        """What was sent, a JSON object."""
        body = self.request.body
        if len(body) > MOST_BYTES:
            raise Refused(
                f"The question has {len(body):,} bytes and may have {MOST_BYTES:,}: "
                "shorten it.",
                413,
            )
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as problem:
            raise Refused(f"The question is no JSON: {problem}.") from None
        if not isinstance(found, dict):
            raise Refused("The question is JSON, but no object with names: send one.")
        return found

    async def send(self, start: Start, put: Callable[[Any], bytes | None]) -> None:
        """Serve one answer, and end it when the one who asked is gone."""
        self._serving = asyncio.ensure_future(self._send(start, put))
        await asyncio.wait([self._serving])
        if not self._serving.cancelled():
            self._serving.result()

    async def send_events(
        self, start: Start, put: Callable[[Any], bytes | None]
    ) -> None:
        """Serve one answer as events; a mistake on the way is an event, too."""
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        try:
            await self.send(start, put)
        except (StreamClosedError, TimeoutError, asyncio.CancelledError):
            return  # nobody is there, or the server ends
        except Exception as problem:
            if not self._headers_written:
                raise
            message = self.told(problem)[1]
            self.write(event({"kind": "error", "error": {"message": message}}))
        await self.finish()

    def on_connection_close(self) -> None:
        """End what is computed for nobody."""
        if hasattr(self, "_serving"):
            self._serving.cancel()

    async def _send(self, start, put):
        steps = self.settings["desk"].serve(start)
        async with contextlib.aclosing(steps):
            async for step in steps:
                data = put(step)
                if data is not None:
                    self.write(data)
                    await asyncio.wait_for(self.flush(), SECONDS_FOR_A_TOKEN)

    def told(self, problem: BaseException) -> tuple[int, str]:
        """(status, what to tell the one who asked)."""
        if isinstance(problem, Refused):
            return problem.status, str(problem)
        if isinstance(problem, ValueError):
            return 400, str(problem)
        if isinstance(problem, tornado.web.HTTPError):
            path, method = self.request.path, self.request.method
            if problem.status_code == 405:
                return 405, f"{path} does not answer to {method}."
            return problem.status_code, f"There is no {path} here."
        traceback.print_exception(problem)
        return 500, "The server made a mistake; its terminal says where."

    def log_exception(self, *_: Any) -> None:
        """Say nothing twice: `told` prints what nobody expected."""

    def write_error(self, status_code: int, **more: Any) -> None:
        """An error as JSON, in the form that clients of such servers know."""
        status, message = self.told(more["exc_info"][1])
        self.set_status(status)
        self.finish({"error": {"message": message, "type": "invalid_request_error"}})


class File(Door):
    """The page's own files: those in the list, read once, and no other."""

    def get(self) -> None:
        """Send a file."""
        kind, content = self.settings["files"][self.request.path]
        self.set_header("Content-Type", f"{kind}; charset=utf-8")
        self.finish(content)

    head = get


class About(Door):
    """What the page must know before the first question."""

    def get(self) -> None:
        """Send it as JSON."""
        self.finish({"most_bytes": MOST_BYTES, **self.settings["about"]()})


class Ask(Door):
    """A question of the page, answered by events."""

    async def post(self) -> None:
        """Send an event for each step."""
        start = self.settings["ask"](self.question())
        await self.send_events(start, lambda step: event(as_dict(step)))


_CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_CONTENT_TYPES |= {".json": "application/json", ".svg": "image/svg+xml"}


def page_app(
    folder: Path,
    ask: Callable[[dict[str, Any]], Start],
    about: Callable[[], Mapping[str, Any]],
    doors: Sequence[tuple] = (),
    desk: Desk | None = None,
    is_open: bool = False,
) -> tornado.web.Application:
    """The server: a page, and what answers its questions.

    Args:
        folder: with `index.html` and the other files of the page.
        ask: makes of a question, as the page sent it, the function that starts its
            answer. It raises `ValueError` or `Refused` with a sentence for the reader.
        about: what the page gets at ``/about``.
        doors: further (path, handler) pairs, handlers being kinds of `Door`.
        desk: where answers are computed.
        is_open: whether other machines may ask, too.
    """
    files = {
        f"/{path.name}": (_CONTENT_TYPES[path.suffix], path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.suffix in _CONTENT_TYPES
    }
    files["/"] = files.pop("/index.html")
    return tornado.web.Application(
        [
            *((path, File) for path in files),
            ("/about", About),
            ("/ask", Ask),
            *doors,
        ],
        default_handler_class=Nothing,
        log_function=lambda handler: None,
        files=files,
        ask=ask,
        about=about,
        desk=desk or Desk(),
        open=is_open,
    )


class Nothing(Door):
    """Every other path."""

    def prepare(self) -> None:
        """Refuse it."""
        raise tornado.web.HTTPError(404)


# --- Running --------------------------------------------------------------------------


def serve(app: tornado.web.Application, host: str, port: int) -> None:
    """Listen until Ctrl-C, and say where.

    Raises:
        ValueError: the port is taken, or the host is none of this machine.
    """

    async def listen():
        _listening(app, host, port)
        shown = f"[{host}]" if ":" in host else host
        print(f"Open http://{shown}:{port} in a browser. Ctrl-C here stops it.")
        sys.stdout.flush()
        await asyncio.Event().wait()

    if app.settings["open"]:
        print(
            f"Warning: everybody who reaches this machine at {host} can use the model, "
            "everybody on the way can read what is sent, and pages whose owner makes a "
            "name lead here can ask from your own browser.",
            file=sys.stderr,
        )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(listen())
    app.settings["desk"].close()
    print("Stopped.")


@contextlib.contextmanager
def running(app: tornado.web.Application) -> Iterator[str]:
    """The server in a thread of its own, at a free port; its address is yielded."""
    told: queue.Queue = queue.Queue()

    async def listen():
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        (socket,) = bind_sockets(0, HERE[0])
        server = _listening(app, sockets=[socket])
        told.put(
            (socket.getsockname()[1], lambda: loop.call_soon_threadsafe(ended.set))
        )
        await ended.wait()
        server.stop()
        await server.close_all_connections()

    thread = threading.Thread(target=lambda: asyncio.run(listen()), daemon=True)
    thread.start()
    port, end = told.get(timeout=20)
    try:
        yield f"http://{HERE[0]}:{port}"
    finally:
        end()
        thread.join(20)


def _listening(app, host="", port=0, sockets=None):
    server = HTTPServer(app, max_body_size=10 * MOST_BYTES, body_timeout=30)
    try:
        server.add_sockets(sockets or bind_sockets(port, host))
    except OSError as problem:
        advice = "--host must be a name or address of this machine, and --port be free."
        if problem.errno == errno.EADDRINUSE:
            advice = "another one is running there; stop it, or give another --port."
        raise ValueError(
            f"The server cannot listen at {host}:{port} ({problem.strerror}): {advice}"
        ) from None
    return server
