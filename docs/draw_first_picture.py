"""Draw `first-picture.png`, the picture at the top of the README, in two languages.

On the left the attention map to which chapter 3 leads (cell `fig-qkv-map`), computed
here by that chapter's own cells; on the right the loss of chapter 5's model, from its
`results/full-curve.csv` and `full-summary.csv`:

    python docs/draw_first_picture.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from notebook_drawings import (
    DOCS,
    ROOT,
    WORDS,
    has_japanese,
    house_style,
    run_cells,
    write,
)

from course import figures, tables

RESULTS = ROOT / "ch05/01_main-chapter-code/results"
CHAPTER_3 = "ch03/01_main-chapter-code/ch03.ipynb"
CELLS = ("fig-x-numbers", "hand-weights", "hand-weights-made", "fig-qkv-map-numbers")


def attention() -> tuple[list[str], torch.Tensor]:
    """Return the words of chapter 3's sentence and its attention weights (T, T)."""
    words = ["She", "swallowed", "a", "stone"]
    made = run_cells(CHAPTER_3, *CELLS, torch=torch, words=words)
    return words, made["qkv_weights"]


def curve() -> tuple[list[dict[str, str]], dict[str, float]]:
    """Return the measured steps of the long run, and the losses to compare with."""
    summary = tables.read(RESULTS / "full-summary.csv")
    losses = {row["what"]: float(row["val_loss"]) for row in summary}
    return tables.read(RESULTS / "full-curve.csv"), losses


def draw(language: str) -> Figure:
    """Return the figure with its words in `en` or `ja`."""
    words = WORDS["first-picture"][language]
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.15), width_ratios=(1.15, 1))
    sentence, weights = attention()
    figures.number_grid(
        left, weights, rows=sentence, columns=sentence, width=3.0, tone=0, fontsize=10
    )
    for box, weight in zip(left.patches, weights.flatten().tolist(), strict=True):
        box.set_facecolor(plt.cm.Blues(0.6 * weight))
    figures.blank(left, words["map"])
    rows, losses = curve()
    at = [int(row["step"]) for row in rows]
    named = zip(("train", "val"), ("train_loss", "val_loss"), ((40, 1.1), (40, 6.4)))
    for name, column, place in named:
        drawn = right.plot(at, [float(row[column]) for row in rows])
        right.text(*place, words[name], fontsize=9.5, color=drawn[0].get_color())
    right.texts[0].set(x=2, y=1.1)
    levels = {"uniform": "all tokens equally likely", "bigram": "bigram"}
    for name, what in levels.items():
        right.axhline(losses[what], color=figures.GREY, lw=1, ls="-")
        place = (97, losses[what] + (0.25 if name == "uniform" else -1.15))
        text = words[name].format(losses[what])
        right.text(*place, text, ha="right", fontsize=9, color="#555555")
    right.set(xlabel=words["step"], ylabel=words["loss"], xlim=(0, 97), ylim=(0, 12.5))
    right.set_title(words["curve"])
    return fig


def pictures() -> dict[Path, bytes]:
    """Return the pictures that this machine can draw, by their files."""
    made = {}
    for language, ending in (("en", ""), ("ja", ".ja")):
        if language == "en" or has_japanese():
            with house_style(language):
                made[DOCS / f"first-picture{ending}.png"] = figures.png(draw(language))
    return made


if __name__ == "__main__":
    write(pictures())
