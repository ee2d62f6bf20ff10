"""From a folder of books to shards of token ids (chapter 5, bonus).

    python3 -m course run ch05/03_bonus_pretraining_on_gutenberg/prepare_dataset.py \\
        --books packages --out runs/ch05-shards

One book after the other is decoded, stripped, checked for its language, compared with
all before it, and kept as a clean file or set aside with the reason. Then a tokenizer
is trained on a sample of what was kept, and every kept book becomes token ids in the
shards of its split. Training and validation share no book: those for validation come
first, so that of two copies the one in the training text is set aside.

In memory are one book at a time, the sample for the tokenizer, and the names of the
files. What else is known of them lies in a small database, `state.sqlite`, whose
transactions also make the run resumable: killed at any moment and started again with
the same options, it goes on, and ends with the same files. The last file written is
`manifest.json`.

>>> split_of("emma.txt", share=0.0, named=["emma*"])
'validation'
>>> [split_of(f"{i}.txt", share=0.25) for i in range(8)].count("validation")
2
"""

import argparse
import contextlib
import csv
import fnmatch
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import books
import script_tools
from book_cleaning import (
    decode_book,
    guess_language,
    mend_mojibake,
    strip_boilerplate,
    tidy,
)
from bpe import load_tokenizer, save_tokenizer, train_tokenizer
from near_duplicates import band_keys, minhash, shingles, similarity
from shelf_state import STATE, ShelfState, told_in_a_sentence
from token_shards import ShardWriter, digest_of, dtype_for

MANIFEST, TOKENIZER, TABLE = "manifest.json", "tokenizer.json", "books.csv"
CLEAN = "clean"  # of the work; gone when it is done, as is STATE
SPLITS = ("train", "validation")
LARGEST = 32 << 20  # bytes of a book: a larger file is no book, and is set aside
SHORTEST = 1000  # characters that have to be left
SAMPLE = 2_000_000  # characters that the tokenizer is trained on
CACHED_WORDS = 20_000  # of the tokenizer, so that its memory stays flat


def split_of(name: str, share: float, named: Sequence[str] = ()) -> str:
    """The split of a book: by its name, so that it is the same in every run.

    Args:
        name: of the book.
        share: of the books that go to the validation split, by a hash of the name.
        named: patterns of names that go there; with any, `share` decides nothing.
    """
    if named:
        chosen = any(fnmatch.fnmatchcase(name, pattern) for pattern in named)
    else:
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        chosen = number < share * 2**64
    return SPLITS[chosen]


# --- First: clean, compare, keep or set aside ----------------------------------------


def clean_book(data: bytes, languages: Sequence[str]) -> dict[str, Any]:
    """One file's bytes as clean text, with what was found out on the way.

    Raises:
        ValueError: it is no training text, with the reason.
    """
    text, encoding = decode_book(data)
    mended = mend_mojibake(text)
    found: dict[str, Any] = {"encoding": encoding + " mended" * (mended != text)}
    stripped = strip_boilerplate(tidy(mended))
    text = tidy(stripped.text)
    if len(text) < SHORTEST:
        raise ValueError(f"only {len(text)} characters are left")
    language, share = guess_language(text)
    if languages and language not in languages:
        raise ValueError(f"language: {language} ({share:.2f} small words)")
    return found | {
        "text": text,
        "rules": " ".join(stripped.rules),
        "language": language,
    }


def take_book(
    work: ShelfState, out: Path, place: int, path: Path, options: argparse.Namespace
) -> None:
    """Clean and compare a book, and note what becomes of it."""
    size = path.stat().st_size
    row: dict[str, Any] = {"place": place, "name": path.name, "size": size}
    try:
        if size > LARGEST:
            raise ValueError(f"{size:,} bytes: a library, not a book; cut it up")
        found = clean_book(path.read_bytes(), options.languages)
        text = found.pop("text")
        row |= found | _compared(work, text, options.similar)
    except ValueError as problem:
        row |= {"status": "aside", "reason": str(problem)}
    keys = row.pop("keys", [])
    if row["status"] == "kept":
        row["split"] = split_of(path.name, options.share, options.validation)
        data = text.encode("utf-8")
        row["bytes"] = len(data)
        books.write_whole(out / CLEAN / f"{place:07}.txt", data)
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    with work.transaction():
        work.db.execute(f"INSERT INTO book ({names}) VALUES ({marks})", [*row.values()])
        pairs = [(key, place) for key in keys]
        work.db.executemany("INSERT INTO band VALUES (?, ?)", pairs)


def _compared(work, text, similar):
    """What becomes of a clean text: kept, or aside as a copy of an earlier one."""
    digest = hashlib.sha256(" ".join(text.split()).encode("utf-8")).hexdigest()
    same = next(work.rows("WHERE digest = ? AND status = 'kept'", digest), None)
    if same is not None:
        raise ValueError(f"the same text as {same['name']}")
    if similar > 1:  # nothing is
        return {"status": "kept", "digest": digest}
    signature = minhash(shingles(text))
    keys = band_keys(signature)
    marks = ", ".join("?" * len(keys))
    met = f"WHERE place IN (SELECT place FROM band WHERE key IN ({marks}))"
    for other in work.rows(met, *keys):
        alike = similarity(signature, np.frombuffer(other["signature"], np.uint32))
        if alike >= similar:
            raise ValueError(f"similarity {alike:.2f} to {other['name']}")
    return {
        "status": "kept",
        "digest": digest,
        "signature": signature.tobytes(),
        "keys": keys,
    }


# --- Second: the tokenizer -----------------------------------------------------------


def sample_of(work: ShelfState, out: Path) -> str:
    """A stretch of each kept training book, in all about `SAMPLE` characters."""
    kept = "FROM book WHERE status = 'kept' AND split = 'train'"
    whole = work.one(f"SUM(bytes) {kept}")
    parts = []
    for row in work.rows("WHERE status = 'kept' AND split = 'train'"):
        text = _clean_text(out, row)
        length = max(round(row["bytes"] * min(SAMPLE / whole, 1)), 1)
        parts.append(text[len(text) // 3 :][:length] if whole > SAMPLE else text)
    return "\n".join(parts)


def _clean_text(out, row):
    path = out / CLEAN / f"{row['place']:07}.txt"
    return path.read_bytes().decode("utf-8")


def get_tokenizer(work: ShelfState, out: Path, vocab: str) -> Any:
    """GPT-2's tokenizer, that of a file, or one of `vocab` tokens.

    The last is trained on a sample, once.
    """
    if vocab == "gpt2":
        return script_tools.gpt2_tokenizer()
    path = out / TOKENIZER
    if work.note("tokenizer") is None:
        if vocab.isdecimal():
            made = train_tokenizer(sample_of(work, out), int(vocab))
        else:
            made = load_tokenizer(vocab)
        save_tokenizer(made, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        with work.transaction():
            work.set_note("tokenizer", digest_of(path))
    return load_tokenizer(path)


# --- Third: the shards ---------------------------------------------------------------


def write_split(
    work: ShelfState, out: Path, split: str, tokenizer: Any, tokens_per_shard: int
) -> list[dict]:
    """Write the ids of all kept books of a split; return its shards."""
    done = json.loads(work.note(split, '{"written": 0, "place": -1}'))
    dtype = dtype_for(tokenizer.n_vocab)
    writer = ShardWriter(out / split, dtype, tokens_per_shard, done["written"])
    end = tokenizer.eot_token
    todo = "WHERE status = 'kept' AND split = ? AND place > ?"
    rows = work.rows(todo, split, done["place"])
    for row in tqdm(rows, f"writing {split}", unit="book", disable=None):
        ids = tokenizer.encode_ordinary(_clean_text(out, row))
        writer.add([end] * (writer.written == 0) + ids + [end])
        if len(getattr(tokenizer, "cache", ())) > CACHED_WORDS:
            tokenizer.cache.clear()
        where = {"written": writer.flush(), "place": row["place"]}
        with work.transaction():
            work.set_note(split, json.dumps(where))
            work.db.execute(
                "UPDATE book SET tokens = ? WHERE place = ?", [len(ids), row["place"]]
            )
    return writer.close()


# --- All of it -----------------------------------------------------------------------


def files_of(folder: Path, options: argparse.Namespace) -> list[Path]:
    """All text files below a folder, those for validation first, then by path.

    Of two copies the first one is kept. So a book for validation never has a copy in
    the training text.
    """

    def place(path):
        split = split_of(path.name, options.share, options.validation)
        return -SPLITS.index(split), path

    files = [path for path in folder.rglob("*.txt") if path.is_file()]
    if not files:
        raise ValueError(f"{folder} holds no file that ends in .txt: give another.")
    return sorted(files, key=place)


def prepare(folder: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Prepare the books in a folder; go on where a killed run stopped.

    Args:
        folder: text files, at any depth.
        out: gets `manifest.json`, `books.csv`, `tokenizer.json`, and the splits.
        options: those of the command line.

    Returns:
        The manifest.

    Raises:
        ValueError: no book is left for one of the splits, or the work is damaged.
        RuntimeError: another run is at work there, or the disk is full.
    """
    with told_in_a_sentence(out):
        return _prepared(folder, out, options)


def _prepared(folder, out, options):
    """What `prepare` does, with the errors of Python."""
    files = files_of(folder, options)
    names = "\n".join(
        f"{path.relative_to(folder)} {path.stat().st_size}" for path in files
    )
    settings = {
        "books": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        **{name: getattr(options, name) for name in _DECIDING},
    }
    out.mkdir(parents=True, exist_ok=True)
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        if manifest["settings"] == settings:
            print(f"{out} is ready already.")
            return manifest
        raise ValueError(
            f"{out} holds a data set of other books or options: --overwrite starts "
            "over, or choose another --out."
        )
    work = ShelfState(out, settings)
    with contextlib.closing(work.db):
        return _worked_off(work, files, out, options)


def _worked_off(work, files, out, options):
    """Clean, tokenise, write; return the manifest."""
    first = work.one("COALESCE(MAX(place) + 1, 0) FROM book")
    if 0 < first < len(files):
        print(f"Going on with book {first + 1:,} of {len(files):,}.")
    bar = tqdm(files, "cleaning", initial=first, unit="book", disable=None)
    for place, path in enumerate(files[first:], first):
        bar.update()
        take_book(work, out, place, path, options)
    bar.close()
    _check_splits(work, out)
    tokenizer = get_tokenizer(work, out, options.vocab)
    shards = {
        split: write_split(work, out, split, tokenizer, options.tokens_per_shard)
        for split in SPLITS
    }
    manifest = _finish(work, out, tokenizer, shards)
    report(manifest, out)
    return manifest


def _check_splits(work, out):
    """Raise unless each split has a book; clear the work, which is of no use then."""
    for split in SPLITS:
        if work.one("COUNT(*) FROM book WHERE status = 'kept' AND split = ?", split):
            continue
        aside, said = next(work.rows("WHERE status = 'aside'"), None), ""
        if aside is not None:
            said = f" Set aside, for one: {aside['name']} ({aside['reason']})."
        work.db.close()
        clear_work(out)
        raise ValueError(
            f"No book is left for the {split} split: give more books, or name some "
            f"with --validation.{said}"
        )


_DECIDING = ("languages", "similar", "share", "validation", "vocab", "tokens_per_shard")


def _finish(work, out, tokenizer, shards):
    """Write the table of all books and, last, the manifest; clear the work away."""
    shown = "name size status reason encoding rules language split bytes tokens"
    shown = shown.split()
    with (out / f"{TABLE}.part").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(shown)
        for row in work.rows(""):
            writer.writerow([row[name] for name in shown])
    os.replace(out / f"{TABLE}.part", out / TABLE)
    own = hasattr(tokenizer, "to_json")
    manifest = {
        "format": 1,
        "settings": json.loads(work.note("settings")),
        "dtype": dtype_for(tokenizer.n_vocab),
        "tokenizer": TOKENIZER if own else "gpt2",
        "tokenizer_sha256": digest_of(out / TOKENIZER) if own else "",
        "n_vocab": tokenizer.n_vocab,
        "books_sha256": digest_of(out / TABLE),
        "splits": {},
    }
    kept = "FROM book WHERE status = 'kept' AND split = ?"
    for split in SPLITS:
        manifest["splits"][split] = {
            "books": work.one(f"COUNT(*) {kept}", split),
            "bytes": work.one(f"SUM(bytes) {kept}", split),
            "tokens": sum(shard["tokens"] for shard in shards[split]),
            "shards": shards[split],
        }
    manifest["aside"] = work.one("COUNT(*) FROM book WHERE status = 'aside'")
    work.db.close()
    text = json.dumps(manifest, indent=1) + "\n"
    books.write_whole(out / MANIFEST, text.encode("utf-8"))
    clear_work(out)
    return manifest


def clear_work(out: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in out.glob(f"{STATE}*"):
        path.unlink()
    _remove(out / CLEAN, "[0-9]" * 7 + ".txt*")


def clear(out: Path) -> None:
    """Remove a data set and unfinished work, and nothing that others put there."""
    for name in (MANIFEST, TABLE, TOKENIZER):
        for path in (out / name, out / f"{name}.part"):
            path.unlink(missing_ok=True)
    (out / TOKENIZER).with_suffix(".part").unlink(missing_ok=True)
    clear_work(out)
    for split in SPLITS:
        _remove(out / split, "[0-9]" * 5 + "*.bin")


def _remove(folder, pattern):
    """Remove the files of a pattern, and their folder if it is empty then."""
    for path in folder.glob(pattern):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def read_manifest(out: Path, check: bool = False) -> dict[str, Any]:
    """The manifest of a data set.

    Args:
        out: the folder.
        check: whether to read every shard and compare its hash.

    Raises:
        ValueError: it is missing, or a file is not what it says.
    """
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        splits = manifest["splits"]
    except (OSError, ValueError, KeyError) as problem:
        raise ValueError(
            f"{out} holds no data set that is whole ({type(problem).__name__}): run "
            "prepare_dataset.py again; it goes on where it stopped."
        ) from None
    width = np.dtype(manifest["dtype"]).itemsize
    for split, content in splits.items():
        for shard in content["shards"]:
            path = out / split / shard["file"]
            whole = path.is_file() and path.stat().st_size == shard["tokens"] * width
            if not whole or (check and digest_of(path) != shard["sha256"]):
                raise ValueError(
                    f"{path} is not what the manifest says: prepare the data set "
                    "again with --overwrite, or copy the whole folder again."
                )
    return manifest


def report(manifest: dict[str, Any], out: Path) -> None:
    """Say what came out."""
    for split, content in manifest["splits"].items():
        print(
            f"{split}: {content['books']:,} books, {content['bytes']:,} bytes, "
            f"{content['tokens']:,} tokens in {len(content['shards'])} shards"
        )
    print(f"{manifest['aside']:,} files set aside; {out / TABLE} says why.")


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py",
        description="Turn books into shards of token ids for pretraining.py.",
    )
    add = parser.add_argument
    source = "packages, python or gutenberg (books.py brings them), or a folder"
    add("--books", default="packages", help=f"{source} (%(default)s)")
    add("--limit", type=script_tools.positive_int, default=100, help="for gutenberg")
    add("--out", type=Path, help="folder (runs/ch05-shards)")
    text = "size, gpt2, or tokenizer.json of another data set (%(default)s)"
    add("--vocab", type=_vocab, default="4096", help=text)
    text = "keep these only, such as en fr; any for all (en)"
    add("--languages", nargs="+", default=["en"], help=text)
    text = "from this similarity on a book is a copy; above 1 none is (%(default)s)"
    add("--similar", type=script_tools.positive_float, default=0.7, help=text)
    text = "share of the books kept for validation (%(default)s)"
    add("--share", type=_share, default=0.05, help=text)
    text = "pattern of names for validation, instead of --share; can be repeated"
    add("--validation", action="append", default=[], metavar="NAME", help=text)
    whole = script_tools.positive_int
    add("--tokens-per-shard", type=whole, default=10_000_000, help="(%(default)s)")
    script_tools.add_again(parser, "a data set")
    return parser


def _vocab(text):
    if text.endswith(".json"):
        try:
            load_tokenizer(text)
        except (OSError, ValueError) as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None
    elif text != "gpt2" and not (text.isdecimal() and int(text) > 256):
        raise argparse.ArgumentTypeError("gpt2, a file.json, or a number above 256")
    return text


def _share(text):
    value = script_tools.positive_float(text)
    if value >= 1:
        raise argparse.ArgumentTypeError("must be below 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a data set; return the exit code."""
    options = script_tools.parse(make_parser(), arguments)
    if options.out is None:
        options.out = script_tools.runs_folder() / "ch05-shards"
    stopped = "stopped; the same command goes on from here."
    return script_tools.run(_prepare, options, stopped=stopped)


def _prepare(options):
    """Everything after the options are read."""
    script_tools.folder_to_write(options.out)
    folder = Path(options.books)
    if options.books in ("packages", "python", "gutenberg"):
        folder = script_tools.runs_folder() / "ch05-books" / options.books
        if not folder.is_dir() or options.books == "gutenberg":
            books.bring(options.books, folder, options.limit)
        if options.books == "python" and options.languages == ["en"]:
            options.languages = ["any"]  # it is not prose
    elif not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: see --books in --help.")
    if options.languages == ["any"]:
        options.languages = []
    if options.overwrite:
        clear(options.out)
    prepare(folder, options.out, options)


if __name__ == "__main__":
    sys.exit(main())
