"""What does sharing keys and values save, in what way, and what does it cost?

    python3 -m course run ch04/04_gqa/experiments.py

Everything runs in one thread. Contestants take turns, and a figure is the median over
the rounds; seconds are those of the processor.

* `ways.csv`: the attention of one new token to 4,096 others, by number of groups: keys
  copied for each head, groups in one product, PyTorch's own function; with the bytes
  of what is copied;
* `groups.csv`: a model of 4 blocks, 1,024 wide, with 16 heads (random weights) and 16
  to 1 groups: bytes of its cache and time of a token, by length of the text.

Takes a few minutes and 3 GB.
"""

import functools
import statistics
import sys
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from course import tables
from gpt import count_parameters
from gqa import GroupedQueryAttention
from kv_cache import KVCache
from llama import LlamaModel
from script_tools import positive_int
from variants import (
    WIDE,
    decoding_seconds,
    draw_weights,
    take_turns,
    times_as_fast,
)

RESULTS = Path(__file__).parent / "results"
TABLES = ["ways", "groups"]
COPIED, TOGETHER, FUSED = "keys copied", "groups in one product", "PyTorch's own"


# --- One token, in three ways ---------------------------------------------------------


def copied(layer, queries, keys, values):
    """Keys and values repeated for each head, then plain attention."""
    R = queries.shape[1] // keys.shape[1]
    if R > 1:
        keys, values = (part.repeat_interleave(R, dim=1) for part in (keys, values))
    return layer.attend(queries, keys, values, None)


def together(layer, queries, keys, values):
    return layer.attend(queries, keys, values, None)


def fused(_, queries, keys, values):
    return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)


@torch.no_grad()
def ways_table(bench):
    H, K = WIDE["n_heads"], WIDE["head_dim"]
    S, calls = (32, 2) if bench.tiny else (4096, 20)
    for G in bench.groups(H):
        layer = GroupedQueryAttention(H * K, num_heads=H, num_kv_groups=G)
        queries = torch.randn(1, H, 1, K)
        room = torch.randn(2, 1, G, S + 64, K)  # a cache has room to spare
        keys, values = room[0, :, :, :S], room[1, :, :, :S]
        ways = {COPIED: copied, TOGETHER: together, FUSED: fused}
        found = {way: f(layer, queries, keys, values) for way, f in ways.items()}

        def repeat(function, layer=layer, parts=(queries, keys, values)):
            for _ in range(calls):
                function(layer, *parts)

        runs = {way: functools.partial(repeat, f) for way, f in ways.items()}
        seconds = take_turns(runs, bench.rounds)
        for way in ways:
            spent = statistics.median(seconds[way]) / calls
            is_copy = way == COPIED and G < H
            yield {
                "groups": G,
                "way": way,
                "tokens": S,
                "microseconds": f"{1e6 * spent:.0f}",
                "times_as_fast": f"{times_as_fast(seconds, way, COPIED):.2f}",
                "bytes_copied": 2 * H * S * K * 4 if is_copy else 0,
                "within": f"{(found[way] - found[COPIED]).abs().max():.1e}",
                "rounds": bench.rounds,
            }


# --- A whole model --------------------------------------------------------------------


@torch.no_grad()
def groups_table(bench):
    sizes, lengths = WIDE, (256, 1024, 4096, 8192)
    if bench.tiny:
        sizes, lengths = bench.small(WIDE), (8, 16)
    H, steps = sizes["n_heads"], 1 if bench.tiny else 4
    models = {
        G: draw_weights(LlamaModel({**sizes, "n_kv_groups": G}), seed=1).eval()
        for G in bench.groups(H)
    }
    for batch_size in (1,) if bench.tiny else (1, 4):
        for length in tqdm(lengths[: 4 if batch_size == 1 else 3], disable=None):
            contestants = {
                G: (model, KVCache(sizes["n_layers"], room=length))
                for G, model in models.items()
            }
            seconds = decoding_seconds(
                contestants, length, steps, bench.rounds, batch_size
            )
            for G, (model, cache) in contestants.items():
                yield {
                    "groups": G,
                    "batch_size": batch_size,
                    "length": length,
                    "cache_bytes": cache.nbytes,
                    "weight_bytes": 4 * count_parameters(model),
                    "milliseconds": f"{1000 * statistics.median(seconds[G]):.2f}",
                    "times_as_fast": f"{times_as_fast(seconds, G, H):.2f}",
                    "rounds": bench.rounds,
                }


# --- The run --------------------------------------------------------------------------


class GroupsBench:
    """How large everything is."""

    def __init__(self, options):
        self.tiny, self.rounds = options.tiny, options.rounds

    def groups(self, heads):
        """All numbers of groups, from one for each head down to one for all."""
        return [g for g in (16, 8, 4, 2, 1) if g <= heads]

    def small(self, sizes):
        return {
            **sizes,
            "emb_dim": 4 * sizes["n_heads"],
            "head_dim": 4,
            "n_layers": 2,
            "hidden_dim": 20,
        }


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=7, help="(%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=TABLES, help="which tables (all)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench = GroupsBench(options)
    for name in options.only:
        torch.manual_seed(options.seed)
        rows = []
        for row in globals()[f"{name}_table"](bench):
            rows.append({**row, **tables.facts()})
            print("  " + ", ".join(str(value) for value in row.values()), flush=True)
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
