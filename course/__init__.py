"""Support for the course GPT by Hand: set-up, tests, assets, checks.

Nothing that is taught lives here.  This file and ``__main__`` stay readable for old
Pythons (3.6, even 2.7), because they have to say which Python the course needs.
"""

PYTHON_OLDEST = (3, 11)
PYTHON_NEWEST = (3, 14)


class CourseError(Exception):
    """A failure that a reader can fix; its text is whole sentences that say how.

    The commands print the text without a traceback and exit with 1.
    """


def python_problem(version):
    """Return what to say about a Python outside the tested range, or None.

    `version` is a tuple such as ``sys.version_info``.
    """
    if PYTHON_OLDEST <= tuple(version[:2]) <= PYTHON_NEWEST:
        return None
    return (
        "The course needs Python {0}.{1} to {2}.{3}, and this is Python {4}.{5}.{6}. "
        "Install a Python of that range (https://www.python.org/downloads/) and start "
        "the command with it, for example python{2}.{3} -m course lab."
    ).format(*(PYTHON_OLDEST + PYTHON_NEWEST + tuple(version[:3])))
