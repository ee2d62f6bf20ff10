"""The benchmark runs, and its committed tables say what the lesson says."""

from pathlib import Path

import torch

from course.tables import read
from course.testing.experiment_scripts import other_columns

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def test_tiny_run_writes_tables_like_the_committed_ones(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert "s in all" in capsys.readouterr().out
    names = [f"{name}.csv" for name in experiments.TABLES]
    assert other_columns(tmp_path, RESULTS, names) == []
    assert sorted(names) == sorted(path.name for path in RESULTS.glob("*.csv"))
    for row in read(tmp_path / "decoding.csv"):
        assert row["cache_bytes"] == row["bytes_by_formula"]


def test_committed_latents_take_less_and_are_not_slower():
    """At 4,096 tokens and more, beside plain cached attention, in one run."""
    for table, least in (("decoding", 3), ("model", 2)):
        rows = read(RESULTS / f"{table}.csv")
        at = {(row["contestant"], row["tokens"]): row for row in rows}
        lengths = {row["tokens"] for row in rows if int(row["tokens"]) >= 4096}
        assert len(lengths) >= 2
        for tokens in lengths:
            plain, latent = (
                at[name, tokens] for name in ("plain: 16 heads", "latent, absorbed")
            )
            assert least * int(latent["cache_bytes"]) < int(plain["cache_bytes"])
            assert float(latent["over_plain"]) >= 1


def test_committed_border_lies_where_absorbing_stops_to_win():
    """Between 64 and 256 new tokens, and less steep than by count."""
    forms = {int(row["new_tokens"]): row for row in read(RESULTS / "forms.csv")}
    found = {T: float(row["absorbed_as_fast"]) for T, row in forms.items()}
    assert [T for T in sorted(found) if found[T] > 1] == [1, 4, 16, 64]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for T, steeper in ((1, 1), (1024, -1)):
        assert steeper * (float(forms[T]["by_count"]) - found[T]) > 0


def test_committed_profile_puts_the_products_with_the_cache_first():
    rows = read(RESULTS / "profile.csv")
    first = {r["contestant"]: r["operation"] for r in rows if r["place"] == "1"}
    fused = first.pop("latent, absorbed")
    assert "flash_attention" in fused
    assert len(first) == 3
    assert set(first.values()) == {"aten::bmm"}


def test_committed_model_narrows_what_the_layer_gains():
    """Groups are faster than latents in both; half the heads pass them late."""
    layer, model = (
        {
            (row["contestant"], int(row["tokens"])): float(row["over_plain"])
            for row in read(RESULTS / f"{table}.csv")
        }
        for table in ("decoding", "model")
    )
    for at, gain in model.items():
        assert 1 <= gain <= layer[at]
    for table in (layer, model):
        for tokens in (4096, 16_384):
            assert (
                table["latent, absorbed", tokens] < table["grouped: 4 groups", tokens]
            )
    late = {
        int(row["tokens"])
        for row in read(RESULTS / "decoding.csv")
        if row["contestant"] == "latent, half the heads"
        and float(row["over_grouped"]) > 1
    }
    assert late == {16_384}


def test_committed_bytes_are_those_of_the_formula():
    for row in read(RESULTS / "decoding.csv"):
        assert row["cache_bytes"] == row["bytes_by_formula"]


def test_contestants_with_latents_give_the_same(experiments):
    """Otherwise their times would be those of different work."""

    class Options:
        tiny, rounds = True, 2

    bench = experiments.LatentBench(Options)
    with torch.no_grad():
        one = experiments.LayerContestant(experiments.ABSORBED, bench, 16)
        x = torch.randn(1, 1, bench.wide["d_in"])
        absorbed = one.step(x, 2)
        one.shared_attention = experiments.by_two_products
        assert torch.allclose(one.step(x), absorbed, atol=1e-5)
        one.extras["absorb"] = False
        assert torch.allclose(one.step(x), absorbed, atol=1e-5)
        assert one.cache.length == 17


def test_the_fused_plain_contestant_gives_the_same(experiments):
    class Options:
        tiny, rounds = True, 2

    bench = experiments.LatentBench(Options)
    with torch.no_grad():
        one = experiments.LayerContestant(experiments.PLAIN, bench, 16)
        fused = experiments.FusedGroups(**bench.wide, num_kv_groups=8)
        x = torch.randn(1, 1, bench.wide["d_in"])
        expected = one.step(x)
        fused.load_state_dict(one.layer.state_dict())
        one.layer = fused
        assert torch.allclose(one.step(x), expected, atol=1e-5)
