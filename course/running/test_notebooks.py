"""Executing notebooks: what `refresh` saves and refuses, what `run` shows."""

import json
import os
import re
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_output

from course import CourseError
from course.running import notebooks
from course.testing.tiny_trees import code, write_notebook

ENVIRONMENT = """import os
for name in ("COURSE_GUARD", "COURSE_PRESET", "OMP_NUM_THREADS"):
    print(os.environ[name])"""


def printed(cell) -> str:
    return "".join(out.get("text", "") for out in cell.outputs)


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    """A notebook with everything that refresh has to tidy, after a refresh."""
    path = tmp_path_factory.mktemp("notebooks") / "tidy.ipynb"
    write_notebook(
        path,
        "value = {  'a':1 }\nprint(value)",
        ENVIRONMENT,
        code("1/0", tags=["raises-exception"]),
        "print('one'); import sys; print('oops', file=sys.stderr); print('two')",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        "   ",
    )
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.update(
        language_info={"name": "python", "version": "3.9.9"},
        kernelspec={
            "name": "somebody-elses",
            "display_name": "x",
            "language": "python",
        },
        widgets={},
    )
    notebook.cells[0].metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    notebook.cells[0].outputs = [new_output("stream", name="stdout", text="stale")]
    notebook.cells.insert(0, new_markdown_cell("# Title", id="title"))
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    assert notebooks.refresh([str(path)]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def test_refresh_counts_from_one_and_keeps_ids(refreshed):
    cells = refreshed["cells"]
    kept = [f"cell-{n}" for n in range(5)]  # the sixth was blank
    assert [cell["id"] for cell in cells] == ["title", *kept]
    counts = [cell["execution_count"] for cell in cells if "outputs" in cell]
    assert counts == [1, 2, 3, 4, 5]
    assert cells[1]["source"] == ['value = {"a": 1}\n', "print(value)"]


def test_refresh_drops_metadata_that_differs_between_machines(refreshed):
    assert refreshed["metadata"] == notebooks.METADATA
    assert "version" not in refreshed["metadata"]["language_info"]
    assert [c["metadata"] for c in refreshed["cells"][:2]] == [{}, {}]
    assert refreshed["cells"][3]["metadata"] == {"tags": ["raises-exception"]}


def test_refresh_runs_with_the_settings_of_the_tests(refreshed):
    said = refreshed["cells"][2]["outputs"][0]["text"]
    assert said == ["1\n", "quick\n", "1\n"]


def test_refresh_stores_streams_whole_and_no_value_after_a_semicolon(refreshed):
    cells = refreshed["cells"]
    streams = {out["name"]: "".join(out["text"]) for out in cells[4]["outputs"]}
    assert streams == {"stdout": "one\ntwo\n", "stderr": "oops\n"}
    assert [out["output_type"] for out in cells[5]["outputs"]] == ["display_data"]


def test_a_stored_traceback_does_not_say_where_the_course_lies():
    traceback = f"File \x1b[32m{notebooks.paths.ROOT / 'ch02' / 'x.py'}:3\x1b[39m"
    output = nbformat.v4.new_output(
        "error", ename="KeyError", evalue="'x'", traceback=[traceback]
    )
    cell = nbformat.v4.new_code_cell("x", outputs=[output], execution_count=1)
    notebook = notebooks.normalise(nbformat.v4.new_notebook(cells=[cell]))
    stored = notebook.cells[0].outputs[0].traceback[0]
    assert stored == f"File \x1b[32m{os.path.join('ch02', 'x.py')}:3\x1b[39m"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("print(6)\nundefined", r"code cell 2 \(id cell-1\) failed with NameError: "),
        (
            code("6 * 7", tags=["raises-exception"]),
            "carries the tag raises-exception but did not",
        ),
        ("import os\nos._exit(3)", "did not finish: its kernel ended .exit code 3"),
    ],
    ids=["error", "no error", "dead kernel"],
)
def test_a_notebook_that_fails_is_not_saved(tmp_path, capsys, cell, said):
    path = write_notebook(tmp_path / "bad.ipynb", "x = 1", cell)
    before = path.read_bytes()
    started = time.monotonic()
    with pytest.raises(CourseError, match="bad.ipynb: not saved"):
        notebooks.refresh([str(path)])
    assert time.monotonic() - started < 30
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["bad.ipynb"]
    error = capsys.readouterr().err
    assert re.search(said, error)
    source = cell.splitlines() if isinstance(cell, str) else cell["source"]
    assert source[-1] in error, "the cell itself is not shown"


def test_execute_measures_processor_time_and_memory(tmp_path):
    source = "import time\nwhile time.process_time() < 1:\n    pass"
    path = write_notebook(tmp_path / "a.ipynb", source, "b'x' * 10**8;")
    told = []
    taken = notebooks.execute(
        path, notebooks.read(path), on_cell=lambda *numbers: told.append(numbers[:2])
    )
    assert told == [(1, 2), (2, 2)]
    assert 1 <= taken.seconds < 30
    assert 100 < taken.peak_mb < 1000


def test_a_damaged_notebook_is_named(tmp_path):
    path = tmp_path / "torn.ipynb"
    path.write_text('{"cells": [', encoding="utf-8")
    with pytest.raises(CourseError, match="torn.ipynb is not a readable notebook"):
        notebooks.read(path)


def test_run_shows_what_is_printed_and_saves_a_copy(tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs"
    monkeypatch.setenv("COURSE_RUNS", str(runs))
    monkeypatch.setenv("COURSE_PRESET", "full")
    path = write_notebook(
        tmp_path / "shown.ipynb",
        "import os\nprint('preset', os.environ['COURSE_PRESET'], end='')",
        "6 * 7",
    )
    before = path.read_bytes()
    assert notebooks.run(str(path)) == 0
    out = capsys.readouterr().out
    assert out.startswith("preset full\n[")
    assert "cell 1/2, " in out
    assert "42\n[" in out
    assert path.read_bytes() == before
    copy = nbformat.read(runs / "executed" / "shown.ipynb", as_version=4)
    assert printed(copy.cells[0]) == "preset full"
    assert str(runs) in out


@pytest.mark.parametrize("cell", ["1 / 0", "assert 1 == 2, 'a wrong exercise'"])
def test_who_reads_gets_no_advice_for_authors(tmp_path, monkeypatch, cell):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    path = write_notebook(tmp_path / "shown.ipynb", cell)
    with pytest.raises(CourseError) as caught:
        notebooks.run(str(path))
    said = str(caught.value)
    assert said.endswith(notebooks.FOR_READERS)
    assert "raises-exception" not in said
    with pytest.raises(CourseError, match="give it the tag raises-exception"):
        notebooks.execute(path, notebooks.read(path))


def test_who_has_corrected_a_cell_that_was_to_fail_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    cell = code("6 * 7", tags=["raises-exception"])
    path = write_notebook(tmp_path / "shown.ipynb", cell)
    assert notebooks.run(str(path)) == 0


def test_run_hands_arguments_to_a_script_and_its_exit_code_back(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "with open(sys.argv[1], 'w', encoding='utf-8') as file:\n"
        "    file.write(' '.join(sys.argv[2:]))\n"
        "sys.exit(7)\n",
        encoding="utf-8",
    )
    out = tmp_path / "out.txt"
    assert notebooks.run(str(script), [str(out), "--seed", "3"]) == 7
    assert out.read_text(encoding="utf-8") == "--seed 3"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_lets_a_command_end_in_its_own_way(tmp_path):
    done = tmp_path / "done"
    child = (
        "import os, pathlib, signal, time\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(0.5)\n"
        f"pathlib.Path({str(done)!r}).touch()\n"
    )
    with pytest.raises(KeyboardInterrupt):
        notebooks.wait_for([sys.executable, "-c", child])
    assert done.exists()


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ("README.md", [], "README.md is neither a notebook nor a script"),
        ("course", [], "course has no notebook to run"),
        ("dataloder.py", [], "Close to it: ch02/01_main-chapter-code/dataloader.py"),
        ("ch02", ["--seed", "3"], "is a notebook and takes no arguments"),
    ],
)
def test_run_says_what_cannot_be_run(target, arguments, said):
    with pytest.raises(CourseError) as caught:
        notebooks.run(target, arguments)
    assert said in str(caught.value)
