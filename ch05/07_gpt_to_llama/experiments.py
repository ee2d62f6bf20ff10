"""How fast is our Llama beside transformers and llama.cpp, and what do 8 bits cost?

    python3 -m course run ch05/07_gpt_to_llama/experiments.py

All contestants continue the same prompt with SmolLM2-135M-Instruct by 128 tokens, the
likeliest each time, all in one thread, then all in two. They take turns within one run,
so that a busy machine hinders all alike; a ratio is the median over the rounds of one's
time over the other's.

* `speed.csv`: ours in float32 and int8, `transformers.generate` on the same
  de-quantised weights, llama.cpp (package xllamacpp) on the same file; and a step at a
  length of 512 tokens with and without a cache;
* `profile.csv`: the operators in which a step spends its time, in one thread;
* `remedies.csv`: what was tried against it, measured;
* `loading.csv`: seconds and peak memory of reading the file, in a fresh process
  (transformers reads it with one more package only, accelerate);
* `busy.csv`: writing with two threads alone and beside a busy process, by how long a
  thread that waits for the other may keep its processor busy;
* `loss.csv`: loss on the course's story, for each way of keeping the weights.

Takes about fifteen minutes and 5 GB.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import MethodType

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from course import tables
from course.assets import fetch
from course.testing.references import llama_config
from fast_copies import Int8Linear, arrange_columns, quantise_int8
from gguf_weights import load_llama_from_gguf
from gpt import TiedHead
from gqa import GroupedQueryAttention
from kv_cache import KVCache
from llama import SMOLLM2_135M, LlamaModel, RMSNorm, llama_key_map
from process_memory import peak_memory
from races import by_llama_cpp, by_ours, by_transformers, race, ratio, speed_rows

RESULTS = Path(__file__).parent / "results"
OURS, INT8 = "ours, float32", "ours, int8"
THEIRS, CPP = "transformers, float32", "llama.cpp, the file's 4 bits"
UNCACHED, CACHED = "ours, float32, without a cache", "ours, float32, with a cache"
PROMPT = "The lamp at the end of the pier"
SEVEN = "int8, seven products in a block"
FOUR = "int8, four products in a block"
COLUMNS = "ours, float32, arranged by columns"
SHOWN_OPERATORS = 8
TABLES = ("speed", "profile", "remedies", "loading", "busy", "loss")
TINY = {
    **SMOLLM2_135M,
    "vocab_size": 256,
    "context_length": 512,
    "emb_dim": 36,
    "head_dim": 4,
    "n_layers": 2,
    "hidden_dim": 32,
}


# --- The contestants ------------------------------------------------------------------


def reference(model):
    """The same weights in transformers' Llama; the tensors are shared."""
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(llama_config(model.cfg))
    ours = model.state_dict()
    weights = {their: ours[our] for their, our in llama_key_map(model.cfg).items()}
    theirs.load_state_dict(weights, assign=True, strict=False)
    theirs.tie_weights()
    # What is computed when the model is made was left without numbers on meta.
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    return theirs.eval()


# --- Speed ----------------------------------------------------------------------------


@torch.no_grad()
def steps_at_length(model, length, steps, rounds):
    """Seconds for some tokens after a text of that length, with and without a cache."""
    idx = torch.randint(model.cfg["vocab_size"], (1, length))
    cache = KVCache(model.cfg["n_layers"])
    model(idx[:, :-1], cache=cache)

    def cached(steps):
        branch = copy.deepcopy(cache)
        for _ in range(steps):
            model(idx[:, -1:], cache=branch)

    def uncached(steps):
        for _ in range(steps):
            model(idx)

    runs = {CACHED: cached, UNCACHED: uncached}
    return race(runs, rounds, lambda run: run(steps))


# --- Where the time goes, and what was tried ------------------------------------------


@torch.no_grad()
def step_seconds(model, idx, steps):
    """Median seconds of a cached step of one token."""
    cache, times = KVCache(model.cfg["n_layers"]), []
    model(idx, cache=cache)
    for _ in range(steps):
        start = time.perf_counter()
        model(idx[:, -1:], cache=cache)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def profile_rows(models, idx, steps, common):
    """The operators with the largest share of a step's time."""
    for name, model in models.items():
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            step_seconds(model, idx, steps)
        entries = recorded.key_averages()
        total = sum(entry.self_cpu_time_total for entry in entries)
        per_token = 1000 * (steps + 1)  # microseconds of all passes to milliseconds
        entries.sort(key=lambda entry: -entry.self_cpu_time_total)
        for rank, entry in enumerate(entries[:SHOWN_OPERATORS], start=1):
            spent = entry.self_cpu_time_total
            yield {
                "contestant": name,
                "rank": rank,
                "operator": entry.key,
                "calls_per_token": f"{entry.count / (steps + 1):.0f}",
                "milliseconds_per_token": f"{spent / per_token:.3g}",
                "share": f"{spent / total:.3f}",
                **common,
            }


@torch.no_grad()
def product_by_product(model):
    """What remedy 1 fixes: seven integer products in a block instead of four.

    The rest of a block is written out as well.
    """
    memo = {
        id(layer): Int8Linear(layer.weight)
        for layer in model.modules()
        if isinstance(layer, (nn.Linear, TiedHead))
    }
    return copy.deepcopy(model, memo)


def written_out(model):
    """What remedy 2 fixes: attention and norms as chapter 4 and this one write them."""
    changed = quantise_int8(model)
    for module in changed.modules():
        if isinstance(module, GroupedQueryAttention):
            module.attend = MethodType(GroupedQueryAttention.attend, module)
    for name, module in model.named_modules():
        if isinstance(module, RMSNorm):
            changed.set_submodule(name, module)
    return changed


def remedy_rows(models, idx, steps, rounds, common):
    """Seconds of a step of each model, in turns, beside the one that it improves on."""
    seconds = {name: [] for name in models}
    for _ in range(rounds):
        for name, (model, _) in models.items():
            seconds[name].append(step_seconds(model, idx, steps))
    for name, times in seconds.items():
        before = models[name][1]
        yield {
            "contestant": name,
            "milliseconds_per_token": f"{1000 * statistics.median(times):.2f}",
            "compared_with": before or "",
            "times_as_fast": f"{ratio(seconds, name, before):.3f}" if before else "",
            "rounds": rounds,
            **common,
        }


# --- Loading --------------------------------------------------------------------------


def load_once(path):
    """In a process of its own: print seconds and how many bytes the peak rose by."""
    before, start = peak_memory(), time.perf_counter()
    model, _ = load_llama_from_gguf(path)
    seconds, rise = time.perf_counter() - start, peak_memory() - before
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"measured {seconds} {rise} {held}")


def loading_rows(path, common):
    """Seconds and memory of reading the file, beside the float32 model's size."""
    seconds, rise, held = _in_a_process(["--load", str(path)], {})
    yield {
        "loader": OURS,
        "seconds": f"{seconds:.2f}",
        "peak_megabytes": f"{rise / 1e6:.0f}",
        "model_megabytes": f"{held / 1e6:.0f}",
        "peak_over_model": f"{rise / held:.2f}",
        **common,
    }


# --- A busy machine -------------------------------------------------------------------

# A thread that waits looks again and again whether the other is ready, so many times.
BUSY_SETTINGS = {
    "PyTorch's own": (2, {}),
    "5,000 looks": (2, {"GOMP_SPINCOUNT": "5000"}),
    "no look": (2, {"OMP_WAIT_POLICY": "passive"}),
    "one thread": (1, {}),
}


def write_once(model, idx, new_tokens):
    """In a process of its own: print tokens a second of the model and of its 8 bits."""
    runs = {OURS: by_ours(model), INT8: by_ours(quantise_int8(model))}
    for run in runs.values():  # warm up
        run(idx, 2)
    seconds = race(runs, 3, lambda run: run(idx, new_tokens))
    for spent in seconds.values():
        print(f"measured {new_tokens / statistics.median(spent)}")


def busy_rows(rounds, common):
    """Tokens a second, by the clock, for each setting; every other round is busy."""
    found = {}
    for _ in range(rounds):
        for beside in ("nothing", "a busy process"):
            for name, (threads, variables) in BUSY_SETTINGS.items():
                other = None
                if beside != "nothing":
                    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                try:
                    measured = _in_a_process(["--write", str(threads)], variables)
                finally:
                    if other:
                        other.kill()
                        other.wait()
                found.setdefault((name, beside), []).append(measured)
    for (name, beside), measured in found.items():
        ours, int8 = (statistics.median(column) for column in zip(*measured))
        yield {
            "waiting": name,
            "beside": beside,
            "float32_tokens_per_second": f"{ours:.1f}",
            "int8_tokens_per_second": f"{int8:.1f}",
            "rounds": rounds,
            **{**common, "threads": BUSY_SETTINGS[name][0]},
        }


def _in_a_process(arguments, variables):
    """What this script measures with other variables, as numbers."""
    waiting = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    own = {name: value for name, value in os.environ.items() if name not in waiting}
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=own | variables,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} could not be done:\n{done.stderr}")
    lines = [
        x.split()[1:] for x in done.stdout.splitlines() if x.startswith("measured ")
    ]
    return [float(number) for line in lines for number in line]


# --- Loss -----------------------------------------------------------------------------


def q4_1_again(weight, shift):
    """Weights rounded to Q4_1's grid: 16 steps from least to largest of 32 in a row.

    Weights from a Q4_1 file lie on that grid already. With blocks shifted by half they
    do not, and so lose about what the rounding cost the first time.
    """
    moved = weight.roll(shift, dims=1).unflatten(1, (-1, 32))
    least = moved.amin(dim=2, keepdim=True)
    step = ((moved.amax(dim=2, keepdim=True) - least) / 15).clamp(min=1e-12)
    grid = least + step * ((moved - least) / step).round()
    return grid.flatten(1).roll(-shift, dims=1)


@torch.no_grad()
def rounded_again(model):
    """A copy whose linear layers, all of Q4_1 in the file, are rounded once more."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, nn.Linear) and module.in_features % 32 == 0:
            module.weight.copy_(q4_1_again(module.weight, shift=16))
    return changed


@torch.no_grad()
def story_loss(model, ids, window):
    """Mean loss of a token of the text, read in windows without overlap."""
    total = count = 0
    for start in range(0, len(ids) - 1, window):
        part = ids[start : start + window + 1]
        logits = model(part[None, :-1])[0]
        total += F.cross_entropy(logits, part[1:], reduction="sum").item()
        count += len(part) - 1
    return total / count


def loss_rows(variants, ids, window, common):
    """The loss of each way of keeping the weights; models are made one at a time."""
    first = None
    for name, make in variants.items():
        loss = story_loss(make(), ids, window)
        first = loss if first is None else first
        yield {
            "weights": name,
            "loss": f"{loss:.4f}",
            "change": f"{loss - first:+.4f}",
            "tokens": len(ids) - 1,
            "window": window,
            **common,
        }


# --- The run --------------------------------------------------------------------------


def save(folder, name, rows):
    """Write a table and print what is in it."""
    rows = list(rows)
    print(f"wrote {tables.write(folder / f'{name}.csv', rows)}")
    for row in rows:
        print("  " + ", ".join(str(value) for value in list(row.values())[:8]))


def options_of(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="(%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=123, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for a test")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=TABLES,
        default=TABLES,
        help="which tables (all)",
    )
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if min(options.rounds, *options.threads) < 1:
        parser.error("--rounds and --threads must be 1 or more.")
    return options


def prepare(options):
    """The model, prompt ids and text ids to work on, and the file if there is one."""
    if options.tiny:
        model = LlamaModel(TINY).eval()
        return model, torch.randint(256, (1, 8)), torch.randint(256, (100,)), None
    path = fetch("smollm2-135m")
    model, tokenizer = load_llama_from_gguf(path)
    story = fetch("short-story").read_text(encoding="utf-8")
    prompt, text = tokenizer.encode(PROMPT), tokenizer.encode(story)
    return model, torch.tensor([prompt]), torch.tensor(text), path


def speed_table(model, idx, path, threads, options, common):
    """Whole texts by all contestants, and single steps at length 512."""
    new_tokens, length, steps = (6, 32, 2) if options.tiny else (128, 512, 2)
    runs = {
        OURS: by_ours(model),
        COLUMNS: by_ours(arrange_columns(model)),
        INT8: by_ours(quantise_int8(model)),
        THEIRS: by_transformers(reference(model)),
    }
    against = {OURS: THEIRS, COLUMNS: THEIRS}
    if path is not None:
        runs[CPP] = by_llama_cpp(path, threads)
        against[INT8] = CPP
    for run in runs.values():  # warm up
        run(idx, 2)
    seconds = race(runs, options.rounds, lambda run: run(idx, new_tokens))
    rows = list(speed_rows(seconds, "whole text", new_tokens, against, common))
    seconds = steps_at_length(model, length, steps, options.rounds)
    task = f"step at {length} tokens"
    return rows + list(speed_rows(seconds, task, steps, {CACHED: UNCACHED}, common))


def remedies_table(model, idx, options, common):
    models = {
        SEVEN: (product_by_product(model), None),
        FOUR: (written_out(model), SEVEN),
        INT8: (quantise_int8(model), FOUR),
        OURS: (model, None),
        COLUMNS: (arrange_columns(model), OURS),
    }
    rounds, steps = (2, 2) if options.tiny else (9, 16)
    return list(remedy_rows(models, idx, steps, rounds, common))


def loss_table(model, ids, options, common):
    tokens, window = (60, 20) if options.tiny else (2048, 256)
    variants = {
        "float32, as de-quantised": lambda: model,
        "int8": lambda: quantise_int8(model),
        "Q4_1 a second time, blocks shifted": lambda: rounded_again(model),
    }
    return list(loss_rows(variants, ids[: tokens + 1], window, common))


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    options = options_of(arguments)
    if options.load:
        load_once(options.load)
        return 0
    if options.write:
        torch.set_num_threads(options.write)
        model, idx, _, _ = prepare(options)
        write_once(model, idx, 4 if options.tiny else 24)
        return 0
    torch.manual_seed(options.seed)
    told = {"seed": options.seed, "transformers": transformers.__version__}
    start = time.perf_counter()
    if "loading" in options.only and not options.tiny:
        torch.set_num_threads(1)
        common = tables.facts(**told)
        save(options.out, "loading", loading_rows(fetch("smollm2-135m"), common))
    if "busy" in options.only and not options.tiny:
        save(options.out, "busy", busy_rows(options.rounds, tables.facts(**told)))
    model, idx, text, path = prepare(options)
    found = {"speed": [], "remedies": []}
    for threads in options.threads:
        torch.set_num_threads(threads)
        common = tables.facts(**told)
        if "speed" in options.only:
            found["speed"] += speed_table(model, idx, path, threads, options, common)
        if "remedies" in options.only:
            found["remedies"] += remedies_table(model, idx, options, common)
    for name, rows in found.items():
        if rows:
            save(options.out, name, rows)
    torch.set_num_threads(1)
    common = tables.facts(**told)
    if "profile" in options.only:
        models = {OURS: model, INT8: quantise_int8(model)}
        steps = 2 if options.tiny else 16
        save(options.out, "profile", profile_rows(models, idx, steps, common))
    if "loss" in options.only:
        save(options.out, "loss", loss_table(model, text, options, common))
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
