"""The comparison of chapter 6 runs, and its statistics are what they are named."""

import csv
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch

from course import assets
from course.tables import read
from course.testing.experiment_scripts import other_columns
from gpt import GPT_CONFIG_124M, GPTModel, initialise_like_gpt2
from gpt_class_finetune import ask_in_words, bootstrap_interval, last_token_logits
from gpt_train import save_checkpoint
from message_bench import FeatureBench, both_places
from message_data import MESSAGES
from pretrained import load_pretrained

FOLDER = Path(__file__).parent
TABLES = (
    "settings",
    "seeds",
    "accuracy",
    "differences",
    "mistakes",
    "where",
    "learning",
    "others",
)
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
def folder(tmp_path_factory):
    """A tiny GPT for every base, 44 messages made up here, and 6 of other kinds."""
    folder = tmp_path_factory.mktemp("tables")
    torch.manual_seed(0)
    model = initialise_like_gpt2(GPTModel(TINY))
    save_checkpoint(folder / "base", model, tokenizer=tiktoken.get_encoding("gpt2"))
    names = ["text", "label", "kind", "family", "language", "split"]
    with (folder / "messages.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i in range(22):
            split = "train" if i < 12 else "validation" if i < 16 else "test"
            about = (f"f{i // 2}", "de" if i % 3 else "en", split)
            writer.writerow([f"hello {i} at noon", "wanted", "family", *about])
            writer.writerow([f"win {i} euros now", "spam", "prize", *about])
    with (folder / "outside.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [("text", "label", "group"), *[("hello you", "wanted", "a")] * 3]
        csv.writer(file).writerows([*rows, *[("win a gift", "spam", "b")] * 3])
    return folder


def arguments(folder, *more):
    """Those of the script, for the tiny model and its messages."""
    found = ["--data", folder / "messages.csv", "--model", folder / "base"]
    found += ["--outside", folder / "outside.csv"]
    found += ["--cache", folder / "cache", "--out", folder, "--epochs", "1"]
    return [str(one) for one in [*found, *more]]


@pytest.fixture(scope="module")
def tables(experiments, folder):
    """All tables, from two seeds."""
    assert experiments.main(arguments(folder, "--seeds", "1", "2")) == 0
    return folder


@pytest.fixture
def bench(folder):
    bench = FeatureBench(
        folder / "messages.csv",
        str(folder / "base"),
        folder / "cache",
        folder / "outside.csv",
    )
    bench.levels = [1, 2, 3]
    return bench


def test_every_method_gets_a_row_like_the_committed_ones(experiments, tables):
    rows = read(tables / "accuracy.csv")
    assert [row["method"] for row in rows] == list(experiments.METHODS)
    for row in rows:
        assert 0 <= float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        assert (row["messages"], row["families"]) == ("12", "3")
    seeds = {row["method"]: row["seeds"] for row in rows}
    assert (seeds["larger class"], seeds[experiments.DEFAULT]) == ("1", "2")
    names = [f"{name}.csv" for name in TABLES]
    assert other_columns(tables, FOLDER / "results", names) == []


def test_a_run_that_was_stopped_goes_on(experiments, tables, monkeypatch):
    """What a table has is not made again; a missing seed is."""
    before = {name: read(tables / f"{name}.csv") for name in TABLES}
    dropped = [
        row
        for row in before["seeds"]
        if (row["method"], row["seed"]) != ("head only", "2")
    ]
    experiments.tables.write(tables / "seeds.csv", dropped)
    trained = []
    original = experiments.Trained.chances

    def watched(self, bench, setting, known, asked, seed):
        trained.append((self.blocks, seed))
        return original(self, bench, setting, known, asked, seed)

    monkeypatch.setattr(experiments.Trained, "chances", watched)
    assert experiments.main(arguments(tables, "--seeds", "1", "2")) == 0
    assert trained == [(0, 2)]
    without_time = [{**row, "seconds": ""} for row in read(tables / "seeds.csv")]
    assert without_time == [{**row, "seconds": ""} for row in before["seeds"]]


@pytest.mark.parametrize("name", ["words", "frozen, mean, and letters", "last block"])
def test_one_method_alone_is_made_anew_and_leaves_the_others(experiments, tables, name):
    """A sum asks parts that are not made anew; other rows stay as they are."""
    before = {table: read(tables / f"{table}.csv") for table in TABLES}
    assert experiments.main(arguments(tables, "--only", name, "--seeds", "1", "2")) == 0
    for table in ("seeds", "others", "mistakes", "learning"):
        again = read(tables / f"{table}.csv")
        for row in (*again, *before[table]):
            row.pop("seconds", None)
        assert again == before[table], table


def test_rows_that_other_messages_made_are_left_out(experiments, tables, tmp_path):
    path = tmp_path / "seeds.csv"
    rows = read(tables / "seeds.csv")
    bench = FeatureBench(
        tables / "messages.csv", "none", tmp_path, tables / "outside.csv"
    )
    for column in ("data_sha256", "others_sha256"):
        mixed = [{**rows[0], column: "another file"}, *rows[1:]]
        experiments.tables.write(path, mixed)
        experiments.forget_other_messages(path, bench)
        assert read(path) == rows[1:]
    experiments.tables.write(path, mixed[:1])
    experiments.forget_other_messages(path, bench)
    assert not path.exists()


def test_seeds_change_the_head_and_nothing_leaks_from_one_to_the_next(
    experiments, bench
):
    """The second training starts from the base model, not from the first one's."""
    way = experiments.Trained(1, ((1e-2, 2),))
    known, asked = bench.places("train"), bench.places("test")
    start = bench.base[0].trf_blocks[-1].ff.layers[0].weight.clone()
    first, other, again = (
        way.chances(bench, (1e-2, 2), known, asked, seed) for seed in (1, 2, 1)
    )
    assert torch.equal(bench.base[0].trf_blocks[-1].ff.layers[0].weight, start)
    assert np.allclose(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("mean", [False, True])
def test_what_is_trained_learns(experiments, bench, mean):
    """Known mistake: one autocast around all updates kept the first weights."""
    way = experiments.Trained(1, (), mean=mean)
    asked = bench.places("test")
    chances = way.chances(bench, (1e-2, 10), bench.places("train"), asked, 1)
    assert ((chances > 0) == bench.targets[asked]).all()


def test_features_at_a_height_are_those_of_the_cut_model(bench):
    """Learning from kept features, as float16, is learning from the model itself."""
    model = bench.cut(2)
    assert (len(model.trf_blocks), len(bench.base[0].trf_blocks)) == (2, 3)
    features, (ids, _) = bench.tokens(2)[5][0], bench.ids[5]
    caught = []
    handle = (
        bench.base[0]
        .trf_blocks[2]
        .register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    )
    with torch.no_grad():
        bench.base[0](ids[None])
    handle.remove()
    assert torch.allclose(features, caught[0][0], atol=2e-3)
    mean = both_places(caught[0], torch.ones(1, len(ids), dtype=torch.bool))[1]
    assert np.allclose(bench.heights("mean over tokens", [2])[5], mean, atol=2e-3)


def test_folds_keep_families_together_and_leave_the_test_part_alone(bench):
    test = set(bench.places("test"))
    asked_ever = []
    for known, asked in bench.folds(3):
        assert not set(bench.families[known]) & set(bench.families[asked])
        assert not test & {*known, *asked}
        asked_ever += asked.tolist()
    assert sorted(asked_ever) == bench.places("train", "validation").tolist()


def test_asked_in_batches_it_says_what_it_says_one_by_one(experiments, bench):
    asked = bench.places("test")
    found = experiments.InWords(half=False).chances(bench, (), asked[:0], asked, 1)
    model, tokenizer, _ = load_pretrained(bench.model_name)
    texts = bench.messages["text"].iloc[asked]
    one_by_one = [ask_in_words(text, model, tokenizer, "cpu") for text in texts]
    assert np.allclose(found, one_by_one, atol=1e-4)


def test_both_places_do_not_hear_of_padding():
    torch.manual_seed(1)
    stream = torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    last, mean = both_places(stream, mask)
    stream[1, 3:] = 100.0
    for found, again in zip((last, mean), both_places(stream, mask)):
        assert torch.equal(found, again)
    even = torch.nn.functional.normalize(stream, dim=-1) * 4**0.5
    assert torch.allclose(last, last_token_logits(even, mask), atol=1e-4)
    assert torch.allclose(mean[1], even[1, :3].mean(dim=0), atol=1e-4)


def test_a_row_of_differences_counts_messages_on_which_one_is_right(experiments):
    theirs = np.array([[True] * 6 + [False] * 14])
    ours = np.array([[False] * 1 + [True] * 18 + [False] * 1])
    families = [f"f{i // 2}" for i in range(20)]
    row = experiments.beside(np.repeat(ours, 3, axis=0), "b", theirs, families)
    assert (row["only_ours_right"], row["only_theirs_right"]) == (13, 1)
    assert float(row["difference"]) == 60
    low, high = bootstrap_interval(ours.astype(float) - theirs, families)
    assert (row["low"], row["high"]) == (f"{100 * low:.2f}", f"{100 * high:.2f}")


def test_the_p_value_flips_whole_families(experiments):
    """Of 2 ** 4 ways to sign four families two are as far out; alone, 2 of 2 ** 12."""
    paired, families = np.ones(12), [i // 3 for i in range(12)]
    assert experiments.p_value(paired, families) == pytest.approx(1 / 8, abs=0.01)
    assert experiments.p_value(paired, range(12)) == pytest.approx(2 / 2**12, abs=5e-4)
    assert experiments.p_value(np.tile([1.0, -1.0], 6), range(12)) == 1


def test_the_interval_of_a_difference_draws_the_runs_of_both(experiments):
    one, other = np.array([[1.0] * 40]), np.array([[1.0] * 40, [0.0] * 40])
    for ours, theirs in ((one, other), (other, one)):
        low, high = experiments.paired_interval(ours, theirs, range(40))
        assert high - low == 1  # both runs of one side alike, either way


def test_another_model_is_read_at_heights_in_proportion(experiments, bench, folder):
    torch.manual_seed(1)
    deeper = initialise_like_gpt2(GPTModel({**TINY, "n_layers": 6, "emb_dim": 24}))
    encoding = tiktoken.get_encoding("gpt2")
    save_checkpoint(folder / "deeper", deeper, tokenizer=encoding)
    names = (bench.folders[0].parent, folder / "outside.csv")
    other = FeatureBench(folder / "messages.csv", str(folder / "deeper"), *names)
    out = folder / "models"
    out.mkdir()
    experiments.write_models(bench, [other], out)
    rows = read(out / "models.csv")
    named = [(row["model"], row["method"]) for row in rows]
    ways = ("frozen, mean", experiments.BEST_FROZEN)
    assert named == [(name, way) for name in ("base", "deeper") for way in ways]
    blocks = sum(one.numel() for one in deeper.trf_blocks.parameters())
    assert {row["in_blocks"] for row in rows[2:]} == {str(blocks)}
    of_base, of_deeper = (
        experiments.model_rows(one, 3)[0]["setting"] for one in (bench, other)
    )
    assert of_base == rows[0]["setting"]
    assert of_deeper == rows[2]["setting"]
    experiments.write_models(bench, [other], out)
    assert read(out / "models.csv") == rows
    assert top_height(experiments, bench, 30) == round(24 * 3 / 30)
    assert top_height(experiments, other, 30) == round(24 * 6 / 30)


def top_height(experiments, bench, depth):
    """The highest level that `model_rows` reads."""
    levels = []

    def some_numbers(place, chosen):
        levels.extend(chosen)
        return np.random.default_rng(0).normal(size=(len(bench.targets), 2))

    bench.heights = some_numbers
    experiments.model_rows(bench, depth)
    return max(levels)


# --- The committed tables -------------------------------------------------------------


@pytest.fixture(scope="module")
def committed():
    return {name: read(FOLDER / "results" / f"{name}.csv") for name in TABLES}


def test_the_committed_tables_are_of_the_whole_test_part_and_its_seeds(
    experiments, committed
):
    sha256 = assets.sha256_of(assets.fetch(MESSAGES))[:12]
    rows = {row["method"]: row for row in committed["accuracy"]}
    assert list(rows) == list(experiments.METHODS)
    for name, row in rows.items():
        assert row["data_sha256"] == sha256, f"{name} was measured on other messages"
        assert (row["messages"], row["families"]) == ("895", "182")
        least = 5 if name == experiments.DEFAULT else experiments.METHODS[name].seeds
        assert int(row["seeds"]) == least, name
    for name in ("settings", "where", "learning", "seeds"):
        assert {row["data_sha256"] for row in committed[name]} == {sha256}, name
    outside = assets.sha256_of(FOLDER / "other-messages.csv")[:12]
    assert {row["others_sha256"] for row in committed["seeds"]} == {outside}


def test_the_learning_curves_end_in_the_table_of_all_messages(experiments, committed):
    accuracy = {row["method"]: row["accuracy"] for row in committed["accuracy"]}
    curves = committed["learning"]
    whole = {row["method"]: row["accuracy"] for row in curves if row["share"] == "1.0"}
    assert whole == {name: accuracy[name] for name in experiments.LEARNING}
    for name in experiments.LEARNING:
        draws = [r["share"] for r in curves if r["method"] == name]
        assert draws == ["0.125"] * 3 + ["0.25"] * 3 + ["0.5"] * 3 + ["1.0"]


def test_the_committed_rows_follow_from_the_committed_runs(
    experiments, committed, tmp_path
):
    bench = FeatureBench(None, "smollm2-135m", tmp_path)
    experiments.tables.write(tmp_path / "seeds.csv", committed["seeds"])
    experiments.write_accuracy(bench, tmp_path)
    experiments.write_mistakes(bench, tmp_path)
    experiments.write_others(bench, tmp_path)
    for name in ("accuracy", "differences", "mistakes", "others"):
        made = read(tmp_path / f"{name}.csv")
        for one in (*made, *committed[name]):
            one.pop("machine", None)
        assert made == committed[name], name


def test_the_committed_models_were_asked_the_same_and_begin_with_our_own(committed):
    rows = read(FOLDER / "results" / "models.csv")
    ours = {row["method"]: row for row in committed["accuracy"]}
    assert len({row["model"] for row in rows}) >= 2
    for row in rows[:2]:
        same = ours[row["method"]]
        assert row["model"] == "smollm2-135m"
        assert abs(float(row["accuracy"]) - float(same["accuracy"])) < 0.3
    assert {row["messages"] for row in rows} == {"895"}
    assert {row["data_sha256"] for row in rows} == {ours["words"]["data_sha256"]}


def test_the_committed_settings_are_the_best_on_the_folds(experiments, committed):
    for name, way in experiments.METHODS.items():
        tried = [row for row in committed["settings"] if row["method"] == name]
        used = {row["setting"] for row in committed["seeds"] if row["method"] == name}
        if len(way.settings) == 1:
            assert used == {str(way.settings[0])}
            continue
        assert [row["setting"] for row in tried] == [*map(str, way.settings)]
        best = max(tried, key=lambda row: float(row["accuracy"]))
        assert used == {best["setting"]}, name
