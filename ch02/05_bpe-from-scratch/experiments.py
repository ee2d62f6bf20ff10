"""How fast are our trainers and encoder, and do their ids agree with tiktoken's?

    python3 -m course run ch02/05_bpe-from-scratch/experiments.py

The large text is at least 5 MB of the sources of Python's own standard library, as they
lie beside the Python that runs this; the small one is the beginning of the course's
story. All contestants use one thread and take turns within one run, so that a busy
machine hinders all alike.

* `training.csv`: the naive and the incremental trainer beside the one of the package
  tokenizers, which is written in Rust. All learn the same merges; this is compared. The
  naive one makes its first 200 merges on the large text, and 20 more where the others
  end. It goes through all ids for each merge, and they become fewer; so the seconds of
  a merge in between are interpolated by the ids, whose number before each is known;
* `encoding.csv`: the same text encoded with GPT-2's vocabulary by ours, first with an
  empty cache and then again, and by tiktoken;
* `parity.csv`: random strings whose ids were compared with tiktoken's;
* `growth.csv`: how many tokens unseen files of the library have for each character, as
  the vocabulary grows. The folder `encodings` is left out: its files are near-copies of
  each other, so that hardly one of them is unseen.

Takes about ten minutes and 1 GB.
"""

import json
import os
import random
import statistics
import sys
import sysconfig
import time
import unicodedata
from collections import Counter
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # before tokenizers is imported

import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from bpe import (
    BPETokenizer,
    byte_alphabet,
    count_chunks,
    load_vocab_and_merges_from_openai,
    merge_chunk,
    replace_pair,
    train_incremental,
    train_naive,
)
from course import tables
from course.assets import fetch

RESULTS = Path(__file__).parent / "results"
NAIVE, INCREMENTAL, RUST = "ours, naive", "ours, incremental", "tokenizers, Rust"
FIRST, LAST, ALL = "naive, first merges", "naive, last merges", "naive, interpolated"
LARGE, SMALL = "standard library", "story"
LEFT_OUT = ("site-packages", "dist-packages", "test", "idlelib")  # of the library
SMALL_CHARACTERS, SMALL_MERGES = 20_479, 742
# What strings that are hard for a tokenizer are made of.
BLANKS = " \t\n\r\x0b\xa0\u2003\u3000"
PIECES = ["'s", "'LL", "don't", " the", "2026", "\u00bd", "\u0660", "<|", "\U0001f352"]
LETTERS = "aA0 '\n.-\u00e9\u3042\U0001f352"


# --- Texts and contestants ------------------------------------------------------------


def library_files(characters, left_out=LEFT_OUT):
    """Texts of the standard library's files in the order of their paths, so many."""
    root, files, total = Path(sysconfig.get_path("stdlib")), [], 0
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if inside[0] in left_out:
            continue
        try:
            files.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # a file that tests other encodings
        total += len(files[-1])
        if total >= characters:
            break
    return files


def gpt2():
    """GPT-2's tokenizer, ours."""
    names = ("gpt2-encoder.json", "gpt2-vocab.bpe")
    return load_vocab_and_merges_from_openai(*map(fetch, names))


def merges_in_rust(files, num_merges):
    """The merges that the package tokenizers learns, as pairs of bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + num_merges,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(files, trainer)
    alphabet = byte_alphabet()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(bytes(alphabet[c] for c in token) for token in m) for m in merges]


def count_in_files(files):
    """The chunks of all files; none reaches from one file into the next."""
    return count_chunks("<|endoftext|>".join(files), ["<|endoftext|>"])


def merges_of_ours(files, num_merges, train=train_incremental):
    """The merges that we learn. Bytes have GPT-2's numbers, which decide some ties."""
    first_bytes = bytes(byte_alphabet().values())
    numbers = bytes(first_bytes.index(byte) for byte in range(256))
    chunks = {
        tuple(bytes(chunk).translate(numbers)): times
        for chunk, times in count_in_files(files).items()
    }
    merges = train(chunks, num_merges)
    token_bytes = BPETokenizer(merges, first_bytes=first_bytes).token_bytes
    return [(token_bytes[left], token_bytes[right]) for left, right in merges]


def timed(call, *arguments):
    """What a call returns, and its seconds."""
    start = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - start


# --- Training -------------------------------------------------------------------------


def turns(contestants, files, num_merges, rounds):
    """Median seconds of each contestant; all learn the same merges."""
    seconds, learned = {name: [] for name in contestants}, []
    for turn in range(rounds):
        names = list(contestants)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            merges, spent = timed(contestants[name], files, num_merges)
            seconds[name].append(spent)
            learned.append(merges)
    if any(merges != learned[0] for merges in learned):
        raise RuntimeError("The contestants learn different merges.")
    if len(learned[0]) != num_merges:
        raise RuntimeError(f"The text is too short for {num_merges} merges.")
    return {name: statistics.median(times) for name, times in seconds.items()}


def ids_before_each_merge(ended, merges):
    """The number of ids in all chunks before each merge, and after the last one.

    `ended` are the chunks after all merges. Where a merge is made, two ids become one.
    The tokens that are there at the end tell how often: each was made by a merge, and
    so were the two that it was made of, down to the bytes.
    """
    made = Counter(i for ids in ended for i in ids)
    numbers = [sum(map(len, ended))]
    for i, pair in reversed(list(enumerate(merges, start=256))):
        numbers.append(numbers[-1] + made[i])
        for part in pair:
            made[part] += made[i]
    return numbers[::-1]


def naive_parts(files, num_merges, first, last):
    """Seconds of the naive trainer, and the ids that it goes through for a merge.

    Measured are the first and the last merges. Those of all are interpolated: between
    the two, the seconds of a merge are taken to be linear in the ids.
    """
    chunks = count_in_files(files)
    merges, first_seconds = timed(train_naive, chunks, first)
    if merges != train_incremental(chunks, first):
        raise RuntimeError("The naive trainer learns other merges.")
    all_merges = train_incremental(chunks, num_merges)
    new_ids = {pair: 256 + i for i, pair in enumerate(all_merges)}
    ended = {tuple(merge_chunk(chunk, new_ids)): n for chunk, n in chunks.items()}
    _, last_seconds = timed(train_naive, ended, last)
    numbers = ids_before_each_merge(ended, all_merges)
    ids = {
        FIRST: round(statistics.mean(numbers[:first])),
        LAST: numbers[-1],
        ALL: round(statistics.mean(numbers[:-1])),
    }
    seconds = {FIRST: first_seconds, LAST: last_seconds}
    seconds[ALL] = num_merges * interpolated(
        ids, first_seconds / first, last_seconds / last
    )
    return seconds, ids


def interpolated(ids, first, last):
    """Seconds of a merge on average, from those of the first and of the last ones."""
    return last + (first - last) * (ids[ALL] - ids[LAST]) / (ids[FIRST] - ids[LAST])


def training_rows(task, files, num_merges, seconds, measured, ids, common):
    """One row for each contestant, with how many times as long it takes as ours."""
    for name, spent in seconds.items():
        yield {
            "contestant": name,
            "text": task,
            "characters": sum(map(len, files)),
            "merges": measured.get(name, num_merges),
            "ids_of_a_merge": ids.get(name, ""),
            "compared_with": "" if name in measured else INCREMENTAL,
            "seconds": f"{spent:.4g}",
            "times_as_long": (
                "" if name in measured else f"{spent / seconds[INCREMENTAL]:.2f}"
            ),
            **common,
        }


def training(sizes, common):
    contestants = {INCREMENTAL: merges_of_ours, RUST: merges_in_rust}
    files = library_files(sizes["characters"])
    num_merges, first, last = sizes["merges"], sizes["first"], sizes["last"]
    seconds = turns(contestants, files, num_merges, sizes["rounds"])
    naive_seconds, ids = naive_parts(files, num_merges, first, last)
    seconds |= naive_seconds
    measured = {FIRST: first, LAST: last}
    yield from training_rows(LARGE, files, num_merges, seconds, measured, ids, common)

    story = [fetch("short-story").read_text(encoding="utf-8")[:SMALL_CHARACTERS]]
    contestants[NAIVE] = lambda files, n: merges_of_ours(files, n, train_naive)
    merges = sizes["small_merges"]
    seconds = turns(contestants, story, merges, sizes["rounds"])
    yield from training_rows(SMALL, story, merges, seconds, {}, {}, common)


# --- Encoding -------------------------------------------------------------------------


def encoding(sizes, common):
    ours, theirs = gpt2(), tiktoken.get_encoding("gpt2")
    story = fetch("short-story").read_text(encoding="utf-8")
    library = "".join(library_files(sizes["encoded"]))
    for task, text in ((SMALL, story), (LARGE, library)):
        seconds = {"ours, empty cache": [], "ours, again": [], "tiktoken": []}
        for _ in range(sizes["rounds"]):
            ours.cache.clear()
            found = []
            for name, times in seconds.items():
                tokenizer = theirs if name == "tiktoken" else ours
                ids, spent = timed(tokenizer.encode_ordinary, text)
                times.append(spent)
                found.append(ids)
            if found[0] != found[2] or found[1] != found[2]:
                raise RuntimeError("The ids differ from tiktoken's.")
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        for name, spent in medians.items():
            yield {
                "contestant": name,
                "text": task,
                "characters": len(text),
                "tokens": len(found[2]),
                "milliseconds": f"{1000 * spent:.4g}",
                "times_as_long_as_tiktoken": f"{spent / medians['tiktoken']:.2f}",
                "rounds": sizes["rounds"],
                **common,
            }


def random_character(rng):
    """A character of any plane.

    Left out are halves of surrogate pairs, and what this Python's tables do not know:
    regex and tiktoken follow different editions of Unicode and disagree on what is new
    in one. Planes 4 to 13 are empty in all of them.
    """
    while True:
        character = chr(rng.randrange(0x110000))
        empty = 0x40000 <= ord(character) < 0xE0000
        if empty or unicodedata.category(character) not in ("Cn", "Cs"):
            return character


def hard_text(rng):
    """Up to 200 characters: words, white space in runs, digits, signs, anything."""
    parts = []
    for _ in range(rng.randrange(20)):
        kind, length = rng.randrange(4), rng.randrange(1, 13)
        if kind == 0:
            parts += [random_character(rng) for _ in range(length)]
        elif kind == 1:
            parts += rng.choice(BLANKS) * rng.randrange(1, 6)
        elif kind == 2:
            parts.append(rng.choice(PIECES))
        else:
            parts += rng.choices(LETTERS, k=length)
    return "".join(parts)[:200]


def parity(sizes, common):
    ours, theirs = gpt2(), tiktoken.get_encoding("gpt2")
    rng, characters, different, lost = random.Random(common["seed"]), 0, 0, 0
    for _ in range(sizes["strings"]):
        text = hard_text(rng)
        ids = ours.encode_ordinary(text)
        characters += len(text)
        different += ids != theirs.encode_ordinary(text)
        lost += ours.decode(ids) != text
    yield {
        "strings": sizes["strings"],
        "characters": characters,
        "different": different,
        "not_given_back": lost,
        "tiktoken": tiktoken.__version__,
        **common,
    }


# --- Growth ---------------------------------------------------------------------------


def growth(sizes, common):
    """Every tenth file is kept back; a smaller vocabulary is the start of a larger."""
    files = library_files(sizes["characters"], (*LEFT_OUT, "encodings"))
    unseen = files[::10]
    chunks = count_in_files([text for i, text in enumerate(files) if i % 10])
    merges = train_incremental(chunks, sizes["grown"] - 256)
    words = [[list(chunk), n] for chunk, n in count_in_files(unseen).items()]
    characters = sum(map(len, unseen))
    for size in range(256, 257 + len(merges)):
        if size > 256:
            pair = merges[size - 257]
            for word in words:
                if pair[0] in word[0]:
                    word[0] = replace_pair(word[0], pair, size - 1)
        if size.bit_count() == 1 or (size % 3 == 0 and (size // 3).bit_count() == 1):
            tokens = sum(n * len(ids) for ids, n in words)
            yield {
                "vocabulary": size,
                "tokens": tokens,
                "characters": characters,
                "tokens_per_character": f"{tokens / characters:.4f}",
                **common,
            }


# --- The run --------------------------------------------------------------------------

TABLES = {
    "training": training,
    "encoding": encoding,
    "parity": parity,
    "growth": growth,
}
FULL_SIZES = {
    "characters": 5_300_000,
    "merges": 4096 - 256 - 1,
    "small_merges": SMALL_MERGES,
    "first": 200,
    "last": 20,
    "rounds": 3,
    "encoded": 1_000_000,
    "strings": 100_000,
    "grown": 2**14,
}
TINY_SIZES = {
    "characters": 40_000,
    "merges": 60,
    "small_merges": 30,
    "first": 4,
    "last": 2,
    "rounds": 1,
    "encoded": 20_000,
    "strings": 50,
    "grown": 400,
}


def main(arguments=None):
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    common = tables.facts(seed=options.seed, tokenizers=tokenizers.__version__)
    sizes = TINY_SIZES if options.tiny else FULL_SIZES
    for name in options.only:
        rows = list(TABLES[name](sizes, common))
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
        for row in rows:
            print("  " + ", ".join(str(value) for value in list(row.values())[:7]))
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
