"""Exercise checks: what the reader reads, and that no planted mistake gets through."""

import atexit
import contextlib
import io
import random

import numpy as np
import pytest
import torch

from course import exercises
from course.exercises import (
    WrongAnswer,
    call,
    check,
    expect,
    expect_close,
    expect_equal,
    expect_no_slip,
    expect_number,
    expect_tensor,
    random_tensor,
    seeded,
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


def line_of(check, *attempts):
    """Return what a check prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert check(*attempts) is None
    return output.getvalue()


def message_of(check, *attempts):
    """Return the message of the check for a wrong answer."""
    with pytest.raises(AssertionError) as caught:
        check(*attempts)
    return str(caught.value)


def judged(judge, *arguments, **keywords):
    """Return the message with which a judge refuses, "" if it accepts."""
    try:
        judge(*arguments, **keywords)
    except AssertionError as error:
        return str(error)
    return ""


# ------------------------------------------------------------------ the three answers


def test_a_right_answer_is_praised_with_what_was_verified():
    assert line_of(check_words, split) == "Exercise 9.1: correct. It splits 3 texts.\n"


def unfinished(text):
    raise NotImplementedError


def generating_stub(text):
    yield ...


@pytest.mark.parametrize(
    "attempt",
    [stub, lambda text: ..., ..., unfinished],
    ids=["body", "return", "name", "raise"],
)
def test_every_kind_of_stub_is_not_started(attempt):
    assert line_of(check_words, attempt) == "Exercise 9.1: not started\n"


def test_a_stub_that_yields_is_not_started():
    @check("9.2")
    def check_generator(attempt):
        list(call(attempt, "a"))
        return "Fine."

    assert line_of(check_generator, generating_stub) == "Exercise 9.2: not started\n"


def test_a_stub_in_one_branch_is_found_wherever_the_check_gets():
    half = line_of(check_words, lambda text: text.split() if text else ...)
    assert half == "Exercise 9.1: not started\n"


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_one_sentence(name):
    attempt, fragment = WRONG[name]
    message = message_of(check_words, attempt)
    assert message.startswith("Exercise 9.1: ")
    assert fragment in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_wrong_answer_is_shown_without_the_frames_of_the_check(monkeypatch, tmp_path):
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell()
    shell.user_ns.update(check=check_words, answer=WRONG["characters"][0])
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            result = shell.run_cell("check(answer)")
    finally:
        shell.atexit_operations()  # closes its history file
        atexit.unregister(shell.atexit_operations)
        shell.restore_sys_module_state()
    assert isinstance(result.error_in_exec, AssertionError)
    shown = output.getvalue()
    assert "Exercise 9.1: blanks are kept" in shown
    assert "Traceback" not in shown
    assert ".py" not in shown


def test_the_message_never_holds_the_expected_value():
    message = judged(expect_equal, [1, 2, 3], [1, 2, 4567], "the last one is wrong")
    assert message == "the last one is wrong (element [2] of your result is 3)"


# ------------------------------------------------------------- the reader's own errors


def test_an_exception_is_named_with_its_line_and_input():
    def lookup(text):
        known = {}
        return known[text]

    assert message_of(check_words, lookup) == (
        "Exercise 9.1: lookup('a b') raises KeyError: 'a b', in the line "
        "`return known[text]`."
    )


def test_the_line_is_the_readers_even_when_a_library_raises():
    def multiply(text):
        left = torch.ones(2, 3)
        return left @ left

    message = message_of(check_words, multiply)
    assert "multiply('a b') raises RuntimeError" in message
    assert "in the line `return left @ left`." in message


def test_a_function_with_other_parameters():
    message = message_of(check_words, lambda: [])
    assert "your function('a b') raises TypeError" in message
    assert "takes 0 positional arguments but 1 was given" in message


def test_an_assertion_of_the_readers_own_is_an_error_like_any_other():
    def careful(text):
        assert text == "x", "only x"
        return []

    assert "careful('a b') raises AssertionError: only x" in message_of(
        check_words, careful
    )


def test_a_library_that_cannot_do_something_is_not_a_stub():
    import asyncio

    def wait(text):
        asyncio.AbstractEventLoop().run_forever()

    message = message_of(check_words, wait)
    assert "wait('a b') raises NotImplementedError, in the line `asyncio." in message


def test_leaving_python_is_an_error_like_any_other():
    assert "raises SystemExit: 3" in message_of(check_words, lambda text: exit(3))


def test_an_exception_in_a_generator_is_named():
    @check("9.2")
    def check_generator(attempt):
        first = next(call(attempt, 5))
        expect_equal(first, 5, "it does not start at the number")
        expect_equal(list(call(attempt, 5)), [5, 4], "it stops elsewhere")
        return "It counts down."

    def counting(n):
        yield n
        raise ValueError("no more")

    message = message_of(check_generator, counting)
    assert message.startswith("Exercise 9.2: counting(5) raises ValueError: no more")


def test_a_generator_stays_lazy():
    def endless(n):
        while True:
            yield n

    assert next(call(endless, 3)) == 3


def test_a_result_that_the_check_cannot_use():
    @check("9.3")
    def check_length(attempt):
        expect(len(call(attempt, 1)) == 1, "too long")
        return "Fine."

    assert message_of(check_length, lambda n: n) == (
        "Exercise 9.3: the check cannot use what your code returned (TypeError: object "
        "of type 'int' has no len()); compare its type with the one asked for."
    )


def test_a_result_instead_of_the_function():
    assert "pass your function itself" in message_of(check_words, ["a", "b"])
    assert "given a list of 2" in message_of(check_words, ["a", "b"])
    assert "without calling it" in message_of(check_words, None)


def test_the_input_is_shown_as_it_was_before_the_call():
    def clearing(values):
        values.clear()
        raise ValueError

    with pytest.raises(AssertionError, match=r"clearing\(\[1, 2\]\) raises ValueError"):
        call(clearing, [1, 2])


def test_a_long_input_is_shortened_and_blanks_are_kept():
    def failing(text):
        raise ValueError

    message = judged(call, failing, "two  blanks " + "x" * 5000)
    assert "two  blanks" in message
    assert len(message) < 200


def test_addresses_never_appear():
    def failing(thing):
        raise ValueError

    assert judged(call, failing, object()).startswith("failing(an object) raises")


def test_attributes_and_methods_are_called_like_functions():
    class Counter:
        def __init__(self, start):
            self.count = start

        def add(self, n):
            return self.count / n

    counter = call(Counter, 4)
    assert call(counter.add, 2) == 2
    with pytest.raises(AssertionError, match=r"add\(0\) raises ZeroDivisionError"):
        call(counter.add, 0)


def test_a_check_of_several_attempts():
    @check("9.4")
    def check_pair(encode, decode):
        text = call(decode, call(encode, "a b"))
        expect_equal(text, "a b", "the text does not come back")
        return "It comes back."

    assert "correct" in line_of(check_pair, str.split, " ".join)
    assert "not started" in line_of(check_pair, str.split, ...)
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
        with contextlib.suppress(AssertionError):
            line_of(check_random, attempt)
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
    assert judged(expect_close, bad, 1.0, "a mistake", atol=9)
    assert judged(expect_close, torch.tensor([bad]), torch.ones(1), "m", atol=9)
    assert judged(expect_close, 1.0, bad, "a mistake", atol=9)
    assert judged(expect_close, torch.ones(1), torch.tensor([bad]), "m", atol=9)
    assert judged(expect_close, bad, bad, "a mistake") == ""
    assert judged(expect_close, torch.tensor([bad]), torch.tensor([bad]), "m") == ""


def test_nan_is_called_by_its_name():
    message = judged(expect_close, torch.tensor([1, NAN]), torch.ones(2), "a mistake")
    assert message == "a mistake (your result contains NaN)"


def test_expect_takes_any_condition():
    assert judged(expect, [1], "a mistake") == ""
    assert judged(expect, [], "a mistake") == "a mistake"


def test_a_bare_assertion_in_a_check_still_gives_a_sentence():
    @check("9.6")
    def check_bare(attempt):
        if call(attempt) != 2:
            raise AssertionError
        return "Fine."

    message = message_of(check_bare, lambda: 1)
    assert message == "Exercise 9.6: the result is not what is asked for."


# ----------------------------------------------- verify finds every way to be no check


def broken(problem):
    """Return `verify`'s arguments with one thing wrong about the check or its test."""

    @check("9.1")
    def check_something(attempt):
        words = call(attempt, "a  b")
        if problem == "refuses the solution":
            expect(words == ["b", "a"], "the order is wrong")
        if problem == "accepts a wrong answer":
            return "Fine."
        if problem == "one message for all":
            expect(words == ["a", "b"], "blanks are kept or an empty word")
        expect(" " not in words, "blanks are kept")
        expect("" not in words, "an empty word")
        expect_equal(call(attempt, ""), [], "the empty text has one word")
        return "no full stop" if problem == "no sentence" else "Fine."

    wrong = dict(WRONG)
    if problem == "two wrong answers":
        del wrong["empty"]
    if problem == "another fragment":
        wrong["empty"] = (wrong["empty"][0], "blanks are kept")
    if problem == "empty fragment":
        wrong["empty"] = (wrong["empty"][0], " ")
    if problem == "shared fragment":
        wrong["one blank"] = (wrong["one blank"][0], "word")
    started = problem == "stub is started"
    return dict(
        check=check_something,
        solution=split,
        stub=split if started else stub,
        wrong=wrong,
    )


def test_verify_accepts_a_good_check():
    verify(check_words, split, stub, WRONG)
    assert judged(verify, **broken("")) == ""


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (
            "refuses the solution",
            "the check refuses the solution: Exercise 9.1: the or",
        ),
        ("accepts a wrong answer", "does not refuse 'characters'"),
        ("one message for all", "same message as"),
        ("two wrong answers", "exercise 9.1 needs three wrong answers, it has 2"),
        ("another fragment", "'blanks are kept' is not in"),
        ("empty fragment", "its fragment is empty"),
        ("shared fragment", "'word' is also in the message for 'empty'"),
        ("stub is started", "for its stub, exercise 9.1 prints"),
        ("no sentence", "for its solution, exercise 9.1 prints"),
    ],
)
def test_verify_finds_the_planted_defect(problem, words):
    assert words in judged(verify, **broken(problem))


def test_verify_refuses_a_stub_that_the_check_calls_wrong():
    arguments = broken("")
    arguments["stub"] = lambda text: 0
    assert "the check refuses the stub" in judged(verify, **arguments)


def test_wrong_answers_are_assertion_errors_with_the_error_behind_them():
    with pytest.raises(WrongAnswer) as caught:
        check_words(lambda text: text.nothing)
    assert issubclass(exercises.WrongAnswer, AssertionError)
    assert "AttributeError" in str(caught.value)


# --- numbers and tensors --------------------------------------------------------------


@pytest.mark.parametrize(
    "found", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2)]
)
def test_a_number_may_come_from_any_library(found):
    assert expect_number(found) == 2.0
    assert type(expect_number(found)) is float


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (True, "True"),
        ("2", "the text '2'"),
        (None, "None"),
        ([2], "a list of 1"),
        (torch.ones(1), r"a tensor of shape \(1,\)"),
    ],
)
def test_what_is_not_a_number_is_described(found, words):
    with pytest.raises(AssertionError, match=f"the result is {words}, not a number"):
        expect_number(found)


def test_a_tensor_has_the_shape_and_type_asked_for():
    found = torch.zeros(2, 3)
    assert expect_tensor(found, (2, 3)) is None
    assert expect_tensor(found, (2, 3), dtype=torch.float32) is None
    with pytest.raises(AssertionError, match="a list of 2 where a tensor is asked for"):
        expect_tensor([1, 2], (2,))
    with pytest.raises(AssertionError, match=r"not \(3, 2\): \(tokens, width\)"):
        expect_tensor(found, (3, 2), "(tokens, width)")
    with pytest.raises(AssertionError, match=r"holds torch\.float32, where .*float64"):
        expect_tensor(found, (2, 3), dtype=torch.float64)


def test_seeds_give_the_same_numbers_whatever_else_draws():
    first = random_tensor(2, 3, seed=4)
    torch.rand(5)
    assert torch.equal(random_tensor(2, 3, seed=4), first)
    assert not torch.equal(random_tensor(2, 3, seed=5), first)
    assert first.dtype == torch.float64
    assert random_tensor(1, dtype=torch.float32).dtype == torch.float32
    assert torch.equal(
        torch.rand(2, generator=seeded(3)), torch.rand(2, generator=seeded(3))
    )
