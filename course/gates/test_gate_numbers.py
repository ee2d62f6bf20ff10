"""Fine points of the gate on numbers in prose: what is looked at, what counts."""

import pytest

from course.gates import numbers
from course.markdown import Page
from course.testing.tiny_trees import (
    check_gate,
    code,
    html,
    markdown,
    miniature,
    notebook,
    stream,
)


def found_in(text, path="ch02/x.md", sections=()):
    page = Page(path, text)
    return [number.text for number in numbers.quoted(page, frozenset(sections))]


@pytest.mark.parametrize(
    "text",
    [
        "Section 2.6, sections 2.3 and 2.4, sections 2.1, 2.2 and 2.5, \u00a7 3.2",
        "Exercise 2.1, exercises 2.1 to 2.7, figure 3.1, Table 4.2, equation (2.3)",
        "## 2.6 Windows and targets\n\n| 2.1 | easy |\n\n- **2.2** more",
        "Python 3.11, PyTorch 2.13, Apache-2.0, CC BY 4.0, Apache License 2.0, v0.1",
        "Llama 3.2, Qwen2.5, SmolLM2-1.7B, GPT-3.5, `torch==2.13.0`, 3.11.7",
        "$x = 0.25$ and $$y \\approx 1,024$$ and \\(0.5\\)",
        "[paper](https://x.org/1706.03762), https://x.org/2.5, arXiv:1706.03762",
        "<!-- 3.14 --> <img width='0.5' alt='a'>",
        "<!-- ledger: ch02 -->\n| 3.14 | 1,024 |\n<!-- /ledger -->",
        "in 2017, 12 of them, 100000, 127.0.0.1, a[0.5:], 1,2,3",
        "a_0.5 and x.25",
    ],
)
def test_left_alone(text):
    assert found_in(text) in ([], ["0.5"] if "a[" in text else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("about 3.14, or 1,024", ["3.14", "1,024"]),
        ("from 0.8-1.2 to -0.25", ["0.8", "1.2", "0.25"]),
        ("Section 2.6, 1.5 tokens", ["1.5"]),
        ("a share of 12.5% or 1.5 million", ["12.5%", "1.5 million"]),
        ("costs $5.50 and $6.50", ["5.50", "6.50"]),
        ("`print(0.75)` and\n```\n0.25\n```", ["0.75", "0.25"]),
        ("\u7d043.5\u79d2\u3067\u3059", ["3.5"]),
        ("[2.5 seconds](a.md)", ["2.5"]),
        ("1.5e-3 and 2.5x", ["1.5e-3", "2.5"]),
        ("it ends with 2.5.", ["2.5"]),
        ("| 2.5 seconds | 1,000 |", ["2.5", "1,000"]),
    ],
)
def test_looked_at(text, expected):
    assert found_in(text) == expected


def test_headings_numbers_point_but_do_not_measure():
    text = "2.2    2.3-2.5, and 2.3 seconds"
    assert found_in(text, sections=["2.2", "2.3", "2.5"]) == ["2.3"]


def check(folder, expected, prose, *cells, files=()):
    path = "ch02/01_main-chapter-code/ch02.ipynb"
    made = {path: notebook("# Title", markdown(prose), *cells), **dict(files)}
    check_gate(numbers.numbers_in_notebooks, folder, made, expected)


@pytest.mark.parametrize(
    ("prose", "cell"),
    [
        ("1,024", code("n = 1024")),
        ("1,024", code("n = 1_024")),
        ("1,024", code("n = 4", stream("(1024,)\n"))),
        ("1,024.0", code("n = 4", stream("n: 1,024"))),
        ("0.125", code("n", stream("12.5%"))),
        ("12.5%", code("n = 0.125")),
        ("12.5 percent", code("n = 0.1249")),
        ("3.14", code("n", stream("3.14159\n"))),
        ("1.5 million", code("n", stream("1,499,648\n"))),
        ("0.001", code("n = 1e-3")),
        ("-0.25", code("n = -0.25")),
        ("0.3", code("print('a share of 0.3')")),
        ("0.5", code("n", html("<td>0.5</td>"))),
    ],
)
def test_produced(tmp_path, prose, cell):
    check(tmp_path, 0, f"It is {prose} here.", cell)


@pytest.mark.parametrize(
    ("prose", "cell"),
    [
        ("1,024", code("n = 1025")),
        ("3.14", code("n", stream("3.15\n"))),
        ("3.14", code("n = 4  # 3.14")),
        ("0.5", code("n = 0.51")),  # one digit is no rounding: it must be there
        ("12.5%", code("n = 12.4", stream("0.124"))),
        ("3.14159", code("n", stream("3.14\n"))),
        ("1,024", markdown("1024 stands in other prose only")),
    ],
)
def test_not_produced(tmp_path, prose, cell):
    words = f"ch02.ipynb:cell 2: the number {prose} is in no code cell or output here"
    check(tmp_path, words, f"It is {prose} here.", cell, "1")


def test_a_linked_file_of_figures_counts(tmp_path):
    prose = "It is 3.14, see [the figures](results/a.csv)."
    path = "ch02/01_main-chapter-code/results/a.csv"
    check(tmp_path, 0, prose, "1", files={path: "x,y\n1,3.14\n"})
    check(tmp_path, 1, prose, "1", files={path: "x,y\n1,3.15\n"})


@pytest.mark.parametrize(
    ("prose", "message"),
    [
        ("It is 1,542. <!-- number 1,542: the paper, table 2 -->", ""),
        ("It is 1,542. <!-- number 1,542: yes -->", "gives no reason"),
        ("`<!-- number 1,542: the paper -->`", ""),  # an example of one
        ("It is 1543. <!-- number 1,542: the paper, table 2 -->", "is left over"),
    ],
)
def test_an_account_must_say_something_true(tmp_path, prose, message):
    check(tmp_path, message, prose, "1")


def test_a_page_is_held_to_the_notebooks_below_and_to_what_it_links(tmp_path):
    files = {
        "ch02/a/x.ipynb": notebook("# X", "n = 3.25"),
        "ch03/a/y.ipynb": notebook("# Y", "n = 4.25"),
        "ch02/README.md": "3.25 and 4.25",
        "README.md": "[x](ch02/a/x.ipynb) 3.25, [ch03](ch03/) 4.25, 5.25",
    }
    tree = miniature(tmp_path, files)
    found = [finding.partition(" is")[0] for finding in numbers.numbers_in_pages(tree)]
    assert found == [
        "README.md:1: the number 5.25",
        "ch02/README.md:1: the number 4.25",
    ]
