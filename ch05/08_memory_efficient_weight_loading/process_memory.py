"""How much memory a function takes, in a process of its own: support for chapter 5.

`measure` starts a new process, runs a function there, and reports what the operating
system says of that process: the peak, which it keeps itself, and samples over time,
taken from outside so that the function is not disturbed. The function is a generator
function; at each `yield` the memory of that moment is noted under the yielded name.

What is counted is the resident set: the pages of main memory that the process can reach
right now. Pages of a mapped file are among them once they have been touched; memory
that was asked for and never touched is not, and neither is what the system has moved to
disk. Sources: proc(5) and getrusage(2) of Linux; psutil's documentation.

>>> held = bytearray(50_000_000)
>>> 50_000_000 < memory_now().total < 1.01 * peak_memory()
True
"""

import contextlib
import gc
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

SECONDS_BETWEEN_SAMPLES = 0.002


class Memory(NamedTuple):
    """Bytes that a process holds at one moment.

    * `anonymous`: its own pages, which no file backs;
    * `file`: pages of mapped files, those of the program's libraries among them. The
      system may drop them at any time and read them again. Only Linux tells them apart;
      elsewhere everything counts as anonymous.
    """

    anonymous: int
    file: int

    @property
    def total(self) -> int:
        """The resident set: both kinds together."""
        return self.anonymous + self.file


def memory_now(process: psutil.Process | None = None) -> Memory:
    """What a process holds at this moment; None asks for this process."""
    info = (process or psutil.Process()).memory_info()
    file = getattr(info, "shared", 0) if sys.platform == "linux" else 0
    return Memory(info.rss - file, file)


def peak_memory() -> int:
    """The most bytes that this process has ever held, by the system's own record.

    On Linux that is VmHWM. `ru_maxrss` of getrusage, which is the answer elsewhere on
    POSIX, would be wrong there: it counts what the *parent* held when it started this
    process.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found:
            return 1024 * int(found[1])
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Let the peak begin anew, at what the process holds now, where the system can.

    Linux can, since 4.0; elsewhere nothing happens.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class MemoryTaken(NamedTuple):
    """What a function took, as `measure` found it, in bytes and seconds.

    * `base`: held before the call, by Python, PyTorch and other libraries;
    * `peak`: the most that the process held from then on, base included; where the peak
      cannot be reset, the most that it ever held;
    * `held`: a `Memory` for each yielded name, base included;
    * `seconds`: for each yielded name, since the start of the call;
    * `samples`: (seconds since the start of the call, `Memory`), in order, up to the
      last yield;
    * `device_peak`: the most that PyTorch had allocated on a CUDA device, None without;
    * `result`: what the function returned.
    """

    base: Memory
    peak: int
    held: dict[str, Memory]
    seconds: dict[str, float]
    samples: list[tuple[float, Memory]]
    device_peak: int | None
    result: Any

    @property
    def grown(self) -> int:
        """How far the peak lies above the base."""
        return self.peak - self.base.total


def measure(
    function: Callable[..., Generator[str, None, Any]],
    *arguments: Any,
    rehearsal: Sequence[Any] = (),
) -> MemoryTaken:
    """Run `function(*arguments)` in a new process and say what memory it took.

    Args:
        function: a generator function that can be imported: one of a module. A new
            process knows nothing of a notebook's own functions.
        arguments: sent to the new process, so they must be picklable.
        rehearsal: arguments for a call beforehand, on something tiny. What libraries
            load when they are first used is then part of the base. Empty for none.

    Raises:
        RuntimeError: the function raised an error, which is named, or the process ended
            early, as it does when the system runs out of memory and kills it.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(
        target=_run, args=(there, function, arguments, tuple(rehearsal)), daemon=True
    )
    child.start()
    there.close()  # so that the end of the child ends the waiting
    try:
        return _watch(here, psutil.Process(child.pid))
    except EOFError:
        child.join()
        raise RuntimeError(
            f"The process ended early, with exit code {child.exitcode}; -9 means that "
            "it was killed, most often because memory ran out."
        ) from None
    finally:
        child.kill()
        child.join()


def measure_here(
    function: Callable[..., Generator[str, None, Any]],
    *arguments: Any,
    rehearsal: Sequence[Any] = (),
) -> MemoryTaken:
    """As `measure`, in this process: for tests.

    The only samples are the moments of the yields.
    """
    _rehearse(function, rehearsal)
    base = memory_now()
    found = _noted(function(*arguments))
    return MemoryTaken(base=base, samples=_moments(found), **found)


def _watch(pipe: Connection, process: psutil.Process) -> MemoryTaken:
    """Take samples of a process until it sends its report."""
    base = _received(pipe)
    start, samples = time.perf_counter(), []
    while not pipe.poll(SECONDS_BETWEEN_SAMPLES):
        samples.append((time.perf_counter() - start, memory_now(process)))
    report = _received(pipe)
    moments = _moments(report)
    samples = [sample for sample in samples if sample[0] < moments[-1][0]]
    return MemoryTaken(base=base, samples=sorted(samples + moments), **report)


def _moments(report):
    """(seconds, `Memory`) of each yield."""
    return list(zip(report["seconds"].values(), report["held"].values(), strict=True))


def _received(pipe):
    message = pipe.recv()
    if isinstance(message, str):
        raise RuntimeError(f"In the process that was measured: {message}")
    return message


def _run(pipe, function, arguments, rehearsal):
    """What the new process does: rehearse, report the base, run, report the rest."""
    try:
        _rehearse(function, rehearsal)
        pipe.send(memory_now())
        pipe.send(_noted(function(*arguments)))
    except Exception as problem:
        pipe.send(f"{type(problem).__name__}: {problem}")


def _rehearse(function, rehearsal):
    if rehearsal:
        for _ in function(*rehearsal):
            pass
    gc.collect()
    reset_peak()


def _noted(steps):
    """Run a generator to its end, and note the memory at each of its yields."""
    torch = sys.modules.get("torch")
    cuda = torch.cuda if torch and torch.cuda.is_initialized() else None
    if cuda:
        cuda.reset_peak_memory_stats()
    start, held, seconds, result = time.perf_counter(), {}, {}, None

    def to_the_end():
        nonlocal result
        result = yield from steps

    for name in to_the_end():
        seconds[name] = time.perf_counter() - start
        held[name] = memory_now()
    return {
        "peak": peak_memory(),
        "held": held,
        "seconds": seconds,
        "device_peak": cuda.max_memory_allocated() if cuda else None,
        "result": result,
    }
