"""A web server on 127.0.0.1 that misbehaves as it is told, and a package index.

A *step* answers one request. Steps in `script` answer the coming requests in order;
when they are used up, and from the start if there are none, the server gives the files
that were `put` there.

>>> with Server() as server:
...     address = server.put("f", b"text")
...     server.script = [refuse(503), cut_off]
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import stat
import threading
import zipfile
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Request(BaseHTTPRequestHandler):
    """A request with its `command`, `path`, `headers` and `body`, and how to answer."""

    body = b""
    owner: Server  # what a test holds

    @property
    def json(self) -> Any:
        """What a client sent as JSON."""
        return json.loads(self.body)

    def act(self) -> None:
        """Note the request and let the next step answer it."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.owner.asked.append(self)
        # The client may have had enough in the middle of it.
        with contextlib.suppress(ConnectionError):
            self.owner.step_for(self.path)(self)

    do_GET = do_HEAD = do_POST = act

    def start(self, code: int, headers: Mapping[str, object]) -> None:
        """Send status and headers."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def write(self, body: bytes) -> None:
        """Send a part of the body at once."""
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    def file(self) -> tuple[int, bytes, dict[str, object]]:
        """Return status, body and headers for what was asked for, also by a range."""
        owner = self.owner
        # A proxy gets the whole address instead of the path.
        path = re.sub(r"^http://[^/]*", "", self.path)
        if path not in owner.files:
            return 404, b"not found", {"Content-Length": 9}
        body, headers = owner.files[path], dict(owner.headers.get(path, {}))
        body = body.read_bytes() if isinstance(body, Path) else body
        code = 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            code, body = 206, body[start:]
        # pip takes a page for a list of packages only if it is called HTML.
        kind = "text/html" if path.endswith("/") else "application/octet-stream"
        return code, body, {"Content-Type": kind, "Content-Length": len(body)} | headers

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


Step = Callable[[Request], None]


class Server:
    """A running server; `files` by path, `script` of steps, `asked` so far.

    `always` are steps for some paths, whatever the script says; `default` is the step
    for everything else.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes | Path] = {}
        self.headers: dict[str, Mapping[str, object]] = {}
        self.script: list[Step] = []
        self.always: dict[str, Step] = {}
        self.default: Step = give
        self.asked: list[Request] = []
        self.closing = threading.Event()
        handler = type("OwnRequest", (Request,), {"owner": self})
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    @property
    def paths(self) -> list[str]:
        """The paths asked for, in order."""
        return [asked.path for asked in self.asked]

    def put(self, name: str, body: bytes | Path, **headers: object) -> str:
        """Offer bytes, or what a file holds by then; return the address.

        ``X_Name=...`` is a header ``X-Name``.
        """
        path = f"/{name}"
        self.files[path] = body
        self.headers[path] = {k.replace("_", "-"): v for k, v in headers.items()}
        return f"{self.address}{path}"

    def offer(self, name: str, data: bytes) -> None:
        """Offer a wheel in the package index ``ADDRESS/simple``."""
        self.put(name, data)
        project = name.partition("-")[0].replace("_", "-")
        link = f'<!DOCTYPE html><body><a href="/{name}">{name}</a></body>'
        self.put(f"simple/{project}/", link.encode())

    def step_for(self, path: str) -> Step:
        """Return what answers the next request for this path."""
        if path in self.always:
            return self.always[path]
        return self.script.pop(0) if self.script else self.default


def nobody() -> str:
    """Return an address on this machine at which no server is."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


# --- Steps ----------------------------------------------------------------------------


def give(request: Request) -> None:
    """Answer well."""
    code, body, headers = request.file()
    request.start(code, headers)
    request.write(body)


def answer(body: bytes | str, status: int = 200, announced: int | None = None) -> Step:
    """Answer with these bytes, of which the header may announce more."""
    data = body if isinstance(body, bytes) else body.encode()

    def step(request: Request) -> None:
        length = len(data) if announced is None else announced
        request.start(status, {"Content-Length": length})
        request.write(data)

    return step


def refuse(status: int) -> Step:
    """Answer with an error."""
    return lambda request: request.send_error(status)


def hang_up(request: Request) -> None:
    """Close the connection without a word."""
    request.close_connection = True


def stay_silent(request: Request) -> None:
    """Say nothing until the test is over."""
    request.owner.closing.wait(30)


def cut_off(request: Request) -> None:
    """Announce everything, send half, and hang up."""
    code, body, headers = request.file()
    request.start(code, headers)
    request.write(body[: len(body) // 2])
    request.close_connection = True


def stall(request: Request) -> None:
    """Send half, then nothing until the test is over."""
    cut_off(request)
    stay_silent(request)


def tell_no_length(request: Request) -> None:
    """Answer well, but leave the reader to find the end."""
    code, body, headers = request.file()
    del headers["Content-Length"]
    request.start(code, headers)
    request.write(body)


# --- Packages and manifests -----------------------------------------------------------


def wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes | str],
    needs: str = "something-that-does-not-exist",
) -> Path:
    """Write a wheel that holds `files` and asks for the package `needs`, if any."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if needs:
        head += f"Requires-Dist: {needs}\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    about = {f"{info}/METADATA": head, f"{info}/WHEEL": kind, f"{info}/RECORD": ""}
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in {**files, **about}.items():
            member = zipfile.ZipInfo(inside)
            mode = 0o755 if "/scripts/" in inside else 0o644
            member.external_attr = (stat.S_IFREG | mode) << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED, 1)
    return path


def entry(name: str, content: bytes, *sources: str, file: str, more: str = "") -> str:
    """Return an entry of `assets.toml`; each source as TOML, ``{url = "..."}``."""
    lines = [
        f'["{name}"]',
        f'file = "{file}"' if file else "",
        f"size = {len(content)}",
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"',
        'licence = "CC0-1.0"',
        f"sources = [{', '.join(sources)}]",
        more,
    ]
    return "\n".join([*lines, ""])
