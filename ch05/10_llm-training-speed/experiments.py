"""How fast is each recipe of `speed.py`, at what price, and does it learn the same?

    python3 -m course run ch05/10_llm-training-speed/experiments.py
    python3 -m course run ch05/10_llm-training-speed/experiments.py --size 124M
    python3 -m course run ch05/10_llm-training-speed/experiments.py --device cuda

Models of two sizes, tied weights, all biases, no dropout: GPT-2 124M, two windows of
256 tokens in a batch, and chapter 5's quick model, two windows of 128; the text is the
course's story. Each recipe trains in a process of its own. The processes of a group,
the plain loop among them, take turns (A B C A B C), so that a busy machine hinders all
alike. The least of the rounds counts, since other programs can only slow an update
down, and a ratio is one's least over that of the plain loop in the same group.
Column `rounds` counts the timed ones. With one thread on a CPU the
process's own time is taken, in which waiting for other programs does not count; else it
is the time on the wall: column `clock`.

* `speed.csv`: tokens a second, peak memory (above that of the
  libraries), `loss_3`, the loss of the third update, the same for all with the same
  batches; and the validation loss of the quick model after 4,096 tokens by chapter 5's
  function, from `plain_model()`, of the plain loop for three seeds;
* `race.csv`: GPT-2 124M by the plain loop and the fast recipes beside `transformers`'
  GPT2LMHeadModel, which gets the fused AdamW, too, with and without bfloat16;
* `profile.csv`: of the same processes, where the time of one more update goes, on the
  wall and by the names of operators; what compiled blocks do is under "other". Norms
  and GELU are known by their modules, in both directions.

`--only` chooses tables, `--recipes` recipes; a row replaces that of the same recipe,
model, device and number of threads. `--device cuda` measures a graphics card, with two
recipes more: tensor cores (float32 products with shorter factors) and pinned memory.
`--peak` is the card's peak in FLOP/s, for the MFU of every row; on a CPU one for each
number type is measured. `--processes 2` adds DDP. On one thread of the
reference machine: 3 minutes for `speed`, 5 for it with the 124M, 3 for `race`, which
needs 16 GB.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch
from tqdm import tqdm

from course import tables
from course.assets import fetch
from course.testing.references import gpt2_config
from dataloader import split_text
from flops import measure_ceilings, utilisation
from gpt import GPT_CONFIG_124M
from gpt_train import QUICK_CONFIG, calc_loss_loader
from process_memory import memory_now, peak_memory, reset_peak
from script_tools import positive_int
from several_processes import process_group
from speed import RECIPES, Recipe, TrainingRun, prefetched, why_not_compiled
from step_profile import seconds_by_part
from training_loop import in_bfloat16

RESULTS = Path(__file__).parent / "results"
TABLES = ("speed", "race")
CONFIG = {**GPT_CONFIG_124M, "drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
QUICK = {**QUICK_CONFIG, "qkv_bias": True, "tie_weights": True}
TINY = {**CONFIG, "context_length": 16, "emb_dim": 24, "n_heads": 3, "n_layers": 2}
SEEDS = 3  # of the plain loop


class Size(NamedTuple):
    """A model, and what is done with it."""

    cfg: Mapping
    tokens: int  # in a sequence
    learning_rate: float
    turn: int  # sequences in a turn; at least one batch
    rounds: int
    together: int  # processes in a group
    validate: bool


SIZES = {
    "quick": Size(QUICK, 128, 1e-3, 8, 4, 16, True),
    "124M": Size(CONFIG, 256, 4e-4, 2, 3, 4, False),
    "tiny": Size(TINY, 8, 1e-3, 4, 3, 8, True),
}
TENSOR_CORES, PINNED = "tensor cores", "pinned memory"  # on a graphics card only
DDP = "ddp"
THEIRS = {"transformers": False, "transformers, bfloat16": True}
RACE = ("plain", "chunks", "bfloat16", "compiled", *THEIRS)


# --- A process that trains ------------------------------------------------------------


class TheirRun:
    """`transformers`' GPT-2 with the loss and the optimizer of the fast recipes."""

    def __init__(self, cfg, bfloat16, device, seed):
        import transformers  # not every process needs it

        torch.manual_seed(seed)
        self.model = transformers.GPT2LMHeadModel(gpt2_config(cfg)).to(device)
        self.device = torch.device(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=4e-4, weight_decay=0.1, fused=True
        )
        self.loss = in_bfloat16(self.plain_loss) if bfloat16 else self.plain_loss

    def plain_loss(self, inputs, targets, model, device):
        logits = model(inputs).logits.float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, targets.flatten())

    def step(self, inputs, targets):
        self.optimizer.zero_grad()
        loss = self.loss(inputs, targets, self.model, self.device)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def recipe_of(name):
    """The recipe of a row; those of a card change nothing that is computed."""
    if name == DDP:
        return RECIPES["bfloat16"]
    return Recipe() if name in (TENSOR_CORES, PINNED) else RECIPES[name]


def make_run(name, cfg, device, seed, learning_rate=4e-4):
    if name in THEIRS:
        return TheirRun(cfg, THEIRS[name], device, seed)
    return TrainingRun(cfg, recipe_of(name), device, seed, learning_rate)


def story_windows(tokens, part):
    """Inputs and targets, (windows, T), of nine tenths of the story or of the rest."""
    texts = split_text(fetch("short-story").read_text(encoding="utf-8"), 0.9)
    text = texts[("training", "validation").index(part)]
    ids = torch.tensor(tiktoken.get_encoding("gpt2").encode(text))
    rows = (len(ids) - 1) // tokens
    shape = (rows, tokens)
    return ids[: rows * tokens].view(shape), ids[1 : rows * tokens + 1].view(shape)


def story_batches(batch_size, tokens, rank=0, world_size=1):
    """Batches of the story without end, those of one process of several."""
    inputs, targets = story_windows(tokens, "training")
    first = rank
    while True:
        chosen = (first + world_size * torch.arange(batch_size)) % len(inputs)
        yield inputs[chosen], targets[chosen]
        first += batch_size * world_size


def clock_of(device, processes):
    """Its name and a clock: the process's own time, if that is what the work takes."""
    if device == "cpu" and torch.get_num_threads() == 1 and processes == 1:
        return "CPU time", time.process_time
    return "wall", time.perf_counter


def worker(settings):
    """Train as the lines on standard input say; answer with a line of JSON each.

    A line holds how many updates to make; the last one is empty.
    """
    torch.set_num_threads(settings["threads"])
    name, device, processes = (settings[k] for k in ("name", "device", "processes"))
    if device == "cuda" and name != "plain":
        torch.set_float32_matmul_precision("high")
    _, clock = clock_of(device, processes)
    with process_group(device) as place:
        before = memory_now().total
        kept = settings["cfg"], place.device, settings["seed"]
        run = make_run(name, *kept, settings["learning_rate"])
        if processes > 1:
            run.in_parallel()
        reset_peak()
        batches = story_batches(
            settings["batch_size"], settings["tokens"], place.rank, place.world_size
        )
        if name in ("plain", TENSOR_CORES):
            batches = (tuple(t.to(place.device) for t in batch) for batch in batches)
        else:
            batches = prefetched(batches, place.device)
        losses = []
        answer({"ready": True})
        for line in iter(sys.stdin.readline, "\n"):
            if not line:  # whoever asked is gone
                return 1
            start = clock()
            for _ in range(int(line)):
                losses.append(run.step(*next(batches)))
            if device == "cuda":
                torch.cuda.synchronize()
            answer({"seconds": clock() - start})
        peak = peak_memory() - before
        if device == "cuda":
            peak = torch.cuda.max_memory_reserved()
        last = {"peak": peak, "losses": torch.stack(losses).tolist()}
        if settings["validate"]:
            held_out = [story_windows(settings["tokens"], "validation")]
            last["validation"] = calc_loss_loader(
                held_out, run.plain_model(), place.device
            )
        if settings["profile"]:
            last["parts"] = seconds_by_part(run, next(batches), device)
        answer(last)
    return 0


def answer(message):
    print(json.dumps(message), flush=True)


class Racer:
    """A recipe in one process of its own, or in several that share each batch."""

    def __init__(self, name, options, size, processes=1, seed=0, profile=False):
        self.name, self.processes, self.size = name, processes, size
        self.batch_size = RECIPES.get(name, Recipe()).batch_size
        settings = {"name": name, "cfg": {**size.cfg}, "tokens": size.tokens}
        settings |= {"batch_size": self.batch_size, "seed": options.seed + seed}
        settings |= {"device": options.device, "threads": options.threads}
        settings |= {"processes": processes, "learning_rate": size.learning_rate}
        settings |= {"profile": profile}
        settings |= {"validate": size.validate and name not in THEIRS}
        shared = {"OMP_NUM_THREADS": str(options.threads), "KINETO_LOG_LEVEL": "99"}
        if processes > 1:
            shared |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
            shared |= {"MASTER_PORT": str(free_port())}
        command = [sys.executable, __file__, "--worker", json.dumps(settings)]
        self.members = [
            subprocess.Popen(
                command,
                env=os.environ | shared | rank_of(rank, processes),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            for rank in range(processes)
        ]

    @property
    def sequences(self):
        return self.processes * self.batch_size

    @property
    def updates(self):
        """In a turn."""
        return max(1, self.size.turn // self.sequences)

    def per_token(self, seconds):
        return min(seconds) / (self.sequences * self.size.tokens)

    def tell(self, line):
        for member in self.members:
            member.stdin.write(f"{line}\n")
            member.stdin.flush()

    def hear(self):
        """What all members answer; other lines that they print are passed over."""
        found = []
        for member in self.members:
            for line in iter(member.stdout.readline, ""):
                if line.startswith("{"):
                    found.append(json.loads(line))
                    break
            else:
                raise RuntimeError(f"{self.name}: a process ended early")
        return found

    def seconds(self):
        """Of an update, in one turn."""
        self.tell(self.updates)
        return max(heard["seconds"] for heard in self.hear()) / self.updates

    def stop(self):
        """The peak of the largest member, the mean of their losses, what one says."""
        self.tell("")
        heard = self.hear()
        losses = zip(*(one["losses"] for one in heard), strict=True)
        means = [statistics.mean(x) for x in losses]
        return max(one["peak"] for one in heard), means, heard[0]

    def end(self):
        for member in self.members:
            member.kill()
            member.wait()
            member.stdin.close()
            member.stdout.close()


def rank_of(rank, processes):
    """What a launcher would tell a worker; nothing if it is alone."""
    if processes == 1:
        return {}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def take_turns(racers, rounds):
    """A tuple (seconds of each round but the first, peak, losses, the rest) each.

    The first round warms up.
    """
    try:
        for racer in racers:
            racer.hear()
        seconds = [[] for _ in racers]
        for turn in range(rounds):
            for i in sorted(range(len(racers)), key=lambda i: (i - turn) % len(racers)):
                seconds[i].append(racers[i].seconds())
        return [(seconds[i][1:], *racers[i].stop()) for i in range(len(racers))]
    finally:
        for racer in racers:
            racer.end()


# --- The tables -----------------------------------------------------------------------


def recipe_names(options):
    """The rows of this device, in order; what cannot run here is said in one line."""
    names = list(RECIPES)
    reason = why_not_compiled()
    if reason:
        print(reason)
        names = [name for name in names if not RECIPES[name].compiled]
    if options.device == "cuda":
        names[1:1] = [TENSOR_CORES, PINNED]
    if options.processes > 1:
        names.append(DDP)
    return [name for name in names if name in options.recipes]


def speed_table(size_name, options, common):
    """A row for each recipe; the plain loop runs in every group."""
    size = SIZES[size_name]
    names = [name for name in recipe_names(options) if name != "plain"]
    each = (options.together or size.together) - 1
    groups = [names[i : i + each] for i in range(0, len(names), each)] or [[]]
    peaks, rows = peaks_of(options), {}
    for group in tqdm(groups, unit="group", disable=None):
        racers = [
            Racer(n, options, size, options.processes if n == DDP else 1)
            for n in ("plain", *group)
        ]
        if size.validate and group is groups[0]:
            racers += [
                Racer("plain", options, size, seed=seed) for seed in range(1, SEEDS)
            ]
        found = take_turns(racers, options.rounds or size.rounds)
        plain = racers[0].per_token(found[0][0])
        others = [f"{o[3]['validation']:.4f}" for o in found[1 + len(group) :]]
        for racer, measured in zip(racers[: 1 + len(group)], found, strict=False):
            row = speed_row(racer, measured, plain, peaks, options)
            row["other_seeds"] = " ".join(others) if racer is racers[0] else ""
            row = {"row": key_of(racer.name, size_name, options), **row, **common}
            row["model"] = size_name
            kept = rows.get(racer.name, row)  # the plain loop runs again and again
            if float(row["seconds"]) <= float(kept["seconds"]):
                rows[racer.name] = row
            print(
                f"{racer.name:16} {row['tokens_per_second']:>7} tokens/s, "
                f"{row['time_per_token_over_plain']} of the plain loop's time, "
                f"{row['peak_mb']} MB, loss {row['validation_loss']}",
                flush=True,
            )
    return {"speed": list(rows.values())}


def key_of(name, size_name, options):
    return f"{name}, {size_name}, {options.device}, {options.threads}"


def speed_row(racer, measured, plain, peaks, options):
    """The figures of one recipe; `plain` is the plain loop's seconds for a token."""
    seconds, peak, losses, said = measured
    validation = said.get("validation")
    per_token = racer.per_token(seconds)
    short = "bfloat16" if recipe_of(racer.name).bfloat16 else "float32"
    limit = peaks[short] and racer.processes * peaks[short]
    size = racer.size
    mfu = limit and utilisation(size.cfg, size.tokens, 1 / per_token, limit)
    alike = racer.sequences == 2 and len(losses) > 2
    return {
        "device": options.device,
        "recipe": racer.name,
        "batch": racer.sequences,
        "tokens": size.tokens,
        "processes": racer.processes,
        "seconds": f"{min(seconds):.4g}",
        "median_seconds": f"{statistics.median(seconds):.4g}",
        "tokens_per_second": f"{1 / per_token:.4g}",
        "time_per_token_over_plain": f"{per_token / plain:.3f}",
        "peak_mb": f"{peak / 1e6:.0f}",
        "loss_3": f"{losses[2]:.4f}" if alike else "",
        "updates": len(losses),
        "validation_loss": f"{validation:.4f}" if validation else "",
        "peak_gflops": f"{limit / 1e9:.1f}" if limit else "",
        "mfu": f"{mfu:.3f}" if mfu else "",
        "rounds": len(seconds),
        "clock": clock_of(options.device, racer.processes)[0],
    }


def peaks_of(options):
    """FLOP/s of the device by number type, as given or as measured; None if unknown."""
    if options.peak or options.device == "cuda":
        return {"float32": options.peak, "bfloat16": options.peak}
    sides = (64,) if options.tiny else (1024,)
    return {
        name: measure_ceilings(dtype, sides=sides, megabytes=4, rounds=3)[0]
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }


def race_table(size_name, options, common):
    """The fast recipes and `transformers`, all in one group; and their profiles."""
    size = SIZES[size_name]._replace(validate=False, turn=2)
    names = [n for n in RACE if n in THEIRS or n in recipe_names(options)]
    racers = [Racer(name, options, size, profile=True) for name in names]
    found = take_turns(racers, options.rounds or size.rounds)
    least = {
        r.name: min(seconds) for r, (seconds, *_) in zip(racers, found, strict=True)
    }
    made = {"race": [], "profile": []}
    for racer, (seconds, peak, _, said) in zip(racers, found, strict=True):
        name = racer.name
        row = {
            "row": key_of(name, size_name, options),
            "device": options.device,
            "recipe": name,
            "batch": racer.sequences,
            "tokens": size.tokens,
            "seconds": f"{least[name]:.4g}",
            "median_seconds": f"{statistics.median(seconds):.4g}",
            "tokens_per_second": f"{1 / racer.per_token(seconds):.4g}",
        }
        for their, column in zip(THEIRS, ("float32", "bfloat16"), strict=True):
            row[f"over_transformers_{column}"] = f"{least[name] / least[their]:.3f}"
        row |= {"peak_mb": f"{peak / 1e6:.0f}", "rounds": len(seconds)}
        row |= {"clock": clock_of(options.device, 1)[0], **common}
        print(
            f"{name:24} {row['seconds']:>6} s, {row['over_transformers_float32']} of "
            f"transformers', {row['over_transformers_bfloat16']} of its bfloat16",
            flush=True,
        )
        made["race"].append(row)
        for part, spent in sorted(said["parts"].items(), key=lambda item: -item[1]):
            share = spent / sum(said["parts"].values())
            first = {key: row[key] for key in ("row", "device", "recipe")}
            figures = {"part": part, "seconds": f"{spent:.4g}", "share": f"{share:.3f}"}
            made["profile"].append(first | figures | common)
    return made


def main(arguments=None):
    """Measure, write the tables, print them; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    add = parser.add_argument
    names = [*RECIPES, TENSOR_CORES, PINNED, DDP]
    add("--only", nargs="+", choices=TABLES, default=TABLES, metavar="TABLE")
    add("--recipes", nargs="+", choices=names, default=names, metavar="RECIPE")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=positive_int, default=1, help="of a process (%(default)s)")
    add("--processes", type=positive_int, default=1, help="of the row ddp")
    add("--size", choices=("quick", "124M"), default="quick", help="for `speed`")
    add("--rounds", type=positive_int, help="of turns, the first warms up")
    add("--together", type=positive_int, help="processes in a group")
    add("--peak", type=float, help="FLOP/s of the device, for the MFU")
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker(options.worker)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no graphics card here.")
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    common = tables.facts(seed=options.seed)
    size, large = ("tiny", "tiny") if options.tiny else (options.size, "124M")
    made = {
        "speed": lambda: speed_table(size, options, common),
        "race": lambda: race_table(large, options, common),
    }
    for name, rows in (pair for n in options.only for pair in made[n]().items()):
        keys = [key_of(n, s, options) for s in SIZES for n in (*names, *THEIRS)]
        path = tables.replace(options.out / f"{name}.csv", rows, "row", keys)
        print(f"wrote {path}")
    print(f"{time.perf_counter() - start:.0f} s of measuring")
    return 0


if __name__ == "__main__":
    sys.exit(main())
