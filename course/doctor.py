"""What this machine has, whether anything has to be fixed, and what it can run.

`python3 -m course doctor` prints six sections and a verdict. It changes nothing, and
goes on when one of its own questions fails: somebody who calls a doctor has trouble
already. What cannot be found out is a fault. Exit code 1 if something has to be fixed.
Before the set-up `course.first_aid` does what can be done then.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
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
from course.installation import environment, pip_runs

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


Section = Callable[[], Iterator[Line]]


def main() -> int:
    """Print the report; return 1 if something has to be fixed, else 0."""
    return report(SECTIONS)


def report(sections: dict[str, Section]) -> int:
    """Print the sections and a verdict; return 1 if something has to be fixed."""
    wrong = []
    for title, section in sections.items():
        print(f"\n{title}")
        for line in _examined(section):
            print(f"  {'! ' if line.fix else ''}{line.text}", flush=True)
            if line.fix:
                wrong.append(line)
    print(f"\n{_verdict(wrong)}")
    return 1 if wrong else 0


def _examined(section: Section) -> Iterator[Line]:
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


def hardware() -> Iterator[Line]:
    """Say what machine this is, before the set-up as well."""
    yield Line(f"{this_machine.machine()} ({platform.platform()})")
    total, free = this_machine.memory()
    if total:
        yield Line(
            f"memory: {total / 1e9:.1f} GB, {free / 1e9:.1f} GB free",
            "" if total >= LEAST_MEMORY else "use a machine with 4 GB of memory",
        )


def _machine() -> Iterator[Line]:
    yield from hardware()
    places = {
        "course": paths.ROOT,
        "cache": paths.cache_dir(),
        "runs": paths.runs_dir(),
    }
    for name, place in places.items():
        free = shutil.disk_usage(nearest(place)).free
        fix = f"free some space on the disk of {place}" if free < LEAST_DISK else ""
        yield Line(f"disk for {name}: {free / 1e9:.1f} GB free in {place}", fix)
    # A cache that holds all files may be read-only.
    for variable, place in {
        "COURSE_RUNS": paths.runs_dir(),
        "TMPDIR": Path(tempfile.gettempdir()),
        **lab.written(),
    }.items():
        try:
            locks.try_writing(nearest(place), variable)
        except CourseError as problem:
            yield Line(str(problem), f"set {variable} as that line says")


def nearest(place: Path) -> Path:
    """Return a folder, or the innermost one above it that is there."""
    return next(at for at in (place, *place.parents) if os.path.exists(at))


def python_version() -> Iterator[Line]:
    """Say which Python runs."""
    # That it is of the range has been made sure of before the doctor is called.
    span = "{}.{} to {}.{}".format(*PYTHON_OLDEST, *PYTHON_NEWEST)
    yield Line(
        f"Python {platform.python_version()} in {sys.executable} (tested: {span})"
    )


def _python() -> Iterator[Line]:
    yield from python_version()
    complete = environment.is_complete(sys.prefix)
    state = "complete" if complete else "made for other requirements or another Python"
    yield Line(f"environment {sys.prefix}: {state}", "" if complete else SETUP)
    yield from _packages()
    yield from _tests_packages()
    yield from _importable()


def _packages() -> Iterator[Line]:
    """Compare what is installed with the exact versions of the requirements."""
    wanted = pip_runs.pins(pip_runs.BASE)
    wrong = pip_runs.not_as_pinned(pip_runs.BASE)
    right = len(wanted) - len(wrong)
    yield Line(f"{pip_runs.BASE}: {right} of {len(wanted)} packages as pinned")
    foreign = Path(sys.prefix) != paths.ENV
    for name, have in wrong.items():
        text = f"{name}: {have or 'nothing'} is installed, {wanted[name]} is pinned"
        if foreign and name in pip_runs.KEPT_WITH_HERE and have:
            yield Line(f"{text} (kept as the environment's owner installed it)")
        else:
            yield Line(text, SETUP)
    for name, lost in pip_runs.incomplete(wanted).items():
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        fix = f"install {name} again with pip" if foreign else SETUP
        yield Line(f"{name}: files are missing: {lost[0]}{more}", fix)


def _tests_packages() -> Iterator[Line]:
    """Say what there is of the tests' packages; `test` itself brings them in order."""
    wanted = pip_runs.pins(pip_runs.TESTING)
    right = len(wanted) - len(pip_runs.not_as_pinned(pip_runs.TESTING))
    about = f"for the tests: {right} of {len(wanted)} packages"
    rest = "" if right == len(wanted) else "; `python3 -m course test` installs them"
    yield Line(f"{about}{rest}")


_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    print("?", name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        said = (str(error).splitlines() or [""])[0]
        print("!", f"{type(error).__name__}: {said}", flush=True)
"""


def _importable() -> Iterator[Line]:
    """Import every package of the requirements, in a process that may crash."""
    names = waiting = sorted(_pinned_modules())
    failed = {}
    while waiting:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _IMPORTS, *waiting],
            env=settings.environment_of_readers(),
            **settings.ONE_TEXT,
        )
        tried = []
        for line in done.stdout.splitlines():
            if line[:2] == "? ":
                tried.append(line[2:])
            elif line[:2] == "! " and tried:
                failed[tried[-1]] = line[2:]
        if done.returncode and tried:
            failed[tried[-1]] = f"Python ended with code {done.returncode}"
        waiting = [n for n in waiting if n not in tried] if tried else []
        if not tried:
            raise RuntimeError(f"no import was tried: {done.stdout.strip()}")
    right = len(names) - len(failed)
    yield Line(f"{right} of {len(names)} packages and their parts can be imported")
    for name, why in failed.items():
        yield Line(f"`import {name}` fails with {why}", SETUP)


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
        source = "set by you" if settings.value_of(variable) else "default"
        try:
            value = str(read()).removeprefix("torch.")
            yield Line(f"{variable}: {value} ({source})")
        except CourseError as error:
            yield Line(str(error), f"set {variable} as that line says, or unset it")


def _imports() -> Iterator[Line]:
    purelib = sysconfig.get_path("purelib")
    file = Path(purelib, paths.PATH_FILE)
    try:
        fresh = file.read_text(encoding="utf-8") == paths.path_file_text(purelib)
    except (OSError, UnicodeDecodeError):
        fresh = False
    state = "up to date" if fresh else "missing or out of date"
    yield Line(f"path file {file}: {state}", "" if fresh else SETUP)
    environment.refuse_namesake(purelib)
    modules = {"course": paths.ROOT / "course" / "__init__.py"}
    modules |= paths.summary_modules()
    python_path = os.environ.get(settings.LEFT_OUT, "").split(os.pathsep)
    left_out = [Path(at) for at in python_path if at]
    if left_out:
        yield Line("PYTHONPATH is set; the course's commands leave it out")
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
    from course.running import ledger

    speed = benchmark() / REFERENCE_SCORE
    yield Line(
        f"one core of this machine has {speed:.2f} times the speed of the reference "
        f"({REFERENCE_MACHINE})"
    )
    free = this_machine.memory()[1] / 1e6
    for row in ledger.read().values():
        time_here = f"about {ledger.duration(row.seconds / speed)}"
        if row.machine != REFERENCE_MACHINE:  # then the scale does not apply
            time_here = f"{ledger.duration(row.seconds)} on {row.machine}"
        text = f"{row.notebook}: {time_here}, {row.peak_mb} MB of memory"
        if row.peak_mb > free:
            text += f"; only {free:.0f} MB are free now, so close something first"
        yield Line(text)


SECTIONS: dict[str, Section] = {
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
