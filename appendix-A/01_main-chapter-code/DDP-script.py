"""Train one network in several processes with DistributedDataParallel (DDP).

    python DDP-script.py                     starts two workers itself
    python DDP-script.py --processes 1       one process, no launcher, same result
    torchrun --standalone --nproc_per_node=2 DDP-script.py

Each worker holds the whole network and a share of every batch. DDP averages their
gradients, so all take the same step, and the network ends as one process would have
trained it. On the CPU the workers talk through gloo; `--device cuda` gives each worker
a GPU and NCCL.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

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

POINTS_PER_ARM = 201  # three arms: 603 points, no multiple of the batch
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def prepare_dataset(
    worker: Worker, batch_size: int, seed: int, dtype: torch.dtype
) -> DataLoader:
    """Loader of this worker's share of each batch: points (n, 2) and arms (n,)."""
    points, arms = make_spirals(POINTS_PER_ARM, seed=seed)
    data = ToyDataset(points.to(dtype), arms)
    dealer = EveryExampleOnce(
        data, batch_size, worker.rank, worker.world_size, seed=seed
    )
    return DataLoader(data, sampler=dealer, batch_size=None)


def train(worker: Worker, options: argparse.Namespace) -> nn.Module:
    """Train the network for some epochs; the same on every worker."""
    dtype = DTYPES[options.dtype]
    loader = prepare_dataset(worker, options.batch_size, options.seed, dtype)
    torch.manual_seed(options.seed)
    model = NeuralNetwork(num_inputs=2, num_outputs=3).to(worker.device, dtype)
    parallel = DistributedDataParallel(model) if worker.world_size > 1 else model
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.2, momentum=0.9)

    for epoch in range(options.epochs):
        loader.sampler.set_epoch(epoch)
        parallel.train()
        counts = torch.zeros(3, dtype=torch.float64)  # loss, right ones, examples
        for batch, (points, arms) in enumerate(loader):
            points, arms = points.to(worker.device), arms.to(worker.device)
            optimizer.zero_grad()
            logits = parallel(points)  # (n, 3)
            size = loader.sampler.global_size(batch)
            loss = share_of_the_mean(logits, arms, size, worker.world_size)
            loss.backward()  # here the workers exchange their gradients
            optimizer.step()
            counts[0] += loss.item() * size / worker.world_size
            counts[1] += (logits.argmax(dim=1) == arms).sum().item()
            counts[2] += len(arms)
        report(worker, epoch, counts)
    return model


def report(worker: Worker, epoch: int, counts: torch.Tensor) -> None:
    """Add up what all workers counted, and let the first one print it.

    Raises `ArithmeticError` on every worker if the loss is no longer a finite number.
    """
    if worker.world_size > 1:
        everywhere = counts.to(worker.device)
        dist.all_reduce(everywhere)  # a sum
        counts = everywhere.cpu()
    loss, right, examples = counts.tolist()
    if not math.isfinite(loss):
        raise ArithmeticError(f"In epoch {epoch + 1} the loss is {loss}: stopped.")
    if worker.is_first:
        print(
            f"epoch {epoch + 1}: loss {loss / examples:.4f}, "
            f"{right / examples:.1%} right while training, {examples:.0f} examples",
            flush=True,
        )


def save(model: nn.Module, path: Path) -> None:
    """Write the weights in one step: a reader finds the whole file or none."""
    partial = path.with_name(path.name + ".part")
    torch.save(model.state_dict(), partial)
    os.replace(partial, path)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; return an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    if not is_worker() and options.processes > 1:
        return start_workers(__file__, options.processes, arguments)
    started = time.perf_counter()
    with process_group(options.device) as worker:
        model = train(worker, options)
        if worker.is_first:  # all have the same weights: one checkpoint is enough
            seconds = time.perf_counter() - started
            print(f"{worker.world_size} process(es), {seconds:.1f} s")
            if options.out:
                save(model, options.out)
                print(f"The weights are in {options.out}")
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small network on spirals in several processes (DDP)."
    )
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument(
        "--batch-size", type=int, default=48, help="of all processes; default: 48"
    )
    parser.add_argument("--seed", type=seed, default=123, help="default: 123")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--out", type=Path, help="file for the weights; default: none")
    options = parser.parse_args(arguments)
    processes = int(os.environ["WORLD_SIZE"]) if is_worker() else options.processes
    for name in ("processes", "epochs", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more.")
    if options.batch_size % processes:
        parser.error(
            f"--batch-size {options.batch_size} cannot be dealt out to {processes} "
            f"processes: choose a multiple of {processes}."
        )
    problem = start_problem(options.device, options.out)
    if problem:
        parser.error(problem)
    return options


if __name__ == "__main__":
    leave(main)
