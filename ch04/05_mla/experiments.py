"""Does a cache of latents cost less, and is it read as fast as keys and values?

    python3 -m course run ch04/05_mla/experiments.py

Everything runs in one thread. Contestants take turns; a figure is the median over the
rounds, and a ratio the median of the ratios of each round. Seconds are those that the
processor spent. The caches are filled with random numbers, on which no time depends.

* `decoding.csv`: one token through one attention layer, 1,024 wide, after up to
  16,384 others, with the bytes that its cache takes;
* `model.csv`: the same for a whole model of four blocks, as in `04_gqa`;
* `forms.csv`: several new tokens after which the cache holds 4,096, read in both ways,
  beside the multiplications that both take by count;
* `profile.csv`: the operations that take most of a step after 4,096 tokens.

Takes some minutes; a layer and its caches fit into 2 GB.
"""

import functools
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import mla
from course import tables
from gqa import GroupedQueryAttention
from kv_cache import KVCache, kv_cache_bytes
from llama import LlamaModel, apply_rope, rope_cos_sin, rope_frequencies
from mla import MultiHeadLatentAttention, latent_cache_bytes
from multihead_attention import MultiHeadAttention
from script_tools import positive_int
from variants import (
    WIDE,
    decoding_seconds,
    draw_weights,
    take_turns,
    times_as_fast,
    with_parts,
)

RESULTS = Path(__file__).parent / "results"
LATENT = {"latent_dim": 256, "rope_dim": 32}  # 4 K and K / 2, as in DeepSeek-V2
TINY = {**WIDE, "emb_dim": 48, "n_heads": 8, "head_dim": 6, "hidden_dim": 64}
TINY_LATENT = {"latent_dim": 24, "rope_dim": 4}
PLAIN = "plain: 16 heads"
PLAIN_FUSED = "plain, fused kernel"
CHAPTER_3 = "plain: chapter 3's class"
GROUPED = "grouped: 4 groups"
SINGLE = "grouped: 1 group"
ABSORBED = "latent, absorbed"
TWICE = "latent, two products"
FEWER = "latent, half the heads"
EXPANDED = "latent, expanded"
GROUPS = {PLAIN: 16, GROUPED: 4, SINGLE: 1}
TABLES = ["decoding", "model", "forms", "profile"]


# --- One layer ------------------------------------------------------------------------


def rotation(position, width):
    """What turns heads of that width to one position."""
    frequencies = rope_frequencies(width, 10_000, None)
    cos, sin = rope_cos_sin(torch.tensor([position]), frequencies)
    return lambda heads: apply_rope(heads, cos, sin)


def filled(part, tokens, *shapes):
    """One layer's part of a cache, with random numbers in it."""
    part.append(*(torch.randn(1, heads, tokens, width) for heads, width in shapes))
    return part


class FusedGroups(GroupedQueryAttention):
    """Attention with all its heads of keys, by PyTorch's fused kernel, one token."""

    def attend(self, queries, keys, values, hidden):
        return F.scaled_dot_product_attention(queries, keys, values)


def by_two_products(queries, entries, hidden):
    """What `mla.shared_attention` does without the fused kernel."""
    stacked = queries.flatten(1, 2)
    weights = torch.softmax(stacked @ entries.transpose(1, 2), dim=-1)
    return (weights @ entries).unflatten(1, queries.shape[1:3])


class LayerContestant:
    """A layer with a full cache, and what its cache should weigh."""

    def __init__(self, name, bench, tokens, new_tokens=1):
        wide, K = bench.wide, bench.wide["head_dim"]
        self.tokens, self.extras = tokens, {}
        fused = mla.shared_attention
        self.shared_attention = by_two_products if name == TWICE else fused
        room = tokens + new_tokens
        cache = KVCache(1, room=room).layer(0)
        C, P = bench.latent["latent_dim"], bench.latent["rope_dim"]
        if name == FEWER:  # and twice as wide: nearly as many weights, 8 % fewer
            wide = {**wide, "num_heads": wide["num_heads"] // 2, "head_dim": 2 * K}
        if name in (ABSORBED, TWICE, EXPANDED, FEWER):
            self.layer = MultiHeadLatentAttention(**wide, **bench.latent)
            self.cache = filled(cache, tokens, (1, C + P), (1, 0))
            self.bytes = latent_cache_bytes(1, 1, room, C, P)
            self.extras = {"rotate": rotation(tokens, P), "absorb": name != EXPANDED}
        elif name == CHAPTER_3:
            D, H = wide["d_in"], wide["num_heads"]
            self.layer = MultiHeadAttention(D, D, room, 0.0, H)
            self.cache = filled(cache, tokens, (H, K), (H, K))
            self.bytes = kv_cache_bytes(1, 1, H, room, K)
        else:
            G = bench.groups[PLAIN if name == PLAIN_FUSED else name]
            kind = FusedGroups if name == PLAIN_FUSED else GroupedQueryAttention
            self.layer = kind(**wide, num_kv_groups=G)
            self.cache = filled(cache, tokens, (G, K), (G, K))
            self.bytes = kv_cache_bytes(1, 1, G, room, K)
            self.extras = {"rotate": rotation(tokens, K)}
        self.layer.eval()

    def step(self, x, times=1):
        """Read the same token several times."""
        fused, mla.shared_attention = mla.shared_attention, self.shared_attention
        try:
            for _ in range(times):
                self.cache.truncate(self.tokens)
                out = self.layer(x, cache=self.cache, **self.extras)
        finally:
            mla.shared_attention = fused
        return out


def decoding_table(bench):
    for tokens in bench.lengths:
        x = torch.randn(1, 1, bench.wide["d_in"])
        names = (PLAIN, PLAIN_FUSED, CHAPTER_3, GROUPED, SINGLE)
        names = (*names, ABSORBED, TWICE, FEWER, EXPANDED)
        contestants = {name: LayerContestant(name, bench, tokens) for name in names}
        steps = {name: 1 if name == EXPANDED else bench.steps for name in names}
        for one in contestants.values():
            one.step(x, 2)  # warm up
        runs = {
            name: functools.partial(one.step, x, steps[name])
            for name, one in contestants.items()
        }
        spent = take_turns(runs, bench.rounds)
        spent = {name: [t / steps[name] for t in spent[name]] for name in names}
        for name, one in contestants.items():
            yield {
                "contestant": name,
                "tokens": tokens,
                "cache_bytes": one.cache.nbytes,
                "bytes_by_formula": one.bytes,
                "milliseconds": f"{1000 * statistics.median(spent[name]):.4g}",
                "over_plain": f"{times_as_fast(spent, name, PLAIN):.2f}",
                "over_grouped": f"{times_as_fast(spent, name, GROUPED):.2f}",
                "steps": steps[name],
                "rounds": bench.rounds,
            }


def multiplications(T, S, K, C):
    """Of both ways for the keys and values of one head: absorbed, expanded."""
    return 2 * (T * K * C + T * S * C), 2 * (S * C * K + T * S * K)


def forms_table(bench):
    """Both ways by the number of new tokens; all tokens stay as many."""
    S, (K, C) = bench.lengths[1], (bench.wide["head_dim"], bench.latent["latent_dim"])
    for T in [n for n in bench.pieces if n < S]:
        ways = {}
        for name in (ABSORBED, EXPANDED):
            one = ways[name] = LayerContestant(name, bench, S - T, T)
            one.extras["rotate"] = None
        x = torch.randn(1, T, bench.wide["d_in"])
        for one in ways.values():
            one.step(x)
        runs = {name: functools.partial(one.step, x) for name, one in ways.items()}
        spent = take_turns(runs, bench.rounds)
        absorbed, expanded = multiplications(T, S, K, C)
        yield {
            "new_tokens": T,
            "all_tokens": S,
            "absorbed_milliseconds": f"{1000 * statistics.median(spent[ABSORBED]):.4g}",
            "expanded_milliseconds": f"{1000 * statistics.median(spent[EXPANDED]):.4g}",
            "absorbed_as_fast": f"{times_as_fast(spent, ABSORBED, EXPANDED):.3g}",
            "by_count": f"{expanded / absorbed:.3g}",
            "rounds": bench.rounds,
        }


def profile_table(bench):
    """The three largest operations of a step, by the time spent in themselves."""
    x = torch.randn(1, 1, bench.wide["d_in"])
    for name in (PLAIN, GROUPED, ABSORBED, TWICE):
        one = LayerContestant(name, bench, bench.lengths[1])
        one.step(x, 3)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            one.step(x, 10 * bench.steps)
        events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
        whole = sum(event.self_cpu_time_total for event in events)
        for place, event in enumerate(events[:3], 1):
            yield {
                "contestant": name,
                "tokens": bench.lengths[1],
                "place": place,
                "operation": event.key,
                "share": f"{event.self_cpu_time_total / whole:.3f}",
            }


# --- A whole model --------------------------------------------------------------------


def model_of(name, bench):
    """A model of several blocks."""
    wide = bench.wide
    if name == ABSORBED:
        P = bench.latent["rope_dim"]
        model = LlamaModel({**bench.sizes, "n_kv_groups": 1, "head_dim": P})
        with_parts(
            model, attention=lambda _: MultiHeadLatentAttention(**wide, **bench.latent)
        )
    else:
        model = LlamaModel({**bench.sizes, "n_kv_groups": bench.groups[name]})
    return draw_weights(model, seed=1).eval()


def model_table(bench):
    for tokens in bench.lengths[1:]:
        contestants = {
            name: (model_of(name, bench), KVCache(bench.sizes["n_layers"], room=tokens))
            for name in (PLAIN, GROUPED, SINGLE, ABSORBED)
        }
        spent = decoding_seconds(contestants, tokens, bench.steps, bench.rounds)
        for name, (_, cache) in contestants.items():
            yield {
                "contestant": name,
                "tokens": tokens,
                "cache_bytes": cache.nbytes,
                "tokens_per_second": f"{1 / statistics.median(spent[name]):.1f}",
                "over_plain": f"{times_as_fast(spent, name, PLAIN):.2f}",
                "over_grouped": f"{times_as_fast(spent, name, GROUPED):.2f}",
                "layers": cache.num_layers,
                "rounds": bench.rounds,
            }


# --- The run --------------------------------------------------------------------------


class LatentBench:
    """The sizes of a run."""

    def __init__(self, options):
        self.tiny = options.tiny
        self.rounds = 2 if self.tiny else options.rounds
        self.steps = 2 if self.tiny else 8
        self.sizes = TINY if self.tiny else WIDE
        self.wide = {
            "d_in": self.sizes["emb_dim"],
            "num_heads": self.sizes["n_heads"],
            "head_dim": self.sizes["head_dim"],
        }
        self.latent = TINY_LATENT if self.tiny else LATENT
        self.lengths = (16, 32) if self.tiny else (1024, 4096, 16_384)
        self.pieces = (1, 4) if self.tiny else (1, 4, 16, 64, 256, 1024)
        halves = {name: max(1, groups // 2) for name, groups in GROUPS.items()}
        self.groups = halves if self.tiny else GROUPS


@torch.no_grad()
def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=9, help="(%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=TABLES, help="which tables (all)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench, begin = LatentBench(options), time.process_time()
    for name in options.only:
        torch.manual_seed(options.seed)
        common = tables.facts(seed=options.seed)
        rows = [{**row, **common} for row in globals()[f"{name}_table"](bench)]
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
        for row in rows:
            print("  " + ", ".join(str(value) for value in list(row.values())[:-5]))
    print(f"{time.process_time() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
