"""The map in the README is the one that chapter 1 draws."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).with_name("draw_course_map.py")


def test_the_picture_is_the_one_in_the_notebook():
    script = runpy.run_path(str(SCRIPT))
    picture = script["PICTURE"].read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture == script["drawn_map"](), "run `python docs/draw_course_map.py`"
