"""The measurements run in real processes, and the committed tables are theirs."""

import argparse
from pathlib import Path

import pytest
import torch

import step_profile
from course.tables import read
from course.testing.experiment_scripts import other_columns
from speed import RECIPES, TrainingRun

FOLDER = Path(__file__).parent
NAMES = ("race.csv", "profile.csv")


def committed(name):
    return read(FOLDER / "results" / f"{name}.csv")


@pytest.fixture
def options():
    return argparse.Namespace(
        device="cpu", threads=1, seed=3, rounds=None, together=None
    )


@pytest.fixture(scope="module")
def tiny(experiments, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    recipes = ["--recipes", "plain", "chunks"]
    assert experiments.main(["--tiny", "--out", str(out), *recipes]) == 0
    return out


def test_a_tiny_run_writes_tables_like_the_committed_ones(tiny):
    assert other_columns(tiny, FOLDER / "results", NAMES) == []
    plain, chunks = read(tiny / "speed.csv")
    assert (plain["recipe"], plain["time_per_token_over_plain"]) == ("plain", "1.000")
    assert plain["loss_3"] != ""
    assert float(plain["loss_3"]) == pytest.approx(float(chunks["loss_3"]), abs=2e-3)
    assert float(chunks["seconds"]) > 0
    assert 0 < float(chunks["mfu"]) < 1
    assert int(chunks["peak_mb"]) > 0
    race = read(tiny / "race.csv")
    assert {row["recipe"] for row in race} == {
        "plain",
        "chunks",
        "transformers",
        "transformers, bfloat16",
    }


def test_a_tiny_run_learns_alike_by_both_recipes(tiny):
    plain, chunks = read(tiny / "speed.csv")
    loss = float(plain["validation_loss"])
    assert float(chunks["validation_loss"]) == pytest.approx(loss, abs=2e-3)
    others = [float(other) for other in plain["other_seeds"].split()]
    assert len(others) == 2
    assert loss not in others
    assert plain["updates"] == chunks["updates"]


def test_a_profile_has_every_second_once(tiny):
    for name in ("plain", "chunks"):
        rows = [r for r in read(tiny / "profile.csv") if r["recipe"] == name]
        assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=0.01)
        assert {"AdamW", "products", "norms and GELU"} <= {r["part"] for r in rows}


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::addmm", "products"),
        ("aten::bmm", "attention"),
        ("aten::_softmax", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::_log_softmax_backward_data", "loss"),
        ("aten::native_layer_norm", "norms and GELU"),
        ("aten::copy_", "copies and zeros"),
        ("aten::add", "other"),
    ],
)
def test_operators_are_sorted(operator, kind):
    assert step_profile.kind_of(operator) == kind


def test_norms_and_gelu_are_known_by_their_modules(experiments, monkeypatch):
    """Forward and backward, though no operator has a name that says so."""
    monkeypatch.setitem(step_profile.KINDS, "norms and GELU", ())
    size = experiments.SIZES["tiny"]
    run = TrainingRun(size.cfg, RECIPES["plain"], "cpu", 3, size.learning_rate)
    batch = next(experiments.story_batches(2, size.tokens))
    with step_profile.norms_named(run.model), step_profile.profile() as recorded:
        run.step(*batch)
    assert not any(part._forward_hooks for part in run.model.modules())
    kinds = {}
    for event, kind in step_profile.parts_of_events(recorded.events()):
        kinds.setdefault(event.name, []).append(kind)
    # Two blocks: a tanh and a cube each; five norms, a square in each.
    inside = "norms and GELU"
    assert kinds["aten::tanh"] == [inside] * 2
    assert kinds["aten::tanh_backward"] == [inside] * 2
    assert kinds["PowBackward0"] == [inside] * 7
    assert kinds["aten::mean"] == kinds["MeanBackward1"] == [inside] * 10
    # Sums of both kinds: those of norms and GELU, and the residual ones.
    for name in ("aten::add", "AddBackward0"):
        assert kinds[name].count(inside) == 14
        assert kinds[name].count("other") == len(kinds[name]) - 14 >= 4
    assert set(kinds["aten::mm"]) == {"products"}
    seconds = step_profile.seconds_by_part(run, batch, "cpu")
    assert min(seconds[inside], seconds["products"], seconds["AdamW"]) > 0


def test_two_processes_learn_what_one_learns_from_both_shares(experiments, options):
    """DDP in two real processes: the losses of three updates, batches joined."""
    size = experiments.SIZES["tiny"]
    racer = experiments.Racer("chunks", options, size, processes=2)
    assert racer.sequences == 4
    ((_, _, losses, _),) = experiments.take_turns([racer], 3)
    run = TrainingRun(size.cfg, RECIPES["chunks"], "cpu", 3, size.learning_rate)
    batches = experiments.story_batches(4, size.tokens)
    alone = [run.step(*next(batches)).item() for _ in range(3)]
    assert losses == pytest.approx(alone, abs=1e-4)
    assert losses[0] != pytest.approx(losses[2], abs=1e-3)


def test_without_a_compiler_no_compiled_recipe_is_left(
    experiments, options, monkeypatch, capsys
):
    options.recipes, options.processes = list(RECIPES), 1
    monkeypatch.setattr(experiments, "why_not_compiled", lambda: "No compiler.")
    names = experiments.recipe_names(options)
    assert names == [name for name in RECIPES if not RECIPES[name].compiled]
    assert names[-1] == "bfloat16"
    assert capsys.readouterr().out == "No compiler.\n"


def test_a_process_that_ends_early_is_named(experiments, options):
    racer = experiments.Racer("no such recipe", options, experiments.SIZES["tiny"])
    with pytest.raises(RuntimeError, match="no such recipe"):
        experiments.take_turns([racer], 2)
    assert racer.members[0].returncode is not None


def test_shares_of_the_batches_are_dealt_out(experiments):
    whole = next(experiments.story_batches(4, 8))[0]
    shares = [next(experiments.story_batches(2, 8, r, 2))[0] for r in range(2)]
    dealt = torch.stack(shares, dim=1).flatten(0, 1)
    assert torch.equal(dealt, whole)
    inputs, targets = next(experiments.story_batches(2, 8))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def best_of_race(kind):
    """Our fastest step over that of transformers, both with the same number type."""
    ours = [
        row[f"over_transformers_{kind}"]
        for row in committed("race")
        if row["recipe"] in RECIPES
        and RECIPES[row["recipe"]].bfloat16 == (kind == "bfloat16")
    ]
    return min(ours, key=float)


def test_committed_race_compares_in_one_run_and_its_ratios_are_right():
    rows = [row for row in committed("race") if row["device"] == "cpu"]
    seconds = {row["recipe"]: float(row["seconds"]) for row in rows}
    assert len({row["rounds"] for row in rows}) == 1
    for row in rows:
        assert (row["batch"], row["tokens"]) == ("2", "256")
        for column, theirs in (
            ("over_transformers_float32", "transformers"),
            ("over_transformers_bfloat16", "transformers, bfloat16"),
        ):
            ratio = seconds[row["recipe"]] / seconds[theirs]
            assert ratio == pytest.approx(float(row[column]), abs=2e-3)


def test_what_the_page_claims_of_the_race_is_within_one_number_type():
    """With one timed update of each, a tenth is no claim; with three it may be one.

    The aim is 0.9 in each number type. Where it is missed the page says who is ahead.
    """
    page = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    columns = ["seconds", "over_transformers_float32", "over_transformers_bfloat16"]
    for row in committed("race"):
        figures = " | ".join(row[name] for name in [*columns, "peak_mb"])
        assert f"| {figures} |" in page
    rounds = min(int(row["rounds"]) for row in committed("race"))
    assert ("one timed update of each" in page) == (rounds == 1)
    said = page.partition("rows of one number type:")[2].partition(". ")[0]
    for kind, sentence in zip(("float32", "bfloat16"), said.split(";"), strict=True):
        best = best_of_race(kind)
        assert kind in sentence
        assert best in sentence
        assert ("is ahead" in sentence) == (float(best) > 1)
        settled = float(best) <= 0.9 and rounds >= 3
        assert settled or "a tenth less" not in sentence


def test_committed_profiles_are_of_the_race_and_add_up():
    race = {row["row"] for row in committed("race")}
    profiles = committed("profile")
    assert {row["row"] for row in profiles} == race
    for name in race:
        shares = [float(row["share"]) for row in profiles if row["row"] == name]
        assert sum(shares) == pytest.approx(1, abs=0.01)


def test_published_figures_name_their_source():
    rows = read(FOLDER / "results" / "published.csv")
    assert rows[0]["source"].startswith("README of")
    speeds = [float(row["tokens_per_second"]) for row in rows]
    assert speeds == sorted(speeds)


def test_a_worker_ends_when_nobody_asks_any_more(experiments, options):
    racer = experiments.Racer("plain", options, experiments.SIZES["tiny"])
    (member,) = racer.members
    assert racer.hear() == [{"ready": True}]
    member.stdin.close()
    assert member.wait(timeout=60) == 1
    member.stdout.close()
