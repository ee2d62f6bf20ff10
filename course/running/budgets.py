"""What a notebook may take under test: seconds of the processor, and memory.

The seconds are what a notebook is planned with; the tests fail above twice as many,
because machines differ. Time that a kernel waits does not count, so a busy machine
fails nobody. Files and folders are paths from the root of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

SLACK = 2.0
# By the clock, only so that a cell which hangs ends one day.
PATIENCE = 5.0  # times the most seconds that the whole notebook may compute
SHORTEST_CELL_LIMIT = 300.0

#: Notebooks with a figure of their own.
SECONDS = {
    "ch01/ch01.ipynb": 30,
    "ch02/01_main-chapter-code/ch02.ipynb": 30,
    "ch03/01_main-chapter-code/ch03.ipynb": 60,
    "ch04/01_main-chapter-code/ch04.ipynb": 60,
    "ch05/01_main-chapter-code/ch05.ipynb": 150,
    "ch05/07_gpt_to_llama/gpt-to-llama.ipynb": 90,
    "ch06/01_main-chapter-code/ch06.ipynb": 150,
    "ch07/01_main-chapter-code/ch07.ipynb": 240,
    "appendix-A/01_main-chapter-code/code-part1.ipynb": 40,
    "appendix-A/01_main-chapter-code/code-part2.ipynb": 40,
    "appendix-D/01_main-chapter-code/appendix-D.ipynb": 90,
    "appendix-E/01_main-chapter-code/appendix-E.ipynb": 90,
}
SOLUTIONS = 120
LIGHT_SOLUTIONS = 40
LIGHT = ("ch01", "ch02", "ch03", "ch04", "appendix-A")
SUMMARY = 20  # the other notebooks beside a main one: on one page, or loading a model
BONUS = 45

MEMORY_MB = 2000
#: Chapters that hold a pretrained model in memory.
HEAVY = ("ch05", "ch06", "ch07", "appendix-D", "appendix-E")
HEAVY_MEMORY_MB = 4000


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


def budget(notebook: str) -> Budget:
    """Return the budget of a notebook, named by its path from the root.

    >>> budget("ch02/01_main-chapter-code/exercise-solutions.ipynb")
    Budget(seconds=40, memory_mb=2000)
    """
    path = PurePosixPath(notebook)
    chapter = path.parts[0]
    memory = HEAVY_MEMORY_MB if chapter in HEAVY else MEMORY_MB
    return Budget(_seconds(path, chapter), memory)


def _seconds(path: PurePosixPath, chapter: str) -> float:
    if path.as_posix() in SECONDS:
        return SECONDS[path.as_posix()]
    if path.stem == "exercise-solutions":
        return LIGHT_SOLUTIONS if chapter in LIGHT else SOLUTIONS
    return SUMMARY if "01_main-chapter-code" in path.parts else BONUS
