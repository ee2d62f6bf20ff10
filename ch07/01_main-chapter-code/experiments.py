"""What does tuning on instructions teach, and which way of it? The tables of chapter 7.

    python3 -m course run ch07/01_main-chapter-code/experiments.py

Every method answers the same questions that were held out of the data, and two rules
decide for all of them: version 1, `score_answer`, and the stricter `score_answer_v2`.
What is trained is trained on the same entries with three seeds, which set their order:

* SmolLM2 as it is, asked in its own chat template, and in the Alpaca layout;
* its upper 12 blocks tuned in the Alpaca layout on the answers alone (the default), on
  the whole text, and in the chat template;
* everything.

Epochs, batches and lengths are those of the notebook and of the script with the preset
full. The learning rate is chosen for each number of blocks: the first seed is trained
at each of the `RATES`, and the one with the lowest loss on the validation part is taken
(`results/rates.csv`); no other choice is made, and none on the test part. The tuned
models compute in bfloat16 while they train (`--dtype float32` changes that); answers
and losses are float32.

`results/replies.csv` has what was answered with both verdicts, `results/seeds.csv` each
run. From these two the other tables are made, each share beside that of version 2
(`_v2`), with a 95% interval for which both families and seeds were drawn anew
(bootstrap): `results/scores.csv` has a row for each method, `results/categories.csv`
the shares by category, `results/gains.csv` what tuning adds to either way of asking the
untuned model, entry by entry, once on all entries and once on those where both replies
can be read.

A run that is in the tables is not made again, so a stopped command goes on when it is
given once more. All of them take about three hours of one core of the machine in the
tables, and 7 GB. `--only NAME` runs one method; `--rescore` runs none, and makes the
tables anew from the replies; `--data` takes a file or the name of an asset.
"""

import itertools
import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from answer_scores import can_be_read, score_answer, score_by_category
from answer_scores_v2 import score_answer_v2
from course import assets, tables
from fast_answers import answers_and_loss
from frozen_features import UpperModel, freeze_below, learning
from gpt_class_finetune import bootstrap_interval
from gpt_instruction_finetuning import (
    InstructionDataset,
    cache_instructions,
    calc_loss_answers,
    collate_features,
    custom_collate_fn,
)
from gpt_train import calc_loss_loader, train_model_simple
from instruction_data import SIZES, read_instructions, split_instructions, user_text
from pretrained import load_pretrained

RESULTS = Path(__file__).parent / "results"
DATA = "instructions-2"
SEEDS = (1, 2, 3)
DEFAULT = "12 blocks"
UNTUNED = ("untuned, own chat template", "untuned, Alpaca layout")
MAX_LENGTH = 256
BATCH_SIZE = 8
EPOCHS = SIZES["full"]["epochs"]
NEW_TOKENS = 48
RATES = {12: (2e-4, 5e-4), None: (5e-5, 1e-4)}  # by blocks


class Method:
    """A way to get answers: a layout, and what is trained in it, if anything.

    Args:
        style: one of `FORMATS`.
        blocks: how many of the upper blocks learn; None for everything, 0 for nothing.
        whole_text: whether the questions are learned, too.
    """

    def __init__(self, style, blocks, whole_text=False):
        self.style, self.blocks, self.whole_text = style, blocks, whole_text

    def __call__(self, parts, options, seeds, rates):
        """Yield a dictionary for each seed: its replies, losses, rate and seconds.

        Args:
            parts: training, validation and test entries.
            options: of the command line.
            seeds: those that are wanted; [""] for an untuned model.
            rates: the losses of learning rates on the validation part, for this number
                of blocks; those that are missing are measured and added.
        """
        start = time.perf_counter()
        torch.manual_seed(0)
        model, tokenizer, _ = load_pretrained(options.model)
        model = model.to(options.device)
        ask = partial(self.ask, model, tokenizer, parts[2], options)
        if self.blocks == 0:
            yield {"seed": "", **ask(), "seconds": time.perf_counter() - start}
            return
        depth = len(model.trf_blocks)
        blocks = None if self.blocks is None else min(self.blocks, depth - 1)
        freeze_below(model, blocks)
        learner, data, collate = self.prepare(model, blocks, parts, tokenizer, options)
        untuned = copies(learner)
        train = partial(self.train, learner, untuned, data, collate, options)
        trained = {}  # the best rate with the first seed
        for rate in RATES[self.blocks]:
            if rate not in rates:
                rates[rate] = train(options.seeds[0], rate)
                if rates[rate] == min(rates.values()):
                    trained = {rate: copies(learner)}
        rate = min(rates, key=rates.get)
        for seed in seeds:
            if seed == options.seeds[0] and rate in trained:
                put_back(learner, trained[rate])
                loss = rates[rate]
            else:
                loss = train(seed, rate)
            found = {"seed": seed, "rate": rate, "validation_loss": loss, **ask()}
            yield {**found, "seconds": time.perf_counter() - start}
            start = time.perf_counter()

    def prepare(self, model, blocks, parts, tokenizer, options):
        """What learns, the data of the first two parts, and how they are batched."""
        end, device = tokenizer.eot_token, options.device
        data = [
            InstructionDataset(part, tokenizer, self.style, mask_prompt=masked)
            for part, masked in zip(parts, (not self.whole_text, True))
        ]
        if blocks is None:
            collate = partial(
                custom_collate_fn, pad_token_id=end, allowed_max_length=MAX_LENGTH
            )
            return model, data, collate
        cache = partial(
            cache_instructions,
            pad_token_id=end,
            device=device,
            allowed_max_length=MAX_LENGTH,
        )
        features = [cache(model, one, blocks) for one in data]
        return UpperModel(model, blocks), features, collate_features

    def train(self, learner, untuned, data, collate, options, seed, rate):
        """Train from the untuned model on; return the loss on the validation part."""
        put_back(learner, untuned)
        torch.manual_seed(seed)
        order = torch.Generator().manual_seed(seed)
        load = partial(DataLoader, generator=order, collate_fn=collate)
        loaders = [
            load(one, BATCH_SIZE, shuffle) for one, shuffle in zip(data, (True, False))
        ]
        train_model_simple(
            learner,
            *loaders,
            torch.optim.AdamW(learning(learner), lr=rate, weight_decay=0.1),
            options.device,
            num_epochs=options.epochs,
            eval_freq=max(1, len(loaders[0]) // 2),
            eval_iter=4,
            start_context=None,
            tokenizer=None,
            loss=partial(mixed_loss, dtype=options.dtype),
        )
        return calc_loss_loader(
            loaders[1], learner, options.device, loss=calc_loss_answers
        )

    def ask(self, model, tokenizer, entries, options):
        """Replies to the questions, and the loss on their answers alone."""
        replies, loss = answers_and_loss(
            entries,
            model,
            tokenizer,
            style=self.style,
            max_new_tokens=options.max_new_tokens,
            device=options.device,
        )
        return {"replies": replies, "answer_loss": loss}


METHODS = {
    UNTUNED[0]: Method("chatml", 0),
    UNTUNED[1]: Method("alpaca", 0),
    DEFAULT: Method("alpaca", 12),
    "12 blocks, whole text": Method("alpaca", 12, whole_text=True),
    "12 blocks, chat template": Method("chatml", 12),
    "everything": Method("alpaca", None),
}


def copies(learner):
    """The values of what learns."""
    return [parameter.detach().clone() for parameter in learning(learner)]


def put_back(learner, values):
    """Give what learns the values that it had."""
    with torch.no_grad():
        for parameter, value in zip(learning(learner), values):
            parameter.copy_(value)


def mixed_loss(inputs, targets, model, device, dtype):
    """`calc_loss_answers` with the products of matrices in another dtype."""
    kind, mixed = torch.device(device).type, dtype != torch.float32
    with torch.autocast(kind, dtype if mixed else torch.bfloat16, enabled=mixed):
        return calc_loss_answers(inputs, targets, model, device)


# --- Runs, one after the other -------------------------------------------------------


def rows_of(path):
    """The rows of a table, or none where there is no table."""
    return tables.read(path) if path.exists() else []


def put_runs(path, rows):
    """Write rows in place of those of the same method and seed, in `METHODS`' order."""
    new = {(row["method"], str(row["seed"])) for row in rows}
    old = [row for row in rows_of(path) if (row["method"], row["seed"]) not in new]
    places = list(METHODS)
    key = lambda row: (places.index(row["method"]), str(row["seed"]))  # noqa: E731
    tables.write(path, sorted([*old, *rows], key=key))


def seeds_to_do(name, options):
    """The seeds of a method that are not yet in the tables; [""] for an untuned one.

    Raises:
        ValueError: there are runs on other data.
    """
    done = set()
    for row in rows_of(options.out / "seeds.csv"):
        if row["data_sha256"] != options.sha256[:12]:
            raise ValueError(
                f"{options.out} has runs on other data ({row['data_sha256']}): give "
                "another folder with --out, or delete its tables."
            )
        done.add((row["method"], row["seed"]))
    wanted = [""] if METHODS[name].blocks == 0 else options.seeds
    return [seed for seed in wanted if (name, str(seed)) not in done]


def known_rates(name, options):
    """The losses of learning rates, by rate, for as many blocks as a method trains."""
    blocks = METHODS[name].blocks
    return {
        float(row["rate"]): float(row["validation_loss"])
        for row in rows_of(options.out / "rates.csv")
        if METHODS[row["method"]].blocks == blocks
    }


def run(name, parts, options):
    """Make the runs of a method that are missing, and write each as soon as it ends."""
    seeds = seeds_to_do(name, options)
    if not seeds:
        print(f"{name}: as measured before", flush=True)
        return
    known = known_rates(name, options)
    rates = dict(known)
    for found in METHODS[name](parts, options, seeds, rates):
        if len(rates) > len(known):
            put_rates(name, rates, options)
        record(name, found, parts[2], options)


def put_rates(name, rates, options):
    """Write what learning rates were tried, and which was chosen."""
    rows = [
        {
            "method": name,
            "rate": rate,
            "seed": options.seeds[0],
            "validation_loss": f"{loss:.4f}",
            "chosen": int(loss == min(rates.values())),
        }
        for rate, loss in rates.items()
    ]
    tables.replace(options.out / "rates.csv", rows, "method", list(METHODS))


def record(name, found, entries, options):
    """Write what a run answered, with both verdicts."""
    replies = [
        {
            "method": name,
            "seed": found["seed"],
            "question": user_text(entry),
            "reply": json.dumps(reply),
            **verdicts(entry, reply),
        }
        for entry, reply in zip(entries, found["replies"])
    ]
    put_runs(options.out / "replies.csv", replies)
    put_runs(options.out / "seeds.csv", [run_row(name, found, replies, options)])


def verdicts(entry, reply):
    """Columns of a reply: right by either rule, and whether it can be read."""
    return {
        "right": int(score_answer(entry, reply)),
        "right_v2": int(score_answer_v2(entry, reply)),
        "readable": int(can_be_read(entry, reply)),
    }


def run_row(name, found, replies, options):
    """A run's row: its shares by both rules, its losses, and how it was made."""
    loss = found.get("validation_loss", "")
    return {
        "method": name,
        "seed": found["seed"],
        **{
            column: f"{100 * np.mean([row[right] for row in replies]):.1f}"
            for column, right in (("share", "right"), ("share_v2", "right_v2"))
        },
        "answer_loss": f"{found['answer_loss']:.3f}",
        "validation_loss": f"{loss:.3f}" if loss else "",
        "rate": found.get("rate", ""),
        "epochs": options.epochs if loss else 0,
        "seconds": f"{found['seconds']:.0f}",
        "machine": tables.facts()["machine"],
        "data_sha256": options.sha256[:12],
    }


# --- Tables made of the runs ---------------------------------------------------------


def percent(name, mean, bounds):
    """Columns of a table: a share and its interval, in per cent."""
    values = {name: mean, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    return {key: f"{100 * value:.1f}" for key, value in values.items()}


def rescore(entries, options):
    """Judge the replies of the table anew by the rules as they are now."""
    by_question = {user_text(entry): entry for entry in entries}
    path = options.out / "replies.csv"
    rows = [
        {**row, **verdicts(by_question[row["question"]], json.loads(row["reply"]))}
        for row in tables.read(path)
    ]
    tables.write(path, rows)
    of_run = {}
    for row in rows:
        of_run.setdefault((row["method"], row["seed"]), []).append(row)
    seeds = tables.read(options.out / "seeds.csv")
    for row in seeds:
        replies = of_run[row["method"], row["seed"]]
        for column, right in (("share", "right"), ("share_v2", "right_v2")):
            row[column] = f"{100 * np.mean([one[right] for one in replies]):.1f}"
    tables.write(options.out / "seeds.csv", seeds)


def outcomes_in(folder, entries):
    """By method: what is right by either rule and can be read, (seeds, N) bool each."""
    questions = [user_text(entry) for entry in entries]
    found = {}
    rows = tables.read(folder / "replies.csv")
    runs = itertools.groupby(rows, lambda row: (row["method"], row["seed"]))
    for (name, seed), replies in runs:
        replies = list(replies)
        if [row["question"] for row in replies] != questions:
            raise ValueError(f"{name}, seed {seed}: the questions are others.")
        columns = ("right", "right_v2", "readable")
        each = [[row[column] == "1" for row in replies] for column in columns]
        found.setdefault(name, []).append(each)
    return {name: np.array(runs).swapaxes(0, 1) for name, runs in found.items()}


def tabulate(entries, options):
    """Make scores.csv, categories.csv and gains.csv of the runs."""
    outcomes = outcomes_in(options.out, entries)
    families = np.array([entry["family"] for entry in entries])
    seeds = tables.read(options.out / "seeds.csv")
    scores, parts = [], []
    for name, (right, right_v2, readable) in outcomes.items():
        runs = [row for row in seeds if row["method"] == name]
        losses = [float(row["answer_loss"]) for row in runs]
        scores.append(
            {
                "method": name,
                "style": METHODS[name].style,
                "seeds": len(runs),
                "rate": runs[0]["rate"],
                "entries": len(entries),
                **percent("share", right.mean(), bootstrap_interval(right, families)),
                **percent(
                    "share_v2", right_v2.mean(), bootstrap_interval(right_v2, families)
                ),
                "readable": f"{100 * readable.mean():.1f}",
                "answer_loss": f"{np.mean(losses):.3f}",
                "seconds": sum(int(row["seconds"]) for row in runs),
                "machine": runs[0]["machine"],
                "data_sha256": runs[0]["data_sha256"],
            }
        )
        by_rule = [
            score_by_category(entries, hits.mean(axis=0)).to_dict("records")
            for hits in (right, right_v2)
        ]
        parts += [
            {
                "method": name,
                "category": line["category"],
                "entries": line["entries"],
                "families": line["families"],
                **percent("share", line["share"], (line["low"], line["high"])),
                **percent("share_v2", other["share"], (other["low"], other["high"])),
            }
            for line, other in zip(*by_rule)
        ]
    tables.write(options.out / "scores.csv", scores)
    tables.write(options.out / "categories.csv", parts)
    gains = compare(outcomes, families)
    if gains:
        tables.write(options.out / "gains.csv", gains)
    for row in scores:
        shares = (
            f"{row[n]} % ({row[f'{n}_low']} to {row[f'{n}_high']})" for n in RULES
        )
        print(f"{row['method']}: {', version 2: '.join(shares)}, {row['seeds']} runs")


RULES = ("share", "share_v2")


def compare(outcomes, families):
    """Rows: what each tuned model adds to each way of asking the untuned one."""
    rows = []
    tuned = [name for name in outcomes if METHODS[name].blocks != 0]
    before = [name for name in UNTUNED if name in outcomes]
    for name, first in itertools.product(tuned, before):
        right, right_v2, readable = outcomes[name]
        right_first, right_first_v2, can_first = outcomes[first]
        gains = right.astype(float) - right_first  # (seeds, N)
        gains_v2 = right_v2.astype(float) - right_first_v2
        both = readable.all(axis=0) & can_first[0]
        rows.append(
            {
                "method": name,
                "before": first,
                "entries": len(families),
                **percent("gain", gains.mean(), bootstrap_interval(gains, families)),
                **percent(
                    "gain_v2", gains_v2.mean(), bootstrap_interval(gains_v2, families)
                ),
                "both_readable": int(both.sum()),
                **on_readable(gains, both, families),
            }
        )
    return rows


def on_readable(gains, both, families):
    """The gain on entries whose replies can be read before and after."""
    if not both.any():
        return dict.fromkeys(
            ("gain_readable", "gain_readable_low", "gain_readable_high"), ""
        )
    bounds = bootstrap_interval(gains[:, both], families[both])
    return percent("gain_readable", gains[:, both].mean(), bounds)


# --- As a script ---------------------------------------------------------------------


def main(arguments=None):
    """Make the runs that are missing, and the tables; return the exit code."""
    parser = tables.each_method(__doc__, RESULTS, METHODS, SEEDS)
    add = parser.add_argument
    add("--epochs", type=int, default=EPOCHS, help="%(default)s")
    add("--device", default="cpu", help="such as cuda (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    add("--max-new-tokens", type=int, default=NEW_TOKENS, help="%(default)s")
    add("--rescore", action="store_true", help="judge the replies of the tables anew")
    options = parser.parse_args(arguments)
    options.dtype = getattr(torch, options.dtype)
    path = options.data or Path(DATA)
    path = path if path.exists() else assets.fetch(str(path))
    options.sha256 = assets.sha256_of(path)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = split_instructions(read_instructions(path))
    parts[2] = [entry for entry in parts[2] if entry.get("answers")]
    if options.rescore:
        rescore(parts[2], options)
    else:
        # A gain needs both ways of asking the untuned model, whatever was asked for.
        for name in dict.fromkeys([*UNTUNED, *(options.only or METHODS)]):
            run(name, parts, options)
    tabulate(parts[2], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
