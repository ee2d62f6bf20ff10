"""How much memory does each way to load a model take, and when?

    python3 -m course run ch05/08_memory_efficient_weight_loading/experiments.py

SmolLM2-135M in float32, 538 MB, is written to a temporary folder (1.6 GB, as each kind
of file that the ways need) and loaded in each of seven ways, each time by a process of
its own, which then reads a text of 8 tokens. `results/peaks.csv` gets the peaks, for a
float32 model and for a bfloat16 model from the same float32 files; the largest of the
rounds counts. `results/staircase.csv` gets the memory over time, one round of each way,
without the many samples between which nothing changed. `results/changed.csv` gets what
becomes of mapped weights that are trained. Takes about four minutes and 3 GB.

The lesson reads the tables of the CPU. On a card (`COURSE_DEVICE=cuda`), write to
another folder with `--out`: a column gets the most that PyTorch held on the card.
"""

import functools
import hashlib
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from course import settings, tables
from llama import SMOLLM2_135M, LlamaConfig, LlamaModel
from low_memory import WAYS, load_and_use
from pretrained import load_pretrained
from process_memory import Memory, measure, measure_here
from script_tools import positive_int

RESULTS = Path(__file__).parent / "results"
TABLES = ("peaks", "staircase", "changed")
SHARDS = 6  # about; no shard is smaller than a tensor
TINY = LlamaConfig.of(
    {**SMOLLM2_135M, "vocab_size": 64, "emb_dim": 16, "n_heads": 2, "n_kv_groups": 1}
    | {"head_dim": 8, "n_layers": 2, "hidden_dim": 24}
)
STEP = 0.02  # of the weights: smaller changes make no step of a staircase


class Files:
    """A model's weights in each kind of file, and the sizes that belong to them."""

    def __init__(self, model, folder):
        state = model.state_dict()
        self.make = functools.partial(LlamaModel, model.cfg)
        self.numbers = sum(tensor.numel() for tensor in state.values())
        self.state_dict = folder / "weights.pth"
        self.single = folder / "weights.safetensors"
        self.shards = folder / "shards"
        torch.save(state, self.state_dict)
        save_file(state, self.single)
        self.shards.mkdir()
        limit = 4 * self.numbers // SHARDS
        save_torch_state_dict(state, self.shards, max_shard_size=limit)

    def for_way(self, way):
        single = dict.fromkeys(("one by one", "by tensor"), self.single)
        return {**single, "by shards": self.shards}.get(way, self.state_dict)


class LoadingBench(NamedTuple):
    """What the tables are made with; `run` is `measure`, or `measure_here` if tiny."""

    real: Files
    tiny: Files
    device: torch.device
    rounds: int
    run: Callable

    def taken(self, way, *options):
        """Measure one way; the same on the tiny model is its rehearsal."""
        calls = [
            (way, files.make, files.for_way(way), self.device, *options)
            for files in (self.real, self.tiny)
        ]
        return self.run(load_and_use, *calls[0], rehearsal=calls[1])


def above(base, memory):
    return Memory(memory.anonymous - base.anonymous, memory.file - base.file)


def peaks_table(bench):
    for dtype in (torch.float32, torch.bfloat16):
        weights, logits = bench.real.numbers * dtype.itemsize, set()
        for way in WAYS:
            found = [bench.taken(way, dtype) for _ in range(bench.rounds)]
            logits |= {one.result for one in found}
            most = max(found, key=lambda one: one.grown)
            row = {
                "model_dtype": str(dtype).removeprefix("torch."),
                "way": way,
                "weights_bytes": weights,
                "base_bytes": most.base.total,
                "peak_bytes": most.peak,
                "peak_over_weights": f"{most.grown / weights:.3f}",
                "least_over_weights": f"{min(x.grown for x in found) / weights:.3f}",
            }
            for step in ("loaded", "used"):
                held = above(most.base, most.held[step])
                row[f"{step}_anonymous_bytes"] = held.anonymous
                row[f"{step}_file_bytes"] = held.file
            row["seconds_to_load"] = f"{min(x.seconds['loaded'] for x in found):.3f}"
            row["device"] = str(bench.device)
            row["device_peak_bytes"] = most.device_peak or ""
            row["same_logits"] = len(logits) == 1
            yield {**row, "rounds": bench.rounds}


def staircase_table(bench):
    for way in WAYS:
        found = bench.taken(way)
        for seconds, memory in steps(found.samples, STEP * 4 * bench.real.numbers):
            held = above(found.base, memory)
            yield {
                "way": way,
                "seconds": f"{seconds:.3f}",
                "anonymous_bytes": held.anonymous,
                "file_bytes": held.file,
            }


def steps(samples, least):
    """The samples that tell: the first, the last, and both ends of each change."""
    kept = [samples[0]]
    for previous, sample in itertools.pairwise(samples):
        changes = [abs(a - b) for a, b in zip(sample[1], kept[-1][1], strict=True)]
        if max(changes) > least:
            kept += [sample] if previous is kept[-1] else [previous, sample]
    return kept if kept[-1] is samples[-1] else [*kept, samples[-1]]


def changed_table(bench):
    real = bench.real
    before = sha256(real.state_dict)
    found = bench.taken("mapped", torch.float32, True)
    for step, memory in found.held.items():
        held = above(found.base, memory)
        yield {
            "step": step,
            "anonymous_bytes": held.anonymous,
            "file_bytes": held.file,
            "weights_bytes": 4 * real.numbers,
            "file_unchanged": sha256(real.state_dict) == before,
        }


def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--rounds", type=positive_int, default=3, help="(%(default)s)")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    with TemporaryDirectory() as folder:
        folders = [Path(folder, name) for name in ("real", "tiny")]
        for place in folders:
            place.mkdir()
        tiny = Files(LlamaModel(TINY), folders[1])
        if options.tiny:
            real, run = tiny, measure_here
        else:
            real = Files(load_pretrained("smollm2-135m").model, folders[0])
            run = measure
        bench = LoadingBench(real, tiny, settings.device(), options.rounds, run)
        for name in options.only:
            maker = globals()[f"{name}_table"]
            common = {} if name == "staircase" else tables.facts(seed=options.seed)
            rows = []
            for row in maker(bench):
                rows.append({**row, **common})
                if name != "staircase":
                    print("  " + ", ".join(map(str, row.values())), flush=True)
            print(f"wrote {tables.write(options.out / f'{name}.csv', rows)}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
