"""When two printed outputs count as equal: words exactly, decimals within a tolerance.

Sums of floats differ in their last digits between processors, so a decimal in an
output may differ from the stored one by a thousandth of it, or by one unit of its last
printed place, whichever is more. Whole numbers, words and layout are exact; only where
a digit changed may the blanks that pad columns change with it.
"""

from __future__ import annotations

import re

RELATIVE = 1e-3
PLACES = 1.01  # units of the last printed place; the 1 is for rounding, .01 for float
INTEGRAL_PLACE = 1e-4  # of `1.` beside other digits: arrays are printed to 4 places

# A decimal: 1.5, -0., 1e-05, 2.5e+03, 12,345.6. No part of a word or of 2.13.0.
_DECIMAL = re.compile(
    r"(?<![\w.])[-+]?"
    r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]\d+)"
    r"(?!\d|\.\d)"
)
_ADDRESS = re.compile(r"(?<=\bat )0x[0-9a-fA-F]{6,}")
_PROCESS = re.compile(r"(?<=ipykernel_)\d+")
_BLANKS = re.compile(r"[ \t]+")
_SEPARATOR = re.compile(r"[\s,]*\s[\s,]*")


def same_text(new: str, stored: str) -> bool:
    """Tell whether a new output is the stored one, by the rule of this module.

    >>> same_text("loss 10.847, 8 batches", "loss 10.846, 8 batches")
    True
    >>> same_text("loss 10.846, 9 batches", "loss 10.846, 8 batches")
    False
    >>> same_text("tensor([ 0.1234, 1.0000])", "tensor([0.1233, 1.0000])")
    True
    """
    new, stored = _masked(new), _masked(stored)
    if new == stored:
        return True
    new_decimals, decimals = _DECIMAL.findall(new), _DECIMAL.findall(stored)
    if new_decimals == decimals or len(new_decimals) != len(decimals):
        return False
    if _between(new) != _between(stored):
        return False
    return all(map(same_number, new_decimals, decimals))


def same_number(new: str, stored: str) -> bool:
    """Tell whether two printed decimals are equal by the rule of this module.

    `1.`, as arrays print whole floats, is exact beside another such number.
    """
    a, b = _value(new), _value(stored)
    if new.endswith(".") and stored.endswith("."):
        return a == b
    allowed = max(RELATIVE * abs(b), PLACES * _place(stored))
    return a == b or abs(a - b) <= allowed


def _value(decimal: str) -> float:
    return float(decimal.replace(",", ""))


def _place(decimal: str) -> float:
    """Return the value of a decimal's last printed place: 0.01 for 3.14."""
    mantissa, _, exponent = decimal.lower().partition("e")
    digits = mantissa.partition(".")[2]
    if mantissa.endswith(".") and not exponent:
        return INTEGRAL_PLACE
    return 10.0 ** (int(exponent or 0) - len(digits))


def _masked(text: str) -> str:
    """Hide what differs in every process: addresses of objects, numbers of kernels."""
    text = _ADDRESS.sub("0x", text.replace("\r\n", "\n"))
    return _PROCESS.sub("0", text)


def _between(text: str) -> list[str]:
    """Return what stands between decimals, padding aside.

    Arrays break their lines by width, so of a separator within an array (commas and
    white space) only the commas count.
    """
    pieces = _DECIMAL.split(text)
    last = len(pieces) - 1
    kept = []
    for number, piece in enumerate(pieces):
        if 0 < number < last and _SEPARATOR.fullmatch(piece):
            piece = piece.replace("\n", " ")
        piece = _BLANKS.sub(" ", piece)
        piece = piece if number == 0 else piece.lstrip(" ")
        kept.append(piece if number == last else piece.rstrip(" "))
    return kept
