"""What a notebook may take under test: seconds of the processor, and memory.

The seconds are what a notebook is planned with; the tests fail above twice as many,
because machines differ. Time that a kernel waits does not count, so a busy machine
fails nobody.

The `folder.toml` of its folder says what a notebook is planned with: ``seconds`` by
notebook, ``memory_mb`` for all of them. A bonus folder that names no memory may take
what its chapter may.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from course import folders, paths

SLACK = 2.0
# By the clock, only so that a cell which hangs ends one day.
PATIENCE = 5.0  # times the most seconds that the whole notebook may compute
SHORTEST_CELL_LIMIT = 300.0

# Where the folder's own `folder.toml` gives no figure:
SOLUTIONS = 40
SUMMARY = 20  # the other notebooks beside a main one: on one page, or loading a model
BONUS = 45
MEMORY_MB = 2000


@dataclass(frozen=True)
class Budget:
    """Processor seconds to plan with, and most megabytes (10**6 bytes) of memory."""

    seconds: float
    memory_mb: float

    @property
    def most_seconds(self) -> float:
        """Processor seconds above which a test fails."""
        return SLACK * self.seconds

    @property
    def cell_limit(self) -> float:
        """Seconds by the clock after which a single cell is interrupted."""
        return max(SHORTEST_CELL_LIMIT, PATIENCE * self.most_seconds)


def budget(notebook: str, root: Path = paths.ROOT) -> Budget:
    """Return the budget of a notebook, named by its path from the root.

    >>> budget("ch02/01_main-chapter-code/exercise-solutions.ipynb")
    Budget(seconds=40, memory_mb=2000)
    """
    path, known = PurePosixPath(notebook), folders.read_all(root)
    owner = folders.owner(notebook, known)
    seconds = owner.seconds.get(path.name) if owner else None
    if seconds is None:
        seconds = _usual_seconds(path)
    chapter = known.get(owner.parent) if owner else None
    limits = (one.memory_mb for one in (owner, chapter) if one and one.memory_mb)
    return Budget(seconds, next(limits, MEMORY_MB))


def _usual_seconds(path: PurePosixPath) -> float:
    if path.stem == "exercise-solutions":
        return SOLUTIONS
    return SUMMARY if folders.MAIN_FOLDER in path.parts else BONUS
