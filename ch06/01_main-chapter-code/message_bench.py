"""What the comparison of chapter 6 reads: messages, folds of families, kept features.

Support for `experiments.py`: nothing here is taught. `FeatureBench` has all messages in
one row, part after part, and runs the pretrained model over each part once. It keeps
two things on disk, as float16:

* `pooled(place)`: one vector for each message at each height of the model, of the last
  token, or the mean over all; each token's vector is first brought to the same length,
  as the last normalisation does it, because the first token's is many times longer;
* `tokens(level)`: the features of all tokens at one height, for what trains on them.

Shapes: N messages, T tokens, D model width, L blocks; a level counts the blocks that
have run, 0 to L.
"""

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor
from tqdm import tqdm

from frozen_features import collate_messages, same_kind
from gpt_class_finetune import SpamDataset, add_classification_head
from message_data import LABELS, MESSAGES, read_messages, split_messages
from model_config import extras_for
from pretrained import load_pretrained

MAX_LENGTH = 120
PLACES = ("last token", "mean over tokens")
PARTS = ("train", "validation", "test", "outside")
OUTSIDE = Path(__file__).with_name("other-messages.csv")


class FeatureBench:
    """Messages in four parts, and what the base model makes of them.

    The fourth part, `outside`, holds messages of other kinds, which nothing learns
    from.

    Args:
        data: a CSV file of messages; None for the course's own.
        model: what `load_pretrained` takes.
        cache: the folder for features.
        outside: a CSV file of messages with the column `group`.
        labels: the two classes, in the order of the model's outputs.

    Attributes:
        messages: all of them, a data frame.
        targets: (N,), their classes.
        families: (N,) names; a message without one is a family of its own.
        levels: heights at which the features of all tokens are kept.
        chosen: the setting of each method that has been chosen.
        epochs: what the script was told, or None.
    """

    def __init__(
        self,
        data: Path | None,
        model: str,
        cache: Path,
        outside: Path = OUTSIDE,
        labels: Sequence[str] = LABELS,
    ):
        from course import assets

        path = data or assets.fetch(MESSAGES)
        self.sha256 = assets.sha256_of(path)
        self.model_name, self.levels, self.labels = model, [], tuple(labels)
        self.chosen: dict[str, Any] = {}
        self.epochs: int | None = None
        self._tokens: dict[int, list] = {}
        self._pooled: dict[str, np.ndarray] = {}
        parts = [*split_messages(read_messages(path)), read_messages(outside)]
        self.sizes = [len(part) for part in parts]
        self.messages = pd.concat(parts, ignore_index=True)
        self.targets = np.array(
            [self.labels.index(one) for one in self.messages["label"]]
        )
        own = pd.Series([f"message {row}" for row in range(len(self.messages))])
        named: Any = self.messages.get("family", own)
        self.families = named.fillna(own).to_numpy()
        self.outside_sha256 = assets.sha256_of(outside)
        self.folders = [
            cache / f"{Path(model).name}-{sha256[:12]}-{part}"
            for part, sha256 in zip(PARTS, [*[self.sha256] * 3, self.outside_sha256])
        ]

    def places(self, *parts: str) -> np.ndarray:
        """Where the messages of some parts stand, (n,)."""
        starts = np.cumsum([0, *self.sizes])
        numbers = [PARTS.index(part) for part in parts]
        return np.concatenate([np.arange(starts[i], starts[i + 1]) for i in numbers])

    def folds(self, number: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
        """Places to learn from and to ask, in the training and validation part.

        A family is on one side. The test part chooses nothing.
        """
        places = self.places("train", "validation")
        families = self.families[places]
        number = min(number, len(set(families)))
        split = GroupKFold(number).split(places, groups=families)
        return [(places[known], places[asked]) for known, asked in split]

    @functools.cached_property
    def base(self) -> tuple[Any, Any]:
        """The model, with a head of two classes, and its tokenizer."""
        model, tokenizer, _ = load_pretrained(self.model_name)
        return add_classification_head(model, len(self.labels)).eval(), tokenizer

    @functools.cached_property
    def ids(self) -> list[tuple[Tensor, int]]:
        """Pairs of ids and class."""
        dataset = SpamDataset(self.messages, self.base[1], MAX_LENGTH, self.labels)
        return [dataset[place] for place in range(len(dataset))]

    def pooled(self, place: str) -> np.ndarray:
        """One vector at each height for each message, (N, L + 1, D) float16."""
        return np.concatenate(self._kept(f"{place}.npy"))

    def heights(self, place: str, levels: Sequence[int]) -> np.ndarray:
        """The vectors at some heights side by side, (N, D times their number)."""
        if place not in self._pooled:
            self._pooled[place] = self.pooled(place)
        all_levels = self._pooled[place]
        chosen = [min(level, all_levels.shape[1] - 1) for level in levels]
        return all_levels[:, chosen].reshape(len(all_levels), -1).astype(np.float32)

    def tokens(self, level: int) -> list[tuple[Tensor, int]]:
        """Pairs of features below block `level`, (T, D), and class."""
        if level not in self._tokens:
            rows = torch.from_numpy(np.concatenate(self._kept(f"level-{level}.npy")))
            pieces = rows.float().split([len(ids) for ids, _ in self.ids])
            pairs = list(zip(pieces, self.targets.tolist()))
            self._tokens = {level: pairs}  # one height at a time: 200 MB
        return self._tokens[level]

    def cut(self, kept: int | None) -> Any:
        """The base model with the lowest blocks alone; None keeps all."""
        model = copy.copy(self.base[0])
        model._modules = dict(model._modules)
        model.trf_blocks = same_kind(model.trf_blocks, [*model.trf_blocks][:kept])
        return model

    def _kept(self, name):
        """A file of each part, made first if it is not there."""
        starts = np.cumsum([0, *self.sizes])
        for number, folder in enumerate(self.folders):
            if not (folder / name).exists():
                folder.mkdir(parents=True, exist_ok=True)
                self._run(folder, self.ids[starts[number] : starts[number + 1]])
        return [np.load(folder / name) for folder in self.folders]

    def _run(self, folder, data):
        """Run the model over one part and write what is to be kept."""
        print(f"running the model over {len(data)} messages", flush=True)
        model = self.base[0]
        L, D = len(model.trf_blocks), model.tok_emb.weight.shape[1]
        pooled = {p: np.zeros((len(data), L + 1, D), np.float16) for p in PLACES}
        kept: dict[int, list] = {level: [None] * len(data) for level in self.levels}
        for chosen, mask, streams in self._batches(data):
            for level, stream in enumerate(streams):
                for place, found in zip(PLACES, both_places(stream, mask)):
                    pooled[place][chosen, level] = found.half().numpy()
                if level in kept:
                    lengths = mask.sum(dim=1).tolist()
                    for index, row, length in zip(chosen, stream, lengths):
                        kept[level][index] = row[:length].half().numpy()
        for level, rows in kept.items():
            np.save(folder / f"level-{level}.npy", np.concatenate(rows))
        for place, found in pooled.items():
            np.save(folder / f"{place}.npy", found)

    @torch.no_grad()
    def _batches(self, data) -> Iterator[tuple[list[int], Tensor, list[Tensor]]]:
        """The stream at each height, messages of about the same length together."""
        model = self.base[0]
        order = sorted(range(len(data)), key=lambda place: len(data[place][0]))
        streams: list[Tensor] = []
        handles = [
            module.register_forward_pre_hook(
                lambda _, inputs: streams.append(inputs[0])
            )
            for module in (*model.trf_blocks, model.final_norm)
        ]
        try:
            for start in tqdm(range(0, len(order), 16), "features", disable=None):
                chosen = order[start : start + 16]
                ids, mask, _ = collate_messages([data[index] for index in chosen])
                streams.clear()
                model(ids, **extras_for(model, attention_mask=mask))
                yield chosen, mask, streams
        finally:
            for handle in handles:
                handle.remove()


class LengthBatches:
    """Batches of messages of about the same length, in another order in each pass."""

    def __init__(self, lengths, batch_size, generator):
        self.lengths, self.batch_size = lengths, batch_size
        self.generator = generator

    def __len__(self):
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self):
        order = torch.randperm(len(self.lengths), generator=self.generator).tolist()
        order.sort(key=lambda place: self.lengths[place])  # chance among equal lengths
        starts = torch.randperm(len(self), generator=self.generator) * self.batch_size
        for start in starts.tolist():
            yield order[start : start + self.batch_size]


def both_places(stream: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The last real token's vector and the mean over all, (B, T, D) to twice (B, D).

    Each token's vector is brought to a mean square of 1 first.

    >>> stream = torch.tensor([[[1.0, 1.0], [-300.0, 300.0], [9.0, 9.0]]])
    >>> last, mean = both_places(stream, torch.tensor([[True, True, False]]))
    >>> [[round(x, 3) + 0.0 for x in row] for row in (*last.tolist(), *mean.tolist())]
    [[-1.0, 1.0], [0.0, 1.0]]
    """
    even = stream * stream.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()
    weights = mask[..., None].to(even.dtype)  # (B, T, 1)
    last = (torch.arange(mask.shape[1]) * mask).argmax(dim=1)  # (B,)
    mean = (even * weights).sum(dim=1) / weights.sum(dim=1)
    return even[torch.arange(len(even)), last], mean
