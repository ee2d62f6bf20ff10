"""The first picture shows what the chapters compute, and is the one in the README."""

import io

import draw_first_picture as first
import numpy as np
import pytest
import torch
from notebook_drawings import DOCS, ROOT, WORDS, has_japanese, house_style, japanese
from PIL import Image


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float)


@pytest.fixture(scope="module")
def drawn():
    return first.pictures()


def texts(language):
    with house_style(language):
        fig = first.draw(language)
        found = [text.get_text() for ax in fig.axes for text in ax.texts]
        first.plt.close(fig)
    return found


def test_the_stored_pictures_are_the_drawn_ones(drawn):
    """Up to what another machine rounds differently at the edge of a letter."""
    assert DOCS / "first-picture.png" in drawn
    for path, data in drawn.items():
        stored, now = pixels(path.read_bytes()), pixels(data)
        assert stored.shape == now.shape, path.name
        assert np.abs(stored - now).mean() < 1, (
            "run `python docs/draw_first_picture.py`"
        )


def test_a_picture_is_sharp_and_small():
    for name in (
        "first-picture.png",
        "first-picture.ja.png",
        "course-map.png",
        "course-map.ja.png",
    ):
        data = (DOCS / name).read_bytes()
        assert pixels(data).shape[1] == 1760
        assert len(data) < 100_000


def test_the_map_is_the_one_that_chapter_3_stores():
    """The alt text of the stored figure, which the tests compare, has its numbers."""
    notebook = (ROOT / first.CHAPTER_3).read_text(encoding="utf-8")
    assert "Stone gives 0.79 to swallowed; swallowed gives 0.73 to She" in notebook
    words, weights = first.attention()
    assert words == ["She", "swallowed", "a", "stone"]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    assert {"0.79", "0.73"} <= set(texts("en"))
    assert (f"{weights[3, 1]:.2f}", f"{weights[1, 0]:.2f}") == ("0.79", "0.73")


def test_the_levels_are_those_of_the_results():
    rows, losses = first.curve()
    said = " ".join(texts("en"))
    assert f"{losses['all tokens equally likely']:.2f}" in said
    assert f"{losses['bigram']:.2f}" in said
    lowest = min(float(row["val_loss"]) for row in rows)
    assert lowest == pytest.approx(losses["this model, best"], abs=1e-3)


@pytest.mark.skipif(not has_japanese(), reason="needs a typeface with Japanese signs")
def test_a_label_without_a_translation_is_found():
    with house_style("ja"):
        fig = first.draw("en")
        with pytest.raises(ValueError, match="no Japanese for .*knows nothing"):
            japanese(fig, WORDS["course-map"]["ja"])
        first.plt.close(fig)
