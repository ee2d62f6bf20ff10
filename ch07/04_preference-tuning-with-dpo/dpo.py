"""Direct preference optimization: learning which of two answers is better (chapter 7).

* `PreferenceDataset`, `custom_collate_fn`, `add_cached`: pairs of answers as ids, and
  masks that say which of them are the answer's;
* `compute_logprobs`, `answer_logits`, `answer_logprobs`: how likely a model finds a
  whole answer, the second and third for less work;
* `compute_dpo_loss` and its `VARIANTS`, `batch_logprobs`, `compute_dpo_loss_batch`,
  `compute_dpo_loss_loader`, `evaluate_dpo_loss_loader`: the loss;
* `frozen_copy`, `cache_reference`, `cache_pair_features`: what does not change in
  training, computed once;
* `train_model_dpo_simple`, `pair_rewards`, `drift`: the loop, and what it has changed.

The loss is equation 7 of Rafailov et al., 2023 (arXiv:2305.18290), the variant "ipo"
that of Azar et al., 2023 (arXiv:2310.12036, section 5). "length" divides by the number
of an answer's tokens, as Lambert et al., 2024 (arXiv:2411.15124) do. Four things differ
from the book that this course goes with: log-probabilities are summed over an answer as
in the paper, not averaged; rewards have their factor beta; an answer has its end token;
and the reference is asked once. Left out: a reward model, answers that the model writes
while it learns, ties.

The first loss is ln 2, as model and reference are still the same:

>>> logprobs = [torch.tensor([-9.0]), torch.tensor([-8.0])]
>>> loss, chosen, rejected = compute_dpo_loss(*logprobs, *logprobs)
>>> round(loss.item(), 6), chosen.item(), rejected.item()
(0.693147, 0.0, 0.0)

Shapes: B pairs in a batch, T tokens, D model width, V vocabulary, N tokens of answers.
"""

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from argument_checks import check_finite_loss
from fast_answers import logits_at
from frozen_features import cache_features, lower_part
from gpt_instruction_finetuning import encode_prompt
from gpt_train import generate_and_print_sample
from resumable import keep_random_states

SIDES = ("chosen", "rejected")
VARIANTS = ("dpo", "ipo", "length")
Batch = dict[str, Any]

# --- Pairs as ids --------------------------------------------------------------------


class PreferenceDataset(Dataset):
    """Pairs of answers as token ids: the question, one of the answers, and its end.

    Question and answer are encoded one by one, so the place where an answer begins is
    known, and is the same in both texts of a pair.

    Args:
        data: entries with `instruction`, `input`, `chosen` and `rejected`.
        tokenizer: with the methods of tiktoken's `Encoding`, and `eot_token`.
        style: the layout of the question, one of chapter 7's `FORMATS`.

    An item is a dictionary of lists of ids: `prompt`, and `chosen` and `rejected` with
    the prompt in front and the end token behind.
    """

    def __init__(self, data: list, tokenizer: Any, style: str = "alpaca"):
        self.data = data
        self.encoded_texts = []
        for entry in data:
            prompt = encode_prompt(entry, tokenizer, style)
            item = {"prompt": prompt}
            for side in SIDES:
                answer = tokenizer.encode(entry[side], disallowed_special=())
                item[side] = [*prompt, *answer, tokenizer.eot_token]
            self.encoded_texts.append(item)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.encoded_texts[index]


def custom_collate_fn(
    batch: list[dict],
    pad_token_id: int = 50256,
    allowed_max_length: int | None = None,
    mask_prompt_tokens: bool = True,
    device: torch.device | str = "cpu",
) -> Batch:
    """Both texts of each pair, padded to one length, with masks of what counts.

    A mask is True at the tokens of the answer and at its end token, False at padding
    and, if `mask_prompt_tokens`, at the question. That is decided by place, never by
    looking for an id, since the end token may stand inside a text.

    Args:
        batch: items of a `PreferenceDataset`, perhaps with what `cache_reference` and
            `cache_pair_features` added.
        pad_token_id: what fills the gaps.
        allowed_max_length: texts are cut there, at their end; None for no limit.
        mask_prompt_tokens: whether the question is left out.
        device: where the results are.

    Returns:
        A dictionary: `prompt`, a list of tensors; `chosen` and `rejected`, (B, T) ids;
        `chosen_mask` and `rejected_mask`, (B, T) bool; and what was added.

    Raises:
        ValueError: nothing is left of an answer within `allowed_max_length`.
    """
    longest = max(len(item[side]) for item in batch for side in SIDES)
    T = min(longest, allowed_max_length or longest)
    prompts = [torch.tensor(item["prompt"], device=device) for item in batch]
    result: Batch = {"prompt": prompts}
    for side in SIDES:
        ids = torch.full((len(batch), T), pad_token_id)
        mask = torch.zeros(len(batch), T, dtype=torch.bool)
        for row, item in enumerate(batch):
            kept = item[side][:T]
            ids[row, : len(kept)] = torch.tensor(kept)
            start = len(item["prompt"]) if mask_prompt_tokens else 0
            mask[row, start : len(kept)] = True
        if not mask.any(dim=1).all():
            raise ValueError(
                f"Nothing is left of an answer within allowed_max_length={T}: raise "
                "it, or leave such pairs out."
            )
        result[side], result[f"{side}_mask"] = ids.to(device), mask.to(device)
    return add_cached(result, batch)


def add_cached(result: Batch, batch: list[dict]) -> Batch:
    """Put into a batch what `cache_reference` and `cache_pair_features` have added."""
    for side in SIDES:
        (B, T), device = result[side].shape, result[side].device
        if f"{side}_features" in batch[0]:
            rows = [item[f"{side}_features"][:T] for item in batch]
            padded = rows[0].new_zeros(B, T, rows[0].shape[-1])  # (B, T, D)
            for row, features in zip(padded, rows):
                row[: len(features)] = features
            result[f"{side}_features"] = padded.to(device)
        if f"reference_{side}_logprobs" in batch[0]:
            known = [item[f"reference_{side}_logprobs"] for item in batch]
            result[f"reference_{side}_logprobs"] = torch.tensor(known, device=device)
    return result


# --- How likely an answer is ---------------------------------------------------------


def compute_logprobs(
    logits: Tensor, labels: Tensor, selection_mask: Tensor | None = None
) -> Tensor:
    """The log-probability of each text, a sum over those of its tokens that count.

    Args:
        logits: (B, T, V); those at a place speak of the token after it.
        labels: (B, T), the ids that the model has read.
        selection_mask: (B, T), True for the tokens that count; None for all of them.
            The first token never counts: nothing stands before it.

    Returns:
        (B,), in nats, at most 0.
    """
    log_probs = F.log_softmax(logits[:, :-1], dim=-1)  # (B, T - 1, V)
    found = log_probs.gather(-1, labels[:, 1:, None]).squeeze(-1)  # (B, T - 1)
    if selection_mask is not None:
        found = found.masked_fill(~selection_mask[:, 1:].bool(), 0.0)
    return found.sum(dim=-1)


def answer_logits(model: Any, batch: Batch, side: str) -> Tensor:
    """The logits from which the tokens of the answers are foretold, and no others.

    The head is the widest layer of a small model, and questions and padding are most of
    a batch.

    Args:
        model: with an `out_head`, or an `UpperModel` of such a model, which reads the
            features of `cache_pair_features`.
        batch: of `custom_collate_fn`.
        side: "chosen" or "rejected".

    Returns:
        (N, V), row by row through the batch, at least in float32.
    """
    places = F.pad(batch[f"{side}_mask"][:, 1:], (0, 1))  # each one place earlier
    with logits_at(getattr(model, "model", model), places):
        logits = model(batch.get(f"{side}_features", batch[side]))  # (N, V)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def answer_logprobs(model: Any, batch: Batch, side: str) -> Tensor:
    """`compute_logprobs` of the answers of a batch, (B,), by way of `answer_logits`."""
    counts = batch[f"{side}_mask"][:, 1:]
    logits, targets = answer_logits(model, batch, side), batch[side][:, 1:][counts]
    found = -F.cross_entropy(logits, targets, reduction="none")  # (N,)
    rows = counts.nonzero()[:, 0]  # which text each of the N belongs to
    return found.new_zeros(len(counts)).index_add(0, rows, found)


# --- The loss ------------------------------------------------------------------------


def compute_dpo_loss(
    model_chosen_logprobs: Tensor,
    model_rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    beta: float = 0.1,
    variant: str = "dpo",
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a batch of pairs, and the mean rewards of its two kinds of answers.

    The reward of an answer is beta times how much more likely than the reference the
    model finds it, in logarithms; the margin is the difference of the two. "dpo" pushes
    for a larger margin, ever less the larger it is; "ipo" for a margin without its beta
    of exactly 1 / (2 beta). "length" is "dpo" for log-probabilities that were divided
    by the answer's length before.

    Args:
        model_chosen_logprobs, model_rejected_logprobs, reference_chosen_logprobs,
            reference_rejected_logprobs: (B,), of whole answers, in nats.
        beta: what it costs to leave the reference, above 0.
        variant: one of `VARIANTS`.

    Returns:
        `(loss, chosen_reward, rejected_reward)`, scalars; rewards have no gradient.

    Raises:
        ValueError: the variant is none.
    """
    if variant not in VARIANTS:
        raise ValueError(f"There is no variant {variant!r}: take one of {VARIANTS}.")
    chosen_rewards = beta * (model_chosen_logprobs - reference_chosen_logprobs)
    rejected_rewards = beta * (model_rejected_logprobs - reference_rejected_logprobs)
    margins = chosen_rewards - rejected_rewards  # (B,)
    if variant == "ipo":
        losses = (margins / beta - 1 / (2 * beta)) ** 2
    else:
        losses = -F.logsigmoid(margins)
    return (
        losses.mean(),
        chosen_rewards.mean().detach(),
        rejected_rewards.mean().detach(),
    )


def batch_logprobs(
    batch: Batch, policy_model: Any, reference_model: Any, variant: str = "dpo"
) -> list[Tensor]:
    """The four arguments of `compute_dpo_loss` for a batch, (B,) each.

    What `cache_reference` knows of the reference is taken from the batch; then
    `reference_model` may be None. Otherwise it is run, without a gradient.
    """
    found = [answer_logprobs(policy_model, batch, side) for side in SIDES]
    for side in SIDES:
        known = batch.get(f"reference_{side}_logprobs")
        if known is None:
            with torch.no_grad():
                known = answer_logprobs(reference_model, batch, side)
        found.append(known)
    if variant == "length":
        lengths = [batch[f"{side}_mask"][:, 1:].sum(dim=1) for side in SIDES]
        found = [sums / length for sums, length in zip(found, lengths * 2)]
    return found


def compute_dpo_loss_batch(
    batch: Batch,
    policy_model: Any,
    reference_model: Any,
    beta: float,
    variant: str = "dpo",
) -> tuple[Tensor, Tensor, Tensor]:
    """`compute_dpo_loss` for a batch of `custom_collate_fn`."""
    logprobs = batch_logprobs(batch, policy_model, reference_model, variant)
    return compute_dpo_loss(*logprobs, beta=beta, variant=variant)


def compute_dpo_loss_loader(
    data_loader: Iterable,
    policy_model: Any,
    reference_model: Any,
    beta: float,
    num_batches: int | None = None,
    variant: str = "dpo",
) -> tuple[float, float, float]:
    """Loss and rewards, means over the pairs of a loader, each with the same weight.

    Looking changes nothing: neither the model's mode nor the order of later batches.
    """
    totals, pairs = torch.zeros(3, dtype=torch.float64), 0
    was_training = policy_model.training
    policy_model.eval()
    with torch.no_grad(), keep_random_states(data_loader):
        for batch in itertools.islice(data_loader, num_batches):
            found = compute_dpo_loss_batch(
                batch, policy_model, reference_model, beta, variant
            )
            number = len(batch["chosen"])
            totals += number * torch.tensor([float(value) for value in found])
            pairs += number
    policy_model.train(was_training)
    loss, chosen, rejected = (totals / pairs).tolist()
    return loss, chosen, rejected


def evaluate_dpo_loss_loader(
    policy_model: Any,
    reference_model: Any,
    train_loader: Iterable,
    val_loader: Iterable,
    beta: float,
    eval_iter: int | None,
    variant: str = "dpo",
) -> dict[str, float]:
    """Loss and rewards of both parts over at most `eval_iter` batches, None for all."""
    result = {}
    for part, loader in (("train", train_loader), ("val", val_loader)):
        loss, chosen, rejected = compute_dpo_loss_loader(
            loader, policy_model, reference_model, beta, eval_iter, variant
        )
        result[f"{part}_loss"] = loss
        result[f"{part}_chosen_reward"] = chosen
        result[f"{part}_rejected_reward"] = rejected
    return result


# --- What does not change in training ------------------------------------------------


def frozen_copy(model: Any) -> Any:
    """The model as it is now, for good: a copy of what learns, the rest shared."""
    kept = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, kept).requires_grad_(False).eval()


@torch.no_grad()
def cache_reference(
    dataset: Any,
    reference_model: Any,
    collate: Callable[[list], Batch] = custom_collate_fn,
    batch_size: int = 16,
) -> list[dict]:
    """The items of a dataset with what the reference makes of both answers, a sum each.

    The reference never changes, so it is asked once and then not needed any more.

    Args:
        dataset: items as in a `PreferenceDataset`.
        reference_model: in evaluation mode, such as the model before training.
        collate: `custom_collate_fn` with the settings of the training.
        batch_size: pairs that are run together.
    """
    items = [dict(dataset[index]) for index in range(len(dataset))]
    for start in range(0, len(items), batch_size):
        some = items[start : start + batch_size]
        batch = collate(some)
        for side in SIDES:
            sums = answer_logprobs(reference_model, batch, side)
            for item, value in zip(some, sums.tolist()):
                item[f"reference_{side}_logprobs"] = value
    return items


def cache_pair_features(
    model: Any,
    dataset: Any,
    trainable_blocks: int,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
) -> list[dict]:
    """The items of a dataset with what the frozen blocks make of both texts, (T, D).

    Args:
        model: with the interface of `GPTModel`, on `device`.
        dataset: items as in a `PreferenceDataset`.
        trainable_blocks: how many blocks stand above; an `UpperModel` runs them.
        device: where the model is.
        batch_size: texts of about the same length that are run together.
    """
    items = [dict(dataset[index]) for index in range(len(dataset))]
    texts = [torch.tensor(item[side]) for item in items for side in SIDES]
    lower = lower_part(model, trainable_blocks)
    numbered = [(ids, number) for number, ids in enumerate(texts)]
    features = iter(cache_features(lower, numbered, 0, device, batch_size))
    for item in items:
        for side in SIDES:
            item[f"{side}_features"], _ = next(features)
    return items


# --- Training ------------------------------------------------------------------------

_TRACKED = ("losses", "chosen_rewards", "rejected_rewards")


def train_model_dpo_simple(
    policy_model: Any,
    reference_model: Any,
    train_loader: DataLoader,
    val_loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    num_epochs: int,
    beta: float,
    eval_freq: int,
    eval_iter: int | None,
    start_context: Any = None,
    tokenizer: Any = None,
    variant: str = "dpo",
) -> dict[str, list]:
    """Train a model on pairs; print and return losses and rewards on the way.

    Evaluated is before update 0, `eval_freq`, 2 `eval_freq` and so on, and after the
    last one. So the first row is that of the untrained model.

    Args:
        policy_model: trained in place.
        reference_model: the model before training, or None if the loaders' items come
            from `cache_reference`.
        train_loader, val_loader: with `custom_collate_fn`.
        optimizer: over the parameters that learn.
        num_epochs: passes over `train_loader`.
        beta, variant: as in `compute_dpo_loss`.
        eval_freq, eval_iter: updates between two evaluations, and batches in each.
        start_context, tokenizer: a text that is continued after each epoch, if both
            are given.

    Returns:
        Lists with a number for each evaluation: `train_losses`, `val_losses`,
        `train_chosen_rewards`, `train_rejected_rewards`, the same of `val`, `steps`
        (updates done) and `tokens_seen` (tokens of answers).

    Raises:
        ValueError: a loss is NaN or infinite.
    """
    parts = [f"{part}_{what}" for part in ("train", "val") for what in _TRACKED]
    tracking: dict[str, list] = {name: [] for name in [*parts, "steps", "tokens_seen"]}
    step = tokens_seen = 0

    def look(epoch: int) -> None:
        found = evaluate_dpo_loss_loader(
            policy_model,
            reference_model,
            train_loader,
            val_loader,
            beta,
            eval_iter,
            variant,
        )
        for kept, value in zip(parts, found.values()):
            tracking[kept].append(value)
        tracking["steps"].append(step)
        tracking["tokens_seen"].append(tokens_seen)
        train, val = (
            found[f"{part}_chosen_reward"] - found[f"{part}_rejected_reward"]
            for part in ("train", "val")
        )
        print(
            f"epoch {epoch + 1}, step {step}: loss {found['train_loss']:.3f} and "
            f"{found['val_loss']:.3f}, margin {train:.3f} and {val:.3f}",
            flush=True,
        )

    for epoch in range(num_epochs):
        policy_model.train()
        for batch in train_loader:
            if step % eval_freq == 0:
                look(epoch)
            optimizer.zero_grad()
            loss, _, _ = compute_dpo_loss_batch(
                batch, policy_model, reference_model, beta, variant
            )
            check_finite_loss(loss, step)
            loss.backward()
            optimizer.step()
            step += 1
            tokens_seen += sum(int(batch[f"{side}_mask"].sum()) for side in SIDES)
        if start_context and tokenizer is not None:
            place = next(policy_model.parameters()).device
            generate_and_print_sample(policy_model, tokenizer, place, start_context)
    look(num_epochs - 1)
    return tracking


# --- What it has changed -------------------------------------------------------------


@torch.no_grad()
def pair_rewards(
    data_loader: Iterable,
    policy_model: Any,
    reference_model: Any,
    beta: float,
    variant: str = "dpo",
) -> Tensor:
    """The rewards of the chosen and the rejected answer of each pair, (pairs, 2)."""
    rows = []
    for batch in data_loader:
        logprobs = batch_logprobs(batch, policy_model, reference_model, variant)
        policy, reference = torch.stack(logprobs[:2]), torch.stack(logprobs[2:])
        rows.append(beta * (policy - reference).T)  # (B, 2)
    return torch.cat(rows)


@torch.no_grad()
def drift(
    data_loader: Iterable, policy_model: Any, reference_model: Any, side: str = "chosen"
) -> float:
    """How far the model is from the reference: KL divergence, nats per token.

    At each token of the given answers, the model's distribution of the next token is
    compared with the reference's: the mean of sum_v p(v) (log p(v) - log r(v)).
    """
    total, tokens = 0.0, 0
    for batch in data_loader:
        p, r = (
            F.log_softmax(answer_logits(model, batch, side), dim=-1)
            for model in (policy_model, reference_model)
        )
        total += (p.exp() * (p - r)).sum().item()
        tokens += len(p)
    return total / tokens
