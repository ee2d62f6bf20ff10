"""Figures reach the notebook once, with alt text, and can be read in greyscale."""

import base64
import io

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from course import figures

ALT = "A line that rises from one to two; its slope is what to notice."


@pytest.fixture
def shown(monkeypatch):
    """The outputs that `show` hands to the notebook: (data, metadata) for each."""
    outputs = []

    def display(data, metadata, raw):
        assert raw, "without raw=True IPython would show a dictionary as text"
        outputs.append((data, metadata))

    monkeypatch.setattr(figures, "display", display)
    yield outputs
    plt.close("all")


def line():
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    return fig


def lightness(colour) -> float:
    red, green, blue = matplotlib.colors.to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_show_hands_over_a_picture_with_its_alt_text(shown):
    figures.show(line(), ALT)
    ((data, metadata),) = shown
    assert metadata == {"image/png": {"alt": ALT}}
    assert data["text/plain"] == ALT
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.format == "PNG"
    assert picture.size[0] > 400


def test_equal_figures_are_equal_bytes_and_say_nothing_of_their_maker(shown):
    figures.show(line(), ALT)
    figures.show(line(), ALT)
    first, second = (data["image/png"] for data, _ in shown)
    assert first == second
    assert "Software" not in Image.open(io.BytesIO(base64.b64decode(first))).info


def test_show_closes_the_figure_so_that_it_is_not_shown_twice(shown):
    fig = line()
    figures.show(fig, ALT)
    assert not plt.fignum_exists(fig.number)


def test_alt_text_over_several_lines_becomes_one(shown):
    figures.show(line(), "A line that rises\n    from one to two.")
    assert shown[0][0]["text/plain"] == "A line that rises from one to two."


@pytest.mark.parametrize("alt", ["", "   ", "A figure", " \n" * 30])
def test_alt_text_that_says_nothing_is_refused(shown, alt):
    with pytest.raises(ValueError, match="too short: say what the figure shows"):
        figures.show(line(), alt)
    assert shown == []


def test_show_names_the_mistake_when_it_gets_axes(shown):
    _, ax = plt.subplots()
    with pytest.raises(TypeError, match="takes a matplotlib figure first, not Axes"):
        figures.show(ax, ALT)


def test_tones_grow_darker_and_lines_alternate_so_that_grey_tells_them_apart():
    tones = [lightness(tone) for tone in figures.TONES]
    assert all(a - b > 0.05 for a, b in zip(tones, tones[1:]))
    lines = [lightness(colour) for colour in figures.LINES]
    assert all(abs(a - b) > 0.1 for a, b in zip(lines, lines[1:]))


def test_text_can_be_read_on_every_tone():
    _, ax = plt.subplots()
    for tone, colour in enumerate(figures.TONES):
        figures.box(ax, tone, 0, "lamp", tone=tone)
        text = lightness(ax.texts[-1].get_color())
        assert abs(text - lightness(colour)) > 0.35, f"tone {tone}"
    plt.close("all")


def test_style_dashes_lines_as_well_as_colouring_them():
    with plt.rc_context():
        figures.style()
        cycle = list(plt.rcParams["axes.prop_cycle"])
    assert len({str(entry["linestyle"]) for entry in cycle}) == len(cycle)
    assert [entry["color"] for entry in cycle] == list(figures.LINES)


def test_token_row_shows_white_space_and_ids_and_returns_centres():
    _, ax = plt.subplots()
    centres = figures.token_row(ax, ["The", " lamp", "\n"], [464, 20450, 198])
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["The", "464", "\u2423lamp", "20450", "\u21b5", "198"]
    assert [y for _, y in centres] == [0.5, 0.5, 0.5]
    assert centres[0][0] < centres[1][0] < centres[2][0]
    plt.close("all")


def test_boxes_of_a_row_touch_and_have_the_width_that_is_asked_for():
    _, ax = plt.subplots()
    figures.token_row(ax, ["a", "longer", "b"], width=2, x=1)
    spans = [(box.get_x(), box.get_x() + box.get_width()) for box in ax.patches]
    assert spans == [(1, 3), (3, 5), (5, 7)]
    plt.close("all")


def test_token_row_wants_an_id_for_each_token():
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="2 tokens but 1 ids"):
        figures.token_row(ax, ["a", "b"], [1])
    plt.close("all")


def test_number_grid_puts_row_zero_on_top_and_larger_numbers_on_darker_boxes():
    _, ax = plt.subplots()
    figures.number_grid(ax, np.array([[0.0, 1.0], [2.0, 3.0]]), fmt=".0f")
    placed = {text.get_text(): text.get_position() for text in ax.texts}
    assert placed["0"][1] > placed["2"][1]
    assert placed["0"][0] < placed["1"][0]
    shades = [lightness(box.get_facecolor()[:3]) for box in ax.patches]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] > shades[3]
    plt.close("all")


def test_number_grid_draws_a_vector_as_a_row_and_refuses_a_cube():
    _, ax = plt.subplots()
    figures.number_grid(ax, [1, 2, 3], fmt="d", rows=["x"], columns=["a", "b", "c"])
    assert len(ax.patches) == 3
    assert {text.get_text() for text in ax.texts} == {*"123", "x", *"abc"}
    with pytest.raises(ValueError, match="not arrays of rank 3"):
        figures.number_grid(ax, np.zeros((2, 2, 2)))
    plt.close("all")


def test_equal_numbers_do_not_divide_by_zero():
    _, ax = plt.subplots()
    figures.number_grid(ax, [[5.0, 5.0]])
    assert len({box.get_facecolor() for box in ax.patches}) == 1
    plt.close("all")


def test_labels_of_points_in_a_heap_do_not_overlap(shown):
    fig, ax = plt.subplots(figsize=(4, 3))
    points = np.random.default_rng(1).normal(size=(24, 2)) * 0.4
    ax.scatter(*points.T)
    ax.set(xlim=(-2, 2), ylim=(-2, 2))
    figures.label_points(ax, points, [f"word{n}" for n in range(24)])
    fig.draw_without_rendering()
    # The words alone: an annotation's own extent takes in the line to its point.
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 24
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * 24  # itself
