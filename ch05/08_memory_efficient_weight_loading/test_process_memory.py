"""What is said of a process's memory is what the system says, and what it held."""

import mmap
import os
import sys

import pytest

from process_memory import (
    Memory,
    measure,
    measure_here,
    memory_now,
    peak_memory,
    reset_peak,
)

MB = 1_000_000
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so much")


def hold(size, path=None):
    """Hold bytes, then give them back; with a path, pages of that file, too."""
    held = bytearray(size)
    yield "held"
    del held
    yield "given back"
    if path:
        with open(path, "rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            yield "mapped"
            count = sum(pages[i] for i in range(0, len(pages), mmap.PAGESIZE))
            yield "touched"
            return count
    return os.getpid()


def fail():
    yield "begun"
    raise KeyError("weights")


def end_at_once():
    yield "begun"
    os._exit(7)


def first_resource_usage():
    import resource

    yield "asked"
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, peak_memory()


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "file"
    path.write_bytes(bytes([1]) * 40 * MB)
    return measure(hold, 60 * MB, path, rehearsal=(1000, path))


def grown(taken, step):
    memory = taken.held[step]
    return Memory(*(a - b for a, b in zip(memory, taken.base, strict=True)))


def test_what_is_held_and_what_stays_of_the_peak(taken):
    assert 58 * MB < grown(taken, "held").total < 66 * MB
    assert abs(grown(taken, "given back").anonymous) < 5 * MB
    assert 58 * MB < taken.grown < 66 * MB
    assert list(taken.held) == list(taken.seconds)
    assert sorted(taken.seconds.values()) == list(taken.seconds.values())
    assert taken.result == -(-40 * MB // mmap.PAGESIZE)
    assert taken.device_peak is None


@on_linux
def test_pages_of_a_file_count_once_they_are_touched(taken):
    mapped, touched = grown(taken, "mapped"), grown(taken, "touched")
    assert abs(mapped.file) < 3 * MB
    assert 38 * MB < touched.file < 43 * MB
    assert abs(touched.anonymous) < 5 * MB


def test_samples_come_from_outside_and_in_order(taken):
    seconds = [at for at, _ in taken.samples]
    assert seconds == sorted(seconds)
    assert seconds[-1] == max(taken.seconds.values())
    assert all(memory.total > 0 for _, memory in taken.samples)
    assert max(memory.total for _, memory in taken.samples) <= taken.peak + MB


def test_an_error_over_there_is_told_here():
    with pytest.raises(RuntimeError, match="KeyError: 'weights'"):
        measure(fail)


def test_a_process_that_ends_early_is_told():
    with pytest.raises(RuntimeError, match="ended early, with exit code 7"):
        measure(end_at_once)


@on_linux
def test_the_peak_is_not_the_parents():
    """Known mistake: `ru_maxrss` begins with what the parent held at the start."""
    held = bytearray(300 * MB)
    usage, ours = measure(first_resource_usage).result
    del held
    assert usage > 300 * MB
    assert ours < 200 * MB


@on_linux
def test_a_peak_can_begin_anew():
    held = bytearray(100 * MB)
    del held
    reset_peak()
    assert peak_memory() < memory_now().total + 20 * MB


def test_here_the_same_is_noted():
    taken = measure_here(hold, 60 * MB, rehearsal=(1000,))
    assert taken.result == os.getpid()
    assert list(taken.held) == ["held", "given back"]
    assert [memory for _, memory in taken.samples] == list(taken.held.values())
    assert taken.peak > 0.98 * taken.held["held"].total
    assert memory_now().total > 0
