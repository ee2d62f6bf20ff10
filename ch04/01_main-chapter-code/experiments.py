"""How fast is our GPT beside transformers' GPT-2?

    python3 -m course run ch04/01_main-chapter-code/experiments.py

Both models have the size of GPT-2 124M, tied weights, all biases, no dropout, float32,
and do the same work on the same token ids: a forward pass, and a training step
(forward, loss, backward, AdamW). They take turns within one run, so that a busy machine
hinders both alike; the ratio is the median over the rounds of one's time over the
other's. The third is our model with PyTorch's own kernels for normalisation and GELU:
it says what writing those two out costs.

`results/speed.csv` gets a row for each model and task, `results/profile.csv` the
operators in which a training step spends its time. Takes about three minutes and 5 GB.
"""

import copy
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from course import tables
from course.testing.references import gpt2_config
from gpt import GELU, GPT_CONFIG_124M, GPTModel, LayerNorm, initialise_like_gpt2
from script_tools import positive_int

RESULTS = Path(__file__).parent / "results"
OURS, FUSED, THEIRS = "gpt.py", "gpt.py, fused norm and GELU", "transformers"
TASKS = ("forward", "training step")
SHOWN_OPERATORS = 8

CONFIG = {**GPT_CONFIG_124M, "drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
TINY = {**CONFIG, "vocab_size": 101, "context_length": 16, "emb_dim": 24, "n_layers": 2}


def reference(cfg):
    """transformers' GPT-2 of these sizes, with the attention it takes by itself."""
    return transformers.GPT2LMHeadModel(gpt2_config(cfg))


def with_fused_parts(model):
    """A second model on the same weights, with PyTorch's normalisation and GELU."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    fused = copy.deepcopy(model, shared)
    for module in list(fused.modules()):
        for name, part in module.named_children():
            if isinstance(part, GELU):
                setattr(module, name, nn.GELU(approximate="tanh"))
            elif isinstance(part, LayerNorm):
                norm = nn.LayerNorm(len(part.scale), eps=part.eps)
                norm.weight, norm.bias = part.scale, part.shift
                setattr(module, name, norm)
    return fused


class Contestant:
    """A model with its optimizer, ready for both tasks."""

    def __init__(self, model, optimizer=None):
        self.model = model
        self.optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-4)

    def logits(self, idx):
        out = self.model(idx)
        return out if isinstance(out, torch.Tensor) else out.logits

    def run(self, task, inputs, targets):
        """Do the task once; a forward pass keeps no graph."""
        if task == "forward":
            with torch.no_grad():
                self.logits(inputs)
            return
        self.optimizer.zero_grad()
        logits = self.logits(inputs)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        self.optimizer.step()


def contestants(cfg, seed):
    torch.manual_seed(seed)
    ours = Contestant(initialise_like_gpt2(GPTModel(cfg)))
    fused = Contestant(with_fused_parts(ours.model), ours.optimizer)
    return {OURS: ours, FUSED: fused, THEIRS: Contestant(reference(cfg))}


def measure(models, inputs, targets, rounds):
    """Seconds of every round, {(model, task): [...]}; each goes first in turn."""
    seconds = {(name, task): [] for task in TASKS for name in models}
    for turn in tqdm(range(rounds + 1), unit="round", disable=None):
        names = list(models)[turn % len(models) :] + list(models)[: turn % len(models)]
        for task in TASKS:
            for name in names:
                start = time.perf_counter()
                models[name].run(task, inputs, targets)
                if turn:  # the first round warms up
                    seconds[name, task].append(time.perf_counter() - start)
    return seconds


def speed_rows(seconds, batch, tokens, common):
    """One row for each model and task; the ratio is over transformers."""
    for (name, task), times in seconds.items():
        against = seconds[THEIRS, task]
        ratio = statistics.median(a / b for a, b in zip(times, against, strict=True))
        median = statistics.median(times)
        yield {
            "model": name,
            "task": task,
            "batch": batch,
            "tokens": tokens,
            "median_seconds": f"{median:.4g}",
            "least_seconds": f"{min(times):.4g}",
            "tokens_per_second": f"{batch * tokens / median:.0f}",
            "over_transformers": f"{ratio:.3f}",
            "rounds": len(times),
            **common,
        }


def profile_rows(models, inputs, targets, common):
    """The operators with the largest share of a training step's time."""
    for name, contestant in models.items():
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            contestant.run("training step", inputs, targets)
        entries = recorded.key_averages()
        total = sum(entry.self_cpu_time_total for entry in entries)
        entries.sort(key=lambda entry: -entry.self_cpu_time_total)
        for rank, entry in enumerate(entries[:SHOWN_OPERATORS], start=1):
            yield {
                "model": name,
                "rank": rank,
                "operator": entry.key,
                "calls": entry.count,
                "milliseconds": f"{entry.self_cpu_time_total / 1000:.4g}",
                "share": f"{entry.self_cpu_time_total / total:.3f}",
                **common,
            }


def main(arguments=None):
    """Measure, write the tables, print the ratios; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=4, help="(%(default)s)")
    options = parser.parse_args(arguments)

    cfg, batch, tokens = (TINY, 2, 8) if options.tiny else (CONFIG, 2, 256)
    models = contestants(cfg, options.seed)
    ids = torch.randint(cfg["vocab_size"], (batch, tokens + 1))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    common = tables.facts(seed=options.seed)
    common["transformers"] = transformers.__version__
    start = time.perf_counter()
    seconds = measure(models, inputs, targets, options.rounds)
    speed = list(speed_rows(seconds, batch, tokens, common))
    for row in speed:
        print(
            f"{row['task']:14} {row['model']:29} {row['median_seconds']:>7} s, "
            f"{row['over_transformers']} of transformers' time"
        )
    rows = profile_rows(models, inputs, targets, common)
    for name, table in (("speed", speed), ("profile", rows)):
        print(f"wrote {tables.write(options.out / f'{name}.csv', table)}")
    print(f"{time.perf_counter() - start:.0f} s of measuring")
    return 0


if __name__ == "__main__":
    sys.exit(main())
