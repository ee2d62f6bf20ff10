"""The budgets are those that the course promises."""

import pytest

from course.running.budgets import budget


@pytest.mark.parametrize(
    ("notebook", "seconds", "memory_mb"),
    [
        ("ch02/01_main-chapter-code/ch02.ipynb", 30, 2000),
        ("ch02/01_main-chapter-code/dataloader.ipynb", 20, 2000),
        ("ch02/01_main-chapter-code/exercise-solutions.ipynb", 40, 2000),
        ("ch02/05_bpe-from-scratch/bpe-from-scratch.ipynb", 45, 2000),
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


def test_a_bonus_folder_has_figures_of_its_own(tmp_path):
    texts = {
        "ch04": 'order = 1\nmemory_mb = 3000\nseconds = {"ch04.ipynb" = 70}\n',
        "ch04/05_mla": 'about = "x"\nmemory_mb = 5000\nseconds = {"mla.ipynb" = 80}\n',
        "ch04/06_swa": 'about = "x"\n',
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        head = 'title = "t"\ntitle_ja = "t"\n'
        (tmp_path / name / "folder.toml").write_text(head + text, encoding="utf-8")

    def figures(notebook):
        allowed = budget(notebook, tmp_path)
        return allowed.seconds, allowed.memory_mb

    assert figures("ch04/ch04.ipynb") == (70, 3000)
    assert figures("ch04/05_mla/mla.ipynb") == (80, 5000)
    assert figures("ch04/06_swa/swa.ipynb") == (45, 3000)
    assert figures("ch03/09_x/x.ipynb") == (45, 2000)
