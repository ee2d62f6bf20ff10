"""A classifier with one thing changed at a time (chapter 6, bonus: more experiments).

Each function is one choice that whoever fine-tunes a classifier makes, often without
knowing it; `additional_experiments.py` trains all of them on the same messages.

* `AskedAt`, `ask_at`: which token is asked, or how the answers of all are pooled;
* `read_padding`: padding that is read like any other token, the mistake itself;
* `see_both_ways`: no causal mask; `start_anew`: no pretraining;
* `let_learn`: blocks that learn, or adapters in them;
* `without_padding`, `ignoring`: losses of messages one by one, and without a class;
* `holm`: p-values of many comparisons, corrected for having made them all.

Adapters are `replace_linear_with_lora` of appendix E, and several parts of a batch for
one update `in_micro_batches` of appendix D. Left out: several changes at once.

Sources: Hu et al., 2021 (arXiv:2106.09685), section 4.1, for LoRA; BehnamGhader et al.,
2024 (arXiv:2404.05961), section 2, for the mask taken from a model trained with one;
Holm, "A simple sequentially rejective multiple test procedure", 1979.

Two of four comparisons remain below one in twenty:

>>> [round(p, 3) for p in holm([0.2, 0.01, 0.03, 0.001])]
[0.2, 0.03, 0.06, 0.004]

Shapes: B messages in a batch, T tokens, C classes, L blocks, S tokens that are seen.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from frozen_features import MeanOfTokens, freeze_below
from lora import replace_linear_with_lora
from model_config import extras_for
from variants import draw_weights

Loss = Callable[..., Tensor]

# --- Which token is asked ------------------------------------------------------------


class AskedAt(nn.Module):
    """A classifier that is asked at its first real token, or takes the highest logit.

    Like `MeanOfTokens`, it gives the same logits at each place of a message, so that
    whoever reads the last one reads the answer.

    Args:
        model: a classifier, or an `UpperModel` of one.
        place: "first", or "highest": for each class the highest logit of a real token.
    """

    def __init__(self, model: Any, place: str):
        super().__init__()
        self.model, self.place = model, place

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T, C) from ids, (B, T), or features; without a mask all are real."""
        extras = extras_for(self.model, attention_mask=attention_mask)
        logits = self.model(inputs, **extras)  # (B, T, C)
        mask = attention_mask
        if mask is None:
            mask = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        if self.place == "first":
            first = mask.int().argmax(dim=1)  # (B,)
            rows = torch.arange(len(logits), device=logits.device)
            answer = logits[rows, first]  # (B, C)
        else:
            hidden = ~mask.bool()[..., None]  # (B, T, 1)
            answer = logits.masked_fill(hidden, -torch.inf).amax(dim=1)  # (B, C)
        return answer[:, None].expand_as(logits)


def ask_at(model: Any, token: str, pooling: str = "mean") -> Any:
    """A classifier asked at its "last" or "first" token, or at "all", pooled.

    Args:
        model: a classifier; `last_token_logits` reads its last real token anyway.
        token: "last", "first" or "all".
        pooling: of all tokens, their "mean" or "max".
    """
    if token == "last":
        return model
    if token == "first":
        return AskedAt(model, "first")
    return MeanOfTokens(model) if pooling == "mean" else AskedAt(model, "highest")


def read_padding(
    items: Sequence[tuple[Tensor, int]], length: int, pad_token_id: int
) -> list[tuple[Tensor, int]]:
    """Messages filled up to one length, with padding that counts as real tokens.

    Args:
        items: pairs of ids, (T,), and class.
        length: tokens of each message afterwards; longer ones are cut at their end.
        pad_token_id: what fills them up; here it is read, so it matters which.
    """
    filled = []
    for ids, target in items:
        padding = ids.new_full((max(0, length - len(ids)),), pad_token_id)
        filled.append((torch.cat((ids[:length], padding)), target))
    return filled


# --- The model -----------------------------------------------------------------------


def see_both_ways(model: Any, blocks: int | None = None) -> Any:
    """Let each token see the later ones, too, in the last blocks; return the model.

    Args:
        model: a model whose attention is `MultiHeadAttention` of chapter 3 or
            `GroupedQueryAttention` of chapter 4; it changes. Padding stays hidden.
        blocks: how many of the last blocks; None for all.
    """
    L = len(model.trf_blocks)
    for block in [*model.trf_blocks][0 if blocks is None else L - blocks :]:
        if hasattr(block.att, "hidden_keys"):
            block.att.hidden_keys = padding_keys
        else:
            block.att.mask = torch.zeros_like(block.att.mask)
    return model


def padding_keys(
    T: int, S: int, attention_mask: Tensor | None, device: torch.device
) -> Tensor | None:
    """Keys that no query may see when only padding is hidden: (B, 1, 1, 1, S), or None.

    It stands where `GroupedQueryAttention.hidden_keys` stood, with its arguments.
    """
    if attention_mask is None:
        return None
    return ~attention_mask.bool()[:, None, None, None, :]


def start_anew(model: Any, seed: int) -> Any:
    """A model of the same kind and size that has never read a text.

    Args:
        model: it stays as it is; its config may name more blocks than it has.
        seed: for the weights, as in `draw_weights`.
    """
    cfg = {**model.cfg, "n_layers": len(model.trf_blocks)}
    return draw_weights(type(model)(cfg), seed)


def let_learn(
    model: Any,
    blocks: int | None,
    rank: int = 0,
    alpha: float = 16.0,
    generator: Generator | None = None,
) -> Any:
    """Let the last norm, the head and the last blocks learn; return the model.

    Args:
        model: with a classification head; it changes.
        blocks: how many of the last blocks, 0 to L; None for all of them, and without
            adapters for the token embedding as well.
        rank: 0 trains the weights of the blocks; from 1 up they stay, and each of their
            linear layers gets an adapter of this rank that learns.
        alpha: of the adapters, as in `LoRALayer`.
        generator: for their first weights.
    """
    freeze_below(model, blocks)
    if rank:
        L = len(model.trf_blocks)
        first = 0 if blocks is None else L - blocks
        names = [f"trf_blocks.{number}.*" for number in range(first, L)]
        replace_linear_with_lora(model, rank, alpha, names, generator=generator)
        for module in (model.final_norm, model.out_head):
            module.requires_grad_(True)
    return model


# --- The loss ------------------------------------------------------------------------


def without_padding(loss: Loss) -> Loss:
    """The same loss, for a batch that is cut to its longest message first.

    A part of one message, as of `in_micro_batches(without_padding(loss), 1)`, then has
    no padding at all.
    """

    def loss_of_real(inputs, attention_mask, *others):
        T = int(attention_mask.sum(dim=1).max())  # padding is on the right
        return loss(inputs[:, :T], attention_mask[:, :T], *others)

    return loss_of_real


def ignoring(loss: Loss, index: int) -> Loss:
    """The same loss over those messages whose class is not `index`."""

    def loss_of_others(inputs, attention_mask, targets, *others):
        kept = targets != index  # (B,)
        return loss(inputs[kept], attention_mask[kept], targets[kept], *others)

    return loss_of_others


# --- What to believe -----------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the smallest times n, the next times n - 1.

    If at all of n comparisons nothing but chance is at work, one of the corrected
    values is below 0.05 in at most one of twenty such tables, however the comparisons
    hang together.

    Args:
        p_values: one for each comparison that was made, those not reported included.

    Returns:
        As many, in the same order; none is above 1, or below one that was smaller.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[place])
        corrected[place] = min(1.0, highest)
    return corrected
