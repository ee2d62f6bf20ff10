"""The gate on comments that say where a number comes from: what it looks up."""

import pytest

from course.gates import accounts
from course.testing.tiny_trees import check_gate, notebook

FILES = {
    "ch02/results/a.csv": "what,seconds\nplain,5.386\nfast,3.204\nbig,1610.6\n",
    "ch03/results/a.csv": "what,seconds\nplain,7.5\n",
    "ch02/test_page.py": '"""Compares README.md."""\n',
    "ch02/x.ipynb": notebook("# X", "n = 4.25"),
}


def check(folder, source, message, number="5.4"):
    page = f"It is {number}. <!-- number {number}: {source} -->\n"
    made = FILES | {"ch02/README.md": page}
    check_gate(accounts.accounts_of_numbers, folder, made, message)


@pytest.mark.parametrize(
    ("number", "source"),
    [
        ("5.4", "the slowest in a.csv"),
        ("5.4", "ch02/results/a.csv, first row"),
        ("1,610.6", "megabytes in a.csv"),  # beside another number and a comma
        ("7.5", "ch03/results/a.csv, first row"),
        ("4.25", "printed in x.ipynb"),
        ("131,000", "32 * 4,095"),
        ("0.8", "4 * 12 * 128 ** 2 / 10 ** 6"),
        ("1.0078", "1 + 2 ** -7, the spacing of bfloat16 at 1"),
        ("1.7", "a.csv, 5.386 / 3.204"),
        ("99", "100 - (2 - 1)"),
        ("5.5", "read here by test_page.py"),
        ("8.3", "math.log(4096), which the figure draws"),
        ("1,024", "arXiv:2503.19786, section 2"),
        ("5.4", "table 5 of the paper, 2022"),
    ],
)
def test_true_or_out_of_reach(tmp_path, number, source):
    check(tmp_path, source, 0, number)


@pytest.mark.parametrize(
    ("number", "source", "message"),
    [
        ("5.5", "the slowest in a.csv", "results/a.csv does not hold 5.5"),
        ("7.5", "the slowest in a.csv", "ch02/results/a.csv does not hold 7.5"),
        ("5.4", "the slowest in b.csv", "no file b.csv is near"),
        ("132,000", "32 * 4,095", "and that is 131,040"),
        ("1.8", "a.csv, 5.386 / 3.204", "and that is 1.6"),
        ("1.7", "a.csv, 5.386 / 3.104", "does not hold 3.104"),
        ("5.4", "read here by test_gone.py", "no file test_gone.py is near"),
        ("5.4", "read here by results/a.csv and x.ipynb", "x.ipynb does not hold 5.4"),
    ],
)
def test_untrue(tmp_path, number, source, message):
    check(tmp_path, source, message, number)


@pytest.mark.parametrize("text", ["__import__('os')", "2 **", "9 ** 9 ** 9", "1 / 0"])
def test_only_arithmetic_is_computed(text):
    with pytest.raises(ValueError, match="is no formula|is no arithmetic"):
        accounts.value_of(text)
