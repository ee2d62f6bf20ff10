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
from typing import Any

import numpy

SHOWN_CHARACTERS = 80


def difference(
    actual: Any, expected: Any, atol: float | None = None, place: str = ""
) -> tuple[bool, str] | None:
    """Return None, or (whether the kind is wrong, where and how `actual` differs).

    Without `atol` values must be equal and of the same kind; with it numbers may differ
    by so much, and whole numbers pass for floats. `place` is where in the reader's
    result the values were found.
    """
    where = f"element {place} of your result" if place else "your result"
    have, need = _comparable(actual, atol), _comparable(expected, atol)
    if have == "None" != need:
        hint = "; is the return statement missing?" if not place else ""
        return True, f"{where} is None where {_a(need)} is asked for{hint}"
    if have != need:
        return True, f"{where} is {describe(actual)} where {_a(need)} is asked for"
    if _is_array(expected):
        return _array_difference(actual, expected, atol, where)
    if isinstance(expected, dict | list | tuple):
        return _difference_inside(actual, expected, atol, place, where)
    if atol is None or need != "float":
        differ = not bool(actual == expected)
    elif math.isnan(expected):
        differ = not math.isnan(actual)
    else:  # "not <=" also refuses NaN
        differ = actual != expected and not abs(actual - expected) <= atol
    return (False, f"{where} is {short(actual)}") if differ else None


def _comparable(value: Any, atol: float | None) -> str:
    """Return the kind that both values must be of."""
    if _is_array(value):
        return "tensor" if _is_tensor(value) else "array"
    kind = _kind(value)
    return "float" if kind == "int" and atol is not None else kind


def _array_difference(
    actual: Any, expected: Any, atol: float | None, where: str
) -> tuple[bool, str] | None:
    have, need = tuple(actual.shape), tuple(expected.shape)
    if have != need:
        return False, f"{where} has shape {have} where {need} is asked for"
    a, e = _plain_array(actual), _plain_array(expected)
    wrong = a != e
    if atol is not None:
        wrong = ~numpy.isclose(a, e, rtol=0, atol=atol, equal_nan=True)
    if not wrong.any():
        return None
    if a.dtype.kind == "f" and numpy.isnan(a).any() and not numpy.isnan(e).any():
        return False, f"{where} contains NaN"
    if a.ndim == 0:
        return False, f"{where} is {short(a.item())}"
    first = numpy.argwhere(wrong)[0].tolist()
    value = short(a[tuple(first)].item())
    many = f"{wrong.sum()} of {a.size} entries are wrong"
    return False, f"{many}; element {first} of {where} is {value}"


def _difference_inside(
    actual: Any, expected: Any, atol: float | None, place: str, where: str
) -> tuple[bool, str] | None:
    """Compare dictionaries key by key, lists and tuples place by place."""
    keyed = isinstance(expected, dict)
    have = actual if keyed else dict(enumerate(actual))
    need = expected if keyed else dict(enumerate(expected))
    for key, value in have.items():
        if key in need:
            found = difference(value, need[key], atol, f"{place}[{short(key)}]")
            if found:
                return found
        elif keyed:
            return False, f"{where} has a key that does not belong: {short(key)}"
    if len(have) != len(need):
        lengths = f"{len(have)} where {len(need)} is asked for"
        return False, f"{where} has length {lengths}"
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
    return {"bool": str(value), "bytes": "bytes"}.get(kind) or _a(kind)


def _is_tensor(value: Any) -> bool:
    # Without torch in memory there is no tensor, so nothing is imported to find out.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_array(value: Any) -> bool:
    return _is_tensor(value) or isinstance(value, numpy.ndarray)


def _plain_array(value: Any) -> Any:
    """Return a numpy array, floats as float64 (numpy knows no bfloat16)."""
    if _is_tensor(value):
        value = value.double() if value.is_floating_point() else value
        value = value.numpy(force=True)
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
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


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
            array = _plain_array(x)
            small = f"{_kind(x).lower()}({array.tolist()})"
            return describe(x) if array.size > 8 else small
        if isinstance(x, types.FunctionType | type):
            return x.__name__
        return super().repr1(x, level)


_REPRESENTATION = _Representation()
