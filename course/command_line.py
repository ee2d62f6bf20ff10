"""What can be typed after ``python3 -m course``, and the help about it.

Standard library only, because the first start is outside the environment.
"""

import argparse
import difflib
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from course import toml_tables

_OVERVIEW = """\
GPT by Hand: the commands of the course.

  python3 -m course read      open the course as pages in the browser
  python3 -m course lab       make the environment and open JupyterLab
  python3 -m course test      make the environment and run all tests

On Windows: py -m course ... From any other folder: python3 PATH/course ...
"""
#: By command: `summary` and `about` for its help, and its `arguments`.
_COMMANDS = toml_tables.read(Path(__file__).with_name("commands.toml"))
_PROJECT = Path(__file__).parent.parent / "pyproject.toml"

#: How alike two names are, from 0 to 1, for one to be meant by the other.
LIKE = 0.6


def meant(typed: str, known: Iterable[str], like: float = LIKE) -> str:
    """Return " Did you mean ...?" for what is close to what was typed, or "".

    >>> meant("labb", ["lab", "test"])
    ' Did you mean lab?'
    >>> meant("open", ["lab", "test"])
    ''
    """
    close = difflib.get_close_matches(typed, list(known), 3, cutoff=like)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _port(text: str) -> int:
    if text.isdecimal() and 0 < int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is no port; name one from 1 to 65535")


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints look like all others of the course."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and end with exit code 2."""
        stop = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"course: {message}{stop} See: {self.prog} --help\n")


def _parser() -> _Parser:
    plain: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = _Parser(prog="python3 -m course", description=_OVERVIEW, **plain)
    about = "say which version of the course this is, and end"
    parser.add_argument("--version", action="store_true", help=about)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, known in _COMMANDS.items():
        texts = {"help": known["summary"], "description": known["about"]}
        command = commands.add_parser(name, **texts, **plain)
        for argument, more in known.get("arguments", {}).items():
            if more.get("type") == "port":
                more = more | {"type": _port}
            command.add_argument(argument, **more)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line, those of JupyterLab in `extra`.

    A mistake ends the program with one line and exit code 2; nothing at all shows the
    overview and is no mistake.
    """
    parser = _parser()
    if not argv:
        parser.print_help()
        parser.exit(0)
    if argv[0] == "--version":
        project = toml_tables.read(_PROJECT)["project"]
        python = platform.python_version()
        print(f"GPT by Hand, version {project['version']}, on Python {python}.")
        parser.exit(0)
    _know_command(parser, argv[0])
    options, extra = parser.parse_known_args(argv)
    known = _COMMANDS[options.command].get("arguments", {})
    names = [name for name in known if name.startswith("--")]
    # What is one letter off is a slip; JupyterLab has options that are further away.
    slips = [meant(word.partition("=")[0], names, 0.9) for word in extra]
    if extra and options.command != "lab":
        hints = "".join(dict.fromkeys(meant(word, names) for word in extra))
        parser.error(f"`{options.command}` does not know {' '.join(extra)}.{hints}")
    for word, slip in zip(extra, slips, strict=True):
        if slip:
            parser.error(f"`{options.command}` does not know {word}.{slip}")
    if options.command == "run" and not options.target:
        parser.error("`run` needs to know what: a chapter (ch02), a notebook, a script")
    options.extra = extra
    return options


def _know_command(parser: _Parser, typed: str) -> None:
    if typed.startswith("-") or typed in _COMMANDS:
        return
    hint = meant(typed, _COMMANDS) or f" There are {', '.join(_COMMANDS)}."
    parser.error(f"there is no command {typed!r}.{hint}")
