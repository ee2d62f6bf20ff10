"""How figures look and how they reach a notebook: one style, always with alt text.

`show` is the only way in which a notebook of this course shows a figure: a figure
that cannot be described in a sentence or two does not make a point yet. The drawing
helpers below are shared by several chapters; all colours of a kind differ in
lightness, so that a greyscale print shows what the screen shows.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.rcsetup import cycler
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

SHORTEST_ALT = 20  # characters; less can only name the figure, not describe it
DPI = 110  # 8 inches at this resolution fill the width of a notebook page
SCALE = 2  # dots per pixel of the page, across and down: sharp on dense screens

#: Fills for boxes, from light to dark; black text is readable on the first four.
TONES = ("#ffffff", "#fde9b8", "#b9dcf0", "#8fbf9f", "#c2543d", "#283a5e")
#: Lines in the order in which they are used. Any two can be told apart by people who
#: lack one kind of cone, and in grey; each stands out on white. A test measures it.
LINES = ("#132248", "#e4731d", "#1f6b5b", "#81213b", "#6c7697")
#: Guide lines and what stands in the background: the lightest grey that text may have.
GREY = "#767676"


def style() -> None:
    """Set matplotlib's defaults for this course: call it once in the setup cell."""
    plt.rcParams.update(
        {
            "figure.figsize": (8.0, 3.6),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            # The dashes tell lines apart where colours cannot.
            "axes.prop_cycle": cycler(color=LINES)
            + cycler(linestyle=("-", "--", "-.", ":", (0, (5, 1)))),
            "image.cmap": "cividis",  # lightness rises with the value
            "legend.frameon": False,
        }
    )


def show(fig: Figure, alt: str) -> None:
    """Show a figure in the notebook with the text that stands in for it, and close it.

    `alt` says what the figure shows and what to notice, for readers who do not see
    it; it goes into the output's metadata, from where the JupyterLab of the course and
    the pages for reading put it beside the image, and into the output's plain text,
    which the tests compare. Raises `ValueError` if `alt` is too short to describe a
    figure.
    """
    alt = " ".join(str(alt).split())
    if len(alt) < SHORTEST_ALT:
        raise ValueError(
            f"The alt text {alt!r} is too short: say what the figure shows and what "
            f"to notice, in at least {SHORTEST_ALT} characters."
        )
    picture = png(fig)
    width = Image.open(io.BytesIO(picture)).width // SCALE
    display(
        {
            "image/png": base64.b64encode(picture).decode("ascii"),
            "text/plain": alt,
        },
        # No height: where a page is narrow, some editors would keep it and squash.
        metadata={"image/png": {"alt": alt, "width": width}},
        raw=True,
    )


def png(fig: Figure) -> bytes:
    """Return a figure as a small PNG with `SCALE` dots per pixel, and close it."""
    drawn, made = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=DPI * SCALE)
    plt.close(fig)  # or the notebook would show it a second time, without alt text
    # A palette makes a third of the file and looks the same; one round of k-means
    # keeps the ends of a colour scale, which are rare, apart. Saved anew, the file
    # names no version of matplotlib: equal drawings are equal bytes.
    picture = Image.open(drawn).convert("RGB").quantize(256, kmeans=1)
    picture.save(made, format="png", optimize=True, dpi=(DPI * SCALE, DPI * SCALE))
    return made.getvalue()


def blank(ax: Axes, title: str = "") -> None:
    """Turn axes into a drawing board: no ticks, no frame, equal units, a title."""
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.margins(0.01)  # or the outermost edges would be cut in half
    ax.autoscale_view()
    if title:
        ax.set_title(title)


def box(
    ax: Axes,
    x: float,
    y: float,
    text: object,
    *,
    width: float = 1.0,
    height: float = 1.0,
    tone: int = 0,
    **text_style: Any,
) -> tuple[float, float]:
    """Draw a labelled box with its lower left corner at (x, y); return its centre.

    `tone` is a place in `TONES`; on the two dark ones the text is white. Further
    keywords go to matplotlib's text, `fontsize=9` for one.
    """
    ax.add_patch(
        Rectangle((x, y), width, height, facecolor=TONES[tone], edgecolor="#333333")
    )
    centre = (x + width / 2, y + height / 2)
    look: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "color": "white" if tone > 3 else "black",
    }
    ax.text(*centre, str(text), **(look | text_style))
    return centre


def token_row(
    ax: Axes,
    tokens: Sequence[str],
    ids: Sequence[int] | None = None,
    *,
    x: float = 0.0,
    y: float = 0.0,
    tones: Sequence[int] | int = 1,
    label: str = "",
    width: float | None = None,
    fontsize: float = 10,
) -> list[tuple[float, float]]:
    """Draw tokens as a row of boxes, their ids beneath; return the boxes' centres.

    White space inside a token is made visible: a space as a low open box, a line
    break as an arrow. Boxes are as wide as their text, or all `width` units wide, so
    that rows below one another line up. `tones` is one place in `TONES` or one for
    each token; `label` stands left of the row. A box is 1 unit high.
    """
    if isinstance(tones, int):
        tones = [tones] * len(tokens)
    if label:
        ax.text(x - 0.3, y + 0.5, label, ha="right", va="center", fontsize=fontsize)
    centres = []
    numbers = [""] * len(tokens) if ids is None else ids
    for token, number, tone in zip(tokens, numbers, tones, strict=True):
        shown = visible(str(token))
        wide = width or 0.7 + 0.3 * len(shown)
        centre = box(
            ax,
            x,
            y,
            shown,
            width=wide,
            tone=tone,
            fontsize=fontsize,
            family="monospace",
        )
        if ids is not None:
            below = {"ha": "center", "va": "top", "fontsize": max(9, fontsize - 1)}
            ax.text(centre[0], y - 0.12, str(number), color="#333333", **below)
            ax.update_datalim([(x, y - 0.7)])  # texts alone do not count as data
        centres.append(centre)
        x += wide
    return centres


def visible(token: str) -> str:
    r"""Return a token with its white space shown as signs.

    >>> ascii(visible(" lamp\n"))
    "'\\u2423lamp\\u21b5'"
    """
    for blank_sign, sign in ((" ", "\u2423"), ("\n", "\u21b5"), ("\t", "\u21e5")):
        token = token.replace(blank_sign, sign)
    return token


def number_grid(
    ax: Axes,
    values: Any,
    *,
    x: float = 0.0,
    y: float = 0.0,
    rows: Sequence[object] = (),
    columns: Sequence[object] = (),
    fmt: str = ".2f",
    width: float = 1.6,
    tone: int | Callable[[int, int, float], int] | None = None,
    fontsize: float = 9,
) -> None:
    """Draw a matrix as boxes with its numbers, row 0 on top, labels left and above.

    `values` is anything numpy takes, of rank 2, or of rank 1 for a single row. `tone`
    is one place in `TONES` for all boxes, or a function of (row, column, value); by
    default larger values are darker. (x, y) is the lower left corner of the grid.
    """
    matrix = np.atleast_2d(np.asarray(values))
    height = len(matrix)
    low, high = float(matrix.min()), float(matrix.max())
    for (row, column), value in np.ndenumerate(matrix):
        if callable(tone):
            chosen = tone(row, column, value)
        elif tone is not None:
            chosen = tone
        else:
            chosen = round(3 * (float(value) - low) / ((high - low) or 1.0))
        corner = (x + column * width, y + height - 1 - row)
        box(
            ax,
            *corner,
            format(value.item(), fmt),
            width=width,
            tone=chosen,
            fontsize=fontsize,
        )
    for row, name in enumerate(rows):
        place = (x - 0.25, y + height - 0.5 - row)
        ax.text(*place, str(name), ha="right", va="center", fontsize=fontsize)
    for column, name in enumerate(columns):
        place = (x + (column + 0.5) * width, y + height + 0.15)
        ax.text(*place, str(name), ha="center", va="bottom", fontsize=fontsize)
        ax.update_datalim([(x, y + height + 0.7)])  # room for them below a title


def label_points(
    ax: Axes,
    points: Sequence[Sequence[float]],
    labels: Sequence[str],
    avoid: Sequence[Sequence[float]] = (),
) -> None:
    """Write a label beside each point (x, y) such that no label covers another thing.

    Call it last, when limits and titles stand: free places are looked for in the
    pixels of the figure as it is now, near ones first. A thin line ties a label that
    found its place further off to its point. `avoid` are further points that no label
    may cover, such as those along a curve.
    """
    fig: Any = ax.figure
    fig.draw_without_rendering()  # the layout decides where a point lies
    places = np.asarray(points, dtype=float)
    spots = ax.transData.transform(places)
    others = ax.transData.transform(np.asarray(avoid, dtype=float).reshape(-1, 2))
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in [*spots, *others]]
    for (x, y), spot, label in zip(places, spots, labels):
        text: Any = ax.annotate(
            label,
            (float(x), float(y)),
            (0, 0),
            textcoords="offset points",
            fontsize=9.5,
            va="bottom",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6},
        )
        size: Any = Text.get_window_extent(text, fig.canvas.get_renderer()).size
        tried = [
            (distance, corner, Bbox.from_bounds(*(spot + corner), *size))
            for distance, corner in _around(*size)
        ]
        free = (place for place in tried if not place[2].count_overlaps(taken))
        distance, corner, area = next(free, tried[0])
        text.set_position(corner * 72 / fig.dpi)  # from pixels to points
        text.arrow_patch.set_visible(distance > 15)
        taken.append(area)


def _around(width: float, height: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yield distances and lower left corners of boxes round (0, 0), near ones first."""
    for distance in range(6, 150, 6):
        for degrees in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90):
            angle = np.deg2rad(degrees)
            way = np.array([np.cos(angle), np.sin(angle)])
            yield distance, distance * way + (way - 1) / 2 * (width, height)
