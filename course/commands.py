"""The commands of the course: what they are called, and where they are carried out.

Each command first makes sure of the environment, moves into it, and calls the module
that does the work.  Standard library only, because the first start is outside.
"""

import argparse
import os
import subprocess
import sys
import time

from course import CourseError

# Handed from the process outside the environment to the one inside: when the command
# was given, and whether the environment has just been made.
_MOVED = "COURSE_MOVED_IN"

_OVERVIEW = """\
GPT by Hand: the commands of the course.

  python3 -m course lab       make the environment and open JupyterLab
  python3 -m course test      make the environment and run all tests

On Windows: py -m course ... From any other folder: python3 PATH/course ...
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints look like all others of the course."""

    def error(self, message):
        self.exit(2, f"course: {message}. See: {self.prog} --help\n")


def _add_setup(add):
    setup = add(
        "setup",
        "make the environment and fetch what is needed offline",
        "Make the environment (.venv in the course's folder), install the packages of\n"
        "requirements.txt, fetch the files for working offline, and check them all.\n"
        "If that is cut off, start it again: it goes on where it stopped. `lab` and\n"
        "`test` do the same by themselves.",
    )
    setup.add_argument(
        "--here",
        action="store_true",
        help="install into the environment that is running instead of making one; "
        "torch and numpy stay as they are if they are there already",
    )


def _add_lab(add):
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


def _add_test(add):
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


def _add_run_and_refresh(add):
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
        "Run notebooks from top to bottom and save them with their new outputs, and\n"
        "write down seconds and memory. This is for people who change the course.",
    )
    refresh.add_argument(
        "targets", nargs="*", metavar="TARGET", help="ch02, a folder, or FILE.ipynb"
    )


def _add_doctor_and_copy(add):
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


def _parser():
    parser = _Parser(
        prog="python3 -m course",
        description=_OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name, summary, text):
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


def _parse(argv):
    parser = _parser()
    options, extra = parser.parse_known_args(argv)
    if extra and options.command != "lab":
        parser.error(f"`{options.command}` does not know {' '.join(extra)}")
    options.extra = extra
    return options


def _move_in(python, argv, began, made):
    """Go on with the same command inside the environment; return its exit code."""
    environ = dict(os.environ, **{_MOVED: f"{began} {int(made)}"})
    environ.pop("PYTHONHOME", None)
    environ.pop("__PYVENV_LAUNCHER__", None)
    folder = os.path.dirname(os.path.abspath(__file__))
    command = [str(python), folder, *argv]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execve(command[0], command, environ)  # the same process: signals arrive
    process = subprocess.Popen(command, env=environ)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the child got it too; let it finish
            continue


def _run_inside(options, began, made):
    """Carry out the command; this process runs in the environment."""
    name = options.command
    if name == "doctor":
        from course import doctor

        return doctor.main()
    from course import lab

    if name == "setup":
        return lab.setup()
    # Without its files all tests would fail; elsewhere what needs one says so itself.
    lab.fetch_offline_files(announce=made, strict=name == "test")
    if name == "lab":
        return lab.open_lab(
            options.extra,
            preset=options.preset,
            browser=not options.no_browser,
            began=began,
        )
    if name == "test":
        from course.running import test_command

        return test_command.main(options.targets, notebooks=not options.no_notebooks)
    from course.running import notebooks

    if name == "run":
        return notebooks.run(options.target, options.arguments)
    return notebooks.refresh(options.targets)


def _dispatch(argv):
    moved = os.environ.pop(_MOVED, "")  # children of this command are not part of it
    options = _parse(argv)
    if options.command == "copy":  # needs no environment, so do not make one wait
        from course import copying

        return copying.copy(options.name, options.folder)
    from course.installation import environment

    began, made = time.time(), False
    if moved:
        began, made = float(moved.split()[0]), moved.split()[1] == "1"
    here = getattr(options, "here", False)
    testing = options.command == "test"
    prefix = environment.chosen_prefix(here)
    if not moved:
        made = not environment.is_complete(prefix, testing)
    python = environment.ensure(
        testing=testing, here=here, verify=options.command == "setup"
    )
    if environment.is_running(prefix) and (moved or not made):
        return _run_inside(options, began, made)
    if moved:
        raise CourseError(
            f"The environment {prefix} does not work: its Python looks elsewhere. "
            "Delete that folder and start again."
        )
    # Also after the running environment itself was made or mended: only a new process
    # sees its path file and its packages as they are now.
    return _move_in(python, argv, began, made)


def main(argv):
    """Carry out the command line `argv` (without the program); return the exit code.

    Foreseeable failures are told in a sentence, without a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        # A folder's name that the console cannot show must not end the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _dispatch(argv) or 0
    except CourseError as problem:
        sys.stdout.flush()
        print(f"course: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncourse: stopped by Ctrl-C.", file=sys.stderr)
        return 130
