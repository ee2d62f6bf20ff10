"""A chapter's experiments in its tests: the script, and the tables that it writes."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType


def script_in(folder: Path) -> ModuleType:
    """Return the folder's ``experiments.py`` as a module.

    Every chapter has a script of that name, so it is found by its place.
    """
    name = f"{folder.parent.name}_{folder.name}_experiments".replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, folder / "experiments.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder / 'experiments.py'} is no script of Python's.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, as dictionaries of texts."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
