"""Where two values differ, in words that a reader of an exercise understands.

Tensors, arrays, numbers, texts and whatever holds them are compared with each other;
what is said never contains the expected value:

>>> difference([1, 2, 4], [1, 2, 3])
(False, 'element [2] of your result is 4')
>>> difference((1, 2), [1, 2])
(True, 'your result is a tuple of 2 where a list is asked for')
>>> difference(0.30000001, 0.3, atol=1e-6) is None
True
>>> describe([1, 2])
'a list of 2'
"""

from __future__ import annotations

import math
import numbers
import re
import reprlib
import sys
import types
from collections.abc import Sequence
from typing import Any

SHOWN_CHARACTERS = 80


def difference(
    actual: Any, expected: Any, atol: float | None = None
) -> tuple[bool, str] | None:
    """Return None, or (whether the kind is wrong, where and how `actual` differs).

    Without `atol` values must be equal and of the same kind; with it numbers may differ
    by so much, and whole numbers pass for floats.
    """
    rule = _Exact() if atol is None else _Close(atol)
    return _difference(actual, expected, rule, "")


# --- Comparing -----------------------------------------------------------------------


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

    def __init__(self, atol: float) -> None:
        self.atol = atol

    def leaves_differ(self, actual: Any, expected: Any) -> bool:
        if self.kind(expected) != "float":
            return super().leaves_differ(actual, expected)
        if not math.isfinite(expected):
            both_nan = math.isnan(actual) and math.isnan(expected)
            return not (actual == expected or both_nan)
        return not abs(actual - expected) <= self.atol  # "not <=" also refuses NaN

    def arrays_differ(self, actual: Any, expected: Any) -> Any:
        numpy = sys.modules["numpy"]
        close = numpy.isclose(actual, expected, rtol=0, atol=self.atol, equal_nan=True)
        return ~close

    def kind(self, value: Any) -> str:
        kind = super().kind(value)
        return "float" if kind == "int" else kind


def _difference(
    actual: Any, expected: Any, rule: _Exact, place: str
) -> tuple[bool, str] | None:
    """Return None, or (whether the kind is wrong, where and how it differs)."""
    where = _where(place)
    have, need = rule.kind(actual), rule.kind(expected)
    if have == "None" != need:
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
        return False, f"{where} is {short(actual)}"
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
    if _holds_nan(a) and not _holds_nan(e):
        return False, f"{where} contains NaN"
    if a.ndim == 0:
        return False, f"{where} is {short(a.item())}"
    first = [int(i) for i in next(zip(*wrong.nonzero(), strict=True))]
    value = short(a[tuple(first)].item())
    many = f"{count} of {a.size} entries are wrong"
    return False, f"{many}; element {first} of {where} is {value}"


def _holds_nan(array: Any) -> bool:
    return array.dtype.kind == "f" and bool(sys.modules["numpy"].isnan(array).any())


def _mapping_difference(
    actual: dict, expected: dict, rule: _Exact, place: str
) -> tuple[bool, str] | None:
    where = _where(place)
    if len(actual) != len(expected):
        have, need = len(actual), len(expected)
        return False, f"{where} has length {have} where {need} is asked for"
    for key in actual:
        if key not in expected:
            return False, f"{where} has a key that does not belong: {short(key)}"
        inside = f"{place}[{short(key)}]"
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


# --- Putting into words --------------------------------------------------------------


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
        return f"the text {short(value)}"
    if kind in ("list", "tuple", "dict", "set", "frozenset"):
        return f"{_a(kind)} of {len(value)}"
    if isinstance(value, type | types.FunctionType | types.MethodType):
        return f"{value.__name__} itself"
    return str(value) if kind == "bool" else _a(kind)


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


def short(value: Any) -> str:
    """Return a stable representation of at most about 80 characters on one line."""
    text = _REPRESENTATION.repr(value)
    if " at 0x" in text:  # the address differs in every run
        return describe(value)
    return cut(one_line(text))


def one_line(text: str) -> str:
    # Blanks inside a line stay: in a chapter on text they may be the very mistake.
    return re.sub(r"\s*\n\s*", " ", text.strip())


def cut(text: str, length: int = SHOWN_CHARACTERS) -> str:
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
