"""Write `schedules.png`, the figure that this folder's page shows.

It is drawn in appendix D (cell `schedules-figure`); here it is taken out of that cell's
stored output, and a test compares the two:

    python3 -m course run ch05/04_learning_rate_schedulers/take_figure.py

>>> PICTURE.name, NOTEBOOK.name
('schedules.png', 'appendix-D.ipynb')
"""

import argparse
import base64
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent
PICTURE = FOLDER / "schedules.png"
HOME = FOLDER.parent.parent / "appendix-D" / "01_main-chapter-code"
NOTEBOOK = HOME / "appendix-D.ipynb"


def figure_of(cell_id: str) -> bytes:
    """The PNG that a cell of the notebook has drawn."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    (outputs,) = (cell.outputs for cell in cells if cell.id == cell_id)
    return base64.b64decode(outputs[0].data["image/png"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the figure from the notebook; return the exit code."""
    argparse.ArgumentParser(description=main.__doc__).parse_args(arguments)
    PICTURE.write_bytes(figure_of("schedules-figure"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
