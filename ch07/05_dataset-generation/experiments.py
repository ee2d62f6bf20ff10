"""What a small model writes by itself, and what rules find in it: this folder's tables.

    python3 -m course run ch07/05_dataset-generation/experiments.py

SmolLM2 writes questions in four ways and answers all of them, those with a fault, too.
Then it revises its own answers to questions of chapter 7 that a rule can decide.

* `pairs.csv`: every pair with its faults; `cost.csv`: the seconds of each way;
* `yield.csv`: for each way and filter the pairs found, removed and left;
* `by_hand.csv`: verdicts of a reader who saw question and answer and nothing else:
  `--sheet FILE` writes what is to be read, all pairs that the filters keep and 60 of
  the others, shuffled, without saying which; `--verdicts FILE READER` adds the sheet
  once 1 (somebody could learn from it) or 0 stands in each line;
* `filters.csv`: precision and recall of the filters by the verdicts of each reader, and
  `readers.csv`: on how many of the pairs that two readers read they agree;
* `revisions.csv`: each answer with critique and revision, and whether it is right
  before and after, for the model's own answers and for the right ones of the data set;
  `revised.csv`: how many were repaired and broken.

Seconds are CPU seconds in one thread. What is in the tables is not made again; `--only`
makes one of them anew. Takes about seven minutes and 2 GB.
"""

import itertools
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from answer_scores_v2 import score_answer_v2
from course import tables
from course.assets import fetch
from generate_instructions import (
    ANSWERS,
    QUESTIONS,
    PairJournal,
    generate_pairs,
    judged_pairs,
    yield_table,
)
from gpt_class_finetune import bootstrap_interval
from instruction_data import read_instructions, split_instructions, user_text
from pretrained import load_pretrained
from raw_prompts import LocalWriter, Sampled
from read_by_hand import reply_id, sheet_of, verdicts_of
from revise_instructions import LocalChat, revise_answers, revision_counts
from script_tools import runs_folder

RESULTS = Path(__file__).parent / "results"
SYSTEM = (
    "The user asks short questions about everyday facts, and the assistant answers in "
    "one sentence."
)
OPENINGS = ["What is", "How many", "Name", "Who", "Which", "Explain", "Write", "Add"]
WAYS = {
    "as it is": {},
    "hotter": {"questions": Sampled(QUESTIONS.most, 1.0, 1.0)},
    "system message": {"system": SYSTEM},
    "first words": {"openings": OPENINGS},
}
PAIRS, REVISED = 32, 48
READ_KEPT, READ_REMOVED = 18, 60
METHODS = {  # whether a critique is asked for, and whether right answers are revised
    "critique, then revision": (True, False),
    "revision alone": (False, False),
    "right answers, critique": (True, True),
}


class GenerationBench:
    """How many of everything, where the tables are, and the model when needed."""

    def __init__(self, options):
        self.out, self.journals, self.seed = options.out, options.journals, options.seed
        self.pairs, self.revised = (3, 2) if options.tiny else (PAIRS, REVISED)
        self.most = 6 if options.tiny else None
        self.known = known_questions()
        self._writer = None

    def writer(self):
        if self._writer is None:
            model, tokenizer, _ = load_pretrained("smollm2-135m")
            self._writer = LocalWriter(model, tokenizer)
        return self._writer

    def shortened(self, sampled):
        return sampled if self.most is None else sampled._replace(most=self.most)

    def rows(self, name):
        path = self.out / name
        return tables.read(path) if path.exists() else []


def known_questions():
    """All questions of the course, as they are typed."""
    entries = read_instructions(fetch("instructions-2"))
    return [user_text(entry) for entry in entries]


def journal_of(bench, name):
    """Where the pairs of a way are written down as they come."""
    return bench.journals / f"{name.replace(' ', '-')}.jsonl"


def one_way(bench, way):
    """The pairs that are written in one way, with their faults."""
    plan = dict(WAYS[way])
    questions = bench.shortened(plan.pop("questions", QUESTIONS))
    journal = PairJournal(journal_of(bench, way), {"way": way, "seed": bench.seed})
    writer, start = bench.writer(), time.process_time()
    generate_pairs(
        writer,
        bench.pairs,
        journal,
        known=bench.known,
        questions=questions,
        answers=bench.shortened(ANSWERS),
        seed=bench.seed,
        answer_all=True,
        **plan,
    )
    seconds = time.process_time() - start
    judged = judged_pairs(journal.pairs.values(), bench.known)
    rows = [
        {
            "way": way,
            "number": pair["number"],
            "question": json.dumps(pair["question"]),
            "question_ended": int(pair["question_ended"]),
            "answer": json.dumps(pair.get("answer", "")),
            "answer_ended": int(pair.get("answer_ended", 0)),
            "faults": "; ".join(pair["faults"]),
        }
        for pair in judged
    ]
    tables.replace(bench.out / "pairs.csv", rows, key="way", order=list(WAYS))
    tables.replace(
        bench.out / "yield.csv",
        [{"way": way, **row} for row in yield_table(judged)],
        key="way",
        order=list(WAYS),
    )
    kept = sum(not pair["faults"] for pair in judged)
    row = {"way": way, "pairs": len(judged), "kept": kept, "seconds": f"{seconds:.1f}"}
    row |= tables.facts(seed=bench.seed)
    tables.replace(bench.out / "cost.csv", [row], key="way", order=list(WAYS))
    print(f"{way}: {kept} of {len(judged)} kept, {seconds:.1f} s", flush=True)


# --- By hand --------------------------------------------------------------------------


def sheet(bench, path):
    """Write pairs to be read, some that are kept and some that are not, shuffled."""
    draw = np.random.default_rng(bench.seed)
    groups = groups_of(bench.rows("pairs.csv"))
    chosen = []
    for rows, number in zip(groups, (READ_KEPT, READ_REMOVED)):
        places = draw.permutation(len(rows))[:number]
        chosen += [rows[i] for i in sorted(places)]
    lines = [
        {"question": json.loads(row["question"]), "reply": row["answer"]}
        for row in chosen
    ]
    tables.write(path, sheet_of(lines, set(), len(lines), bench.seed))


def groups_of(rows):
    """Rows of pairs.csv that are kept, and those that are not."""
    return [r for r in rows if not r["faults"]], [r for r in rows if r["faults"]]


def filter_table(pairs, by_hand):
    """Precision and recall of the filters, from each reader's verdicts on both groups.

    Precision: how many of the kept pairs are good. Recall: how many of the good pairs
    are kept; each group counts as large as it is, not as much of it as was read. The
    intervals draw the verdicts of each group anew, 10,000 times.
    """
    table = []
    for reader in dict.fromkeys(row["reader"] for row in by_hand):
        verdict = verdicts_by(by_hand, reader)
        sizes, read = [], []
        for rows in groups_of(pairs):
            ids = [
                reply_id(json.loads(r["question"]), json.loads(r["answer"]))
                for r in rows
            ]
            sizes.append(len(rows))
            read.append(np.array([verdict[one] for one in ids if one in verdict]))
        table += _measures(reader, sizes, read)
    return table


def _measures(reader, sizes, read):
    """Two rows of filters.csv: precision and recall by one reader's verdicts."""
    draw = np.random.default_rng(0)
    means = [
        draw.choice(verdicts, (10_000, len(verdicts))).mean(axis=1) for verdicts in read
    ]
    shares = [verdicts.mean() for verdicts in read]
    counts = {"kept": sizes[0], "removed": sizes[1]}
    counts |= {"kept_read": len(read[0]), "removed_read": len(read[1])}
    counts |= {"kept_good": int(read[0].sum()), "removed_good": int(read[1].sum())}
    for name, of in (("precision", precision_of_groups), ("recall", recall_of_groups)):
        low, high = np.percentile(of(sizes, means), [2.5, 97.5])
        row = {"reader": reader, "measure": name, "value": f"{of(sizes, shares):.3f}"}
        yield row | {"low": f"{low:.3f}", "high": f"{high:.3f}"} | counts


def verdicts_by(by_hand, reader):
    """One reader's verdicts, 0 or 1, by the id of the pair."""
    mine = (row for row in by_hand if row["reader"] == reader)
    return {row["reply_id"]: int(row["verdict"]) for row in mine}


def readers_table(by_hand):
    """How often every two readers agree on the pairs that both of them read."""
    table = []
    readers = list(dict.fromkeys(row["reader"] for row in by_hand))
    for first, second in itertools.combinations(readers, 2):
        one, other = (verdicts_by(by_hand, reader) for reader in (first, second))
        pairs = Counter((one[name], other[name]) for name in one.keys() & other.keys())
        row = {"first": first, "second": second, "pairs": pairs.total()}
        row |= {"both_good": pairs[1, 1], "first_only": pairs[1, 0]}
        table.append(row | {"second_only": pairs[0, 1], "both_bad": pairs[0, 0]})
    return table


def precision_of_groups(sizes, shares):
    """The share of good pairs among those that are kept."""
    return shares[0]


def recall_of_groups(sizes, shares):
    """The share of the good pairs that are kept; 0 if there are none."""
    good = [size * share for size, share in zip(sizes, shares)]
    return good[0] / np.maximum(good[0] + good[1], 1e-9)


# --- Revising -------------------------------------------------------------------------


def decidable(number):
    """The first questions of the test part that a rule can decide, of all kinds."""
    entries = read_instructions(fetch("instructions-2"))
    test = [e for e in split_instructions(entries)[2] if e.get("answers")]
    return test[:: max(1, len(test) // number)][:number]


def revising(bench, method):
    """Each answer before and after it is revised in one way."""
    entries = decidable(bench.revised)
    chat = LocalChat(bench.writer(), most=bench.most or 48)
    start = time.process_time()
    criticise, right = METHODS[method]
    answers = [entry["output"] for entry in entries]
    if not right:
        answers = chat([user_text(entry) for entry in entries])
    revised = revise_answers(entries, answers, chat, criticise=criticise)
    seconds = time.process_time() - start
    rows, before, after = [], [], []
    for entry, answer, result in zip(entries, answers, revised):
        new = result["revision"] or answer
        before.append(score_answer_v2(entry, answer))
        after.append(score_answer_v2(entry, new))
        row = {"method": method, "family": entry["family"]}
        row |= {"category": entry["category"], "question": json.dumps(user_text(entry))}
        row |= {"answer": json.dumps(answer)}
        row |= {key: json.dumps(result[key]) for key in ("critique", "reply")}
        row |= {"kind": result["kind"], "same": int(new == answer)}
        rows.append(row | {"before": int(before[-1]), "after": int(after[-1])})
    order = list(METHODS)
    tables.replace(bench.out / "revisions.csv", rows, key="method", order=order)
    gains = np.array(after, float) - np.array(before, float)
    families = [entry["family"] for entry in entries]
    low, high = bootstrap_interval(gains, families)
    row = {"method": method, "questions": len(entries)}
    row |= {"right_before": sum(before), "right_after": sum(after)}
    row |= revision_counts(before, after)
    row |= {"gain": f"{gains.mean():.3f}", "low": f"{low:.3f}", "high": f"{high:.3f}"}
    row |= {"seconds": f"{seconds:.1f}"} | tables.facts()
    tables.replace(bench.out / "revised.csv", [row], key="method", order=order)
    print(f"{method}: {sum(before)} right before, {sum(after)} after", flush=True)


def main(arguments=None):
    """Make what is missing in the tables; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    add = parser.add_argument
    add("--journals", type=Path, default=runs_folder() / "ch07-generation-experiments")
    add("--only", choices=[*WAYS, *METHODS], action="append", help="make it anew")
    add("--sheet", type=Path, help="write what is to be read")
    add("--verdicts", nargs=2, metavar=("FILE", "READER"), help="add what was read")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = GenerationBench(options)
    if options.sheet:
        sheet(bench, options.sheet)
        return 0
    if options.verdicts:
        path, reader = options.verdicts
        rows = verdicts_of(tables.read(Path(path)), reader)
        tables.replace(bench.out / "by_hand.csv", rows, key="reader")
        found = filter_table(bench.rows("pairs.csv"), bench.rows("by_hand.csv"))
        tables.write(bench.out / "filters.csv", found)
        compared = readers_table(bench.rows("by_hand.csv"))
        if compared:
            tables.write(bench.out / "readers.csv", compared)
        return 0
    done = {row["way"] for row in bench.rows("cost.csv")}
    done |= {row["method"] for row in bench.rows("revised.csv")}
    for name, make in {
        **dict.fromkeys(WAYS, one_way),
        **dict.fromkeys(METHODS, revising),
    }.items():
        if name in (options.only or []) or (not options.only and name not in done):
            make(bench, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
