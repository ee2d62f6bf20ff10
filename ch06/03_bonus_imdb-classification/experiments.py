"""Who sorts film reviews how well, from how many labels and in how many seconds?

    python3 -m course run ch06/03_bonus_imdb-classification/experiments.py

No film is in two parts. Each method learns from some of 4,000 snippets of the training
films, drawn at random (three draws, each with its own seed for weights and order), and
is asked about the same 1,000 snippets of other films, and about 300 sentences of other
reviews, which npm brings: films again, goods and restaurants. Settings (strengths,
heights, learning rates) are chosen on 300 snippets of a third group of films, with 250
labels and one draw; the test films and the other reviews choose nothing.

* `settings.csv`: what was tried, and how often it was right;
* `runs.csv`: each run, its CPU seconds, from the labelled snippets to the answers about
  the 1,300 (reading them with a frozen model included; loading it is not), and in
  `right` which of these were right: a bit each, test first, as a hexadecimal number;
* `summary.csv`: for each method and number of labels the mean of the draws, an interval
  for which films and runs are drawn anew, and mean seconds; and the same for the other
  reviews;
* `texts.csv`: of each of the 1,300, in the order of their bits, what can be counted
  (`plain_words`), and no text; the words of 500 labels are meant, each draw's in turn.

What a table has is not made again, so a run that was stopped goes on; `--only NAME`
makes one method anew. Features are kept in `--cache`. SmolLM2 has its lowest 18 blocks
everywhere. "LoRA, lower rate" is the second of LoRA's rates by the same choice.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from course import tables
from download_prepare_dataset import load_reviews, some
from gpt_class_finetune import bootstrap_interval
from message_bench import PLACES
from message_ways import (
    Larger,
    Regression,
    Trained,
    heights,
    letter_regression,
    pooled,
    scaled_regression,
    texts,
    word_regression,
)
from other_reviews import fetch_sentences, read_sentences
from plain_words import describe
from review_bench import LORA, ReviewBench, SmallGPT, WholeModel, draw_labels
from script_tools import runs_folder

RESULTS = Path(__file__).parent / "results"
DRAWS = (1, 2, 3)
LABELS_TO_CHOOSE, CHOOSING_DRAW = 250, 0
SIZES = {"train": 4000, "validation": 300, "test": 1000}
OTHERS_EACH = 50  # of each label and kind
WORDS_OF = 500  # labels, for `texts.csv`
ALL = (125, 250, 500, 1000, 2000, 4000)


def vectors(bench: ReviewBench, setting: Any) -> np.ndarray:
    """Those of the sentence embedder."""
    return bench.vectors


def vector_regression(setting: Any) -> LogisticRegression:
    """On vectors of length 1; `setting` is its strength."""
    return LogisticRegression(C=setting[0], max_iter=2000)


STRENGTHS = tuple((c,) for c in (0.1, 1, 10, 100, 1000))
METHODS: dict[str, Any] = {
    "larger class": Larger(),
    "words": Regression(texts, word_regression),
    "words and letters": Regression(texts, letter_regression, STRENGTHS),
    "sentence embedder": Regression(vectors, vector_regression, STRENGTHS),
    "small GPT": SmallGPT(((1e-3, 4), (4e-3, 4), (1e-2, 4), (4e-3, 12))),
    "SmolLM2, frozen": Regression(
        pooled(PLACES[1]),
        scaled_regression,
        heights((12,), (9, 12, 15, 18), strengths=(0.0003, 0.001, 0.003, 0.01, 0.03)),
    ),
    "SmolLM2, last block": Trained(
        1, ((5e-4, 2), (1.5e-3, 2), (4e-3, 2), (1.5e-3, 4)), mean=True
    ),
    "SmolLM2, LoRA": WholeModel(
        ((5e-4, 2), (1.5e-3, 2), (4e-3, 2)), tuple(LORA.values())
    ),
    "SmolLM2, LoRA, lower rate": WholeModel(((1.5e-3, 2),), tuple(LORA.values())),
    "SmolLM2, all weights": WholeModel(
        ((1e-5, 2), (5e-5, 2), (1.5e-4, 2), (4e-4, 2), (1.5e-4, 4))
    ),
}
COUNTS = {
    "larger class": (500, 1000, 4000),
    "small GPT": (125, 250, 500, 1000),
    "SmolLM2, last block": (125, 250, 500, 1000),
    "SmolLM2, LoRA": (500,),
    "SmolLM2, LoRA, lower rate": (500,),
    "SmolLM2, all weights": (500,),
}
READS = {  # whose vectors are kept, so that their seconds are added
    "sentence embedder": "embedder",
    "SmolLM2, frozen": "frozen",
    "SmolLM2, last block": "frozen",
}

# --- What is read --------------------------------------------------------------------


def write_data(
    folder: Path, sizes: Any, source: Path | None = None, others: Any = None
) -> tuple[Path, Path]:
    """Two CSV files in a folder: snippets of three parts, and other reviews.

    They are the same each time, for the same sources.
    """
    reviews = load_reviews(path=source)
    chosen = [some(reviews[reviews["split"] == part], n) for part, n in sizes.items()]
    others = read_sentences(fetch_sentences(folder)) if others is None else others
    others = others.groupby(["group", "label"], group_keys=False)
    few = [some(group, OTHERS_EACH) for _, group in others]
    paths = folder / "snippets.csv", folder / "others.csv"
    for path, frame in zip(paths, (pd.concat(chosen), pd.concat(few))):
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(path, index=False, encoding="utf-8", lineterminator="\n")
    return paths


# --- Choosing ------------------------------------------------------------------------


def choose(bench, name, out, anew=False):
    """The setting that is right most often on the validation films."""
    way, path = METHODS[name], out / "settings.csv"
    if len(way.settings) == 1:
        return way.settings[0]
    asked = bench.places("validation")
    count = min(LABELS_TO_CHOOSE, len(bench.places("train")))
    known = labelled(bench, count, CHOOSING_DRAW)
    rows = [row for row in rows_of(path) if row["method"] == name and not anew]
    for setting in way.settings:
        if any(row["setting"] == str(setting) for row in rows):
            continue
        chances = way.chances(bench, setting, known, asked, CHOOSING_DRAW)
        accuracy = ((chances > 0) == bench.targets[asked]).mean()
        row = {"method": name, "setting": setting, "labels": count, "asked": len(asked)}
        row |= {"accuracy": f"{100 * accuracy:.2f}"}
        rows += as_texts([row | source_of(bench)])
        tables.replace(path, rows, "method", list(METHODS))
        print(f"{name} {setting}: {row['accuracy']} % on validation", flush=True)
    best = {row["setting"]: float(row["accuracy"]) for row in rows}
    return max(way.settings, key=lambda setting: best[str(setting)])


def labelled(bench, count, draw):
    """Places of `count` snippets of the training films; fewer lie in more."""
    return draw_labels(bench.targets, bench.places("train"), count, draw)


# --- Runs ----------------------------------------------------------------------------


def run(bench, name, draws, out, anew=False, most=None):
    """One method with each number of labels and each draw that has no row yet."""
    way, path = METHODS[name], out / "runs.csv"
    setting = choose(bench, name, out, anew)
    asked, pool = bench.places("test", "outside"), len(bench.places("train"))
    rows = [row for row in rows_of(path) if row["method"] == name and not anew]
    pool = min(pool, most or pool)
    counts = [count for count in COUNTS.get(name, ALL) if count <= pool] or [pool]
    for count, draw in [(count, draw) for count in counts for draw in draws]:
        if any(r["labels"] == str(count) and r["draw"] == str(draw) for r in rows):
            continue
        known = labelled(bench, count, draw)
        load(bench, way, setting)
        start = time.process_time()
        chances = way.chances(bench, setting, known, asked, draw)
        seconds = time.process_time() - start
        if name in READS:
            seconds += (count + len(asked)) * bench.cost(READS[name])
        right = (chances > 0) == bench.targets[asked]
        tested = right[: len(bench.places("test"))]
        row = {"method": name, "setting": setting, "labels": count, "draw": draw}
        row |= {"accuracy": f"{100 * tested.mean():.2f}", "seconds": f"{seconds:.2f}"}
        rows += as_texts([row | source_of(bench) | {"right": packed(right)}])
        tables.replace(path, rows, "method", list(METHODS))
        print(f"{name}, {count} labels, draw {draw}: {row['accuracy']} %", flush=True)


def load(bench, way, setting):
    """Have ready what a method starts from, so that its seconds hold no loading."""
    _ = bench.base, bench.ids
    if isinstance(way, Regression):
        way.view(bench, setting)
    elif isinstance(way, Trained):
        way.start(bench)


def packed(right):
    """Truth values as a hexadecimal number, and `unpacked` makes them again."""
    return np.packbits(right).tobytes().hex()


def unpacked(text, count):
    """The first `count` truth values of a hexadecimal number."""
    bits = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)


def summarise(bench, out):
    """`summary.csv` from `runs.csv`: test part and each kind of other reviews."""
    asked, kinds = bench.places("test", "outside"), kinds_of(bench)
    films, rows, found = bench.families[asked], rows_of(out / "runs.csv"), []
    for name, count in dict.fromkeys((r["method"], r["labels"]) for r in rows):
        runs = [r for r in rows if (r["method"], r["labels"]) == (name, count)]
        right = np.array([unpacked(r["right"], len(asked)) for r in runs])
        for kind in dict.fromkeys(kinds):
            inside = kinds == kind
            low, high = bootstrap_interval(right[:, inside], films[inside])
            row = {"method": name, "labels": count, "asked": kind}
            row |= {"reviews": int(inside.sum()), "draws": len(runs)}
            row |= {
                "accuracy": f"{100 * right[:, inside].mean():.2f}",
                "low": f"{100 * low:.2f}",
                "high": f"{100 * high:.2f}",
                "seconds": mean_seconds(runs),
            }
            found.append(row | source_of(bench))
    if found:
        tables.write(out / "summary.csv", found)


def kinds_of(bench):
    """What each review that is asked about is a review of."""
    asked = bench.messages.iloc[bench.places("test", "outside")]
    return asked["group"].fillna("test films").to_numpy()


def count_words(bench, out):
    """`texts.csv`: what can be counted about each review that is asked about."""
    count = min(WORDS_OF, len(bench.places("train")))
    texts, models = bench.messages["text"], []
    for draw in DRAWS:
        known = labelled(bench, count, draw)
        models.append(word_regression(()).fit(texts.iloc[known], bench.targets[known]))
    asked = bench.places("test", "outside")
    counted = describe(texts.iloc[asked], models)
    source = {name: source_of(bench)[name] for name in ("data_sha256", "others_sha256")}
    rows = [
        {"asked": kind, "label": bench.messages["label"].iloc[place]} | row | source
        for kind, place, row in zip(kinds_of(bench), asked, counted)
    ]
    tables.write(out / "texts.csv", rows)


def mean_seconds(runs):
    """Of the runs; empty where one was not measured."""
    found = [run["seconds"] for run in runs]
    return f"{np.mean([float(one) for one in found]):.2f}" if all(found) else ""


def source_of(bench):
    """Columns that say where a figure comes from."""
    facts = tables.facts()
    return {
        "machine": facts["machine"],
        "threads": facts["threads"],
        "data_sha256": bench.sha256[:12],
        "others_sha256": bench.outside_sha256[:12],
    }


def as_texts(rows):
    """Rows as they are read again."""
    return [{key: str(value) for key, value in row.items()} for row in rows]


def rows_of(path):
    """The rows of a table, or none."""
    return tables.read(path) if path.exists() else []


def forget_other_data(path, bench):
    """Leave out rows that other reviews made."""
    ours = {key: source_of(bench)[key] for key in ("data_sha256", "others_sha256")}
    rows = rows_of(path)
    kept = [row for row in rows if ours.items() <= row.items()]
    if rows and not kept:
        path.unlink()
    elif kept != rows:
        tables.write(path, kept)


# --- As a script ---------------------------------------------------------------------


def main(arguments=None):
    """Compute the tables; return the exit code."""
    parser = tables.each_method(__doc__, RESULTS, METHODS, DRAWS)
    cache = runs_folder() / "ch06-review-features"
    parser.add_argument("--cache", type=Path, default=cache, help="(%(default)s)")
    parser.add_argument("--epochs", type=int, help="for every trained method")
    fewer = "leave out larger numbers of labels"
    parser.add_argument("--most-labels", type=int, help=fewer)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    snippets, others = write_data(options.cache, SIZES, options.data)
    bench = ReviewBench(snippets, options.model, options.cache, others)
    bench.epochs = options.epochs
    for table in ("settings.csv", "runs.csv"):
        forget_other_data(options.out / table, bench)
    count_words(bench, options.out)
    for name in options.only or METHODS:
        anew = bool(options.only)
        run(bench, name, options.seeds, options.out, anew, options.most_labels)
        summarise(bench, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
