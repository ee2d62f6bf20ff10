"""A small model as a judge, and its multiple choice: the tables of this folder.

    python3 -m course run ch07/03_model-evaluation/experiments.py

SmolLM2, untuned, judges the replies of chapter 7 that eight readers judged by hand.

* `verdicts.csv`: for each reply how much likelier *Yes* is than *No* as the answer to
  "Is the reply right?", in nats;
* `grades.csv`: what it writes when it is asked for a grade from 0 to 100, for the
  replies to a quarter of the questions, through a llama.cpp server (package xllamacpp);
* `pairs.csv`: two replies to one question, shown in both orders: how much likelier *A*
  is than *B*. `right` pairs hold a right and a wrong reply, `wrong` pairs a shorter and
  a longer wrong one;
* `padding.csv`: replies as they are, and the same with a sentence that says nothing;
* `cloze.csv`: the multiple-choice questions of this folder, the choices not shown: for
  each choice log p behind the question and behind no question, and its tokens;
* `letters.csv`: the same questions, the choices shown under letters in four orders:
  log p of the letter of each choice;
* `judging.csv`: how many rows each table holds, and the seconds they took.

What is in the tables is not asked again; `--fresh` begins anew. The likelihoods of the
judge are computed in bfloat16. Takes about ten minutes in one thread.
"""

import json
import random
import sys
import time
from itertools import groupby
from pathlib import Path

import torch

from course import tables
from judge_server import llama_cpp
from judged_replies import margins, read_judged_replies, verdict_prompt
from multiple_choice import (
    cloze_scores,
    encode_pair,
    letter_scores,
    read_choice_questions,
    rotations,
)
from ollama_evaluate import comparison_prompt, judge_prompt, query_model, read_score
from pretrained import load_pretrained

RESULTS = Path(__file__).parent / "results"
MODEL = "smollm2-135m"
GRADED = 30  # questions
PADDING = " I hope that this reply is helpful to you and to everybody who reads it."


class JudgeBench:
    """The replies by question, a model that loads when it is needed, and the tables."""

    def __init__(self, options):
        self.out, self.loaded = options.out, {}
        replies = read_judged_replies()
        questions = {
            name: list(group) for name, group in groupby(replies, lambda r: r.question)
        }
        if options.tiny:  # three questions that have a right and a wrong reply
            mixed = [
                name
                for name, group in questions.items()
                if len({one.by_hand for one in group}) == 2
            ]
            questions = {name: questions[name][:4] for name in mixed[:3]}
        self.questions = questions
        self.graded = list(questions)[:: 1 if options.tiny else 120 // GRADED]
        choices = read_choice_questions()[: 2 if options.tiny else None]
        self.choices = {one.question: one for one in choices}

    def margins(self, prompts, one, other):
        """As `judged_replies.margins`, by SmolLM2."""
        return margins(*self.model(torch.bfloat16), prompts, one, other)

    def model(self, dtype=torch.float32):
        """SmolLM2 and its tokenizer."""
        if dtype not in self.loaded:
            self.loaded[dtype] = load_pretrained(MODEL, dtype=dtype)
        return self.loaded[dtype].model.eval(), self.loaded[dtype].tokenizer

    def todo(self, name, questions):
        """The questions that a table does not hold."""
        path = self.out / name
        known = {row["question"] for row in tables.read(path)} if path.exists() else ()
        return [one for one in questions if one not in known]

    def add(self, name, rows, start):
        """Rows of one question below those of a table, and what they took."""
        path = self.out / name
        tables.write(path, [*(tables.read(path) if path.exists() else ()), *rows])
        path = self.out / "judging.csv"
        old = {row["table"]: row for row in tables.read(path)} if path.exists() else {}
        before = float(old[name]["seconds"]) if name in old else 0.0
        row = {
            "table": name,
            "judgements": len(tables.read(self.out / name)),
            "seconds": f"{before + time.process_time() - start:.2f}",
            **tables.facts(model=MODEL),
        }
        tables.replace(path, [row], key="table")


def write_verdicts(bench):
    """Yes or no for every reply."""
    for question in bench.todo("verdicts.csv", bench.questions):
        start, replies = time.process_time(), bench.questions[question]
        prompts = [verdict_prompt(one.entry, one.reply) for one in replies]
        rows = [
            {"question": question, "reply_id": one.id, "yes": f"{margin:.4f}"}
            for one, margin in zip(replies, bench.margins(prompts, "Yes", "No"))
        ]
        bench.add("verdicts.csv", rows, start)


def pairs_of(replies):
    """(kind, the one, the other) for one question; at most two of each kind."""
    draw = random.Random(replies[0].question)
    right = [one for one in replies if one.by_hand]
    wrong = [one for one in replies if not one.by_hand]
    draw.shuffle(right), draw.shuffle(wrong)
    pairs = [("right", *pair) for pair in zip(right[:2], wrong)]
    by_length = sorted(wrong, key=lambda one: len(one.reply))
    if len(by_length) > 1 and len(by_length[0].reply) < len(by_length[-1].reply):
        pairs.append(("wrong", by_length[-1], by_length[0]))  # the longer is the one
    return pairs


def write_pairs(bench):
    """Two replies in both orders."""
    for question in bench.todo("pairs.csv", bench.questions):
        start, pairs = time.process_time(), pairs_of(bench.questions[question])
        prompts = [
            comparison_prompt(a.entry, order)
            for _, a, b in pairs
            for order in ([a.reply, b.reply], [b.reply, a.reply])
        ]
        found = bench.margins(prompts, "A", "B")
        rows = [
            {
                "question": question,
                "kind": kind,
                "one": a.id,
                "other": b.id,
                "one_first": f"{found[2 * i]:.4f}",
                "other_first": f"{found[2 * i + 1]:.4f}",
            }
            for i, (kind, a, b) in enumerate(pairs)
        ]
        if rows:
            bench.add("pairs.csv", rows, start)


def write_padding(bench):
    """The same reply with a sentence behind it that says nothing."""
    for question in bench.todo("padding.csv", bench.questions):
        start, replies = time.process_time(), bench.questions[question]
        chosen = {one.by_hand: one for one in replies[::-1]}  # one right, one wrong
        found = sorted(chosen.values(), key=lambda one: one.by_hand)
        prompts = [
            verdict_prompt(one.entry, one.reply + padding)
            for one in found
            for padding in ("", PADDING)
        ]
        yes = bench.margins(prompts, "Yes", "No")
        rows = [
            {
                "question": question,
                "reply_id": one.id,
                "by_hand": one.by_hand,
                "plain": f"{yes[2 * i]:.4f}",
                "padded": f"{yes[2 * i + 1]:.4f}",
            }
            for i, one in enumerate(found)
        ]
        bench.add("padding.csv", rows, start)


def write_grades(bench):
    """A grade in words, through a server."""
    todo = bench.todo("grades.csv", bench.graded)
    if not todo:
        return
    with llama_cpp() as url:
        for question in todo:
            start, rows = time.process_time(), []
            for one in bench.questions[question]:
                said = query_model(judge_prompt(one.entry, one.reply), MODEL, url)
                grade, kind = read_score(said)
                row = {"question": question, "reply_id": one.id}
                row |= {"kind": kind, "grade": "" if grade is None else grade}
                rows.append(row | {"said": json.dumps(said)})
            bench.add("grades.csv", rows, start)


def in_text(numbers):
    """Numbers in one field of a table."""
    return " ".join(f"{number:.4f}" for number in numbers)


def write_cloze(bench):
    """Multiple choice, the choices not shown."""
    for name in bench.todo("cloze.csv", bench.choices):
        start, question = time.process_time(), bench.choices[name]
        model, tokenizer = bench.model()
        scores = cloze_scores(model, tokenizer, question)
        tokens = [
            len(encode_pair(tokenizer, "Answer:", f" {choice}")[1])
            for choice in question.choices
        ]
        row = {
            "question": name,
            "sums": in_text(scores["sum"]),
            "alone": in_text(scores["sum"] - scores["question"]),
            "tokens": " ".join(map(str, tokens)),
        }
        bench.add("cloze.csv", [row], start)


def write_letters(bench):
    """Multiple choice by letters, in four orders."""
    for name in bench.todo("letters.csv", bench.choices):
        start, question = time.process_time(), bench.choices[name]
        rows = [
            {
                "question": name,
                "order": " ".join(map(str, order)),
                "scores": in_text(letter_scores(*bench.model(), question, order)),
            }
            for order in rotations()
        ]
        bench.add("letters.csv", rows, start)


def main(arguments=None):
    """Make what is missing in the tables; return the exit code."""
    parser = tables.one_run(__doc__, RESULTS)
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = JudgeBench(options)
    if options.fresh:
        for path in options.out.glob("*.csv"):
            path.unlink()
    for write in (
        write_cloze,
        write_pairs,
        write_padding,
        write_verdicts,
        write_letters,
        write_grades,
    ):
        write(bench)
        print(write.__name__, "done", flush=True)
    for row in tables.read(options.out / "judging.csv"):
        print(f"{row['table']}: {row['judgements']} in {row['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
