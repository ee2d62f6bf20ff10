"""How few tokens attention needs, whether an indexer finds them, and what that saves.

    python3 -m course run ch04/09_dsa/experiments.py

The first three tables are of SmolLM2, whose attention has never seen an indexer; what
is measured is measured on the course's story, what is learned is learned from its
instructions. The last one is of a wide model with random weights. One thread.

* `share.csv`: the share of attention's weight, summed over the heads of a layer, on the
  heaviest k tokens, on the newest k, on the first token and the newest k - 1, and on
  the first token alone, for tokens with at least 512 before them;
* `recall.csv`: which part of the heaviest k tokens is picked, and the share of the
  weight on the picks, by an indexer for each layer before and after its dense warm-up,
  and by the rule "the first token and the newest k - 1";
* `loss.csv`: SmolLM2's loss if all layers see k tokens, picked in five ways. The oracle
  is an indexer that copies the attention, all its heads and keys;
* `decoding.csv`: one token more in texts of up to 16,384 tokens, contestants in turns.
  A figure is the median over the rounds, beside the fastest and the slowest of them; a
  ratio is the median of those of each round.

Takes about ten minutes and 4 GB.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from course import tables
from course.assets import fetch
from dsa import (
    LightningIndexer,
    SparseAttention,
    indexer_loss,
    pick_keys,
    recall,
    sparse_cache_bytes,
    summed_weights,
)
from kv_cache import KVCache, kv_cache_bytes
from llama import LlamaModel
from pretrained import load_pretrained
from script_tools import positive_int
from variants import WIDE, decoding_seconds, draw_weights, times_as_fast, with_parts

RESULTS = Path(__file__).parent / "results"
TABLES = ["share", "recall", "loss", "decoding"]
PLAIN = "all tokens"
INDEXER_BEFORE, INDEXER_AFTER = "indexer before", "indexer after warm-up"
FIRST_AND_NEWEST = "first and newest"
INDEX_HEADS, RATE = 8, 0.003
TINY = {
    "emb_dim": 24,
    "n_heads": 4,
    "n_kv_groups": 2,
    "head_dim": 8,
    "n_layers": 2,
    "hidden_dim": 32,
}


class PickingBench:
    """The sizes of a run; the model and what its indexers learn from, made once."""

    def __init__(self, options):
        self.tiny, self.rounds = options.tiny, 2 if options.tiny else options.rounds
        self.length = 64 if self.tiny else 1024  # of a text that is measured
        self.window = 32 if self.tiny else 512  # of a text that is learned from
        self.windows, self.epochs = (2, 1) if self.tiny else (12, 5)
        self.ks = (4, 8) if self.tiny else (16, 32, 64, 128)
        self.wide = {**WIDE, **TINY, "n_kv_groups": 4} if self.tiny else WIDE
        self.lengths = (16, 32) if self.tiny else (1024, 4096, 16_384)
        self.picks = (4, 8) if self.tiny else (256, 1024)
        self._model = self._indexers = None

    def model(self):
        """SmolLM2, or one of random weights; and texts to measure and to learn from."""
        if self._model is None:
            if self.tiny:  # a token is a byte
                model = draw_weights(LlamaModel({**WIDE, **TINY}), seed=1, std=0.2)
                encode = str.encode
            else:
                model, tokenizer, _ = load_pretrained("smollm2-135m")
                encode = tokenizer.encode
            story = fetch("short-story").read_text(encoding="utf-8")
            entries = json.loads(fetch("instructions").read_text(encoding="utf-8"))
            lessons = "\n\n".join(
                "\n".join(filter(None, (e["instruction"], e["input"], e["output"])))
                for e in entries
                if e["split"] == "train"
            )
            measured = torch.tensor([list(encode(story)[: self.length + 1])])
            learned = torch.tensor(list(encode(lessons)))
            learned = learned[: self.windows * self.window].view(-1, self.window)
            self._model = model.eval(), measured, learned
        return self._model

    def indexers(self):
        """An indexer for each layer, before and after learning."""
        if self._indexers is None:
            model, _, learned = self.model()
            before = [new_indexer(block.att, layer) for layer, block in blocks(model)]
            after = [new_indexer(block.att, layer) for layer, block in blocks(model)]
            lessons = [observe(model, ids[None]) for ids in tqdm(learned, disable=None)]
            for layer, indexer in enumerate(tqdm(after, disable=None)):
                warm_up(indexer, [one[layer] for one in lessons], self.epochs)
            self._indexers = before, after
        return self._indexers


def blocks(model):
    return enumerate(model.trf_blocks)


def new_indexer(attention, seed):
    torch.manual_seed(seed)
    K = attention.head_dim
    return LightningIndexer(attention.d_in, INDEX_HEADS, K, K)


def causal(T):
    return torch.ones(T, T, dtype=torch.bool).triu(1)


@torch.no_grad()
def observe(model, ids):
    """What each layer's attention reads and what it looks at: x, rotation, weights."""
    seen, hooks = [], []

    def note(attention, arguments):
        x, _, _, rotate = arguments
        queries, keys, _ = attention.project(x, rotate)
        weights = summed_weights(queries, keys, causal(x.shape[1]))
        seen.append((x, rotate, weights))

    for _, block in blocks(model):
        hooks.append(block.att.register_forward_pre_hook(note))
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen


@torch.enable_grad()
def warm_up(indexer, lessons, epochs):
    """Dense warm-up: all tokens count, and nothing but the indexer learns."""
    optimizer = torch.optim.AdamW(indexer.parameters(), lr=RATE)
    for _ in range(epochs):
        for x, rotate, weights in lessons:
            optimizer.zero_grad()
            scores = indexer(x, indexer.make_keys(x, rotate), rotate)
            indexer_loss(scores, weights, causal(x.shape[1])).backward()
            optimizer.step()


# --- What attention looks at ----------------------------------------------------------


def on_picks(rule, weights, k):
    """The weight on what a rule picks, for each token of the second half of a text."""
    T = weights.shape[1]
    scores = rule(weights, weights[:, None], None)
    picked = pick_keys(scores, causal(T), k)[0, T // 2 :]
    return weights[0, T // 2 :].gather(-1, picked).sum(dim=-1)


def share_table(bench):
    model, measured, _ = bench.model()
    T = bench.length
    late = slice(T // 2, T)
    for layer, (_, _, weights) in enumerate(observe(model, measured[:, :T])):
        heaviest = weights[0, late].sort(dim=-1, descending=True).values.cumsum(-1)
        for k in bench.ks:
            shares = {
                "heaviest": heaviest[:, k - 1],
                "newest": on_picks(NewestIndexer(), weights, k),
                "first_and_newest": on_picks(NewestIndexer(first=True), weights, k),
                "first": weights[0, late, 0],
            }
            yield {
                "layer": layer,
                "k": k,
                "tokens": T,
                **{name: f"{share.mean():.4f}" for name, share in shares.items()},
            }


def recall_table(bench):
    model, measured, _ = bench.model()
    T = bench.length
    observed = observe(model, measured[:, :T])
    before, after = bench.indexers()
    ways = {
        INDEXER_BEFORE: before,
        INDEXER_AFTER: after,
        FIRST_AND_NEWEST: [NewestIndexer(first=True) for _ in observed],
    }
    for way, indexers in ways.items():
        for layer, (indexer, (x, rotate, weights)) in enumerate(
            zip(indexers, observed, strict=True)
        ):
            scores = indexer(x, indexer.make_keys(x, rotate), rotate)
            for k in bench.ks:
                picked = pick_keys(scores, causal(T), k)[0, T // 2 :]
                late = weights[0, T // 2 :]
                yield {
                    "layer": layer,
                    "picked_by": way,
                    "k": k,
                    "tokens": T,
                    "recall": f"{recall(picked, late).mean():.4f}",
                    "weight_kept": f"{late.gather(-1, picked).sum(-1).mean():.4f}",
                }


# --- SmolLM2 with picked tokens -------------------------------------------------------


class OracleIndexer(nn.Module):
    """An indexer that copies the attention: as many heads, and all its keys."""

    def __init__(self, attention):
        super().__init__()
        self.attention = [attention]  # a list, so that it is no part of this module

    def make_keys(self, x, rotate):
        _, keys, _ = self.attention[0].project(x, rotate)
        return keys.transpose(1, 2).flatten(2)[:, None]  # (B, 1, T, G K)

    def forward(self, x, keys, rotate):
        attention = self.attention[0]
        queries, _, _ = attention.project(x, rotate)
        keys = keys[:, 0].unflatten(2, (attention.num_kv_groups, -1)).transpose(1, 2)
        T, S = x.shape[1], keys.shape[2]
        hidden = torch.arange(S) > torch.arange(S - T, S)[:, None]
        return summed_weights(queries, keys, hidden)


class NewestIndexer(nn.Module):
    """The later the better: a window of k tokens, or the first and k - 1 of them."""

    def __init__(self, first=False):
        super().__init__()
        self.first = first

    def make_keys(self, x, rotate):
        return x[:, None, :, :1]

    def forward(self, x, keys, rotate):
        B, T, S = *x.shape[:2], keys.shape[2]
        scores = torch.arange(S, dtype=x.dtype)
        if self.first:
            scores[0] = S
        return scores.expand(B, T, S)


def picking(attention, indexer, k):
    """SparseAttention with the weights of a layer and an indexer of any kind."""
    sparse = SparseAttention(
        attention.d_in,
        num_heads=attention.num_heads,
        num_kv_groups=attention.num_kv_groups,
        head_dim=attention.head_dim,
        top_k=k,
    )
    sparse.load_state_dict(attention.state_dict(), strict=False)
    sparse.indexer = indexer
    return sparse.eval()


def loss_table(bench):
    model, measured, _ = bench.model()
    plain = [block.att for _, block in blocks(model)]
    before, after = bench.indexers()
    ways = {
        "oracle": [OracleIndexer(attention) for attention in plain],
        INDEXER_AFTER: after,
        FIRST_AND_NEWEST: [NewestIndexer(first=True) for _ in plain],
        INDEXER_BEFORE: before,
        "newest": [NewestIndexer() for _ in plain],
    }

    def loss():
        logits = model(measured[:, :-1])[0, bench.length // 2 :]
        targets = measured[0, 1 + bench.length // 2 :]
        return f"{F.cross_entropy(logits, targets):.4f}"

    common = {"tokens": bench.length, "counted": bench.length // 2}
    yield {"picked_by": "all seen", "k": bench.length, "loss": loss(), **common}
    for way, indexers in ways.items():
        for k in bench.ks:
            layers = [picking(*both, k) for both in zip(plain, indexers, strict=True)]
            with_parts(model, attention=layers.__getitem__)
            yield {"picked_by": way, "k": k, "loss": loss(), **common}
    with_parts(model, attention=plain.__getitem__)


# --- How fast it writes ---------------------------------------------------------------


def picking_model(sizes, k):
    """A model of these sizes whose attention picks k tokens."""
    model = with_parts(
        LlamaModel(sizes),
        attention=lambda _: SparseAttention(
            sizes["emb_dim"],
            num_heads=sizes["n_heads"],
            num_kv_groups=sizes["n_kv_groups"],
            head_dim=sizes["head_dim"],
            top_k=k,
            index_heads=INDEX_HEADS,
        ),
    )
    return draw_weights(model, seed=1).eval()


def decoding_table(bench):
    sizes = bench.wide
    L, G, K = sizes["n_layers"], sizes["n_kv_groups"], sizes["head_dim"]
    models = {PLAIN: draw_weights(LlamaModel(sizes), seed=1).eval()}
    models |= {f"{k:,} picked": picking_model(sizes, k) for k in bench.picks}
    for length in bench.lengths:
        contestants = {
            name: (model, KVCache(L, room=length)) for name, model in models.items()
        }
        steps = 2 if bench.tiny else 4
        seconds = decoding_seconds(contestants, length, steps, bench.rounds)
        for name, (_, cache) in contestants.items():
            formula = (
                kv_cache_bytes(L, 1, G, length, K)
                if name == PLAIN
                else sparse_cache_bytes(L, 1, G, length, K, K)
            )
            yield {
                "contestant": name,
                "tokens": length,
                "cache_bytes": cache.nbytes,
                "bytes_by_formula": formula,
                "milliseconds": f"{1000 * statistics.median(seconds[name]):.4g}",
                "fastest": f"{1000 * min(seconds[name]):.4g}",
                "slowest": f"{1000 * max(seconds[name]):.4g}",
                "over_plain": f"{times_as_fast(seconds, name, PLAIN):.2f}",
                "rounds": bench.rounds,
            }


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
    bench, begin = PickingBench(options), time.process_time()
    for name in options.only:
        torch.manual_seed(options.seed)
        rows = []
        for row in globals()[f"{name}_table"](bench):
            rows.append({**row, **tables.facts(seed=options.seed)})
            print("  " + ", ".join(str(value) for value in row.values()), flush=True)
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
    print(f"{time.process_time() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
