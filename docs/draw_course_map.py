"""Write `course-map.png`, the map of the course that the README shows.

The map is drawn once, in chapter 1 (cell `fig-course-map`). This script takes the
picture out of that cell's stored output, and draws it again with Japanese words, for
README.ja.md. A test compares both:

    python docs/draw_course_map.py
"""

import base64
import json
from pathlib import Path

from notebook_drawings import (
    DOCS,
    ROOT,
    WORDS,
    has_japanese,
    house_style,
    japanese,
    run_cells,
    write,
)

from course import figures

NOTEBOOK = "ch01/ch01.ipynb"
CELLS = ("course-map-data", "fig-course-map")
PICTURE = DOCS / "course-map.png"
PICTURE_JA = DOCS / "course-map.ja.png"


def drawn_map() -> bytes:
    """Return the figure's PNG from the notebook."""
    cells = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if cell["id"] == CELLS[-1]]
    (output,) = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
    return base64.b64decode(output["data"]["image/png"])


def drawn_map_in_japanese() -> bytes:
    """Return the same figure as a PNG, its words exchanged."""
    with house_style("ja"):
        fig = run_cells(NOTEBOOK, *CELLS)["shown"]
        japanese(fig, WORDS["course-map"]["ja"])
        return figures.png(fig)


def pictures() -> dict[Path, bytes]:
    """Return the pictures that this machine can draw, by their files."""
    made = {PICTURE: drawn_map()}
    if has_japanese():
        made[PICTURE_JA] = drawn_map_in_japanese()
    return made


if __name__ == "__main__":
    write(pictures())
