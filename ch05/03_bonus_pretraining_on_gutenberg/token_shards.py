"""Token ids on disk: written in pieces, read by memory map (chapter 5, bonus).

Support: nothing here is taught, though the notebook shows how it works. A *split*, such
as `train`, is a folder of shards, files of plain numbers, and means one long row of
tokens: `<|endoftext|>`, then each book followed by `<|endoftext|>`. A *window* is T
tokens of that row and the T tokens that follow each of them. The windows lie side by
side, and the last one is filled up with targets that do not count, so that each token
but the very first is a target exactly once.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     writer = ShardWriter(Path(folder), "uint16", tokens_per_shard=4)
...     writer.add([9, 1, 2, 3, 4, 9])
...     _ = writer.close()
...     windows = TokenWindows(Path(folder), ["00000.bin", "00001.bin"], "uint16", 3)
...     len(windows), windows[1][0].tolist(), windows[1][1].tolist()
(2, [3, 4, 0], [4, 9, -100])
"""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

IGNORED = -100  # a target that does not count, as in `gpt_train`


def dtype_for(n_vocab: int) -> str:
    """The smallest number type that holds the ids of a vocabulary."""
    return "uint16" if n_vocab <= 1 << 16 else "uint32"


def shard_name(number: int) -> str:
    """The name of a shard's file."""
    return f"{number:05}.bin"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Writes a row of ids into files of `tokens_per_shard` each.

    Args:
        folder: of the split; made if it is missing.
        dtype: "uint16" or "uint32".
        tokens_per_shard: all files but the last have as many.
        written: go on after so many tokens; what a killed run wrote after them is cut
            off.
    """

    def __init__(
        self, folder: Path, dtype: str, tokens_per_shard: int, written: int = 0
    ):
        self.folder, self.dtype = folder, np.dtype(dtype).newbyteorder("<")
        self.per_shard, self.written = tokens_per_shard, written
        folder.mkdir(parents=True, exist_ok=True)
        number, inside = divmod(written, tokens_per_shard)
        for path in folder.glob("*.bin"):
            if int(path.stem) > number or (int(path.stem) == number and not inside):
                path.unlink()
        if inside:
            os.truncate(folder / shard_name(number), inside * self.dtype.itemsize)
        self._file = None

    def add(self, ids: Sequence[int]) -> None:
        """Append some ids; `OverflowError` for one that the number type cannot hold."""
        rest = np.array(ids, dtype=self.dtype)
        while len(rest):
            number, inside = divmod(self.written, self.per_shard)
            if self._file is None:
                self._file = (self.folder / shard_name(number)).open("ab")
            part, rest = np.split(rest, [self.per_shard - inside])
            self._file.write(part.tobytes())
            self.written += len(part)
            if self.written % self.per_shard == 0:
                self.flush()

    def flush(self) -> int:
        """See to it that everything is on the disk; return how many tokens that is."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
        return self.written

    def close(self) -> list[dict]:
        """Finish; return name, tokens and hash of each shard."""
        self.flush()
        return [
            {
                "file": path.name,
                "tokens": path.stat().st_size // self.dtype.itemsize,
                "sha256": digest_of(path),
            }
            for path in sorted(self.folder.glob("*.bin"))
        ]


class TokenWindows:
    """The windows of a split, each read from the disk when it is asked for.

    A map of a file is made for each read and closed after it. Kept open, its pages
    would count as this process's memory, more of them with each window.

    Args:
        folder: of the split.
        files: names of the shards, in order.
        dtype: of the ids.
        length: T, tokens in a window.
    """

    def __init__(self, folder: Path, files: Sequence[str], dtype: str, length: int):
        self.paths = [folder / name for name in files]
        self.dtype, self.length = np.dtype(dtype).newbyteorder("<"), length
        sizes = [path.stat().st_size // self.dtype.itemsize for path in self.paths]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])  # of each shard, and end

    @property
    def num_targets(self) -> int:
        """How many tokens are a target."""
        return max(int(self.starts[-1]) - 1, 0)

    def __len__(self) -> int:
        return math.ceil(self.num_targets / self.length)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids at these places of the whole row, int64, across shards."""
        parts = []
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for shard in range(first, len(self.paths)):
            begin = int(self.starts[shard])
            if begin >= stop:
                break
            ids = np.memmap(self.paths[shard], self.dtype, mode="r")
            parts.append(ids[max(start - begin, 0) : stop - begin].astype(np.int64))
            del ids  # and with it the map
        return np.concatenate(parts)

    def __getitem__(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a window, (T,) each."""
        if not 0 <= window < len(self):
            raise IndexError(f"window {window} of {len(self)}")
        start = window * self.length
        stop = min(start + self.length, self.num_targets)
        ids = self.read(start, stop + 1)
        targets = np.full(self.length, IGNORED)
        targets[: stop - start] = ids[1:]
        inputs = np.zeros(self.length, dtype=np.int64)
        inputs[: stop - start] = ids[:-1]
        return inputs, targets


# --- The order of an epoch -----------------------------------------------------------


def shuffled_place(i: int, n: int, key: int) -> int:
    """Which of n things comes at place i of a shuffled row: no row is kept for it.

    A Feistel network is a shuffle of all pairs of numbers below some power of two: it
    adds to one half a scramble of the other, which can be undone, so no two pairs meet.
    Places beyond n are shuffled again until they fall below it.

    Args:
        i: from 0 to n - 1.
        n: how many there are.
        key: which of the many shuffles.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, for the
    last step.
    """
    half = max((max(n - 1, 1).bit_length() + 1) // 2, 1)
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for turn in range(6):
            scrambled = _scramble(right, key * 8 + turn) & mask
            left, right = right, (left + scrambled) & mask
        i = left << half | right
        if i < n:
            return i


def _scramble(value: int, key: int) -> int:
    """A number of 64 bits that depends on all bits of both (as in SplitMix64)."""
    value = (value + (key + 1) * 0x9E3779B97F4A7C15) % (1 << 64)
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    value = (value ^ value >> 27) * 0x94D049BB133111EB % (1 << 64)
    return value ^ value >> 31


class EpochOrder:
    """Which windows each process reads in each step, whatever the number of processes.

    Step s of an epoch is the global batch of places s * B to s * B + B - 1 in the
    shuffled row; process r of R takes those of them that leave the rest r when divided
    by R. So a run that goes on with another number of processes sees the same batches.

    Args:
        num_windows: how many there are.
        batch_size: B, windows in a global batch.
        seed: of the shuffles, another one for each epoch.
    """

    def __init__(self, num_windows: int, batch_size: int, seed: int):
        self.num_windows, self.batch_size, self.seed = num_windows, batch_size, seed

    def __len__(self) -> int:
        """Steps in an epoch; the last batch may be smaller."""
        return math.ceil(self.num_windows / self.batch_size)

    def places(self, step: int) -> Iterator[int]:
        """The windows of a global batch, `step` counted from the start of the run."""
        epoch, batch = divmod(step, len(self))
        first = batch * self.batch_size
        last = min(first + self.batch_size, self.num_windows)
        key = self.seed * 1_000_003 + epoch
        for i in range(first, last):
            yield shuffled_place(i, self.num_windows, key)
