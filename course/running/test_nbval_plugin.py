"""The plugin stands on private names of nbval: an update that moves them fails here.

What the plugin does with them is tested in test_defects_in_runs.py, through the test
command.
"""

import inspect

import nbformat
import pytest
from nbformat.v4 import new_output
from nbval import kernel, plugin

from course.running import nbval_plugin

SIGNATURES = {
    plugin.pytest_collect_file: ["file_path", "parent"],
    plugin.IPyNbFile.setup: ["self"],
    plugin.IPyNbFile.collect: ["self"],
    plugin.IPyNbFile.teardown: ["self"],
    plugin.IPyNbCell.__init__: [
        "self",
        "name",
        "parent",
        "cell_num",
        "cell",
        "options",
    ],
    plugin.IPyNbCell.runtest: ["self"],
    plugin.IPyNbCell.compare_outputs: ["self", "test", "ref", "skip_compare"],
    plugin.IPyNbCell.repr_failure: ["self", "excinfo"],
    plugin.IPyNbCell.raise_cell_error: ["self", "message", "args", "kwargs"],
    kernel.start_new_kernel: ["startup_timeout", "kernel_name", "kwargs"],
    kernel.RunningKernel._ensure_iopub_up: ["self"],
    kernel.RunningKernel.execute_cell_input: ["self", "cell_input", "allow_stdin"],
    kernel.RunningKernel.await_reply: ["self", "msg_id", "timeout"],
    kernel.RunningKernel.is_alive: ["self"],
    kernel.RunningKernel.stop: ["self"],
}
#: Names that nbval's own code must still use, or overriding them does nothing.
USED = {
    plugin.IPyNbFile.collect: ["IPyNbCell.from_parent", "cell.cell_type == 'code'"],
    plugin.IPyNbCell.runtest: [
        "self.parent.kernel.await_reply(msg_id, timeout=timeout)",
        "kernel.execute_cell_input(",
        "self.config.option.nbval_cell_timeout",
        "self.output_timeout",
        "self.test_outputs = outs",
        "self.parent.timed_out = True",
        "self.options['check_exception']",
        "if not self.compare_outputs(",
        "self.comparison_traceback",
    ],
    plugin.IPyNbFile.__init__: ["self.timed_out = False"],
    kernel.RunningKernel.await_reply: ["self.get_message(stream='shell'"],
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_nbval_still_has_the_function(function):
    assert list(inspect.signature(function).parameters) == SIGNATURES[function]


@pytest.mark.parametrize("function", USED, ids=lambda f: f.__qualname__)
def test_nbval_still_works_the_way_that_the_plugin_counts_on(function):
    source = inspect.getsource(function)
    assert [name for name in USED[function] if name not in source] == []


def test_every_method_that_the_plugin_overrides_exists_in_nbval():
    own = {
        nbval_plugin.Kernel: {"pid"},
        nbval_plugin.NotebookFile: {"measure"},
        nbval_plugin.NotebookCell: {"label", "_sentence", "differs"},
    }
    for cls, added in own.items():
        defined = {n for n in vars(cls) if not n.startswith("__")} - added
        assert defined
        missing = {name for name in defined if not hasattr(cls.__base__, name)}
        assert missing == set(), f"{cls.__name__} overrides what is not there"


def outputs(*texts, kind="text/plain"):
    return [new_output("display_data", data={kind: text}) for text in texts]


@pytest.mark.parametrize(
    ("new", "stored", "said"),
    [
        (outputs("1.500"), outputs("1.501"), []),
        (outputs("1.500"), outputs("1.700"), ["- 1.700", "+ 1.500"]),
        (outputs("a"), outputs("a", "b"), ["text/plain: 2 stored, 1 now"]),
        (outputs("a"), [], ["text/plain: 0 stored, 1 now"]),
        (outputs("AB==", kind="image/png"), outputs("CD==", kind="image/png"), []),
        ([], outputs("CD==", kind="image/png"), ["image/png: 1 stored, 0 now"]),
        (outputs("<p>", kind="text/html"), outputs("<b>", kind="text/html"), []),
        (outputs("x", kind="text/latex"), outputs("y", kind="text/latex"), ["+ x"]),
        ([new_output("stream", name="stderr", text="10%")], [], []),
        (
            [new_output("stream", name="stdout", text="a")],
            [
                new_output("stream", name="stderr", text="10%"),
                new_output("stream", name="stdout", text="b"),
            ],
            ["stdout (- stored, + now):", "- b", "+ a"],
        ),
        (
            [new_output("error", ename="ValueError", evalue="no")],
            [new_output("error", ename="TypeError", evalue="no")],
            ["- TypeError: no", "+ ValueError: no"],
        ),
    ],
)
def test_what_is_compared_and_how_a_difference_is_said(new, stored, said):
    cell = nbval_plugin.NotebookCell.__new__(nbval_plugin.NotebookCell)
    new, stored = nbformat.from_dict(new), nbformat.from_dict(stored)
    assert cell.compare_outputs(new, stored) is not bool(said)
    assert [line for line in said if line not in cell.comparison_traceback] == []
