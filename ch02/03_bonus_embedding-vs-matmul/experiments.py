"""What does a look-up save over a product with one-hot rows, as the vocabulary grows?

    python3 -m course run ch02/03_bonus_embedding-vs-matmul/experiments.py

Three ways to turn T ids into vectors of D numbers: a look-up, the same with a sparse
gradient, and a product of one-hot rows with the same table. They take turns within one
run, so that a busy machine hinders all alike. Each is timed for the vectors alone
(forward), for vectors and gradient (training, no update), and for one update of the
table from that gradient by Adam (`SparseAdam` where the gradient is sparse).

`results/cost.csv` gets a row for each way and vocabulary: median seconds, and two exact
sizes: the bytes that autograd keeps for the backward pass beside the table, and the
bytes of the table's gradient. Takes about two minutes and 2 GB.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from course import tables
from script_tools import positive_int

RESULTS = Path(__file__).parent / "results"
TASKS = ("forward", "training", "update")
WAYS = ("look-up", "look-up, sparse gradient", "product")
VOCABULARIES = (256, 1024, 4096, 16384, 50257, 131072)
TINY = (16, 64)
TOKENS, WIDTH = 512, 256


def vectors(way, table, ids):
    """The vectors of the ids, (T, D), in one of the three ways."""
    if way == "product":
        return F.one_hot(ids, len(table)).to(table.dtype) @ table
    return F.embedding(ids, table, sparse="sparse" in way)


def kept_bytes(way, table, ids):
    """Bytes that autograd stores for the backward pass, the table itself aside."""
    stored = {}

    def note(tensor):
        if tensor.data_ptr() != table.data_ptr():
            stored[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # itself would keep itself alive

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        vectors(way, table, ids)
    return sum(stored.values())


def gradient_bytes(gradient):
    """Bytes of a gradient; a sparse one holds its row numbers and its values."""
    if not gradient.is_sparse:
        return gradient.numel() * gradient.element_size()
    parts = (gradient._indices(), gradient._values())
    return sum(part.numel() * part.element_size() for part in parts)


class TableInUse:
    """One way with a table of its own."""

    def __init__(self, way, table):
        self.way = way
        self.table = table.clone().requires_grad_()
        adam = torch.optim.SparseAdam if "sparse" in way else torch.optim.Adam
        self.optimizer = adam([self.table], lr=1e-3)

    def run(self, ids, upstream):
        """Do each task once; seconds of each."""
        start = time.perf_counter()
        with torch.no_grad():
            vectors(self.way, self.table, ids)
        forward = time.perf_counter() - start

        self.optimizer.zero_grad()
        start = time.perf_counter()
        vectors(self.way, self.table, ids).backward(upstream)
        training = time.perf_counter() - start

        start = time.perf_counter()
        self.optimizer.step()
        update = time.perf_counter() - start
        return dict(zip(TASKS, (forward, training, update), strict=True))


def measure(vocabulary, tokens, width, rounds, seed):
    """The contestants, and {(way, task): seconds of every round}."""
    torch.manual_seed(seed)
    table = torch.randn(vocabulary, width)
    contestants = {way: TableInUse(way, table) for way in WAYS}
    seconds = {}
    for turn in range(rounds + 1):
        ids = torch.randint(vocabulary, (tokens,))
        upstream = torch.randn(tokens, width)
        shift = turn % len(WAYS)
        for way in WAYS[shift:] + WAYS[:shift]:
            for task, needed in contestants[way].run(ids, upstream).items():
                if turn:  # the first round warms up
                    seconds.setdefault((way, task), []).append(needed)
    return contestants, ids, seconds


def rows(vocabularies, tokens, width, rounds, seed):
    """One row for each vocabulary and way."""
    common = tables.facts(rounds=rounds, seed=seed)
    for vocabulary in tqdm(vocabularies, unit="vocabulary", disable=None):
        contestants, ids, seconds = measure(vocabulary, tokens, width, rounds, seed)
        for way in WAYS:
            table = contestants[way].table
            row = {"way": way, "vocabulary": vocabulary}
            row |= {"tokens": tokens, "width": width}
            for task in TASKS:
                times = seconds[way, task]
                against = seconds["look-up", task]
                ratios = (a / b for a, b in zip(times, against, strict=True))
                row[f"{task}_seconds"] = f"{statistics.median(times):.3g}"
                row[f"{task}_over_lookup"] = f"{statistics.median(ratios):.3g}"
            row["kept_bytes"] = kept_bytes(way, table, ids)
            row["gradient_bytes"] = gradient_bytes(table.grad)
            yield {**row, **common}


def main(arguments=None):
    """Measure, write the table, print the ratios; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=9, help="(%(default)s)")
    options = parser.parse_args(arguments)
    sizes = (TINY, 8, 4) if options.tiny else (VOCABULARIES, TOKENS, WIDTH)
    made = list(rows(*sizes, options.rounds, options.seed))
    for row in made:
        ratios = (f"{task} {row[f'{task}_over_lookup']}" for task in TASKS)
        print(f"V {row['vocabulary']:7,} {row['way']:24}", *ratios)
    print("(times the look-up's seconds)")
    print(f"wrote {tables.write(options.out / 'cost.csv', made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
