"""What does LoRA gain, and what does it cost? The tables of appendix E.

    python3 -m course run appendix-E/01_main-chapter-code/experiments.py

**Chapter 6's task.** SmolLM2 with a new head sorts the messages of `data/messages.csv`.
Trained are: the head and the last norm only; besides these the last block, or LoRA of
rank 1, 4 or 16, alpha 16, in all linear layers of the 12 upper blocks; or everything.
All methods see the same messages equally often, in as many updates, in batches of 8 of
about the same length, through chapter 5's loop with the warm-up and cosine of appendix
D; seeds set the head, the adapters and the order. The peak of the rate is the one with
the lowest loss on the validation part after a training on half of the messages with a
seed that is in no other table; LoRA's is searched for with rank 4. Products of matrices
are bfloat16, in training and answers (`--dtype float32` changes that); adapters are
merged before the test part is asked about.

* `rates.csv`: the rates tried; the grid is followed until the best lies inside;
* `runs.csv`: each run; its last column says which test messages were right;
* `costs.csv`: three updates of each method, and of LoRA in all blocks, in a process of
  its own, on 8 times 64 tokens with nothing cached: memory, the processor's time;
* `accuracy.csv`: a row for each method, with an interval for which families of messages
  and seeds were drawn anew (bootstrap), and what its file takes in float32;
* `singular_values.csv`: of what full fine-tuning adds to the matrices of three blocks.

**Chapter 7's task.** LoRA in the 12 upper blocks, where chapter 7 trains all weights:
the same entries, loop, epochs and questions, scored by the second version of its rule.
The three tables `instruction_rates.csv`, `instruction_runs.csv` and `instructions.csv`
stand beside chapter 7's own `scores.csv`.

A quarter of the messages is learned from; `--size full` takes all, four times. What a
table has is not made again, so a run that was stopped goes on; `--only NAME` makes one
part. Alone on a core of the machine in the tables this takes about 45 minutes, 30 of
them for chapter 7's task with three seeds, and 5 GB; the full size takes four hours.
"""

import argparse
import copy
import functools
import math
import random
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader

from answer_scores import can_be_read
from answer_scores_v2 import score_answer_v2
from course import assets, tables
from course.paths import ROOT
from course.testing.experiment_scripts import script_in
from frozen_features import (
    FromFeatures,
    UpperModel,
    cache_features,
    collate_messages,
    freeze_below,
    learning,
    lower_part,
)
from gpt_class_finetune import (
    SpamDataset,
    add_classification_head,
    bootstrap_interval,
    calc_loss_batch,
    class_probabilities,
)
from gpt_train import calc_loss_loader, train_model_simple
from instruction_data import read_instructions, split_instructions
from lora import merge_lora, replace_linear_with_lora
from message_bench import MAX_LENGTH, LengthBatches
from message_data import LABELS, read_messages, split_messages
from pretrained import load_pretrained
from process_memory import measure, measure_here, reset_peak
from training_loop import make_scheduler, warmup_cosine

CHAPTER_7 = script_in(ROOT / "ch07" / "01_main-chapter-code")
RESULTS = Path(__file__).parent / "results"
SEEDS, SEARCH_SEED = (1, 2, 3), 123
BATCH_SIZE, WEIGHT_DECAY, ALPHA = 8, 0.1, 16
GRID = tuple(float(f"{m}e{e}") for e in range(-6, 1) for m in (1, 3))
COST_UPDATES, COST_TOKENS = 3, 64
THINNED = (*range(1, 33), 48, 64, 96, 128, 192, 256, 384, 576)
UPPER_BLOCKS, INSTRUCTION_GUESS, SEARCH_ENTRIES = 12, 1e-3, 80


class Way(NamedTuple):
    """What is trained.

    * `guess`: the learning rate from which the search begins;
    * `blocks`: how many upper blocks besides the head and the last norm; None for all;
    * `rank`: of LoRA in these blocks, whose own weights then stay; 0 for none.
    """

    guess: float
    blocks: int | None = 0
    rank: int = 0


METHODS = {
    "head only": Way(3e-3),
    "last block": Way(3e-3, blocks=1),
    "LoRA, rank 1": Way(3e-3, UPPER_BLOCKS, rank=1),
    "LoRA, rank 4": Way(3e-3, UPPER_BLOCKS, rank=4),
    "LoRA, rank 16": Way(3e-3, UPPER_BLOCKS, rank=16),
    "everything": Way(1e-4, blocks=None),
}
COSTED = {**METHODS, "LoRA, rank 16, all blocks": Way(3e-3, blocks=None, rank=16)}
# One of how many messages is learned from, how often; one of how many in the search.
SIZES = {"table": (4, 1, 2), "full": (1, 4, 1)}
SEARCHED_LORA = "LoRA, rank 4"
COSTS, INSTRUCTIONS = "costs", "instructions"


# --- Tables that grow ----------------------------------------------------------------


def rows_of(path, **wanted):
    """The rows of a table that have these values; none if there is no table."""
    rows = tables.read(path) if path.exists() else []
    return [r for r in rows if all(r[key] == str(v) for key, v in wanted.items())]


def add(path, row):
    """Write a row below those that are there, at once: what is measured is kept."""
    print({key: value for key, value in row.items() if key != "right"}, flush=True)
    tables.write(path, [*rows_of(path), row])


def search(path, key, guess, trial):
    """The rate of `GRID` with the lowest validation loss, both neighbours tried.

    `trial` trains at a rate, beginning with `guess`, and returns further columns for
    the table at `path`, whose rows `key` tells from others.
    """
    losses, place = {}, GRID.index(guess)
    while True:
        for at in (place, place - 1, place + 1):
            if at in losses or not 0 <= at < len(GRID):
                continue
            wanted = {**key, "rate": GRID[at]}
            if not rows_of(path, **wanted):
                add(path, wanted | trial(GRID[at]))
            losses[at] = float(rows_of(path, **wanted)[0]["val_loss"])
        best = min(losses, key=lambda at: losses[at])
        if best == place:
            return GRID[best]
        place = best


def table_facts(bench, **more):
    """Columns that say where a figure comes from."""
    dtype = str(bench.dtype).removeprefix("torch.")
    return tables.facts(**more, dtype=dtype, data_sha256=bench.sha256)


def percent(**shares):
    """Columns with shares in per cent."""
    return {name: f"{100 * share:.2f}" for name, share in shares.items()}


def means(rows, **digits):
    """Columns with means, with so many decimals."""
    return {
        key: f"{statistics.mean(float(row[key]) for row in rows):.{places}f}"
        for key, places in digits.items()
    }


def timed(work):
    """Do it; return columns with its seconds, of the wall and of the processor."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    spent, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return {"seconds": f"{spent:.1f}", "cpu_seconds": f"{cpu:.1f}"}


def shares_of(runs, families, name):
    """Columns: runs, answers, the share that is right in per cent, its interval."""
    right = np.array([[int(one) for one in run["right"]] for run in runs])
    low, high = bootstrap_interval(right, families)
    shares = percent(**{name: right.mean(), f"{name}_low": low, f"{name}_high": high})
    return {"seeds": len(runs), "answers": right.shape[1], **shares}


# --- Chapter 6's task ----------------------------------------------------------------


def make_ready(model, way, seed):
    """Give a model a new head, adapters if the way has any, and say what learns."""
    generator = torch.Generator().manual_seed(seed)
    add_classification_head(model, len(LABELS), generator)
    blocks = upper_blocks(model, way)
    freeze_below(model, blocks)
    if way.rank:
        freeze_below(model, 0)  # so that head and last norm still learn
        upper = model.trf_blocks[-blocks if blocks else 0 :]
        replace_linear_with_lora(upper, way.rank, ALPHA, generator=generator)
    return model


def upper_blocks(model, way):
    """How many blocks learn: a tiny model has fewer than a way may ask for."""
    return way.blocks and min(way.blocks, len(model.trf_blocks) - 1)


def precision(dtype):
    """Within it, products of matrices are computed in that dtype."""
    mixed = dtype != torch.float32
    return torch.autocast("cpu", dtype if mixed else torch.bfloat16, enabled=mixed)


def mixed_loss(inputs, mask, targets, model, device, dtype):
    """Chapter 6's loss of a batch, with the products of matrices in another dtype."""
    with precision(dtype):
        return calc_loss_batch(inputs, mask, targets, model, device)


class MessageBench:
    """Chapter 6's messages and base model; both are read when they are needed."""

    def __init__(self, options):
        self.out, self.seeds, self.dtype = options.out, options.seeds, options.dtype
        self.model_name = options.model
        self.measure = measure_here if options.tiny else measure
        every, self.epochs, self.search_every = SIZES[options.size]
        path = options.data or assets.fetch("messages")
        self.sha256 = assets.sha256_of(path)[:12]
        train, *others = split_messages(read_messages(path))
        some = math.ceil(len(train) / every)
        train = train.sample(some, random_state=0).reset_index(drop=True)
        self.parts = train, *others
        self.families = others[1].get("family")

    @functools.cached_property
    def base(self):
        torch.manual_seed(0)
        model, self.tokenizer, _ = load_pretrained(self.model_name)
        return add_classification_head(model, len(LABELS))

    @functools.cached_property
    def ids(self):
        """Pairs of ids and class for each part."""
        assert self.base  # which brings the tokenizer
        read = [SpamDataset(part, self.tokenizer, MAX_LENGTH) for part in self.parts]
        return [[one[place] for place in range(len(one))] for one in read]

    @functools.cached_property
    def features(self):
        """What frozen blocks make of each message, by how many blocks learn."""
        most = min(UPPER_BLOCKS, len(self.base.trf_blocks) - 1)
        found, run, data = {}, lower_part(self.base, most), self.ids
        for blocks in (most, 1, 0):
            with precision(self.dtype):
                place = blocks % most  # the lower part is asked at its end
                data = [cache_features(run, part, place, "cpu") for part in data]
            found[blocks], run = data, FromFeatures(self.base, blocks)
        return found

    def learner(self, way, seed):
        """A copy of the model, what of it is run, and what that reads."""
        model = make_ready(copy.deepcopy(self.base), way, seed)
        blocks = upper_blocks(model, way)
        if blocks is None:
            return model, model, self.ids
        return model, UpperModel(model, blocks), self.features[blocks]

    def amount(self, every=1):
        """Columns: messages that are learned from, and updates."""
        messages = math.ceil(len(self.parts[0]) / every)
        updates = self.epochs * math.ceil(messages / BATCH_SIZE)
        return {"trained_on": messages, "updates": updates}


def make_optimizer(learner, rate):
    """AdamW in one pass over the parameters, which is quicker where they are many."""
    return torch.optim.AdamW(
        learning(learner), lr=rate, weight_decay=WEIGHT_DECAY, fused=True
    )


def train(learner, items, rate, seed, bench):
    """Train by chapter 5's loop; return columns with the seconds."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(row) for row, _ in items]
    loader = DataLoader(
        items,
        batch_sampler=LengthBatches(lengths, BATCH_SIZE, generator),
        generator=generator,
        collate_fn=collate_messages,
    )
    optimizer = make_optimizer(learner, rate)
    updates = bench.epochs * len(loader)
    steps = {"num_steps": updates, "warmup_steps": updates // 10}
    plan = make_scheduler(optimizer, warmup_cosine, **steps, lowest=0.0)
    work = functools.partial(
        train_model_simple,
        *(learner, loader, [collate_messages(items[:1])], optimizer, "cpu"),
        num_epochs=bench.epochs,
        eval_freq=10**6,
        eval_iter=1,
        start_context=None,
        tokenizer=None,
        loss=functools.partial(mixed_loss, dtype=bench.dtype),
        scheduler=plan,
    )
    return timed(work)


def judge(learner, items, dtype):
    """Which messages are sorted rightly, (N,) bool, and the mean loss."""
    order = sorted(range(len(items)), key=lambda place: len(items[place][0]))
    in_order = [items[place] for place in order]
    loader = DataLoader(in_order, 32, collate_fn=collate_messages)
    with precision(dtype):
        shares, targets = class_probabilities(loader, learner, "cpu")
    right = np.empty(len(items), dtype=bool)
    right[order] = (shares.argmax(dim=1) == targets).numpy()
    likely = shares[torch.arange(len(targets)), targets].clamp(min=1e-9)
    return right, -likely.log().mean().item()


def search_rate(bench, name):
    """The learning rate of a method, by the validation part.

    That of LoRA is searched for with one rank and serves all: alpha / rank is there to
    keep a change's size about the same.
    """
    every = bench.search_every
    name = SEARCHED_LORA if METHODS[name].rank else name

    def trial(rate):
        _, learner, data = bench.learner(METHODS[name], SEARCH_SEED)
        found = train(learner, data[0][::every], rate, SEARCH_SEED, bench)
        right, loss = judge(learner, data[1], bench.dtype)
        found |= {"val_loss": f"{loss:.4f}", **percent(val_accuracy=right.mean())}
        return found | table_facts(bench, seed=SEARCH_SEED)

    key = {"method": name, **bench.amount(every)}
    return search(bench.out / "rates.csv", key, METHODS[name].guess, trial)


def measure_accuracy(bench, name, seed):
    """Train a method with one seed at its rate, and ask about the test part."""
    path, key = bench.out / "runs.csv", {"method": name, "seed": seed, **bench.amount()}
    if rows_of(path, **key):
        return
    rate = search_rate(bench, name)
    model, learner, data = bench.learner(METHODS[name], seed)
    found = {**key, "rate": rate, **train(learner, data[0], rate, seed, bench)}
    merge_lora(model)
    right, loss = judge(learner, data[2], bench.dtype)
    found |= {"test_loss": f"{loss:.4f}", **percent(accuracy=right.mean())}
    if METHODS[name].blocks is None and seed == bench.seeds[0]:
        rows = singular_values(bench.base.trf_blocks, model.trf_blocks)
        tables.write(bench.out / "singular_values.csv", rows)
    add(
        path,
        found | table_facts(bench) | {"right": "".join(map(str, right.astype(int)))},
    )


def singular_values(before, after):
    """Those of the difference that training made, and of the weights before it.

    Shares are of the sum of all squares, up to and with this singular value: what the
    best matrix of that rank has of the whole.
    """
    for block in sorted({0, len(before) // 2, len(before) - 1}):
        both = zip(before[block].named_modules(), after[block].modules())
        for (layer, old), new in both:
            if not isinstance(old, nn.Linear):
                continue
            weight = old.weight.detach()
            found = {"difference": new.weight.detach() - weight, "weight": weight}
            values = {kind: torch.linalg.svdvals(one) for kind, one in found.items()}
            squares = {kind: one.square().cumsum(0) for kind, one in values.items()}
            rows, columns = weight.shape
            for index in (one for one in THINNED if one <= min(rows, columns)):
                row = {"block": block, "layer": layer, "rows": rows}
                row |= {"columns": columns, "index": index}
                for kind, one in values.items():
                    share = squares[kind][index - 1] / squares[kind][-1]
                    row[kind] = f"{one[index - 1]:.4g}"
                    row[f"{kind}_share"] = f"{share:.4f}"
                yield row


def some_updates(model_name, name, dtype):
    """Take a few updates on one batch: a generator function for `measure`.

    Nothing is cached, so that a frozen block is run in each update, and the peak is
    counted anew after the model was loaded.
    """
    model = make_ready(load_pretrained(model_name).model, COSTED[name], SEARCH_SEED)
    shape = BATCH_SIZE, COST_TOKENS
    ids = torch.randint(model.cfg["vocab_size"], shape)
    targets = torch.arange(BATCH_SIZE) % len(LABELS)
    batch = ids, torch.ones(shape, dtype=torch.bool), targets
    yield "loaded"
    reset_peak()
    optimizer = make_optimizer(model, 1e-4)
    seconds = []
    for _ in range(COST_UPDATES):
        start = time.process_time()
        optimizer.zero_grad()
        mixed_loss(*batch, model, "cpu", dtype).backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    yield "trained"
    milliseconds = f"{1000 * statistics.median(seconds):.0f}"
    return learned_columns(model) | {"ms_an_update": milliseconds}


def learned_columns(model):
    """How many parameters learn, and the bytes of a file that holds them."""
    learned = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    numbers = sum(p.numel() for p in learned.values())
    return {"parameters": numbers, "file_bytes": len(save(learned))}


def measure_cost(bench, name):
    """What a method learns and takes: memory beyond what Python and PyTorch hold."""
    path = bench.out / "costs.csv"
    if rows_of(path, method=name):
        return
    taken = bench.measure(some_updates, bench.model_name, name, bench.dtype)
    base = taken.base.total
    found = {"method": name, "rank": COSTED[name].rank, **taken.result}
    found |= {"base_bytes": base, "model_bytes": taken.held["loaded"].total - base}
    found |= {"peak_bytes": taken.grown, "batch": f"{BATCH_SIZE} x {COST_TOKENS}"}
    add(path, found | table_facts(bench))


def summarise(bench):
    """A row for each method that has a run: accuracy, and beside it what it costs."""
    costs = ("parameters", "file_bytes", "peak_bytes", "ms_an_update")
    table = []
    for name, way in METHODS.items():
        runs = rows_of(bench.out / "runs.csv", method=name, **bench.amount())
        if not runs:
            continue
        row = {"method": name, "rank": way.rank}
        row |= {key: runs[0][key] for key in ("trained_on", "updates", "rate")}
        row |= shares_of(runs, bench.families, "accuracy")
        row |= means(runs, test_loss=3, cpu_seconds=0)
        (cost,) = rows_of(bench.out / "costs.csv", method=name) or [{}]
        row |= {key: cost.get(key, "") for key in costs}
        table.append(row | {key: runs[0][key] for key in table_facts(bench)})
    if table:
        tables.write(bench.out / "accuracy.csv", table)


# --- Chapter 7's task ----------------------------------------------------------------


class InstructionBench:
    """Chapter 7's entries, and what its lower blocks make of them; read when needed."""

    def __init__(self, options):
        self.out, self.dtype = options.out, options.dtype
        self.model_name, self.rank = options.model, options.rank
        usual = {"device": "cpu", "epochs": CHAPTER_7.EPOCHS}
        self.tuning = argparse.Namespace(**vars(options), **usual)
        path = options.instructions or assets.fetch(CHAPTER_7.DATA)
        self.sha256 = assets.sha256_of(path)[:12]
        self.parts = split_instructions(read_instructions(path))
        self.parts[2] = [one for one in self.parts[2] if one.get("answers")]
        self.families = [one["family"] for one in self.parts[2]]

    @functools.cached_property
    def base(self):
        model, self.tokenizer, _ = load_pretrained(self.model_name)
        self.blocks = min(UPPER_BLOCKS, len(model.trf_blocks) - 1)
        return model.requires_grad_(False)

    @functools.cached_property
    def features(self):
        """Of the training and the validation part, and how they are batched."""
        model = self.base
        with precision(self.dtype):
            _, data, collate = CHAPTER_7.Method("alpaca", self.blocks).prepare(
                model, self.blocks, self.parts, self.tokenizer, self.tuning
            )
        return data, collate

    def train(self, rate, seed, most=None):
        """Train adapters at most on so many entries; return the model and columns."""
        (items, held_out), collate = self.features
        if most is not None and most < len(items):
            items = random.Random(seed).sample(items, most)
        model = copy.deepcopy(self.base)
        generator = torch.Generator().manual_seed(seed)
        upper = model.trf_blocks[-self.blocks :]
        replace_linear_with_lora(upper, self.rank, ALPHA, generator=generator)
        learner = UpperModel(model, self.blocks)
        found = {"rate": rate, "trained_on": len(items)}
        loop, begun = CHAPTER_7.Method("alpaca", self.blocks).train, CHAPTER_7.copies
        arguments = begun(learner), [items, held_out], collate, self.tuning, seed, rate
        found |= timed(lambda: loop(learner, *arguments))
        loader = DataLoader(held_out, CHAPTER_7.BATCH_SIZE, collate_fn=collate)
        loss = functools.partial(CHAPTER_7.mixed_loss, dtype=self.dtype)
        val_loss = calc_loss_loader(loader, learner, "cpu", loss=loss)
        return model, found | {"val_loss": f"{val_loss:.4f}"}


def follow_instructions(bench, seed):
    """Train LoRA with one seed on chapter 7's entries, and ask its test questions."""
    path, key = bench.out / "instruction_runs.csv", {"rank": bench.rank}
    if rows_of(path, **key, seed=seed):
        return
    facts = table_facts(bench)
    rate = search(
        bench.out / "instruction_rates.csv",
        key | {"seed": SEARCH_SEED},
        INSTRUCTION_GUESS,
        lambda rate: bench.train(rate, SEARCH_SEED, SEARCH_ENTRIES)[1] | facts,
    )
    model, found = bench.train(rate, seed)
    learned = learned_columns(model)
    ask, asked = CHAPTER_7.Method("alpaca", bench.blocks).ask, bench.parts[2]
    said = ask(merge_lora(model), bench.tokenizer, asked, bench.tuning)
    pairs = list(zip(asked, said["replies"]))
    right = np.array([score_answer_v2(*pair) for pair in pairs])
    readable = np.array([can_be_read(*pair) for pair in pairs])
    found = {**key, "blocks": bench.blocks, "seed": seed, **found}
    found |= percent(share=right.mean(), readable=readable.mean())
    found |= {"answer_loss": f"{said['answer_loss']:.4f}", **learned, **facts}
    add(path, found | {"right": "".join(map(str, right.astype(int)))})


def summarise_instructions(bench):
    """A row for each rank, with the interval of chapter 7: families and seeds."""
    table, path = [], bench.out / "instruction_runs.csv"
    for rank in dict.fromkeys(run["rank"] for run in rows_of(path)):
        runs = rows_of(path, rank=rank)
        row = {"method": f"LoRA, rank {rank}"}
        shared = ("rank", "blocks", "trained_on", "rate", "parameters", "file_bytes")
        row |= {key: runs[0][key] for key in shared}
        row |= shares_of(runs, bench.families, "share")
        row |= means(runs, readable=1, val_loss=3, answer_loss=3, cpu_seconds=0)
        table.append(row | {key: runs[0][key] for key in table_facts(bench)})
    tables.write(bench.out / "instructions.csv", table)


def main(arguments=None):
    """Make what is missing in the tables; return the exit code."""
    names = [*METHODS, COSTS, INSTRUCTIONS]
    parser = tables.each_method(__doc__, RESULTS, names, SEEDS)
    option = parser.add_argument
    option("--instructions", type=Path, help="another file in place of chapter 7's")
    option("--size", choices=SIZES, default="table", help="%(default)s")
    option("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    option("--max-new-tokens", type=int, default=64, help="%(default)s")
    option("--rank", type=int, default=16, help="for instructions (%(default)s)")
    option("--tiny", action="store_true", help="costs in this process, for a test")
    options = parser.parse_args(arguments)
    options.dtype = getattr(torch, options.dtype)
    options.out.mkdir(parents=True, exist_ok=True)
    only = options.only or names
    bench = MessageBench(options)
    for name in COSTED if COSTS in only else ():
        measure_cost(bench, name)
    for seed in options.seeds:
        for name in METHODS:
            if name in only:
                measure_accuracy(bench, name, seed)
        summarise(bench)
    if INSTRUCTIONS in only:
        bench = InstructionBench(options)
        for seed in options.seeds:
            follow_instructions(bench, seed)
            summarise_instructions(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
