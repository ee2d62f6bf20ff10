"""Train one network in several processes, each holding a part of it (FSDP2).

    python fsdp_script.py --steps 20 --out my-checkpoint
    python fsdp_script.py --steps 20 --resume my-checkpoint --processes 3
    torchrun --standalone --nproc_per_node=2 fsdp_script.py

With DDP every worker holds the whole network, its gradients and the optimizer's state.
Here each holds a share of the rows of every matrix, gets the missing rows when a layer
computes, and forgets them again. A checkpoint consists of what each worker held; it is
loaded by any number of processes, one included.

Source: Zhao and others, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data
Parallel", 2023 (arXiv:2304.11277).

>>> model = make_model(seed=1)
>>> sum(p.numel() for p in model.parameters())
67331
"""

import argparse
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from neural_network import NeuralNetwork, ToyDataset, make_spirals
from option_kinds import seed
from several_processes import (
    EveryExampleOnce,
    Worker,
    is_worker,
    leave,
    process_group,
    share_of_the_mean,
    start_problem,
    start_workers,
)

BATCH_SIZE = 48  # a multiple of 1, 2, 3 and 4 processes
LIST = "files.json"  # what a whole checkpoint consists of; written last


def make_model(seed: int) -> NeuralNetwork:
    """The network of the appendix with wider layers, so that sharing is worth it."""
    torch.manual_seed(seed)
    return NeuralNetwork(num_inputs=2, num_outputs=3, hidden=(256, 256))


def shard(model: nn.Module, worker: Worker) -> None:
    """Leave each worker its share of the rows of every parameter, in place.

    First layer by layer, then the rest: what is sharded together is gathered together.
    """
    if worker.world_size > 1:
        mesh = init_device_mesh(worker.device.type, (worker.world_size,))
        for layer in model.layers:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    worker: Worker,
    steps: range,
    seed: int,
) -> float:
    """Take the training steps with these numbers; return the loss of the last one.

    Step s is batch s of an endless row of epochs, so that a run that goes on at step s
    sees what an uninterrupted one would have seen.
    """
    points, arms = make_spirals(points_per_arm=67, seed=seed)  # 201 points: ragged
    data = ToyDataset(points, arms)
    dealer = EveryExampleOnce(
        data, BATCH_SIZE, worker.rank, worker.world_size, seed=seed
    )
    total = torch.tensor(float("nan"))
    model.train()
    for step in steps:
        epoch, batch = divmod(step, len(dealer))
        dealer.set_epoch(epoch)
        indices = list(dealer)[batch]
        features, labels = (part.to(worker.device) for part in data[indices])
        optimizer.zero_grad()
        size = dealer.global_size(batch)
        loss = share_of_the_mean(model(features), labels, size, worker.world_size)
        loss.backward()
        optimizer.step()
        total = loss.detach() / worker.world_size
    if worker.world_size > 1:
        dist.all_reduce(total)  # a sum, of the last step only: no other is reported
    return total.item()


def save(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, int],
    folder: Path,
    worker: Worker,
) -> None:
    """Write a checkpoint: every worker its share, then the first one the list of files.

    Until the list is there the folder has another name, so that a run that is killed
    while it writes leaves no checkpoint that looks whole.
    """
    # torchrun gives all workers of a job one id; alone, the process has its own.
    job = os.environ.get("TORCHELASTIC_RUN_ID", os.getpid())
    partial = folder.with_name(f"{folder.name}.{job}.part")
    weights, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": optimizer_state, "progress": progress}
    if worker.world_size > 1:
        dist.barrier()
    with _without_advice():
        state_dict_saver.save(
            state, checkpoint_id=partial, no_dist=worker.world_size == 1
        )
    if worker.world_size > 1:
        dist.barrier()
    if worker.is_first:
        files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        (partial / LIST).write_text(json.dumps(files, indent=1), encoding="utf-8")
        os.replace(partial, folder)


def load(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    worker: Worker,
) -> dict[str, int]:
    """Fill model and optimizer from a checkpoint of any number of processes.

    Returns:
        The progress: the number of the next `step`, and the `seed` of the data.

    Raises:
        ValueError: the folder holds no checkpoint, or not all of one.
    """
    check_whole(folder)
    weights, optimizer_state = get_state_dict(model, optimizer)
    progress = {"step": 0, "seed": 0}
    state = {"model": weights, "optimizer": optimizer_state, "progress": progress}
    with _without_advice():
        state_dict_loader.load(
            state, checkpoint_id=folder, no_dist=worker.world_size == 1
        )
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    return state["progress"]


def check_whole(folder: Path) -> None:
    """Raise `ValueError` unless every file of the checkpoint is as it was written."""
    try:
        files = json.loads((folder / LIST).read_text(encoding="utf-8"))
        files[".metadata"]  # every checkpoint has one
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder} holds no whole checkpoint: {LIST}, which is written last, is "
            "missing or damaged; take an older checkpoint."
        ) from None
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(
                f"The checkpoint {folder} is torn: {name} is missing; copy the whole "
                "folder again, or take an older checkpoint."
            )
        if _digest(path) != digest:
            raise ValueError(
                f"The checkpoint {folder} is torn: {name} is not as it was written; "
                "copy the whole folder again, or take an older checkpoint."
            )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_advice() -> warnings.catch_warnings:
    """Without the warning that a single process saves or loads alone: it is meant."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    if not is_worker() and options.processes > 1:
        return start_workers(__file__, options.processes, arguments)
    with process_group(options.device) as worker:
        model = make_model(options.seed).to(worker.device)
        shard(model, worker)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        progress = {"step": 0, "seed": options.seed}
        if options.resume:  # the data go on as well, so their seed is the old one
            progress = load(model, optimizer, options.resume, worker)
        steps = range(progress["step"], progress["step"] + options.steps)
        loss = train(model, optimizer, worker, steps, progress["seed"])
        progress["step"] = steps.stop
        held = sum(_held(p).numel() for p in model.parameters())
        whole = sum(p.numel() for p in model.parameters())
        if worker.is_first:
            print(f"step {steps.stop}: loss {loss:.4f}")
            print(
                f"{worker.world_size} process(es); the first holds {held:,} of "
                f"{whole:,} parameters"
            )
        if options.out:
            save(model, optimizer, progress, options.out, worker)
            if worker.is_first:
                print(f"The checkpoint is in {options.out}")
    return 0


def _held(parameter: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that lies in this process."""
    local = getattr(parameter, "to_local", None)
    return local() if local else parameter


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a network on spirals, each process holding a part (FSDP2)."
    )
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--seed", type=seed, default=123, help="default: 123")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--resume", type=Path, help="checkpoint to go on from, with its seed"
    )
    parser.add_argument("--out", type=Path, help="folder for a checkpoint")
    options = parser.parse_args(arguments)
    processes = int(os.environ["WORLD_SIZE"]) if is_worker() else options.processes
    if options.processes < 1 or options.steps < 1:
        parser.error("--processes and --steps must be 1 or more.")
    if BATCH_SIZE % processes:
        parser.error(
            f"a batch of {BATCH_SIZE} cannot be dealt out to {processes} processes: "
            f"choose a divisor of {BATCH_SIZE}, such as 2, 3 or 4."
        )
    problem = start_problem(options.device, options.out)
    if problem:
        parser.error(problem)
    if options.resume is not None:
        try:
            check_whole(options.resume)
        except ValueError as problem:
            parser.error(str(problem))
    return options


if __name__ == "__main__":
    leave(main)
