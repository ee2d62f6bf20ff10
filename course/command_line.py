"""What can be typed after ``python3 -m course``, and the help about it.

Standard library only, because the first start is outside the environment.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from course import toml_tables

_OVERVIEW = """\
GPT by Hand: the commands of the course.

  python3 -m course lab       make the environment and open JupyterLab
  python3 -m course test      make the environment and run all tests

On Windows: py -m course ... From any other folder: python3 PATH/course ...
"""
#: By command: `summary` and `about` for its help, and its `arguments`.
_COMMANDS = toml_tables.read(Path(__file__).with_name("commands.toml"))


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints look like all others of the course."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and end with exit code 2."""
        self.exit(2, f"course: {message}. See: {self.prog} --help\n")


def _parser() -> _Parser:
    plain: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = _Parser(prog="python3 -m course", description=_OVERVIEW, **plain)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, known in _COMMANDS.items():
        texts = {"help": known["summary"], "description": known["about"]}
        command = commands.add_parser(name, **texts, **plain)
        for argument, more in known.get("arguments", {}).items():
            command.add_argument(argument, **more)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line, those of JupyterLab in `extra`.

    A mistake ends the program with one line and exit code 2.
    """
    parser = _parser()
    options, extra = parser.parse_known_args(argv)
    if extra and options.command != "lab":
        parser.error(f"`{options.command}` does not know {' '.join(extra)}")
    options.extra = extra
    return options
