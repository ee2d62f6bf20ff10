"""The script makes every table, and the page says what the committed ones say."""

from pathlib import Path

import pytest

from course import tables
from course.testing.experiment_scripts import other_columns, script_in

HERE = Path(__file__).parent
RESULTS = HERE / "results"
experiments = script_in(HERE)
PARTS = ("counting", "scaling", "long", "copies")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All tables but that of the memory, from made-up books."""
    out = tmp_path_factory.mktemp("tables")
    words = [word for part in PARTS for word in ("--only", part)]
    assert experiments.main(["--tiny", "--out", str(out), *words]) == 0
    return out


def test_the_tables_have_the_committed_columns(made):
    names = [path.name for path in RESULTS.glob("*.csv")]
    assert "counting.csv" in names
    there = [name for name in names if (made / name).exists()]
    assert other_columns(made, RESULTS, there) == []


def test_longer_runs_of_tokens_foretell_better_on_real_books():
    rows = tables.read(RESULTS / "counting.csv")
    assert [row["model"] for row in rows] == [f"{n}-gram" for n in range(1, 6)]
    bits = [float(row["bits_per_byte"]) for row in rows]
    assert bits == sorted(bits, reverse=True)
    page = (HERE / "README.md").read_text(encoding="utf-8")
    assert f"{bits[-1]:.2f} bits per byte" in page


def test_runs_of_one_compute_differ_in_size_only(made):
    rows = tables.read(made / "scaling.csv")
    assert len(rows) == 2
    operations = [
        6 * (12 * blocks * width**2 + 4096 * width)
        for width, blocks in experiments.SIZES
    ]
    steps = [experiments.COMPUTE / count / 512 for count in operations]
    # The largest still takes enough steps to be trained at all.
    assert min(steps) > 50


def test_editions_are_copies_for_the_script(made):
    without, with_copies = tables.read(made / "copies.csv")
    assert int(with_copies["train_books"]) == int(without["train_books"]) + 20
    assert with_copies["tokens_seen"] == without["tokens_seen"]


def test_mixed_books_have_no_run_of_the_old_ones(tmp_path):
    from near_duplicates import jaccard, shingles

    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(experiments.shelf.story(1, 3000), encoding="utf-8")
    experiments.mixed_books(texts, tmp_path / "mixed", 700_000, seed=1)
    files = sorted((tmp_path / "mixed").glob("0*.txt"))
    assert sum(path.stat().st_size for path in files) == pytest.approx(700_000, rel=0.2)
    one, other = (shingles(path.read_text(encoding="utf-8")) for path in files)
    assert jaccard(one, other) < 0.5
