"""Each measure equals that of pandas or scikit-learn; nan says that there is none.

For Kendall's tau pandas asks SciPy.
"""

import math

import numpy as np
import pandas
import pytest
import sklearn.metrics
from agreement import (
    agreement_interval,
    average_ranks,
    cohen_kappa,
    content_and_place,
    flip_rate,
    kendall,
    pearson,
    slope_within,
    spearman,
    win_rate,
    word_overlap,
)
from hypothesis import given
from hypothesis import strategies as st

grade = st.integers(0, 6) | st.floats(-3, 3, allow_subnormal=False).map(
    lambda x: round(x, 3)
)
pairs = st.lists(st.tuples(grade, grade), min_size=2, max_size=40)


def columns(pairs):
    return [list(column) for column in zip(*pairs)]


@given(pairs)
def test_correlations_are_those_of_pandas(pairs):
    x, y = columns(pairs)
    varied = len(set(x)) > 1 and len(set(y)) > 1
    for ours, name in (
        (pearson, "pearson"),
        (spearman, "spearman"),
        (kendall, "kendall"),
    ):
        found = ours(x, y)
        if not varied:
            assert math.isnan(found)
        else:
            theirs = pandas.Series(x).corr(pandas.Series(y), method=name)
            assert found == pytest.approx(theirs, abs=1e-9)


@given(pairs)
def test_ranks_are_those_of_pandas(pairs):
    x, _ = columns(pairs)
    assert average_ranks(x).tolist() == pandas.Series(x).rank().tolist()


@given(st.lists(st.tuples(*[st.sampled_from(["a", "b", "c"])] * 2), min_size=2))
def test_kappa_is_that_of_scikit_learn(pairs):
    a, b = columns(pairs)
    found = cohen_kappa(a, b)
    if len({*a, *b}) == 1:
        assert math.isnan(found)
    else:
        theirs = sklearn.metrics.cohen_kappa_score(a, b)
        assert found == pytest.approx(theirs, abs=1e-12)


@given(st.lists(st.tuples(grade, st.booleans()), min_size=2, max_size=40))
def test_the_win_rate_is_the_area_under_the_curve(pairs):
    x, right = columns(pairs)
    found = win_rate(x, right)
    if len(set(right)) == 1:
        assert math.isnan(found)
    else:
        theirs = sklearn.metrics.roc_auc_score(right, x)
        assert found == pytest.approx(theirs, abs=1e-12)


def test_measures_by_hand():
    assert spearman([1, 2, 3], [10, 100, 1000]) == 1
    assert pearson([1, 2, 3], [10, 100, 1000]) < 0.91
    # Of six pairs five are in the same order and one is not.
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    # 80 % alike, but two who always say no would be, too.
    assert cohen_kappa([0] * 9 + [1], [0] * 8 + [1, 0]) == pytest.approx(-1 / 9)
    assert win_rate([3, 1, 2, 2], [1, 0, 1, 0]) == 0.875


def test_a_judge_who_grades_in_reverse_is_told_by_the_sign():
    x = [1, 2, 2, 3, 5]
    for measure in (pearson, spearman, kendall):
        assert measure(x, [-one for one in x]) == pytest.approx(-1)


# --- Intervals ------------------------------------------------------------------------


def test_questions_are_drawn_with_all_their_replies():
    draw = np.random.default_rng(1)
    questions = np.repeat(np.arange(40), 8)
    level = np.repeat(draw.normal(size=40), 8)  # what a question's replies share
    x = level + 0.1 * draw.normal(size=320)
    y = level + draw.normal(size=40).repeat(8)
    by_question = agreement_interval(pearson, x, y, questions=questions)
    by_reply = agreement_interval(pearson, x, y, questions=np.arange(320))
    assert by_question[0] < pearson(x, y) < by_question[1]
    width = by_question[1] - by_question[0]
    assert width > 2 * (by_reply[1] - by_reply[0])


def test_an_interval_holds_the_truth_as_often_as_it_says():
    draw, held = np.random.default_rng(2), 0
    for seed in range(120):
        shared = draw.normal(size=(60, 3))
        x = shared[:, 0] + shared[:, 1]
        y = shared[:, 0] + shared[:, 2]  # the true correlation is 1/2
        low, high = agreement_interval(
            pearson, x, y, questions=np.arange(60), resamples=200, seed=seed
        )
        held += low <= 0.5 <= high
    assert 0.88 <= held / 120 <= 0.99


def test_draws_without_a_statistic_are_left_out_and_a_seed_repeats_the_rest():
    right = [1, 0, 0, 0]
    asked = {"questions": [0, 1, 2, 3], "resamples": 50}
    first = agreement_interval(win_rate, [4, 3, 2, 1], right, **asked)
    assert first == (1.0, 1.0)
    draw = np.random.default_rng(5)
    columns = draw.normal(size=(2, 30))
    asked["questions"] = np.arange(30) // 2
    again = [
        agreement_interval(pearson, *columns, seed=seed, **asked) for seed in (1, 1, 2)
    ]
    assert again[0] == again[1] != again[2]


# --- Words, places, lengths -----------------------------------------------------------


def test_the_overlap_counts_words_once_each():
    assert word_overlap("It is SHALLOW!", "Shallow.") == pytest.approx(0.5)
    assert word_overlap("no no no", "no") == pytest.approx(0.5)
    assert word_overlap("deep", "Shallow.") == word_overlap("", "x") == 0
    assert word_overlap("a b", "b a") == 1


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1))
def test_content_and_place_make_up_the_margins(pairs):
    first, second = (np.array(column) for column in columns(pairs))
    content, place = content_and_place(first, second)
    assert np.allclose(place + content, first)
    assert np.allclose(place - content, second)
    swapped, same_place = content_and_place(second, first)
    assert np.allclose(swapped, -content)
    assert np.allclose(same_place, place)


def test_a_judge_is_for_a_reply_or_for_a_place():
    assert flip_rate([2, 1, 3], [-2, -1, -0.5]) == 0
    assert flip_rate([2, 1, 3, -1], [1, 1, -2, -2]) == 0.75
    content, place = content_and_place([2.0], [1.0])
    assert (content[0], place[0]) == (0.5, 1.5)


def test_the_slope_is_that_of_a_regression_with_a_constant_for_each_question():
    draw = np.random.default_rng(3)
    questions = draw.integers(12, size=200)
    lengths = draw.integers(1, 30, size=200) + 5 * questions
    grades = 0.3 * lengths - 4 * questions + draw.normal(size=200)
    design = np.column_stack([lengths, *(questions == q for q in range(12))])
    theirs = np.linalg.lstsq(design, grades, rcond=None)[0][0]
    assert slope_within(lengths, grades, questions) == pytest.approx(theirs)
    assert np.polyfit(lengths, grades, 1)[0] < 0 < theirs  # what it is there for
    assert math.isnan(slope_within([3, 4], [1, 2], ["a", "b"]))
