"""What do shared keys and values save, in memory and in time?

    python3 -m course run ch04/10_kv-sharing/experiments.py

Everything runs in one thread. Contestants take turns; a figure is the median over the
rounds, and a ratio the median of the ratios of each round. Seconds are those that the
processor spent.

* `decoding.csv`: one token more in texts of up to 8,192 tokens, for a model of four
  blocks, 1,024 wide, with the bytes of its cache;
* `prompt.csv`: a whole prompt read by the same models, and read so that all tokens but
  the last leave before the layers that only read.

Takes two minutes and 2 GB.
"""

import functools
import statistics
import sys
import time
from pathlib import Path

import torch

from course import tables
from gpt import count_parameters
from kv_cache import KVCache
from kv_sharing import (
    SharingLlama,
    last_sources,
    paired_sources,
    read_prompt,
    shared_cache_bytes,
)
from script_tools import positive_int
from variants import (
    WIDE,
    decoding_seconds,
    draw_weights,
    take_turns,
    times_as_fast,
)

RESULTS = Path(__file__).parent / "results"
TABLES = ["decoding", "prompt"]
PLAIN, PAIRS, LAST = "each its own", "pairs", "last half reads"
SOURCES = {
    PLAIN: paired_sources(4, 1),
    PAIRS: paired_sources(4, 2),
    LAST: last_sources(["all"] * 4, 2),
}
TINY = {"emb_dim": 32, "n_heads": 4, "n_kv_groups": 4, "head_dim": 8}


class SharingBench:
    """The sizes of a run."""

    def __init__(self, options):
        self.tiny = options.tiny
        self.rounds = 2 if self.tiny else options.rounds
        self.steps = 2 if self.tiny else 4
        self.wide = {**WIDE, **TINY} if self.tiny else WIDE
        self.lengths = (16, 32) if self.tiny else (1024, 4096, 8192)
        self.prompts = (8, 16) if self.tiny else (256, 1024)

    def wide_models(self, names):
        return {
            name: draw_weights(SharingLlama(self.wide, SOURCES[name]), seed=1).eval()
            for name in names
        }


def decoding_table(bench):
    models = bench.wide_models((PLAIN, PAIRS, LAST))
    for length in bench.lengths:
        contestants = {
            name: (model, KVCache(model.num_owners, room=length))
            for name, model in models.items()
        }
        seconds = decoding_seconds(contestants, length, bench.steps, bench.rounds)
        for name, (model, cache) in contestants.items():
            G, K = model.cfg["n_kv_groups"], model.cfg["head_dim"]
            yield {
                "sources": name,
                "tokens": length,
                "cache_bytes": cache.nbytes,
                "bytes_by_formula": shared_cache_bytes(model.sources, 1, G, length, K),
                "parameters": count_parameters(model),
                "milliseconds": f"{1000 * statistics.median(seconds[name]):.4g}",
                "over_plain": f"{times_as_fast(seconds, name, PLAIN):.2f}",
                "rounds": bench.rounds,
            }


@torch.no_grad()
def read_whole(model, idx):
    model(idx, cache=KVCache(model.num_owners, room=idx.shape[1]))


def read_early(model, idx):
    read_prompt(model, idx, KVCache(model.num_owners, room=idx.shape[1]))


def prompt_table(bench):
    models = bench.wide_models((PLAIN, PAIRS, LAST))
    for T in bench.prompts:
        idx = torch.randint(256, (1, T))
        runs = {}
        for name, model in models.items():
            runs[name, "whole"] = functools.partial(read_whole, model, idx)
            runs[name, "leaves early"] = functools.partial(read_early, model, idx)
        for run in runs.values():
            run()  # warm up
        seconds = take_turns(runs, bench.rounds)
        for name, way in runs:
            ratio = times_as_fast(seconds, (name, way), (PLAIN, "whole"))
            yield {
                "sources": name,
                "prompt": T,
                "way": way,
                "milliseconds": f"{1000 * statistics.median(seconds[name, way]):.4g}",
                "over_plain": f"{ratio:.2f}",
                "rounds": bench.rounds,
            }


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=5, help="(%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=TABLES, help="which tables (all)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench, begin = SharingBench(options), time.process_time()
    for name in options.only:
        torch.manual_seed(options.seed)
        rows = []
        for row in globals()[f"{name}_table"](bench):
            rows.append({**row, **tables.facts()})
            print("  " + ", ".join(str(value) for value in row.values()), flush=True)
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
    print(f"{time.process_time() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
