"""The budgets are those that the course promises."""

import pytest

from course import paths
from course.running.budgets import SECONDS, budget


@pytest.mark.parametrize(
    ("notebook", "seconds", "memory_mb"),
    [
        ("ch02/01_main-chapter-code/ch02.ipynb", 30, 2000),
        ("ch02/01_main-chapter-code/dataloader.ipynb", 20, 2000),
        ("ch02/01_main-chapter-code/exercise-solutions.ipynb", 40, 2000),
        ("ch02/05_bpe-from-scratch/bpe-from-scratch.ipynb", 45, 2000),
        ("appendix-A/01_main-chapter-code/exercise-solutions.ipynb", 40, 2000),
        ("appendix-A/01_main-chapter-code/code-part2.ipynb", 40, 2000),
        ("ch05/01_main-chapter-code/exercise-solutions.ipynb", 120, 4000),
        ("ch05/07_gpt_to_llama/gpt-to-llama.ipynb", 90, 4000),
        ("ch07/01_main-chapter-code/ch07.ipynb", 240, 4000),
        ("ch01/ch01.ipynb", 30, 2000),
        ("ch01/exercise-solutions.ipynb", 40, 2000),
    ],
)
def test_budget_of(notebook, seconds, memory_mb):
    allowed = budget(notebook)
    assert (allowed.seconds, allowed.memory_mb) == (seconds, memory_mb)
    assert allowed.most_seconds == 2 * seconds


def test_by_the_clock_only_a_cell_that_hangs_is_stopped():
    """Four processes on one core are four times as slow; that fails nobody."""
    large = budget("ch07/01_main-chapter-code/ch07.ipynb")
    assert large.cell_limit >= 4 * large.most_seconds
    assert budget("ch02/01_main-chapter-code/dataloader.ipynb").cell_limit >= 120


def test_figures_of_their_own_belong_to_notebooks_of_chapters_that_exist():
    """A renamed notebook must not fall back to another budget unnoticed."""
    begun = {
        name for name in SECONDS if any((paths.ROOT / name).parent.glob("*.ipynb"))
    }
    assert {name for name in begun if not (paths.ROOT / name).is_file()} == set()
    assert begun
