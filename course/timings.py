"""Claims about time, which a busy machine must not turn into errors.

A notebook says that one way is so many times faster than another, and a cell checks it.
What holds on an idle machine can fail while a video plays. Then the cell measures
again, a few times, and if it still fails it says what it saw; whoever reads goes on.

>>> slow, fast = lambda: sum(range(100_000)), lambda: sum(range(10))
>>> check_faster(fast, slow, times=20, says="more than 20 times as long")
more than 20 times as long
"""

import os
import time
from collections.abc import Callable

from course import startup, this_machine

ATTEMPTS = 5
ROUNDS = 3
#: Under `test` a claim counts if the processor was this process's alone. It was not if
#: more time went by than the process had of it, by this factor, or others waited.
ALONE = 1.2


def check_faster(
    fast: Callable[[], object],
    slow: Callable[[], object],
    *,
    times: float,
    says: str = "",
) -> None:
    """Check that `slow` takes more than so many times as long as `fast`.

    Both are called several times, and of each the shortest time counts: whatever else
    the machine does can only lengthen one. `says` is the claim, printed if it holds.
    """
    seen = []

    def holds() -> bool:
        quickest = min(_seconds(fast) for _ in range(ROUNDS))
        ratio = min(_seconds(slow) for _ in range(ROUNDS)) / quickest
        seen.append(ratio)
        return ratio > times

    check_time(holds, says, lambda: f" Here it was {max(seen):.1f} times.")


def check_time(
    holds: Callable[[], bool], says: str = "", saw: Callable[[], str] = lambda: ""
) -> None:
    """Check a claim about time; `holds` measures anew each time it is called.

    `says`, the claim in words, is printed if it holds. If it never does, that is
    printed, with what `saw` returns, and nothing is raised: another machine may have
    other strengths, and this one may be busy. Only where the tests run, on a machine
    that does nothing else, is it an `AssertionError`.
    """
    began, own = time.perf_counter(), time.process_time()
    for _ in range(ATTEMPTS):
        if holds():
            break
    else:
        passed = time.perf_counter() - began
        share = passed / max(time.process_time() - own, 1e-9)
        excused = share >= ALONE or _others_wait()
        claim = says or "the claim about time that this cell checks"
        told = f"Measured {ATTEMPTS} times, and not seen here: {claim}.{saw()}"
        if not startup.is_on("COURSE_GUARD"):
            print(f"{told} Is another program busy? Run the cell again later.")
            return
        if not excused:
            raise AssertionError(told)
    if says:
        print(says)


def _others_wait() -> bool:
    """Tell whether more wants to compute than there are cores, where that is told."""
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] > this_machine.cores()


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call, from as many as are long enough to measure."""
    count, passed = 1, 0.0
    while True:
        start = time.perf_counter()
        for _ in range(count):
            work()
        passed = time.perf_counter() - start
        if passed > 1e-4 or count > 10_000:
            return passed / count
        count *= 10
