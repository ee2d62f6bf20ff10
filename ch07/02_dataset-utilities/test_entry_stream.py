"""Entries are read one by one as `json` reads them at once, or told what is wrong."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

import entry_stream
from entry_stream import LONGEST, PIECE, copy_without, read_entries, written_whole

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner),
    max_leaves=6,
)
ENTRIES = st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), min_size=1, max_size=6)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(entry_stream, "PIECE", 3)


def read(path):
    return [found.entry for found in read_entries(path)]


@given(entries=ENTRIES, indent=st.sampled_from([None, 1]), piece=st.integers(1, 9))
def test_an_array_is_read_as_json_reads_it(tmp_path_factory, entries, indent, piece):
    path = tmp_path_factory.mktemp("array") / "entries.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry_stream, "PIECE", piece)
        for ascii_only in (True, False):
            text = json.dumps(entries, indent=indent, ensure_ascii=ascii_only)
            path.write_text(text, "utf-8")
            found = list(read_entries(path))
            assert [one.entry for one in found] == entries
            assert [one.row for one in found] == list(range(1, len(entries) + 1))
            assert all(json.loads(one.raw) == one.entry for one in found)
        path.write_text("\n".join(map(json.dumps, entries)) + "\n", "utf-8")
        assert read(path) == entries


@pytest.mark.usefixtures("small_pieces")
def test_long_strings_numbers_and_escapes_may_be_cut_anywhere(tmp_path):
    path = tmp_path / "a.json"
    entry = {"a": "\\" * 40 + "\U0001f600" * 9, "b": 123456789.25e-7, "c": [-1e300]}
    text = '[{"a": "\\ud83d\\ude00", "n": -Infinity},' + json.dumps(entry) + "]"
    path.write_text(text)
    assert read(path) == [{"a": "\U0001f600", "n": float("-inf")}, entry]


def test_a_mark_line_ends_of_windows_and_empty_lines_are_no_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"a": "1"}\r\n\r\n  {"a": "2"}\r\n')
    assert read(path) == [{"a": "1"}, {"a": "2"}]


BROKEN = {
    "": "is empty",
    " \n\t": "is empty",
    "[]": "its list is empty",
    '{"a": 1': "line 1: the file ends in the middle of entry 1",
    '[{"a": "1"},\n {"a": "2"}': "line 2: the file ends after entry 2",
    '[{"a": "1"},\n': "line 2: the file ends where entry 2 should be",
    '[{"a": "1"},\n {"a": "2': "the file ends in the middle of entry 2",
    '[{"a": "1"},\n "two"]': "line 2: '\"' stands where entry 2 should be, an object",
    '[{"a": "1"},\n 7]': "line 2: '7' stands where entry 2",
    '[{"a": "1"}\n {"a": "2"}]': "'{' stands after entry 1, in place of , or ]",
    '[{"a": "1"},]': "']' stands where entry 2",
    '[{"a": "1"}]\n{"b": 2}': "line 2: '{' stands behind the end of the list",
    '"text"': "begins no list of entries",
    "instruction,output\n": "'i' begins no list of entries",
    '{"a": "1"}\n{"a": "2"\n{"a": "3"}\n' + " " * 20: "line 2: entry 2 is no JSON",
    '[{"a": "1"},\n{"a" "2"},\n{"b": "3"}          ]': "line 2: entry 2 is no JSON",
    '{"a": "1"}\n{"a": tru}\n{"a": "3"}\n' + " " * 20: "line 2: entry 2 is no JSON",
    '[{"a": ' + "[" * 100_000 + "]" * 100_000 + "}]": "entry 1 is nested too deeply",
}


@pytest.mark.parametrize("piece", [5, PIECE])
@pytest.mark.parametrize(("text", "said"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_broken_file_is_told_in_one_sentence(
    tmp_path, monkeypatch, text, said, piece
):
    monkeypatch.setattr(entry_stream, "PIECE", piece)
    path = tmp_path / "broken.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"broken\.json") as caught:
        read(path)
    message = str(caught.value)
    assert said in message
    assert message.endswith((".", "}"))
    assert "\n" not in message


def test_a_file_that_is_none_or_is_no_text_is_told(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path)
    path = tmp_path / "a.json"
    path.write_bytes('[{"a": "1"},\n{"a": "\xe4"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"not text in UTF-8 \(at line 1 or below\)"):
        read(path)
    path.write_text('[{"a": "1"}]', "utf-16")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read(path)


def test_an_entry_without_an_end_is_not_read_to_the_end_of_the_file(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(entry_stream, "LONGEST", 1000)
    monkeypatch.setattr(entry_stream, "PIECE", 50)
    path = tmp_path / "a.json"
    path.write_text('[{"a": "1"},\n{"a": "' + "x" * 100_000, "utf-8")
    with pytest.raises(ValueError, match="line 2: entry 2 is no JSON"):
        read(path)
    assert LONGEST > 10**7


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.json"
        entry = json.dumps({"instruction": "x" * 300})
        path.write_text("[" + ",\n".join([entry] * count) + "]")
        tracemalloc.start()
        assert sum(1 for _ in read_entries(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert path.stat().st_size > 6_000_000
    assert peaks[1] < 1.2 * peaks[0] < 3_000_000


@pytest.mark.parametrize("array", [True, False])
def test_what_is_copied_stands_as_it_stood(tmp_path, array):
    raws = ['{"a": 1.50, "b": "\\u00e4"}', '{"a":   "x"}', '{"a": 2, "a": 3}']
    text = "[" + ",".join(raws) + "]" if array else "\n".join(raws)
    path, out = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text(text)
    with written_whole(out) as (file,):
        assert copy_without(path, {2}, file) == 2
    assert [one.raw for one in read_entries(out)] == [raws[0], raws[2]]
    assert out.read_text().startswith("[") == array
    with written_whole(out) as (file,):
        assert copy_without(path, {1, 2, 3}, file) == 0
    assert out.read_text() == ("[]\n" if array else "")


def stop_while_writing(one, two, problem):
    with written_whole(one, two) as (first, second):
        first.write("new")
        second.write("new")
        raise problem


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_half_written(tmp_path, problem):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("old")
    with pytest.raises(problem):
        stop_while_writing(one, two, problem)
    assert one.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    with written_whole(one, two) as (first, _):
        first.write("new")
    assert (one.read_text(), two.read_text()) == ("new", "")
