"""A log of a training run: a line of a CSV file for each update (appendix D, D.8).

Support: nothing here is taught.

>>> import tempfile, torch
>>> weight = torch.nn.Parameter(torch.ones(2))
>>> optimizer = torch.optim.SGD([weight], lr=0.1)
>>> path = Path(tempfile.mkdtemp()) / "log.csv"
>>> log = TrainingLog(path, optimizer)
>>> weight.grad = torch.ones(2)
>>> optimizer.step()
>>> log(1, 64, ([3.2], [3.4], [64]))  # as chapter 5's loop calls it
>>> path.read_text().splitlines()[0]
'step,tokens,rate,norm,train_loss,val_loss,seconds'
"""

import csv
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from training_loop import ClipEachUpdate


class TrainingLog:
    """A CSV file with a line for each update: for the loop's `after_step`.

    A run that goes on from a checkpoint goes on in the same file: lines of updates
    that will be made again are dropped, and so is one that was cut off by a crash.
    `seconds` begins anew there.

    Args:
        path: the file; its folder is made.
        optimizer: whose rate is noted; after an update the scheduler has moved on.
        clip: whose norms are noted, if there is one.
        resume: whether a log that is there belongs to the same run. `FileExistsError`
            for one that does not, and for any other file.
    """

    columns = ("step", "tokens", "rate", "norm", "train_loss", "val_loss", "seconds")

    def __init__(
        self,
        path: str | os.PathLike,
        optimizer: Optimizer,
        clip: ClipEachUpdate | None = None,
        resume: bool = False,
    ):
        self.path, self.clip = Path(path), clip
        self.rate, self.evaluations, self.started = math.nan, 0, False
        self.start = time.perf_counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not (resume and self._is_log()):
            raise FileExistsError(
                f"{path} is there already: move it away, or, if it is the log of this "
                "run, say resume=True."
            )
        optimizer.register_step_pre_hook(self.note_rate)

    def note_rate(self, optimizer: Optimizer, *_: Any) -> None:
        """A hook: the rate that this update has."""
        self.rate = optimizer.param_groups[0]["lr"]

    def __call__(self, step: int, tokens_seen: int, losses: Sequence[list]) -> None:
        if not self.started:
            self._keep_lines_before(step)
        train_losses, val_losses, _ = losses
        row = [step - 1, tokens_seen, f"{self.rate:.8g}"]
        row.append(f"{self.clip.norms[-1]:.6g}" if self.clip else "")
        evaluated = len(val_losses) > self.evaluations
        self.evaluations = len(val_losses)
        for curve in (train_losses, val_losses):
            row.append(f"{curve[-1]:.4f}" if evaluated else "")
        row.append(f"{time.perf_counter() - self.start:.2f}")
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    def _is_log(self):
        with self.path.open("rb") as file:
            return file.readline().strip() == ",".join(self.columns).encode()

    def _keep_lines_before(self, step):
        self.started = True
        lines = [",".join(self.columns)]
        if step > 1 and self.path.exists():
            # What follows the last line break is nothing, or a line that was cut off.
            old = self.path.read_text(encoding="utf-8").split("\n")[1:-1]
            old = [line for line in old if line.strip()]
            lines += [line for line in old if int(line.split(",")[0]) < step - 1]
            self.evaluations = sum(",,," not in line for line in lines[1:])
        text = "\n".join(lines) + "\n"
        self.path.write_text(text, encoding="utf-8", newline="\n")
