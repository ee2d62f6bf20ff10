"""What each way finds among 50,000 entries, and what makers of passives yield.

    python3 -m course run ch07/02_dataset-utilities/experiments.py

* `planted.csv`: near-duplicates planted into entries that are made of the course's
  instructions, each with a text of random words of the course. The program cleans the
  file in a process of its own; recall, precision, seconds and peak memory are those of
  that process, from the first byte read to the last written;
* `kinds.csv`: the same by kind of copy, and of pairs that only look like copies;
* `course.csv`: what each way calls near-duplicates among the course's own 2,206
  instructions, of which none is a copy of another;
* `makers.csv`: of 120 sentences whose passive the course has, how many each maker
  turned around, how many of these the check takes, and how many are right.

A method that is in the tables already is not run again. The embedder, 91 MB, is
fetched once. Takes some fifteen minutes, nearly all of them for the two models; without
them, a minute.
"""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from course import tables
from course.assets import fetch
from find_near_duplicates import THRESHOLDS, find_near_duplicates

RESULTS = Path(__file__).parent / "results"
PROGRAM = Path(__file__).with_name("find_near_duplicates.py")
ENTRIES, EACH, FEW = 50_000, 200, 4_000
RUNS = {  # name: method, entries
    "tfidf": ("tfidf", ENTRIES),
    "minhash": ("minhash", ENTRIES),
    "meaning, candidates": ("meaning", ENTRIES),
    "meaning, all": ("meaning", FEW),
    "tfidf, few": ("tfidf", FEW),
}
COPIES = ("same", "marks", "typing", "word", "reworded")
LOOKALIKES = ("number", "half")


# --- A file with planted copies ------------------------------------------------------


def make_entries(count, each, seed):
    """Entries, and which rows are planted: a list of (kind, row, row of the original).

    Of every kind, also of those that only look like copies, there are `each`.
    """
    draw = random.Random(seed)
    own = json.loads(fetch("instructions-2").read_text("utf-8"))
    words = [w for e in own for w in re.findall(r"[a-z]{3,}", f"{e['input']}")]
    wordings = {}
    for entry in own:
        if entry["split"] == "train" and entry["input"]:
            wordings.setdefault(entry["category"], set()).add(entry["instruction"])
    wordings = {
        name: sorted(some) for name, some in sorted(wordings.items()) if len(some) > 3
    }
    kinds = [kind for kind in (*COPIES, *LOOKALIKES) for _ in range(each)]
    entries = []
    for _ in range(count - len(kinds)):
        category = draw.choice(sorted(wordings))
        text = draw.choices(words, k=draw.randint(6, 14))
        if draw.random() < 0.3:
            text.insert(3, str(draw.randint(2, 9999)))
        entry = {"instruction": draw.choice(wordings[category])}
        entry |= {"input": " ".join(text).capitalize() + ".", "output": text[-1]}
        entries.append((entry | {"category": category}, None))
    for kind in kinds:
        number = draw.randrange(len(entries))
        while entries[number][1] or not suits(entries[number][0], kind):
            number = draw.randrange(len(entries))
        original = entries[number][0]
        copy = changed(original, kind, wordings, words, draw)
        place = draw.randint(number + 1, len(entries))
        entries.insert(place, (copy, (kind, original)))
    rows = {id(entry): row for row, (entry, _) in enumerate(entries, 1)}
    planted = [
        (origin[0], row, rows[id(origin[1])])
        for row, (_, origin) in enumerate(entries, 1)
        if origin
    ]
    for place in range(0, len(entries), 5):  # empty fields must not shift the rows
        entries[place][0].setdefault("note", "")
    return [entry for entry, _ in entries], planted


def suits(entry, kind):
    return kind != "number" or re.search(r"\d", entry["input"])


def changed(entry, kind, wordings, words, draw):
    """A copy of an entry with the change of one kind."""
    copy, text = dict(entry), entry["input"].rstrip(".").split()
    if kind == "marks":
        copy["instruction"] = copy["instruction"].upper().rstrip(".?:") + " !"
    elif kind == "typing":
        for _ in range(2):  # two letters of a word exchanged
            place = draw.choice([i for i, w in enumerate(text) if not w.isdigit()])
            word = text[place]
            at = draw.randrange(max(len(word) - 1, 1))
            text[place] = word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
    elif kind == "word":
        text.insert(draw.randint(0, len(text)), draw.choice(words))
    elif kind == "reworded":
        others = [w for w in wordings[entry["category"]] if w != entry["instruction"]]
        copy["instruction"] = draw.choice(others)
    elif kind == "number":
        place = next(i for i, word in enumerate(text) if word.isdigit())
        text[place] = str(int(text[place]) + draw.randint(1, 9))
    elif kind == "half":  # the same beginning, another end
        half = len(text) // 2
        text[half:] = draw.choices(words, k=len(text) - half)
    return copy | {"input": " ".join(text) + "."}


# --- The program on it ---------------------------------------------------------------


def run_program(data, method, folder):
    """Seconds and peak memory in MB of a process that cleans a file."""
    command = [sys.executable, PROGRAM, "--data", data, "--method", method]
    command += ["--report", folder / "r.csv", "--cleaned", folder / "c.json"]
    start = time.monotonic()
    process = subprocess.Popen([*map(str, command), "--overwrite"])
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise RuntimeError(f"{PROGRAM.name} --method {method} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    cpu = used.ru_utime + used.ru_stime
    return seconds, cpu, used.ru_maxrss * unit / 2**20


def judge(planted, found):
    """What was found of each kind, and the rows that are nobody's copy."""
    original = {row: first for _, row, first in planted}

    def root(row):
        return root(original[row]) if row in original else row

    kind_of = {row: kind for kind, row, _ in planted}
    hits = Counter()
    for row, other in found:
        alike = root(row) == root(other)
        hits[kind_of.get(row, "none") if alike else "none"] += 1
    return hits


def planted_tables(options):
    count = 1_500 if options.tiny else None
    each = 12 if options.tiny else EACH
    path = options.out / "planted.csv"
    done = {row["run"] for row in tables.read(path)} if path.exists() else set()
    for name, (method, entries) in RUNS.items():
        if name in done or (options.tiny and method == "meaning"):
            continue
        entries = count or entries
        each_here = min(each, entries // 40)
        made, planted = make_entries(entries, each_here, options.seed)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            data = folder / "entries.json"
            data.write_text(json.dumps(made, indent=1), "utf-8")
            seconds, cpu, memory = run_program(data, method, folder)
            rows = tables.read(folder / "r.csv")
        hits = judge(planted, [(int(r["row"]), int(r["similar_to"])) for r in rows])
        right = sum(hits[kind] for kind in COPIES)
        row = {"run": name, "method": method, "threshold": THRESHOLDS[method]}
        row |= {"entries": entries, "planted": each_here * len(COPIES)}
        row |= {"found": right, "wrong": len(rows) - right}
        row |= {"recall": f"{right / row['planted']:.3f}"}
        row |= {"precision": f"{right / max(len(rows), 1):.3f}"}
        row |= {"seconds": f"{seconds:.1f}", "cpu_seconds": f"{cpu:.1f}"}
        row |= {"peak_mb": f"{memory:.0f}"}
        print(row, flush=True)
        kinds = [
            {
                "run": name,
                "kind": kind,
                "copy": "yes" if kind in COPIES else "no",
                "planted": each_here,
                "found": hits[kind],
            }
            for kind in (*COPIES, *LOOKALIKES)
        ]
        tables.replace(options.out / "kinds.csv", kinds, "run", list(RUNS))
        tables.replace(path, [row | tables.facts(seed=options.seed)], "run", list(RUNS))


def course_table(options):
    """What is called alike among entries of which none is a copy."""
    path = options.out / "course.csv"
    done = {row["method"] for row in tables.read(path)} if path.exists() else set()
    for method in ("tfidf", "minhash") if options.tiny else THRESHOLDS:
        if method in done:
            continue
        data = fetch("instructions-2")
        entries = json.loads(data.read_text("utf-8"))
        found = find_near_duplicates(data, "question", method)
        family = [entries[m.row - 1]["family"] for m in found]
        other = [entries[m.similar_to - 1]["family"] for m in found]
        row = {"method": method, "threshold": THRESHOLDS[method]}
        row |= {"entries": len(entries), "called": len(found)}
        row |= {"same_family": sum(a == b for a, b in zip(family, other))}
        print(row, flush=True)
        tables.replace(path, [row | tables.facts()], "method", list(THRESHOLDS))


# --- Makers of passives --------------------------------------------------------------


def makers_table(options):
    from passive_makers import gold_pairs
    from passive_voice import passive_problem, to_passive

    pairs = gold_pairs(json.loads(fetch("instructions-2").read_text("utf-8")))
    if options.tiny:
        pairs = pairs[:6]
    makers = {"the rule": lambda sentences: [to_passive(s) for s in sentences]}
    if not options.tiny:
        makers |= {
            f"SmolLM2, {name}": lambda sentences, n=n: ask_smollm2(sentences, n)
            for name, n in (("no example", 0), ("three examples", 3))
        }
    path = options.out / "makers.csv"
    done = {row["maker"] for row in tables.read(path)} if path.exists() else set()
    for name, make in makers.items():
        if name in done:
            continue
        start = time.process_time()
        made = make([active for active, _, _ in pairs])
        seconds = time.process_time() - start
        taken = [
            bool(passive) and not passive_problem(active, passive)
            for (active, _, _), passive in zip(pairs, made)
        ]
        right = [passive in accepted for (_, _, accepted), passive in zip(pairs, made)]
        row = {"maker": name, "sentences": len(pairs)}
        row |= {"made": sum(map(bool, made)), "taken": sum(taken), "right": sum(right)}
        row |= {"taken_and_right": sum(a and b for a, b in zip(taken, right))}
        row |= {"seconds": f"{seconds:.1f}"}
        print(row, flush=True)
        for (active, *_), passive, a, b in zip(pairs, made, taken, right):
            if a != b and passive:
                print(
                    "   ", active, "|", passive, "|", passive_problem(active, passive)
                )
        tables.replace(path, [row | tables.facts()], "maker", list(makers))


def ask_smollm2(sentences, examples):
    from passive_makers import ask_model
    from pretrained import load_pretrained

    model, tokenizer, _ = load_pretrained("smollm2-135m")
    return ask_model(sentences, model, tokenizer, examples)


def main(arguments=None):
    parser = tables.one_run(__doc__, RESULTS)
    parts = {"planted": planted_tables, "course": course_table, "makers": makers_table}
    parser.add_argument("--only", choices=list(parts), action="append", help="tables")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or parts:
        parts[name](options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
