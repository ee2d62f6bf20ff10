"""How fast are five implementations of GPT-2's tokenizer, and do they agree?

    python3 -m course run ch02/02_bonus_bytepair-encoder/experiments.py

`ENCODERS` maps the name of each to two functions: one loads it anew, with empty caches;
one takes it and a text and returns the ids of the text, in which nothing is special.
`compare-bpe-tiktoken.ipynb` uses them, too.

The class in Python is a stand-in: since version 5, transformers has GPT-2 on the Rust
library only. `ClvpTokenizer` is a class there that still runs OpenAI's loop for byte
pair encoding in Python; with GPT-2's files, and without its English spelling rules, it
does what the slow class for GPT-2 did.

All do the same work in one thread, in turns within one run. What is counted is the time
of the processor, because on a busy machine a slow one is interrupted more often than a
quick one. A ratio is the median over the rounds of one's seconds over tiktoken's. Three
tables go to `results/`:

* `speed.csv`: loading; one sentence; a story of 23,357 characters and 300,000 of
  Python's own standard library, each by a tokenizer that meets it for the first time,
  and again;
* `growth.csv`: one chunk of random letters without a space, 250 to 2,000 of them;
* `agreement.csv`: on how many of all characters that Unicode has room for each gives
  other ids than tiktoken, in places where it matters whether a character is a letter or
  digit, white space or another sign; and how many of these Python's table knows.

Takes about four minutes and 1 GB.
"""

import hashlib
import random
import statistics
import string
import sys
import sysconfig
import time
import unicodedata
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tiktoken
import tokenizers
import transformers
from tiktoken_ext import openai_public
from tqdm import tqdm

from bpe import BPETokenizer, load_vocab_and_merges_from_openai
from course import assets, tables
from dataloader import END_OF_TEXT
from script_tools import positive_int

RESULTS = Path(__file__).parent / "results"
REFERENCE = "tiktoken"
PACKAGES = ("tiktoken", "tokenizers", "transformers", "regex")
SENTENCE = "Is this a test, or is it -- at 3 o'clock -- the real thing?"
REPEATS = 200  # of a sentence, which is too short to be timed alone
AGAIN = 5  # readings of a text that has been met, of which the quickest counts
LETTERS = (250, 500, 1000, 2000)
TICK = time.get_clock_info("process_time").resolution
TEXTS_OF = 97  # characters of one text in the test of agreement


# --- The five ------------------------------------------------------------------------


def gpt2_files() -> tuple[str, str]:
    """The paths of GPT-2's vocabulary and of its merges."""
    names = ("gpt2-encoder.json", "gpt2-vocab.bpe")
    vocab, merges = (str(assets.fetch(name)) for name in names)
    return vocab, merges


def load_tiktoken() -> tiktoken.Encoding:
    """OpenAI's library: Rust, with its own table of pieces for each vocabulary."""
    return tiktoken.Encoding(**openai_public.gpt2())


def load_tokenizers() -> tokenizers.Tokenizer:
    """Hugging Face's library: Rust, put together from parts."""
    model = tokenizers.models.BPE.from_file(*gpt2_files())
    tokenizer = tokenizers.Tokenizer(model)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def load_transformers() -> transformers.GPT2Tokenizer:
    """The class of transformers for GPT-2: the library above in a wrapper."""
    vocab, merges = gpt2_files()
    return transformers.GPT2Tokenizer(vocab=vocab, merges=merges)


def load_python_class() -> transformers.ClvpTokenizer:
    """A class of transformers written in Python, on GPT-2's files."""
    vocab, merges = gpt2_files()
    names = ("unk_token", "bos_token", "eos_token", "pad_token")
    special = dict.fromkeys(names, END_OF_TEXT)
    tokenizer = transformers.ClvpTokenizer(vocab, merges, **special)
    tokenizer._normalizer = lambda text: text  # no English spelling rules
    return tokenizer


def load_ours() -> BPETokenizer:
    """The tokenizer that the folder 05_bpe-from-scratch builds."""
    return load_vocab_and_merges_from_openai(*gpt2_files())


def _ordinary(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode_ordinary(text)


def _called(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, split_special_tokens=True)["input_ids"]


def _encoded(tokenizer: Any, text: str) -> list[int]:
    tokenizer.encode_special_tokens = True  # as text
    return tokenizer.encode(text).ids


ENCODERS: dict[str, tuple[Callable[[], Any], Callable[[Any, str], list[int]]]] = {
    "tiktoken": (load_tiktoken, _ordinary),
    "tokenizers": (load_tokenizers, _encoded),
    "transformers": (load_transformers, _called),
    "transformers, in Python": (load_python_class, _called),
    "ours": (load_ours, _ordinary),
}
# How much of a library's time goes into noting where in the text each token stands?
WITHOUT_OFFSETS = {
    "tokenizers, no offsets": (
        load_tokenizers,
        lambda tokenizer, text: tokenizer.encode_batch_fast([text])[0].ids,
    )
}
TIMED = {**ENCODERS, **WITHOUT_OFFSETS}


# --- What is measured ----------------------------------------------------------------


def python_sources(size):
    """The standard library's modules one after the other, cut to so many characters."""
    folder, text = Path(sysconfig.get_paths()["stdlib"]), ""
    for path in sorted(folder.glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= size:
            break
    return text[:size]


def seconds_of(function, *arguments):
    """The processor's seconds for one call, and what it returns."""
    start = time.process_time()
    result = function(*arguments)
    return max(time.process_time() - start, TICK), result


def speed_of(name, texts):
    """Seconds of each task for a tokenizer that is loaded anew, and all its ids."""
    load, ids = TIMED[name]
    seconds, found = {}, {}
    seconds["load"], tokenizer = seconds_of(load)
    seconds["sentence, first"], found["sentence"] = seconds_of(ids, tokenizer, SENTENCE)
    total, _ = seconds_of(lambda: [ids(tokenizer, SENTENCE) for _ in range(REPEATS)])
    seconds["sentence, again"] = total / REPEATS
    for key, text in texts.items():
        seconds[f"{key}, first"], found[key] = seconds_of(ids, tokenizer, text)
        again = [seconds_of(ids, tokenizer, text)[0] for _ in range(AGAIN)]
        seconds[f"{key}, again"] = min(again)
    return seconds, found


def in_turns(names, rounds):
    """(round, name) so that each goes first in turn; round 0 warms up."""
    names = list(names)
    for turn in tqdm(range(rounds + 1), unit="round", disable=None):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            yield turn, name


def speed_rows(texts, rounds, common):
    """One row for each task and implementation; all must give the same ids."""
    seconds, reference = {}, None
    for turn, name in in_turns(TIMED, rounds):
        needed, found = speed_of(name, texts)
        reference = reference or found
        if found != reference:
            raise RuntimeError(f"{name} gives other ids than the rest.")
        if turn:
            for task, value in needed.items():
                seconds.setdefault((task, name), []).append(value)
    for (task, name), times in seconds.items():
        text = (
            SENTENCE if task.startswith("sentence") else texts.get(task.split(",")[0])
        )
        ratios = zip(times, seconds[task, REFERENCE], strict=True)
        yield {
            "task": task,
            "implementation": name,
            "characters": len(text or ""),
            "seconds": f"{statistics.median(times):.3g}",
            "over_tiktoken": f"{statistics.median(a / b for a, b in ratios):.3g}",
            "rounds": rounds,
            "sha256": hashlib.sha256((text or "").encode()).hexdigest()[:16],
            **common,
        }


def growth_rows(letters, rounds, seed, common):
    """Seconds for one chunk of random letters, by tokenizers that never met it."""
    loaded = {name: (load(), ids) for name, (load, ids) in ENCODERS.items()}
    draw, times = random.Random(seed), {}
    for turn, name in in_turns(ENCODERS, rounds):
        for count in letters:
            chunk = "".join(draw.choices(string.ascii_lowercase, k=count))
            tokenizer, ids = loaded[name]
            needed, _ = seconds_of(ids, tokenizer, chunk)
            if turn:
                times.setdefault((name, count), []).append(needed)
    for (name, count), found in times.items():
        row = {"implementation": name, "letters": count, "rounds": rounds}
        yield row | {"seconds": f"{statistics.median(found):.3g}"} | common


def in_context(character):
    """The character where its class decides how the text is cut, and so the ids.

    White space joins the blanks before it, a letter or digit leaves `'t` whole, and any
    other sign takes the apostrophe along.
    """
    return f"  {character}'t {character}a1\n"


def agreement_rows(characters, common):
    """For each implementation, on how many characters it differs from tiktoken."""
    loaded = {name: (load(), ids) for name, (load, ids) in ENCODERS.items()}
    different = {name: [] for name in ENCODERS}

    def all_ids(text):
        return {name: ids(one, text) for name, (one, ids) in loaded.items()}

    starts = range(0, len(characters), TEXTS_OF)
    for start in tqdm(starts, unit="text", disable=None):
        part = characters[start : start + TEXTS_OF]
        found = all_ids("".join(map(in_context, part)))
        if all(ids == found[REFERENCE] for ids in found.values()):
            continue
        for character in part:
            found = all_ids(in_context(character))
            for name, ids in found.items():
                if ids != found[REFERENCE]:
                    different[name].append(character)
    for name, found in different.items():
        known = [c for c in found if unicodedata.category(c) != "Cn"]
        row = {"implementation": name, "characters": len(characters)}
        row |= {"differing": len(found), "differing_and_known": len(known)}
        yield row | {"unicode_of_python": unicodedata.unidata_version} | common


def main(arguments=None):
    """Measure, write each table, print the ratios; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=5, help="(%(default)s)")
    names = ("speed", "growth", "agreement")
    parser.add_argument("--only", choices=names, action="append", help="tables (all)")
    options = parser.parse_args(arguments)
    story = assets.fetch("short-story").read_text(encoding="utf-8")
    texts = {"story": story, "Python": python_sources(300_000)}
    letters = LETTERS
    characters = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    if options.tiny:
        texts = {name: text[:2_000] for name, text in texts.items()}
        letters, characters = (20, 40), [*characters[:0x150], chr(0x3D000)]

    packages = {name: version(name) for name in PACKAGES}
    common = tables.facts(seed=options.seed, **packages)
    rounds = min(options.rounds, 3)
    tables_of = {
        "speed": lambda: speed_rows(texts, options.rounds, common),
        "growth": lambda: growth_rows(letters, rounds, options.seed, common),
        "agreement": lambda: agreement_rows(characters, common),
    }
    for name in options.only or tables_of:
        rows = list(tables_of[name]())
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
        for row in rows if name == "speed" else ():
            print(
                f"{row['task']:16} {row['implementation']:24} {row['seconds']:>9} s, "
                f"{row['over_tiktoken']:>6} times tiktoken's"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
