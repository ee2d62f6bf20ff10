"""Kinds of numbers for the options of scripts, and how a script reads its own.

Support: nothing here is taught. The kinds are for argparse, which names the option and
the fix:

>>> parser = argparse.ArgumentParser(prog="train.py")
>>> _ = parser.add_argument("--seed", type=seed, default=123)
>>> _ = parser.add_argument("--epochs", type=positive_int, default=2)
>>> parse(parser, ["--epochs", "5"]).epochs
5

In a notebook `main()` begins with the defaults, as the words of the command line belong
to another program there:

>>> parse(parser, None).epochs
2
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options in words, as `parser.parse_args` reads them.

    Args:
        parser: its `prog` is the file name of the script.
        arguments: the words after the program's name. None takes them from the command
            line if it started this script, and otherwise none.

    Raises:
        TypeError: the arguments are anything but a list of words.
    """
    if arguments is None:
        arguments = sys.argv[1:] if Path(sys.argv[0]).name == parser.prog else ()
    words = isinstance(arguments, (list, tuple))
    if not words or not all(isinstance(word, str) for word in arguments):
        raise TypeError(
            f"main takes the words of a command line, as main(['--help']), and not "
            f"{arguments!r:.60}: see the options of {parser.prog} with --help."
        )
    return parser.parse_args(arguments)


def seed(text: str) -> int:
    """A kind of option: a seed; PyTorch keeps 64 bits of it."""
    value = _whole(text)
    if not -(2**63) < value < 2**63:
        raise argparse.ArgumentTypeError("has too many digits: give at most 18")
    return value


def positive_int(text: str) -> int:
    """A kind of option: a whole number from 1 up."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def positive_float(text: str) -> float:
    """A kind of option: a number above 0, such as a learning rate."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid float value: {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def _whole(text):
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
