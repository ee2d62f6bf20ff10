"""Write `course-map.png`, the map of the course that the README shows.

The map is drawn once, in chapter 1 (cell `fig-course-map`). This script takes the
picture out of that cell's stored output, and a test compares the two:

    python docs/draw_course_map.py
"""

import base64
import json
from pathlib import Path

DOCS = Path(__file__).resolve().parent
NOTEBOOK = DOCS.parent / "ch01" / "ch01.ipynb"
CELL = "fig-course-map"
PICTURE = DOCS / "course-map.png"


def drawn_map() -> bytes:
    """Return the figure's PNG from the notebook."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if cell["id"] == CELL]
    (output,) = cell["outputs"]
    return base64.b64decode(output["data"]["image/png"])


if __name__ == "__main__":
    PICTURE.write_bytes(drawn_map())
