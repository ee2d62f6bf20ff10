"""The script trains with the schedule that was asked for, and goes on with no other."""

import re
from pathlib import Path

import pytest
import torch

import gpt_train
import take_figure
import train_with_schedule
from course.tables import read
from course.testing.experiment_scripts import other_columns, script_in
from gpt_train import QUICK_CONFIG
from train_with_schedule import SCHEDULES, main, plan_of

FOLDER = Path(__file__).parent
TEXT = "The lamp was lit and the lamp went out. " * 40


@pytest.fixture
def script(tmp_path, monkeypatch):
    cfg = {**QUICK_CONFIG, "emb_dim": 8, "n_heads": 2, "n_layers": 1}
    changes = {"cfg": cfg, "window": 8, "epochs": 2, "batch_size": 4}
    preset = {**gpt_train._PRESETS["quick"], **changes}
    monkeypatch.setitem(gpt_train._PRESETS, "quick", preset)
    monkeypatch.delenv("COURSE_PRESET", raising=False)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    rates = []
    step = torch.optim.AdamW.step

    def noted(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)

    def run(*options):
        rates.clear()
        places = ["--data", tmp_path / "text.txt", "--out", tmp_path / "model"]
        code = main([str(option) for option in [*places, *options]])
        return code, list(rates)

    return run


def test_each_update_has_the_rate_of_the_plan(script, capsys):
    code, rates = script("--schedule", "cosine", "--learning-rate", "0.01")
    assert code == 0
    share = plan_of("cosine", num_steps=22, warmup=0.1, decay=0)
    assert rates == [0.01 * share(step) for step in range(22)]
    assert max(rates) == 0.01
    assert rates[-1] < 0.002


def test_a_run_that_is_warm_up_to_its_end_ends_well(script, capsys):
    code, rates = script("--schedule", "cosine", "--warmup", "0.99")
    assert code == 0
    assert rates == pytest.approx([0.003 * (n + 1) / 22 for n in range(22)])


def test_a_run_that_was_killed_goes_on_with_its_own_plan_only(
    script, monkeypatch, capsys
):
    monkeypatch.setattr(gpt_train, "_SAVE_EVERY", 5)
    step, updates = torch.optim.AdamW.step, []

    def killed(self, *arguments, **options):
        updates.append("one more")
        if len(updates) == 13:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", killed)
        assert script("--schedule", "stable")[0] == 130
    for other, name in [
        (("--schedule", "cosine"), "--schedule (stable, warm-up 0.1"),
        (("--schedule", "stable", "--epochs", "4"), "--epochs (2 there, 4 here)"),
        (("--schedule", "constant"), "constant here"),
    ]:
        code, rates = script(*other, "--resume")
        assert (code, rates) == (2, [])
        assert name in capsys.readouterr().err
    code, rates = script("--schedule", "stable", "--resume")
    assert code == 0
    share = plan_of("stable", num_steps=22, warmup=0.1, decay=0.3)
    assert rates == pytest.approx([0.003 * share(step) for step in range(10, 22)])


def test_constant_is_what_the_script_does_by_itself(script, capsys):
    code, rates = script("--schedule", "constant", "--epochs", "1")
    assert code == 0
    assert set(rates) == {0.003}
    for name in SCHEDULES[1:]:
        shares = [plan_of(name, 50, 0.1, 0.3)(step) for step in range(50)]
        assert max(shares) == 1.0
        assert shares[0] == pytest.approx(0.2)
    assert plan_of("warmup", 50, 0.1, 0.3)(49) == 1.0


def test_wrong_options_are_named(capsys):
    for options, message in [
        (["--warmup", "1.5"], "argument --warmup: must be from 0 to below 1"),
        (["--warmup", "abc"], "argument --warmup: must be from 0 to below 1"),
        (["--schedule", "stable", "--warmup", "0.8", "--decay", "0.5"], "together"),
        (["--schedule", "zigzag"], "invalid choice: 'zigzag'"),
        (["--epochs", "0"], "argument --epochs: must be 1 or more"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(options)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert train_with_schedule.SCHEDULES[0] == "constant"


def test_the_figure_is_the_one_in_the_notebook():
    drawn = take_figure.figure_of("schedules-figure")
    assert drawn.startswith(b"\x89PNG")
    assert take_figure.PICTURE.read_bytes() == drawn, "run take_figure.py"


def test_a_ramp_and_a_way_down_never_overlap():
    """Shares that fill the run may round to one update more than it has."""
    share = plan_of("stable", num_steps=15, warmup=0.5, decay=0.5)
    assert [share(step) for step in (6, 7, 8)] == [7 / 8, 1.0, 1.0]
    assert share(9) == pytest.approx(6 / 7)


def test_the_page_shows_what_the_commands_came_to(tmp_path, capsys):
    experiments = script_in(FOLDER)
    assert experiments.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert other_columns(tmp_path, FOLDER / "results", ["story.csv"]) == []
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = read(FOLDER / "results" / "story.csv")
    for row in rows:
        losses = (f"{float(row[name]):.2f}" for name in ("last", "last_train"))
        assert f"| `{row['schedule']}` | {' | '.join(losses)} |" in page
        assert row["best"] == row["last"], "the model is best at its end"
        assert f"after {row['updates']} updates" in page.replace("\n", " ")
    learned = {row["schedule"]: float(row["last_train"]) for row in rows}
    order = sorted(learned, key=learned.__getitem__)
    assert order == ["constant", "warmup", "stable", "cosine"]


def test_the_page_names_the_numbers_that_the_script_has():
    """Known mistake: one length of the warm-up in the text, another in the code."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"the peak rate ({gpt_train._PRESETS['quick']['learning_rate']})" in page
    source = (FOLDER / "train_with_schedule.py").read_text(encoding="utf-8")
    for option in ("--warmup", "--decay"):
        shown = re.search(rf"{option} (\S+) --out", page)
        assert f'"{option}", type=_share, default={shown[1]}' in source
    cosine = plan_of("cosine", 50, 0.1, 0.3)
    assert min(map(cosine, range(60))) == pytest.approx(0.1)
    assert "A cosine to a tenth of the\npeak, as the command below has it" in page


def test_the_page_shows_what_appendix_d_measured():
    results = FOLDER.parents[1] / "appendix-D" / "01_main-chapter-code" / "results"
    summary = {row["recipe"]: row for row in read(results / "summary.csv")}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for words, recipe in (
        ("constant", "plain loop"),
        ("warm-up, then constant", "warm-up"),
        ("warm-up, stable, decay", "warm-up, stable, decay"),
        ("warm-up, cosine that ends at 0", "warm-up, cosine"),
        ("*no schedule:* constant, and the weights averaged", "weight average"),
    ):
        losses = f"{summary[recipe]['best']} | {summary[recipe]['best_spread']}"
        assert f"| {words} | {losses} |" in page
    runs = read(results / "runs.csv")
    best = {(row["recipe"], row["seed"]): float(row["best"]) for row in runs}

    def costs(recipe, control):
        return [best[recipe, seed] - best[control, seed] for seed in "123"]

    cosine = costs("warm-up, cosine", "warm-up")
    rounding = [costs(name, "plain loop") for name in ("accumulation", "bfloat16")]
    moved = max(abs(cost) for three in rounding for cost in three)
    plateau = [-cost for cost in costs("warm-up, stable, decay", "plain loop")]
    average = [-cost for cost in costs("weight average", "plain loop")]
    assert min(plateau) <= moved < min(average)
    assert moved < min(cosine)
    page = " ".join(page.split())
    for words in (
        f"by {min(cosine):.3f} to {max(cosine):.3f}, more than rounding",
        f"moves a run ({moved:.3f})",
        f"gains {sum(plateau) / 3:.3f} in the mean",
        "it runs level until update 200 and then stands still",
    ):
        assert words in page, words
    curves = {}
    for row in read(results / "curves.csv"):
        losses = curves.setdefault((row["recipe"], int(row["update"])), [])
        losses.append(float(row["val_loss"]))
    for at in range(20, 201, 20):
        gap = sum(curves["warm-up, cosine", at]) - sum(curves["warm-up", at])
        assert abs(gap / 3) < moved
