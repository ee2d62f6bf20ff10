"""What happens at every start of the environment's Python, through the path file.

It runs before anything else in each script, kernel and editor process, so it imports
nothing that Python has not imported already, and it never fails.
"""

import os
import sys
from _collections_abc import Mapping  # as os has it: nothing more to load

_TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def cache_folder(
    environ: Mapping[str, str] = os.environ, platform: str = sys.platform
) -> str:
    """Return where downloaded files are kept, as text: the user's cache folder.

    ``COURSE_CACHE`` replaces it.  Called by `course.paths.cache_dir`.
    """
    chosen = environ.get("COURSE_CACHE")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    if platform == "win32":
        base = environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(os.path.abspath(base), "gpt-by-hand")


def prefer_tree(path: list[str], tree: str = _TREE) -> list[str]:
    """Return the search path with the tree's folders before installed packages.

    Path files can only append, and then an installed package of the same name as one of
    the course's modules would win.  The standard library stays first.
    """
    inside = tree + os.sep
    installed = ("site-packages", "dist-packages")
    ours = [
        entry
        for entry in path
        if (entry == tree or entry.startswith(inside))
        and os.path.basename(entry) not in installed
    ]
    rest = [entry for entry in path if entry not in ours]
    for place, entry in enumerate(rest):
        if os.path.basename(entry) in installed:
            return rest[:place] + ours + rest[place:]
    return rest + ours


def begin() -> None:
    """Order the search path, tell tiktoken where its files are, start the guard."""
    sys.path[:] = prefer_tree(sys.path)
    os.environ.setdefault(
        "TIKTOKEN_CACHE_DIR", os.path.join(cache_folder(), "tiktoken")
    )
    if os.environ.get("COURSE_GUARD") == "1":
        from course import guard

        guard.install()


try:
    begin()
except Exception as problem:  # whatever it is, Python itself must still start
    print("course: the start-up file failed:", repr(problem), file=sys.stderr)
