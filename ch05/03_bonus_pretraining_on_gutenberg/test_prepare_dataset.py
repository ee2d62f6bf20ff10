"""What comes out of dirt, and that being killed changes nothing of it."""

import csv
import json
import os
import random
import shutil
import signal

import numpy as np
import pytest

import prepare_dataset
import process_memory
import script_tools
import shelf
import shelf_state
from bpe import load_tokenizer

OPTIONS = ["--vocab", "300", "--validation", "book5.txt", "--tokens-per-shard", "3000"]


def prepare(folder, out, *more):
    parser = prepare_dataset.make_parser()
    words = ["--books", str(folder), "--out", str(out), *OPTIONS, *map(str, more)]
    return prepare_dataset.prepare(folder, out, script_tools.parse(parser, words))


def table(out):
    with (out / prepare_dataset.TABLE).open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def contents(out):
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def ids_of(out, manifest, split):
    shards = manifest["splits"][split]["shards"]
    parts = [np.fromfile(out / split / shard["file"], "<u2") for shard in shards]
    return np.concatenate(parts).tolist()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dirty shelf, what was made of it, and the names that are worth keeping."""
    folder = tmp_path_factory.mktemp("books") / "shelf"
    out = folder.with_name("shards")
    kept = shelf.fill(folder)
    return folder, out, kept, prepare(folder, out)


def test_good_books_are_kept_and_the_others_set_aside_with_a_reason(prepared):
    _, out, kept, manifest = prepared
    rows = table(out)
    assert sorted(n for n, row in rows.items() if row["status"] == "kept") == kept
    reasons = {n: row["reason"] for n, row in rows.items() if row["status"] == "aside"}
    for name, reason in {
        "copy.txt": "the same text as book0.txt",
        "edition2.txt": "similarity 0.98 to book1.txt",
        "french.txt": "language: fr",
        "image.txt": "NUL",
        "short.txt": "only 8 characters",
        "odd-licence.txt": "no rule knows",
    }.items():
        assert reason in reasons.pop(name)
    assert not reasons
    assert manifest["aside"] == 6
    assert rows["windows.txt"]["encoding"] == "cp1252"
    assert rows["misread.txt"]["encoding"] == "utf-8 mended"
    assert rows["licensed.txt"]["rules"] == "start line end line credit"


def test_the_shards_are_the_clean_books_and_nothing_else(prepared):
    folder, out, kept, manifest = prepared
    tokenizer = load_tokenizer(out / "tokenizer.json")
    end = tokenizer.eot_token
    size = 0
    for split, names in {
        "train": [name for name in kept if name != "book5.txt"],
        "validation": ["book5.txt"],
    }.items():
        ids = ids_of(out, manifest, split)
        assert ids[0] == ids[-1] == end
        texts = tokenizer.decode(ids).split("<|endoftext|>")[1:-1]
        for name, text in zip(names, texts, strict=True):
            if name.startswith("book"):
                assert text == (folder / name).read_text().rstrip("\n") + "\n"
            assert "GUTENBERG" not in text
        assert sum("\u201cCaf\xe9\u201d \u2014 " in text for text in texts) == 2 * (
            split == "train"
        )
        content = manifest["splits"][split]
        assert content["books"] == len(names) == ids.count(end) - 1
        assert content["bytes"] == sum(len(text.encode()) for text in texts)
        assert content["tokens"] == len(ids)
        size += len(content["shards"])
    assert size > 2  # so a border between shards was crossed
    left = {"manifest.json", "books.csv", "tokenizer.json", "train", "validation"}
    assert {path.name for path in out.iterdir()} == left


def test_a_second_run_finds_everything_ready(prepared, capsys):
    folder, out, _, manifest = prepared
    before = contents(out)
    assert prepare(folder, out) == manifest
    assert "ready already" in capsys.readouterr().out
    assert contents(out) == before
    with pytest.raises(ValueError, match="other books or options"):
        prepare(folder, out, "--similar", "0.9")


# --- Killed --------------------------------------------------------------------------


def die_after(count):
    """Let this process kill itself at the count-th moment at which files change."""
    left = [count]

    def mortal(owner, name, after):
        real = getattr(owner, name)

        def wrapped(*arguments, **options):
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, wrapped)

    mortal(os, "replace", after=False)
    mortal(os, "fsync", after=True)
    mortal(shelf_state.StateTransaction, "__exit__", after=True)
    mortal(prepare_dataset.ShardWriter, "add", after=True)
    return left


def run_mortal(folder, out, count):
    """Prepare in a child that dies at a moment; its exit code, and moments if none."""
    pipe = os.pipe()
    child = os.fork()
    if child == 0:
        left = die_after(count)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        prepare(folder, out)
        os.write(pipe[1], str(count - left[0]).encode())
        os._exit(0)
    os.close(pipe[1])
    _, status = os.waitpid(child, 0)
    with os.fdopen(pipe[0]) as reader:
        return os.waitstatus_to_exitcode(status), reader.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is made by a fork")
def test_killed_at_any_moment_it_ends_with_the_same_files(prepared, tmp_path):
    folder, out, _, _ = prepared
    wanted = contents(out)
    code, moments = run_mortal(folder, tmp_path / "whole", 10**9)
    assert (code, contents(tmp_path / "whole")) == (0, wanted)
    assert int(moments) > 60
    draw = random.Random(1)
    # Three runs, each killed three times at random moments, then left alone.
    for attempt in range(3):
        again = tmp_path / f"killed-{attempt}"
        for _ in range(3):
            count = draw.randint(1, int(moments) // 3)
            assert run_mortal(folder, again, count)[0] == -signal.SIGKILL
            assert not (again / prepare_dataset.MANIFEST).exists()
        prepare(folder, again)
        assert contents(again) == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is made by a fork")
def test_unfinished_work_goes_on_with_the_same_books_only(prepared, tmp_path):
    folder, _, _, _ = prepared
    out, shelf_copy = tmp_path / "out", tmp_path / "shelf"
    shutil.copytree(folder, shelf_copy)
    run_mortal(shelf_copy, out, 20)
    with pytest.raises(ValueError, match="other options or other books"):
        prepare(shelf_copy, out, "--vocab", "301")
    (shelf_copy / "new.txt").write_text(shelf.story(55))
    with pytest.raises(ValueError, match="other options or other books"):
        prepare(shelf_copy, out)
    with pytest.raises(ValueError, match="no data set that is whole"):
        prepare_dataset.read_manifest(out)


# --- What the disk and others do ------------------------------------------------------


def test_a_damaged_database_is_named_and_starting_over_helps(
    prepared, tmp_path, capsys
):
    words = ["--books", str(prepared[0]), "--out", str(tmp_path / "out"), *OPTIONS]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / prepare_dataset.STATE).write_bytes(b"no database" * 99)
    assert prepare_dataset.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "state.sqlite is damaged" in said
    assert prepare_dataset.main([*words, "--overwrite"]) == 0
    assert contents(tmp_path / "out") == contents(prepared[1])


def test_two_runs_do_not_work_in_one_folder(prepared, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    first = prepare_dataset.ShelfState(out, {})
    words = ["--books", str(prepared[0]), "--out", str(out), *OPTIONS]
    assert prepare_dataset.main(words) == 1
    assert "another run prepares a data set" in capsys.readouterr().err
    first.db.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is full")
def test_after_a_full_disk_it_goes_on(prepared, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["--books", str(prepared[0]), "--out", str(out), *OPTIONS]
    full = out / prepare_dataset.CLEAN / "0000004.txt.part"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    assert prepare_dataset.main(words) == 1
    assert "No space left for" in capsys.readouterr().err
    full.unlink()
    real = prepare_dataset.ShelfState.transaction

    def small(work):
        work.db.execute("PRAGMA max_page_count = 1")  # as many as there are
        return real(work)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_dataset.ShelfState, "transaction", small)
        assert prepare_dataset.main(words) == 1
    said = capsys.readouterr().err
    assert "No space for" in said
    assert "goes on from here" in said
    assert prepare_dataset.main(words) == 0
    assert "Going on with book" in capsys.readouterr().out
    assert contents(out) == contents(prepared[1])


def test_starting_over_leaves_what_others_put_there(prepared, tmp_path):
    out = shutil.copytree(prepared[1], tmp_path / "copy")
    mine = ["notes.txt", "train/mine.txt", "clean/mine.txt"]
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    prepare_dataset.clear(out)
    assert sorted(contents(out)) == sorted(mine)
    assert not (out / "validation").exists()


# --- The rest ------------------------------------------------------------------------


def test_a_damaged_shard_is_named(prepared, tmp_path):
    out = shutil.copytree(prepared[1], tmp_path / "copy")
    prepare_dataset.read_manifest(out, check=True)
    path = out / "train" / "00000.bin"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    prepare_dataset.read_manifest(out)  # the sizes are right
    with pytest.raises(ValueError, match="00000.bin is not what the manifest says"):
        prepare_dataset.read_manifest(out, check=True)
    path.write_bytes(data[:-2])
    with pytest.raises(ValueError, match="00000.bin is not what the manifest says"):
        prepare_dataset.read_manifest(out)


def test_each_split_needs_a_book(prepared, tmp_path):
    with pytest.raises(ValueError, match="No book is left for the train split"):
        prepare(prepared[0], tmp_path / "a", "--share", "0.5", "--languages", "nl")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "book5.txt").write_text("A lamp.")
    with pytest.raises(ValueError, match=r"book5.txt \(only 8 characters are left\)"):
        prepare(tmp_path / "tiny", tmp_path / "c")
    # What is done about it is another choice of books: nothing old is in its way.
    for i in (4, 5):
        (tmp_path / "tiny" / f"book{i}.txt").write_text(shelf.story(i))
    assert prepare(tmp_path / "tiny", tmp_path / "c")["aside"] == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file"):
        prepare(tmp_path / "empty", tmp_path / "b")


def test_a_copy_of_a_validation_book_is_not_trained_on(tmp_path):
    """Whichever of the two comes first in the alphabet."""
    folder = tmp_path / "books"
    folder.mkdir()
    for i in range(6):
        (folder / f"book{i}.txt").write_text(shelf.story(i))
    near = shelf.story(5).replace("again", "once more")
    (folder / "a-near-copy.txt").write_text(near)
    (folder / "b-copy.txt").write_text(shelf.story(5))
    manifest = prepare(folder, tmp_path / "named")
    rows = table(tmp_path / "named")
    assert rows["a-near-copy.txt"]["reason"].endswith(" to book5.txt")
    assert rows["b-copy.txt"]["reason"] == "the same text as book5.txt"
    assert manifest["splits"]["validation"]["books"] == 1
    # Also where the split follows from a hash of the name.
    options = script_tools.parse(
        prepare_dataset.make_parser(), ["--vocab", "300", "--share", "0.3"]
    )
    names = {
        split: next(
            name
            for name in (f"{letter}{i}.txt" for i in range(99))
            if prepare_dataset.split_of(name, 0.3) == split
        )
        for letter, split in (("a", "train"), ("z", "validation"))
    }
    (folder / names["train"]).write_text(shelf.story(9).replace("again", "once more"))
    (folder / names["validation"]).write_text(shelf.story(9))
    prepare_dataset.prepare(folder, tmp_path / "shared", options)
    rows = table(tmp_path / "shared")
    assert rows[names["validation"]]["split"] == "validation"
    reason = rows[names["train"]]["reason"]
    assert reason.endswith(f" to {names['validation']}")


def test_the_split_of_a_book_depends_on_its_name_only():
    names = [f"{i}.txt" for i in range(2000)]
    chosen = [n for n in names if prepare_dataset.split_of(n, 0.1) == "validation"]
    assert 140 < len(chosen) < 260
    more = [n for n in names if prepare_dataset.split_of(n, 0.2) == "validation"]
    assert set(chosen) < set(more)


def test_the_script_has_exit_codes_and_can_start_over(prepared, tmp_path, capsys):
    folder = prepared[0]
    words = ["--out", str(tmp_path / "out"), *OPTIONS, "--books"]
    assert prepare_dataset.main([*words, str(tmp_path / "missing")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert prepare_dataset.main([*words, str(folder)]) == 0
    assert prepare_dataset.main([*words, str(folder), "--languages", "any"]) == 2
    words = [*words, str(folder), "--languages", "any", "--overwrite"]
    assert prepare_dataset.main(words) == 0
    assert table(tmp_path / "out")["french.txt"]["status"] == "kept"


def test_the_tokenizer_of_another_data_set_is_taken_as_it_is(
    prepared, tmp_path, capsys
):
    first, second, others = (tmp_path / name for name in ("first", "second", "others"))
    others.mkdir()
    for name, number in (("book5.txt", 50), ("book6.txt", 60)):
        (others / name).write_text(shelf.story(number), encoding="utf-8")
    prepare(others, first, "--vocab", "280")
    taken = first / prepare_dataset.TOKENIZER
    manifest = prepare(prepared[0], second, "--vocab", taken)
    assert manifest["n_vocab"] == 280
    assert (second / prepare_dataset.TOKENIZER).read_bytes() == taken.read_bytes()
    ids = ids_of(second, manifest, "validation")
    text = load_tokenizer(taken).decode(ids[1:-1])
    assert text.strip() == shelf.story(5).strip()
    # A file that is none is refused before any book is read.
    taken.write_text("{}", encoding="utf-8")
    words = ["--books", str(prepared[0]), "--out", str(tmp_path / "third"), "--vocab"]
    for path in (taken, tmp_path / "missing.json"):
        with pytest.raises(SystemExit):
            prepare_dataset.main([*words, str(path)])
        assert path.name in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_with_gpt2s_tokenizer_no_vocabulary_is_trained(prepared, tmp_path):
    manifest = prepare(prepared[0], tmp_path / "out", "--vocab", "gpt2")
    assert (manifest["tokenizer"], manifest["n_vocab"]) == ("gpt2", 50257)
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert ids_of(tmp_path / "out", manifest, "validation")[0] == 50256


def prepare_quietly(folder, out):
    """For `process_memory.measure`: in a process of its own."""
    prepare(folder, out)
    yield "prepared"


def test_memory_does_not_grow_with_the_number_of_books(tmp_path):
    peaks = []
    for count in (20, 120):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for i in range(count):
            text = shelf.story(i, words=2000)
            (folder / f"book{i}.txt").write_text(text, encoding="utf-8")
        (folder / "book5.txt").write_text(shelf.story(9999), encoding="utf-8")
        out = tmp_path / f"out{count}"
        taken = process_memory.measure(prepare_quietly, folder, out)
        peaks.append(taken.peak)
        books = json.loads((out / "manifest.json").read_text())["splits"]
        assert books["train"]["books"] == count - 1
    assert peaks[1] < 1.1 * peaks[0]
