"""What does each change to a block save, and what does it cost? All beside each other.

    python3 -m course run ch04/experiments.py

The comparison of chapter 4's bonus folders. Each row is chapter 5's Llama with one part
of its blocks exchanged; multi-head attention with a dense feed-forward layer is what
the others are compared with.

* `decoding.csv`: a wide model (4 blocks, 1,024 wide, random weights) in texts of
  different lengths: bytes of its cache, and milliseconds for one more token. The models
  take turns, and seconds are those of the processor;
* `loss.csv`: a small model (4 blocks, 128 wide) after the same small training, on the
  course's instructions as bytes: three seeds, which set weights and order;
* `summary.csv`: what the chapter's page shows of both.

`--only NAME` measures that one (and multi-head attention, in the same run) and leaves
other rows as they are. Each variant has one entry in `VARIANTS`: how it is made, its
cache, and who uses it. At the end the table of the chapter's page is printed.
Everything runs in one thread. Takes about three minutes for each variant, and 2 GB; all
wide models of a run are in memory at once, so that many of them take more.
"""

import contextlib
import hashlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from course import tables
from course.assets import fetch
from deltanet import GatedDeltaNet
from dsa import SparseAttention
from gpt import count_parameters
from gpt_train import calc_loss_loader, train_model_simple
from hybrid_cache import HybridCache, full_layers
from kv_cache import KVCache
from kv_sharing import SharingLlama, last_sources
from llama import LlamaModel
from mla import MultiHeadLatentAttention
from moe import MixtureOfExperts, SigmoidRouter, expert_counts
from swa import SlidingWindowAttention, layer_windows
from variants import (
    RATE,
    SMALL,
    UPDATES,
    WIDE,
    decoding_seconds,
    draw_weights,
    small_task,
    times_as_fast,
    with_parts,
)

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
LENGTHS = (512, 1024, 2048, 4096, 8192)
STEPS, ROUNDS = 4, 7
PLAIN = "multi-head"


class Variant(NamedTuple):
    """One row: a model, and what the page says of it."""

    make: Callable[[dict], Any]  # sizes, such as `SMALL`, to a model
    cache: Callable[[Any, int], Any]  # a model and tokens to an empty cache
    kept: str  # numbers that each block keeps of a token
    used_by: str  # open models of 2025 and 2026, each with its source


def plain_cache(model, tokens):
    """Room for a text of some length, made at once."""
    return KVCache(model.cfg["n_layers"], room=tokens)


def grouped(heads_in_a_group):
    """What makes a model in which so many query heads share their keys and values."""

    def make(sizes):
        groups = max(1, sizes["n_heads"] // heads_in_a_group)
        return LlamaModel({**sizes, "n_kv_groups": groups})

    return make


def latent(sizes):
    """Latents of 4 K numbers and rotary keys of K / 2, as in DeepSeek-V2."""
    D, H, K = (sizes[name] for name in ("emb_dim", "n_heads", "head_dim"))
    model = LlamaModel({**sizes, "n_kv_groups": 1, "head_dim": K // 2})
    more = {"latent_dim": 4 * K, "rope_dim": K // 2}
    return with_parts(
        model,
        attention=lambda _: MultiHeadLatentAttention(
            D, num_heads=H, head_dim=K, **more
        ),
    )


def windowed(full_every=None):
    """What makes a model with windows: of 1,024 tokens in the wide one, else of 32."""

    def make(sizes):
        window = 1024 if sizes["emb_dim"] == WIDE["emb_dim"] else 32
        windows = layer_windows(sizes["n_layers"], window, full_every)
        heads = {
            "num_heads": sizes["n_heads"],
            "num_kv_groups": sizes["n_kv_groups"],
            "head_dim": sizes["head_dim"],
        }
        return with_parts(
            LlamaModel(sizes),
            attention=lambda i: (
                windows[i]
                and SlidingWindowAttention(sizes["emb_dim"], window=windows[i], **heads)
            ),
        )

    return make


def rolling_cache(model, tokens):
    """Each layer keeps as many tokens as its window has."""
    windows = [getattr(block.att, "window", None) for block in model.trf_blocks]
    return KVCache(len(windows), room=tokens, window=windows, masked=True)


def shared(sizes):
    """The last half of the blocks reads from the last of the first half."""
    L = sizes["n_layers"]
    return SharingLlama(sizes, last_sources(["all"] * L, L // 2))


def owners_cache(model, tokens):
    """Room in the blocks that make keys and values, and in no other."""
    return KVCache(model.num_owners, room=tokens)


def picked(sizes):
    """Each token reads those that an indexer picks: 256 in the wide model, else 32."""
    top_k = 256 if sizes["emb_dim"] == WIDE["emb_dim"] else 32
    return with_parts(
        LlamaModel(sizes),
        attention=lambda _: SparseAttention(
            sizes["emb_dim"],
            num_heads=sizes["n_heads"],
            num_kv_groups=sizes["n_kv_groups"],
            head_dim=sizes["head_dim"],
            top_k=top_k,
        ),
    )


def delta_hybrid(sizes):
    """The gated delta rule in three of four blocks, plain attention in the fourth."""
    D, H, K = (sizes[name] for name in ("emb_dim", "n_heads", "head_dim"))
    full = full_layers(sizes["n_layers"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for the convolutions, which `draw_weights` leaves alone
        return with_parts(
            LlamaModel(sizes),
            attention=lambda i: (
                None
                if i in full
                else GatedDeltaNet(D, num_heads=H, key_dim=K, value_dim=K)
            ),
        )


def states_and_keys(model, tokens):
    """A state for three of four blocks, keys and values for the fourth."""
    L = model.cfg["n_layers"]
    return HybridCache(L, full_layers(L), room=tokens)


def experts(sizes):
    """Eight experts, two for each token, each half as wide as the dense layer.

    Their bias keeps them in balance, so that the loss is made as that of all others.
    """

    def layer_of_experts(_):
        router = SigmoidRouter(sizes["emb_dim"], num_experts=8, top_k=2)
        router.register_forward_hook(rebalance_in_training)
        return MixtureOfExperts(sizes["emb_dim"], sizes["hidden_dim"] // 2, router)

    return with_parts(LlamaModel(sizes), feed_forward=layer_of_experts)


def rebalance_in_training(router, _inputs, routing):
    """A hook: the bias moves by one step after each pass of a training."""
    if router.training:
        router.rebalance(expert_counts(routing), rate=0.01)


OLMO_3 = "[Olmo 3 7B](https://arxiv.org/abs/2512.13961)"
QWEN_3 = "[Qwen3-{}](https://arxiv.org/abs/2505.09388)"
KIMI_K2 = "[Kimi K2](https://arxiv.org/abs/2507.20534)"
GLM_5 = "[GLM-5](https://arxiv.org/abs/2602.15763)"
#: Rows that `--only` measured later, beside multi-head attention again.
SECOND_RUN = ("shared keys and values", "picked keys", "delta rule, 3 to 1", "experts")
#: A folder that is added puts its own at the end.
VARIANTS = {
    PLAIN: Variant(LlamaModel, plain_cache, "2 H K", OLMO_3),
    "grouped, 2 heads": Variant(
        grouped(2), plain_cache, "2 G K, G = H / 2", QWEN_3.format("0.6B")
    ),
    "grouped, 4 heads": Variant(
        grouped(4), plain_cache, "2 G K, G = H / 4", QWEN_3.format("8B")
    ),
    "multi-query": Variant(
        grouped(10**9),
        plain_cache,
        "2 K",
        "[Gemma 3 1B](https://huggingface.co/google/gemma-3-1b-it)",
    ),
    "latent": Variant(
        latent,
        plain_cache,
        "4 K + K / 2",
        f"{KIMI_K2}, {GLM_5}",
    ),
    "windows": Variant(
        windowed(),
        rolling_cache,
        "2 H K of W tokens",
        "none found; [Mistral 7B v0.1](https://arxiv.org/abs/2310.06825) in 2023",
    ),
    "3 windows, 1 full": Variant(
        windowed(4), rolling_cache, "2 H K, of W tokens in 3 of 4 blocks", OLMO_3
    ),
    "shared keys and values": Variant(
        shared,
        owners_cache,
        "2 H K in half of the blocks",
        "[Gemma 4 E4B](https://arxiv.org/abs/2607.02770)",
    ),
    "picked keys": Variant(
        picked,
        plain_cache,
        "2 H K, of which few are read, and K for the indexer, read of all",
        f"[DeepSeek-V3.2](https://arxiv.org/abs/2512.02556), {GLM_5}",
    ),
    "delta rule, 3 to 1": Variant(
        delta_hybrid,
        states_and_keys,
        "2 H K in 1 of 4 blocks, a state in the others",
        "[Qwen3-Next](https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct), "
        "[Olmo Hybrid](https://arxiv.org/abs/2604.03444)",
    ),
    "experts": Variant(
        experts,
        plain_cache,
        "2 H K",
        ", ".join((QWEN_3.format("30B-A3B"), KIMI_K2, GLM_5)),
    ),
}


# --- How fast it writes ---------------------------------------------------------------


@torch.no_grad()
def decoding_rows(names, options):
    """Cache and time of all that are named, beside multi-head attention, by length."""
    sizes, lengths, steps = WIDE, LENGTHS, STEPS
    if options.tiny:
        sizes, lengths, steps = {**WIDE, **_tiny(WIDE)}, (16, 32), 1
    models = {
        name: draw_weights(VARIANTS[name].make(sizes), seed=1).eval()
        for name in dict.fromkeys((PLAIN, *names))
    }
    for length in tqdm(lengths, desc="lengths", disable=None):
        contestants = {
            name: (model, VARIANTS[name].cache(model, length))
            for name, model in models.items()
        }
        seconds = decoding_seconds(contestants, length, steps, ROUNDS)
        for name in names:
            yield {
                "variant": name,
                "length": length,
                "cache_bytes": contestants[name][1].nbytes,
                "milliseconds": f"{1000 * statistics.median(seconds[name]):.2f}",
                "times_as_fast": f"{times_as_fast(seconds, name, PLAIN):.2f}",
                "rounds": ROUNDS,
            }


# --- What it learns -------------------------------------------------------------------


def loss_rows(names, options):
    """The loss of all that are named after the small training, seed by seed."""
    content = fetch("instructions").read_bytes()
    entries = json.loads(content)
    sizes, updates, seeds = SMALL, UPDATES, SEEDS
    if options.tiny:
        sizes, updates, seeds = {**SMALL, **_tiny(SMALL)}, 3, (1,)
    for name in tqdm(names, desc="training", disable=None):
        for seed in seeds:
            model = draw_weights(VARIANTS[name].make(sizes), seed)
            train, validation = small_task(entries, seed, updates)
            optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
            start = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                train_model_simple(
                    *(model, train, validation, optimizer, "cpu", 1, 10**9, 1),
                    *(None, None),
                )
            spent = time.process_time() - start
            loss = calc_loss_loader(validation, model, "cpu")
            yield {
                "variant": name,
                "seed": seed,
                "updates": updates,
                "parameters": count_parameters(model),
                "validation_loss": f"{loss:.4f}",
                "seconds": f"{spent:.1f}",
                "data_sha256": hashlib.sha256(content).hexdigest()[:12],
            }


def _tiny(sizes):
    return {"emb_dim": 4 * sizes["n_heads"], "head_dim": 4, "n_layers": 2}


# --- The page -------------------------------------------------------------------------


def summary(folder):
    """One row for each variant that both tables have, as the page shows it."""
    decoding, losses = (
        tables.read(folder / f"{name}.csv") for name in ("decoding", "loss")
    )
    for name in VARIANTS:
        at = {int(row["length"]): row for row in decoding if row["variant"] == name}
        trained = [row for row in losses if row["variant"] == name]
        if 4096 not in at or not trained:
            continue
        found = [float(row["validation_loss"]) for row in trained]
        yield {
            "variant": name,
            "cache_megabytes": f"{int(at[4096]['cache_bytes']) / 1e6:.1f}",
            "parameters": trained[0]["parameters"],
            **{f"speed_{n}": at[n]["times_as_fast"] for n in at},
            **{
                f"tokens_per_second_{n}": f"{1000 / float(at[n]['milliseconds']):.1f}"
                for n in at
            },
            "loss": f"{statistics.mean(found):.3f}",
            "lowest": f"{min(found):.3f}",
            "highest": f"{max(found):.3f}",
        }


def page(folder):
    """The lines of the chapter's page."""
    yield (
        "| variant | kept | parameters | cache at 4,096 | speed at 1,024 | at 4,096 | "
        "at 8,192 | loss | used by (2025, 2026) |"
    )
    yield "| --- " * 9 + "|"
    rows = tables.read(folder / "summary.csv")
    for row in rows:
        variant = VARIANTS[row["variant"]]
        cells = [
            row["variant"],
            variant.kept,
            f"{int(row['parameters']):,}",
            f"{row['cache_megabytes']} MB",
            *(row[f"speed_{n}"] for n in (1024, 4096, 8192)),
            f"{row['loss']} ({row['lowest']} to {row['highest']})",
            variant.used_by,
        ]
        yield f"| {' | '.join(cells)} |"
    rates = (
        f"{rows[0][f'tokens_per_second_{n}']} at {n:,}" for n in (1024, 4096, 8192)
    )
    yield ""
    later = [f"{plain_rate(folder, SECOND_RUN, n):.0f}" for n in (1024, 4096, 8192)]
    yield (
        f"Speed 1.00 is, in tokens a second: {', '.join(rates)}; in the second run "
        f"about {later[0]}, {later[1]} and {later[2]}."
    )


def plain_rate(folder, names, length):
    """Tokens a second of multi-head attention in the run that measured some rows.

    Only the row of the first run is kept, so: by their times and their ratios to it.
    """
    return statistics.median(
        1000 / (float(row["milliseconds"]) * float(row["times_as_fast"]))
        for row in tables.read(folder / "decoding.csv")
        if row["variant"] in names and int(row["length"]) == length
    )


# --- The run --------------------------------------------------------------------------


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="rows (all)"
    )
    makers = {"decoding": decoding_rows, "loss": loss_rows}
    parser.add_argument(
        "--tables", nargs="*", choices=makers, default=list(makers), help="(both)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for table in options.tables:
        path, done = options.out / f"{table}.csv", {}
        for row in makers[table](options.only, options):
            done.setdefault(row["variant"], []).append({**row, **tables.facts()})
            print("  " + ", ".join(str(value) for value in row.values()), flush=True)
            # After each row: a run that is broken off leaves what it has found.
            rows = [one for found in done.values() for one in found]
            tables.replace(path, rows, key="variant", order=list(VARIANTS))
        print(f"wrote {path}")
    if not options.tiny and all((options.out / f"{t}.csv").exists() for t in makers):
        tables.write(options.out / "summary.csv", summary(options.out))
        print("\n".join(page(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
