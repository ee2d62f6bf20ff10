"""Start the course's commands: ``python3 -m course`` or ``python3 PATH/course``.

This file must be readable for the oldest Python that somebody may have, because it is
the one that tells them; all else is in `course.commands`.
"""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def _is_here(folder):
    """Tell whether `folder` is this package, whatever way leads there."""
    return os.path.realpath(folder) == os.path.realpath(HERE)


def _other_tree():
    """Return the `course` folder of another copy in whose root the command was given.

    ``python -m course`` means the copy that the reader stands in.  With the environment
    of one copy active in the root of another, Python has imported the first already.
    """
    folder = os.path.join(os.getcwd(), "course")
    marks = ("__main__.py", "startup.py")
    if all(os.path.isfile(os.path.join(folder, name)) for name in marks):
        return None if _is_here(folder) else folder
    return None


def _make_importable():
    """Let ``import course`` mean the folder of this file and nothing else."""
    loaded = sys.modules.get("course")
    place = getattr(loaded, "__file__", None)
    if loaded is not None and not (place and _is_here(os.path.dirname(place))):
        for name in list(sys.modules):
            if name == "course" or name.startswith("course."):
                del sys.modules[name]
    # Started as a folder, that folder itself is on the path, where the course's
    # own modules would hide others of the same name.
    sys.path[:] = [entry for entry in sys.path if not _is_here(entry or os.curdir)]
    if ROOT in sys.path:
        sys.path.remove(ROOT)
    sys.path.insert(0, ROOT)


def start():
    """Run the command; return the exit code."""
    started_by_name = bool(__package__)  # python -m course
    other = _other_tree() if started_by_name else None
    if other:
        return subprocess.call([sys.executable, other] + sys.argv[1:])
    _make_importable()
    import course

    problem = course.python_problem(sys.version_info)
    if problem:
        sys.stderr.write("course: " + problem + "\n")
        return 1
    from course import commands

    return commands.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
