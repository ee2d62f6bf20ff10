"""What this machine has, whether anything has to be fixed, and what it can run.

`python3 -m course doctor` prints six sections and a verdict. It changes nothing, uses
no network, and goes on when one of its own questions fails: somebody who calls a doctor
has trouble already. Exit code 1 if something has to be fixed.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from course import (
    PYTHON_NEWEST,
    PYTHON_OLDEST,
    CourseError,
    assets,
    lab,
    locks,
    paths,
    settings,
    this_machine,
)
from course.installation import pip_runs

# What `benchmark` gives on the machine that filled ledger.csv.
REFERENCE_MACHINE = "2 cores, AMD EPYC, 24 GB, Linux"
REFERENCE_SCORE = 165.0

LEAST_MEMORY = 3.5e9  # bytes; what a machine of "4 GB" has at the least
LEAST_DISK = 1e9  # bytes; what the notebooks write stays far below
SETUP = "run `python3 -m course setup`"


class Line(NamedTuple):
    """One line of the report; with a fix if something is wrong."""

    text: str
    fix: str = ""


def main() -> int:
    """Print the report; return 1 if something has to be fixed, else 0."""
    wrong = []
    for title, section in SECTIONS.items():
        print(f"\n{title}")
        for line in _examined(section):
            print(f"  {'! ' if line.fix else ''}{line.text}", flush=True)
            if line.fix:
                wrong.append(line)
    print(f"\n{_verdict(wrong)}")
    return 1 if wrong else 0


def _examined(section: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """Yield the lines of a section, even if something in it cannot be found out."""
    try:
        yield from section()
    except CourseError as error:
        yield Line(str(error), "do what that line says")
    except Exception as error:
        yield Line(
            f"The rest cannot be found out ({type(error).__name__}: {error}).",
            "look for what that line says in setup/troubleshooting.md, or report it",
        )


def _verdict(wrong: list[Line]) -> str:
    if not wrong:
        return "Nothing has to be fixed."
    fixes = list(dict.fromkeys(line.fix for line in wrong))
    count = "One thing has" if len(wrong) == 1 else f"{len(wrong)} things have"
    lines = [f"{count} to be fixed (marked with !):"]
    return "\n".join(lines + [f"  - {fix[0].upper()}{fix[1:]}." for fix in fixes])


# --------------------------------------------------------------------------- sections


def _machine() -> Iterator[Line]:
    import psutil

    yield Line(f"{this_machine.machine()} ({platform.platform()})")
    memory = psutil.virtual_memory()
    yield Line(
        f"memory: {memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free",
        "" if memory.total >= LEAST_MEMORY else "use a machine with 4 GB of memory",
    )
    places = {
        "course": paths.ROOT,
        "cache": paths.cache_dir(),
        "runs": paths.runs_dir(),
    }
    for name, place in places.items():
        free = shutil.disk_usage(_nearest(place)).free
        fix = f"free some space on the disk of {place}" if free < LEAST_DISK else ""
        yield Line(f"disk for {name}: {free / 1e9:.1f} GB free in {place}", fix)
    # A cache that holds all files may be read-only.
    for variable, place in {
        "COURSE_RUNS": paths.runs_dir(),
        "TMPDIR": Path(tempfile.gettempdir()),
        **lab.written(),
    }.items():
        try:
            locks.try_writing(_nearest(place), variable)
        except CourseError as problem:
            yield Line(str(problem), f"set {variable} as that line says")


def _nearest(place: Path) -> Path:
    """Return a folder, or the innermost one above it that is there."""
    return next(at for at in (place, *place.parents) if os.path.exists(at))


def _python() -> Iterator[Line]:
    # That both are right has been made sure of before the doctor is called.
    span = "{}.{} to {}.{}".format(*PYTHON_OLDEST, *PYTHON_NEWEST)
    yield Line(
        f"Python {platform.python_version()} in {sys.executable} (tested: {span})"
    )
    yield Line(f"environment {sys.prefix}: complete")
    yield from _packages("requirements.txt", SETUP)
    yield from _packages("requirements-test.txt", "")


def _packages(requirements: str, fix: str) -> Iterator[Line]:
    """Compare what is installed with the exact versions of a requirements file.

    Without `fix`, nothing being installed is no fault: only the tests need it.
    """
    wanted = pip_runs.pins(requirements)
    wrong = pip_runs.not_as_pinned(requirements)
    right = len(wanted) - len(wrong)
    yield Line(f"{requirements}: {right} of {len(wanted)} packages as pinned")
    foreign = Path(sys.prefix) != paths.ENV
    for name, have in wrong.items():
        text = f"{name}: {have or 'nothing'} is installed, {wanted[name]} is pinned"
        if foreign and name in pip_runs.KEPT_WITH_HERE and have:
            yield Line(f"{text} (kept as the environment's owner installed it)")
        elif fix:
            yield Line(text, fix)
        elif have:
            yield Line(f"{text}; `python3 -m course test` puts that right")


def _device() -> Iterator[Line]:
    import torch

    yield Line(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = properties.total_memory / 1e9
        found.append(f"cuda ({properties.name}, {memory:.0f} GB)")
    if torch.backends.mps.is_available():
        found.append("mps (Apple)")
    yield Line(f"devices: {', '.join(['cpu', *found])}")
    for variable, read in {
        "COURSE_PRESET": settings.preset,
        "COURSE_DEVICE": settings.device,
        "COURSE_DTYPE": settings.dtype,
        "COURSE_MODEL": settings.model_name,
    }.items():
        source = "set by you" if os.environ.get(variable, "").strip() else "default"
        try:
            value = str(read()).removeprefix("torch.")
            yield Line(f"{variable}: {value} ({source})")
        except CourseError as error:
            yield Line(str(error), f"set {variable} as that line says, or unset it")


def _imports() -> Iterator[Line]:
    file = Path(sysconfig.get_path("purelib"), paths.PATH_FILE)
    yield Line(f"path file {file}: up to date")  # written at every start
    modules = {"course": paths.ROOT / "course" / "__init__.py"}
    modules |= paths.summary_modules()
    python_path = os.environ.get(settings.LEFT_OUT, "").split(os.pathsep)
    left_out = [Path(at) for at in python_path if at]
    others = [Path.cwd(), *left_out]
    from_here = [*map(str, others), *sys.path]  # as a script in this folder would look
    right = 0
    for name, path in modules.items():
        origin = getattr(PathFinder.find_spec(name, from_here), "origin", None)
        if origin and Path(origin).resolve() == path.resolve():
            right += 1
        elif origin:
            yield Line(
                f"`import {name}` finds {origin} instead of {path}",
                f"rename or remove {origin}, which hides the course's module",
            )
        else:
            yield Line(f"`import {name}` finds nothing instead of {path}", SETUP)
    yield Line(f"{right} of {len(modules)} modules are importable from this folder")
    homes = defaultdict(list)
    for name in sorted(_pinned_modules()):
        specs = {at: PathFinder.find_spec(name, [at]) for at in from_here}
        for home in [at for at, spec in specs.items() if spec and spec.origin][:1]:
            homes[home].append(name)
    for place, names in homes.items():
        yield Line(f"imported from {place}: {', '.join(names)}")
    folders = [*others, paths.ROOT, *(p.parent for p in modules.values())]
    for place in dict.fromkeys(folders):
        names = [file.name for file in paths.namesakes(place)]
        if names:
            what = f"{', '.join(names)} in {place}"
            foreign = "unset PYTHONPATH, which is meant for another Python"
            fix = foreign if place in left_out else f"rename {what}"
            yield Line(f"{what}: imported instead of what is installed", fix)


def _pinned_modules() -> Iterator[str]:
    """Yield the names under which the packages of requirements.txt are imported."""
    pinned = {name.replace("_", "-") for name in pip_runs.pins(pip_runs.BASE)}
    for module, owners in metadata.packages_distributions().items():
        names = {name.lower().replace("_", "-") for name in owners}
        if module.isidentifier() and not names.isdisjoint(pinned):
            yield module


def _assets() -> Iterator[Line]:
    yield Line(f"cache: {paths.cache_dir()}")
    for name, asset in assets.manifest().items():
        state, size = assets.status(name), assets.readable_size(asset.size)
        fix = ""
        if state == "damaged" or (state == "missing" and asset.offline):
            fix = SETUP
        if state == "damaged" and asset.in_tree:
            fix = f"take {asset.place()} from a fresh copy of the course"
        optional = (
            "" if asset.offline or state != "missing" else ", fetched when needed"
        )
        yield Line(f"{name} ({size}): {state}{optional}", fix)
    place = Path(os.environ.get("TIKTOKEN_CACHE_DIR", ""))
    if place != paths.cache_dir() / "tiktoken":
        yield Line(
            f"TIKTOKEN_CACHE_DIR is {place}: tiktoken keeps files of its own there and "
            "may need a network",
        )
    if settings.offline():
        yield Line("COURSE_OFFLINE is set: nothing will be fetched")


def _notebooks() -> Iterator[Line]:
    import psutil

    from course.running import ledger

    speed = benchmark() / REFERENCE_SCORE
    yield Line(
        f"one core of this machine has {speed:.2f} times the speed of the reference "
        f"({REFERENCE_MACHINE})"
    )
    free = psutil.virtual_memory().available / 1e6
    for row in ledger.read().values():
        time_here = f"about {ledger.duration(row.seconds / speed)}"
        if row.machine != REFERENCE_MACHINE:  # then the scale does not apply
            time_here = f"{ledger.duration(row.seconds)} on {row.machine}"
        text = f"{row.notebook}: {time_here}, {row.peak_mb} MB of memory"
        if row.peak_mb > free:
            text += f"; only {free:.0f} MB are free now, so close something first"
        yield Line(text)


SECTIONS: dict[str, Callable[[], Iterator[Line]]] = {
    "Machine": _machine,
    "Python": _python,
    "PyTorch and your choices": _device,
    "Modules": _imports,
    "Files": _assets,
    "What it takes here (one thread)": _notebooks,
}


# ---------------------------------------------------------------------- small things


def benchmark(seconds: float = 1.0) -> float:
    """Return how fast one core does the course's kind of work, for a second.

    One unit of work is a forward and backward pass of a small block of attention and
    feed-forward layer, and about as much time of plain Python. Time is that of this
    thread, so that other work on the machine changes little. Returns units per second.
    """
    import torch

    timer = timeit.Timer(_work(), timer=time.thread_time)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        count = max(1, int(seconds / 5 / min(timer.repeat(3, number=1))))
        return count / statistics.median(timer.repeat(5, count))
    finally:
        torch.set_num_threads(threads)


def _work() -> Callable[[], None]:
    """Return a function that does one unit of work."""
    import torch

    generator = torch.Generator().manual_seed(1)
    x, w_in, w_out = (
        torch.randn(shape, generator=generator, requires_grad=True)
        for shape in ((4, 64, 128), (128, 512), (512, 128))
    )
    words = [f"word{i % 97}" for i in range(24_000)]

    def work() -> None:
        attended = (x @ x.transpose(1, 2) / 128**0.5).softmax(-1) @ x
        (torch.nn.functional.gelu(attended @ w_in) @ w_out).sum().backward()
        x.grad = w_in.grad = w_out.grad = None
        counts: dict[str, int] = {}
        for word in words:
            counts[word] = counts.get(word, 0) + 1

    return work
