"""Settings for every test process: `python3 -m course test`, or pytest in an editor."""

import os

from course import checking, guard

# Before anything imports torch, which reads the number of threads when it starts.
os.environ.update(checking.FIXED)
guard.install()

pytest_plugins = ["course.checking.nbval_plugin"]
# Scripts that compute for minutes; their tests import them by path.
collect_ignore_glob = ["*/experiments.py"]
