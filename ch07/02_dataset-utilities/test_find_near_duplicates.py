"""The program finds what was planted, and names rows as the file has them."""

import csv
import json
import random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import find_near_duplicates as script
from find_near_duplicates import (
    COLUMNS,
    Match,
    clean,
    find_near_duplicates,
    main,
    text_of,
)

LETTERS = "abcdefghijklmno"
WORDS = ["".join(random.Random(i).choices(LETTERS, k=4 + i % 5)) for i in range(300)]


def entry(seed, **fields):
    draw = random.Random(seed)
    made = {
        "instruction": " ".join(draw.choices(WORDS, k=8)).capitalize() + ".",
        "input": " ".join(draw.choices(WORDS, k=6)),
        "output": " ".join(draw.choices(WORDS, k=10)),
    }
    return {**made, **fields}


def write(path, entries):
    lines = path.suffix == ".jsonl"
    text = "\n".join(map(json.dumps, entries)) if lines else json.dumps(entries)
    path.write_text(text, "utf-8")
    return path


def planted():
    """Forty entries; three are like one before them, and many fields are empty."""
    entries = [entry(i) for i in range(40)]
    for i in (0, 1, 4, 9, 21):
        entries[i]["input"] = ""
    for i in (2, 11, 22):
        entries[i]["instruction"] = entries[i]["input"] = ""
    del entries[3]["input"]
    copy = entries[7]
    entries[13] = {**copy, "instruction": copy["instruction"].upper().strip(".") + " !"}
    entries[30] = {**copy, "instruction": f"Please {copy['instruction']}"}
    entries[38] = dict(entries[5])
    return entries


FOUND = {(14, 8), (31, 8), (39, 6)}


# --- Rows of the file ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["tfidf", "minhash"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_are_those_of_the_file_where_fields_before_them_are_empty(
    tmp_path, method, name
):
    path = write(tmp_path / name, planted())
    found = find_near_duplicates(path, "question", method)
    assert {(match.row, match.similar_to) for match in found} == FOUND
    # Whoever drops empty texts first and then counts names other rows.
    texts = [text_of(one, "question") for one in planted()]
    full = [text for text in texts if text]
    shifted = {(full.index(texts[a - 1]) + 1, full.index(texts[b - 1]) + 1)
               for a, b in FOUND}  # fmt: skip
    assert shifted.isdisjoint(FOUND)


def test_an_empty_field_is_like_no_other(tmp_path):
    path = write(tmp_path / "a.json", planted())
    for method in ("tfidf", "minhash"):
        found = find_near_duplicates(path, "input", method)
        assert {(match.row, match.similar_to) for match in found} == FOUND
        assert {match.field for match in found} == {"input"}


def test_the_copy_lacks_the_reported_rows_and_no_other(tmp_path):
    for name in ("a.json", "a.jsonl"):
        path = write(tmp_path / name, planted())
        before = path.read_bytes()
        report, cleaned = tmp_path / "report.csv", tmp_path / f"cleaned-{name}"
        matches, kept = clean(path, report, cleaned)
        assert path.read_bytes() == before
        assert kept == 37 == 40 - len(matches)
        gone = {match.row for match in matches}
        left = [one for row, one in enumerate(planted(), 1) if row not in gone]
        text = cleaned.read_text("utf-8")
        lines = name.endswith("l")
        made = list(map(json.loads, text.splitlines())) if lines else json.loads(text)
        assert made == left
        with report.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == COLUMNS
        assert {(int(r["row"]), int(r["similar_to"])) for r in rows} == FOUND
        for row in rows:
            start = text_of(planted()[int(row["row"]) - 1], "question")[:80]
            assert row["text"] == start
        assert find_near_duplicates(cleaned) == []  # and a second pass finds nothing


def test_a_report_can_be_json(tmp_path):
    path = write(tmp_path / "a.json", planted())
    matches, _ = clean(path, tmp_path / "r.json", tmp_path / "c.json")
    made = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert [tuple(row[name] for name in COLUMNS[:4]) for row in made] == matches
    clean(tmp_path / "c.json", tmp_path / "r.json", tmp_path / "d.json")
    assert (tmp_path / "r.json").read_text() == "[]\n"


def test_a_second_field_is_searched_in_what_is_left(tmp_path):
    entries = planted()
    entries[20]["output"] = entries[13]["output"]  # row 14 is left out by then
    entries[25]["output"] = entries[24]["output"]
    path = write(tmp_path / "a.json", entries)
    options = tmp_path / "r.csv", tmp_path / "c.json"
    matches, _ = clean(path, *options, fields=["question", "output"])
    assert {m[:3] for m in matches if m.field == "question"} == {
        ("question", *pair) for pair in FOUND
    }
    assert [m[:3] for m in matches if m.field == "output"] == [
        ("output", 21, 8),  # the kept one with the same output
        ("output", 26, 25),
    ]


def test_a_copy_of_what_is_left_out_is_told_by_what_was_kept(tmp_path):
    entries = planted()
    entries.append(dict(entries[13]))
    path = write(tmp_path / "a.json", entries)
    first, *_, last = find_near_duplicates(path)
    assert (first.row, last.row) == (14, 41)
    assert first[2:] == last[2:]


def test_the_texts_of_an_entry():
    one = {"instruction": "Do\n it.", "input": " NOW ", "output": "Done.", "x": None}
    assert text_of(one, "question") == "do it. now"
    assert text_of(one, "entry") == "do it. now done."
    assert text_of(one, "x") == text_of(one, "y") == ""
    assert text_of({"question": "Why?", "instruction": "no"}, "question") == "why?"
    with pytest.raises(ValueError, match="field 'x' is list, not a text"):
        text_of({"x": ["a"]}, "x")


# --- Meaning -------------------------------------------------------------------------


def test_beyond_the_limit_meaning_looks_at_candidates_only(tmp_path, capsys):
    path = write(tmp_path / "a.json", planted())
    asked = []

    def embed(texts):
        asked.extend(texts)
        made = [
            np.random.default_rng(zlib.crc32(text[-30:].encode())) for text in texts
        ]
        vectors = np.stack([one.normal(size=64) for one in made]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    found = find_near_duplicates(path, method="meaning", embed=embed)
    assert len(asked) == 36  # different texts, none of them empty
    assert {m[1:3] for m in found} == FOUND
    asked.clear()
    few = find_near_duplicates(path, method="meaning", embed=embed, most=35)
    assert len(asked) < 12
    assert f"{len(asked)} of 36 texts are candidates" in capsys.readouterr().out
    assert [m[:3] for m in few] == [m[:3] for m in found]


# --- The program ---------------------------------------------------------------------


def options(tmp_path, **given):
    given = {"data": tmp_path / "a.json", "report": tmp_path / "r.csv", **given}
    given.setdefault("cleaned", tmp_path / "c.json")
    return [word for k, v in given.items() for word in (f"--{k}", str(v))]


def test_the_program_says_what_it_did(tmp_path, capsys):
    path = write(tmp_path / "a.json", planted())
    assert main(options(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "question: 3 entries are like one above them." in said
    assert "Kept 37 of 40 entries" in said
    assert f"{path} is as it was." in said
    assert main(options(tmp_path)) == 2
    assert "is there already: --overwrite" in capsys.readouterr().err
    assert main([*options(tmp_path), "--overwrite"]) == 0


def test_without_options_it_reads_the_courses_instructions(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    assert main([]) == 0
    folder = tmp_path / "ch07-near-duplicates"
    assert sorted(path.name for path in folder.iterdir()) == [
        "instructions-2-cleaned.json",
        "instructions-2-near-duplicates.csv",
    ]
    assert "of 2,206 entries" in capsys.readouterr().out


REFUSED = {
    "the same file": ({"cleaned": "a.json"}, "--data and --cleaned are the same file"),
    "by another way": ({"report": "../x/a.json"}, "--data and --report are the same"),
    "one place": ({"report": "c.json"}, "--report and --cleaned are the same file"),
    "no ending": ({"report": "r.txt"}, "a name ending in .csv or .json"),
    "nothing there": ({"data": "b.json"}, "b.json cannot be read"),
    "field": ({"field": "prompt"}, "no entry has a text in the field 'prompt'; there "
              "are the fields 'instruction', 'input', 'output'"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_options_are_told_and_nothing_is_written(tmp_path, capsys, given, said):
    folder = tmp_path / "x"
    folder.mkdir()
    write(folder / "a.json", planted())
    given = {k: folder / v if k != "field" else v for k, v in given.items()}
    before = (folder / "a.json").read_bytes()
    assert main(options(folder, **given)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("find_near_duplicates.py: ")
    assert err.count("\n") == 1
    assert (folder / "a.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["a.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_the_file_is_the_file(tmp_path, capsys):
    write(tmp_path / "a.json", planted())
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    (tmp_path / "hard.json").hardlink_to(tmp_path / "a.json")
    for name in ("link.json", "hard.json"):
        given = options(tmp_path, cleaned=tmp_path / name)
        assert main([*given, "--overwrite"]) == 2
        assert "are the same file" in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text()) == planted()


@pytest.mark.parametrize("words", ["0", "1.5", "nan", "x", "-1"])
def test_a_threshold_is_a_share(tmp_path, capsys, words):
    with pytest.raises(SystemExit):
        main([*options(tmp_path), "--threshold", words])
    assert "--threshold" in capsys.readouterr().err


def test_damage_at_the_end_leaves_nothing_behind(tmp_path, capsys):
    path = write(tmp_path / "a.json", planted())
    path.write_text(path.read_text()[:-20])
    assert main(options(tmp_path)) == 2
    assert "the file ends in the middle of entry 40" in capsys.readouterr().err
    write(path, [*planted(), {"instruction": ["Do", "it."]}])
    assert main(options(tmp_path)) == 2
    assert "entry 41: field 'instruction' is list" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_changes_meanwhile_is_not_cleaned(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", planted())
    find = script.find_near_duplicates

    def slow(*arguments, **more):
        found = find(*arguments, **more)
        write(path, planted()[::-1])
        return found

    monkeypatch.setattr(script, "find_near_duplicates", slow)
    with pytest.raises(ValueError, match="was changed meanwhile"):
        clean(path, tmp_path / "r.csv", tmp_path / "c.json")
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_halves_of_characters_do_not_stop_it(tmp_path):
    text = '{"instruction": "what is \\ud83d here, tell me"}'
    path = tmp_path / "a.jsonl"
    path.write_text(f"{text}\n{text}\n")
    matches, _ = clean(path, tmp_path / "r.csv", tmp_path / "c.jsonl")
    assert [match[1:3] for match in matches] == [(2, 1)]
    assert (tmp_path / "c.jsonl").read_text() == text + "\n"


def test_it_runs_as_a_reader_starts_it(tmp_path):
    write(tmp_path / "a.json", planted())
    command = [sys.executable, Path(script.__file__), *options(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "Kept 37 of 40" in done.stdout


def test_a_match_is_a_row_of_the_report():
    assert Match._fields == COLUMNS[:4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "bm25"}, "no method 'bm25': give one of 'tfidf', 'minhash'"),
        ({"threshold": 0.0}, "The threshold is 0.0"),
        ({"threshold": 1.5}, "The threshold is 1.5"),
        ({"threshold": float("nan")}, "The threshold is nan"),
    ],
)
def test_a_call_with_another_method_or_threshold_says_what_is_possible(
    tmp_path, options, said
):
    path = write(tmp_path / "e.json", planted())
    with pytest.raises(ValueError, match=said):
        find_near_duplicates(path, **options)
