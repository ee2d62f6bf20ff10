"""One model, trained by several processes (appendix A, second part).

What `DDP-script.py` and `fsdp_script.py` share, on top of PyTorch's own launcher:

* `start_workers` starts a script again in several processes, and says who failed;
* `process_group` is where a worker learns its rank, and leaves in good order;
* `leave` ends a script, and with it a worker, without an accident on the last metres;
* `EveryExampleOnce` deals out a data set so that nothing is lost or counted twice;
* `share_of_the_mean` is the loss whose average over workers is the mean of the batch.

With one process there is no group, no launcher, and the same code:

>>> with process_group() as worker:
...     worker.rank, worker.world_size, worker.device
(0, 1, device(type='cpu'))

Eleven examples, two workers, global batches of four: the last one is ragged.

>>> data = list(range(11))
>>> for r in range(2):
...     list(EveryExampleOnce(data, batch_size=4, rank=r, world_size=2, shuffle=False))
[[0, 2], [4, 6], [8, 10]]
[[1, 3], [5, 7], [9]]

Source: Li and others, "PyTorch Distributed", 2020 (arXiv:2006.15704).
"""

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils.data.distributed import DistributedSampler


@dataclass(frozen=True)
class Worker:
    """A process among others: its number from 0, their count, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one worker that prints and saves for all."""
        return self.rank == 0


def is_worker() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def start_workers(script: str | Path, processes: int, arguments: Sequence[str]) -> int:
    """Start a script in several processes on this machine; return an exit code.

    The same as `torchrun --standalone --nproc_per_node=PROCESSES SCRIPT ARGUMENTS`.
    When one worker ends badly, the others are stopped and a line on stderr names it.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if "OMP_NUM_THREADS" not in os.environ:
        # Workers that all use all cores would only wait for one another.
        os.environ["OMP_NUM_THREADS"] = str(max(1, _cores() // processes))
    if sys.platform == "win32":
        os.environ.setdefault("USE_LIBUV", "0")  # PyTorch for Windows lacks it
    launcher = ["--standalone", f"--nproc-per-node={processes}"]
    name = Path(script).name
    try:
        run.main([*launcher, str(script), *arguments])
    except ChildFailedError as failed:
        print(f"{name}: {_who_failed(failed)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SignalException):
        print(f"{name}: interrupted; all workers were stopped.", file=sys.stderr)
        return 130
    return 0


def _cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _who_failed(failed) -> str:
    """The sentence about the worker that brought the others down."""
    failures = failed.failures
    # A killed worker's partners fail as well, a moment later, as they cannot reach it.
    rank = min(
        failures, key=lambda r: (failures[r].exitcode >= 0, failures[r].timestamp)
    )
    code = failures[rank].exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
    return (
        f"worker {rank} (process {failures[rank].pid}) {how}, exit code {code}, so all "
        "were stopped. What it printed before is above; start the job again."
    )


@contextlib.contextmanager
def process_group(device: str = "cpu") -> Iterator[Worker]:
    """Join the other workers, and leave them in good order, whatever happens inside.

    Args:
        device: "cpu" (the workers talk through gloo) or "cuda" (through NCCL, one GPU
            for each worker).

    Raises:
        ValueError: there are fewer GPUs than workers on this machine.
    """
    rank = int(os.environ.get("RANK", 0)) if is_worker() else 0
    world_size = int(os.environ["WORLD_SIZE"]) if is_worker() else 1
    place = torch.device(device)
    if place.type == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"Worker {rank} finds no GPU of its own: this machine has "
                f"{torch.cuda.device_count()}; start at most as many processes, or "
                "use --device cpu."
            )
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    if is_worker():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Worker(rank, world_size, place)
    finally:
        if is_worker():
            dist.destroy_process_group()


def leave(main: Callable[[], int]) -> NoReturn:
    """Call a script's `main`, and end the process with the exit code it returns.

    A worker ends at once, without Python taking itself down piece by piece: a thread
    of PyTorch's that lets go of a tensor in that moment would, now and then, abort a
    process whose work is done (github.com/pytorch/pytorch/issues/190489).
    """
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    if not is_worker():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class EveryExampleOnce(DistributedSampler):
    """A worker's share of each global batch: lists of indices, the last ones ragged.

    `DistributedSampler` gives all workers equally many examples, and where the data
    does not divide evenly it repeats the first ones of the epoch. Here its repeats are
    cut off again. All workers still get equally many batches, because each of them
    must take part in each exchange of gradients: the last batch is smaller for some,
    and may be empty. Whatever the number of workers, the batches of all of them
    together are those of a single process.

    Give it to a `DataLoader` as `sampler`, with `batch_size=None`, so that each list
    is one batch.

    Args:
        dataset: anything with a length N.
        batch_size: examples in a global batch, those of all workers together; a
            multiple of `world_size`.
        rank, world_size: which worker this is, and of how many.
        shuffle: a new order for each epoch, from `seed` and `set_epoch(epoch)`.
        seed: the same for all workers.

    Raises:
        ValueError: `batch_size` is no multiple of `world_size`.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        rank: int,
        world_size: int,
        shuffle: bool = True,
        seed: int = 0,
    ):
        super().__init__(dataset, world_size, rank, shuffle, seed)
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"A global batch of {batch_size} cannot be dealt out evenly to "
                f"{world_size} workers: choose a multiple of {world_size} above 0."
            )
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches in an epoch, the same for all workers."""
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # Place j of this worker's list is place j * world_size + rank of the epoch;
        # from N on the epoch repeats its beginning.
        N = len(self.dataset)
        mine = [
            index
            for j, index in enumerate(super().__iter__())
            if j * self.num_replicas + self.rank < N
        ]
        share = self.batch_size // self.num_replicas
        for batch in range(len(self)):
            yield mine[batch * share : (batch + 1) * share]

    def global_size(self, batch: int) -> int:
        """How many examples all workers together have in a batch, counted from 0."""
        return min(self.batch_size, len(self.dataset) - batch * self.batch_size)


def share_of_the_mean(
    logits: torch.Tensor, labels: torch.Tensor, global_size: int, world_size: int
) -> torch.Tensor:
    """A worker's loss, such that the average over workers is the mean over examples.

    DDP and FSDP average the gradients of the workers, each with the same weight. A
    mean over a worker's own examples would so give an example in a small share more
    weight than one in a large share.

    Args:
        logits: (n, C), this worker's; n may be 0.
        labels: (n,), all of which count: none may be an `ignore_index`.
        global_size: examples of this batch in all workers, 1 or more.
        world_size: how many workers.
    """
    total = F.cross_entropy(logits, labels, reduction="sum")
    return total * world_size / global_size


def start_problem(device: str, out: Path | None) -> str | None:
    """Why a script cannot start with a device and a place to save to; None if it can.

    Tried before any worker starts: what would be overwritten or cannot be written is
    then told at once, and not after the work.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no GPU here: leave --device cuda out."
    if out is not None and out.exists():
        return f"{out} exists already: name another place with --out."
    try:
        with tempfile.TemporaryFile(dir=out.parent if out else None):
            return None
    except OSError as problem:
        return f"{out} cannot be written ({problem.strerror})."
