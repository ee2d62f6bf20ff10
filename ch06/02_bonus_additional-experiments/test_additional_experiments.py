"""One command makes all rows, goes on after a kill, and refuses in one sentence."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

import additional_experiments as command
import experiment_bench
from additional_experiments import (
    COLUMNS,
    RATE_SEEDS,
    SEEDS,
    beside,
    differences,
    main,
)
from course import assets
from course.tables import read, write
from course.testing.programs import variables
from experiment_bench import VariantBench
from experiment_rows import (
    BASE,
    OPT_IN,
    PLANNED,
    RATES,
    ROWS,
    TRIED,
    Experiment,
    changed,
    in_words,
)
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_train import save_checkpoint
from message_data import MESSAGES

RESULTS = Path(__file__).parent / "results"
TABLES = ("runs.csv", "accuracy.csv", "differences.csv", "rates.csv")
TINY = {
    **GPT_CONFIG_124M,
    "context_length": 128,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 5,
    "drop_rate": 0.0,
    "tie_weights": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT for a base, and 44 messages made up here."""
    folder = tmp_path_factory.mktemp("experiments")
    model = initialise_like_gpt2(GPTModel(TINY), torch.Generator().manual_seed(0))
    save_checkpoint(folder / "base", model, tokenizer=tiktoken.get_encoding("gpt2"))
    with (folder / "messages.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "family", "split"])
        for i in range(22):
            split = "train" if i < 12 else "validation" if i < 16 else "test"
            long = " and so on" * (i % 3)
            about = (f"f{i // 2}", split)
            writer.writerow([f"hello {i} at noon{long}", "wanted", *about])
            writer.writerow([f"win {i} euros now", "spam", *about])
    return folder


def words(folder, out, *more):
    """The command's words for the tiny model and its messages."""
    found = ["--data", folder / "messages.csv", "--model", folder / "base"]
    found += ["--cache", folder / "cache", "--out", out, "--epochs", "1", *more]
    return [str(one) for one in found]


@pytest.fixture
def bench(folder):
    return VariantBench(folder / "messages.csv", folder / "cache", trained_on=24)


SMALL = {"30 blocks kept": "4", "18 blocks kept": "3"}


@pytest.fixture(scope="module")
def tables(folder):
    """All tables of all rows with two seeds; the tiny model has five blocks."""
    out = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, blocks in SMALL.items():
            patch.setitem(ROWS, name, changed(ROWS[name], blocks=int(blocks)))
        patch.setitem(ROWS, "cut at 16 tokens", changed(ROWS[BASE], context_length=4))
        patch.setattr(command, "RATE_SEEDS", (0, 6))
        patch.setattr(
            command, "TRIED", {kind: (rates[0],) for kind, rates in TRIED.items()}
        )
        assert main(words(folder, out, "--seeds", "1", "2")) == 0
        assert main(words(folder, out, "--rates")) == 0
        before = {name: read(out / name) for name in TABLES}
        trained = []
        patch.setattr(VariantBench, "train", lambda *given: trained.append(given))
        assert main(words(folder, out, "--seeds", "1", "2")) == 0
        assert main(words(folder, out, "--rates")) == 0
        assert trained == []  # all of it is there
        assert {name: read(out / name) for name in TABLES} == before
    return out


# --- All rows ------------------------------------------------------------------------


def test_one_command_makes_all_rows_like_the_committed_ones(tables):
    runs = read(tables / "runs.csv")
    assert [(r["row"], r["seed"]) for r in runs] == [
        (name, seed) for name in ROWS for seed in "12"
    ]
    accuracy = read(tables / "accuracy.csv")
    assert [row["row"] for row in accuracy] == list(ROWS)
    for row in accuracy:
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        assert (row["messages"], row["families"], row["seeds"]) == ("12", "3", "2")


def test_each_run_says_what_made_it(tables, folder):
    sha256 = assets.sha256_of(folder / "messages.csv")[:12]
    for row in read(tables / "runs.csv"):
        assert row["data_sha256"] == sha256
        assert float(row["seconds"]) >= 0
        assert row["machine"]
        assert row["torch"]
        assert (row["trained_on"], row["asked"]) == ("24", "12")
        assert len(row["said"]) == 12
        assert float(row["lr"]) > 0


def test_a_row_of_differences_for_each_pair_that_is_compared(tables):
    found = read(tables / "differences.csv")
    pairs = [(row["ours"], row["theirs"]) for row in found]
    expected = [(name, BASE) for name in ROWS if name != BASE]
    expected += [pair for pair in PLANNED.values() if pair[1] != BASE]
    assert pairs == expected
    planned = {row["planned"]: (row["ours"], row["theirs"]) for row in found}
    planned.pop("")
    assert planned == PLANNED
    smallest = min(found, key=lambda row: float(row["p_value"]))
    p, corrected = float(smallest["p_value"]), float(smallest["p_holm"])
    assert corrected == pytest.approx(min(1, len(found) * p), rel=0.01)


# --- What must be the same, and what must not ----------------------------------------


def said(bench, folder, seed=1, **choices):
    chosen = {"model": str(folder / "base"), "epochs": 2, "lr": 1e-2, **choices}
    return bench.train(Experiment(**chosen), seed)["said"].tolist()


@pytest.fixture
def exact(monkeypatch):
    """Without bfloat16, whose rounding depends on the shape of a batch."""
    from gpt_class_finetune import calc_loss_batch

    monkeypatch.setattr(experiment_bench, "half_loss", calc_loss_batch)


def margins(bench, folder, monkeypatch, **choices):
    """The logits of the test messages, in place of the verdicts."""
    found = []
    original = experiment_bench.asked_of

    def watched(learner, items):
        with torch.autocast("cpu", enabled=False):
            found.append(original(learner, items))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(experiment_bench, "asked_of", watched)
        said(bench, folder, **choices)
    return found[-1]


@pytest.mark.parametrize(
    "choices",
    [
        {"padding": "none", "batch_size": 1, "accumulation": 8},
        {"batch_size": 4, "accumulation": 2},
        {"ignore_index": -1},
    ],
)
def test_what_must_change_nothing_changes_nothing(
    bench, folder, exact, monkeypatch, choices
):
    common = {"batch_size": 8}
    ours = margins(bench, folder, monkeypatch, **common)
    theirs = margins(bench, folder, monkeypatch, **{**common, **choices})
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max() + 1e-4
    other = margins(bench, folder, monkeypatch, batch_size=2)
    assert np.abs(ours - other).max() > 1e-2  # more updates do


def test_padding_to_the_context_length_changes_no_verdict(bench, folder, exact):
    # The verdicts of the two ways to ask, each with its own batches.
    ours = said(bench, folder)
    assert said(bench, folder, padding="context", context_length=20) == ours


@pytest.mark.parametrize(
    "choices",
    [
        {"token": "first"},
        {"token": "last", "padding": "read", "context_length": 20},
        {"causal_mask": "off"},
        {"causal_mask": "frozen"},
        {"start": "random"},
        {"layers": "last_two_blocks"},
        {"lora_rank": 4},
        {"pooling": "max"},
        {"blocks": 3},
    ],
)
def test_what_must_change_the_model_changes_it(bench, folder, monkeypatch, choices):
    ours = margins(bench, folder, monkeypatch)
    theirs = margins(bench, folder, monkeypatch, **choices)
    assert np.abs(ours - theirs).max() > 1e-4


def test_features_above_kept_ones_are_those_from_ids(bench, folder, tmp_path):
    """They are kept at several heights, each made from the next lower one."""
    model = str(folder / "base")
    low, high = (Experiment(model=model, blocks=n) for n in (2, 5))
    bench.cache = tmp_path / "stepwise"
    bench.inputs(low, bench.model(low, 1), 1)
    stepwise = bench.inputs(high, bench.model(high, 1), 1)
    assert len(list(bench.cache.glob("*.npy"))) == 2
    alone = VariantBench(folder / "messages.csv", tmp_path / "alone", trained_on=24)
    at_once = alone.inputs(high, alone.model(high, 1), 1)
    assert len(list(alone.cache.glob("*.npy"))) == 1
    for (ours, _), (theirs, _) in zip(stepwise, at_once):
        assert torch.allclose(ours, theirs, atol=2e-2)


def test_without_a_causal_mask_a_cut_has_features_of_its_own(bench, folder, tmp_path):
    """Known mistake: the uncut features, whose first tokens heard of what is cut."""
    bench.cache = tmp_path
    model = str(folder / "base")
    whole = Experiment(model=model, causal_mask="off")
    short = changed(whole, context_length=4)
    kept = bench.inputs(whole, bench.model(whole, 1), 1)
    cut = bench.inputs(short, bench.model(short, 1), 1)
    longest = max(range(len(kept)), key=lambda place: len(kept[place][0]))
    assert len(cut[longest][0]) == 4
    assert not torch.allclose(cut[longest][0], kept[longest][0][:4], atol=1e-3)


def test_a_seed_sets_the_same_order_and_head_in_all_rows(bench, folder):
    """Whatever is chosen, so that rows can be compared seed by seed."""
    orders, heads = [], []
    for choices in ({}, {"token": "last"}, {"layers": "all"}, {"lora_rank": 2}):
        experiment = Experiment(model=str(folder / "base"), **choices)
        model = bench.model(experiment, 5)
        heads.append(model.out_head.weight.tolist())
        items = bench.inputs(experiment, model, 5)
        loader = bench._loader(experiment, items, 5)
        orders.append([batch[2].tolist() for batch in loader])
    assert all(one == orders[0] for one in orders)
    assert all(one == heads[0] for one in heads)


def test_the_base_model_is_as_before_after_every_row(bench, folder):
    model = bench.base(str(folder / "base"))[0]
    before = {name: w.clone() for name, w in model.named_parameters()}
    for choices in ({"layers": "all"}, {"lora_rank": 2}, {"causal_mask": "off"}):
        said(bench, folder, **choices)
    again = dict(bench.base(str(folder / "base"))[0].named_parameters())
    assert all(torch.equal(again[name], weight) for name, weight in before.items())
    assert not any("hidden_keys" in vars(b.att) for b in model.trf_blocks)


# --- After a kill --------------------------------------------------------------------

MORTAL = """
import os, signal, sys
import experiment_bench as bench
from additional_experiments import main

where, count = sys.argv[1], int(sys.argv[2])
original = getattr(bench, where)

def watched(*given, **named):
    global count
    count -= 1
    result = original(*given, **named)
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(bench, where, watched)
sys.exit(main(sys.argv[3:]))
"""


def without_time(rows):
    return [{**row, "seconds": ""} for row in rows]


TWO_ROWS = ["--rows", BASE, "last token", "--seeds", "1", "2"]


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory):
    """The runs of two rows and two seeds that nobody killed."""
    out = tmp_path_factory.mktemp("unbroken")
    assert main(words(folder, out, *TWO_ROWS)) == 0
    return read(out / "runs.csv")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("where", "count", "made"),
    [("train_quietly", 4, 3), ("cache_features", 1, 0)],
)
def test_after_a_kill_the_same_command_goes_on(
    folder, tmp_path, monkeypatch, unbroken, where, count, made
):
    """Killed in the fourth training, and while features are made."""
    given = words(folder, tmp_path / "out", *TWO_ROWS)
    given[given.index("--cache") + 1] = str(tmp_path / "cache")
    killed = subprocess.run(
        [sys.executable, "-c", MORTAL, where, str(count), *given],
        env=variables(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    path = tmp_path / "out" / "runs.csv"
    before = read(path) if path.exists() else []
    assert len(before) == made
    trained = []
    original = VariantBench.train

    def watched(self, experiment, seed):
        trained.append((experiment.token, seed))
        return original(self, experiment, seed)

    monkeypatch.setattr(VariantBench, "train", watched)
    assert main(given) == 0
    all_runs = [(token, seed) for token in ("all", "last") for seed in (1, 2)]
    assert trained == all_runs[made:]  # nothing that was finished
    after = read(path)
    assert after[:made] == before
    assert without_time(after) == without_time(unbroken)


def test_other_settings_or_messages_are_other_runs(folder, tmp_path, bench):
    (row,) = [
        command.one_run(
            bench, BASE, Experiment(model=str(folder / "base"), epochs=1), 1
        )
    ]
    same = Experiment(model=str(folder / "base"), epochs=1)
    assert command.is_run_of(row, bench, same, 1)
    assert not command.is_run_of(row, bench, same, 2)
    assert not command.is_run_of(row, bench, changed(same, epochs=2), 1)
    assert not command.is_run_of(row, bench, changed(same, lr=1e-5), 1)
    bench.sha256 = "0" * 64
    assert not command.is_run_of(row, bench, same, 1)


# --- One sentence --------------------------------------------------------------------


def refusal(capsys, *given):
    """What the command says, in one line, and does not do."""
    assert main([*map(str, given)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--trainable-layers head --lora-rank 8", "lets none learn"),
        ("--lora-rank -1", "no rank"),
        ("--pooling max --token last", "leave one of the two out"),
        ("--padding none", "give --batch-size 1"),
        ("--blocks 1 --trainable-layers last_two_blocks", "keep more"),
        ("--causal-mask frozen --trainable-layers all", "give on or off"),
        ("--ignore-index 1", "is a class"),
        ("--rows base --token last", "both given"),
        ("--rates --token last", "both given"),
        ("--rows nothing", "There is no row 'nothing'"),
        ("--model gpt2-smal --rows base", "did you mean 'gpt2-small-124M'"),
        ("--model no/such/folder", "no file or folder"),
        ("--data no.csv", "no.csv"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(capsys, tmp_path, given, said):
    common = ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    assert said in refusal(capsys, *given.split(), *common)
    assert not (tmp_path / "out" / "runs.csv").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--lr", "nan"),
        ("--batch-size", "-2"),
        ("--token", "middle"),
        ("--trainable-layers", "some"),
        ("--seeds", "x"),
        ("--context-length", "0"),
    ],
)
def test_argparse_names_the_option(capsys, option, value):
    with pytest.raises(SystemExit) as end:
        main([option, value])
    assert end.value.code == 2
    assert f"argument {option}" in capsys.readouterr().err


def test_what_the_model_cannot_do_is_said(capsys, folder, tmp_path):
    given = words(folder, tmp_path)
    assert "base has 5 blocks" in refusal(capsys, *given, "--blocks", "9")
    said = refusal(capsys, *given, "--context-length", "200")
    assert "128 tokens: give less" in said


def test_a_model_that_must_be_fetched_says_so(capsys, tmp_path):
    common = ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    assert main([*map(str, (*common, "--rows", "GPT-2 XL"))]) in (1, 2)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "gpt2-xl-1558M" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not,a,table\n1,2,3\n", "line 2: the columns"),
        (",".join(COLUMNS) + "\nbase,1\n", "line 2: the columns"),
        ("\x00\xff", "runs.csv"),
        ("{verdicts}", "said must hold 12 times 0 or 1"),
    ],
)
def test_a_broken_table_is_refused_and_left_as_it_is(
    capsys, folder, tables, tmp_path, text, said
):
    path = tmp_path / "runs.csv"
    if text == "{verdicts}":
        rows = read(tables / "runs.csv")
        write(path, [rows[0], {**rows[1], "said": "0101"}])
    else:
        path.write_bytes(text.encode("latin-1"))
    before = path.read_bytes()
    assert said in refusal(capsys, *words(folder, tmp_path))
    assert path.read_bytes() == before


def test_damaged_features_are_told_by_name(capsys, folder, tmp_path):
    given = words(folder, tmp_path / "out", "--rows", BASE, "--seeds", "1")
    given[given.index("--cache") + 1] = str(tmp_path / "cache")
    assert main(given) == 0
    capsys.readouterr()
    (path,) = (tmp_path / "cache").glob("*.npy")
    path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "out" / "runs.csv").unlink()
    assert "is damaged: delete it" in refusal(capsys, *given)


def test_three_classes_are_refused(capsys, folder, tmp_path):
    path = tmp_path / "three.csv"
    rows = "".join(f"text {i},{'abc'[i % 3]}\n" for i in range(30))
    path.write_text("text,label\n" + rows, encoding="utf-8")
    given = words(folder, tmp_path / "out")
    given[given.index("--data") + 1] = str(path)
    assert "has 3 classes (a, b, c)" in refusal(capsys, *given)


# --- A row of your own ---------------------------------------------------------------


def test_choices_make_a_row_of_your_own_with_the_names_of_the_book(
    folder, tmp_path, capsys
):
    given = ["--trainable_layers", "all", "--num_epochs", "1", "--lora_rank", "2"]
    given = words(folder, tmp_path, *given, "--context_length", "30", "--seeds", "4")
    assert main(given) == 0
    (row,) = read(tmp_path / "runs.csv")
    assert (row["layers"], row["lora_rank"], row["seed"]) == ("all", "2", "4")
    assert "layers=all" in row["row"]
    assert row["lr"] == f"{RATES['all', True]:g}"
    assert not (tmp_path / "differences.csv").exists()


def test_the_list_names_all_rows_and_trains_nothing(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:28].strip() for line in lines] == [*ROWS, *OPT_IN]
    assert in_words(ROWS["everything"]) == "layers=all"


# --- Statistics ----------------------------------------------------------------------


def test_two_rows_are_compared_message_by_message_and_seed_by_seed():
    """A seed that is unlucky for both takes nothing from their difference."""
    draw = np.random.default_rng(0)
    theirs = draw.random((3, 200)) < np.array([[0.9], [0.6], [0.8]])
    ours = theirs | (draw.random((3, 200)) < 0.1)
    families = [i // 5 for i in range(200)]
    row = beside(ours, theirs, families)
    assert row["difference"] == pytest.approx(100 * (ours.mean() - theirs.mean()))
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert row["p_value"] < 0.001
    same = beside(theirs, theirs, families)
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    assert same["p_value"] == 1


def test_a_difference_is_clear_only_after_the_correction():
    """One family in ten favours the row: p near 0.03 alone, no more among many."""
    right = {BASE: {"1": np.zeros(60, dtype=bool)}}
    families = [i // 10 for i in range(60)]
    names = [name for name in ROWS if name != BASE]
    for name in names:
        right[name] = {"1": np.zeros(60, dtype=bool)}
    right[names[0]] = {"1": np.ones(60, dtype=bool)}
    (alone,) = differences({BASE: right[BASE], names[0]: right[names[0]]}, families)
    assert float(alone["p_value"]) == pytest.approx(2 / 2**6, abs=0.005)
    assert alone["verdict"] == "higher"
    among = differences(right, families)
    assert {row["verdict"] for row in among} == {"within noise"}
    assert float(among[0]["p_value"]) == float(alone["p_value"])


# --- The committed tables ------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    return {name: read(RESULTS / name) for name in TABLES}


@pytest.fixture(scope="module")
def whole_bench():
    return VariantBench(None, Path("none"))


def test_the_committed_runs_are_of_all_rows_and_seeds(committed, whole_bench):
    runs = committed["runs.csv"]
    sha256 = assets.sha256_of(assets.fetch(MESSAGES))[:12]
    made = [(row["row"], row["seed"]) for row in runs]
    assert sorted(made) == sorted((name, str(n)) for name in ROWS for n in SEEDS)
    for row in runs:
        experiment, number = ROWS[row["row"]], int(row["seed"])
        assert command.is_run_of(row, whole_bench, experiment, number), row["row"]
        assert (row["trained_on"], row["asked"]) == ("400", "895")
        assert row["data_sha256"] == sha256
        assert row["machine"]
        assert float(row["seconds"]) > 0


def test_the_committed_tables_follow_from_the_committed_runs(
    committed, whole_bench, tmp_path
):
    write(tmp_path / "runs.csv", committed["runs.csv"])
    command.write_tables(whole_bench, tmp_path)
    for name in ("accuracy.csv", "differences.csv"):
        assert read(tmp_path / name) == committed[name], name


def test_the_committed_accuracies_follow_from_what_was_said(committed, whole_bench):
    targets = whole_bench.targets[whole_bench.parts["test"]]
    for row in committed["runs.csv"]:
        right = np.array([*row["said"]], dtype=int) == targets
        assert row["accuracy"] == f"{100 * right.mean():.2f}"


def test_the_rates_of_the_rows_are_the_best_of_those_tried(committed):
    """By the mean of the seeds; none lies at the end of what was tried."""
    rows = committed["rates.csv"]
    assert not {row["seed"] for row in rows} & {str(number) for number in SEEDS}
    assert {row["epochs"] for row in rows} == {str(Experiment.epochs)}
    assert set(RATES) == set(TRIED)
    for kind, rates in TRIED.items():
        found = {rate: [] for rate in rates}
        for row in rows:
            if (row["layers"], row["lora"] == "yes") == kind:
                found[float(row["lr"])].append(float(row["validation"]))
        assert {len(one) for one in found.values()} == {len(RATE_SEEDS)}, kind
        means = {rate: np.mean(one) for rate, one in found.items()}
        assert means[RATES[kind]] == max(means.values()), kind
        assert min(rates) < RATES[kind] < max(rates), kind
