"""Tables of TOML files as dataclasses, every field checked, every mistake named.

A dataclass says what a table holds: the name and type of each field, and whether it may
be left out. What goes beyond types it checks itself, in ``__post_init__``.

>>> @dataclasses.dataclass
... class Dish:
...     name: str
...     minutes: float = 10
>>> record(Dish, {"name": "tea"})
Dish(name='tea', minutes=10)
>>> record(Dish, {"name": "tea", "minutes": -3})
Traceback (most recent call last):
ValueError: the field 'minutes': -3 stands where a number above 0 is expected

Standard library only: `folder.toml` is read before anything is installed.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# What a value of a type has to be besides of that type, and how a message calls it.
_SIMPLE: dict[type, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: isinstance(value, str) and bool(value.strip()), "a text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    float: (
        lambda value: type(value) in (int, float) and value > 0,
        "a number above 0",
    ),
}


def read(path: Path) -> dict[str, Any]:
    """Return the tables of a file; `ValueError` says why it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from None


def record(kind: type[T], table: Any, **given: Any) -> T:
    """Return the dataclass `kind` made from a table; `given` fields are not in there.

    Raises `ValueError` that names the field; its text has no full stop.
    """
    _demand(isinstance(table, dict), table, "a table")
    types = typing.get_type_hints(kind)
    every = dataclasses.fields(typing.cast(Any, kind))
    fields = {field.name: field for field in every if field.name not in given}
    made = {}
    for name, value in table.items():
        if name not in fields:
            raise ValueError(unknown("field", name, fields))
        try:
            made[name] = _value(types[name], value)
        except ValueError as problem:
            raise ValueError(f"the field {name!r}: {problem}") from None
    for name, field in fields.items():
        plain, made_by = field.default, field.default_factory
        required = plain is dataclasses.MISSING and made_by is dataclasses.MISSING
        if required and name not in table:
            raise ValueError(f"the field {name!r} is missing")
    return kind(**made, **given)


def _value(kind: Any, value: Any) -> Any:
    """Return a value of TOML as the annotation `kind` of its field asks for it."""
    inner = [one for one in typing.get_args(kind) if one not in (..., type(None))]
    if typing.get_origin(kind) is tuple:
        _demand(isinstance(value, list), value, "a list")
        return tuple(_value(inner[0], one) for one in value)
    if typing.get_origin(kind) is Mapping:
        _demand(isinstance(value, dict), value, "a table")
        return {name: _value(inner[1], one) for name, one in value.items()}
    if inner:  # ... | None: left out, for TOML has no such value
        return _value(inner[0], value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return record(kind, value)
    is_right, words = _SIMPLE[kind]
    _demand(is_right(value), value, words)
    return value


def _demand(is_right: bool, value: object, words: str) -> None:
    if not is_right:
        raise ValueError(f"{value!r} stands where {words} is expected")


def unknown(kind: str, name: object, known: Collection[str]) -> str:
    """Say that there is no such name, and which are close; without a full stop.

    >>> unknown("run", "tee", ["tea", "rice"])
    "There is no run 'tee'. Did you mean 'tea'? Known names are: tea, rice"
    """
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    names = ", ".join(known) or "none yet"
    return f"There is no {kind} {name!r}. {meant}Known names are: {names}"
