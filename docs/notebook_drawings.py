"""Drawings of the notebooks, drawn again for the pages: other words, other sizes.

What a notebook draws is defined there alone. `run_cells` executes some of its cells by
their ids and hands over what they have made; `japanese` exchanges the words.
"""

import ast
import contextlib
import io
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.font_manager
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from course import figures

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
#: A typeface with Japanese signs, in Debian's package fonts-noto-cjk.
JAPANESE_FONT = "Noto Sans CJK JP"
#: By picture and language.
WORDS = tomllib.loads((DOCS / "picture_words.toml").read_text(encoding="utf-8"))


def run_cells(notebook: str, *ids: str, **names: Any) -> dict[str, Any]:
    """Execute cells of a notebook in this order and return their variables.

    `names` are there from the start. A figure that a cell shows is not shown, but is
    the variable `shown` afterwards. What they print is dropped, and what they assert
    about cells that are left out.
    """
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    code = {cell["id"]: "".join(cell["source"]) for cell in cells}

    def keep(fig: Figure, alt: str) -> None:
        names["shown"] = fig

    names["plt"] = plt
    names["figures"] = SimpleNamespace(**{**vars(figures), "show": keep})
    with contextlib.redirect_stdout(io.StringIO()):
        for cell_id in ids:
            tree = ast.parse(code[cell_id])
            tree.body = [n for n in tree.body if not isinstance(n, ast.Assert)]
            exec(compile(tree, f"{notebook}, cell {cell_id}", "exec"), names)
    return names


def has_japanese() -> bool:
    """Tell whether this machine can draw Japanese signs."""
    return JAPANESE_FONT in matplotlib.font_manager.get_font_names()


@contextlib.contextmanager
def house_style(language: str = "en"):
    """Draw in the course's style, in Japanese with a typeface that has the signs."""
    with plt.rc_context():
        figures.style()
        if language == "ja":
            plt.rcParams["font.sans-serif"] = [JAPANESE_FONT, "DejaVu Sans"]
        yield


def japanese(fig: Figure, words: Mapping[str, str]) -> None:
    """Exchange the texts of a figure; code in a typewriter face stays as it is."""
    missing = []
    for text in fig.findobj(Text):
        said = text.get_text()
        if said in words:
            text.set_text(words[said])
            text.set_style("normal")  # the face has no slanted letters
        elif said.strip() and text.get_family() != ["monospace"]:
            missing.append(said)
    if missing:
        raise ValueError(f"no Japanese for {missing}")


def write(pictures: Mapping[Path, bytes]) -> None:
    """Write pictures and say how large they are."""
    for path, data in pictures.items():
        path.write_bytes(data)
        print(f"{os.path.relpath(path)}: {len(data) / 1000:.0f} kB")
