"""Replies read by a person who does not know whose they are (chapter 7): support.

    python3 -m course run ch07/01_main-chapter-code/read_by_hand.py export sheet.csv
    python3 -m course run ch07/01_main-chapter-code/read_by_hand.py import sheet.csv ME
    python3 -m course run ch07/01_main-chapter-code/read_by_hand.py errors

A rule makes mistakes, and not as many for every model. To count them somebody reads
replies and writes down which are right: `export` writes a sheet of replies from
`results/replies.csv`, each once, shuffled, without method, seed or a rule's verdict;
the reader puts 1 (right) or 0 into its column `verdict`; `import` adds the verdicts to
`results/by_hand.csv`, under the reader's name; `errors` compares both rules with them
and writes `results/by_hand_errors.csv`. A reply has an id made of its question and its
text, so the verdict holds for every method that says the same.

The first 300 verdicts are those of one reader, who knew both rules and had seen some of
the replies before with their methods; no verdict of a rule was changed after them.

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
    """Replies for a reader, each once and shuffled, half of them untuned ones.

    Args:
        rows: of replies.csv.
        read: ids that have a verdict; they are left out.
        number: how many replies, fewer if there are not as many.
        seed: of the draw and of the order.
    """
    draw = random.Random(seed)
    found: dict[str, dict[str, Row]] = {"untuned": {}, "tuned": {}}
    for row in rows:
        reply = json.loads(row["reply"])
        name = reply_id(row["question"], reply)
        if name not in read:
            line = {"id": name, "question": row["question"], "reply": reply}
            found[groups_of(row)[0]].setdefault(name, {**line, "verdict": ""})
    untuned, tuned = (list(found[group].values()) for group in GROUPS[:2])
    half = draw.sample(untuned, min(number // 2, len(untuned)))
    taken = {line["id"] for line in half}
    others = [line for line in tuned if line["id"] not in taken]
    sheet = half + draw.sample(others, min(number - len(half), len(others)))
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
    """How often each rule errs on the replies that were read, by group of replies.

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
    for group in GROUPS:
        some = [
            (row, verdicts[name] >= 0.5)
            for row in rows
            if (name := reply_id(row["question"], json.loads(row["reply"]))) in verdicts
            and group in groups_of(row)
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


# --- As a script ---------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a sheet, take in its verdicts, or count errors; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a sheet for a reader")
    export.add_argument("sheet", type=Path)
    export.add_argument("--number", type=int, default=300, help="(%(default)s)")
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
        sheet = sheet_of(rows, read, options.number, options.seed)
        tables.write(options.sheet, sheet)
        print(f"{len(sheet)} replies in {options.sheet}")
    elif options.command == "import":
        new = verdicts_of(tables.read(options.sheet), options.reader)
        known = {(row["reply_id"], row["reader"]) for row in new}
        kept = [row for row in by_hand if (row["reply_id"], row["reader"]) not in known]
        tables.write(path, [*kept, *new])
        print(f"{len(new)} verdicts by {options.reader} in {path}")
    else:
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
