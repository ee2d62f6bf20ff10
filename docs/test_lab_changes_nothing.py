"""Who reads in JupyterLab changes nothing, and nothing alarms them. A real browser."""

import json
import signal
import sys

import pytest

import real_browser
from course.running import notebooks, run_tests
from course.testing.running_lab import Lab
from course.testing.tree_copies import copy_tree

PLUGIN = "@jupyterlab/docmanager-extension"
CHAPTER = "ch02/01_main-chapter-code/ch02.ipynb"
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
pytestmark = [
    pytest.mark.skipif(bool(real_browser.problem()), reason="needs a browser"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of POSIX"),
]


def save_every_second(home):
    """The reader's own setting: what takes two minutes otherwise takes one second."""
    place = home / "config_dir" / "lab" / "user-settings" / PLUGIN
    place.mkdir(parents=True)
    text = json.dumps({"autosave": True, "autosaveInterval": 1})
    (place / "plugin.jupyterlab-settings").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """A copy of the course, JupyterLab in it, and a browser that shows a chapter."""
    home = tmp_path_factory.mktemp("reading")
    tree = copy_tree(home)
    save_every_second(home)
    lab = Lab(home, "--no-browser", tree=tree)
    address = lab.url.replace("README.md", CHAPTER)
    saved = []
    try:
        with real_browser.page(address) as page:
            page.on("response", lambda got: saved.append(got) if is_save(got) else None)
            yield lab, tree, page, saved
    finally:
        lab.process.kill()
        lab.process.communicate()


def is_save(answer):
    return answer.request.method == "PUT" and "/api/contents/" in answer.url


def idle(page):
    page.locator(
        f"{PANEL} .jp-Notebook-ExecutionIndicator[data-status='idle']"
    ).wait_for()


def wait_for_save(page, saved, before):
    """Wait until JupyterLab, by itself or for a key, has saved oftener than before."""
    for _ in range(600):
        if len(saved) > before:
            return
        page.wait_for_timeout(100)
    raise AssertionError("JupyterLab saved nothing in a minute")


def test_opening_reading_and_saving_change_no_file(reading):
    lab, tree, page, saved = reading
    before = run_tests.snapshot(tree)
    idle(page)
    for _ in range(5):  # read on
        page.locator(f"{PANEL} .jp-WindowedPanel-outer").first.press("PageDown")
        page.wait_for_timeout(300)
    # What the kernel says of itself makes the notebook differ, and so it is saved.
    wait_for_save(page, saved, before=0)
    known = len(saved)
    page.keyboard.press("Control+s")
    wait_for_save(page, saved, known)
    assert {answer.status for answer in saved} == {200}
    assert run_tests.changes(before, run_tests.snapshot(tree)) == ""
    # The course's own code is trusted, and so is what it has drawn.
    assert page.locator(f"{PANEL} .jp-Dialog").count() == 0


def test_what_a_reader_writes_is_saved(reading):
    """The other way round: otherwise the test above would be content with no disk."""
    _, tree, page, saved = reading
    idle(page)
    page.locator(f"{PANEL} .jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Control+Home")
    known = len(saved)
    page.keyboard.type("# mine")
    page.keyboard.press("Control+s")
    wait_for_save(page, saved, known)
    page.wait_for_timeout(500)
    cells = notebooks.read(tree / CHAPTER).cells
    assert any(cell.source.startswith("# mine") for cell in cells)


def test_nothing_alarms_a_reader_in_the_terminal(reading):
    """One line says that it is ready; then there is only the one that ends it."""
    lab, _, page, _ = reading
    idle(page)
    said = lab.stop(signal.SIGINT).splitlines()
    # The light environment of a copy has not enabled this extension of the server.
    said = [line for line in said if "GET /lsp/status" not in line]
    assert said == ["", "Stopping JupyterLab ..."]
