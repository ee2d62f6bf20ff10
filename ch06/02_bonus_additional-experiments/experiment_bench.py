"""Messages and kept features for many experiments on one model: support.

`VariantBench` reads a fixed part of the messages, runs what is frozen once, keeps it on
disk as float16, and trains one `Experiment` with one seed. The messages and the first
head depend on the seed alone, their order on the seed and on how many make one update,
so that experiments can be compared message by message and seed by seed.

Shapes: N messages, T tokens, D model width, L blocks; a level counts the blocks that
have run, 0 to L.

The base experiment is trained with the loss of chapter 6:

>>> _loss(Experiment()) is half_loss
True
"""

import copy
import functools
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from classifier_variants import (
    ask_at,
    ignoring,
    let_learn,
    read_padding,
    see_both_ways,
    start_anew,
    without_padding,
)
from experiment_rows import CLASSES, LOWEST, Experiment
from frozen_features import (
    FromFeatures,
    UpperModel,
    cache_features,
    collate_messages,
    learning,
)
from gpt_class_finetune import (
    SpamDataset,
    add_classification_head,
    class_probabilities,
)
from message_bench import LengthBatches
from message_data import (
    LABELS,
    MESSAGES,
    labels_of,
    read_messages,
    some_of_each,
    split_messages,
)
from message_ways import BATCH_SIZE, asked_of, half_loss, train_quietly
from pretrained import load_pretrained
from training_loop import in_micro_batches

TRAINED_ON = 400  # messages: those of the chapter's notebook
Items = list[tuple[Tensor, int]]


class VariantBench:
    """A training part, the validation and the test part, and what models make of them.

    Args:
        data: a CSV file of messages with two classes; None for the course's own.
        cache: a folder for features.
        trained_on: how many messages are learned from, the first ones of each class.

    Attributes:
        parts: places of each part among all messages.
        targets: (N,) classes.
        families: (N,) names; a message without one is a family of its own.
        sha256: of the file.
    """

    def __init__(self, data: Path | None, cache: Path, trained_on: int = TRAINED_ON):
        from course import assets

        path = data or assets.fetch(MESSAGES)
        self.sha256, self.cache = assets.sha256_of(path), cache
        messages = read_messages(path)
        labels = labels_of(messages)
        if len(labels) != CLASSES:
            raise ValueError(
                f"{path} has {len(labels)} classes ({', '.join(labels)}), and these "
                "experiments tell two apart: give a file with two labels."
            )
        self.labels = LABELS if set(labels) == set(LABELS) else labels
        train, validation, test = split_messages(messages)
        frames = [some_of_each(train, trained_on), validation, test]
        self.messages = pd.concat(frames, ignore_index=True)
        ends = np.cumsum([0, *map(len, frames)])
        names = ("train", "validation", "test")
        self.parts = {name: range(ends[i], ends[i + 1]) for i, name in enumerate(names)}
        self.targets = np.array([self.labels.index(x) for x in self.messages["label"]])
        own = pd.Series([f"message {row}" for row in range(len(self.messages))])
        named: Any = self.messages.get("family", own)
        self.families = named.fillna(own).to_numpy()
        self._kept: tuple[Any, Items] | None = None
        self._base: tuple[str, Any] | None = None

    def base(self, name: str) -> tuple[Any, Any]:
        """A pretrained model with a head of two classes, and its tokenizer."""
        if self._base is None or self._base[0] != name:
            model, tokenizer, _ = load_pretrained(name)
            model = add_classification_head(model, CLASSES).eval()
            self._base = name, (model, tokenizer)
        return self._base[1]

    def ids(self, experiment: Experiment) -> Items:
        """Pairs of ids and class, cut, and filled up where padding is read."""
        model, tokenizer = self.base(experiment.model)
        length = experiment.context_length
        if length > model.cfg["context_length"]:
            raise ValueError(
                f"--context-length {length} is more than {experiment.model} can read, "
                f"{model.cfg['context_length']} tokens: give less."
            )
        dataset = SpamDataset(self.messages, tokenizer, length, self.labels)
        items = [dataset[place] for place in range(len(dataset))]
        if experiment.padding == "read":
            return read_padding(items, length, tokenizer.eot_token)
        return items

    def model(self, experiment: Experiment, seed: int) -> Any:
        """The model before training, a copy: cut, with mask and start as chosen."""
        whole = self.base(experiment.model)[0]
        L = len(whole.trf_blocks)
        kept = min(LOWEST, L) if experiment.blocks is None else experiment.blocks
        if kept > L:
            raise ValueError(
                f"--blocks {kept}: {experiment.model} has {L} blocks; keep fewer."
            )
        cut = copy.copy(whole)
        cut._modules = dict(whole._modules)
        cut.trf_blocks = whole.trf_blocks[:kept]
        model = copy.deepcopy(cut)
        if experiment.start == "random":
            model = start_anew(model, seed)
        if experiment.causal_mask != "on":
            frozen = experiment.causal_mask == "frozen"
            see_both_ways(model, experiment.learning_blocks if frozen else None)
        generator = torch.Generator().manual_seed(seed)
        return add_classification_head(model, CLASSES, generator).eval()

    def inputs(self, experiment: Experiment, model: Any, seed: int) -> Items:
        """What the blocks that learn read: ids, or features of the frozen ones."""
        items = self.ids(experiment)
        if experiment.learning_blocks is None:
            return items
        level = len(model.trf_blocks) - experiment.learning_blocks
        length = experiment.context_length
        causal = experiment.causal_mask != "off"
        key = (
            Path(experiment.model).name,
            f"seed {seed}" if experiment.start == "random" else "pretrained",
            "causal" if causal else "both ways",
        )
        if experiment.padding == "read":
            return self.features(model, items, (*key, f"{length}, read"), level)
        # Where no token hears of later ones, a cut changes nothing before it.
        uncut = self.ids(Experiment(model=experiment.model))
        if not causal or length > Experiment.context_length:
            key, uncut = (*key, f"{length}"), items
        features = self.features(model, uncut, key, level)
        return [(row[: len(ids)], c) for (row, c), (ids, _) in zip(features, items)]

    def features(self, model: Any, items: Items, key: Any, level: int) -> Items:
        """Features at a level, from the next lower one that is kept on disk."""
        whole = (*key, level)
        if self._kept is None or self._kept[0] != whole:
            path = self._file(key, level)
            if not path.exists():
                self._run(model, items, key, level)
            rows = _read_rows(path, sum(len(ids) for ids, _ in items))
            pieces = rows.float().split([len(ids) for ids, _ in items])
            self._kept = whole, list(zip(pieces, self.targets.tolist()))
        return self._kept[1]

    def _file(self, key, level):
        place = hashlib.sha256(repr((key, self.sha256, len(self.targets))).encode())
        return self.cache / f"{key[0]}-{place.hexdigest()[:12]}-level-{level}.npy"

    def _run(self, model, items, key, level):
        """Run the blocks up to a level and keep what they make of all messages."""
        below = [n for n in range(level) if self._file(key, n).exists()]
        start = max(below, default=0)
        items_below = self.features(model, items, key, start) if below else items
        cut = copy.copy(model)
        cut._modules = dict(model._modules)
        cut.trf_blocks = model.trf_blocks[:level]
        lower = FromFeatures(cut, level - start) if below else cut
        begun = time.process_time()
        found = []
        with torch.autocast("cpu", torch.bfloat16):
            for first in tqdm(range(0, len(items), 200), "features", disable=None):
                some = items_below[first : first + 200]
                found += cache_features(lower, some, 0, "cpu")
        rows = torch.cat([row for row, _ in found]).half().numpy()
        path = self._file(key, level)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, rows)
        part.replace(path)
        seconds = time.process_time() - begun
        print(f"blocks {start} to {level} of {key}: {seconds:.0f} s", flush=True)

    def train(
        self, experiment: Experiment, seed: int, part: str = "test"
    ) -> dict[str, Any]:
        """Train once and ask about all messages of one part.

        Returns:
            `learning`, the number of parameters that did; `said`, which messages were
            called class 1, (N,) bool; `right`, which verdicts are right, (N,) bool; and
            `seconds` of CPU time for all of it but the frozen blocks.
        """
        torch.manual_seed(seed)
        model = self.model(experiment, seed)
        items = self.inputs(experiment, model, seed)
        begun = time.process_time()
        generator = torch.Generator().manual_seed(seed)
        rank, alpha = experiment.lora_rank, experiment.lora_alpha
        let_learn(model, experiment.learning_blocks, rank, alpha, generator)
        learner = model
        if experiment.learning_blocks is not None:
            learner = UpperModel(model, experiment.learning_blocks)
        learner = ask_at(learner, experiment.token, experiment.pooling)
        weights = learning(learner)
        train_quietly(
            learner,
            self._loader(experiment, items, seed),
            items,
            experiment.rate,
            experiment.epochs,
            _loss(experiment),
        )
        places = self.parts[part]
        said = _said(learner, [items[place] for place in places], experiment)
        return {
            "learning": sum(weight.numel() for weight in weights),
            "said": said,
            "right": said == (self.targets[places] == 1),
            "seconds": time.process_time() - begun,
        }

    def _loader(self, experiment, items, seed):
        """Batches for one update each; messages of about the same length together."""
        known = [items[place] for place in self.parts["train"]]
        lengths = [len(ids) for ids, _ in self.ids(Experiment(model=experiment.model))]
        generator = torch.Generator().manual_seed(seed)
        together = experiment.batch_size * experiment.accumulation
        batches = LengthBatches(lengths[: len(known)], together, generator)
        return DataLoader(known, batch_sampler=batches, collate_fn=_collate(experiment))


def _collate(experiment):
    length = experiment.context_length if experiment.padding == "context" else None
    return functools.partial(collate_messages, length=length)


def _loss(experiment):
    """The loss of one update, as the experiment's batches want it."""
    loss = half_loss
    if experiment.ignore_index != Experiment.ignore_index:
        loss = ignoring(loss, experiment.ignore_index)
    if experiment.padding == "none":
        loss = without_padding(loss)
    if experiment.accumulation > 1:
        loss = in_micro_batches(loss, experiment.batch_size)
    return loss


def _said(learner, items, experiment):
    """Which messages are called class 1, (n,)."""
    with torch.autocast("cpu", torch.bfloat16):
        if experiment.padding != "context":
            return asked_of(learner, items) > 0
        loader = DataLoader(items, 2 * BATCH_SIZE, collate_fn=_collate(experiment))
        shares, _ = class_probabilities(loader, learner, "cpu")
    return (shares[:, 1] > shares[:, 0]).numpy()


def _read_rows(path, tokens):
    """Kept features; `ValueError` for a file that is damaged or of other messages."""
    try:
        rows = np.load(path)
    except (OSError, ValueError, EOFError):
        rows = None
    if rows is None or rows.ndim != 2 or len(rows) != tokens:
        raise ValueError(f"{path} is damaged: delete it, and it is made again.")
    return torch.from_numpy(rows)
