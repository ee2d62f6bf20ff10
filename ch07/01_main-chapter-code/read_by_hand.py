"""Replies read by a person who does not know whose they are (chapter 7): support.

    python3 -m course run ch07/01_main-chapter-code/read_by_hand.py export sheet.csv
    python3 -m course run ch07/01_main-chapter-code/read_by_hand.py import sheet.csv ME
    python3 -m course run ch07/01_main-chapter-code/read_by_hand.py errors

A rule makes mistakes, and not as many for every model. To count them somebody reads
replies and writes down which are right: `export` draws questions and writes a sheet of
all replies to them in `results/replies.csv`, each once, shuffled, without method, seed
or a rule's verdict; the reader puts 1 (right) or 0 into its column `verdict`; `import`
adds the verdicts to `results/by_hand.csv`, under the reader's name; `errors` compares
both rules with them, for groups of replies and for each method, and writes
`results/by_hand_errors.csv`, and to `results/by_hand_gains.csv` what each tuned model
gains on these questions over each untuned way, by hand and by version 2. A reply has an
id made of its question and its text, so the verdict holds for every method that says
the same, and a sheet made later, of the same questions, has only what was not read.

The verdicts here are those of language models, who saw question and reply and nothing
else, neither a rule nor a list of answers. No rule was changed after them.

>>> reply_id("How many?", "Two.") == reply_id("How many?", "Two")
False
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt_class_finetune import bootstrap_interval

RESULTS = Path(__file__).parent / "results"
LONG = 12  # words; a reply with more is long-winded
GROUPS = ("untuned", "tuned", "long-winded")
RULES = {"1": "right", "2": "right_v2"}

Row = dict[str, str]


def reply_id(question: str, reply: str) -> str:
    """Twelve hexadecimal digits for a question and a reply."""
    return hashlib.sha256(f"{question}\0{reply}".encode()).hexdigest()[:12]


def groups_of(row: Row) -> list[str]:
    """The groups of a row of replies.csv: untuned or tuned, and perhaps long-winded."""
    groups = ["untuned" if row["method"].startswith("untuned") else "tuned"]
    long = len(json.loads(row["reply"]).split()) > LONG
    return [*groups, "long-winded"] if long else groups


def sheet_of(rows: Sequence[Row], read: set[str], number: int, seed: int) -> list[Row]:
    """Every reply to some questions, each once and shuffled.

    Args:
        rows: of replies.csv.
        read: ids that have a verdict; they are left out.
        number: how many questions are drawn, all if there are not as many.
        seed: of the draw and of the order.
    """
    draw = random.Random(seed)
    questions = sorted({row["question"] for row in rows})
    chosen = set(draw.sample(questions, min(number, len(questions))))
    found: dict[str, Row] = {}
    for row in rows:
        reply = json.loads(row["reply"])
        name = reply_id(row["question"], reply)
        if row["question"] in chosen and name not in read:
            line = {"id": name, "question": row["question"], "reply": reply}
            found[name] = {**line, "verdict": ""}
    sheet = sorted(found.values(), key=lambda line: line["id"])
    draw.shuffle(sheet)
    return sheet


def verdicts_of(sheet: Sequence[Row], reader: str) -> list[Row]:
    """The rows for by_hand.csv of a sheet whose verdicts are filled in.

    Raises:
        ValueError: a verdict is neither 0 nor 1, or the reply was changed.
    """
    for number, line in enumerate(sheet, start=1):
        if line["verdict"] not in ("0", "1"):
            raise ValueError(
                f"Line {number} of the sheet has the verdict {line['verdict']!r}: "
                "write 1 for right, 0 for wrong."
            )
        if reply_id(line["question"], line["reply"]) != line["id"]:
            raise ValueError(f"Line {number} of the sheet is not what was exported.")
    return [
        {
            "question": line["question"],
            "reply_id": line["id"],
            "verdict": line["verdict"],
            "reader": reader,
        }
        for line in sheet
    ]


def verdict_by_reply(by_hand: Sequence[Row]) -> dict[str, float]:
    """By id of a reply: its verdict, the mean if several readers gave one."""
    found: dict[str, list[int]] = {}
    for row in by_hand:
        found.setdefault(row["reply_id"], []).append(int(row["verdict"]))
    return {name: float(np.mean(verdicts)) for name, verdicts in found.items()}


def errors_of(rows: Sequence[Row], by_hand: Sequence[Row]) -> list[Row]:
    """How often each rule errs on the replies that were read, by group and by method.

    Args:
        rows: of replies.csv; a reply counts as often as models said it.
        by_hand: of by_hand.csv.

    Returns:
        Rows with the columns `group`, `rule`, `replies`, `by_hand` and `by_rule`, the
        shares of right ones in per cent, then `accepted` by the rule and how many of
        these are wrong, and `right` ones and how many of these the rule refuses.
    """
    verdicts = verdict_by_reply(by_hand)
    table = []
    for group in (*GROUPS, *dict.fromkeys(row["method"] for row in rows)):
        some = [
            (row, verdicts[name] >= 0.5)
            for row in rows
            if (name := reply_id(row["question"], json.loads(row["reply"]))) in verdicts
            and group in (*groups_of(row), row["method"])
        ]
        hand = np.array([right for _, right in some], dtype=bool)
        for rule, column in RULES.items():
            ruled = np.array([row[column] == "1" for row, _ in some], dtype=bool)
            accepted, refused = (ruled & ~hand).sum(), (~ruled & hand).sum()
            line = {
                "group": group,
                "rule": rule,
                "replies": len(some),
                "by_hand": f"{100 * hand.mean():.1f}" if some else "",
                "by_rule": f"{100 * ruled.mean():.1f}" if some else "",
                "accepted": int(ruled.sum()),
                "accepted_wrong": int(accepted),
                "right": int(hand.sum()),
                "refused_right": int(refused),
            }
            table.append({name: str(value) for name, value in line.items()})
    return table


def gains_of(rows: Sequence[Row], by_hand: Sequence[Row]) -> list[Row]:
    """What tuned models gain on the questions whose replies were all read.

    Args:
        rows: of replies.csv.
        by_hand: of by_hand.csv.

    Returns:
        A row for each tuned method and each untuned one: how many questions, and the
        gain in points by hand and by version 2 of the rule, each with its 95% interval
        for which questions and runs are drawn anew.
    """
    verdicts = verdict_by_reply(by_hand)
    found: dict[str, dict[str, dict[str, tuple[bool, bool]]]] = {}
    for row in rows:
        hand = verdicts.get(reply_id(row["question"], json.loads(row["reply"])))
        if hand is not None:
            runs = found.setdefault(row["method"], {}).setdefault(row["seed"], {})
            runs[row["question"]] = hand >= 0.5, row["right_v2"] == "1"
    every = [set(run) for runs in found.values() for run in runs.values()]
    questions = sorted(set.intersection(*every)) if every else []
    right = {  # (runs, questions, 2)
        name: np.array([[run[one] for one in questions] for run in runs.values()])
        for name, runs in found.items()
    }
    untuned = [name for name in right if name.startswith("untuned")]
    table = []
    for name in [name for name in right if name not in untuned]:
        for before in untuned:
            line = {"method": name, "before": before, "questions": str(len(questions))}
            for judge, column in enumerate(("by_hand", "by_rule_v2")):
                gain = right[name][..., judge] - right[before][..., judge].astype(float)
                low, high = bootstrap_interval(gain, np.array(questions))
                values = (gain.mean(), low, high)
                for end, value in zip(("", "_low", "_high"), values):
                    line[column + end] = f"{100 * value:.1f}"
            table.append(line)
    return table


# --- As a script ---------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a sheet, take in its verdicts, or count errors; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a sheet for a reader")
    export.add_argument("sheet", type=Path)
    export.add_argument("--questions", type=int, default=120, help="(%(default)s)")
    export.add_argument("--seed", type=int, default=123, help="(%(default)s)")
    take = commands.add_parser("import", help="add the verdicts of a sheet")
    take.add_argument("sheet", type=Path)
    take.add_argument("reader")
    commands.add_parser("errors", help="count the errors of both rules")
    options = parser.parse_args(arguments)
    from course import tables

    rows = tables.read(options.results / "replies.csv")
    path = options.results / "by_hand.csv"
    by_hand = tables.read(path) if path.exists() else []
    if options.command == "export":
        read = {row["reply_id"] for row in by_hand}
        sheet = sheet_of(rows, read, options.questions, options.seed)
        tables.write(options.sheet, sheet)
        print(f"{len(sheet)} replies in {options.sheet}")
    elif options.command == "import":
        new = verdicts_of(tables.read(options.sheet), options.reader)
        known = {(row["reply_id"], row["reader"]) for row in new}
        kept = [row for row in by_hand if (row["reply_id"], row["reader"]) not in known]
        tables.write(path, [*kept, *new])
        print(f"{len(new)} verdicts by {options.reader} in {path}")
    else:
        tables.write(options.results / "by_hand_gains.csv", gains_of(rows, by_hand))
        for row in tables.read(
            tables.write(
                options.results / "by_hand_errors.csv", errors_of(rows, by_hand)
            )
        ):
            print(
                f"{row['group']}, version {row['rule']}: {row['by_rule']} % right, "
                f"{row['by_hand']} % by hand; {row['accepted_wrong']} of "
                f"{row['accepted']} accepted are wrong, {row['refused_right']} of "
                f"{row['right']} right ones refused"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
