"""Exercise checks: what the reader reads, and that no planted mistake gets through."""

import asyncio
import inspect
import random

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from course.exercises import (
    WrongAnswer,
    answer,
    as_list,
    as_tensor,
    call,
    check,
    expect,
    expect_close,
    expect_equal,
    expect_no_slip,
    expect_number,
    expect_result,
    expect_tensor,
    random_tensor,
    tolerance,
    verify,
)


@check("9.1")
def check_words(attempt):
    expect_equal(call(attempt, "a b"), ["a", "b"], "blanks are kept")
    expect_equal(call(attempt, "a  b"), ["a", "b"], "two blanks give an empty word")
    expect_equal(call(attempt, ""), [], "the empty text has one word")
    return "It splits 3 texts."


def split(text):
    return text.split()


def stub(text):
    """Split a text into words."""
    ...


WRONG = {
    "characters": (lambda text: list(text), "blanks are kept"),
    "one blank": (lambda text: text.split(" ") if text else [], "an empty word"),
    "empty": (lambda text: text.split() or [""], "the empty text has one word"),
}


def judged(judge, *arguments, **keywords):
    """Return the message with which a judge refuses, "" if it accepts."""
    try:
        judge(*arguments, **keywords)
    except AssertionError as error:
        return str(error)
    return ""


# ------------------------------------------------------------------ the three answers


def unfinished(text):
    raise NotImplementedError


def generating_stub(text):
    yield ...


@pytest.mark.parametrize(
    "attempt",
    [
        stub,
        lambda text: ...,
        ...,
        unfinished,
        lambda text: text.split() if text else ...,
    ],
    ids=["body", "return", "name", "raise", "one branch"],
)
def test_every_kind_of_stub_is_not_started(attempt):
    assert answer(check_words, attempt) == "Exercise 9.1: not started\n"


def test_a_wrong_answer_is_shown_without_the_frames_of_the_check():
    """The error says itself what stands in place of its traceback."""
    assert "_render_traceback_" in inspect.getsource(InteractiveShell.showtraceback)
    with pytest.raises(WrongAnswer) as caught:
        check_words(WRONG["characters"][0])
    (line,) = caught.value._render_traceback_()
    assert line.startswith("Exercise 9.1: blanks are kept")


# ------------------------------------------------------------- the reader's own errors


def lookup(text):
    known = {}
    return known[text]


def multiply(text):
    left = torch.ones(2, 3)
    return left @ left


def careful(text):
    assert text == "x", "only x"
    return []


def wait(text):
    asyncio.AbstractEventLoop().run_forever()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lookup, "lookup('a b') raises KeyError: 'a b', in the line `return known[te"),
        # The line is the reader's even when a library raises.
        (multiply, r"in the line `return left @ left`."),
        (lambda: [], "your function('a b') raises TypeError: "),
        (careful, "careful('a b') raises AssertionError: only x"),
        (lambda text: exit("No."), "raises SystemExit: No, in the line `"),
        # A library that cannot do something is not a stub.
        (wait, "wait('a b') raises NotImplementedError, in the line `asyncio."),
        (["a", "b"], "pass your function itself to the check"),
        (["a", "b"], "it was given a list of 2."),
        (None, "pass it your function by name, without calling it"),
    ],
)
def test_an_exception_is_named_with_its_line_and_input(attempt, message):
    said = answer(check_words, attempt)
    assert said.startswith("Exercise 9.1: ")
    assert message in said
    assert "\n" not in said


def test_a_generator_is_watched_and_stays_lazy():
    @check("9.2")
    def check_generator(attempt):
        first = next(call(attempt, 5))
        expect_equal(first, 5, "it does not start at the number")
        expect_equal(list(call(attempt, 5)), [5, 4], "it stops elsewhere")
        return "It counts down."

    def counting(n):
        yield n
        raise ValueError("no more")

    message = answer(check_generator, counting)
    assert message.startswith("Exercise 9.2: counting(5) raises ValueError: no more")
    assert answer(check_generator, generating_stub) == "Exercise 9.2: not started\n"


def test_a_result_that_the_check_cannot_use():
    @check("9.3")
    def check_length(attempt):
        expect(len(call(attempt, 1)) == 1, "too long")
        return "Fine."

    assert answer(check_length, lambda n: n) == (
        "Exercise 9.3: the check cannot use what your code returned (TypeError: object "
        "of type 'int' has no len()); compare its type with the one asked for."
    )


def test_the_input_is_shown_as_it_was_before_the_call_and_shortened():
    def clearing(values):
        if isinstance(values, list):
            values.clear()
        raise ValueError

    assert judged(call, clearing, [1, 2]).startswith("clearing([1, 2]) raises ValueErr")
    message = judged(call, clearing, "two  blanks " + "x" * 5000)
    assert "two  blanks" in message
    assert len(message) < 200
    assert judged(call, clearing, object()).startswith("clearing(an object) raises")


def test_attributes_and_methods_are_called_like_functions():
    class Counter:
        def __init__(self, start):
            self.count = start

        def add(self, n):
            return self.count / n

    counter = call(Counter, 4)
    assert call(counter.add, 2) == 2
    assert judged(call, counter.add, 0).startswith("add(0) raises ZeroDivisionError")


def test_a_check_of_several_attempts():
    @check("9.4")
    def check_pair(encode, decode):
        text = call(decode, call(encode, "a b"))
        expect_equal(text, "a b", "the text does not come back")
        return "It comes back."

    assert "not started" in answer(check_pair, (str.split, ...))
    verify(
        check_pair,
        solution=(str.split, " ".join),
        stub=(..., ...),
        wrong={
            "glued": ((str.split, "".join), "your result is 'ab'"),
            "marked": ((str.split, "_".join), "your result is 'a_b'"),
            "nothing": ((str.split, lambda words: [][0]), "raises IndexError"),
        },
    )


def test_a_check_leaves_the_random_numbers_alone():
    @check("9.5")
    def check_random(attempt):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        call(attempt)
        return "Fine."

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    expected = draw()
    for attempt in (draw, lambda: [][0], ...):
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        assert answer(check_random, attempt)
        assert draw() == expected


# ------------------------------------------------------------------------ the judges


@pytest.mark.parametrize(
    ("actual", "expected", "words"),
    [
        (None, [1], "your result is None where a list is asked for; is the return"),
        ((1, 2), [1, 2], "your result is a tuple of 2 where a list is asked for"),
        ([1], [1, 2], "your result has length 1 where 2 is asked for"),
        ([1, 5], [1, 2, 3], "element [1] of your result is 5"),
        ([[1, 2], [3, 5]], [[1, 2], [3, 4]], "element [1][1] of your result is 5"),
        ({"a": 1, "c": 2}, {"a": 1, "b": 2}, "has a key that does not belong: 'c'"),
        ({"a": 1}, {"a": 1, "b": 2}, "your result has length 1 where 2 is asked for"),
        ({"a": 3}, {"a": 1}, "element ['a'] of your result is 3"),
        (4.0, 4, "the number 4.0 where a whole number is asked for"),
        (True, 1, "your result is True where a whole number is asked for"),
        ("1", 1, "your result is the text '1' where a whole number is asked for"),
        (1, "1", "your result is the number 1 where a text is asked for"),
        ({1}, {2}, "your result is {1}"),
        (range(2), [0, 1], "your result is a range where a list is asked for"),
        (torch.tensor(3), 3, "a tensor of shape () where a whole number is asked for"),
        (np.ones(2), torch.ones(2), "an array of shape (2,) where a tensor is asked"),
        ([1, 2], torch.ones(2), "your result is a list of 2 where a tensor is asked"),
        (torch.ones(2, 3), torch.ones(3, 2), "has shape (2, 3) where (3, 2) is asked"),
        (torch.tensor([1, 5]), torch.tensor([1, 2]), "element [1] of your result is 5"),
    ],
)
def test_what_differs_is_put_into_words(actual, expected, words):
    assert words in judged(expect_equal, actual, expected, "a mistake")


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1, "a", (2.5, None)], [1, "a", (2.5, None)]),
        ({"a": [1]}, {"a": [1]}),
        (np.int64(3), 3),
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2)),
        (torch.ones(0, 3), torch.ones(0, 3)),
        ("", ""),
        (None, None),
    ],
    ids=str,
)
def test_equal_things_pass_both_judges(actual, expected):
    assert judged(expect_equal, actual, expected, "a mistake") == ""
    assert judged(expect_close, actual, expected, "a mistake") == ""


def test_close_means_within_atol_and_no_further():
    near, far = torch.tensor([1.0, 2.0009]), torch.tensor([1.0, 2.0011])
    exact = torch.tensor([1.0, 2.0])
    assert judged(expect_close, near, exact, "a mistake", atol=1e-3) == ""
    assert "1 of 2 entries" in judged(expect_close, far, exact, "m", atol=1e-3)
    assert judged(expect_close, [1.0009], [1], "a mistake", atol=1e-3) == ""
    assert "element [0]" in judged(expect_close, [1.0011], [1.0], "m", atol=1e-3)
    assert "entries" in judged(expect_equal, near, exact, "a mistake")


def test_answers_given_another_way_are_brought_into_one_form():
    array = np.ones((2, 3), dtype=np.float32)
    assert torch.equal(as_tensor(array), torch.ones(2, 3))
    assert as_tensor("words") == "words"
    for lazy in (zip("ab", "cd", strict=True), map(str, [1]), (n for n in [1])):
        assert isinstance(as_list(lazy), list)
    for other in ((1, 2), "ab", 3, torch.ones(2)):
        assert as_list(other) is other


def test_a_right_answer_may_be_as_rough_as_its_number_type():
    right = random_tensor(50)
    slips = {"halved": right / 2, "a hair off": right + 0.035}
    one_off = right.clone()
    one_off[3] += 1
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert judged(expect_result, right.to(dtype), right, slips, "m") == ""
        half = (right / 2).to(dtype)
        assert judged(expect_result, half, right, slips, "m") == "halved"
        message = judged(expect_result, one_off.to(dtype), right, slips, "m")
        assert message.startswith("m (1 of 50 entries")
    near = right + 0.01  # within the digits of bfloat16: no slip is looked for
    assert judged(expect_result, near.bfloat16(), right, slips, "m") == ""
    assert judged(expect_result, near.half(), right, slips, "m").startswith("m (")
    large = 64 * right
    atol = tolerance(large.bfloat16(), 64)
    assert judged(expect_result, large.bfloat16(), large, {}, "m") != ""
    assert judged(expect_result, large.bfloat16(), large, {}, "m", atol) == ""
    assert tolerance(right, 64) == 64 * tolerance(right)


def test_a_slip_is_named_by_the_result_that_it_gives():
    slips = {"halved": torch.tensor([0.5, 1.0]), "alike here": torch.tensor([1.0, 2.0])}
    right = torch.tensor([1.0, 2.0])
    assert judged(expect_no_slip, torch.tensor([0.5, 1.0]), right, slips) == "halved"
    # A slip that gives the right result proves nothing.
    assert judged(expect_no_slip, torch.tensor([1.0, 2.0]), right, slips) == ""
    assert judged(expect_no_slip, torch.tensor([0.5, 1.1]), right, slips) == ""
    near = torch.tensor([0.5009, 1.0])
    assert judged(expect_no_slip, near, right, slips) == ""
    assert judged(expect_no_slip, near, right, slips, atol=1e-3) == "halved"
    assert judged(expect_no_slip, "a text", right, slips) == ""


def test_whole_numbers_pass_for_floats_and_gradients_are_ignored():
    wanting = torch.ones(2, requires_grad=True)
    assert judged(expect_close, torch.ones(2, dtype=torch.long), wanting, "m") == ""
    assert judged(expect_close, 1, 1.0, "a mistake") == ""


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
def test_nan_and_infinity_never_pass_for_a_number(bad):
    for made in (float, lambda number: torch.tensor([number])):
        assert judged(expect_close, made(bad), made(1.0), "a mistake", atol=9)
        assert judged(expect_close, made(1.0), made(bad), "a mistake", atol=9)
        assert judged(expect_close, made(bad), made(bad), "a mistake") == ""


def test_nan_is_called_by_its_name():
    message = judged(expect_close, torch.tensor([1, NAN]), torch.ones(2), "a mistake")
    assert message == "a mistake (your result contains NaN)"


# ----------------------------------------------- verify finds every way to be no check


def check_making(judge):
    """Return a check that judges a list of words with `judge`."""

    @check("9.1")
    def check_something(attempt):
        return judge(call(attempt, "a  b"), attempt)

    return check_something


def one_message_for_all(words, attempt):
    expect(words == ["a", "b"], "blanks are kept or an empty word")
    expect_equal(call(attempt, ""), [], "the empty text has one word")
    return "Fine."


PROBLEMS = {
    "answers its solution with 'Exercise 9.1: wrong order.'": dict(
        check=check_making(lambda words, _: expect(words == ["b"], "wrong order"))
    ),
    "answers its solution with 'Exercise 9.1: correct. no full stop": dict(
        check=check_making(lambda *_: "no full stop")
    ),
    "'Exercise 9.1: correct. Fine.\\n' is no sentence": dict(
        check=check_making(lambda *_: "Fine.")
    ),
    "'blanks are kept' is also in the message for": dict(
        check=check_making(one_message_for_all)
    ),
    "Exercise 9.1 answers its stub with 'Exercise 9.1: correct": dict(stub=split),
    "answers its stub with 'Exercise 9.1: your result is the number 0": dict(
        stub=lambda text: 0
    ),
    "Exercise 9.1 needs three wrong answers, it has 1": dict(
        wrong={"characters": WRONG["characters"]}
    ),
    "'blanks are kept' is not in": dict(
        wrong=WRONG | {"empty": (WRONG["empty"][0], "blanks are kept")}
    ),
    "its fragment is empty": dict(wrong=WRONG | {"empty": (WRONG["empty"][0], " ")}),
    "'word' is also in the message for 'empty'": dict(
        wrong=WRONG | {"one blank": (WRONG["one blank"][0], "word")}
    ),
}


@pytest.mark.parametrize("words", PROBLEMS)
def test_verify_finds_the_planted_defect(words):
    good = dict(check=check_words, solution=split, stub=stub, wrong=WRONG)
    assert judged(verify, **good) == ""
    assert words in judged(verify, **(good | PROBLEMS[words]))


# --- numbers and tensors --------------------------------------------------------------


@pytest.mark.parametrize(
    "found", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2)]
)
def test_a_number_may_come_from_any_library(found):
    assert expect_number(found) == 2.0
    assert type(expect_number(found)) is float


@pytest.mark.parametrize(
    ("found", "words"),
    [(True, "True"), (None, "None"), (torch.ones(1), "a tensor of shape (1,)")],
)
def test_what_is_not_a_number_is_described(found, words):
    message = f"the result is {words}, not a number"
    assert judged(expect_number, found) == message


def test_a_tensor_has_the_shape_and_type_asked_for():
    found = torch.zeros(2, 3)
    assert expect_tensor(found, (2, 3)) is None
    assert expect_tensor(found, (2, 3), dtype=torch.float32) is None
    assert "a list of 2 where a tensor is asked" in judged(expect_tensor, [1, 2], (2,))
    message = judged(expect_tensor, found, (3, 2), "(tokens, width)")
    assert message == "the result has shape (2, 3), not (3, 2): (tokens, width)"
    message = judged(expect_tensor, found, (2, 3), dtype=torch.float64)
    assert message == (
        "the result holds torch.float32, where torch.float64 is asked for"
    )


def test_seeds_give_the_same_numbers_whatever_else_draws():
    first = random_tensor(2, 3, seed=4)
    torch.rand(5)
    assert torch.equal(random_tensor(2, 3, seed=4), first)
    assert not torch.equal(random_tensor(2, 3, seed=5), first)
    assert first.dtype == torch.float64
    assert random_tensor(1, dtype=torch.float32).dtype == torch.float32
