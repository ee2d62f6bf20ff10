"""What the exercise checks of all chapters share.

A chapter keeps its checks in ``chNN_checks.py``. A check is a function that receives
the reader's function, tries it, and returns one sentence on what it verified:

>>> @check("0.1")
... def check_0_1(attempt):
...     expect_equal(call(attempt, 3), 9, "the number is doubled rather than squared")
...     return "It squares 3."

The reader meets one of three answers, each of them one line:

>>> check_0_1(lambda n: ...)
Exercise 0.1: not started
>>> check_0_1(lambda n: n * n)
Exercise 0.1: correct. It squares 3.
>>> check_0_1(lambda n: 2 * n)
Traceback (most recent call last):
    ...
course.exercises.WrongAnswer: Exercise 0.1: the number is doubled rather than squared \
(your result is 6).

`call` runs the reader's code; `as_tensor` and `as_list` bring what came back into one
form, `expect` and its kin judge it; `seeded` and `random_tensor` make what to try it
on; `verify` is for the chapter's tests and proves that a check accepts the solution and
names each of several planted mistakes.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import io
import numbers
import random
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy

from course.differences import (
    SHOWN_CHARACTERS,
    cut,
    describe,
    difference,
    one_line,
    short,
)

if TYPE_CHECKING:
    import torch


class WrongAnswer(AssertionError):
    """A wrong answer, in one sentence.

    IPython prints what `_render_traceback_` returns instead of a traceback: the frames
    would lie in the check, where there is nothing for the reader to fix.
    """

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class _NotStarted(Exception):
    """The stub of an exercise still stands: it returned `...`."""


# ------------------------------------------------------------------------- a check


def check(number: str) -> Callable[[Callable[..., str]], Callable[..., None]]:
    """Turn `check_2_1(attempt) -> sentence` into the check of exercise `number`.

    The decorated function prints one line for a stub and for a right answer and raises
    `WrongAnswer`, an `AssertionError`, for a wrong one. It leaves the random number
    generators as it found them, so that solving an exercise changes no later output of
    the notebook.
    """

    def decorate(function: Callable[..., str]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*attempts: Any) -> None:
            try:
                with _random_state_kept():
                    _refuse_missing(attempts)
                    sentence = function(*attempts)
            except _NotStarted:
                print(f"Exercise {number}: not started")
                return
            except AssertionError as error:
                raise WrongAnswer(
                    f"Exercise {number}: {_one_sentence(error)}"
                ) from None
            except Exception as error:
                # The reader's code runs inside `call`, so this comes from the check
                # working on a result of an unforeseen kind.
                raise WrongAnswer(
                    f"Exercise {number}: the check cannot use what your code returned "
                    f"({_named(error)}); compare its type with the one asked for."
                ) from error
            print(f"Exercise {number}: correct. {sentence}")

        run.exercise = number  # pyright: ignore[reportAttributeAccessIssue]
        return run

    return decorate


def call(attempt: Any, *arguments: Any, **keywords: Any) -> Any:
    """Call the reader's function, class or method and return what it returns.

    A stub (`return ...`, or a body of `...` alone) ends the check as not started. An
    exception becomes an `AssertionError` that names it, its line and the input. A
    generator comes back as a lazy iterator that is watched in the same way.
    """
    if not callable(attempt):
        raise AssertionError(
            "pass your function itself to the check, without parentheses after its "
            f"name; it was given {describe(attempt)}"
        )
    shown = _shown_call(attempt, arguments, keywords)  # now: it may change them
    if _is_stub(attempt):
        raise _NotStarted
    try:
        result = attempt(*arguments, **keywords)
    except (Exception, SystemExit) as error:
        _blame(error, shown)
    if result is ...:
        raise _NotStarted
    if isinstance(result, types.GeneratorType):
        return _watched(result, shown)
    return result


# ---------------------------------------------------------------- judging an answer


def expect(condition: Any, message: str) -> None:
    """Raise `AssertionError(message)` unless `condition` holds."""
    if not condition:
        raise AssertionError(message)


def expect_equal(actual: Any, expected: Any, message: str) -> None:
    """Raise `AssertionError` unless `actual` equals `expected`, of the same kind.

    `message` is one sentence on the likely mistake. What is added to it in brackets
    says where `actual` goes wrong, never what it should have been. A result of another
    kind (a tuple for a list, a number for a tensor) gets a sentence of its own instead.
    """
    expect_close(actual, expected, message, atol=None)


def expect_close(
    actual: Any, expected: Any, message: str, atol: float | None = 1e-6
) -> None:
    """Raise `AssertionError` unless all numbers differ by at most `atol`.

    Takes numbers, tensors, arrays, and lists, tuples and dictionaries of them. Shapes
    and kinds must agree; whole numbers pass for floats and number types are not
    compared. NaN and infinity never pass for a finite number.
    """
    found = difference(actual, expected, atol)
    if found is not None:
        is_kind, words = found
        raise AssertionError(words if is_kind else f"{message.rstrip('. ')} ({words})")


def expect_no_slip(
    actual: Any, expected: Any, slips: Mapping[str, Any], atol: float = 1e-6
) -> None:
    """Raise `AssertionError` with the message of the first slip that gives `actual`.

    `slips` maps one sentence on a likely mistake to the result that the mistake would
    give, compared as in `expect_close`. A slip that gives the expected result shows
    elsewhere, or nowhere, and is passed over.
    """
    for message, outcome in slips.items():
        alike = difference(actual, outcome, atol) is None
        if alike and difference(expected, outcome, atol):
            raise AssertionError(message)


def expect_number(found: Any) -> float:
    """Return a number of any library as a float; raise `AssertionError` for others."""
    scalar = describe(found).endswith(" of shape ()")
    number = isinstance(found, numbers.Real) and not isinstance(found, bool)
    expect(scalar or number, f"the result is {describe(found)}, not a number")
    return float(found)


def expect_tensor(
    found: Any,
    shape: tuple[int, ...],
    about: str = "",
    dtype: torch.dtype | None = None,
) -> None:
    """Raise `AssertionError` unless `found` is a tensor of this shape.

    `about` says what the dimensions are. A number type is compared if one is given.
    """
    import torch

    expect(
        isinstance(found, torch.Tensor),
        f"the result is {describe(found)} where a tensor is asked for",
    )
    here, about = tuple(found.shape), f": {about}" if about else ""
    expect(here == shape, f"the result has shape {here}, not {shape}{about}")
    expect(
        dtype is None or found.dtype == dtype,
        f"the result holds {found.dtype}, where {dtype} is asked for",
    )


def expect_result(
    found: torch.Tensor,
    right: torch.Tensor,
    slips: Mapping[str, torch.Tensor],
    message: str,
    atol: float | None = None,
) -> None:
    """Raise `AssertionError` unless a tensor is as near as its number type comes.

    A slip, as in `expect_no_slip`, is looked for only then: in half precision a right
    answer may lie near one. `atol` is for numbers that `tolerance` alone is wrong for.
    """
    import torch

    atol = tolerance(found) if atol is None else atol
    found = found.to(torch.float64)
    if difference(found, right, atol) is not None:
        expect_no_slip(found, right, slips, atol)
        expect_close(found, right, message, atol)


# -------------------------------------------------------- answers given another way


def as_tensor(found: Any) -> Any:
    """Return an array of NumPy as a tensor, anything else as it is."""
    import torch

    return torch.from_numpy(found) if isinstance(found, numpy.ndarray) else found


def as_list(found: Any) -> Any:
    """Return what a generator, `zip` or `map` yields as a list, else `found` itself."""
    return list(found) if isinstance(found, Iterator) else found


def tolerance(found: torch.Tensor, size: float = 1.0) -> float:
    """Return how far a right answer of this number type may lie from float64.

    bfloat16 has two or three digits, float16 three. `size` is the largest number that
    is expected; up to a few units 1 will do.
    """
    import torch

    atol = {torch.bfloat16: 0.03, torch.float16: 0.004}.get(found.dtype, 1e-4)
    return atol * max(1.0, size)


# ------------------------------------------------------------------ what checks try


def seeded(seed: int) -> torch.Generator:
    """Return a generator of random numbers of its own."""
    import torch

    return torch.Generator().manual_seed(seed)


def random_tensor(
    *shape: int, seed: int = 0, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return reproducible normal numbers; in float64, so that only mistakes count."""
    import torch

    return torch.randn(
        *shape, generator=seeded(seed), dtype=torch.float64 if dtype is None else dtype
    )


# ------------------------------------------------------------------ for the tests


def verify(
    check: Callable[..., None],
    solution: Any,
    stub: Any,
    wrong: Mapping[str, tuple[Any, str]],
) -> None:
    """Prove a check: it takes the solution and the stub, and tells the mistakes apart.

    `wrong` names at least three planted mistakes, each with the part of the message
    that belongs to it alone. An attempt is a function, or a tuple for a check that
    takes several. Raises `AssertionError` that says which promise the check breaks.
    """
    name = f"Exercise {check.exercise}"  # pyright: ignore[reportFunctionMemberAccess]
    said = answer(check, solution)
    assert re.fullmatch(rf"{re.escape(name)}: correct\. \S.*\.\n", said), (
        f"{name} answers its solution with {said!r} and not with one sentence of praise"
    )
    said = answer(check, stub)
    assert said == f"{name}: not started\n", f"{name} answers its stub with {said!r}"
    assert len(wrong) >= 3, f"{name} needs three wrong answers, it has {len(wrong)}"
    messages = {key: answer(check, attempt) for key, (attempt, _) in wrong.items()}
    for key, (_, fragment) in wrong.items():
        message = messages[key]
        about = f"{name}, wrong answer {key!r}: "
        assert re.fullmatch(rf"{re.escape(name)}: (?!correct\.)\S.*[.?]", message), (
            f"{about}{message!r} is no sentence on one line that refuses it"
        )
        assert fragment.strip(), f"{about}its fragment is empty"
        assert fragment in message, f"{about}{fragment!r} is not in {message!r}"
        for other, text in messages.items():
            assert other == key or fragment not in text, (
                f"{about}{fragment!r} is also in the message for {other!r}: {text!r}"
            )


def answer(check: Callable[..., None], attempt: Any) -> str:
    """Return what a check prints, or the message with which it refuses an attempt."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            check(*attempt) if isinstance(attempt, tuple) else check(attempt)
    except AssertionError as error:
        return str(error)
    return output.getvalue()


# ------------------------------------------------------------------- the machinery


def _refuse_missing(attempts: tuple) -> None:
    if any(attempt is ... for attempt in attempts):
        raise _NotStarted
    if any(attempt is None for attempt in attempts):
        raise AssertionError(
            "the check was given None; pass it your function by name, "
            "without calling it"
        )


def _is_stub(attempt: Any) -> bool:
    """Whether a function's body does nothing: `...` or `pass`, docstring or not."""
    code = getattr(attempt, "__code__", None)
    if code is None or code.co_flags & inspect.CO_GENERATOR:
        return False
    steps = [i for i in dis.get_instructions(code) if i.opname not in _NO_WORK]
    # Python 3.12 and 3.13 know RETURN_CONST; before and after, there are two steps.
    return [step.opname for step in steps] in (
        ["LOAD_CONST", "RETURN_VALUE"],
        ["RETURN_CONST"],
    ) and steps[0].argval in (None, ...)


_NO_WORK = {"RESUME", "NOP", "CACHE", "COPY_FREE_VARS"}


def _watched(generator: Iterator, shown: str) -> Iterator:
    """Yield what the reader's generator yields; treat its errors as `call` does."""
    while True:
        try:
            item = next(generator)
        except StopIteration:
            return
        except (Exception, SystemExit) as error:
            _blame(error, shown)
        if item is ...:
            raise _NotStarted
        yield item


def _blame(error: BaseException, shown: str) -> NoReturn:
    """Turn an exception of the reader's code into one sentence."""
    line = _line_of(error)
    # Libraries raise this error too, for something that they cannot do.
    if isinstance(error, NotImplementedError) and line.startswith("raise "):
        raise _NotStarted from None
    place = f", in the line `{cut(line)}`" if line else ""
    raise AssertionError(f"{shown} raises {_named(error)}{place}") from error


def _line_of(error: BaseException) -> str:
    """Return the deepest line of code in the reader's own file or cell."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__]
    if not theirs:  # the call itself failed, for example for a missing argument
        return ""
    home = [frame for frame in theirs if frame.filename == theirs[0].filename]
    return home[-1].line or ""


def _named(error: BaseException) -> str:
    text = one_line(str(error)).rstrip(".")  # a sentence goes on
    name = type(error).__name__
    return f"{name}: {cut(text, 3 * SHOWN_CHARACTERS)}" if text else name


def _one_sentence(error: AssertionError) -> str:
    text = one_line(str(error))
    return text if text.endswith((".", "?")) else text + "."


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put back the generators of random, numpy and torch when the check is over."""
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with contextlib.ExitStack() as stack:
        if torch:
            cuda = torch.cuda
            devices = range(cuda.device_count()) if cuda.is_initialized() else ()
            stack.enter_context(torch.random.fork_rng(devices))
        try:
            yield
        finally:
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)


def _shown_call(attempt: Any, arguments: tuple, keywords: dict) -> str:
    name = getattr(attempt, "__name__", type(attempt).__name__)
    name = "your function" if name == "<lambda>" else name
    values = [short(value) for value in arguments]
    values += [f"{key}={short(value)}" for key, value in keywords.items()]
    return f"{name}({', '.join(values)})"
