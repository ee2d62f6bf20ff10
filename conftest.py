"""Settings for every test process: `python3 -m course test`, or pytest in an editor."""

import os
import signal

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
