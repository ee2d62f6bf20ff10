"""Look over a data loader: what does it read, how often, and who reads it?

The text is made of numbers, `0 1 2 3 ...`, and each number is its own id. So every id
in a batch says where in the text it comes from, and counting ids is counting what a
loader skips and repeats (`dataloader-intuition.ipynb` does so for each setting). The
classes stand here because the workers of a loader have to import them.

Shapes: N windows of T tokens, batches of B of them.

>>> from dataloader import create_dataloader_v1
>>> loader = create_dataloader_v1(
...     number_text(10), batch_size=2, max_length=3, stride=3, shuffle=False,
...     tokenizer=NumberTokenizer(),
... )
>>> next(iter(loader))[0].tolist()
[[0, 1, 2], [3, 4, 5]]
>>> as_input, as_target = count_reads(loader, 10)
>>> as_input.tolist()
[1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from dataloader import GPTDatasetV1


class NumberTokenizer:
    """A tokenizer for texts of numbers: each number is its own id."""

    def encode(self, text: str) -> list[int]:
        """Return the numbers of a text."""
        return [int(number) for number in text.split()]


def number_text(num_tokens: int) -> str:
    """Return the text `0 1 2 ...` of so many tokens."""
    return " ".join(str(number) for number in range(num_tokens))


def count_reads(
    batches: Iterable[Sequence[torch.Tensor]], num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how often each token of a number text is an input and how often a target.

    `batches` is a loader, or any row of batches (inputs, targets, ...). Both results
    are (num_tokens,), int64. A loader goes through one epoch here.
    """
    counts = torch.zeros(2, num_tokens, dtype=torch.long)
    for inputs, targets, *_ in batches:
        counts[0] += torch.bincount(inputs.flatten(), minlength=num_tokens)
        counts[1] += torch.bincount(targets.flatten(), minlength=num_tokens)
    return counts[0], counts[1]


class SignedWindows(GPTDatasetV1):
    """Chapter 2's windows, each with the number of the worker that fetched it.

    The number is -1 in the main process, where `num_workers=0` leaves the work.
    """

    def __getitem__(self, index: int):
        """Return a window, its targets, and the worker's number."""
        worker = get_worker_info()
        return *super().__getitem__(index), -1 if worker is None else worker.id


class WindowStream(IterableDataset):
    """The same windows as a stream: one after the other, without a length or an index.

    Each worker of a loader has a copy of the stream. With `share=False` each of them
    reads all of it; with `share=True` worker k of W takes windows k, k + W, ...
    """

    def __init__(self, windows: Dataset, share: bool = True):
        self.windows, self.share = windows, share

    def __iter__(self) -> Iterator:
        """Yield what `windows` holds, or this worker's share of it."""
        places, worker = range(len(self.windows)), get_worker_info()  # pyright: ignore[reportArgumentType]
        if self.share and worker is not None:
            places = places[worker.id :: worker.num_workers]
        for place in places:
            yield self.windows[place]
