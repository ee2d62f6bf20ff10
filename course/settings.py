"""What the reader chooses: preset, device, number type and model.

Each choice is one environment variable with a default. Nothing is detected, so the same
command gives the same results on every machine; `COURSE_DEVICE=best`, which
`python3 -m course lab` sets, is the one value that looks at the machine. What may be
chosen stands below: `PRESETS`, `DEVICES`, `DTYPES`, `models` and the `DEFAULTS`.

A notebook shows both of its presets where it uses them:

>>> settings = choose(quick=dict(epochs=2), full=dict(epochs=10))
>>> settings["epochs"] in (2, 10)
True
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any, TypeVar

from course import CourseError, folders, startup
from course.paths import ROOT

if TYPE_CHECKING:
    import torch

PRESETS = ("quick", "full")
DEVICES = ("cpu", "cuda", "mps", "best")
DTYPES = ("float32", "bfloat16")
DEFAULTS = {
    "COURSE_PRESET": "quick",
    "COURSE_DEVICE": "cpu",
    "COURSE_DTYPE": "float32",
    "COURSE_MODEL": "smollm2-135m",
}

T = TypeVar("T")


def preset() -> str:
    """Return the preset, "quick" or "full".

    Raises `CourseError` when ``COURSE_PRESET`` holds anything else.
    """
    return _read("COURSE_PRESET", PRESETS)


def choose(*, quick: T, full: T) -> T:
    """Return `quick` or `full`, whichever the reader's preset asks for.

    A preset changes sizes, never the path through a notebook. So when one of the two is
    a dictionary, the other must be one with the same keys; `ValueError` otherwise.
    """
    if _keys(quick) != _keys(full):
        raise ValueError(
            "choose() needs dictionaries with the same keys, or none: quick has "
            f"{_keys(quick)}, full has {_keys(full)}"
        )
    return full if preset() == "full" else quick


def device() -> torch.device:
    """Return the device that the reader asked for, the CPU unless told otherwise.

    Raises `CourseError` when ``COURSE_DEVICE`` is unknown or this machine has no such
    device.
    """
    import torch

    wanted = _read("COURSE_DEVICE", DEVICES)
    if wanted == "best":
        wanted = next(name for name in ("cuda", "mps", "cpu") if _is_available(name))
    if not _is_available(wanted):
        present = [repr(name) for name in DEVICES[:-1] if _is_available(name)]
        choices = " or ".join(present)
        raise CourseError(
            f"COURSE_DEVICE is {wanted!r}, but PyTorch {torch.__version__} finds no "
            f"such device on this machine. Set COURSE_DEVICE to {choices}, "
            "or to 'best' for the fastest that there is."
        )
    return torch.device(wanted)


def dtype() -> torch.dtype:
    """Return the number type for weights, float32 unless told otherwise.

    Raises `CourseError` when ``COURSE_DTYPE`` holds anything but float32 or bfloat16.
    """
    import torch

    return getattr(torch, _read("COURSE_DTYPE", DTYPES))


def model_name() -> str:
    """Return the name of the pretrained model that chapters 5 to 7 start from.

    Raises `CourseError` when ``COURSE_MODEL`` names a model unknown to the course.
    """
    return _read("COURSE_MODEL", models())


def models() -> tuple[str, ...]:
    """Return the names of the pretrained models that the chapters offer."""
    return folders.models(folders.read_all(ROOT))


def check_choices() -> None:
    """Raise `CourseError` for a choice with an unknown value, before any work begins.

    Needs no PyTorch: whether this machine has the device shows when it is asked for.
    """
    preset()
    _read("COURSE_DEVICE", DEVICES)
    _read("COURSE_DTYPE", DTYPES)
    model_name()


def offline() -> bool:
    """Return whether ``COURSE_OFFLINE`` forbids the network.

    Unset, empty, 0, false and no allow it; anything else forbids it, so that a slip of
    the pen never opens the network in a room where it must stay closed.
    """
    return startup.is_on("COURSE_OFFLINE")


def value_of(variable: str) -> str:
    """Return what a variable holds, "" when it is unset.

    Stray blanks are forgiven: `set COURSE_PRESET=full ` in a Windows prompt keeps one.
    """
    return os.environ.get(variable, "").strip()


def _read(variable: str, allowed: tuple[str, ...]) -> str:
    """Return the variable's value in its canonical spelling, or the default."""
    value = value_of(variable)
    if not value:
        return DEFAULTS[variable]
    for name in allowed:
        if name.lower() == value.lower():
            return name
    choices = " or ".join(map(repr, allowed))
    raise CourseError(
        f"{variable} is {value!r}, which this course does not know. "
        f"Set it to {choices}, or unset it to get {DEFAULTS[variable]!r}."
    )


def _is_available(name: str) -> bool:
    import torch

    return torch.get_device_module(name).is_available()


def _keys(choice: object) -> str:
    """Return the keys of a dictionary in words."""
    return f"{sorted(map(str, choice))}" if isinstance(choice, dict) else "none"


# --- What processes of the course see -------------------------------------------------

#: What is set on this machine for other Pythons and notebooks. No process of the course
#: gets it: it would bring in their packages, start-up files or rules.
FOREIGN = {
    *("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONPLATLIBDIR"),
    *("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONSAFEPATH"),
    *("PYTHONCASEOK", "__PYVENV_LAUNCHER__"),
}
#: What PYTHONPATH was before it was left out, for the doctor.
LEFT_OUT = "COURSE_LEFT_OUT"
#: What `lab` and `run` set for notebooks and scripts, unless the reader has.
UNLESS_SET = {
    # JupyterLab's parts come from the environment before those in a home folder.
    "JUPYTER_PREFER_ENV_PATH": "1",
    # A thread that waits for another looks so many times before it sleeps: chapter 5
    # (07_gpt_to_llama/results/busy.csv) measures it, alone and on a busy machine.
    "GOMP_SPINCOUNT": "5000",
}
#: Settings that make runs comparable. `test` and `refresh` put them into every test
#: process and every kernel, whatever the reader has set.
FIXED = {
    "COURSE_OFFLINE": "1",
    "COURSE_GUARD": "1",
    **DEFAULTS,
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
#: How a program is heard that asks nothing: what it prints anywhere, as one text.
ONE_TEXT: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "encoding": "utf-8",
    "errors": "replace",
}


def own_environment() -> dict[str, str]:
    """Return the variables of this process without those for other Pythons."""
    return {k: v for k, v in os.environ.items() if k not in FOREIGN}


def environment_of_tests() -> dict[str, str]:
    """Return the variables of this process with the settings for testing."""
    return own_environment() | FIXED


def environment_of_readers(ipython_folder: str = "") -> dict[str, str]:
    """Return the variables of scripts, and with a folder of notebooks, for a reader.

    `ipython_folder` is an empty folder that takes the place of the reader's IPython
    profile, whose start-up files and settings could change what cells do.
    """
    own = UNLESS_SET | own_environment()
    if "OMP_WAIT_POLICY" in own and "GOMP_SPINCOUNT" not in os.environ:
        del own["GOMP_SPINCOUNT"]  # it would overrule the reader's policy
    if ipython_folder:
        own.pop("MPLBACKEND", None)  # figures go into the notebook
        own["IPYTHONDIR"] = ipython_folder
    return own


def kernel_environment(ipython_folder: str) -> dict[str, str]:
    """Return the variables of a tested kernel, with an IPython folder as above."""
    own = {"MPLBACKEND": INLINE, "IPYTHONDIR": ipython_folder}
    return environment_of_tests() | own
