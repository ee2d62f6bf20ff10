"""The script makes every table, and the page says what the committed ones say."""

import subprocess
import sys
from pathlib import Path

import pytest

from course import tables
from course.testing.experiment_scripts import other_columns, script_in
from course.testing.programs import variables

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


def test_a_table_of_memory_goes_on_with_the_sizes_that_it_lacks(made):
    row = {"megabytes": "0.05", "tokens": "7", "prepare_mib": "8"}
    row |= {"prepare_seconds": "9", "train_mib": "10"}
    tables.write(made / "memory.csv", [row | experiments.tables.facts()])
    # It measures processes of its own, which import it by its name.
    command = [sys.executable, str(HERE / "experiments.py"), "--tiny"]
    command += ["--out", str(made), "--only", "memory"]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=variables(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "0.1 MB: preparing them" in done.stdout
    assert "0.05 MB" not in done.stdout
    first, second = tables.read(made / "memory.csv")
    assert {name: first[name] for name in row} == row
    assert second["megabytes"] == "0.1"
    assert min(float(second[name]) for name in ("prepare_mib", "train_mib")) > 50


def test_a_part_that_was_made_is_not_made_again(made, capsys):
    before = (made / "long.csv").read_bytes(), (made / "long-curve.csv").read_bytes()
    words = ["--tiny", "--out", str(made), "--only", "long"]
    assert experiments.main(words) == 0
    assert "step" not in capsys.readouterr().out  # of training
    assert (
        (made / "long.csv").read_bytes(),
        (made / "long-curve.csv").read_bytes(),
    ) == (before)
    # Another seed is another run.
    assert experiments.main([*words, "--seed", "7"]) == 0
    assert "step 6 of 6" in capsys.readouterr().out
    assert (made / "long.csv").read_bytes() != before[0]


def test_the_seconds_of_a_run_are_those_of_all_its_parts(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,seconds\n0,1.5\n1,4.0\n2,0.5\n3,2.25\n")
    assert experiments.seconds_in(log) == 4.0 + 2.25


def test_the_long_run_in_two_processes(made, capfd):
    """Made by torchrun: the same batches, and so nearly the same loss."""
    rows = []
    for out, more in ((made, []), (made / "two", ["--processes", "2"])):
        words = ["--tiny", "--out", str(out), "--only", "long", *more]
        assert experiments.main(words) == 0
        rows += tables.read(out / "long.csv")
    assert "2 process(es)" in capfd.readouterr().out
    alone, together = rows
    assert (alone["processes"], together["processes"]) == ("1", "2")
    assert together["tokens_seen"] == alone["tokens_seen"]
    assert abs(float(together["val_loss"]) - float(alone["val_loss"])) < 0.01


def test_editions_are_copies_for_the_script(made):
    without, with_copies, same_words = tables.read(made / "copies.csv")
    for row in (with_copies, same_words):
        assert int(row["train_books"]) == int(without["train_books"]) + 20
        assert row["tokens_seen"] == without["tokens_seen"]
    names = ("without", "with", "with-vocabulary-without")
    folders = [made / "runs" / f"shards-{name}" for name in names]
    own, other, taken = ((folder / "tokenizer.json").read_bytes() for folder in folders)
    assert own == taken != other
    cut = [experiments.ids_of(folder, "validation") for folder in folders]
    assert cut[0].tolist() == cut[2].tolist()
    # Stopped among the editions it makes the rest, and all of them from the same novel.
    editions = made / "runs" / "editions"
    names = {path.name: path.read_bytes() for path in editions.iterdir()}
    assert len(names) == 6 + 20
    (editions / "austen-0-edition07.txt").unlink()
    words = ["--tiny", "--out", str(made), "--only", "copies"]
    assert experiments.main(words) == 0
    assert {path.name: path.read_bytes() for path in editions.iterdir()} == names


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
