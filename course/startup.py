"""What happens at every start of the environment's Python, through the path file.

It runs before anything else in each script, kernel and editor process, so it imports
nothing that Python has not imported already, and it never fails.
"""

import os
import sys
from _collections_abc import (
    Mapping,
    MutableMapping,
)  # as os has it: nothing more to load

_TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


#: Variables that name a folder or a file. A relative one means a place as seen from
#: where the reader gave the command, also to kernels, which start in other folders.
PLACES = (
    *("COURSE_CACHE", "COURSE_RUNS", "TIKTOKEN_CACHE_DIR", "XDG_CACHE_HOME", "TMPDIR"),
    *("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"),
    *("MPLCONFIGDIR", "HF_HOME", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "PIP_CERT"),
)


def place_of(variable: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the place that a variable names, absolute; "" where it names none.

    The one reading of these variables: blanks around it and ``~`` are understood.
    """
    chosen = environ.get(variable, "").strip()
    return os.path.abspath(os.path.expanduser(chosen)) if chosen else ""


def is_on(variable: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a variable holds anything but "", 0, false and no."""
    return environ.get(variable, "").strip().lower() not in ("", "0", "false", "no")


def settle(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make the places that the reader has chosen absolute, for all that starts here."""
    for variable in PLACES:
        if place := place_of(variable, environ):
            environ[variable] = place


def cache_folder(
    environ: Mapping[str, str] = os.environ, platform: str = sys.platform
) -> str:
    """Return where downloaded files are kept, as text: the user's cache folder.

    ``COURSE_CACHE`` replaces it.  Called by `course.paths.cache_dir`.
    """
    if chosen := place_of("COURSE_CACHE", environ):
        return chosen
    if platform == "win32":
        base = environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = place_of("XDG_CACHE_HOME", environ) or os.path.expanduser("~/.cache")
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
    """Order the search path, settle the places, tell tiktoken its own, guard."""
    sys.path[:] = prefer_tree(sys.path)
    settle()
    os.environ.setdefault(
        "TIKTOKEN_CACHE_DIR", os.path.join(cache_folder(), "tiktoken")
    )
    if os.environ.get("COURSE_GUARD") == "1":
        from course import guard

        guard.install()
    if is_on("COURSE_OFFLINE"):
        from course import offline

        offline.install()


try:
    begin()
except Exception as problem:  # whatever it is, Python itself must still start
    print("course: the start-up file failed:", repr(problem), file=sys.stderr)
