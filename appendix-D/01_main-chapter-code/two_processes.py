"""One update, shared by two processes (appendix D).

Support: nothing here is taught. Each process takes every second sequence of a batch in
which the sequences have different numbers of targets that count, and computes its
gradient in micro-batches; DDP averages the gradients. The program prints how far that
is from the gradient of the whole batch in one process:

    python3 -m course run appendix-D/01_main-chapter-code/two_processes.py

>>> [count_targets(share_of(ragged_batch(), rank, 2)) for rank in range(2)]
[24, 18]
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import script_tools
from gpt import GPT_CONFIG_124M, GPTModel
from gpt_train import IGNORE_INDEX, calc_loss_batch, count_targets
from several_processes import is_worker, leave, process_group, start_workers
from training_loop import in_micro_batches

Batch = tuple[Tensor, Tensor]
CONFIG = {
    **GPT_CONFIG_124M,
    "vocab_size": 31,
    "context_length": 9,
    "emb_dim": 12,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
}


def make_model() -> GPTModel:
    """The same tiny model in each process, in float64."""
    torch.manual_seed(5)
    return GPTModel(CONFIG).double()


def ragged_batch(sequences: int = 7) -> Batch:
    """Inputs and targets, (B, 9); the first i targets of sequence i do not count."""
    ids = torch.randint(31, (sequences, 10), generator=torch.Generator().manual_seed(6))
    targets = ids[:, 1:].clone()
    for i, row in enumerate(targets):
        row[: i % 9] = IGNORE_INDEX
    return ids[:, :-1], targets


def share_of(batch: Batch, rank: int, world_size: int) -> Batch:
    """Every `world_size`-th sequence of a batch, from `rank` on."""
    inputs, targets = (tensor[rank::world_size] for tensor in batch)
    return inputs, targets


def gradient(model: nn.Module, batch: Batch, loss: Callable[..., Tensor]) -> Tensor:
    """The gradient of all parameters in a row, (N,)."""
    model.zero_grad()
    loss(*batch, model, "cpu").backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in found])


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the processes, or be one of them; return the exit code."""
    parser = argparse.ArgumentParser(description="One update in several processes.")
    whole = script_tools.positive_int
    parser.add_argument("--processes", type=whole, default=2, help="(%(default)s)")
    parser.add_argument("--rows", type=whole, default=2, help="of a part (%(default)s)")
    options = parser.parse_args(arguments)
    if not is_worker():
        numbers = ["--processes", str(options.processes), "--rows", str(options.rows)]
        return start_workers(__file__, options.processes, numbers)
    batch = ragged_batch()
    expected = gradient(make_model(), batch, calc_loss_batch)
    with process_group() as worker:
        mine = share_of(batch, worker.rank, worker.world_size)
        model = DistributedDataParallel(make_model())
        found = gradient(model, mine, in_micro_batches(calc_loss_batch, options.rows))
        counts = [
            count_targets(share_of(batch, r, worker.world_size))
            for r in range(worker.world_size)
        ]
        if worker.is_first:
            gap = (found - expected).abs().max().item()
            print(f"targets that count in each process: {counts}")
            print(f"largest difference from one process: {gap:.1e}")
    return 0


if __name__ == "__main__":
    leave(main)
