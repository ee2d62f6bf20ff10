"""Write `course-map.png`, the map of the course that the README shows.

The map is drawn once, in chapter 1 (cell `fig-course-map`). This script takes the
picture out of that cell's stored output, so that the two cannot differ:

    python docs/draw_course_map.py

With `--check` it writes nothing and says whether the file is up to date.
"""

import argparse
import base64
import json
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
NOTEBOOK = DOCS.parent / "ch01" / "ch01.ipynb"
CELL = "fig-course-map"
PICTURE = DOCS / "course-map.png"


def drawn_map(notebook: Path = NOTEBOOK) -> bytes:
    """Return the figure's PNG; raise `ValueError` if the notebook does not hold it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell.get("id") == CELL:
            for output in cell["outputs"]:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"])
    raise ValueError(
        f"{notebook.name} holds no picture in a cell with the id {CELL}. "
        "Run `python3 -m course refresh ch01` first."
    )


def main(arguments: list[str] | None = None) -> int:
    """Write or check the picture; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args(arguments)
    try:
        picture = drawn_map()
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    same = PICTURE.is_file() and PICTURE.read_bytes() == picture
    if options.check and not same:
        print(
            f"{PICTURE.name} is not the map of {NOTEBOOK.name}. To draw it again: "
            "python docs/draw_course_map.py"
        )
        return 1
    if not same:
        PICTURE.write_bytes(picture)
    print(f"{PICTURE.name}: {'up to date' if same else 'written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
