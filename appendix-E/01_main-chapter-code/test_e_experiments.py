"""The comparison runs and goes on, and its committed tables are what they are named."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from torch import nn

from course.assets import fetch, sha256_of
from course.tables import read
from course.testing.experiment_scripts import other_columns
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_train import save_checkpoint

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
MESSAGES = ("rates", "runs", "costs", "accuracy", "singular_values")
INSTRUCTIONS = ("instruction_rates", "instruction_runs", "instructions")
TABLES = [f"{name}.csv" for name in (*MESSAGES, *INSTRUCTIONS)]
COMMITTED = [name for name in TABLES if (RESULTS / name).exists()]
TINY = {
    **GPT_CONFIG_124M,
    "context_length": 128,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
    "tie_weights": True,
}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Options for a tiny GPT, 44 messages and 24 entries made up here."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    model = initialise_like_gpt2(GPTModel(TINY))
    save_checkpoint(folder / "base", model, tokenizer=tiktoken.get_encoding("gpt2"))
    rows = [["text", "label", "family", "split"]]
    for i in range(22):
        split = "train" if i < 12 else "validation" if i < 16 else "test"
        rows.append([f"hello {i} " + "at noon " * (i % 3), "wanted", f"f{i}", split])
        rows.append([f"win {i} euros now", "spam", f"f{i}", split])
    with (folder / "messages.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    entries = [
        {
            "instruction": f"Say yes {i}.",
            "input": "",
            "output": "Yes.",
            "answers": ["yes"],
            "family": f"f{i // 2}",
            "split": ("train", "train", "validation", "test")[i // 2 % 4],
        }
        for i in range(24)
    ]
    (folder / "entries.json").write_text(json.dumps(entries), encoding="utf-8")
    found = ["--data", folder / "messages.csv", "--model", folder / "base", "--tiny"]
    found += ["--instructions", folder / "entries.json", "--max-new-tokens", "2"]
    return [str(one) for one in [*found, "--rank", "2", "--seeds", "1", "2"]]


@pytest.fixture(scope="module")
def tiny(experiments, made_up, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    assert experiments.main([*made_up, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def bench(experiments, made_up, tmp_path):
    parser = experiments.tables.each_method(None, tmp_path, experiments.METHODS, [1])
    options, _ = parser.parse_known_args(made_up)
    options.dtype, options.size, options.tiny = torch.float32, "table", True
    return experiments.MessageBench(options)


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tiny):
    assert other_columns(tiny, RESULTS, COMMITTED) == []
    assert {path.name for path in RESULTS.glob("*.csv")} <= set(TABLES)
    assert {path.name for path in tiny.glob("*.csv")} == set(TABLES)
    rows = read(tiny / "accuracy.csv")
    assert [row["method"] for row in rows] == [*experiments.METHODS]
    for row in rows:
        low, mean, high = (
            float(row[key]) for key in ("accuracy_low", "accuracy", "accuracy_high")
        )
        assert 0 <= low <= mean <= high <= 100
        assert (row["seeds"], row["answers"], row["trained_on"]) == ("2", "12", "6")
    (row,) = read(tiny / "instructions.csv")
    assert (row["seeds"], row["answers"], row["trained_on"]) == ("2", "6", "12")


def test_a_run_that_was_stopped_goes_on_where_it_was(
    experiments, made_up, tiny, tmp_path, monkeypatch
):
    """It repeats nothing, and ends with what an unbroken run has."""
    calls, train, most = [], experiments.train, 7

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == most:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(experiments, "train", counted)
    only = [part for name in experiments.METHODS for part in ("--only", name)]
    with pytest.raises(KeyboardInterrupt):
        experiments.main([*made_up, *only, "--out", str(tmp_path)])
    kept = read(tmp_path / "rates.csv")
    assert experiments.main([*made_up, *only, "--out", str(tmp_path)]) == 0
    assert read(tmp_path / "rates.csv")[: len(kept)] == kept
    rows = {name: read(tmp_path / f"{name}.csv") for name in ("rates", "runs")}
    assert len(calls) == len(rows["rates"]) + len(rows["runs"]) + 1
    for name, found in rows.items():
        for row, unbroken in zip(found, read(tiny / f"{name}.csv"), strict=True):
            same = {key for key in row if "seconds" not in key}
            assert {key: row[key] for key in same} == {
                key: unbroken[key] for key in same
            }


def test_what_is_there_is_not_made_again(experiments, made_up, tiny, monkeypatch):
    before = {name: (tiny / name).read_text(encoding="utf-8") for name in TABLES}
    monkeypatch.setattr(experiments, "load_pretrained", None)
    assert experiments.main([*made_up, "--out", str(tiny)]) == 0
    after = {name: (tiny / name).read_text(encoding="utf-8") for name in TABLES}
    assert after == before


def test_what_learns_is_what_the_name_says(experiments, bench):
    """LoRA trains the head, and two matrices beside each linear layer of blocks."""
    learned = {}
    for name, way in experiments.METHODS.items():
        model, _, _ = bench.learner(way, seed=1)
        learned[name] = {n for n, p in model.named_parameters() if p.requires_grad}
    head = {"out_head.weight", "out_head.bias", "final_norm.scale", "final_norm.shift"}
    assert learned["head only"] == head
    assert learned["everything"] == {n for n, _ in bench.base.named_parameters()}
    block = learned["last block"] - head
    assert block
    assert all(n.startswith("trf_blocks.2.") for n in block)
    layers = [
        module
        for module in bench.base.trf_blocks[1:].modules()
        if isinstance(module, nn.Linear)
    ]
    for rank in (1, 4, 16):
        name = f"LoRA, rank {rank}"
        adapters = learned[name] - head
        assert learned[name] >= head
        assert len(adapters) == 2 * len(layers)
        assert adapters.isdisjoint(learned["everything"])
        model, _, _ = bench.learner(experiments.METHODS[name], seed=1)
        found = dict(model.named_parameters())
        sizes = sum(one.in_features + one.out_features for one in layers)
        assert sum(found[one].numel() for one in adapters) == rank * sizes


@pytest.mark.parametrize("name", ["last block", "LoRA, rank 4", "everything"])
def test_training_changes_what_learns_and_never_the_base(experiments, bench, name):
    base = {key: one.clone() for key, one in bench.base.state_dict().items()}
    model, learner, data = bench.learner(experiments.METHODS[name], seed=1)
    start = {key: one.clone() for key, one in model.named_parameters()}
    experiments.train(learner, data[0], 0.01, 1, bench)
    for key, one in model.named_parameters():
        assert torch.equal(one, start[key]) != one.requires_grad, key
    for key, one in bench.base.state_dict().items():
        assert torch.equal(one, base[key]), key


@pytest.mark.parametrize("name", ["head only", "last block", "LoRA, rank 4"])
def test_features_are_what_the_whole_model_would_read(experiments, bench, name):
    """Trained on kept features or on ids, a model becomes the same."""
    way = experiments.METHODS[name]
    model, learner, data = bench.learner(way, seed=1)
    whole, _, _ = bench.learner(way, seed=1)
    experiments.train(learner, data[0], 0.01, 1, bench)
    experiments.train(whole, bench.ids[0], 0.01, 1, bench)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_batches_hold_messages_of_about_the_same_length(experiments):
    lengths = torch.randint(1, 60, (50,)).tolist()

    def passes(seed):
        batches = experiments.LengthBatches(
            lengths, 8, torch.Generator().manual_seed(seed)
        )
        return list(batches), list(batches)

    first, second = passes(1)
    for one in (first, second):
        assert len(one) == 7
        assert sorted(place for batch in one for place in batch) == list(range(50))
        ranges = sorted((min(found), max(found)) for found in of(lengths, one))
        assert all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:]))
    assert first != second
    assert passes(1) == (first, second)
    assert passes(2)[0] != first


def of(lengths, batches):
    """The lengths of the messages of each batch."""
    return [[lengths[place] for place in batch] for batch in batches]


def test_answers_come_in_the_order_of_the_messages(experiments, bench):
    model, _, data = bench.learner(experiments.METHODS["everything"], seed=1)
    nn.init.normal_(model.out_head.weight)
    right, loss = experiments.judge(model, data[2], torch.float32)
    losses = []
    for place, (ids, target) in enumerate(data[2]):
        with torch.no_grad():
            logits = model(ids[None])[0, -1]
        assert right[place] == (logits.argmax() == target), place
        losses.append(nn.functional.cross_entropy(logits, torch.tensor(target)))
    assert loss == pytest.approx(float(sum(losses)) / len(losses), abs=1e-5)
    assert 0 < right.mean() < 1


def test_a_search_ends_between_worse_neighbours(experiments, tmp_path):
    tried = []

    def trial(rate):
        tried.append(rate)
        return {"val_loss": abs(np.log10(rate) + 4.1)}  # lowest near 1e-4

    path, key = tmp_path / "rates.csv", {"method": "one"}
    assert experiments.search(path, key, 3e-3, trial) == 1e-4
    assert set(tried) == {1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5}
    assert len(tried) == 6
    assert experiments.search(path, key, 3e-3, trial) == 1e-4
    assert len(tried) == 6
    assert experiments.search(path, {"method": "two"}, 1e-4, trial) == 1e-4
    assert len(tried) == 9


def test_singular_values_find_the_rank_of_a_difference(experiments):
    torch.manual_seed(0)
    before = nn.ModuleList([nn.Sequential(nn.Linear(40, 50))])
    after = nn.ModuleList([nn.Sequential(nn.Linear(40, 50))])
    change = torch.randn(50, 3) @ torch.randn(3, 40)
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        after[0][0].weight += change
    rows = list(experiments.singular_values(before, after))
    by_index = {row["index"]: row for row in rows}
    assert max(by_index) <= 40
    assert float(by_index[3]["difference"]) > 1
    assert float(by_index[4]["difference"]) < 1e-4
    assert float(by_index[2]["difference_share"]) < 1
    assert float(by_index[3]["difference_share"]) == pytest.approx(1, abs=1e-3)
    assert float(by_index[4]["weight_share"]) < 0.5
    first = torch.linalg.matrix_norm(before[0][0].weight, 2).item()
    assert float(by_index[1]["weight"]) == pytest.approx(first, rel=1e-3)


def test_interval_is_wider_where_families_agree(experiments):
    runs = [{"right": "1111000011110000"}] * 3
    alone = experiments.shares_of(runs, None, "share")
    together = experiments.shares_of(runs, np.arange(16) // 4, "share")
    assert alone["share"] == together["share"] == "50.00"
    assert (alone["seeds"], alone["answers"]) == (3, 16)
    assert float(together["share_low"]) < float(alone["share_low"])


# --- The committed tables ------------------------------------------------------------


def committed(name):
    """The rows of a table; none of chapter 7's task before it was measured."""
    path = RESULTS / f"{name}.csv"
    return read(path) if name not in INSTRUCTIONS or path.exists() else []


def test_the_committed_runs_are_of_these_data_and_methods(experiments):
    rows = read(RESULTS / "accuracy.csv")
    assert [row["method"] for row in rows] == [*experiments.METHODS]
    messages = sha256_of(fetch("messages"))[:12]
    for table in MESSAGES[:-1]:
        for row in read(RESULTS / f"{table}.csv"):
            assert row["data_sha256"] == messages, table
    for row in rows:
        assert int(row["seeds"]) >= 3, row["method"]
        assert row["answers"] == "372"
    # The same messages in as many updates, and nowhere the seed of the search.
    runs = read(RESULTS / "runs.csv")
    assert len({(row["trained_on"], row["updates"]) for row in runs}) == 1
    assert len({row["dtype"] for row in runs}) == 1
    assert str(experiments.SEARCH_SEED) not in {row["seed"] for row in runs}
    instructions = sha256_of(fetch(experiments.CHAPTER_7.DATA))[:12]
    for table in INSTRUCTIONS:
        for row in committed(table):
            assert row["data_sha256"] == instructions, table


@pytest.mark.parametrize("table", ["rates", "instruction_rates"])
def test_the_committed_rates_were_searched_on_both_sides(experiments, table):
    runs = {"rates": "runs", "instruction_rates": "instruction_runs"}[table]
    column = {"rates": "method", "instruction_rates": "rank"}[table]
    rows = committed(table)
    for name in {row[column] for row in rows}:
        tried = {
            float(r["rate"]): float(r["val_loss"]) for r in rows if r[column] == name
        }
        best = experiments.GRID.index(min(tried, key=lambda rate: tried[rate]))
        assert {experiments.GRID[best - 1], experiments.GRID[best + 1]} <= set(tried)
        sharing = {name}
        if name == experiments.SEARCHED_LORA:
            sharing = {one for one, way in experiments.METHODS.items() if way.rank}
        made = [r for r in read(RESULTS / f"{runs}.csv") if r[column] in sharing]
        assert {r["rate"] for r in made} == {str(experiments.GRID[best])}, name


def test_the_committed_rows_follow_from_the_committed_runs(experiments):
    messages = experiments.split_messages(experiments.read_messages(fetch("messages")))[
        2
    ]
    entries = experiments.split_instructions(
        experiments.read_instructions(fetch(experiments.CHAPTER_7.DATA))
    )[2]
    families = [entry["family"] for entry in entries if entry.get("answers")]
    for table, runs, name, groups, column in (
        ("accuracy", "runs", "accuracy", messages["family"], "method"),
        ("instructions", "instruction_runs", "share", families, "rank"),
    ):
        for row in committed(table):
            found = read(RESULTS / f"{runs}.csv")
            mine = [run for run in found if run[column] == row[column]]
            expected = experiments.shares_of(mine, groups, name)
            assert {key: str(one) for key, one in expected.items()} == {
                key: row[key] for key in expected
            }, row[column]
            for run in mine:
                share = 100 * np.mean([int(one) for one in run["right"]])
                assert float(run[name]) == pytest.approx(share, abs=6e-3)


def test_the_committed_costs_grow_with_what_learns():
    rows = {row["method"]: row for row in read(RESULTS / "costs.csv")}
    parameters, peak = (
        {name: int(row[key]) for name, row in rows.items()}
        for key in ("parameters", "peak_bytes")
    )
    # The seven matrices of a block of SmolLM2 have 10,176 rows and columns in all.
    for rank in (1, 4, 16):
        adapters = parameters[f"LoRA, rank {rank}"] - parameters["head only"]
        assert adapters == rank * 12 * 10176
    for name, row in rows.items():
        assert int(row["file_bytes"]) == pytest.approx(
            4 * parameters[name], rel=0.02, abs=60_000
        )
    assert peak["head only"] < peak["last block"] < peak["everything"]
    assert peak["LoRA, rank 16"] < 0.8 * peak["everything"]


def test_the_committed_singular_values_fall():
    rows = read(RESULTS / "singular_values.csv")
    layers = {(row["block"], row["layer"]) for row in rows}
    assert len(layers) == 3 * 7
    for layer in layers:
        mine = [row for row in rows if (row["block"], row["layer"]) == layer]
        for kind in ("difference", "weight"):
            values = [float(row[kind]) for row in mine]
            assert values == sorted(values, reverse=True)
            shares = [float(row[f"{kind}_share"]) for row in mine]
            assert shares == sorted(shares)
            least = min(int(mine[0]["rows"]), int(mine[0]["columns"]))
            assert int(mine[-1]["index"]) <= least


def test_the_committed_instructions_stand_beside_chapter_7(experiments):
    """The same questions of the same entries as in chapter 7's own table."""
    theirs = read(FOLDER.parents[1] / "ch07/01_main-chapter-code/results/scores.csv")
    by_name = {row["method"]: row for row in theirs}
    for row in committed("instructions"):
        assert row["data_sha256"] == by_name["12 blocks"]["data_sha256"]
        assert row["answers"] == by_name["12 blocks"]["entries"]
        assert row["blocks"] == "12"
