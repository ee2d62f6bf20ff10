"""What does each addition to the training loop gain? The tables of appendix D.

    python3 -m course run appendix-D/01_main-chapter-code/experiments.py

Chapter 5's quick model (4 blocks, 256 wide) with a vocabulary of 1,024 tokens learns
the course's instructions and answers as plain text: the same windows in the same order
for every recipe, two of 128 tokens in each of 240 updates. Validation is on the entries
of other families, all of it, in float32. Seeds set the weights and the order.

* `rates.csv`: peak rates tried for AdamW, for Muon and for a combined recipe with a
  cosine, with one seed that is in no other table;
* `runs.csv`, `curves.csv`: each recipe with three seeds, at the rate found;
* `summary.csv`: the means, their spread, and the difference from the plain loop, seed
  by seed;
* `norms.csv`: how many gradients of the recipe *clipping* were longer than its limit;
* `stopping.csv`: on the short story, which is learned by heart: where patience ends a
  run, and what that costs and saves.

Seconds are those that the processor spent in updates, evaluations aside, in one thread.
A run that is in the tables is not made again; `--fresh` begins anew. `--only NAME`
makes one recipe. Takes about forty minutes and 2 GB.
"""

import contextlib
import functools
import hashlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler

from bpe import train_tokenizer
from course import tables
from course.assets import fetch
from dataloader import GPTDatasetV1, split_text
from gpt import GPTModel
from gpt_train import (
    QUICK_CONFIG,
    calc_loss_batch,
    calc_loss_loader,
    train_model_simple,
)
from resumable import BestModel
from training_loop import (
    ClipEachUpdate,
    EarlyStopping,
    WeightAverage,
    decay_matrices_only,
    in_bfloat16,
    in_micro_batches,
    make_scheduler,
    muon_with_adamw,
    warmup_cosine,
    warmup_stable_decay,
)

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
UPDATES, EVAL_FREQ = 240, 20
BATCH_SIZE, WINDOW, VOCAB_SIZE = 2, 128, 1024
WEIGHT_DECAY = 0.1
WARMUP, DECAY = 24, 48
MAX_NORM, AVERAGE = 1.0, 0.97
EPOCHS, PATIENCE = 10, 2  # of the story
ADAMW_RATES = (0.0005, 0.001, 0.002, 0.004, 0.008)
MUON_RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
PLAIN, MUON = "plain loop", "Muon"
COSINE, COMBINED, COMBINED_MUON = (
    f"combined, {what}" for what in ("cosine", "AdamW", "Muon")
)
# What each recipe adds to the plain loop, and what all combined ones do.
ALL = {"clip": True, "groups": True, "average": True}
RECIPES = {
    PLAIN: {},
    "warm-up": {"schedule": "warm-up"},
    "warm-up, cosine": {"schedule": "cosine"},
    "warm-up, stable, decay": {"schedule": "stable"},
    "clipping": {"clip": True},
    "accumulation": {"rows": 1},
    "bfloat16": {"bfloat16": True},
    "weight average": {"average": True},
    "decay on matrices only": {"groups": True},
    MUON: {"muon": True},
    COSINE: ALL,
    COMBINED: {**ALL, "schedule": "warm-up"},
    COMBINED_MUON: {**ALL, "schedule": "warm-up", "muon": True},
}
# What is searched for: peak rates, each with its schedule; for the combined recipe
# factors of what was found for AdamW. All other recipes have the rates found.
SEARCHED = {
    PLAIN: [("constant", rate) for rate in ADAMW_RATES],
    MUON: [("constant", rate) for rate in MUON_RATES],
    COSINE: [("cosine", 1), ("cosine", 2)],
}
SCHEDULES = {
    "warm-up": functools.partial(make_scheduler, share=warmup_stable_decay),
    "cosine": functools.partial(make_scheduler, share=warmup_cosine, lowest=0.0),
    "stable": functools.partial(
        make_scheduler, share=warmup_stable_decay, decay_steps=DECAY
    ),
}
TINY_SCHEDULES = {**SCHEDULES, "stable": SCHEDULES["warm-up"]}


class LoopBench:
    """The data, the size of everything, and where the tables are."""

    def __init__(self, options):
        self.out, self.tiny, self.seeds = options.out, options.tiny, options.seeds
        self.cfg = {**QUICK_CONFIG, "vocab_size": VOCAB_SIZE, "context_length": WINDOW}
        self.updates, self.eval_freq, self.warmup = UPDATES, EVAL_FREQ, WARMUP
        self.epochs, self.search_seed = EPOCHS, options.seed
        self.schedules = TINY_SCHEDULES if self.tiny else SCHEDULES
        content = fetch("instructions").read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()[:12]
        parts = {"train": "", "validation": "", "test": ""}
        for entry in json.loads(content):
            lines = (entry["instruction"], entry["input"], entry["output"])
            parts[entry["split"]] += "\n".join(filter(None, lines)) + "\n\n"
        if self.tiny:
            self.cfg |= {"emb_dim": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 300}
            self.updates, self.eval_freq, self.warmup = 6, 2, 2
            self.epochs = 4
            parts = {name: text[:9000] for name, text in parts.items()}
        self.tokenizer = train_tokenizer(parts["train"], self.cfg["vocab_size"])
        self.train, held_out = (
            GPTDatasetV1(parts[name], self.tokenizer, WINDOW, WINDOW)
            for name in ("train", "validation")
        )
        self.validation = [(held_out.input_ids, held_out.target_ids)]

    def loader(self, seed):
        """One pass of it is the whole run: as many shuffled batches as updates."""
        order = torch.Generator().manual_seed(seed)
        windows = self.updates * BATCH_SIZE
        sampler = RandomSampler(self.train, num_samples=windows, generator=order)
        return DataLoader(self.train, BATCH_SIZE, sampler=sampler)

    def model(self, seed):
        torch.manual_seed(seed)
        return GPTModel(self.cfg)


def make_optimizer(model, recipe, rates):
    if recipe.get("muon"):
        return muon_with_adamw(model, rates["muon"], rates["adamw"], WEIGHT_DECAY)
    parameters = model.parameters()
    if recipe.get("groups"):
        parameters = decay_matrices_only(model, WEIGHT_DECAY)
    return torch.optim.AdamW(parameters, lr=rates["adamw"], weight_decay=WEIGHT_DECAY)


class Clock:
    """Seconds of the processor in updates: from one evaluation's end to the next."""

    def __init__(self):
        self.spent, self.since = 0.0, time.process_time()

    def pause(self):
        self.spent += time.process_time() - self.since

    def go_on(self):
        self.since = time.process_time()


def run(bench, recipe, rates, seed, norms=None):
    """Train once: curve of (update, validation loss), seconds for each update.

    The lengths of gradients before they are clipped are added to the list `norms`.
    """
    model = bench.model(seed)
    optimizer = make_optimizer(model, recipe, rates)
    clip = ClipEachUpdate(optimizer, MAX_NORM) if recipe.get("clip") else None
    average = WeightAverage(optimizer, AVERAGE) if recipe.get("average") else None
    plan = bench.schedules.get(recipe.get("schedule"))
    plan = plan and plan(optimizer, num_steps=bench.updates, warmup_steps=bench.warmup)
    loss = calc_loss_batch
    if recipe.get("bfloat16"):
        loss = in_bfloat16(loss)
    if recipe.get("rows"):
        loss = in_micro_batches(loss, recipe["rows"])
    clock, curve = Clock(), []
    glance = [tuple(part[:1] for part in bench.validation[0])]  # what the loop prints

    def look(step, *_):
        if step % bench.eval_freq and step != bench.updates:
            return
        clock.pause()
        with average.swapped_in() if average else contextlib.nullcontext():
            curve.append((step, calc_loss_loader(bench.validation, model, "cpu")))
        clock.go_on()

    with contextlib.redirect_stdout(io.StringIO()):
        train_model_simple(
            model,
            bench.loader(seed),
            glance,
            optimizer,
            "cpu",
            num_epochs=1,
            eval_freq=bench.updates + 1,
            eval_iter=1,
            start_context=None,
            tokenizer=None,
            loss=loss,
            scheduler=plan,
            after_step=look,
        )
    if norms is not None and clip:
        norms += clip.norms
    return curve, clock.spent / bench.updates


# --- The tables ----------------------------------------------------------------------


def row_of(curve, seconds):
    """What a run comes to: its best and its last validation loss."""
    at, best = min(curve, key=lambda point: point[1])
    return {
        "best": f"{best:.4f}",
        "best_after": at,
        "last": f"{curve[-1][1]:.4f}",
        "ms_an_update": f"{1000 * seconds:.1f}",
    }


def is_there(path, **wanted):
    """Whether a table has a row with these values."""
    rows = tables.read(path) if path.exists() else []
    return any(all(r[k] == str(v) for k, v in wanted.items()) for r in rows)


def add(path, rows):
    """Rows below those that a table has."""
    old = tables.read(path) if path.exists() else []
    tables.write(path, [*old, *rows])


def rates_of(bench, name, rate):
    """The peak rates of a recipe that is searched for.

    For `PLAIN` and `MUON` `rate` is what is tried, for others a factor of AdamW's best.
    """
    if name == PLAIN:
        return {"adamw": rate}
    adamw = found_best(bench, PLAIN)[1]
    if name == MUON:
        return {"adamw": adamw, "muon": rate}
    return {"adamw": adamw * rate}


def found_best(bench, name):
    """The schedule and the rate with the lowest last loss of those that were tried."""
    rows = [r for r in tables.read(bench.out / "rates.csv") if r["recipe"] == name]
    row = min(rows, key=lambda row: float(row["last"]))
    return row["schedule"], float(row["rate"])


def search(bench, name):
    """Try schedules and rates of a recipe with a seed that no other table has."""
    path = bench.out / "rates.csv"
    for schedule, rate in SEARCHED[name]:
        if is_there(path, recipe=name, schedule=schedule, rate=rate):
            continue
        rates = rates_of(bench, name, rate)
        recipe = {**RECIPES[name], "schedule": schedule}
        curve, seconds = run(bench, recipe, rates, bench.search_seed)
        found = {"recipe": name, "schedule": schedule, "rate": rate}
        found |= row_of(curve, seconds)
        print(found, flush=True)
        facts = tables.facts(seed=bench.search_seed, data_sha256=bench.sha256)
        add(path, [found | facts])


def measure(bench, name):
    """Train a recipe with each seed at the rate, and the schedule, that were found."""
    alone = MUON if RECIPES[name].get("muon") else PLAIN
    searched = name if name in SEARCHED else alone
    schedule, rate = found_best(bench, searched)
    rates = rates_of(bench, searched, rate)
    recipe = {"schedule": schedule, **RECIPES[name]}
    for seed in bench.seeds:
        if is_there(bench.out / "runs.csv", recipe=name, seed=seed):
            continue
        curve, seconds = run(bench, recipe, rates, seed)
        found = {"recipe": name, "schedule": recipe["schedule"]}
        found |= {"adamw_rate": rates["adamw"], "muon_rate": rates.get("muon", "")}
        found |= {"seed": seed}
        found |= row_of(curve, seconds)
        print(found, flush=True)
        points = [
            {"recipe": name, "seed": seed, "update": step, "val_loss": f"{loss:.4f}"}
            for step, loss in curve
        ]
        add(bench.out / "curves.csv", points)
        facts = tables.facts(data_sha256=bench.sha256)
        add(bench.out / "runs.csv", [found | facts])


def summarise(bench):
    """Means over the seeds, spreads, and differences from the plain loop by seed."""
    rows = tables.read(bench.out / "runs.csv")
    by_seed = {(row["recipe"], row["seed"]): row for row in rows}
    table = []
    made = {row["recipe"] for row in rows}
    for name in [name for name in RECIPES if name in made]:
        mine = [row for row in rows if row["recipe"] == name]
        found: dict[str, object] = {"recipe": name, "seeds": len(mine)}
        for what in ("best", "last"):
            losses = [float(row[what]) for row in mine]
            pairs = [(r, by_seed[PLAIN, r["seed"]]) for r in mine]
            gains = [float(other[what]) - float(row[what]) for row, other in pairs]
            found[what] = f"{statistics.mean(losses):.3f}"
            found[f"{what}_spread"] = f"{max(losses) - min(losses):.3f}"
            found[f"{what}_gain"] = f"{statistics.mean(gains):.3f}"
            found[f"{what}_least_gain"] = f"{min(gains):.3f}"
        times = [float(row["ms_an_update"]) for row in mine]
        plain = [float(r["ms_an_update"]) for r in rows if r["recipe"] == PLAIN]
        found["ms_an_update"] = f"{statistics.median(times):.0f}"
        ratio = statistics.median(times) / statistics.median(plain)
        found["times_as_long"] = f"{ratio:.2f}"
        table.append(found)
    tables.write(bench.out / "summary.csv", table)


def lengths(bench):
    """How long the gradients of the recipe *clipping* were before they were cut."""
    path = bench.out / "norms.csv"
    for seed in bench.seeds:
        if is_there(path, seed=seed):
            continue
        norms = []
        rates = rates_of(bench, PLAIN, found_best(bench, PLAIN)[1])
        run(bench, RECIPES["clipping"], rates, seed, norms)
        found = {"seed": seed, "limit": MAX_NORM, "updates": len(norms)}
        found["longer"] = sum(norm > MAX_NORM for norm in norms)
        found["shortest"] = f"{min(norms):.3f}"
        found["median"] = f"{statistics.median(norms):.3f}"
        found["longest"] = f"{max(norms):.3f}"
        print(found, flush=True)
        add(path, [found | tables.facts(data_sha256=bench.sha256)])


# --- When to stop --------------------------------------------------------------------


def learn_story(bench, seed):
    """The validation loss after each epoch on the short story, and the seconds then."""
    story = fetch("short-story").read_text(encoding="utf-8")
    parts = split_text(story[:9000] if bench.tiny else story)
    tokenizer = train_tokenizer(parts[0], bench.cfg["vocab_size"])
    train, held_out = (GPTDatasetV1(p, tokenizer, WINDOW, WINDOW) for p in parts)
    validation = [(held_out.input_ids, held_out.target_ids)]
    model, order = bench.model(seed), torch.Generator().manual_seed(seed)
    losses, seconds, start = [], [], time.process_time()

    def measure_it():
        losses.append(calc_loss_loader(validation, model, "cpu"))
        seconds.append(time.process_time() - start)

    with contextlib.redirect_stdout(io.StringIO()):
        train_model_simple(
            model,
            DataLoader(train, BATCH_SIZE, shuffle=True, generator=order),
            validation,
            make_optimizer(model, {}, {"adamw": found_best(bench, PLAIN)[1]}),
            "cpu",
            num_epochs=bench.epochs,
            eval_freq=10**6,
            eval_iter=1,
            start_context=None,
            tokenizer=None,
            after_epoch=measure_it,
        )
    return losses, seconds


def epochs_until_stop(losses, patience):
    """How many epochs `EarlyStopping` would have let pass, had it seen these losses."""
    values = iter(losses)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        best = BestModel(lambda: next(values), lambda place: None, Path(folder))
        hook = EarlyStopping(best, patience)
        return next((n for n in range(1, len(losses)) if hook()), len(losses))


def stopping(bench):
    """The plain loop on the short story to the end, and where patience ends it.

    A run that is stopped is the beginning of one that is not, so one run tells both.
    """
    path = bench.out / "stopping.csv"
    for seed in bench.seeds:
        if is_there(path, seed=seed):
            continue
        losses, seconds = learn_story(bench, seed)
        found = {"seed": seed, "patience": PATIENCE}
        stop = epochs_until_stop(losses, PATIENCE)
        for what, epochs in (("stopped", stop), ("whole", len(losses))):
            found[f"{what}_epochs"] = epochs
            found[f"{what}_best"] = f"{min(losses[:epochs]):.4f}"
            found[f"{what}_last"] = f"{losses[epochs - 1]:.4f}"
            found[f"{what}_seconds"] = f"{seconds[epochs - 1]:.1f}"
        print(found, flush=True)
        add(path, [found | tables.facts()])


OTHERS = {"norms": lengths, "stopping": stopping}  # tables that judge no recipe


def main(arguments=None):
    """Make what is missing in the tables; return the exit code.

    `--seed` is that of the search, `--seeds` are those of all other tables.
    """
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--only", choices=[*RECIPES, *OTHERS], action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        for path in options.out.glob("*.csv"):
            path.unlink()
    bench = LoopBench(options)
    for name in options.only or [*RECIPES, *OTHERS]:
        if name in OTHERS:
            OTHERS[name](bench)
            continue
        if name in SEARCHED:
            search(bench, name)
        measure(bench, name)
    if is_there(options.out / "runs.csv", recipe=PLAIN):
        summarise(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
