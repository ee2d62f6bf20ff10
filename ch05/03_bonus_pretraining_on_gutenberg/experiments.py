"""The tables of this folder, in `results/`.

    python3 -m course run ch05/03_bonus_pretraining_on_gutenberg/experiments.py

* `memory.csv`: peak memory of preparing and of training, by the size of the text;
* `counting.csv`: n-gram models of the books, on a novel that is not among them;
* `long.csv` and `long-curve.csv`: a GPT that reads the same books two and a half times,
  on the same novel;
* `scaling.csv`: models of several sizes, all trained with the same compute;
* `copies.csv`: what copies in the training text do.

The books are those of `prepare_dataset.py --books packages`, which are fetched if they
are not here. Each part can be made alone with `--only`. Started again, a part goes on
where it was stopped: training at its last checkpoint below `runs/`, memory with the
next size that its table lacks. Runs are kept apart by their options. `--processes 2`
shares each batch of `long` between two processes: at most 20 minutes on two cores. With
`--tiny` made-up books stand in for real ones.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import books
import prepare_dataset
import pretraining
import process_memory
import script_tools
import shelf
from course import tables
from ngram_baseline import KneserNey, mean_nats

RESULTS = Path(__file__).parent / "results"
PARTS = ("counting", "scaling", "long", "copies", "memory")
HELD_OUT = "austen-persuasion.txt"
SMALL = ["--window", "128", "--batch-size", "4", "--dtype", "bfloat16", "--fused"]
LONG = ["--set", "emb_dim=192", "--set", "n_layers=3", "--set", "n_heads=3"]
LONG += ["--window", "256", "--batch-size", "8", "--steps", "4800"]
LONG += ["--learning-rate", "0.003", "--dtype", "bfloat16", "--fused"]
LONG += ["--eval-every", "1000", "--eval-windows", "9999", "--save-every", "500"]
COMPUTE = 4e12  # floating-point operations of each run of `scaling`
SIZES = ((256, 4), (128, 3), (64, 2), (32, 1), (16, 1))  # width and blocks
MEGABYTES = (5, 100)


class BookRuns:
    """Where an experiment finds its books and leaves its runs.

    Args:
        options: those of the command line.
    """

    def __init__(self, options):
        self.tiny, self.seed, self.out = options.tiny, options.seed, options.out
        self.processes = options.processes
        runs = script_tools.runs_folder()
        self.runs = options.out / "runs" if options.tiny else runs / "ch05-gutenberg"
        self.texts = self.runs / "texts" if self.tiny else runs / "ch05-books/packages"
        if self.tiny and not self.texts.exists():
            self.texts.mkdir(parents=True)
            for i in range(6):
                name = HELD_OUT if i == 5 else f"austen-{i}.txt"
                books.write_whole(self.texts / name, shelf.story(i, 900).encode())
        elif not self.texts.is_dir():
            books.bring("packages", self.texts)

    def shards(self, name="shards", texts=None, *more):
        """Prepare a data set, unless it is ready; return its folder."""
        out = self.runs / name
        words = ["--books", "-", "--out", str(out), "--validation", HELD_OUT, *more]
        words += ["--vocab", "300"] if self.tiny and "--vocab" not in more else []
        print(f"{name}: {out}", flush=True)
        parsed = script_tools.parse(prepare_dataset.make_parser(), words)
        with contextlib.redirect_stdout(io.StringIO()):
            prepare_dataset.prepare(texts or self.texts, out, parsed)
        return out

    def train(self, name, data, *words, processes=1):
        """Train, or go on, or find it done; return the result and the run's folder."""
        if self.tiny:
            words = [*words, "--set", "emb_dim=16", "--set", "n_layers=1"]
            words += ["--set", "n_heads=2", "--steps", "6", "--eval-every", "3"]
        words = [*words, "--seed", str(self.seed), "--data", str(data)]
        manifest = (data / prepare_dataset.MANIFEST).read_bytes()
        told = " ".join(words).encode() + manifest
        out = self.runs / f"{name}-{hashlib.sha256(told).hexdigest()[:8]}"
        done = out / pretraining.RESULT
        if not done.exists():
            words = [*words, "--out", str(out), "--resume"]
            print(f"{name}: {' '.join(words)}", flush=True)
            if run_pretraining(words, processes) != 0:
                raise RuntimeError(f"The run {name} failed.")
        return json.loads(done.read_text(encoding="utf-8")), out


def run_pretraining(words, processes):
    """The script, here or by `torchrun`, with one thread each; return its exit code."""
    if processes == 1:
        return pretraining.main(words)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", pretraining.__file__, *words]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).returncode


def seconds_in(log):
    """The seconds of a run by its log, in which they begin anew when it goes on."""
    seconds = [float(row["seconds"]) for row in tables.read(log)]
    pairs = zip(seconds, [*seconds[1:], 0.0], strict=True)
    return sum(one for one, following in pairs if following < one)


def ids_of(data, split):
    """All tokens of a split."""
    manifest = prepare_dataset.read_manifest(data)
    shards = manifest["splits"][split]["shards"]
    paths = [data / split / shard["file"] for shard in shards]
    return np.concatenate([np.fromfile(path, manifest["dtype"]) for path in paths])


# --- Memory --------------------------------------------------------------------------


def mixed_books(texts, folder, size, seed):
    """Books of half a million bytes, `size` bytes in all, from three words at a time.

    The words are those of real books, so that the tokenizer meets as many of them;
    there are no two books alike, and no run of five words is an old one.
    """
    words = [
        word
        for path in sorted(texts.glob("*.txt"))
        for word in re.findall(r"\S+", path.read_text(encoding="utf-8"))
    ]
    draw, made, number = random.Random(seed), 0, 0
    folder.mkdir(parents=True, exist_ok=True)
    while made < size:
        text, wanted = [], min(500_000, size - made)
        length = 0
        while length < wanted:
            start = draw.randrange(len(words) - 3)
            text.append(" ".join(words[start : start + 3]))
            length += len(text[-1].encode()) + 1
        lines = ["  ".join(text[i : i + 4]) for i in range(0, len(text), 4)]
        books.write_whole(folder / f"{number:05}.txt", "\n".join(lines).encode())
        made, number = made + length, number + 1
    held = shelf.story(1, 3000).encode()
    books.write_whole(folder / HELD_OUT, held)


def prepare_in_silence(texts, out, words):
    """For `process_memory.measure`."""
    parsed = script_tools.parse(prepare_dataset.make_parser(), words)
    with contextlib.redirect_stdout(io.StringIO()):
        prepare_dataset.prepare(texts, out, parsed)
    yield "prepared"


def train_in_silence(words):
    """For `process_memory.measure`."""
    with contextlib.redirect_stdout(io.StringIO()):
        if pretraining.main(words) != 0:
            raise RuntimeError("the run failed")
    yield "trained"


def memory(place):
    """Peak memory of both scripts, for texts of several sizes."""
    table = place.out / "memory.csv"
    rows = tables.read(table) if table.exists() else []
    there = {float(row["megabytes"]) for row in rows}
    for megabytes in (0.05, 0.1) if place.tiny else MEGABYTES:
        if megabytes in there:
            continue
        scratch = place.runs / f"memory-{megabytes}"
        shutil.rmtree(scratch, ignore_errors=True)  # half a preparation has half a peak
        texts, out = scratch / "texts", scratch / "shards"
        print(f"{megabytes} MB: making books up", flush=True)
        mixed_books(place.texts, texts, int(megabytes * 1e6), place.seed)
        words = ["--books", "-", "--out", str(out), "--validation", HELD_OUT]
        words += ["--tokens-per-shard", "2000000"]
        words += ["--vocab", "300"] if place.tiny else []
        print(f"{megabytes} MB: preparing them", flush=True)
        made = process_memory.measure(prepare_in_silence, texts, out, words)
        print(f"{megabytes} MB: training", flush=True)
        steps = "4" if place.tiny else "200"
        words = ["--data", str(out), "--out", str(scratch / "run")]
        words += ["--steps", steps, "--window", "64", "--set", "emb_dim=64"]
        words += ["--set", "n_layers=2", "--eval-windows", "8"]
        trained = process_memory.measure(train_in_silence, words)
        tokens = prepare_dataset.read_manifest(out)["splits"]["train"]["tokens"]
        row = {
            "megabytes": megabytes,
            "tokens": tokens,
            "prepare_mib": f"{made.peak / 2**20:.0f}",
            "prepare_seconds": f"{made.seconds['prepared']:.0f}",
            "train_mib": f"{trained.peak / 2**20:.0f}",
        }
        print(row, flush=True)
        tables.replace(table, [row | tables.facts()], "megabytes")
        shutil.rmtree(scratch)


# --- Counting, and a GPT -------------------------------------------------------------


def counting(place):
    """N-gram models of the training books, judged on the novel held out."""
    data, rows = place.shards(), []
    split = pretraining.Split(data, "validation", 128)
    train_ids, val_ids = ids_of(data, "train"), ids_of(data, "validation")
    n_vocab = prepare_dataset.read_manifest(data)["n_vocab"]
    for order in range(1, 6):
        start = time.process_time()
        model = KneserNey(train_ids, n_vocab, order)
        loss = mean_nats(model.probability(val_ids))
        seconds = time.process_time() - start
        rows.append(_judged(f"{order}-gram", loss, split, len(train_ids), seconds))
        print(rows[-1], flush=True)
    tables.write(place.out / "counting.csv", [row | tables.facts() for row in rows])


def long(place):
    """A GPT on the same books, judged on the same novel."""
    result, run = place.train("long", place.shards(), *LONG, processes=place.processes)
    row = {
        "model": "GPT",
        "val_loss": f"{result['val_loss']:.4f}",
        "bits_per_byte": f"{result['val_bits_per_byte']:.4f}",
        "tokens_seen": result["tokens"],
        "parameters": result["parameters"],
        "seconds": f"{seconds_in(run / pretraining.LOG):.0f}",
        "processes": place.processes,
    }
    print(row, flush=True)
    tables.write(place.out / "long.csv", [row | tables.facts(seed=place.seed)])
    curve = [
        {"tokens": row["tokens"], "train_loss": row["train_loss"]}
        | {"val_loss": row["val_loss"]}
        for row in tables.read(run / pretraining.LOG)
        if row["val_loss"]
    ]
    tables.write(place.out / "long-curve.csv", curve)


def _judged(model, loss, split, tokens, seconds):
    return {
        "model": model,
        "val_loss": f"{loss:.4f}",
        "bits_per_byte": f"{split.bits_per_byte(loss):.4f}",
        "train_tokens": tokens,
        "cpu_seconds": f"{seconds:.1f}",
    }


# --- Sizes at the same compute -------------------------------------------------------


def scaling(place):
    """Models of several sizes, each trained until the same compute is spent.

    A token costs about six operations for each weight: two in the forward pass, four in
    the backward pass (Kaplan and others, 2020, arXiv:2001.08361, section 2.1).
    """
    data, rows = place.shards(), []
    for width, blocks in SIZES[1:3] if place.tiny else SIZES:
        weights = 12 * blocks * width**2 + 4096 * width
        tokens = COMPUTE / (6 * weights)
        steps = max(round(tokens / 512), 1)
        rate = 0.008 * math.sqrt(16 / width)
        words = ["--set", f"emb_dim={width}", "--set", f"n_layers={blocks}"]
        words += ["--set", f"n_heads={max(width // 64, 1)}", "--steps", str(steps)]
        words += [*SMALL, "--learning-rate", f"{rate:.5f}"]
        words += ["--eval-every", "500", "--eval-windows", "16", "--save-every", "250"]
        result, _ = place.train(f"scaling-{width}-{blocks}", data, *words)
        rows.append(
            {
                "width": width,
                "blocks": blocks,
                "parameters": result["parameters"],
                "tokens": result["tokens"],
                "operations": f"{6 * weights * result['tokens']:.2e}",
                "learning_rate": f"{rate:.5f}",
                "val_loss": f"{result['val_loss']:.4f}",
                "bits_per_byte": f"{result['val_bits_per_byte']:.4f}",
            }
        )
        print(rows[-1], flush=True)
    facts = tables.facts(seed=place.seed)
    tables.write(place.out / "scaling.csv", [row | facts for row in rows])


# --- Copies --------------------------------------------------------------------------


def copies(place):
    """The same training with 20 editions of one novel among the others, and without.

    All see as many tokens. An edition differs from the first in one word of 200. With
    the copies once more in the vocabulary that was made without them: then tokens are
    the same, and only what was read differs.
    """
    texts = place.runs / "editions"
    if len(list(texts.glob("*-edition*.txt"))) < 20:  # or it was stopped in between
        texts.mkdir(parents=True, exist_ok=True)
        novels = sorted(place.texts.glob("austen-*.txt"))
        for path in novels:
            books.write_whole(texts / path.name, path.read_bytes())
        first = next(path for path in novels if path.name != HELD_OUT)
        words = first.read_text(encoding="utf-8").split(" ")
        for edition in range(20):
            draw = random.Random(edition)
            changed = [word if draw.random() > 1 / 200 else "so" for word in words]
            name = f"{first.stem}-edition{edition:02}.txt"
            books.write_whole(texts / name, " ".join(changed).encode())
    rows = []
    words_of = str(place.runs / "shards-without" / prepare_dataset.TOKENIZER)
    for kind, vocabulary, more in (
        ("without", "own", ()),
        ("with", "own", ("--similar", "2")),
        ("with", "without", ("--similar", "2", "--vocab", words_of)),
    ):
        name = kind if vocabulary == "own" else f"{kind}-vocabulary-{vocabulary}"
        data = place.shards(f"shards-{name}", texts, *more)
        words = ["--set", "emb_dim=128", "--set", "n_layers=3", "--set", "n_heads=2"]
        words += ["--steps", "2500", *SMALL, "--learning-rate", "0.002"]
        words += ["--eval-every", "250", "--save-every", "250"]
        result, _ = place.train(f"copies-{name}", data, *words)
        content = prepare_dataset.read_manifest(data)["splits"]["train"]
        rows.append(
            {
                "copies": kind,
                "vocabulary": vocabulary,
                "train_books": content["books"],
                "train_tokens": content["tokens"],
                "tokens_seen": result["tokens"],
                "val_loss": f"{result['val_loss']:.4f}",
                "bits_per_byte": f"{result['val_bits_per_byte']:.4f}",
            }
        )
        print(rows[-1], flush=True)
    facts = tables.facts(seed=place.seed)
    tables.write(place.out / "copies.csv", [row | facts for row in rows])


def main(arguments=None):
    """Make the tables; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--only", choices=PARTS, action="append", help="parts (all)")
    parser.add_argument(
        "--processes",
        type=script_tools.positive_int,
        default=1,
        help="of `long`, on one thread each (%(default)s)",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    place = BookRuns(options)
    for part in PARTS:
        if part in (options.only or PARTS):
            globals()[part](place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
