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


@pytest.fixture(autouse=True)
def all_closed():
    yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """The outputs that `show` hands to the notebook: (data, metadata) for each."""
    outputs = []

    def display(data, metadata, raw):
        assert raw, "without raw=True IPython would show a dictionary as text"
        outputs.append((data, metadata))

    monkeypatch.setattr(figures, "display", display)
    return outputs


def line():
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    return fig


def lightness(colour) -> float:
    red, green, blue = matplotlib.colors.to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_show_hands_over_a_picture_with_its_alt_text_once(shown):
    fig = line()
    figures.show(fig, ALT.replace(" ", "\n    ", 3))
    assert not plt.fignum_exists(fig.number)  # or it would be shown twice
    ((data, metadata),) = shown
    assert metadata["image/png"]["alt"] == ALT
    assert data["text/plain"] == ALT
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.format == "PNG"
    assert picture.size[0] > 400
    assert "Software" not in picture.info
    figures.show(line(), ALT)
    assert shown[1] == shown[0]  # equal figures are equal bytes


def test_a_dense_screen_gets_two_dots_for_each_pixel_of_the_page(shown):
    figures.show(plt.figure(figsize=(8, 3)), ALT)
    ((data, metadata),) = shown
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.size == (1760, 660)
    assert metadata == {"image/png": {"alt": ALT, "width": 880}}
    inches = [dots / dpi for dots, dpi in zip(picture.size, picture.info["dpi"])]
    assert inches == pytest.approx([8, 3], rel=1e-3)  # on a slide


def test_the_palette_keeps_the_ends_of_a_colour_scale():
    """The highest values are rare: a palette that counts alone makes them one colour.

    Off by 9 without the round of k-means, by 26 with 128 colours.
    """
    values = np.random.default_rng(1).normal(size=(16, 24))
    fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    look = {"aspect": "auto", "interpolation": "nearest", "cmap": "cividis"}
    drawn = ax.imshow(values, **look)
    ax.set_title("A title of some length")
    fig.colorbar(drawn)
    fig.draw_without_rendering()
    middles = ax.transData.transform(list(np.ndindex(24, 16)))
    across, up = (middles * figures.DPI * figures.SCALE / fig.dpi).astype(int).T
    wanted = 255 * drawn.to_rgba(values.T).reshape(-1, 4)[:, :3]
    picture = np.asarray(Image.open(io.BytesIO(figures.png(fig))).convert("RGB"))
    assert np.abs(picture[::-1][up, across] - wanted).max() < 8


@pytest.mark.parametrize("alt", ["", "   ", "A figure", " \n" * 30])
def test_alt_text_that_says_nothing_is_refused(shown, alt):
    with pytest.raises(ValueError, match="too short: say what the figure shows"):
        figures.show(line(), alt)
    assert shown == []


def test_tones_grow_darker():
    tones = [lightness(tone) for tone in figures.TONES]
    assert all(a - b > 0.05 for a, b in zip(tones, tones[1:]))


#: What light becomes for an eye without one kind of cone, in linear sRGB: Machado,
#: Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision
#: Deficiency, 2009, severity 1.
EYES = {
    "all cones": np.eye(3),
    "no long (protan)": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no middle (deutan)": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no short (tritan)": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def light(colours):
    """Colours (n) as linear sRGB (n, 3)."""
    s = np.array([matplotlib.colors.to_rgb(colour) for colour in colours])
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)


def cielab(linear):
    """CIE L*, a*, b* (n, 3) for a white of (1, 1, 1)."""
    ratios = np.clip(linear, 0, 1) @ XYZ.T / XYZ.sum(axis=1)
    curved = np.where(
        ratios > 216 / 24389, np.cbrt(ratios), (24389 / 27 * ratios + 16) / 116
    )
    x, y, z = curved.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def nearest(colours, eye):
    """The distance, in CIELAB, of the two colours that are most alike."""
    seen = cielab(light(colours) @ np.array(EYES[eye]).T)
    pairs = np.triu_indices(len(colours), k=1)
    return np.linalg.norm(seen[:, None] - seen, axis=-1)[pairs].min()


def contrast(colours):
    """The contrast of each colour with white, as WCAG 2.2 counts it."""
    return 1.05 / (light(colours) @ XYZ[1] + 0.05)


#: A palette that was once used here: its third and fifth are one colour for some.
ALIKE = ("#1f3a5f", "#d1782e", "#7fbfae", "#8c2d4f", "#a9a9a9")


@pytest.mark.parametrize("eye", EYES)
def test_every_eye_tells_any_two_lines_apart(eye):
    assert nearest(figures.LINES, eye) > 14


def test_the_measure_finds_colours_that_only_some_tell_apart():
    assert nearest(ALIKE, "all cones") > 14
    assert nearest(ALIKE, "no middle (deutan)") < 3
    assert contrast(ALIKE).min() < 3
    white, black = cielab(light(["white", "black"]))
    np.testing.assert_allclose([*white, *black], [100, 0, 0, 0, 0, 0], atol=0.01)


def test_grey_tells_any_two_lines_apart_and_all_stand_out_on_white():
    shades = sorted(cielab(light(figures.LINES))[:, 0])
    assert min(np.diff(shades)) > 9
    assert min(contrast(figures.LINES)) > 3  # WCAG 2.2 asks it of lines
    assert contrast([figures.GREY]).min() > 4.5  # and this of text


def test_text_can_be_read_on_every_tone():
    _, ax = plt.subplots()
    for tone, colour in enumerate(figures.TONES):
        figures.box(ax, tone, 0, "lamp", tone=tone)
        text = lightness(ax.texts[-1].get_color())
        assert abs(text - lightness(colour)) > 0.35, f"tone {tone}"


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


def test_boxes_of_a_row_touch_and_have_the_width_that_is_asked_for():
    _, ax = plt.subplots()
    figures.token_row(ax, ["a", "longer", "b"], width=2, x=1)
    spans = [(box.get_x(), box.get_x() + box.get_width()) for box in ax.patches]
    assert spans == [(1, 3), (3, 5), (5, 7)]


def test_number_grid_puts_row_zero_on_top_and_larger_numbers_on_darker_boxes():
    _, ax = plt.subplots()
    figures.number_grid(ax, np.array([[0.0, 1.0], [2.0, 3.0]]), fmt=".0f")
    placed = {text.get_text(): text.get_position() for text in ax.texts}
    assert placed["0"][1] > placed["2"][1]
    assert placed["0"][0] < placed["1"][0]
    shades = [lightness(box.get_facecolor()[:3]) for box in ax.patches]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] > shades[3]


def test_number_grid_draws_a_vector_as_a_row():
    _, ax = plt.subplots()
    figures.number_grid(ax, [1, 2, 3], fmt="d", rows=["x"], columns=["a", "b", "c"])
    assert len(ax.patches) == 3
    assert {text.get_text() for text in ax.texts} == {*"123", "x", *"abc"}


def test_equal_numbers_do_not_divide_by_zero():
    _, ax = plt.subplots()
    figures.number_grid(ax, [[5.0, 5.0]])
    assert len({box.get_facecolor() for box in ax.patches}) == 1


def test_labels_of_points_in_a_heap_do_not_overlap():
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


def test_a_label_leaves_a_curve_free():
    curve = [(x / 200, x / 200) for x in range(201)]
    for avoid in ((), curve):
        fig, ax = plt.subplots(figsize=(3, 2))
        ax.plot(*zip(*curve, strict=True))
        figures.label_points(ax, [(0.5, 0.5)], ["long label"], avoid)
        fig.draw_without_rendering()
        box = Text.get_window_extent(ax.texts[0])
        covered = any(box.contains(*x) for x in ax.transData.transform(curve))
        assert covered == (not avoid)
