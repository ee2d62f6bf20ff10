"""The experiment runs, its committed table is what it writes, and its ways agree."""

from pathlib import Path

import pytest
import torch

from course.tables import read
from course.testing.experiment_scripts import other_columns

FOLDER = Path(__file__).parent


def test_tiny_run_writes_a_table_like_the_committed_one(experiments, tmp_path, capsys):
    assert experiments.main(["--tiny", "--rounds", "2", "--out", str(tmp_path)]) == 0
    assert "times the look-up's seconds" in capsys.readouterr().out
    assert other_columns(tmp_path, FOLDER / "results", ["cost.csv"]) == []
    rows = read(tmp_path / "cost.csv")
    assert len(rows) == 3 * len(experiments.TINY)
    assert all(float(row["training_seconds"]) > 0 for row in rows)
    assert all(row["rounds"] == "2" for row in rows)


def test_the_committed_table_is_of_the_full_size(experiments):
    rows = read(FOLDER / "results" / "cost.csv")
    found = [(row["way"], int(row["vocabulary"])) for row in rows]
    assert found == [
        (way, size) for size in experiments.VOCABULARIES for way in experiments.WAYS
    ]
    for row in rows:
        size = (row["tokens"], row["width"])
        assert size == (str(experiments.TOKENS), str(experiments.WIDTH))
        if row["way"] == "product":
            assert int(row["kept_bytes"]) == 4 * int(row["tokens"]) * int(
                row["vocabulary"]
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_ways_agree_in_outputs_gradients_and_sizes(experiments, dtype):
    torch.manual_seed(0)
    table, ids = torch.randn(9, 4, dtype=dtype), torch.tensor([3, 0, 3, 8, 3])
    upstream = torch.randn(5, 4, dtype=dtype)
    gradients = {}
    for way in experiments.WAYS:
        leaf = table.clone().requires_grad_()
        out = experiments.vectors(way, leaf, ids)
        assert torch.equal(out, table[ids])
        out.backward(upstream)
        gradients[way] = leaf.grad
        kept = experiments.kept_bytes(way, leaf, ids)
        assert kept == (5 * 9 * table.element_size() if way == "product" else 5 * 8)
    for gradient in gradients.values():
        dense = gradient.to_dense()
        assert torch.allclose(dense, gradients["product"].to_dense(), atol=1e-6)
    sparse = gradients["look-up, sparse gradient"]
    assert sparse.is_sparse
    assert experiments.gradient_bytes(sparse) == 5 * 8 + 5 * 4 * table.element_size()
    assert experiments.gradient_bytes(gradients["look-up"]) == (
        9 * 4 * table.element_size()
    )
