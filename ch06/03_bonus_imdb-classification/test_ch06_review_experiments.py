"""The comparison of film reviews runs, goes on after a kill, and its tables are so."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_train import save_checkpoint
from other_reviews import GROUPS, PACKAGE, fetch_sentences, read_sentences
from review_bench import ReviewBench, SmallGPT, WholeModel, draw_labels
from test_sentence_embedder import TINY, parts  # noqa: F401

FOLDER = Path(__file__).parent
TABLES = ("settings.csv", "runs.csv", "summary.csv", "texts.csv")
SMALL = {
    **GPT_CONFIG_124M,
    "context_length": 128,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
    "tie_weights": True,
}


@pytest.fixture(scope="module")
def experiments():
    return script_in(FOLDER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT as base, snippets of 24 made-up films, and made-up other reviews."""
    folder = tmp_path_factory.mktemp("tables")
    torch.manual_seed(0)
    model = initialise_like_gpt2(GPTModel(SMALL))
    save_checkpoint(folder / "base", model, tokenizer=tiktoken.get_encoding("gpt2"))
    with (folder / "snippets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
        for i in range(240):
            word, kind = ("fine", "fresh") if i % 2 else ("dull", "rotten")
            writer.writerow([kind, f"A {word} film {i}.", f"film {i // 10}", "False"])
    (folder / "cache").mkdir()
    for name in GROUPS:
        records = [{"text": f"{name} {i}.", "class": i % 2} for i in range(8)]
        path = folder / "cache" / f"{name}.json"
        path.write_text(json.dumps(records), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def script(experiments, folder, parts):  # noqa: F811
    """A function that runs the script in small."""
    patch = pytest.MonkeyPatch()
    patch.setattr(experiments, "SIZES", {"train": 80, "validation": 10, "test": 20})
    patch.setattr(experiments, "OTHERS_EACH", 2)
    patch.setattr(experiments, "LABELS_TO_CHOOSE", 20)
    patch.setattr(experiments, "ALL", (20, 40))
    patch.setattr(experiments, "COUNTS", {"larger class": (20,)})
    small = tuple({**SMALL, "tie_weights": False}.items())
    rates = ((1e-3, 1), (1e-2, 1))
    patch.setitem(experiments.METHODS, "small GPT", SmallGPT(rates, small))
    places = parts[0] / "model.safetensors", parts[0] / "tokenizer.json"
    bench = dict(zip(("weights", "tokenizer"), places), **TINY)
    made = experiments.ReviewBench
    patch.setattr(experiments, "ReviewBench", lambda *more: made(*more, **bench))
    fixed = ["--data", folder / "snippets.csv", "--model", folder / "base"]
    fixed += ["--cache", folder / "cache", "--out", folder, "--epochs", "1"]
    yield lambda *more: experiments.main([str(one) for one in [*fixed, *more]])
    patch.undo()


@pytest.fixture(scope="module")
def tables(script, folder):
    assert script("--seeds", "1", "2") == 0
    return folder


def test_every_method_gets_rows_like_the_committed_ones(experiments, tables):
    rows = read(tables / "summary.csv")
    assert list(dict.fromkeys(row["method"] for row in rows)) == [*experiments.METHODS]
    asked = ["test films", *GROUPS.values()]
    assert list(dict.fromkeys(row["asked"] for row in rows)) == sorted(
        asked, key=["test films", "films again", "goods", "restaurants"].index
    )
    for row in rows:
        assert 0 <= float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        assert row["draws"] == "2"
        assert row["reviews"] == ("20" if row["asked"] == "test films" else "4")
    assert other_columns(tables, FOLDER / "results", TABLES) == []


def test_words_that_decide_are_learned(tables):
    rows = [row for row in read(tables / "runs.csv") if row["method"] == "words"]
    assert {row["accuracy"] for row in rows if row["labels"] == "40"} == {"100.00"}


def test_texts_are_counted_in_the_order_of_the_bits(tables):
    rows = read(tables / "texts.csv")
    asked = ["test films"] * 20
    for kind in GROUPS.values():
        asked += [kind] * 4
    assert [row["asked"] for row in rows] == asked
    bits = {row["right"] for row in read(tables / "runs.csv")}
    assert {len(one) for one in bits} == {2 * 4}  # 32 bits
    for row in rows[:20]:  # "A fine film 7."
        assert (row["words"], row["known"][:1]) == ("4", "0")
        assert row["good" if row["label"] == "positive" else "bad"] == "1"
        assert row["told"] == "111"
    assert {row["told"] for row in rows[20:]} == {"000"}


def test_seconds_hold_the_reading_and_not_the_loading(experiments, tables):
    """What a frozen model reads costs the same whoever learns from it."""
    cost = float((tables / "cache" / "cost-frozen").read_text("utf-8"))
    rows = read(tables / "runs.csv")
    frozen = [row for row in rows if row["method"] == "SmolLM2, frozen"]
    assert len(frozen) == 4
    for row in frozen:
        assert float(row["seconds"]) >= cost * (int(row["labels"]) + 32) - 0.01
    for row in read(tables / "summary.csv"):
        mine = [
            float(run["seconds"])
            for run in rows
            if (run["method"], run["labels"]) == (row["method"], row["labels"])
        ]
        assert abs(np.mean(mine) - float(row["seconds"])) < 0.006


def test_a_run_without_seconds_leaves_the_mean_empty(experiments):
    assert (
        experiments.mean_seconds([{"seconds": "1.50"}, {"seconds": "2.00"}]) == "1.75"
    )
    assert experiments.mean_seconds([{"seconds": "1.50"}, {"seconds": ""}]) == ""


def test_a_run_that_was_stopped_goes_on(experiments, script, tables, monkeypatch):
    """A row that is there is not made again, one that is missing is, and alike."""
    before = {name: read(tables / name) for name in TABLES}
    gone = {"method": "SmolLM2, LoRA", "labels": "40", "draw": "2"}
    kept = [row for row in before["runs.csv"] if not gone.items() <= row.items()]
    assert len(kept) == len(before["runs.csv"]) - 1
    experiments.tables.write(tables / "runs.csv", kept)
    trained = []
    original = WholeModel.chances

    def watched(self, bench, setting, known, asked, seed):
        trained.append((self.lora is not None, len(known), seed))
        return original(self, bench, setting, known, asked, seed)

    monkeypatch.setattr(WholeModel, "chances", watched)
    assert script("--seeds", "1", "2") == 0
    assert trained == [(True, 40, 2)]
    for name in ("settings.csv", "runs.csv"):
        again = [{**row, "seconds": ""} for row in read(tables / name)]
        assert again == [{**row, "seconds": ""} for row in before[name]]


def test_rows_of_other_data_are_left_out(experiments, tables, tmp_path):
    bench = ReviewBench(
        tables / "cache" / "snippets.csv",
        str(tables / "base"),
        tables / "cache",
        tables / "cache" / "others.csv",
    )
    rows = read(tables / "runs.csv")
    path = experiments.tables.write(tmp_path / "runs.csv", rows)
    experiments.forget_other_data(path, bench)
    assert read(path) == rows
    rows[0]["data_sha256"] = "another"
    experiments.tables.write(path, rows)
    experiments.forget_other_data(path, bench)
    assert read(path) == rows[1:]


def test_which_were_right_survives_being_written(experiments):
    right = np.random.default_rng(0).random(77) > 0.5
    again = experiments.unpacked(experiments.packed(right), 77)
    assert np.array_equal(right, again)


def test_fewer_labels_lie_in_more():
    places = np.arange(100, 200)
    few, more = (draw_labels([], places, count, seed=3) for count in (10, 40))
    assert set(few) < set(more)
    assert len(set(more)) == 40
    assert set(draw_labels([], places, 10, seed=4)) != set(few)
    with pytest.raises(ValueError, match="101 labels are asked for, and there are 100"):
        draw_labels([], places, 101, seed=3)


def test_lora_and_everything_train_what_they_say(tables):
    bench = ReviewBench(
        tables / "cache" / "snippets.csv",
        str(tables / "base"),
        tables / "cache",
        tables / "cache" / "others.csv",
    )
    assert bench.depth == 3
    known, asked = bench.places("train")[:20], bench.places("test")
    before = {name: p.clone() for name, p in bench.base[0].named_parameters()}
    everything = WholeModel(((1e-2, 1),)).chances(bench, (1e-2, 1), known, asked, 1)
    adapter = WholeModel(((1e-2, 1),), lora=(2, 4))
    with_lora = adapter.chances(bench, (1e-2, 1), known, asked, 1)
    for name, p in bench.base[0].named_parameters():  # each starts from the same model
        assert torch.equal(p, before[name]), name
    assert not np.allclose(everything, with_lora)
    model = adapter.prepared(bench.cut(None), 1)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora." in n or "adapters" in n or "out_head" in n for n in names)
    assert any("trf_blocks.0." in name for name in names)


# --- The other reviews ----------------------------------------------------------------


def test_other_reviews_are_read_and_an_empty_record_is_left_out(tmp_path):
    for name in GROUPS:
        records = [
            {"text": "Good &amp; cheap.", "class": 1},
            {"text": "Good &amp; cheap.", "class": 1},
            {"text": "Bad.", "class": 0},
            {"text": "", "class": None},
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
    found = read_sentences(tmp_path)
    assert len(found) == 6
    assert found["text"].tolist()[:2] == ["Good & cheap.", "Bad."]
    assert found["label"].tolist()[:2] == ["positive", "negative"]


@pytest.mark.parametrize(
    "content", ["", "[1]", '[{"text": "a"}]', '[{"text": "a", "class": 7}]']
)
def test_a_damaged_file_gets_one_sentence(tmp_path, content):
    for name in GROUPS:
        (tmp_path / f"{name}.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"imdb.json is damaged or another file"):
        read_sentences(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_sentences(tmp_path / "nowhere")


def test_npm_is_asked_once_and_another_package_is_not_used(tmp_path, monkeypatch):
    asked = []

    def bring(command, scratch):
        asked.append(command)
        (scratch / "sentiment-5.0.2.tgz").write_bytes(b"another")

    monkeypatch.setattr("other_reviews.run_client", bring)
    with pytest.raises(ValueError, match="has the SHA-256 .*: not used"):
        fetch_sentences(tmp_path)
    assert asked == [["npm", "pack", "--silent", PACKAGE]]
    for name in GROUPS:
        (tmp_path / f"{name}.json").write_text("[]", encoding="utf-8")
    assert fetch_sentences(tmp_path) == tmp_path
    assert len(asked) == 1


# --- The committed tables -------------------------------------------------------------


def test_the_committed_tables_come_from_the_same_snippets(tmp_path):
    """Made again from the source, they have the hash in each row."""
    experiments = script_in(FOLDER)  # with its own sizes
    none = read_sentences(_empty(tmp_path))
    snippets, _ = experiments.write_data(
        tmp_path, experiments.SIZES, others=none.astype(object)
    )
    from course.assets import sha256_of

    for name in TABLES[::3]:
        rows = read(FOLDER / "results" / name)
        assert {row["data_sha256"] for row in rows} == {sha256_of(snippets)[:12]}
    rows = read(FOLDER / "results" / "runs.csv")
    assert {row["data_sha256"] for row in rows} == {sha256_of(snippets)[:12]}
    assert len({row["others_sha256"] for row in rows}) == 1


def _empty(folder):
    for name in GROUPS:
        one = '[{"text": "a", "class": 1}, {"text": "b", "class": 0}]'
        (folder / f"{name}.json").write_text(one, encoding="utf-8")
    return folder


def test_the_committed_summary_follows_from_the_committed_runs(experiments):
    runs = read(FOLDER / "results" / "runs.csv")
    for row in read(FOLDER / "results" / "summary.csv"):
        if row["asked"] != "test films":
            continue
        mine = [
            float(run["accuracy"])
            for run in runs
            if (run["method"], run["labels"]) == (row["method"], row["labels"])
        ]
        assert len(mine) == int(row["draws"])
        assert abs(np.mean(mine) - float(row["accuracy"])) < 0.006
