"""What can be typed after ``python3 -m course``, and the help about it.

Standard library only, because the first start is outside the environment.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

_OVERVIEW = """\
GPT by Hand: the commands of the course.

  python3 -m course lab       make the environment and open JupyterLab
  python3 -m course test      make the environment and run all tests

On Windows: py -m course ... From any other folder: python3 PATH/course ...
"""
#: Of each command: its line in the overview, its own help, and its arguments with what
#: argparse has to know of them besides their help.
_COMMANDS: dict[str, tuple[str, str, dict[str, tuple[str, dict[str, Any]]]]] = {
    "setup": (
        "make the environment and fetch what is needed offline",
        "Make the environment (.venv in the course's folder), install the packages of\n"
        "requirements.txt, fetch the files for working offline, and check them all.\n"
        "If that is cut off, start it again. `lab` and `test` do all this, too.",
        {
            "--here": (
                "install into the environment that is running instead of making one; "
                "torch and numpy stay as they are if they are there already",
                {"action": "store_true"},
            )
        },
    ),
    "lab": (
        "open JupyterLab with the course",
        "Open JupyterLab with the README as its first page. Ctrl-C stops it.\n"
        "Everything that this command does not know is handed to JupyterLab:\n\n"
        "  python3 -m course lab --port 9999\n"
        "  python3 -m course lab my-folder",
        {
            "--preset": (
                "sizes of the experiments: quick (minutes on a laptop) or full (those "
                "of the book); default: COURSE_PRESET, or quick",
                {"choices": ("quick", "full")},
            ),
            "--no-browser": (
                "print the address and open no browser",
                {"action": "store_true"},
            ),
        },
    ),
    "test": (
        "run the tests: everything, or what you name",
        "Run the tests of the whole course, or of what you name: a chapter (ch02), a\n"
        "folder, or a file. Every notebook is executed and its outputs are compared.",
        {
            "targets": (
                "ch02, a folder, or a file",
                {"nargs": "*", "metavar": "TARGET"},
            ),
            "--no-notebooks": ("leave the notebooks out", {"action": "store_true"}),
        },
    ),
    "run": (
        "run a chapter's notebook, any notebook, or a script",
        "Run a chapter's main notebook, any other notebook, or a script in the\n"
        "environment, without a browser:\n\n"
        "  python3 -m course run ch02\n"
        "  python3 -m course run FILE.ipynb\n"
        "  python3 -m course run FILE.py --its-own arguments",
        {
            "target": ("ch02, FILE.ipynb, or FILE.py", {"metavar": "TARGET"}),
            "arguments": (
                "arguments for the script",
                {"nargs": argparse.REMAINDER, "metavar": "..."},
            ),
        },
    ),
    "refresh": (
        "run notebooks again and save their outputs",
        "Run notebooks from top to bottom and save them with their new outputs, write\n"
        "down seconds and memory, and fill the marked tables in the pages. This is\n"
        "for people who change the course.",
        {
            "--pages": (
                "run nothing: only fill the tables that pages show, from ledger.csv "
                "and from the folder.toml files",
                {"action": "store_true"},
            ),
            "targets": (
                "ch02, a folder, or FILE.ipynb",
                {"nargs": "*", "metavar": "TARGET"},
            ),
        },
    ),
    "doctor": (
        "print what this machine has and what it can run",
        "Print machine, versions, files, and what this machine can run in what time.",
        {},
    ),
    "copy": (
        "copy a module or a chapter into a folder of your own",
        "Copy a summary module with the modules that it imports, or a whole chapter,\n"
        "into a folder of your own. No file of yours is ever overwritten.\n\n"
        "  python3 -m course copy dataloader ../my-folder\n"
        "  python3 -m course copy ch02 ../my-folder",
        {
            "name": ("a module (dataloader) or a chapter (ch02)", {"metavar": "NAME"}),
            "folder": ("where to; made if need be", {"metavar": "FOLDER"}),
        },
    ),
}


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
    for name, (summary, text, arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=text, **plain)
        for argument, (about, more) in arguments.items():
            command.add_argument(argument, help=about, **more)
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
