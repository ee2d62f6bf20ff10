"""What a notebook may take: its folder's figures, or the usual ones of its kind."""

import pytest

from course.running.budgets import budget
from course.testing.tiny_trees import miniature

HEAD = 'title = "t"\ntitle_ja = "t"\n'
FILES = {
    "ch04/folder.toml": f"{HEAD}order = 1\nmemory_mb = 3000\n"
    'seconds = {"ch04.ipynb" = 70}\n',
    "ch04/05_mla/folder.toml": f'{HEAD}about = "x"\nmemory_mb = 5000\n'
    'seconds = {"mla.ipynb" = 80}\n',
    "ch04/06_swa/folder.toml": f'{HEAD}about = "x"\n',
}


@pytest.mark.parametrize(
    ("notebook", "seconds", "memory_mb"),
    [
        ("ch04/01_main-chapter-code/ch04.ipynb", 70, 3000),
        ("ch04/01_main-chapter-code/gpt.ipynb", 20, 3000),
        ("ch04/01_main-chapter-code/exercise-solutions.ipynb", 40, 3000),
        ("ch04/05_mla/mla.ipynb", 80, 5000),
        ("ch04/06_swa/swa.ipynb", 45, 3000),
        ("ch03/09_x/x.ipynb", 45, 2000),
    ],
)
def test_budget_of(tmp_path, notebook, seconds, memory_mb):
    allowed = budget(notebook, miniature(tmp_path, FILES).root)
    assert (allowed.seconds, allowed.memory_mb) == (seconds, memory_mb)
    assert allowed.most_seconds == 2 * seconds


def test_by_the_clock_only_a_cell_that_hangs_is_stopped():
    """Four processes on one core are four times as slow; that fails nobody."""
    large = budget("ch07/01_main-chapter-code/ch07.ipynb")
    assert large.cell_limit >= 4 * large.most_seconds
    assert budget("ch02/01_main-chapter-code/dataloader.ipynb").cell_limit >= 120
