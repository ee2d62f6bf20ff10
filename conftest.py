"""Settings for every test process: `python3 -m course test`, or pytest in an editor."""

import os
import signal
from collections.abc import Iterator
from types import ModuleType

import pytest

from course import folders, guard, paths, settings

# Before anything imports torch, which reads the number of threads when it starts.
os.environ.update(settings.FIXED)
guard.install()
# A shell that starts a command with & lets it ignore Ctrl-C, and so would all processes
# that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["course.running.nbval_plugin"]
# Scripts that compute for minutes, and web apps, of which several are called app.py;
# their tests import them by path.
collect_ignore_glob = ["*/experiments.py"]
collect_ignore = sorted(folders.files_of(folders.read_all(paths.ROOT), "apps"))


@pytest.fixture(scope="module")
def experiments(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The `experiments.py` beside the tests, whatever threads it sets put back."""
    import torch  # not at the top: few test processes need it

    from course.testing.experiment_scripts import script_in

    threads = torch.get_num_threads()
    yield script_in(request.path.parent)
    torch.set_num_threads(threads)
