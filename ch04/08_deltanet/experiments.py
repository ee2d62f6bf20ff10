"""Does a memory of fixed size recall what was overwritten, and what does it cost?

    python3 -m course run ch04/08_deltanet/experiments.py

Everything runs in one thread. Contestants take turns; a figure is the median over the
rounds, and a ratio the median of the ratios of each round. Seconds are those that the
processor spent.

* `recall.csv`: the recall task of the notebook, four rules, three seeds: the share of
  right answers by how often a key was written before;
* `decoding.csv`: one token through one layer, 1,024 wide, after up to 16,384 others,
  with the bytes that its cache takes;
* `parts.csv`: where that time goes after 256 tokens: the matrices of both layers alone,
  and the rule alone;
* `reading.csv`: a text through the same layer at once: the delta rule token by token
  and in chunks of several sizes, beside full attention.

Takes some minutes and 1 GB.
"""

import functools
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from course import tables
from deltanet import GatedDeltaNet, chunked_delta_rule, recurrent_delta_rule
from gpt import count_parameters
from gqa import GroupedQueryAttention
from hybrid_cache import LayerState, state_cache_bytes
from kv_cache import KVCache, kv_cache_bytes
from recall import RULES, RecallModel, recall_accuracy, train_recall
from script_tools import positive_int
from variants import WIDE, take_turns, times_as_fast

RESULTS = Path(__file__).parent / "results"
TABLES = ["recall", "decoding", "parts", "reading"]
SEEDS = (1, 2, 3)
PLAIN, GROUPED, DELTA = "full: 16 heads", "full: 4 groups", "gated delta rule"
GROUPS = {PLAIN: 16, GROUPED: 4}
TOKEN_BY_TOKEN = "token by token"
FOUR, FIVE, RULE = "four matrices", "five matrices", "the rule alone"
TINY = {**WIDE, "emb_dim": 48, "n_heads": 4, "head_dim": 12}


# --- The task -------------------------------------------------------------------------


def recall_table(bench):
    updates, writes = (2, 6) if bench.tiny else (300, 32)
    for name, rule in RULES.items():
        for seed in SEEDS[:1] if bench.tiny else SEEDS:
            torch.manual_seed(seed)
            model = RecallModel(rule, emb_dim=64, head_dim=32)
            start = time.process_time()
            train_recall(model, updates, writes, seed=seed)
            spent = time.process_time() - start
            shares = recall_accuracy(model, writes, seed=100 + seed)
            for before, share in shares.items():
                yield {
                    "rule": name,
                    "seed": seed,
                    "before": before,
                    "right": f"{share:.4f}",
                    "updates": updates,
                    "writes": writes,
                    "training_seconds": f"{spent:.1f}",
                }


# --- One layer ------------------------------------------------------------------------


class CausalFusedGroups(GroupedQueryAttention):
    """Attention by PyTorch's fused kernel, over a whole text."""

    def attend(self, queries, keys, values, hidden):
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)


def delta_layer(bench, **more):
    D, H, K = (bench.sizes[name] for name in ("emb_dim", "n_heads", "head_dim"))
    return GatedDeltaNet(D, num_heads=H, key_dim=K, value_dim=K, **more).eval()


def full_layer(bench, groups, kind=GroupedQueryAttention):
    D, H, K = (bench.sizes[name] for name in ("emb_dim", "n_heads", "head_dim"))
    groups = max(1, H * groups // 16)
    return kind(D, num_heads=H, num_kv_groups=groups, head_dim=K).eval()


class StepContestant:
    """A layer after a text of random numbers, and what its cache should weigh."""

    def __init__(self, name, bench, tokens):
        H, K = bench.sizes["n_heads"], bench.sizes["head_dim"]
        self.tokens = tokens
        if name == DELTA:
            self.layer, self.cache = delta_layer(bench), LayerState()
            tail = torch.randn(1, 3, self.layer.conv.shape[0])
            self.cache.keep(torch.randn(1, H, K, K), tail, tokens)
            self.bytes = state_cache_bytes(1, 1, H, K, K, H)
        else:
            self.layer = full_layer(bench, GROUPS[name])
            G, room = self.layer.num_kv_groups, tokens + bench.steps
            self.cache = KVCache(1, room=room).layer(0)
            self.cache.append(*torch.randn(2, 1, G, tokens, K))
            self.bytes = kv_cache_bytes(1, 1, G, room, K)

    def write(self, x, steps):
        """Read a token some times, after as many as there were at first."""
        if not isinstance(self.cache, LayerState):
            self.cache.truncate(self.tokens)
        for _ in range(steps):
            self.layer(x, cache=self.cache)


def decoding_table(bench):
    x = torch.randn(1, 1, bench.sizes["emb_dim"])
    for tokens in bench.lengths:
        names = (PLAIN, GROUPED, DELTA)
        contestants = {name: StepContestant(name, bench, tokens) for name in names}
        runs = {
            name: functools.partial(one.write, x, bench.steps)
            for name, one in contestants.items()
        }
        for run in runs.values():
            run()  # warm up
        spent = take_turns(runs, bench.rounds)
        for name, one in contestants.items():
            each = statistics.median(spent[name]) / bench.steps
            yield {
                "contestant": name,
                "tokens": tokens,
                "cache_bytes": one.cache.nbytes,
                "bytes_by_formula": one.bytes,
                "milliseconds": f"{1000 * each:.4g}",
                "over_plain": f"{times_as_fast(spent, name, PLAIN):.2f}",
                "steps": bench.steps,
                "rounds": bench.rounds,
            }


def parts_table(bench):
    """One token after a short text: two layers, and parts of them."""
    tokens, x = bench.lengths[0], torch.randn(1, 1, bench.sizes["emb_dim"])
    full, delta = (StepContestant(name, bench, tokens) for name in (PLAIN, DELTA))
    names = ("W_query", "W_key", "W_value", "W_gate", "out_proj")
    five = [getattr(delta.layer, name) for name in names]
    four = [getattr(full.layer, name) for name in names if name != "W_gate"]
    q, k, v, _ = delta.layer.project(x, delta.cache.tail)
    log_decay, beta = delta.layer.gates(x, None)
    rule = functools.partial(
        delta.layer.rule, q, k, v, log_decay, beta, delta.cache.state
    )
    parts = {
        PLAIN: (functools.partial(full.write, x), count_parameters(full.layer)),
        DELTA: (functools.partial(delta.write, x), count_parameters(delta.layer)),
        FOUR: (functools.partial(several, four, x), sum(map(count_parameters, four))),
        FIVE: (functools.partial(several, five, x), sum(map(count_parameters, five))),
        RULE: (functools.partial(several, [lambda _: rule()], x), 0),
    }
    runs = {name: functools.partial(run, steps=1) for name, (run, _) in parts.items()}
    for run in runs.values():
        run()
    spent = take_turns(runs, 15 * bench.rounds)
    for name, (_, weights) in parts.items():
        yield {
            "part": name,
            "tokens": tokens,
            "weights": weights,
            "milliseconds": f"{1000 * statistics.median(spent[name]):.4g}",
            "rounds": len(spent[name]),
        }


def several(parts, x, steps):
    """Each of some functions on a token, some times."""
    for _ in range(steps):
        for part in parts:
            part(x)


def reading_table(bench):
    layers = {PLAIN: full_layer(bench, 16, CausalFusedGroups)}
    layers[TOKEN_BY_TOKEN] = delta_layer(bench, rule=recurrent_delta_rule)
    for size in bench.chunks:
        rule = functools.partial(chunked_delta_rule, chunk_size=size)
        layers[f"chunks of {size}"] = delta_layer(bench, rule=rule)
    for tokens in bench.texts:
        x = torch.randn(1, tokens, bench.sizes["emb_dim"])
        runs = {name: functools.partial(layer, x) for name, layer in layers.items()}
        for run in runs.values():
            run()
        spent = take_turns(runs, max(2, bench.rounds // 2))
        for name in layers:
            yield {
                "contestant": name,
                "tokens": tokens,
                "milliseconds": f"{1000 * statistics.median(spent[name]):.4g}",
                "over_token_by_token": (
                    f"{times_as_fast(spent, name, TOKEN_BY_TOKEN):.2f}"
                ),
                "over_plain": f"{times_as_fast(spent, name, PLAIN):.2f}",
                "rounds": len(spent[name]),
            }


# --- The run --------------------------------------------------------------------------


class DeltaBench:
    """The sizes of a run."""

    def __init__(self, options):
        self.tiny = options.tiny
        self.rounds = 2 if self.tiny else options.rounds
        self.steps = 2 if self.tiny else 8
        self.sizes = TINY if self.tiny else WIDE
        self.lengths = (8, 16) if self.tiny else (256, 1024, 4096, 16_384)
        self.texts = (8, 16) if self.tiny else (256, 1024, 4096)
        self.chunks = (1, 4) if self.tiny else (16, 64, 256)


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=9, help="(%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=TABLES, help="which tables (all)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench, begin = DeltaBench(options), time.process_time()
    for name in options.only:
        torch.manual_seed(options.seed)
        with torch.set_grad_enabled(name == "recall"):
            made = list(globals()[f"{name}_table"](bench))
        rows = [{**row, **tables.facts()} for row in made]
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
        for row in made:
            print("  " + ", ".join(str(value) for value in row.values()), flush=True)
    print(f"{time.process_time() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
