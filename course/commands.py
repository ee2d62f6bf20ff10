"""The commands of the course, and where each is carried out.

Each command first makes sure of the environment, moves into it, and calls the module
that does the work.  Standard library only, because the first start is outside.
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from course import CourseError, command_line, failures, settings, startup

# Handed from the process outside the environment to the one inside: when the command
# was given, and whether the environment has just been made.
_MOVED = "COURSE_MOVED_IN"


def _move_in(python: Path, argv: Sequence[str], began: float, made: bool) -> int:
    """Go on with the same command inside the environment; return its exit code."""
    environ = settings.own_environment() | {_MOVED: f"{began} {int(made)}"}
    environ[settings.LEFT_OUT] = os.environ.get("PYTHONPATH", "")
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


def _run_inside(options: Namespace, began: float, made: bool) -> int:
    """Carry out the command; this process runs in the environment."""
    name = options.command
    from course import lab

    try:
        tempfile.gettempdir()
    except FileNotFoundError as problem:
        raise CourseError(
            f"{problem.strerror}. Set TMPDIR to a folder that you may write."
        ) from None
    if name == "setup":
        return lab.setup()
    if name in ("lab", "run"):
        settings.check_choices()
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
        from course.running import run_tests

        return run_tests.main(options.targets, notebooks=not options.no_notebooks)
    if name == "grade":
        from course.grading import marks

        return marks.main(options.folder, options.to, options.seconds)
    from course.running import notebooks

    if name == "run":
        return notebooks.run(options.target, options.arguments)
    if options.pages:
        return notebooks.fill_pages()
    return notebooks.refresh(options.targets)


def _examine(argv: Sequence[str], moved: str) -> int:
    """Print the doctor's report, in the environment if it can be entered.

    Unlike all other commands this one makes and changes nothing on its way there.
    """
    from course import doctor, first_aid
    from course.installation import environment

    prefix = environment.chosen_prefix()
    problem = first_aid.start_problem(prefix)
    if problem:
        return first_aid.before_the_set_up(problem)
    clean = settings.FOREIGN.isdisjoint(os.environ)
    if environment.is_running(prefix) and (moved or clean):
        return doctor.main()
    if moved:
        raise CourseError(_elsewhere(prefix))
    return _move_in(environment.python_of(prefix), argv, time.time(), False)


def _elsewhere(prefix: Path) -> str:
    return (
        f"The environment {prefix} does not work: its Python looks elsewhere. "
        "Delete that folder and start again."
    )


def _know_targets(options: Namespace) -> None:
    """Raise for a name that is none, before anything is installed for it."""
    from course.running import targets

    named = [options.target] if options.command == "run" else []
    before = ""
    for word in options.extra:  # JupyterLab's; one after an option may be its value
        if not before.startswith("-") and not word.startswith("-"):
            named.append(word)
        before = word
    for target in getattr(options, "targets", named):
        targets.find(target)


def _dispatch(argv: Sequence[str]) -> int:
    moved = os.environ.pop(_MOVED, "")  # children of this command are not part of it
    options = command_line.parse(argv)
    if options.command == "copy":  # needs no environment, so do not make one wait
        from course import copying

        return copying.copy(options.name, options.folder, for_class=options.for_class)
    if options.command == "doctor":
        return _examine(argv, moved)
    _know_targets(options)
    if options.command == "read":  # it has a small environment of its own
        from course import reading

        return reading.read(options.target, options.port, not options.no_browser)
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
        testing=testing, here=here, verify=options.command == "setup" and not moved
    )
    clean = settings.FOREIGN.isdisjoint(os.environ)
    if environment.is_running(prefix) and (moved or (clean and not made)):
        return _run_inside(options, began, made)
    if moved:
        raise CourseError(_elsewhere(prefix))
    # Also after the running environment itself was made or renewed, or with variables
    # for other Pythons: only a new process has its own packages, as they are now.
    return _move_in(python, argv, began, made)


def main(argv: Sequence[str]) -> int:
    """Carry out the command line `argv` (without the program); return the exit code.

    Foreseeable failures are told in a sentence, without a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        # A folder's name that the console cannot show must not end the command.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    startup.settle()  # before anything starts in another folder
    try:
        return _dispatch(argv) or 0
    except CourseError as problem:
        sys.stdout.flush()
        print(f"course: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncourse: stopped by Ctrl-C.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as problem:
        print(f"course: {_refused(problem)}", file=sys.stderr)
        return 1


def _refused(problem: OSError) -> str:
    """Return what to say when the operating system refuses something."""
    what = problem.filename or "Something that the command needs"
    why = problem.strerror or str(problem) or type(problem).__name__
    known = failures.cause(f"[Errno {problem.errno}] {problem.strerror}", what)
    said = known.says if known else f"{what}: {why}"
    return (
        f"The command could not go on: {said}. If that does not help, "
        "`python3 -m course doctor` looks for the cause."
    )
