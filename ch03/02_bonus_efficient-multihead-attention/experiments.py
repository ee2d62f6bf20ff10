"""What does each way to compute multi-head attention cost at the size of GPT-2 small?

    python3 -m course run ch03/02_bonus_efficient-multihead-attention/experiments.py

Eight sequences of 1,024 tokens, 768 wide, 12 heads, float32, no dropout: a forward pass
that keeps nothing, and one with its backward pass. The ways take turns within one run;
the ratio is one's least time over chapter 3's least. With one thread on a CPU the
process's own time is taken, in which waiting for other programs does not count; else it
is the time on the wall, and the column `clock` says which. Where a C++ compiler is
found, `torch.compile` adds rows. With `--device cuda` the rows of a graphics card are
written beside those of the CPU.

`results/speed.csv` has a row for each way and task, `results/memory.csv` the memory of
both tasks, `results/differences.csv` how far each way is from chapter 3's layer. Takes
about a quarter of an hour and 6 GB.
"""

import os
import shutil
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

from attention_costs import (
    SOURCE,
    backward_is_missing,
    differences,
    kept_bytes,
    make_layers,
    peak_bytes,
)
from course import tables
from script_tools import positive_int

RESULTS = Path(__file__).parent / "results"
FORWARD, BOTH = "forward", "forward and backward"
SIZES = {"batch": 8, "tokens": 1024, "width": 768, "heads": 12}
TINY = {"batch": 2, "tokens": 24, "width": 16, "heads": 2}
# A hundred thousand small steps: one round is enough, and they fill a recording.
SLOW = "loops"
UNROLLED = (SLOW, "tiles")  # torch.compile would write out every turn of their loops


def compiler():
    """The C++ compiler that torch.compile would use here; None if there is none."""
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return next(filter(None, (name and shutil.which(name) for name in names)), None)


def clock_for(device):
    """A name and a clock: the process's own time, if that is what the work takes."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "CPU time", time.process_time
    return "wall", time.perf_counter


class AttentionContestant:
    """A layer, plain or compiled, and what it is asked to do."""

    def __init__(self, name, layer, task, compiled=False):
        self.name, self.task, self.compiled = name, task, compiled
        self.layer = layer
        self.call = torch.compile(layer) if compiled else layer

    @property
    def label(self):
        return f"{self.task}, compiled" if self.compiled else self.task

    def run(self, x):
        """Do the task once; the result is let go."""
        if self.task == FORWARD:
            with torch.no_grad():
                self.call(x)
            return
        x = x.detach().requires_grad_()
        self.call(x).sum().backward()
        self.layer.zero_grad()

    def seconds(self, x):
        _, clock = clock_for(x.device)
        start = clock()
        self.run(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start


def contestants(layers, device):
    """Every way and task that this device can do."""
    for name, layer in layers.items():
        yield AttentionContestant(name, layer, FORWARD)
        if not backward_is_missing(name, device):
            yield AttentionContestant(name, layer, BOTH)


def compiled_contestants(layers, x):
    """Those that torch.compile takes and that still give what they gave before."""
    for name, layer in layers.items():
        if name in UNROLLED:
            continue
        missing = backward_is_missing(name, x.device)
        one = AttentionContestant(
            name, layer, FORWARD if missing else BOTH, compiled=True
        )
        try:
            spent = one.seconds(x)
        except Exception as error:  # whatever the compiler stumbles over
            print(f"{name}: not compiled, {type(error).__name__}")
            continue
        with torch.set_grad_enabled(not missing):
            off = (one.call(x) - layer(x)).detach().abs().max().item()
        if not off < 1e-3:
            print(f"{name}: not timed, since compiled it is off by {off:.1g}")
            continue
        print(f"{name}: compiled in {spent:.0f} s, off by {off:.1g}", flush=True)
        yield one


def measure(field, x, rounds):
    """Seconds of every round for each contestant; each goes first in turn."""
    times = {one: [] for one in field}
    for turn in tqdm(range(rounds + 1), unit="round", disable=None):
        first = turn * len(field) // (rounds + 1)
        for one in field[first:] + field[:first]:
            if one.name == SLOW and turn != rounds:
                continue
            spent = one.seconds(x)
            if turn:  # the first round warms up
                times[one].append(spent)
    return times


def speed_rows(times, common):
    """One row for each way and task; the ratio is over chapter 3's, not compiled."""
    least = {
        one.task: min(spent)
        for one, spent in times.items()
        if one.name == SOURCE and not one.compiled
    }
    for one, spent in times.items():
        ratio = min(spent) / least[one.task]
        yield {
            "device": common["device"],
            "way": one.name,
            "task": one.label,
            "median_ms": f"{1e3 * statistics.median(spent):.4g}",
            "least_ms": f"{1e3 * min(spent):.4g}",
            "over_chapter_3": f"{ratio:.3g}",
            "rounds": len(spent),
            **common,
        }


def memory_rows(layers, x, common):
    """Megabytes of both tasks, and those that are kept in between."""
    for name, layer in layers.items():
        tasks = [FORWARD] if backward_is_missing(name, x.device) else [FORWARD, BOTH]
        peaks = {FORWARD: "", BOTH: ""}
        for task in tasks if name != SLOW else ():
            one = AttentionContestant(name, layer, task)
            peaks[task] = f"{peak_bytes(lambda o=one: o.run(x), x.device) / 1e6:.1f}"
        kept = f"{kept_bytes(layer, x) / 1e6:.1f}" if BOTH in tasks else ""
        yield {
            "device": common["device"],
            "way": name,
            "forward_peak_mb": peaks[FORWARD],
            "forward_and_backward_peak_mb": peaks[BOTH],
            "kept_for_backward_mb": kept,
            **common,
        }


def difference_rows(layers, x, common):
    """How far each way is from chapter 3's layer."""
    for name, layer in layers.items():
        missing = backward_is_missing(name, x.device)
        forward, backward = differences(layer, layers[SOURCE], x, not missing)
        yield {
            "device": common["device"],
            "way": name,
            "forward_difference": f"{forward:.2g}",
            "gradient_difference": "" if backward is None else f"{backward:.2g}",
            **common,
        }


def main(arguments=None):
    """Measure, write the tables, print the ratios; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=5, help="(%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out"
    )
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "flex_attention called without")
    sizes = TINY if options.tiny else SIZES
    device = torch.device(options.device)
    layers = make_layers(sizes["width"], sizes["tokens"], sizes["heads"], options.seed)
    for layer in layers.values():
        layer.to(device)
    shape = (sizes["batch"], sizes["tokens"], sizes["width"])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(options.seed))
    x = x.to(device)
    common = {"device": options.device, **sizes, **tables.facts(seed=options.seed)}

    start = time.perf_counter()
    written = {
        "differences": list(difference_rows(layers, x, common)),
        "memory": list(memory_rows(layers, x, common)),
    }
    field = list(contestants(layers, device))
    if options.no_compile or compiler() is None:
        print("no compiled rows: --no-compile, or no C++ compiler")
    else:
        field += compiled_contestants(layers, x)
    times = measure(field, x, options.rounds)
    timed = {"clock": clock_for(device)[0], **common}
    written["speed"] = list(speed_rows(times, timed))
    for row in written["speed"]:
        print(
            f"{row['way']:33} {row['task']:30} {row['median_ms']:>7} ms, "
            f"{row['over_chapter_3']} of {SOURCE}'s time"
        )
    for name, rows in written.items():
        path = options.out / f"{name}.csv"
        print(f"wrote {tables.replace(path, rows, key='device')}")
    print(f"{time.perf_counter() - start:.0f} s of measuring")
    return 0


if __name__ == "__main__":
    sys.exit(main())
