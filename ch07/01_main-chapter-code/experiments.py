"""What does tuning on instructions teach, and which way of it? The tables of chapter 7.

    python3 -m course run ch07/01_main-chapter-code/experiments.py

Every method answers the same questions that were held out of `data/instructions.json`,
and one rule, `score_answer`, decides for all of them. What is trained is trained on the
same entries with three seeds, which set their order:

* SmolLM2 as it is, asked in its own chat template, and in the Alpaca layout;
* its upper 12 blocks tuned in the Alpaca layout on the answers alone (the default), on
  the whole text, in the chat template, and in Phi-3's layout;
* fewer blocks; and everything.

`results/scores.csv` has a row for each method: the share of right answers with a 95%
interval for which both families and seeds were drawn anew (bootstrap), how many replies
could be read, and the loss on the held-out answers. `results/seeds.csv` has each run,
`results/categories.csv` the shares by category, `results/gains.csv` what tuning adds to
either way of asking the untuned model, entry by entry, once on all entries and once on
those where both replies can be read; `results/replies.csv` what was answered. The tuned
models compute in bfloat16 while they train (`--dtype float32` changes that); answers
and losses are float32. `--only NAME` runs one method and keeps the other rows; its gain
is then over the untuned model's replies in the tables.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from answer_scores import can_be_read, score_answer, score_by_category
from course import assets, tables
from frozen_features import UpperModel, freeze_below, learning
from gpt_class_finetune import bootstrap_interval
from gpt_instruction_finetuning import (
    InstructionDataset,
    cache_instructions,
    calc_loss_answers,
    collate_features,
    custom_collate_fn,
    generate_answers,
)
from gpt_train import calc_loss_loader, train_model_simple
from instruction_data import read_instructions, split_instructions, user_text
from pretrained import load_pretrained

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
DEFAULT = "12 blocks"
UNTUNED = ("untuned, own chat template", "untuned, Alpaca layout")
MAX_LENGTH = 256
BATCH_SIZE = 8
EPOCHS = 2


class Method:
    """A way to get answers: a layout, and what is trained in it, if anything.

    Args:
        style: one of `FORMATS`.
        blocks: how many of the upper blocks learn; None for everything, 0 for nothing.
        rate: the learning rate.
        whole_text: whether the questions are learned, too.
    """

    def __init__(self, style, blocks, rate=2e-4, whole_text=False):
        self.style, self.blocks, self.rate = style, blocks, rate
        self.whole_text = whole_text

    def __call__(self, parts, options):
        """A dictionary for each seed: its replies, and its loss on held-out answers."""
        torch.manual_seed(0)
        model, tokenizer, _ = load_pretrained(options.model)
        model = model.to(options.device)
        if self.blocks == 0:
            return [self.ask(model, tokenizer, parts[2], options, seed="")]
        depth = len(model.trf_blocks)
        blocks = None if self.blocks is None else min(self.blocks, depth - 1)
        freeze_below(model, blocks)
        learner, data, collate = self.prepare(model, blocks, parts, tokenizer, options)
        start = [p.detach().clone() for p in learning(model)]
        found = []
        for seed in options.seeds:
            with torch.no_grad():
                for parameter, first in zip(learning(model), start):
                    parameter.copy_(first)
            self.train(learner, data, collate, seed, options)
            found.append(self.ask(model, tokenizer, parts[2], options, seed))
        return found

    def prepare(self, model, blocks, parts, tokenizer, options):
        """What learns, the data of the first two parts, and how they are batched."""
        end, device = tokenizer.eot_token, options.device
        data = [
            InstructionDataset(part, tokenizer, self.style, not self.whole_text)
            for part in parts[:2]
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

    def train(self, learner, data, collate, seed, options):
        """Train from wherever the model is."""
        torch.manual_seed(seed)
        order = torch.Generator().manual_seed(seed)
        load = partial(DataLoader, generator=order, collate_fn=collate)
        loaders = [
            load(one, BATCH_SIZE, shuffle) for one, shuffle in zip(data, (True, False))
        ]
        train_model_simple(
            learner,
            *loaders,
            torch.optim.AdamW(learning(learner), lr=self.rate, weight_decay=0.1),
            options.device,
            num_epochs=options.epochs,
            eval_freq=max(1, len(loaders[0]) // 2),
            eval_iter=4,
            start_context=None,
            tokenizer=None,
            loss=partial(mixed_loss, dtype=options.dtype),
        )

    def ask(self, model, tokenizer, entries, options, seed):
        """Replies to the questions, and the loss on their answers alone."""
        replies = generate_answers(
            entries,
            model,
            tokenizer,
            self.style,
            options.max_new_tokens,
            device=options.device,
        )
        held_out = InstructionDataset(entries, tokenizer, self.style, mask_prompt=True)
        collate = partial(custom_collate_fn, pad_token_id=tokenizer.eot_token)
        loader = DataLoader(held_out, BATCH_SIZE, collate_fn=collate)
        loss = calc_loss_loader(loader, model, options.device, loss=calc_loss_answers)
        return {"seed": seed, "replies": replies, "loss": loss}


METHODS = {
    UNTUNED[0]: Method("chatml", 0),
    UNTUNED[1]: Method("alpaca", 0),
    DEFAULT: Method("alpaca", 12),
    "12 blocks, whole text": Method("alpaca", 12, whole_text=True),
    "12 blocks, chat template": Method("chatml", 12),
    "12 blocks, Phi-3 layout": Method("phi3", 12),
    "4 blocks": Method("alpaca", 4),
    "everything": Method("alpaca", None, rate=5e-5),
}


def mixed_loss(inputs, targets, model, device, dtype):
    """`calc_loss_answers` with the products of matrices in another dtype."""
    kind, mixed = torch.device(device).type, dtype != torch.float32
    with torch.autocast(kind, dtype if mixed else torch.bfloat16, enabled=mixed):
        return calc_loss_answers(inputs, targets, model, device)


# --- Tables --------------------------------------------------------------------------


def percent(name, mean, bounds):
    """Columns of a table: a share and its interval, in per cent."""
    values = {name: mean, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    return {key: f"{100 * value:.1f}" for key, value in values.items()}


def put_rows(path, rows):
    """Write rows in place of those of the same methods, in the order of `METHODS`."""
    tables.replace(path, rows, "method", list(METHODS))


def judged(found, entries):
    """Which replies are right and which can be read: (seeds, N) bool each."""
    pairs = [list(zip(entries, one["replies"])) for one in found]
    return tuple(
        np.array([[rule(*pair) for pair in row] for row in pairs])
        for rule in (score_answer, can_be_read)
    )


def record(name, found, entries, seconds, options):
    """Write what a method answered, and print how much of it is right."""
    right, readable = judged(found, entries)
    families = [entry["family"] for entry in entries]
    losses = [one["loss"] for one in found]
    row = {
        "method": name,
        "style": METHODS[name].style,
        "seeds": len(found),
        "entries": len(entries),
        **percent("share", right.mean(), bootstrap_interval(right, families)),
        "readable": f"{100 * readable.mean():.1f}",
        "answer_loss": f"{np.mean(losses):.3f}",
        "seconds": f"{seconds:.0f}",
        "machine": tables.facts()["machine"],
        "data_sha256": options.sha256[:12],
    }
    put_rows(options.out / "scores.csv", [row])
    each = [
        {
            "method": name,
            "seed": one["seed"],
            "share": f"{100 * hits.mean():.1f}",
            "answer_loss": f"{one['loss']:.3f}",
        }
        for one, hits in zip(found, right)
    ]
    put_rows(options.out / "seeds.csv", each)
    table = score_by_category(entries, right.mean(axis=0))
    parts = [
        {
            "method": name,
            "category": line["category"],
            "entries": line["entries"],
            "families": line["families"],
            **percent("share", line["share"], (line["low"], line["high"])),
        }
        for line in table.to_dict("records")
    ]
    put_rows(options.out / "categories.csv", parts)
    replies = [
        {
            "method": name,
            "seed": one["seed"],
            "question": user_text(entry),
            "reply": json.dumps(reply),
            "right": int(hit),
            "readable": int(can),
        }
        for one, hits, cans in zip(found, right, readable)
        for entry, reply, hit, can in zip(entries, one["replies"], hits, cans)
    ]
    put_rows(options.out / "replies.csv", replies)
    print(
        f"{name}: {row['share']} % ({row['share_low']} to {row['share_high']}), answer "
        f"loss {row['answer_loss']}, {len(found)} runs, {seconds:.0f} s",
        flush=True,
    )
    return right, readable


def kept(name, entries, options):
    """The verdicts of an earlier run on the untuned model, or None without such a run.

    Its replies must be those to the same questions.
    """
    places = [options.out / f"{one}.csv" for one in ("scores", "replies")]
    if not all(place.exists() for place in places):
        return None
    score, replies = (
        [row for row in tables.read(place) if row["method"] == name] for place in places
    )
    same_data = [row["data_sha256"] for row in score] == [options.sha256[:12]]
    asked = [row["question"] for row in replies]
    if not same_data or asked != [user_text(entry) for entry in entries]:
        return None
    print(f"{name}: as measured before", flush=True)
    found = [{"replies": [json.loads(row["reply"]) for row in replies]}]
    return judged(found, entries)


def compare(outcomes, entries, options):
    """What each tuned model adds to each way of asking the untuned one."""
    families = np.array([entry["family"] for entry in entries])
    rows = []
    for name, (right, readable) in outcomes.items():
        if METHODS[name].blocks == 0:
            continue
        for before in UNTUNED:
            if before not in outcomes:
                continue
            first, can_first = outcomes[before]
            gains = right.astype(float) - first  # (seeds, N)
            both = (readable.all(axis=0)) & can_first[0]
            rows.append(
                {
                    "method": name,
                    "before": before,
                    "entries": len(entries),
                    **percent(
                        "gain", gains.mean(), bootstrap_interval(gains, families)
                    ),
                    "both_readable": int(both.sum()),
                    **on_readable(gains, both, families),
                }
            )
    if rows:
        put_rows(options.out / "gains.csv", rows)


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
    """Compute the tables; return the exit code."""
    parser = tables.each_method(__doc__, RESULTS, METHODS, SEEDS)
    add = parser.add_argument
    add("--epochs", type=int, default=EPOCHS, help="%(default)s")
    add("--device", default="cpu", help="such as cuda (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    add("--max-new-tokens", type=int, default=64, help="%(default)s")
    options = parser.parse_args(arguments)
    options.dtype = getattr(torch, options.dtype)
    path = options.data or assets.fetch("instructions")
    options.sha256 = assets.sha256_of(path)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = split_instructions(read_instructions(path))
    parts[2] = [entry for entry in parts[2] if entry.get("answers")]
    outcomes = {}
    # A gain needs both ways of asking the untuned model, whatever was asked for.
    only = options.only or METHODS
    first = [name for name in UNTUNED if name not in only]
    for name in first:
        outcomes[name] = kept(name, parts[2], options)
    missing = [name for name in first if outcomes[name] is None]
    for name in [*missing, *only]:
        start = time.perf_counter()
        found = METHODS[name](parts, options)
        seconds = time.perf_counter() - start
        outcomes[name] = record(name, found, parts[2], seconds, options)
    compare(outcomes, parts[2], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
