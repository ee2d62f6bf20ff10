"""The first minutes of a new reader, in a real browser; and the pictures of them."""

import struct

import make_screenshots as shots
import pytest

import real_browser
from course.running import notebooks
from course.testing.tree_copies import copy_tree

MOST_BYTES = 300_000


def forget_outputs(path):
    """Take a notebook's stored outputs away, so that what appears has been run.

    Returns how many code cells a reader runs until the first figure is drawn.
    """
    notebook = notebooks.read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    notebooks.write(path, notebook)
    return ["figures.show" in cell.source for cell in cells].index(True) + 1


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A browser in which the course has just opened, started as a reader starts it.

    With it: how many code cells of chapter 1 run until the first figure is drawn.
    """
    if shots.problem():
        pytest.skip(shots.problem())
    place = tmp_path_factory.mktemp("walk")
    tree = copy_tree(place)
    drawing = forget_outputs(tree / "ch01" / "ch01.ipynb")
    with shots.lab(tree, place) as address, shots.page(address) as page:
        yield page, drawing


def test_a_new_reader_reads_the_readme_and_runs_the_first_chapter(opened):
    """Lab opens on the rendered README, whose first chapter opens and runs."""
    page, drawing = opened
    reader = shots.Reader(page)
    assert reader.readme() == "GPT by Hand"
    assert reader.open_first_chapter().endswith("/lab/tree/ch01/ch01.ipynb")
    assert reader.run_cells(4) == ["[1]:", "[2]:", "[3]:", "[4]:"]
    ran = 4
    while ran < drawing:  # the code that draws is folded, its number out of sight
        ran += reader.run_active_cell()
    assert reader.errors(drawing) == []
    figure = reader.show_figure()
    assert figure.evaluate("image => image.naturalWidth") > 300


def test_the_picture_is_there_and_small():
    data = (shots.HERE / shots.PICTURE).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    size = struct.unpack(">II", data[16:24])
    assert size == (real_browser.SIZE["width"], real_browser.SIZE["height"])
    assert len(data) < MOST_BYTES


def test_without_a_browser_the_script_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(real_browser.shutil, "which", lambda name: None)
    assert shots.main(["--out", str(tmp_path)]) == 1
    assert "No chromium or Chrome was found. Install one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
