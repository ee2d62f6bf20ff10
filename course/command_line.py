"""What can be typed after ``python3 -m course``, and the help about it.

Standard library only, because the first start is outside the environment.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

Add = Callable[[str, str, str], argparse.ArgumentParser]

_OVERVIEW = """\
GPT by Hand: the commands of the course.

  python3 -m course lab       make the environment and open JupyterLab
  python3 -m course test      make the environment and run all tests

On Windows: py -m course ... From any other folder: python3 PATH/course ...
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints look like all others of the course."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and end with exit code 2."""
        self.exit(2, f"course: {message}. See: {self.prog} --help\n")


def _add_setup(add: Add) -> None:
    setup = add(
        "setup",
        "make the environment and fetch what is needed offline",
        "Make the environment (.venv in the course's folder), install the packages of\n"
        "requirements.txt, fetch the files for working offline, and check them all.\n"
        "If that is cut off, start it again. `lab` and `test` do all this, too.",
    )
    setup.add_argument(
        "--here",
        action="store_true",
        help="install into the environment that is running instead of making one; "
        "torch and numpy stay as they are if they are there already",
    )


def _add_lab(add: Add) -> None:
    lab = add(
        "lab",
        "open JupyterLab with the course",
        "Open JupyterLab with the README as its first page. Ctrl-C stops it.\n"
        "Everything that this command does not know is handed to JupyterLab:\n\n"
        "  python3 -m course lab --port 9999\n"
        "  python3 -m course lab my-folder",
    )
    lab.add_argument(
        "--preset",
        choices=("quick", "full"),
        help="sizes of the experiments: quick (minutes on a laptop) or full (those of "
        "the book); default: COURSE_PRESET, or quick",
    )
    lab.add_argument(
        "--no-browser",
        action="store_true",
        help="print the address and open no browser",
    )


def _add_test(add: Add) -> None:
    test = add(
        "test",
        "run the tests: everything, or what you name",
        "Run the tests of the whole course, or of what you name: a chapter (ch02), a\n"
        "folder, or a file. Every notebook is executed and its outputs are compared.",
    )
    test.add_argument(
        "targets", nargs="*", metavar="TARGET", help="ch02, a folder, or a file"
    )
    test.add_argument(
        "--no-notebooks", action="store_true", help="leave the notebooks out"
    )


def _add_run_and_refresh(add: Add) -> None:
    run = add(
        "run",
        "run a chapter's notebook, any notebook, or a script",
        "Run a chapter's main notebook, any other notebook, or a script in the\n"
        "environment, without a browser:\n\n"
        "  python3 -m course run ch02\n"
        "  python3 -m course run FILE.ipynb\n"
        "  python3 -m course run FILE.py --its-own arguments",
    )
    run.add_argument("target", metavar="TARGET", help="ch02, FILE.ipynb, or FILE.py")
    run.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="arguments for the script",
    )
    refresh = add(
        "refresh",
        "run notebooks again and save their outputs",
        "Run notebooks from top to bottom and save them with their new outputs, write\n"
        "down seconds and memory, and fill the marked tables in the pages. This is\n"
        "for people who change the course.",
    )
    refresh.add_argument(
        "--pages",
        action="store_true",
        help="run nothing: only fill the tables that pages show, from ledger.csv and "
        "from the folder.toml files",
    )
    refresh.add_argument(
        "targets", nargs="*", metavar="TARGET", help="ch02, a folder, or FILE.ipynb"
    )


def _add_doctor_and_copy(add: Add) -> None:
    add(
        "doctor",
        "print what this machine has and what it can run",
        "Print machine, versions, files, and what this machine can run in what time.",
    )
    copy = add(
        "copy",
        "copy a module or a chapter into a folder of your own",
        "Copy a summary module with the modules that it imports, or a whole chapter,\n"
        "into a folder of your own. No file of yours is ever overwritten.\n\n"
        "  python3 -m course copy dataloader ../my-folder\n"
        "  python3 -m course copy ch02 ../my-folder",
    )
    copy.add_argument(
        "name", metavar="NAME", help="a module (dataloader) or a chapter (ch02)"
    )
    copy.add_argument("folder", metavar="FOLDER", help="where to; made if need be")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python3 -m course",
        description=_OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    _add_setup(add)
    _add_lab(add)
    _add_test(add)
    _add_run_and_refresh(add)
    _add_doctor_and_copy(add)
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
