"""What counts as the same output: the tolerance for decimals, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course.running.comparison import same_number, same_text

SAME = {
    "last printed place": ("loss 10.847", "loss 10.846"),
    "a thousandth": ("1234.5 tokens", "1235.5 tokens"),
    "a thousandth of a grouped number": ("12,345.6 tokens", "12,350.6 tokens"),
    "no sign of zero": ("tensor([-0., 0.])", "tensor([0., -0.])"),
    "whole floats gain digits": ("tensor([1.0000, 2.0000])", "tensor([1., 2.])"),
    "almost a whole float": ("[0.9999]", "[1.]"),
    "scientific notation": ("tensor([1.0002e-05])", "tensor([1.0000e-05])"),
    "exponent without a point": ("1e-05", "2e-05"),
    "numpy's form of it": ("[1.e-05]", "[2.e-05]"),
    "with a unit": ("ratio 1.5x", "ratio 1.6x"),
    "padding shifts": ("[-0.0001, 12.5]", "[ 0.0000, 12.5]"),
    "column shifts": ("   loss\n0  9.999\n1  2.5", "    loss\n0  10.000\n1   2.5"),
    "array breaks elsewhere": ("[0.11, 0.2,\n 0.3]", "[0.1, 0.2, 0.3]"),
    "words that are numbers": ("nan inf 0.5001", "nan inf 0.5002"),
    "address": ("<object at 0x7f0123456789>", "<object at 0x55550123abcd>"),
    "address beside a decimal": ("0.511 at 0x7f0123456789", "0.512 at 0x5555abcdef"),
    "kernel's number": ("ipykernel_123/9.py:1: x", "ipykernel_77/9.py:1: x"),
    "Windows line ends": ("a\r\nb", "a\nb"),
}
DIFFERENT = {
    "beyond the last place": ("loss 10.9", "loss 10.6"),
    "integers are exact": ("8 batches", "9 batches"),
    "beside an equal decimal": ("8 batches, 1.50", "9 batches, 1.50"),
    "beside a close decimal": ("8 batches, 1.50", "9 batches, 1.51"),
    "grouped integers": ("50,257 ids", "50,258 ids"),
    "end of a sentence": ("It holds 3.", "It holds 4."),
    "whole floats are exact": ("tensor([10000.])", "tensor([10001.])"),
    "sign": ("tensor([-1.])", "tensor([1.])"),
    "versions": ("torch 2.13.0", "torch 2.14.0"),
    "longer versions": ("3.11.7", "3.11.8"),
    "word": ("loss 1.50 down", "loss 1.51 up"),
    "names with digits": ("conv1.5", "conv1.6"),
    "one number more": ("[1.0, 2.0]", "[1.0]"),
    "integer for a float": ("tensor([1])", "tensor([1.])"),
    "nan for a number": ("loss nan", "loss 1.0"),
    "layout where no digit changed": ("loss  1.50", "loss 1.50"),
    "line break between words": ("loss 1.50\nok", "loss 1.51 ok"),
    "brackets": ("[[1.50], [2.50]]", "[1.51, 2.50]"),
    "hexadecimal that is no address": ("colour 0xff00ff", "colour 0xff00fe"),
    "nothing": ("", "1.5"),
}


@pytest.mark.parametrize(("new", "stored"), SAME.values(), ids=SAME)
def test_counts_as_the_same(new, stored):
    assert same_text(new, stored)


@pytest.mark.parametrize(("new", "stored"), DIFFERENT.values(), ids=DIFFERENT)
def test_counts_as_different(new, stored):
    assert not same_text(new, stored)
    assert not same_text(stored, new)


@pytest.mark.parametrize(
    ("new", "stored", "same"),
    [
        ("0.51", "0.50", True),  # one unit of the last place
        ("0.52", "0.50", False),
        ("1001.0", "1000.0", True),  # a thousandth
        ("1001.2", "1000.0", False),
        ("0.0001", "0.", True),  # an array's four places
        ("0.0002", "0.", False),
        ("2e-5", "1e-5", True),
        ("2.1e-5", "1.0e-5", False),
    ],
)
def test_the_tolerance_ends_where_it_should(new, stored, same):
    assert same_number(new, stored) is same


@given(
    st.lists(st.floats(-100, 100).map(lambda x: round(x, 4)), min_size=1, max_size=6),
    st.integers(0, 5),
    st.floats(0.3, 50),
)
def test_a_number_that_is_really_wrong_is_found_among_right_ones(values, place, error):
    wrong = list(values)
    wrong[place % len(values)] += error  # more than a thousandth of any of them
    assert not same_text(printed(wrong), printed(values))


def printed(values) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"
