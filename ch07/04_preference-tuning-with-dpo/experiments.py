"""What does tuning on preferences teach, and what does beta do? The tables of DPO.

    python3 -m course run ch07/04_preference-tuning-with-dpo/experiments.py

SmolLM2, asked in its own chat template, is tuned with `dpo.py` on the pairs of the
course that differ in tone or in length (`data/preferences-2.json`, training part), the
upper 4 blocks, one epoch, with three seeds, which set the order of the pairs. The other
methods differ from this one in beta or in the variant of the loss; they are judged on
pairs alone, and have one seed unless `--all-seeds` is given. All were fixed before the
first run; nothing was chosen by the test part.

Judged is on questions that were held out:

* pairs of the test part: how often the better answer gains more than the worse one,
  relative to the reference; both log-ratios in `results/pairs.csv`;
* the model's own replies, cut after 48 tokens (`results/replies.csv`), by rule.
  `brief`: at most ten words more than the course's own answer, on all questions but
  those of the pairs on tone. `polite`: by a classifier of words that learned from the
  training pairs, on the questions of the pairs on tone. `right` and `right_v2`: by
  chapter 7's two rules, on 150 questions of its test part, those of test pairs first
  and then by a hash;
* drift: KL divergence from the untuned model, nats per token of the better answers.

`results/runs.csv` has each run, `results/curves.csv` losses and rewards on the way,
`results/scores.csv` each method with 95% intervals, families and seeds drawn anew
(bootstrap), and the gain over the untuned model, question by question. How much of a
gain is brevity, `results/brevity.csv` says: there the untuned replies are judged again,
each cut after as many words as the tuned reply to the same question has. This opponent
was added after the replies had been read.

Frozen blocks and training compute in bfloat16, replies and rewards in float32. What the
frozen blocks make of the pairs is kept in the runs folder, and a run that is in the
tables is not made again. All of them take about a quarter of an hour of one core and
4 GB. `--only NAME` runs one method, `--tiny` a model of two blocks, for a test.
"""

import hashlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from answer_scores import score_answer
from answer_scores_v2 import score_answer_v2
from course import assets, tables
from dpo import (
    SIDES,
    PreferenceDataset,
    cache_pair_features,
    cache_reference,
    custom_collate_fn,
    drift,
    frozen_copy,
    pair_rewards,
    train_model_dpo_simple,
)
from fast_answers import answers_and_loss
from frozen_features import UpperModel, freeze_below, learning
from gpt_class_finetune import bootstrap_interval
from instruction_data import read_instructions, user_text
from preference_pairs import extra_words, is_brief, sounds_polite, tone_rule
from pretrained import load_pretrained
from script_tools import runs_folder

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3)
UNTUNED, DEFAULT = "untuned", "beta 0.1"
TAUGHT = ("impolite", "too_long")
JUDGED = (*TAUGHT, "wrong")
BLOCKS, RATE, BATCH_SIZE, NEW_TOKENS = 4, 1e-4, 8, 48
QUESTIONS = 150  # for the rule
PARTS = {"train": TAUGHT, "validation": TAUGHT, "test": JUDGED}


class Tuning(NamedTuple):
    """How a model is tuned; the defaults are those of the first method."""

    beta: float = 0.1
    variant: str = "dpo"


METHODS = {
    UNTUNED: None,
    DEFAULT: Tuning(),
    "beta 0.02": Tuning(beta=0.02),
    "beta 0.5": Tuning(beta=0.5),
    "IPO, beta 0.1": Tuning(variant="ipo"),
    "by length, beta 2": Tuning(beta=2.0, variant="length"),
}
ANSWERED = (UNTUNED, DEFAULT)  # whose own replies are judged


class PreferenceBench:
    """The model, the pairs with what never changes, and the questions.

    Args:
        options: of the command line.
    """

    def __init__(self, options):
        self.options = options
        pairs = read_pairs(assets.fetch("preferences-2"))
        instructions = read_instructions(assets.fetch("instructions-2"))
        self.rule = tone_rule(pair for pair in pairs if pair["split"] == "train")
        self.parts = {
            part: [p for p in pairs if p["split"] == part and p["flaw"] in flaws]
            for part, flaws in PARTS.items()
        }
        number = QUESTIONS
        if options.tiny:
            number = 8
            self.parts = {part: few(some) for part, some in self.parts.items()}
        self.questions = questions_to_ask(
            [p for p in pairs if p["split"] == "test"], instructions, number
        )
        if options.tiny:
            self.questions = self.questions[::12]
        torch.manual_seed(0)
        model, self.tokenizer, _ = load_pretrained(options.model)
        if options.tiny:
            model.trf_blocks = model.trf_blocks[:2]
            model.cfg = {**model.cfg, "n_layers": 2}
        self.model = model
        self.blocks = 1 if options.tiny else BLOCKS
        freeze_below(model, self.blocks)
        self.policy = UpperModel(model, self.blocks)
        self.reference = frozen_copy(self.policy)
        self.collate = partial(custom_collate_fn, pad_token_id=self.tokenizer.eot_token)
        self.items = {}

    def prepare(self):
        """Run the frozen blocks and the reference once, where it was not done yet."""
        for part, some in self.parts.items() if not self.items else ():
            key = json.dumps([str(self.options.model), some])
            digest = hashlib.sha256(key.encode()).hexdigest()[:12]
            kept = self.options.cache / f"{self.blocks}-blocks-{digest}.pt"
            if not kept.exists():
                data = PreferenceDataset(some, self.tokenizer, "chatml")
                with autocast():
                    items = cache_pair_features(self.model, data, self.blocks)
                with autocast(part != "test"):
                    items = cache_reference(items, self.reference, self.collate)
                kept.parent.mkdir(parents=True, exist_ok=True)
                torch.save(items, kept.with_suffix(".part"))
                kept.with_suffix(".part").replace(kept)
            self.items[part] = torch.load(kept)
            print(f"{part}: {len(some)} pairs prepared", flush=True)

    def tune(self, tuning, seed, looks=1):
        """Train from the untuned model on; return losses and rewards on the way.

        Args:
            tuning: one of `METHODS`.
            seed: of the order of the pairs.
            looks: into how many parts measurements divide the run.
        """
        self.put_back()
        loaders = []
        for part in ("train", "validation"):
            order = torch.Generator().manual_seed(seed)
            shuffle = part == "train"
            loaders.append(
                DataLoader(
                    self.items[part],
                    BATCH_SIZE,
                    shuffle,
                    generator=order,
                    collate_fn=self.collate,
                )
            )
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(learning(self.policy), lr=RATE, weight_decay=0.01)
        with autocast():
            return train_model_dpo_simple(
                self.policy,
                None,
                *loaders,
                optimizer,
                num_epochs=1,
                beta=tuning.beta,
                eval_freq=-(-len(loaders[0]) // looks),
                eval_iter=2 if looks > 1 else 1,
                variant=tuning.variant,
            )

    def put_back(self):
        """Give what learns the values that it had."""
        before = dict(self.reference.named_parameters())
        with torch.no_grad():
            for name, value in self.policy.named_parameters():
                if value.requires_grad:
                    value.copy_(before[name])

    def judge_pairs(self):
        """Log-ratios of both answers of each test pair, and the drift on them."""
        loader = DataLoader(self.items["test"], 16, collate_fn=self.collate)
        ratios = pair_rewards(loader, self.policy, None, beta=1.0)
        return ratios.tolist(), drift(loader, self.policy, self.reference)

    def replies(self):
        """What the model answers to the questions, and its verdicts, as rows."""
        texts, _ = answers_and_loss(
            [question["entry"] for question in self.questions],
            self.model,
            self.tokenizer,
            style="chatml",
            max_new_tokens=8 if self.options.tiny else NEW_TOKENS,
        )
        return judged(self.questions, texts, self.rule)


def judged(questions, texts, rule):
    """Replies to questions and the verdicts on them, as rows of `replies.csv`."""
    rows = []
    for question, text, polite in zip(questions, texts, sounds_polite(rule, texts)):
        entry, tone = question["entry"], question["flaw"] == "impolite"
        ruled = entry.get("answers")
        rows.append(
            {
                "question": user_text(entry),
                "family": entry["family"],
                "flaw": question["flaw"],
                "reply": json.dumps(text),
                "words": len(text.split()),
                "extra_words": extra_words(text, entry["output"]),
                "polite": int(polite) if tone else "",
                "brief": "" if tone else int(is_brief(text, entry["output"])),
                "right": int(score_answer(entry, text)) if ruled else "",
                "right_v2": int(score_answer_v2(entry, text)) if ruled else "",
            }
        )
    return rows


def autocast(mixed=True):
    """Products of matrices in bfloat16, in this block.

    Weights are rounded anew for each product: a cache would keep those of the first
    update for as long as the block lasts, and the training would not see what it does.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)


def read_pairs(path):
    """The pairs of a file of preferences."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def few(pairs):
    """Four pairs of each trait, the shortest ones, for a test."""
    size = lambda pair: len(pair["rejected"])  # noqa: E731
    return [
        pair
        for flaw in JUDGED
        for pair in sorted((p for p in pairs if p["flaw"] == flaw), key=size)[:4]
    ]


def questions_to_ask(pairs, instructions, number):
    """The questions of the test pairs, and so many with answers that a rule can judge.

    Each is a dictionary with an `entry`, whose `output` is the better answer, and the
    `flaw` of its pair, "" if it has none.
    """
    known = {user_text(entry): entry for entry in instructions}
    found = []
    for pair in pairs:
        entry = {**pair, "output": pair["chosen"]}
        rule = known.get(user_text(pair), {}).get("answers")
        found.append(
            {"entry": entry | ({"answers": rule} if rule else {}), "flaw": pair["flaw"]}
        )
    asked = {user_text(pair) for pair in pairs}
    rest = [
        entry
        for entry in instructions
        if entry["split"] == "test"
        and entry.get("answers")
        and user_text(entry) not in asked
    ]
    rest.sort(key=lambda entry: hashlib.sha256(user_text(entry).encode()).hexdigest())
    ruled = sum("answers" in question["entry"] for question in found)
    more = rest[: max(0, number - ruled)]
    return found + [{"entry": entry, "flaw": ""} for entry in more]


# --- Runs, one after the other -------------------------------------------------------


def rows_of(path):
    """The rows of a table, or none where there is no table."""
    return tables.read(path) if path.exists() else []


def runs_to_do(options):
    """Methods and seeds that are not in the tables yet, the most wanted first."""
    done = {row["run"] for row in rows_of(options.out / "runs.csv")}
    first = [(DEFAULT, seed) for seed in options.seeds]
    others = [
        (name, seed)
        for seed in options.seeds
        for name, tuning in METHODS.items()
        if tuning and name != DEFAULT
    ]
    if not options.all_seeds:
        others = [(name, seed) for name, seed in others if seed == options.seeds[0]]
    wanted = [(UNTUNED, ""), *first, *others]
    chosen = {UNTUNED, *(options.only or METHODS)}
    return [
        (name, seed)
        for name, seed in wanted
        if name in chosen and run_name(name, seed) not in done
    ]


def run_name(name, seed):
    """What a run is called in the tables."""
    return f"{name}, seed {seed}" if seed else name


ORDER = [run_name(name, s) for name in METHODS for s in ("", *SEEDS)]


def make_run(bench, name, seed):
    """Tune, judge, and write all that is known of a run; its row comes last."""
    start = time.process_time()
    bench.prepare()
    tuning, out, run = METHODS[name], bench.options.out, run_name(name, seed)
    put = partial(tables.replace, key="run", order=ORDER)
    if tuning:
        first = name == DEFAULT and seed == bench.options.seeds[0]
        tracking = bench.tune(tuning, seed, looks=3 if first else 1)
        steps = zip(*tracking.values())
        put(
            out / "curves.csv",
            [
                {"run": run, "method": name}
                | {key: f"{value:.5g}" for key, value in zip(tracking, values)}
                for values in steps
            ],
        )
    else:
        bench.put_back()
    ratios, distance = bench.judge_pairs()
    pairs = [
        {"run": run, "method": name, "flaw": pair["flaw"], "family": pair["family"]}
        | {f"{side}_ratio": f"{ratio:.3f}" for side, ratio in zip(SIDES, both)}
        for pair, both in zip(bench.parts["test"], ratios)
    ]
    put(out / "pairs.csv", pairs)
    replies = []
    if name in ANSWERED:
        replies = [{"run": run, "method": name, **row} for row in bench.replies()]
        put(out / "replies.csv", replies)
    row = {"run": run, "method": name, "seed": seed}
    row |= tuning._asdict() if tuning else dict.fromkeys(Tuning._fields, "")
    row["pairs"] = len(bench.parts["train"]) if tuning else 0
    row |= {"rate": RATE, "blocks": bench.blocks, "drift": f"{distance:.4f}"}
    row |= shares(replies)
    row["seconds"] = f"{time.process_time() - start:.0f}"
    row |= tables.facts(data_sha256=assets.sha256_of(data_file())[:12])
    put(out / "runs.csv", [row])
    print({key: row[key] for key in ("run", "drift", *VERDICTS, "words", "seconds")})


VERDICTS = ("polite", "brief", "right", "right_v2")


def data_file():
    """The file of the pairs."""
    return assets.fetch("preferences-2")


def shares(replies):
    """The share of replies with each verdict, of those it is asked of; their words."""
    if not replies:
        return dict.fromkeys((*VERDICTS, "words"), "")
    found = {}
    for what in VERDICTS:
        some = [int(row[what]) for row in replies if row[what] != ""]
        found[what] = f"{100 * np.mean(some):.1f}"
    return found | {"words": f"{np.mean([row['words'] for row in replies]):.1f}"}


# --- Tables --------------------------------------------------------------------------


def columns_of(name):
    """A share and the bounds of its interval."""
    return [name, f"{name}_low", f"{name}_high"]


def percent(name, mean, bounds):
    """These three columns, in per cent."""
    return {
        column: f"{100 * value:.1f}"
        for column, value in zip(columns_of(name), (mean, *bounds))
    }


def tabulate(options):
    """Write `scores.csv`: each method with intervals, and what it gains."""
    replies, pairs = (rows_of(options.out / f"{n}.csv") for n in ("replies", "pairs"))
    runs = rows_of(options.out / "runs.csv")
    before = [row for row in replies if row["run"] == UNTUNED]
    rows = []
    for name in METHODS:
        names = [row["run"] for row in runs if row["method"] == name]
        if not names:
            continue
        row = {"method": name, "seeds": len(names)}
        for what in VERDICTS:
            if name not in ANSWERED:
                row |= dict.fromkeys(columns_of(what) + columns_of(f"{what}_gain"), "")
                continue
            some = [r for r in before if r[what] != ""]
            families = [r["family"] for r in some]
            first = np.array([int(r[what]) for r in some])
            now = np.array(
                [
                    [int(r[what]) for r in replies if r["run"] == run and r[what] != ""]
                    for run in names
                ]
            )
            row |= percent(what, now.mean(), bootstrap_interval(now, families))
            gain = now - first
            bounds = bootstrap_interval(gain, families)
            row |= percent(f"{what}_gain", gain.mean(), bounds)
        for flaw in JUDGED:
            mine = [r for r in pairs if r["flaw"] == flaw and r["method"] == name]
            won = np.array([preferred(r) for r in mine]).reshape(len(names), -1)
            families = [r["family"] for r in mine][: won.shape[1]]
            bounds = bootstrap_interval(won, families)
            row |= percent(f"{flaw}_preferred", won.mean(), bounds)
        mine = [r for r in runs if r["method"] == name]
        for column in ("drift", "words"):
            values = [float(r[column]) for r in mine if r[column]]
            row[column] = f"{np.mean(values):.4g}" if values else ""
        rows.append(row)
    tables.write(options.out / "scores.csv", rows)
    tuned_runs = [
        [row for row in replies if row["run"] == run_name(DEFAULT, seed)]
        for seed in SEEDS
    ]
    if any(tuned_runs):
        rows = against_brevity(before, list(filter(None, tuned_runs)))
        tables.write(options.out / "brevity.csv", rows)


def against_brevity(before, tuned_runs):
    """What the tuned replies gain over untuned ones that are as short as they are.

    Args:
        before: the rows of the untuned replies.
        tuned_runs: a list of rows for each seed.

    Returns:
        A row for each verdict, shares in per cent, means over the seeds: untuned, cut,
        tuned; `by_cut`, what cutting alone gains; `beyond`, what the tuned replies have
        more than the cut ones. The last two with intervals, as in `scores.csv`.
    """
    untuned, cut, tuned = (
        [with_letters(rows) for rows in runs]
        for runs in ([before], cut_replies(before, tuned_runs), tuned_runs)
    )
    rows = []
    for what in (*VERDICTS, "polite_letters", "letters"):
        places = [i for i, row in enumerate(untuned[0]) if row[what] != ""]
        if not places:
            continue
        families = [before[i]["family"] for i in places]
        first, short, last = (
            np.array([[int(run[i][what]) for i in places] for run in runs])
            for runs in (untuned, cut, tuned)
        )
        row = {"verdict": what, "questions": len(places), "seeds": len(last)}
        for name, some in (("untuned", first), ("cut", short), ("tuned", last)):
            row[name] = f"{100 * some.mean():.1f}"
        for name, gain in (("by_cut", short - first), ("beyond", last - short)):
            row |= percent(name, gain.mean(), bootstrap_interval(gain, families))
        rows.append(row)
    return rows


def cut_replies(before, tuned_runs):
    """Untuned replies, each as short as the tuned one, judged: rows for each seed."""
    pairs = read_pairs(assets.fetch("preferences-2"))
    rule = tone_rule(pair for pair in pairs if pair["split"] == "train")
    every = questions_to_ask(
        [pair for pair in pairs if pair["split"] == "test"],
        read_instructions(assets.fetch("instructions-2")),
        sys.maxsize,
    )
    known = {user_text(question["entry"]): question for question in every}
    questions = [known[row["question"]] for row in before]
    return [
        judged(questions, list(map(cut_to, texts_of(before), texts_of(tuned))), rule)
        for tuned in tuned_runs
    ]


def texts_of(rows):
    """The replies of some rows."""
    return [json.loads(row["reply"]) for row in rows]


def cut_to(text, other):
    """As many words of a text, from its beginning, as another one has."""
    return " ".join(text.split()[: len(other.split())])


def with_letters(rows):
    """Rows with two more verdicts: any letter or digit; polite, and that as well."""
    made = []
    for row, text in zip(rows, texts_of(rows)):
        letters = int(any(map(str.isalnum, text)))
        polite = row["polite"] and int(row["polite"]) * letters
        made.append({**row, "letters": letters, "polite_letters": polite})
    return made


def preferred(row):
    """Whether the better answer gained more than the worse one; a tie is a half."""
    chosen, rejected = (float(row[f"{side}_ratio"]) for side in SIDES)
    return 0.5 if chosen == rejected else float(chosen > rejected)


# --- As a script ---------------------------------------------------------------------


def main(arguments=None):
    """Make the runs that are missing, and the tables; return the exit code."""
    parser = tables.each_method(__doc__, RESULTS, METHODS, SEEDS)
    parser.add_argument("--tiny", action="store_true", help="two blocks, for a test")
    parser.add_argument("--all-seeds", action="store_true", help="for all methods")
    cache = runs_folder() / "dpo-experiments"
    parser.add_argument("--cache", type=Path, default=cache, help="(%(default)s)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    todo = runs_to_do(options)
    bench = PreferenceBench(options) if todo else None
    for name, seed in todo:
        make_run(bench, name, seed)
        tabulate(options)
    tabulate(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
