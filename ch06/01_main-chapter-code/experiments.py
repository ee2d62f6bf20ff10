"""Which classifier is right how often? The tables of chapter 6.

    python3 -m course run ch06/01_main-chapter-code/experiments.py

Every method learns from the same training messages, those of `data/messages-2.csv`, and
is judged on the same test messages. What has a setting to choose (the strength of a
regression, the heights that are read) is tried on five folds: the families of the
training and validation part are dealt into five heaps, and each heap is asked by what
the four others taught. Of what is trained only the chapter's own way was tried, and the
same with four blocks that learn, each with two rates, on the first fold and with one
seed; `last block` and `first token` train at the rate of the chapter's way, `head only`
at one that was not compared. The test part chooses nothing.

* `settings.csv`: what was tried, and its accuracy on the folds;
* `seeds.csv`: each run; what is trained has three seeds and the default five, which set
  the head's weights and the order of the messages; `per_mille` has the probability of
  spam for each test message, then for each of the other kinds, cut to whole thousandths
  (500 and more says spam); both files of messages are named by their SHA-256;
* `accuracy.csv`: a row for each method, its mean, a 95% interval for which families of
  messages and seeds were drawn anew (bootstrap), and the AUC;
* `differences.csv`: the default beside the others, on the same messages: the mean
  difference of single trainings, such an interval (seeds of both are drawn), and a
  p-value for which whole families change sides; `only_..._right` count messages by the
  vote of the seeds;
* `mistakes.csv`: the test messages that the default got wrong, and how often;
* `where.csv`: the frozen model read at each height, at the last token and as the mean;
* `learning.csv`: how much more messages bring: three draws of families for each share,
  each with a seed of its own, at the settings that all messages chose (which favours
  the small shares a little); the whole part from `seeds.csv`;
* `models.csv`: what other pretrained models, named by `--beside`, bring when they are
  read frozen as this one is, at heights in proportion, alone and with the letters;
* `others.csv`: what it was not made for: parts of the test part, and messages of other
  kinds, in `other-messages.csv`.

What a table has is not made again, so a run that was stopped goes on; rows that other
messages made are left out. `--only NAME` makes one method anew. With few seeds a
bootstrap draws their spread too narrow (by a tenth for five, a fifth for three).
Features of the frozen model are kept in `--cache`. Takes about
half an hour on one core of the machine in the tables, and 5 GB of memory.
"""

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from course import tables
from family_statistics import p_value, paired_interval
from gpt_class_finetune import bootstrap_interval
from message_bench import OUTSIDE, PLACES, FeatureBench
from message_ways import (
    InWords,
    Larger,
    Regression,
    Sum,
    Trained,
    heights,
    letter_regression,
    marks,
    pooled,
    scaled_regression,
    texts,
    word_regression,
)
from script_tools import runs_folder

RESULTS = Path(__file__).parent / "results"
SEEDS = (1, 2, 3, 4, 5)
DEFAULT = "18 blocks, all tokens"
OPPONENT = "words and letters"
BEST_FROZEN = "frozen, mean, and letters"
LEARNING = ("words", OPPONENT, "frozen, mean", BEST_FROZEN, DEFAULT)
SEARCH_SEED = 123
SHARES, DRAWS = (0.125, 0.25, 0.5), 3

# --- The methods and their settings --------------------------------------------------

HEIGHTS = ((16,), (12, 20), (8, 12, 16, 20), (4, 8, 12, 16, 20, 24))
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)
RATES = ((1.5e-3, 3), (4e-3, 3))
FOUR_RATES = ((5e-4, 3), (1.5e-3, 3))
METHODS: dict[str, Any] = {
    "larger class": Larger(),
    "form alone": Regression(marks, scaled_regression),
    "words": Regression(texts, word_regression),
    OPPONENT: Regression(
        texts, letter_regression, tuple((c,) for c in (1, 10, 30, 100))
    ),
    "frozen, last token": Regression(
        pooled(PLACES[0]), scaled_regression, heights((30,), strengths=STRENGTHS)
    ),
    "frozen, mean": Regression(
        pooled(PLACES[1]), scaled_regression, heights(*HEIGHTS, strengths=STRENGTHS)
    ),
}
METHODS |= {
    BEST_FROZEN: Sum({name: METHODS[name] for name in ("frozen, mean", OPPONENT)}),
    DEFAULT: Trained(1, RATES, kept=18, mean=True, seeds=5),
    "18 blocks, four learn": Trained(4, FOUR_RATES, kept=18, mean=True),
    "last block": Trained(1, RATES[:1]),
    "head only": Trained(0, ((3e-3, 10),)),
    "first token": Trained(1, RATES[:1], first=True),
    "asked in words": InWords(),
}


# --- Choosing, by folds of families --------------------------------------------------


def choose(bench, name, out, anew=False):
    """The setting of a method that is right most often on the folds.

    What is trained is tried on the first fold of five, with one seed.
    """
    way, path = METHODS[name], out / "settings.csv"
    if len(way.settings) == 1:
        return way.settings[0]
    tried = {row["setting"]: row for row in rows_of(path) if row["method"] == name}
    if anew or any(str(setting) not in tried for setting in way.settings):
        folds = bench.folds()[: 1 if isinstance(way, Trained) else 5]
        found = []
        for setting in way.settings:
            start = time.perf_counter()
            right = on_folds(bench, way, setting, folds)
            found.append(
                {
                    "method": name,
                    "setting": str(setting),
                    "folds": len(folds),
                    "asked": len(right),
                    "accuracy": percent(right.mean()),
                    "seconds": f"{time.perf_counter() - start:.0f}",
                    "data_sha256": bench.sha256[:12],
                }
            )
            print(name, setting, found[-1]["accuracy"], "% on the folds", flush=True)
        replaced(path, found)
        tried = {row["setting"]: row for row in found}
    return max(way.settings, key=lambda one: float(tried[str(one)]["accuracy"]))


def on_folds(bench, way, setting, folds):
    """Which messages are right when each fold is asked by what the others taught."""
    right = []
    for known, asked in folds:
        chances = way.chances(bench, setting, known, asked, SEARCH_SEED)
        right.append((chances > 0) == bench.targets[asked])
    return np.concatenate(right)


# --- Runs ----------------------------------------------------------------------------


def run(bench, name, seeds, out, anew=False):
    """Train with each seed that has no row yet; ask the test and the other messages."""
    way, path = METHODS[name], out / "seeds.csv"
    known, asked = bench.places("train"), bench.places("test", "outside")
    for part in getattr(way, "ways", ()):  # a sum asks its parts, as they are alone
        bench.chosen[part] = choose(bench, part, out)
    bench.chosen[name] = choose(bench, name, out, anew)
    made = [row for row in rows_of(path) if row["method"] == name and not anew]
    for seed in seeds[: way.seeds]:
        if any(row["seed"] == str(seed) for row in made):
            continue
        start = time.perf_counter()
        chances = way.chances(bench, bench.chosen[name], known, asked, seed)
        row = {
            "method": name,
            "seed": seed,
            "setting": str(bench.chosen[name]),
            "accuracy": "",
            "seconds": f"{time.perf_counter() - start:.0f}",
            **shas_of(bench),
            "per_mille": " ".join(
                map(str, (1000 / (1 + np.exp(-chances))).astype(int))
            ),
        }
        right = answers_of([row], bench)[0]
        row["accuracy"] = percent(right[: len(bench.places("test"))].mean())
        made += texts_of([row])
        replaced(path, made)
        print(f"{name}, seed {seed}: {row['accuracy']} %", flush=True)


def shares_of(rows):
    """The probabilities of spam in some rows of `seeds.csv`, (S, N)."""
    return np.array([row["per_mille"].split() for row in rows]).astype(int) / 1000


def answers_of(rows, bench):
    """Which messages of the test and the other ones are right, (S, N)."""
    asked = bench.places("test", "outside")
    return (shares_of(rows) >= 0.5) == bench.targets[asked]


# --- Tables that follow from the runs -------------------------------------------------


def write_accuracy(bench, out):
    """`accuracy.csv` and `differences.csv`, from `seeds.csv`."""
    tested = len(bench.places("test"))
    families = bench.families[bench.places("test")]
    rows, right = rows_of(out / "seeds.csv"), {}
    accuracy, differences = [], []
    for name in METHODS:
        mine = [row for row in rows if row["method"] == name]
        if not mine:
            continue
        right[name] = answers_of(mine, bench)[:, :tested]
        low, high = bootstrap_interval(right[name], families)
        accuracy.append(
            {
                "method": name,
                "setting": mine[0]["setting"],
                "seeds": len(mine),
                "messages": tested,
                "families": len(set(families)),
                "accuracy": percent(right[name].mean()),
                "low": percent(low),
                "high": percent(high),
                "auc": percent(auc(shares_of(mine)[:, :tested], bench)),
                "seconds": sum(int(row["seconds"]) for row in mine),
                "machine": tables.facts()["machine"],
                "data_sha256": bench.sha256[:12],
            }
        )
    tables.write(out / "accuracy.csv", accuracy)
    for name, theirs in right.items():
        if DEFAULT in right and name != DEFAULT:
            differences.append(beside(right[DEFAULT], name, theirs, families))
    if differences:
        tables.write(out / "differences.csv", differences)


def auc(shares, bench):
    """In which share of pairs the spam message gets more, the mean over runs."""
    targets = bench.targets[bench.places("test")]
    return np.mean([roc_auc_score(targets, run) for run in shares])


def beside(ours, name, theirs, families):
    """A row of `differences.csv`, from which messages are right, (S, N) and (R, N)."""
    low, high = paired_interval(ours, theirs, families)
    most = [runs.mean(axis=0) > 0.5 for runs in (ours, theirs)]
    return {
        "ours": DEFAULT,
        "theirs": name,
        "difference": percent(ours.mean() - theirs.mean()),
        "low": percent(low),
        "high": percent(high),
        "only_ours_right": int((most[0] & ~most[1]).sum()),
        "only_theirs_right": int((most[1] & ~most[0]).sum()),
        "p_value": f"{p_value(ours.mean(0) - theirs.mean(0), families):.3g}",
    }


def write_mistakes(bench, out):
    """`mistakes.csv`: what the default got wrong in the test part."""
    rows = rows_of(out / "seeds.csv")
    places = bench.places("test")
    right = answers_of([r for r in rows if r["method"] == DEFAULT], bench)
    other = answers_of([r for r in rows if r["method"] == OPPONENT], bench)[0]
    wrong = (~right[:, : len(places)]).sum(axis=0)
    columns = ("label", "kind", "family", "text")
    tables.write(
        out / "mistakes.csv",
        [
            {
                "wrong_of_seeds": f"{wrong[i]} of {len(right)}",
                OPPONENT: "right" if other[i] else "wrong",
                **{name: bench.messages[name].get(places[i], "") for name in columns},
            }
            for i in np.argsort(-wrong, kind="stable")
            if wrong[i] > 0
        ]
        or [dict.fromkeys(("wrong_of_seeds", OPPONENT, *columns), "")],
    )


def write_others(bench, out):
    """`others.csv`: shares right on parts of the test part and on other kinds."""
    rows = rows_of(out / "seeds.csv")
    asked = bench.places("test", "outside")
    messages, spam = bench.messages.iloc[asked], bench.targets[asked] == 1
    tested = np.arange(len(asked)) < len(bench.places("test"))
    words = messages["text"].str.split().str.len().to_numpy()
    known = set(bench.messages["language"].iloc[bench.places("train")])
    groups = {
        "test part": tested,
        "test part, fewer than 8 words": tested & (words < 8),
        "test part, more than 30 words": tested & (words > 30),
        "test part, not in English": tested & messages["language"].ne("en").to_numpy(),
        "test part, language not in training": tested
        & ~messages["language"].isin(known).to_numpy(),
    }
    for group in sorted(set(messages["group"][~tested])):
        groups[group] = messages["group"].eq(group).to_numpy()
    found = []
    for method in (DEFAULT, OPPONENT, BEST_FROZEN):
        mine = [r for r in rows if r["method"] == method]
        right = answers_of(mine, bench) if mine else None
        for group, inside in groups.items():
            if right is not None and inside.any():
                few = right[:, inside], bench.families[asked][inside]
                low, high = bootstrap_interval(*few)
                row = {"method": method, "group": group, "messages": int(inside.sum())}
                row |= {"accuracy": percent(few[0].mean())}
                row |= {"low": percent(low), "high": percent(high)}
                for name, side in (("wanted_lost", ~spam), ("spam_missed", spam)):
                    some = right[:, inside & side]
                    row[name] = percent(1 - some.mean()) if some.size else ""
                found.append(row)
    if found:
        tables.write(out / "others.csv", found)


def write_where(bench, out):
    """`where.csv`: a regression on each second height, at both places."""
    if any(r["data_sha256"] == bench.sha256[:12] for r in rows_of(out / "where.csv")):
        return
    known, asked = bench.places("train"), bench.places("test")
    L, found = len(bench.base[0].trf_blocks), []
    for place in PLACES:
        way = Regression(pooled(place), scaled_regression)
        for level in range(0, L + 1, 2 if L > 4 else 1):
            setting = ((level,), 0.03)
            chances = way.chances(bench, setting, known, asked, None)
            right = chances > 0, bench.targets[asked] == 1
            folds = on_folds(bench, way, setting, bench.folds())
            row = {"place": place, "blocks": level, "folds": percent(folds.mean())}
            row["accuracy"] = percent((right[0] == right[1]).mean())
            found.append(row | {"data_sha256": bench.sha256[:12]})
    tables.write(out / "where.csv", found)


def write_learning(bench, out, names, anew=False):
    """`learning.csv`: families of the training part drawn, in several shares."""
    path, asked = out / "learning.csv", bench.places("test")
    known = bench.places("train")
    families = bench.families[known]
    for name in names:
        made = [r for r in rows_of(path) if r["method"] == name and not anew]
        made = [r for r in made if r["share"] != "1.0"]
        for share, draw in [(s, d) for s in SHARES for d in range(DRAWS)]:
            key = {"method": name, "share": str(share), "draw": str(draw)}
            if any(key.items() <= row.items() for row in made):
                continue
            order = np.random.default_rng(draw).permutation(sorted(set(families)))
            some = set(order[: math.ceil(share * len(order))])
            places = known[[one in some for one in families]]
            way, setting = METHODS[name], bench.chosen[name]
            chances = way.chances(bench, setting, places, asked, SEARCH_SEED + draw)
            right = (chances > 0) == bench.targets[asked]
            row = key | {"messages": len(places), "families": len(some)}
            row |= {"accuracy": percent(right.mean())}
            made.append(row | {"data_sha256": bench.sha256[:12]})
            replaced(path, texts_of(made))
        runs = [r for r in rows_of(out / "seeds.csv") if r["method"] == name]
        right = answers_of(runs, bench)[:, : len(asked)]
        row = {"method": name, "share": "1.0", "draw": "0", "messages": len(known)}
        row |= {"families": len(set(families)), "accuracy": percent(right.mean())}
        made.append(row | {"data_sha256": bench.sha256[:12]})
        replaced(path, texts_of(made))
        print(f"learning curve of {name}", flush=True)


def write_models(bench, others, out):
    """`models.csv`: other pretrained models, read frozen at the same messages."""
    path = out / "models.csv"
    kept = [r for r in rows_of(path) if r["data_sha256"] == bench.sha256[:12]]
    depth = len(bench.base[0].trf_blocks)
    for one in [bench, *others]:
        known = any(row["model"] == Path(one.model_name).name for row in kept)
        if not known:
            kept += texts_of(model_rows(one, depth))
            tables.write(path, kept)


def model_rows(bench, depth):
    """Rows of `models.csv`; `HEIGHTS` belong to a model of `depth` blocks."""
    known, asked = bench.places("train"), bench.places("test")
    families, model = bench.families[asked], bench.base[0]
    L = len(model.trf_blocks)
    levels = [[round(level * L / depth) for level in one] for one in HEIGHTS]
    sets = [tuple(dict.fromkeys(one)) for one in levels]
    ways = {
        "frozen, mean": Regression(
            pooled(PLACES[1]), scaled_regression, heights(*sets, strengths=STRENGTHS)
        ),
        OPPONENT: METHODS[OPPONENT],
    }
    scores, found = {}, []
    for name, way in ways.items():
        for setting in way.settings:
            right = on_folds(bench, way, setting, bench.folds())
            scores[name, setting] = right.mean()
        bench.chosen[name] = max(way.settings, key=lambda one: scores[name, one])
    ways[BEST_FROZEN] = Sum(dict(ways))
    parts = {*model.parameters()}
    for name in ("frozen, mean", BEST_FROZEN):
        setting = bench.chosen.get(name, ())
        chances = ways[name].chances(bench, setting, known, asked, None)
        right = (chances > 0) == bench.targets[asked]
        low, high = bootstrap_interval(right[None], families)
        found.append(
            {
                "model": Path(bench.model_name).name,
                "parameters": sum(one.numel() for one in parts),
                "in_blocks": sum(one.numel() for one in model.trf_blocks.parameters()),
                "method": name,
                "setting": str(setting),
                "folds": percent(scores[name, setting]) if setting else "",
                "messages": len(asked),
                "accuracy": percent(right.mean()),
                "low": percent(low),
                "high": percent(high),
                "auc": percent(roc_auc_score(bench.targets[asked], chances)),
                "machine": tables.facts()["machine"],
                "data_sha256": bench.sha256[:12],
            }
        )
    return found


def shas_of(bench):
    """The columns that say which messages a run has read."""
    outside = {"others_sha256": bench.outside_sha256[:12]}
    return {"data_sha256": bench.sha256[:12]} | outside


def texts_of(rows):
    """Rows as they are read again."""
    return [{key: str(value) for key, value in row.items()} for row in rows]


def percent(share):
    """A share as a figure of a table."""
    return f"{100 * share:.2f}"


def rows_of(path):
    """The rows of a table, or none."""
    return tables.read(path) if path.exists() else []


def replaced(path, rows):
    """Write rows in place of those of the same methods, in the order of `METHODS`."""
    tables.replace(path, rows, "method", list(METHODS))


# --- As a script ---------------------------------------------------------------------


def main(arguments=None):
    """Compute the tables; return the exit code."""
    parser = tables.each_method(__doc__, RESULTS, METHODS, SEEDS)
    parser.add_argument("--epochs", type=int, help="for every trained method")
    parser.add_argument("--outside", type=Path, default=OUTSIDE, help="(%(default)s)")
    parser.add_argument("--beside", action="append", default=[], help="other models")
    cache = runs_folder() / "ch06-features"
    parser.add_argument("--cache", type=Path, default=cache, help="(%(default)s)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = FeatureBench(options.data, options.model, options.cache, options.outside)
    bench.epochs = options.epochs
    bench.levels = levels_of(bench)
    for table in ("settings.csv", "seeds.csv", "learning.csv"):
        forget_other_messages(options.out / table, bench)
    write_where(bench, options.out)
    anew = bool(options.only)
    for name in options.only or METHODS:
        run(bench, name, options.seeds, options.out, anew)
        write_accuracy(bench, options.out)
    there = {row["method"] for row in rows_of(options.out / "seeds.csv")}
    if there >= {DEFAULT, OPPONENT}:
        write_mistakes(bench, options.out)
    write_others(bench, options.out)
    if options.beside:
        names = (options.data, options.cache, options.outside)
        beside = [FeatureBench(names[0], m, *names[1:]) for m in options.beside]
        write_models(bench, beside, options.out)
    curves = [name for name in LEARNING if name in (options.only or METHODS)]
    write_learning(bench, options.out, curves, anew)
    return 0


def forget_other_messages(path, bench):
    """Leave out the rows that other files of messages made."""
    rows, ours = rows_of(path), shas_of(bench).items()
    kept = [r for r in rows if all(r.get(key, value) == value for key, value in ours)]
    if rows and not kept:
        path.unlink()
    elif kept != rows:
        tables.write(path, kept)


def levels_of(bench):
    """The heights below which nothing learns, of all that is trained on features."""
    L = len(bench.base[0].trf_blocks)
    trained = [way for way in METHODS.values() if isinstance(way, Trained)]
    depths = [(way, min(way.kept or L, L)) for way in trained]
    return sorted({depth - way.learning_blocks(depth) for way, depth in depths})


if __name__ == "__main__":
    sys.exit(main())
