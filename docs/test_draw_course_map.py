"""The map in the READMEs is the one that chapter 1 draws."""

import draw_course_map
import numpy as np
import pytest
from notebook_drawings import has_japanese
from test_first_picture import pixels


def test_the_picture_is_the_one_in_the_notebook():
    picture = draw_course_map.PICTURE.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == draw_course_map.drawn_map(), (
        "run `python docs/draw_course_map.py`"
    )


@pytest.mark.skipif(not has_japanese(), reason="needs a typeface with Japanese signs")
def test_the_japanese_picture_is_the_same_with_japanese_words():
    """A word that chapter 1 changes has no Japanese any more, which is an error."""
    now = pixels(draw_course_map.drawn_map_in_japanese())
    stored = pixels(draw_course_map.PICTURE_JA.read_bytes())
    assert stored.shape == now.shape
    assert np.abs(stored - now).mean() < 1, "run `python docs/draw_course_map.py`"
