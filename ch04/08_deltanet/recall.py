"""A task on which a memory has to overwrite (chapter 4, bonus: DeltaNet).

A text is pairs of a key and a value; the same key comes again with other values. At
each key the model shall say the value that this key had *last*: associative recall
(Arora et al., 2023, arXiv:2312.04927), with keys that change their values.

* `recall_batch`: random texts, and what shall be said at each key;
* `RecallModel`: one `GatedDeltaNet` between an embedding and a head;
* `RULES`: what writes its memory, with and without erasing, with and without a gate;
* `train_recall`, `recall_accuracy`: the training, and how often it is right;
* `best_guesses`: how often one is right who knows the values but not their order.

>>> ids, targets, before = recall_batch(torch.Generator().manual_seed(1), 2, writes=5)
>>> ids.shape, targets.shape
(torch.Size([2, 10]), torch.Size([2, 5]))

Shapes: B batch, P pairs in a text, T = 2 P tokens, D model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltanet import GatedDeltaNet, delta_rule, linear_attention
from llama import RMSNorm

__all__ = [
    "RULES",
    "RecallModel",
    "additive_rule",
    "best_guesses",
    "recall_accuracy",
    "recall_batch",
    "train_recall",
    "without_decay",
]

KEYS, VALUES = 8, 16  # how many different ones there are
UNSEEN = -100  # the target of a key that comes for the first time: no loss there


def recall_batch(
    generator: torch.Generator, batch_size: int, writes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random texts of pairs of a key and a value.

    Args:
        generator: of the random numbers.
        batch_size: B.
        writes: pairs in a text, P.

    Returns:
        `(ids, targets, before)`: the tokens, (B, 2 P), keys counted from 0 and values
        from `KEYS`; for each pair the value that its key had last, counted from 0, or
        `UNSEEN`, (B, P); and how often the key was written before, (B, P).
    """
    shape = batch_size, writes
    keys = torch.randint(KEYS, shape, generator=generator)
    values = torch.randint(VALUES, shape, generator=generator)
    ids = torch.stack((keys, values + KEYS), dim=-1).flatten(1)  # (B, 2 P)
    earlier = (keys[:, :, None] == keys[:, None, :]).tril(-1)  # (B, P, P)
    last = (earlier * torch.arange(1, writes + 1)).amax(dim=-1) - 1  # -1: there is none
    targets = values.gather(1, last.clamp(min=0)).masked_fill(last < 0, UNSEEN)
    return ids, targets, earlier.sum(dim=-1)


def additive_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear attention, called as `delta_rule`: beta v is added, nothing erased."""
    return linear_attention(queries, keys, beta[..., None] * values, log_decay, state)


def without_decay(rule: Callable[..., tuple[Tensor, Tensor]]) -> Callable:
    """The same rule for a memory that never fades."""

    def apply(queries, keys, values, log_decay, beta, state=None):
        return rule(queries, keys, values, 0 * log_decay, beta, state)

    return apply


RULES = {
    "linear attention": without_decay(additive_rule),
    "with decay": additive_rule,
    "delta rule": without_decay(delta_rule),
    "gated delta rule": delta_rule,
}


class RecallModel(nn.Module):
    """One layer of the given rule between an embedding and a head.

    Its convolution sees one token back, as far as a value is from its key.

    Args:
        rule: as `GatedDeltaNet` takes it.
        emb_dim: D.
        head_dim: width of the keys and values of its two memories.
    """

    def __init__(
        self, rule: Callable[..., tuple[Tensor, Tensor]], emb_dim: int, head_dim: int
    ):
        super().__init__()
        self.tok_emb = nn.Embedding(KEYS + VALUES, emb_dim)
        self.norm1 = RMSNorm(emb_dim, 1e-6)
        widths = {"num_heads": 2, "key_dim": head_dim, "value_dim": head_dim}
        self.att = GatedDeltaNet(emb_dim, **widths, conv_width=2, rule=rule)
        self.final_norm = RMSNorm(emb_dim, 1e-6)
        self.out_head = nn.Linear(emb_dim, VALUES, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits of the value at each key: ids (B, 2 P) to (B, P, VALUES)."""
        x = self.tok_emb(idx)
        x = x + self.att(self.norm1(x))
        return self.out_head(self.final_norm(x[:, ::2]))


def train_recall(
    model: nn.Module, updates: int, writes: int, seed: int, batch_size: int = 32
) -> float:
    """Train on texts that are new at each update; return the last loss.

    Args:
        model: such as a `RecallModel`. It changes.
        updates: how many.
        writes: pairs in a text.
        seed: of the texts.
        batch_size: texts in an update.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(updates):
        ids, targets, _ = recall_batch(generator, batch_size, writes)
        logits = model(ids).flatten(0, 1)  # (B * P, VALUES)
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=UNSEEN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def recall_accuracy(
    model: nn.Module, writes: int, seed: int, texts: int = 256, most: int = 5
) -> dict[int, float]:
    """The share of right answers, by how often the key was written before.

    Args:
        model: as in `train_recall`.
        writes: pairs in a text.
        seed: of the texts: another than that of the training.
        texts: how many.
        most: the largest number of earlier writes that is looked at.

    Returns:
        {1: share, 2: share, ...}.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, targets, before = recall_batch(generator, texts, writes)
    right = model(ids).argmax(dim=-1) == targets
    return {n: right[before == n].float().mean().item() for n in range(1, most + 1)}


def best_guesses(
    writes: int, seed: int, texts: int = 4800, most: int = 5
) -> dict[str, list[float]]:
    """How often the best guess is right without the order of the values.

    Args:
        writes: pairs in a text.
        seed: of the texts.
        texts: how many.
        most: the largest number of earlier writes that is looked at.

    Returns:
        Shares of right answers after 1, 2, ... earlier writes, of two who know how
        often each value was written under a key, and name one that was written most
        often: "no order" knows nothing else; "one pair back" also sees the value of the
        pair just before, and names that one if it was ever written under the key.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, targets, before = recall_batch(generator, texts, writes)
    keys, values = ids[:, ::2], ids[:, 1::2] - KEYS  # (B, P)
    earlier = (keys[:, :, None] == keys[:, None, :]).tril(-1).float()  # (B, P, P)
    written = earlier @ F.one_hot(values, VALUES).float()  # how often, (B, P, VALUES)
    best = (written == written.amax(dim=-1, keepdim=True)).float()
    chance = best / best.sum(dim=-1, keepdim=True)
    guessed = chance.gather(2, targets.clamp(min=0)[..., None])[..., 0]  # (B, P)
    last = values.roll(1, dims=1)  # the value of the pair just before
    known = written.gather(2, last[..., None])[..., 0] > 0
    seen = torch.where(known, (last == targets).float(), guessed)
    return {
        name: [right[before == n].mean().item() for n in range(1, most + 1)]
        for name, right in (("no order", guessed), ("one pair back", seen))
    }
