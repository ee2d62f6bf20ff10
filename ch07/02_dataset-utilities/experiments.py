"""What each way finds among 50,000 entries, and what makers of passives yield.

    python3 -m course run ch07/02_dataset-utilities/experiments.py

* `planted.csv`: near-duplicates planted into entries that are made of the course's
  instructions, each with a text of random words of the course. The program cleans the
  file in a process of its own; recall, precision, seconds and peak memory are those of
  that process, from the first byte read to the last written. `letters alone` is the
  simplest opponent: entries with the same letters and digits in the same order;
* `kinds.csv`: the same by kind of copy, and of pairs that only look like copies;
* `thresholds.csv`: recall and precision by threshold, on 5,000 other entries of this
  kind: where the program's thresholds come from;
* `course.csv`: what each way calls near-duplicates among the course's own 2,206
  instructions, of which none is a copy of another;
* `makers.csv`: of 120 sentences whose passive the course has, how many each maker
  turned around, how many of these the check takes, and how many are right.

Seconds are those of the processor, in one thread. What is in the tables already is not
run again. The embedder, 91 MB, is fetched once. Takes some twelve minutes, nearly all
of them for the two models; without them, a minute.
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

import numpy as np
import torch

from course import tables
from course.assets import fetch
from find_near_duplicates import THRESHOLDS, find_near_duplicates, text_of

RESULTS = Path(__file__).parent / "results"
PROGRAM = Path(__file__).with_name("find_near_duplicates.py")
ENTRIES, EACH, FEW, OTHER = 50_000, 200, 4_000, 5_000
LETTERS_ALONE = "letters alone"
RUNS = {  # name: method, entries
    LETTERS_ALONE: (LETTERS_ALONE, ENTRIES),
    "tfidf": ("tfidf", ENTRIES),
    "minhash": ("minhash", ENTRIES),
    "meaning, candidates": ("meaning", ENTRIES),
    "meaning, all": ("meaning", FEW),
    "tfidf, few": ("tfidf", FEW),
}
GRID = {
    "tfidf": (0.65, 0.7, 0.75, 0.8, 0.85),
    "minhash": (0.5, 0.55, 0.6, 0.65, 0.7),
    "meaning": (0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
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
    """The seconds (CPU) and the peak memory in MB of a process that cleans a file."""
    command = [sys.executable, PROGRAM, "--data", data, "--method", method]
    command += ["--report", folder / "r.csv", "--cleaned", folder / "c.json"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen([*map(str, command), "--overwrite"], env=one_thread)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{PROGRAM.name} --method {method} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 2**20


def same_letters(entries):
    """Pairs of an entry and the first one with the same letters and digits."""
    first = {}
    for row, entry in enumerate(entries, 1):
        letters = "".join(filter(str.isalnum, text_of(entry, "question")))
        if first.setdefault(letters, row) != row:
            yield row, first[letters]


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


def scores(found, planted):
    """Recall and precision, and what was found of each kind."""
    found, kinds = list(found), [kind for kind, *_ in planted]
    hits = judge(planted, found)
    copies = sum(kind in COPIES for kind in kinds)
    right = sum(hits[kind] for kind in COPIES)
    row = {"planted": copies, "found": right, "wrong": len(found) - right}
    row |= {"recall": f"{right / copies:.3f}"}
    row |= {"precision": f"{right / max(len(found), 1):.3f}"}
    by_kind = [
        {
            "kind": kind,
            "copy": "yes" if kind in COPIES else "no",
            "planted": kinds.count(kind),
            "found": hits[kind],
        }
        for kind in (*COPIES, *LOOKALIKES)
    ]
    return row, by_kind


def planted_tables(options):
    count = 1_500 if options.tiny else None
    each = 12 if options.tiny else EACH
    path = options.out / "planted.csv"
    done = {row["run"] for row in tables.read(path)} if path.exists() else set()
    for name, (method, entries) in RUNS.items():
        if name in done or (options.tiny and method == "meaning"):
            continue
        entries = count or entries
        made, planted = make_entries(entries, min(each, entries // 40), options.seed)
        if method == LETTERS_ALONE:
            start = time.process_time()
            found = list(same_letters(made))
            seconds, memory = time.process_time() - start, ""
        else:
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                data = folder / "entries.json"
                data.write_text(json.dumps(made, indent=1), "utf-8")
                seconds, memory = run_program(data, method, folder)
                rows = tables.read(folder / "r.csv")
            found = [(int(row["row"]), int(row["similar_to"])) for row in rows]
            memory = f"{memory:.0f}"
        score, kinds = scores(found, planted)
        row = {"run": name, "method": method, "threshold": THRESHOLDS.get(method, "")}
        row |= {"entries": entries} | score | {"seconds": f"{seconds:.1f}"}
        row |= {"peak_mb": memory}
        print(row, flush=True)
        kinds = [{"run": name, **kind} for kind in kinds]
        tables.replace(options.out / "kinds.csv", kinds, "run", list(RUNS))
        row |= tables.facts(seed=options.seed) | {"threads": 1}
        tables.replace(path, [row], "run", list(RUNS))


def thresholds_table(options):
    """Recall and precision by threshold, on entries that are in no other table."""
    count, each = (600, 12) if options.tiny else (OTHER, OTHER // 40)
    made, planted = make_entries(count, each, options.seed + 1)
    path = options.out / "thresholds.csv"
    done = {row["method"] for row in tables.read(path)} if path.exists() else set()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "entries.json")
        data.write_text(json.dumps(made), "utf-8")
        for method, grid in GRID.items():
            if method in done or (options.tiny and method == "meaning"):
                continue
            embed = remembering_embedder() if method == "meaning" else None
            lines = []
            for threshold in grid:
                matches = find_near_duplicates(
                    data, "question", method, threshold, embed=embed, most=count
                )
                found = [(match.row, match.similar_to) for match in matches]
                row = {"method": method, "threshold": threshold, "entries": count}
                lines.append(
                    row | scores(found, planted)[0] | {"seed": options.seed + 1}
                )
                print(lines[-1], flush=True)
            tables.replace(path, lines, "method", list(GRID))


def remembering_embedder():
    """The embedder, which computes the vector of a text only once."""
    from sentence_vectors import load_embedder

    embed, known = load_embedder(), {}

    def embed_new(texts):
        new = [text for text in texts if text not in known]
        known.update(zip(new, embed(new) if new else ()))
        return np.stack([known[text] for text in texts])

    return embed_new


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
    parts = {"planted": planted_tables, "thresholds": thresholds_table}
    parts |= {"course": course_table, "makers": makers_table}
    parser.add_argument("--only", choices=list(parts), action="append", help="tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or parts:
        parts[name](options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
