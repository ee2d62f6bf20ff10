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

`call` runs the reader's code; `expect`, `expect_equal`, `expect_close` and
`expect_no_slip` judge what came back; `verify` is for the chapter's tests and proves
that a check accepts the solution and names each of several planted mistakes.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import io
import linecache
import math
import numbers
import random
import re
import reprlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

SHOWN_CHARACTERS = 80


class WrongAnswer(AssertionError):
    """A wrong answer, in one sentence.

    IPython prints what `_render_traceback_` returns instead of a traceback: the frames
    would lie in the check, where there is nothing for the reader to mend.
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

        run.exercise = number  # type: ignore[attr-defined]
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
    _compare(actual, expected, message, _Exact())


def expect_close(actual: Any, expected: Any, message: str, atol: float = 1e-6) -> None:
    """Raise `AssertionError` unless all numbers differ by at most `atol`.

    Takes numbers, tensors, arrays, and lists, tuples and dictionaries of them. Shapes
    and kinds must agree; whole numbers pass for floats and number types are not
    compared. NaN and infinity never pass for a finite number.
    """
    _compare(actual, expected, message, _Close(atol))


def expect_no_slip(
    actual: Any, expected: Any, slips: Mapping[str, Any], atol: float = 1e-6
) -> None:
    """Raise `AssertionError` with the message of the first slip that gives `actual`.

    `slips` maps one sentence on a likely mistake to the result that the mistake would
    give, compared as in `expect_close`. A slip that gives the expected result shows
    elsewhere, or nowhere, and is passed over.
    """
    for message, outcome in slips.items():
        if _agree(actual, outcome, atol) and not _agree(expected, outcome, atol):
            raise AssertionError(message)


def _agree(one: Any, other: Any, atol: float) -> bool:
    return _difference(one, other, _Close(atol), "") is None


def describe(value: Any) -> str:
    """Return the kind and size of a value in words: "a list of 3"."""
    if _is_array(value):
        kind = "a tensor" if _is_tensor(value) else "an array"
        return f"{kind} of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    kind = _kind(value)
    if kind in ("int", "float"):
        return f"the number {value}"
    if kind == "str":
        return f"the text {_short(value)}"
    if kind in ("list", "tuple", "dict", "set", "frozenset"):
        return f"{_a(kind)} of {len(value)}"
    if isinstance(value, type | types.FunctionType | types.MethodType):
        return f"{value.__name__} itself"
    return str(value) if kind == "bool" else _a(kind)


class _Exact:
    """Numbers, texts and everything else must be equal."""

    def leaves_differ(self, actual: Any, expected: Any) -> bool:
        return not bool(actual == expected)

    def arrays_differ(self, actual: Any, expected: Any) -> Any:
        return actual != expected

    def kind(self, value: Any) -> str:
        if _is_array(value):
            return "tensor" if _is_tensor(value) else "array"
        return _kind(value)


class _Close(_Exact):
    """Numbers may differ by `atol`; everything else must be equal."""

    def __init__(self, atol: float):
        self.atol = atol

    def leaves_differ(self, actual: Any, expected: Any) -> bool:
        if self.kind(expected) != "float":
            return super().leaves_differ(actual, expected)
        if not math.isfinite(expected):
            both_nan = actual != actual and expected != expected
            return not (actual == expected or both_nan)
        return not abs(actual - expected) <= self.atol  # "not <=" also refuses NaN

    def arrays_differ(self, actual: Any, expected: Any) -> Any:
        numpy = sys.modules["numpy"]
        close = numpy.isclose(actual, expected, rtol=0, atol=self.atol, equal_nan=True)
        return ~close

    def kind(self, value: Any) -> str:
        kind = super().kind(value)
        return "float" if kind == "int" else kind


def _compare(actual: Any, expected: Any, message: str, rule: _Exact) -> None:
    found = _difference(actual, expected, rule, "")
    if found is None:
        return
    is_kind, words = found
    raise AssertionError(words if is_kind else f"{message.rstrip('. ')} ({words})")


def _difference(
    actual: Any, expected: Any, rule: _Exact, place: str
) -> tuple[bool, str] | None:
    """Return None, or (whether the kind is wrong, where and how it differs)."""
    where = _where(place)
    have, need = rule.kind(actual), rule.kind(expected)
    if actual is None and expected is not None:
        hint = "; is the return statement missing?" if not place else ""
        return True, f"{where} is None where {_a(need)} is asked for{hint}"
    if have != need:
        return True, f"{where} is {describe(actual)} where {_a(need)} is asked for"
    if _is_array(expected):
        return _array_difference(actual, expected, rule, where)
    if isinstance(expected, dict):
        return _mapping_difference(actual, expected, rule, place)
    if isinstance(expected, list | tuple):
        return _sequence_difference(actual, expected, rule, place)
    if rule.leaves_differ(actual, expected):
        return False, f"{where} is {_short(actual)}"
    return None


def _where(place: str) -> str:
    return f"element {place} of your result" if place else "your result"


def _array_difference(
    actual: Any, expected: Any, rule: _Exact, where: str
) -> tuple[bool, str] | None:
    if tuple(actual.shape) != tuple(expected.shape):
        have, need = tuple(actual.shape), tuple(expected.shape)
        return False, f"{where} has shape {have} where {need} is asked for"
    a, e = _plain_array(actual), _plain_array(expected)
    wrong = rule.arrays_differ(a, e)
    count = int(wrong.sum())
    if not count:
        return None
    if (a != a).any() and not (e != e).any():
        return False, f"{where} contains NaN"
    if a.ndim == 0:
        return False, f"{where} is {_short(a.item())}"
    first = [int(i) for i in next(zip(*wrong.nonzero(), strict=True))]
    value = _short(a[tuple(first)].item())
    many = f"{count} of {a.size} entries are wrong"
    return False, f"{many}; element {first} of {where} is {value}"


def _mapping_difference(
    actual: dict, expected: dict, rule: _Exact, place: str
) -> tuple[bool, str] | None:
    where = _where(place)
    if len(actual) != len(expected):
        have, need = len(actual), len(expected)
        return False, f"{where} has length {have} where {need} is asked for"
    for key in actual:
        if key not in expected:
            return False, f"{where} has a key that does not belong: {_short(key)}"
        inside = f"{place}[{_short(key)}]"
        found = _difference(actual[key], expected[key], rule, inside)
        if found:
            return found
    return None


def _sequence_difference(
    actual: Sequence, expected: Sequence, rule: _Exact, place: str
) -> tuple[bool, str] | None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=False)):
        found = _difference(a, e, rule, f"{place}[{index}]")
        if found:
            return found
    if len(actual) != len(expected):
        have, need = len(actual), len(expected)
        where = _where(place)
        return False, f"{where} has length {have} where {need} is asked for"
    return None


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
    number = check.exercise  # type: ignore[attr-defined]
    line = _printed(check, solution, "the solution")
    assert re.fullmatch(rf"Exercise {re.escape(number)}: correct\. \S.*\.\n", line), (
        f"for its solution, exercise {number} prints {line!r}; "
        "the check must return one sentence"
    )
    line = _printed(check, stub, "the stub")
    assert line == f"Exercise {number}: not started\n", (
        f"for its stub, exercise {number} prints {line!r}"
    )
    assert len(wrong) >= 3, (
        f"exercise {number} needs three wrong answers, it has {len(wrong)}"
    )
    messages = {
        name: _message(check, attempt, name) for name, (attempt, _) in wrong.items()
    }
    for name, (_, fragment) in wrong.items():
        _verify_message(number, name, fragment, messages)


def _verify_message(
    number: str, name: str, fragment: str, messages: dict[str, str]
) -> None:
    message = messages[name]
    about = f"exercise {number}, wrong answer {name!r}: "
    assert re.fullmatch(rf"Exercise {re.escape(number)}: \S.*[.?]", message), (
        about + f"{message!r} is no sentence on one line"
    )
    assert fragment.strip(), about + "its fragment is empty"
    assert fragment in message, about + f"{fragment!r} is not in {message!r}"
    for other, text in messages.items():
        assert other == name or text != message, (
            about + f"same message as {other!r}: {text!r}"
        )
        assert other == name or fragment not in text, (
            about + f"{fragment!r} is also in the message for {other!r}: {text!r}"
        )


def _printed(check: Callable[..., None], attempt: Any, name: str) -> str:
    """Return what the check prints for an attempt that it must not refuse."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            _attempt(check, attempt)
    except AssertionError as error:
        raise AssertionError(f"the check refuses {name}: {error}") from error
    return output.getvalue()


def _message(check: Callable[..., None], attempt: Any, name: str) -> str:
    """Return the message of the check for a wrong answer."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            _attempt(check, attempt)
    except AssertionError as error:
        return str(error)
    raise AssertionError(
        f"the check does not refuse {name!r}: it prints {output.getvalue()!r}"
    )


def _attempt(check: Callable[..., None], attempt: Any) -> None:
    check(*attempt) if isinstance(attempt, tuple) else check(attempt)


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
    place = f", in the line `{_cut(line)}`" if line else ""
    raise AssertionError(f"{shown} raises {_named(error)}{place}") from error


def _line_of(error: BaseException) -> str:
    """Return the deepest line of code in the reader's own file or cell."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    theirs = [f for f in frames if f.f_code.co_filename != __file__]
    if not theirs:  # the call itself failed, for example for a missing argument
        return ""
    home = theirs[0].f_code.co_filename
    summary = [
        s for s in traceback.extract_tb(error.__traceback__) if s.filename == home
    ]
    return linecache.getline(home, summary[-1].lineno or 0).strip()


def _named(error: BaseException) -> str:
    text = _one_line(str(error))
    name = type(error).__name__
    return f"{name}: {_cut(text, 3 * SHOWN_CHARACTERS)}" if text else name


def _one_sentence(error: AssertionError) -> str:
    text = _one_line(str(error)) or "the result is not what is asked for"
    return text if text[-1] in ".?" else text + "."


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put back the generators of random, numpy and torch when the check is over."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    with contextlib.ExitStack() as stack:
        if torch:
            cuda = torch.cuda
            devices = range(cuda.device_count()) if cuda.is_initialized() else ()
            stack.enter_context(torch.random.fork_rng(devices))
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)


# -------------------------------------------------------------- putting into words


def _is_tensor(value: Any) -> bool:
    # Without torch in memory there is no tensor, so nothing is imported to find out.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return _is_tensor(value) or (numpy is not None and isinstance(value, numpy.ndarray))


def _plain_array(value: Any) -> Any:
    """Return a numpy array, floats as float64 (numpy knows no bfloat16)."""
    if _is_tensor(value):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    return value.astype("float64") if value.dtype.kind == "f" else value


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return "int" if isinstance(value, numbers.Integral) else "float"
    for known in (bool, str, bytes, list, tuple, dict, set, frozenset):
        if isinstance(value, known):
            return known.__name__
    return type(value).__name__


_WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "truth value",
}


def _a(kind: str) -> str:
    """Return a kind with its article, in words a beginner knows: "a whole number"."""
    word = _WORDS.get(kind, kind)
    return (
        word if word == "None" else f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"
    )


def _short(value: Any) -> str:
    """Return a stable representation of at most about 80 characters on one line."""
    text = _REPRESENTATION.repr(value)
    if " at 0x" in text:  # the address differs in every run
        return describe(value)
    return _cut(_one_line(text))


def _one_line(text: str) -> str:
    # Blanks inside a line stay: in a chapter on text they may be the very mistake.
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _cut(text: str, length: int = SHOWN_CHARACTERS) -> str:
    """Leave out the middle of a long text."""
    half = length // 2
    return (
        text if len(text) <= 2 * half else f"{text[: half - 2]} ... {text[3 - half :]}"
    )


class _Representation(reprlib.Repr):
    """Lists and texts shortened; tensors and arrays as values only when small."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 8
        self.maxstring = self.maxother = self.maxlong = SHOWN_CHARACTERS

    def repr1(self, x: Any, level: int) -> str:
        if _is_array(x):
            many = _plain_array(x).size > 8
            return (
                describe(x)
                if many
                else f"{_kind(x).lower()}({_plain_array(x).tolist()})"
            )
        if isinstance(x, types.FunctionType | type):
            return x.__name__
        return super().repr1(x, level)


_REPRESENTATION = _Representation()


def _shown_call(attempt: Any, arguments: tuple, keywords: dict) -> str:
    name = getattr(attempt, "__name__", type(attempt).__name__)
    name = "your function" if name == "<lambda>" else name
    values = [_short(value) for value in arguments]
    values += [f"{key}={_short(value)}" for key, value in keywords.items()]
    return f"{name}({', '.join(values)})"
