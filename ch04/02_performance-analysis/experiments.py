"""Where do our models lie on this machine's roofline, and what do they keep in memory?

    python3 -m course run ch04/02_performance-analysis/experiments.py

Models of the size of GPT-2 124M and SmolLM2-135M, with random weights, in float32: how
fast numbers are made does not depend on their values. `results/ceilings.csv` gets what
the machine can do (products and copies, measured before and after everything else; the
best counts), `results/roofline.csv` a row for each model and task with its operations,
bytes and seconds (the fastest of the rounds), `results/memory.csv` the bytes of a
training step by formula, as autograd keeps them and as the process grew, and
`results/few_rows.csv` how fast one linear layer is with few rows and with many, in both
orders of its weights. `--only few_rows` measures that table alone. All take about six
minutes and 6 GB.
"""

import gc
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import torch
from torch.nn import functional

from course import tables
from flops import (
    Ceilings,
    Work,
    fastest,
    forward_work,
    matmul_flops,
    measure_activations,
    measure_ceilings,
    training_bytes,
    training_step,
    training_work,
)
from gpt import GPT_CONFIG_124M, GPTModel
from kv_cache import KVCache
from llama import SMOLLM2_135M, LlamaModel
from script_tools import positive_int

RESULTS = Path(__file__).parent / "results"
CONFIGS = {
    "GPT-2 124M": {**GPT_CONFIG_124M, "drop_rate": 0.0, "tie_weights": True},
    "SmolLM2 135M": {**SMOLLM2_135M},
}
TINY = {"emb_dim": 24, "n_layers": 2, "vocab_size": 101}
PREFILL = ((1, 16), (1, 64), (1, 256))  # (batch, tokens)
DECODE = ((1, 128), (4, 128), (16, 128))  # (batch, past)
TRAINING = ((1, 32), (1, 128), (2, 256))  # (batch, tokens)
MEMORY = ((1, 128), (2, 256))
LAYER = (768, 24_576)  # inputs, outputs: 75 MB, more than most caches hold
ROWS = (1, 4, 16, 64, 256)
TABLES = ("memory", "roofline", "few_rows")


def make(cfg, seed):
    torch.manual_seed(seed)
    return LlamaModel(cfg) if "hidden_dim" in cfg else GPTModel(cfg)


def random_ids(cfg, batch, tokens):
    return torch.randint(cfg["vocab_size"], (batch, tokens))


def decode_step(model, idx, cache, past):
    """One token more, which is forgotten again: each round finds the same cache."""
    model(idx, cache=cache)
    cache.truncate(past)


def measure_tasks(cfg, sizes, rounds, seed):
    """Yield (task, batch, tokens, past, work, seconds) for one model."""
    model = make(cfg, seed).eval()
    with torch.no_grad():
        for batch, tokens in sizes["prefill"]:
            idx = random_ids(cfg, batch, tokens)
            seconds = fastest(lambda idx=idx: model(idx), rounds)
            yield "prefill", batch, tokens, 0, forward_work(cfg, batch, tokens), seconds
        for batch, past in sizes["decode"]:
            cache = KVCache(cfg["n_layers"])
            model(random_ids(cfg, batch, past), cache=cache)
            idx = random_ids(cfg, batch, 1)
            step = partial(decode_step, model, idx, cache, past)
            seconds = fastest(step, rounds)
            yield "decode", batch, 1, past, forward_work(cfg, batch, 1, past), seconds
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    for batch, tokens in sizes["training"]:
        idx = random_ids(cfg, batch, tokens)
        seconds = fastest(lambda idx=idx: training_step(model, optimizer, idx), rounds)
        yield "training", batch, tokens, 0, training_work(cfg, batch, tokens), seconds


class PeakMemory:
    """The most bytes that the process holds while the block runs, above the start."""

    def __enter__(self):
        gc.collect()
        self.process, self.done = psutil.Process(os.getpid()), threading.Event()
        self.start = self.process.memory_info().rss
        self.peak = self.start
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()
        self.grown = self.peak - self.start


def step_memory(name, cfg, batch, tokens, seed):
    """What a training step holds: by formula, by autograd, and by the process."""
    with PeakMemory() as process:
        model = make(cfg, seed)
        optimizer = torch.optim.AdamW(model.parameters())
        idx = random_ids(cfg, batch, tokens)
        for _ in range(2):  # AdamW makes its moments in the first step
            training_step(model, optimizer, idx)
    optimizer.zero_grad()
    kept = measure_activations(model, idx, idx.clone())
    parts = training_bytes(cfg, batch, tokens)
    return {
        "model": name,
        "batch": batch,
        "tokens": tokens,
        **{part.replace(" ", "_"): size for part, size in parts.items()},
        "measured_activations": kept,
        "sum": sum(parts.values()),
        "process_grew": process.grown,
    }


def in_new_process(function, *arguments):
    """Call it where nothing has taken memory before; memory given back stays held."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_layer(layer, sizes, rounds, seed):
    """Yield (weights, rows, work, seconds) for a linear layer, stored in two orders.

    `nn.Linear` keeps the weights of an output side by side. Those of an input are side
    by side in the copies that `fast_copies.arrange_columns` makes of such a layer.
    """
    torch.manual_seed(seed)
    inputs, outputs = layer
    weight = torch.randn(outputs, inputs)
    turned = weight.t().contiguous()  # (inputs, outputs)
    for rows in sizes:
        x = torch.randn(rows, inputs)
        moved = 4 * (x.numel() + weight.numel() + rows * outputs)
        work = Work(matmul_flops(rows, inputs, outputs), moved)
        by_output = fastest(partial(functional.linear, x, weight), rounds)
        yield "by output", rows, work, by_output
        yield "by input", rows, work, fastest(partial(torch.matmul, x, turned), rounds)


def speed_of(flops, seconds):
    speed = f"{flops / seconds / 1e9:.4g}"
    return {"seconds": f"{seconds:.4g}", "gflops_per_second": speed}


def between_ceilings(measure, dtypes, large):
    """What `measure` yields, and the better ceilings of those before and behind it."""
    before = [measure_ceilings(dtype, **large) for dtype in dtypes]
    found = list(measure)
    behind = [measure_ceilings(dtype, **large) for dtype in dtypes]
    roofs = [Ceilings(*map(max, *pair)) for pair in zip(before, behind, strict=True)]
    return found, dict(zip(dtypes, roofs, strict=True))


def roofline_tables(configs, sizes, options, large):
    """The tables `ceilings` and `roofline`, from one run."""
    measure = (
        (name, *point)
        for name, cfg in configs.items()
        for point in measure_tasks(cfg, sizes, options.rounds, options.seed)
    )
    dtypes = (torch.float32, torch.bfloat16)
    found, ceilings = between_ceilings(measure, dtypes, large)
    roof, rows = ceilings[torch.float32], []
    for name, task, batch, tokens, past, work, seconds in found:
        share = work.flops / seconds / roof.attainable(work.intensity)
        row = {"model": name, "task": task, "batch": batch, "tokens": tokens}
        row |= {"past": past, "flops": work.flops, "bytes": work.bytes}
        row |= {"intensity": f"{work.intensity:.4g}", **speed_of(work.flops, seconds)}
        rows.append({**row, "share_of_roof": f"{share:.3f}"})
        print(
            f"{name:13} {task:9} {batch:3} x {tokens:4}: {row['intensity']:>6} FLOP/"
            f"byte, {row['gflops_per_second']:>6} GFLOP/s, {share:.0%} of the roof"
        )
    roofs = [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "gflops_per_second": f"{found.flops_per_second / 1e9:.4g}",
            "gigabytes_per_second": f"{found.bytes_per_second / 1e9:.4g}",
            "ridge": f"{found.ridge:.4g}",
        }
        for dtype, found in ceilings.items()
    ]
    for row in roofs:
        print(f"{row['dtype']}: {row['gflops_per_second']} GFLOP/s")
    return {"ceilings": roofs, "roofline": rows}


def few_rows_table(layer, sizes, options):
    """The table `few_rows`."""
    rows = []
    found = measure_layer(layer, sizes, 5 * options.rounds, options.seed)
    for weights, count, work, seconds in found:
        row = {"weights": weights, "rows": count, "flops": work.flops}
        row |= {"bytes": work.bytes, **speed_of(work.flops, seconds)}
        rows.append(row)
        speed = row["gflops_per_second"]
        print(f"{count:4} rows, weights {weights:9}: {speed:>6} GFLOP/s")
    return rows


def main(arguments=None):
    """Measure, write the tables, print the figures; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=4, help="(%(default)s)")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args(arguments)
    sizes = {"prefill": PREFILL, "decode": DECODE, "training": TRAINING}
    configs, memory, layer, large = CONFIGS, MEMORY, LAYER, {}
    if options.tiny:
        configs = {name: {**cfg, **TINY} for name, cfg in CONFIGS.items()}
        sizes = dict.fromkeys(sizes, ((1, 4), (2, 8)))
        memory, layer = ((1, 8),), (24, 48)
        large = {"sides": (64,), "megabytes": 4, "rounds": 2}
    start, made = time.perf_counter(), {}
    if "memory" in options.only:
        run = step_memory if options.tiny else partial(in_new_process, step_memory)
        made["memory"] = [
            run(name, cfg, batch, tokens, options.seed)
            for name, cfg in configs.items()
            for batch, tokens in memory
        ]
    if "roofline" in options.only:
        made |= roofline_tables(configs, sizes, options, large)
    if "few_rows" in options.only:
        made["few_rows"] = few_rows_table(layer, ROWS, options)
    common = tables.facts(seed=options.seed)
    for name, rows in made.items():
        rows = [{**row, **common} for row in rows]
        print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
    print(f"{time.perf_counter() - start:.0f} s of measuring")
    return 0


if __name__ == "__main__":
    sys.exit(main())
