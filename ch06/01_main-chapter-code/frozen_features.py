"""Frozen blocks are run once (chapter 6, section 6.6): support for what trains on top.

Blocks that do not learn give the same features for a text in each epoch. So they are
computed once and kept, and only what lies above them is run in training.

* `freeze_below`, `learning`: which parameters learn;
* `collate_messages`: a padded batch, of ids or of features, and its mask;
* `cache_features`: what the frozen blocks make of each text;
* `Recall`, `UpperModel`, `FromFeatures`, `lower_part`: the model above and below the
  features;
* `MeanOfTokens`: a classifier that is asked at all tokens.

Left out: dropout in the frozen part, which would make the features differ.

Two texts of different lengths, in one batch:

>>> batch = [(torch.tensor([5, 6, 7]), 0), (torch.tensor([8]), 1)]
>>> inputs, attention_mask, targets = collate_messages(batch)
>>> inputs.tolist(), attention_mask.sum(dim=1).tolist()
([[5, 6, 7], [8, 0, 0]], [3, 1])

Shapes: B texts in a batch, T tokens, D model width, L blocks, C outputs of the head.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model_config import extras_for

Device = torch.device | str


def freeze_below(model: Any, trainable_blocks: int | None) -> Any:
    """Let only the last blocks, the last norm and the head learn; return the model.

    Args:
        model: a model with the interface of `GPTModel`; it changes.
        trainable_blocks: how many, 0 to L; None lets everything learn.
    """
    L = len(model.trf_blocks)
    if trainable_blocks is not None and not 0 <= trainable_blocks <= L:
        raise ValueError(
            f"trainable_blocks is {trainable_blocks}, but the model has {L} "
            f"blocks: give a number from 0 to {L}, or None for the whole model."
        )
    model.requires_grad_(trainable_blocks is None)
    if trainable_blocks is not None:
        learning = [*model.trf_blocks[L - trainable_blocks :]]
        for module in (*learning, model.final_norm, model.out_head):
            module.requires_grad_(True)
    return model


def learning(model: Any) -> list[nn.Parameter]:
    """The parameters that learn, for an optimizer."""
    return [p for p in model.parameters() if p.requires_grad]


def collate_messages(
    batch: list[tuple[Tensor, int]], pad_token_id: int = 0, length: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of messages, padded on the right, with the mask of what is real.

    Args:
        batch: pairs of a message, (T,) ids or (T, D) features, and its class.
        pad_token_id: what fills the gaps; any id will do, as no answer depends on it.
        length: tokens of every row; None takes the longest message of the batch.

    Returns:
        `(inputs, attention_mask, targets)`: (B, T) or (B, T, D); (B, T) bool, True for
        a real token; (B,).
    """
    messages, targets = zip(*batch)
    lengths = torch.tensor([len(message) for message in messages])
    T = int(lengths.max()) if length is None else length
    inputs = messages[0].new_full((len(batch), T, *messages[0].shape[1:]), pad_token_id)
    for row, message in zip(inputs, messages):
        row[: len(message)] = message
    attention_mask = torch.arange(T) < lengths[:, None]  # (B, T)
    return inputs, attention_mask, torch.tensor(targets)


def check_message_batch(*batch: Any) -> None:
    """Raise unless a batch is one of `collate_messages`: inputs, mask and classes."""
    if len(batch) != 3 or not all(isinstance(part, Tensor) for part in batch):
        parts = sum(isinstance(part, Tensor) for part in batch)
        raise ValueError(
            f"A batch of messages has three parts, inputs, attention mask and classes, "
            f"and this one has {parts}: make the loader with message_loader(dataset, "
            "batch_size), or the batch with collate_messages."
        )


@torch.no_grad()
def cache_features(
    model: Any,
    dataset: Any,
    trainable_blocks: int,
    device: Device,
    batch_size: int = 16,
) -> list[tuple[Tensor, int]]:
    """What the frozen blocks make of each message, computed once.

    Args:
        model: a model with the interface of `GPTModel`, its head already small; in
            evaluation mode meanwhile, so without dropout.
        dataset: pairs of ids and class, such as a `SpamDataset`.
        trainable_blocks: how many blocks stand above the features.
        device: where the model is.
        batch_size: messages of about the same length that are run together.

    Returns:
        A list in the order of the dataset: pairs of (T, D) features and the class.
    """
    watched = [*model.trf_blocks, model.final_norm][
        len(model.trf_blocks) - trainable_blocks
    ]
    caught = []
    handle = watched.register_forward_pre_hook(
        lambda module, inputs: caught.append(inputs[0])
    )
    was_training = model.training
    model.eval()
    items = [dataset[index] for index in range(len(dataset))]
    order = sorted(range(len(items)), key=lambda index: len(items[index][0]))
    found = {}
    try:
        for start in tqdm(range(0, len(order), batch_size), "features", disable=None):
            chosen = order[start : start + batch_size]
            ids, mask, targets = collate_messages([items[index] for index in chosen])
            extras = extras_for(model, attention_mask=mask.to(device))
            model(ids.to(device), **extras)
            for index, row, length in zip(chosen, caught.pop(), mask.sum(dim=1)):
                found[index] = row[:length].cpu().clone(), items[index][1]
    finally:
        handle.remove()
        model.train(was_training)
    return [found[index] for index in range(len(items))]


class Recall(nn.Module):
    """Stands where the frozen blocks stood, and gives back what they once computed."""

    def __init__(self):
        super().__init__()
        self.features: Any = None  # (B, T, D), set before each call

    def forward(self, x: Tensor, *arguments: object) -> Tensor:
        """(B, T, D): the stored features, whatever comes in."""
        return self.features


class UpperModel(nn.Module):
    """The upper blocks, norm and head of a model, reading features of the lower part.

    They are the model's own, not copies: what trains here trains there.

    Args:
        model: a model with the interface of `GPTModel`.
        trainable_blocks: how many blocks are left to run, 0 to L.
    """

    def __init__(self, model: Any, trainable_blocks: int):
        super().__init__()
        self.recall = Recall()
        upper = model.trf_blocks[len(model.trf_blocks) - trainable_blocks :]
        self.model = copy.copy(model)
        self.model._modules = dict(model._modules)
        self.model.trf_blocks = same_kind(model.trf_blocks, [self.recall, *upper])

    def forward(self, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits, (B, T, D) to (B, T, C): those of the whole model for the same ids.

        The ids are not needed any more. Zeros stand in for them, and what the model
        makes of those is thrown away by `Recall`.
        """
        self.recall.features = features
        ids = torch.zeros(features.shape[:2], dtype=torch.long, device=features.device)
        extras = extras_for(self.model, attention_mask=attention_mask)
        return self.model(ids, **extras)


class FromFeatures(UpperModel):
    """Upper blocks whose own features can be cached in turn."""

    @property
    def trf_blocks(self) -> nn.ModuleList:
        return self.model.trf_blocks

    @property
    def final_norm(self) -> nn.Module:
        return self.model.final_norm


class MeanOfTokens(nn.Module):
    """A classifier that is asked at all its real tokens: its logits are their mean.

    The mean stands at each place, so that whoever reads one of them reads all tokens,
    and functions for a classifier that is asked at its last token take this one, too.

    Args:
        model: a classifier, or an `UpperModel` of one.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, C) from ids, (B, T), or features; without a mask all are real."""
        extras = extras_for(self.model, attention_mask=attention_mask)
        logits = self.model(inputs, **extras)  # (B, T, C)
        real = torch.ones(logits.shape[:2], device=logits.device)
        weights = (real if attention_mask is None else attention_mask)[..., None]
        total = (logits * weights).sum(dim=1, keepdim=True)  # (B, 1, C)
        return (total / weights.sum(dim=1, keepdim=True)).expand_as(logits)


def same_kind(blocks: Any, modules: list[Any]) -> Any:
    """Modules in an `nn.Sequential`, if the blocks of a model are one, or in a list."""
    if isinstance(blocks, nn.Sequential):
        return nn.Sequential(*modules)
    return nn.ModuleList(modules)


def lower_part(model: Any, trainable_blocks: int) -> Any:
    """The model up to its frozen blocks, which gives features instead of logits."""
    lower = copy.copy(model)
    lower._modules = dict(model._modules)
    lower.trf_blocks = model.trf_blocks[: len(model.trf_blocks) - trainable_blocks]
    lower.final_norm, lower.out_head = nn.Identity(), nn.Identity()
    return lower
