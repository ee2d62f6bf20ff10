"""What `python3 -m course test` is made of, and what every tested process sees."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: Settings that make runs comparable. `test` and `refresh` put them into every test
#: process and every kernel, whatever the reader has set.
FIXED = {
    "COURSE_OFFLINE": "1",
    "COURSE_GUARD": "1",
    "COURSE_PRESET": "quick",
    "COURSE_DEVICE": "cpu",
    "COURSE_DTYPE": "float32",
    "COURSE_MODEL": "smollm2-135m",
    # One thread: sums of floats depend on how many threads share them, and two
    # processes with two threads each slow each other down many times over.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    # Reference libraries must not even try.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "MPLBACKEND": "agg",
}
INLINE = "module://matplotlib_inline.backend_inline"


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return `base` (the process's own variables) with the settings for testing."""
    inherited = dict(os.environ if base is None else base)
    inherited.pop("PYTHONSTARTUP", None)
    return inherited | FIXED


def kernel_environment(
    base: Mapping[str, str] | None = None, *, ipython_folder: str
) -> dict[str, str]:
    """Return the variables of a tested kernel.

    `ipython_folder` is an empty folder that takes the place of the reader's IPython
    profile, whose start-up files and settings could change what cells print.
    """
    own = {"MPLBACKEND": INLINE, "IPYTHONDIR": ipython_folder}
    return environment(base) | own
