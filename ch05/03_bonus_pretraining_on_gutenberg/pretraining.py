"""Pretrain a GPT on shards of token ids, alone or in many processes (chapter 5, bonus).

    python3 -m course run ch05/03_bonus_pretraining_on_gutenberg/pretraining.py \\
        --data runs/ch05-shards --out runs/ch05-pretrained
    torchrun --nproc_per_node=8 pretraining.py --device cuda --preset full ...

`--data` is what `prepare_dataset.py` made, or a folder of texts, which is prepared
first. The log, `log.csv`, has a line for each update and can be read while the run goes
on. A run that was killed goes on with `--resume` at its last whole checkpoint: in one
process with the same weights to the last bit, and in any other number of processes with
the same batches.

Around chapter 5's model stand appendix D's rates, groups and log, and appendix A's
processes and sharded checkpoints; `--fused` takes what the lesson on speed has found.

>>> share = plan_of("cosine", num_steps=10, warmup=0.2, decay=0.0)
>>> [round(share(step), 2) for step in (0, 1, 2, 5, 9)]
[0.5, 1.0, 1.0, 0.72, 0.13]
"""

import argparse
import contextlib
import csv
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

import prepare_dataset
import script_tools
import shelf_state
from bpe import load_tokenizer
from checkpoints import save_checkpoint
from fsdp_script import check_whole, load, save
from gpt import (
    GPTConfig,
    GPTModel,
    count_parameters,
    initialise_like_gpt2,
)
from pretraining_options import (
    CHECKPOINTS,
    LOG,
    MODEL,
    RESULT,
    check_free,
    check_place,
    read_options,
)
from several_processes import (
    Worker,
    is_worker,
    leave,
    process_group,
    start_workers,
)
from speed import fuse_attention, fuse_norms_and_gelu
from token_shards import IGNORED, EpochOrder, TokenWindows
from train_with_schedule import plan_of
from training_log import TrainingLog
from training_loop import ClipEachUpdate, decay_matrices_only, parameters_of

WEIGHT_DECAY, MAX_NORM, BETAS = 0.1, 1.0, (0.9, 0.95)


# --- The data ------------------------------------------------------------------------


class Split:
    """One split of a data set, in windows of T tokens.

    Args:
        folder: of the data set.
        split: "train" or "validation".
        length: T.
    """

    def __init__(self, folder: Path, split: str, length: int):
        manifest = prepare_dataset.read_manifest(folder)
        content = manifest["splits"][split]
        files = [shard["file"] for shard in content["shards"]]
        self.windows = TokenWindows(folder / split, files, manifest["dtype"], length)
        self.bytes = content["bytes"]

    def batch(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some windows, (B, T) each; with none, one of no target.

        A process whose share of a batch is empty still takes part in the exchange.
        """
        pairs = [self.windows[place] for place in places]
        if not pairs:
            empty = np.full(self.windows.length, IGNORED)
            pairs = [(np.zeros(self.windows.length, dtype=np.int64), empty)]
        inputs, targets = (np.stack(parts) for parts in zip(*pairs))
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def num_targets(self, places: Sequence[int]) -> int:
        """How many targets count in some windows: all but the last window are full."""
        length, last = self.windows.length, len(self.windows) - 1
        missing = length * (last + 1) - self.windows.num_targets
        return length * len(places) - missing * (last in places)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss in bits for each byte of the text, whatever the tokenizer."""
        return nats_per_token / math.log(2) * self.windows.num_targets / self.bytes


def summed_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, the sum over the targets that count."""
    logits = model(inputs).float()  # (B, T, V)
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def over_all(number: float, worker: Worker) -> float:
    """The sum of a number over all processes."""
    total = torch.tensor(number, dtype=torch.float64)
    if worker.world_size > 1:
        kind = torch.float32 if worker.device.type == "mps" else torch.float64
        total = total.to(worker.device, kind)
        dist.all_reduce(total)
    return total.item()


def evaluate(
    model: nn.Module, split: Split, worker: Worker, rows: int, most: int | None = None
) -> float:
    """Mean loss over the targets of a split, or of its first `most` windows, in nats.

    Each process takes a share, all the same number of forward passes.
    """
    count = min(most or len(split.windows), len(split.windows))
    was_training, total = model.training, 0.0
    model.eval()
    with torch.no_grad():
        for first in range(0, count, rows * worker.world_size):
            begin = first + worker.rank * rows
            places = range(begin, min(begin + rows, count))
            inputs, targets = (part.to(worker.device) for part in split.batch(places))
            total += summed_loss(model, inputs, targets).item()
    model.train(was_training)
    return over_all(total, worker) / split.num_targets(range(count))


# --- The model in its processes ------------------------------------------------------


def make_model(
    cfg: GPTConfig, seed: int, worker: Worker, sharded: bool, fused: bool = False
) -> nn.Module:
    """The model with its first weights, wrapped for the processes that train it.

    With `fused`, PyTorch's own attention, norms and GELU work on the same weights.
    """
    torch.manual_seed(seed)
    model = initialise_like_gpt2(GPTModel(cfg)).to(worker.device)
    if fused:
        fuse_attention(model)
        fuse_norms_and_gelu(model)
    if worker.world_size == 1:
        return model
    if not sharded:
        return DistributedDataParallel(model)
    mesh = init_device_mesh(worker.device.type, (worker.world_size,))
    for block in model.trf_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@contextlib.contextmanager
def exchanging(model: nn.Module, now: bool) -> Iterator[None]:
    """Let the processes exchange gradients in this backward pass, or not yet.

    DDP decides in the forward pass, so both belong inside.
    """
    if isinstance(model, DistributedDataParallel) and not now:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    yield


class ClipWhole(ClipEachUpdate):
    """Clips before each update, also where each process holds a part of a gradient."""

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = parameters_of(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not torch.isfinite(norm):
            raise ValueError(
                f"The gradient has the length {norm.item()}: --resume goes back to the "
                "last checkpoint; take a lower --learning-rate in a new run."
            )
        self.norms = [norm.item()]  # the last is enough, and memory stays flat


def batch_gradient(
    model: nn.Module,
    split: Split,
    places: Sequence[int],
    worker: Worker,
    rows: int,
    autocast: torch.dtype | None = None,
) -> float:
    """Add up the gradient of the mean loss over a global batch; return that loss.

    Args:
        places: the windows of the batch, those of all processes.
        rows: windows in a forward pass; more of them are computed in parts, and the
            gradients are exchanged once, with the last part.
        autocast: the dtype of matrix products; None leaves them as they are.
    """
    mine = places[worker.rank :: worker.world_size]
    # All processes take the same number of parts, those of the largest share.
    largest = -(-len(places) // worker.world_size)
    parts = [mine[i : i + rows] for i in range(0, largest, rows)]
    # Gradients are averaged over processes, so each loss counts `world_size` times.
    weight = worker.world_size / split.num_targets(places)
    total = 0.0
    for part in parts:
        inputs, targets = (tensor.to(worker.device) for tensor in split.batch(part))
        kind = worker.device.type
        with (
            exchanging(model, now=part is parts[-1]),
            torch.autocast(kind, autocast, enabled=autocast is not None),
        ):
            loss = summed_loss(model, inputs, targets)
            (loss * weight).backward()
        total += loss.item()
    return over_all(total, worker) / split.num_targets(places)


# --- The run -------------------------------------------------------------------------


class Pretraining:
    """A run: everything that `options` say, ready to train.

    Args:
        options: those of the command line, with `cfg`.
        data: the folder of the data set.
        worker: which process this is.
    """

    def __init__(self, options: argparse.Namespace, data: Path, worker: Worker):
        self.options, self.worker, self.out = options, worker, options.out
        self.train_split = Split(data, "train", options.window)
        self.val_split = Split(data, "validation", options.window)
        num_windows = len(self.train_split.windows)
        self.order = EpochOrder(num_windows, options.batch_size, options.seed)
        self.num_steps = options.steps or options.epochs * len(self.order)
        self.model = make_model(
            options.cfg, options.seed, worker, options.fsdp, options.fused
        )
        self.optimizer = AdamW(
            decay_matrices_only(self.model, WEIGHT_DECAY),
            lr=options.learning_rate,
            betas=BETAS,
            fused=not options.fsdp,
        )
        self.clip = ClipWhole(self.optimizer, MAX_NORM)
        self.share = self._plan()
        self.autocast = {"float32": None, "bfloat16": torch.bfloat16}[options.dtype]
        self.step, self.tokens, self.losses = 0, 0, ([], [], [])

    def _plan(self) -> Callable[[int], float]:
        """The share of the peak rate for each step."""
        options = self.options
        if options.schedule == "constant":
            return lambda step: 1.0
        warmup, decay = options.warmup, options.decay
        return plan_of(options.schedule, self.num_steps, warmup, decay)

    def run(self) -> dict[str, Any]:
        """Train to the end, with log and checkpoints; return the result."""
        options, is_first = self.options, self.worker.is_first
        log = None
        if is_first:
            path = self.out / LOG
            resume = options.resume or not self.step
            log = TrainingLog(path, self.optimizer, self.clip, resume=resume)
        start, cpu, recent = time.perf_counter(), time.process_time(), []
        first_step = self.step
        self.model.train()
        while self.step < self.num_steps:
            recent.append(self.update())
            last = self.step == self.num_steps
            if self.step % options.eval_every == 0 or last:
                self._look(recent)
                recent = []
            if log is not None:
                log(self.step, self.tokens, self.losses)
            if self.step % options.save_every == 0 or last:
                self.save()
        seconds = time.perf_counter() - start
        loss = evaluate(self.model, self.val_split, self.worker, options.rows)
        return {
            "steps": self.step,
            "tokens": self.tokens,
            "parameters": count_parameters(GPTModel(options.cfg)),
            "val_loss": loss,
            "val_bits_per_byte": self.val_split.bits_per_byte(loss),
            "processes": self.worker.world_size,
            "steps_in_this_run": self.step - first_step,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
        }

    def update(self) -> float:
        """One update of the weights; return the loss of its batch."""
        places = list(self.order.places(self.step))
        # Dropout, if there is some, depends on the step and not on what was before it.
        torch.manual_seed((self.options.seed + self.step << 20) + self.worker.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * self.share(self.step)
        self.optimizer.zero_grad()
        options = self.options
        loss = batch_gradient(
            *(self.model, self.train_split, places, self.worker),
            *(options.rows, self.autocast),
        )
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss of step {self.step} is {loss}: the last checkpoint is good; "
                "take a lower --learning-rate in a new run."
            )
        self.optimizer.step()
        self.step += 1
        self.tokens += self.train_split.num_targets(places)
        return loss

    def _look(self, recent):
        """Note the mean loss of the last updates, and the validation loss."""
        options = self.options
        val_loss = evaluate(
            self.model, self.val_split, self.worker, options.rows, options.eval_windows
        )
        train_loss = sum(recent) / len(recent)
        for curve, value in zip(self.losses, (train_loss, val_loss, self.tokens)):
            curve.append(value)
        if self.worker.is_first:
            print(
                f"step {self.step:,} of {self.num_steps:,}: train {train_loss:.3f}, "
                f"validation {val_loss:.3f}",
                flush=True,
            )

    # --- Checkpoints -----------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint, each process its part; keep the last two."""
        folder = self.out / CHECKPOINTS / f"step-{self.step:08}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            progress = {"step": self.step, "seed": self.options.seed}
            save(self.model, self.optimizer, progress, folder, self.worker)
        if self.worker.is_first:
            for old in checkpoints_in(self.out)[:-2]:
                shutil.rmtree(old)
        if self.worker.world_size > 1:
            dist.barrier()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint; without one the run starts afresh."""
        for folder in reversed(checkpoints_in(self.out)):
            try:
                check_whole(folder)
            except ValueError as problem:
                if self.worker.is_first:
                    print(problem, file=sys.stderr)
                continue
            progress = load(self.model, self.optimizer, folder, self.worker)
            self.step = progress["step"]
            break
        epochs, rest = divmod(self.step, len(self.order))
        self.tokens = epochs * self.train_split.windows.num_targets
        done = range(self.step - rest, self.step)
        for step in done:
            self.tokens += self.train_split.num_targets(list(self.order.places(step)))
        self.losses = self._curves_so_far()
        if self.worker.is_first:
            print(f"Going on after {self.step:,} steps.")

    def _curves_so_far(self):
        """The losses that the log has of the steps before this one."""
        path, rows = self.out / LOG, []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        # The last line may be cut off.
        rows = [row for row in rows if row["seconds"] and int(row["step"]) < self.step]
        rows = [row for row in rows if row["val_loss"]]
        names = ("train_loss", "val_loss", "tokens")
        return tuple([float(row[name]) for row in rows] for name in names)

    def export(self, data: Path) -> Path:
        """Write the model as one file that chapter 5's scripts read; return its folder.

        Every process takes part; the first one writes.
        """
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.model, options=whole)
        folder = self.out / MODEL
        if self.worker.is_first:
            model = GPTModel(self.options.cfg)
            model.load_state_dict(weights)
            save_checkpoint(folder, model, tokenizer=tokenizer_of(data))
        return folder


def checkpoints_in(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; unfinished ones do not count."""
    folders = (out / CHECKPOINTS).glob("step-*")
    return sorted(path for path in folders if path.suffix != ".part")


def tokenizer_of(data: Path) -> Any:
    """The tokenizer of a data set; `ValueError` if the file is another one."""
    manifest = prepare_dataset.read_manifest(data)
    if manifest["tokenizer"] == "gpt2":
        return script_tools.gpt2_tokenizer()
    path = data / manifest["tokenizer"]
    if prepare_dataset.digest_of(path) != manifest["tokenizer_sha256"]:
        raise ValueError(f"{path} is not the tokenizer of the shards beside it.")
    return load_tokenizer(path)


# --- As a script ---------------------------------------------------------------------


def data_of(options: argparse.Namespace, worker: Worker) -> Path:
    """The folder of the data set; the first process prepares a folder of texts."""
    data = options.data
    if not data.is_dir():
        raise ValueError(
            f"{data} is not a folder: make a data set with prepare_dataset.py first, "
            "or give one, or a folder of texts, with --data."
        )
    if not (data / prepare_dataset.MANIFEST).exists():
        if (data / prepare_dataset.STATE).exists():
            raise ValueError(
                f"{data} holds a data set that is not finished: give "
                "prepare_dataset.py the same options again, and it goes on."
            )
        prepared = options.out.with_name(options.out.name + "-shards")
        if worker.is_first:
            check_free(options)
            words = ["--books", str(data), "--out", str(prepared)]
            wanted = script_tools.parse(prepare_dataset.make_parser(), words)
            if options.overwrite:
                prepare_dataset.clear(prepared)
            prepare_dataset.prepare(data, prepared, wanted)
        data = prepared
    wait(worker)
    return data


def wait(worker: Worker) -> None:
    """Wait until all processes are here."""
    if worker.world_size > 1:
        dist.barrier()


def main(arguments: Sequence[str] | None = None) -> int:
    """Pretrain a model; return the exit code."""
    options = read_options(arguments)
    if not is_worker() and options.processes > 1:
        words = sys.argv[1:] if arguments is None else list(arguments)
        return start_workers(__file__, options.processes, words)
    stopped = "stopped; with --resume it goes on from the last checkpoint, if any."
    return script_tools.run(_pretrain, options, stopped=stopped)


def _pretrain(options):
    """Everything after the options are read; a full disk in a sentence."""
    try:
        return _pretrained(options)
    except (OSError, CheckpointException) as problem:
        # A checkpoint tells an error of each process, with its traceback.
        failures = getattr(problem, "failures", {0: (problem, None)})
        if not any(shelf_state.is_full(error) for error, _ in failures.values()):
            raise
        raise RuntimeError(
            f"No space left for {options.out}: make some; with --resume the run goes "
            "on from its last checkpoint."
        ) from None


def _pretrained(options):
    with process_group(options.device) as worker:
        data = data_of(options, worker)
        n_vocab = prepare_dataset.read_manifest(data)["n_vocab"]
        options.cfg = GPTConfig.of({**options.cfg, "vocab_size": n_vocab})
        if worker.is_first:
            check_place(options, data)
        wait(worker)
        run = Pretraining(options, data, worker)
        if options.resume:
            run.resume()
        if worker.is_first:
            print(
                f"{run.train_split.windows.num_targets:,} tokens, "
                f"{run.num_steps:,} steps, {count_parameters(GPTModel(options.cfg)):,} "
                f"parameters, {worker.world_size} process(es)",
                flush=True,
            )
        result = run.run()
        folder = run.export(data)
        if worker.is_first:
            text = json.dumps(result, indent=1) + "\n"
            (options.out / RESULT).write_text(text, encoding="utf-8")
            print(
                f"validation, all of it: {result['val_loss']:.4f} nats per token, "
                f"{result['val_bits_per_byte']:.4f} bits per byte, after "
                f"{result['seconds']:.0f} s. Next: gpt_generate.py --model {folder}"
            )
        wait(worker)
    return 0


if __name__ == "__main__":
    leave(main)
