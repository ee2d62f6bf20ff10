"""The checks of chapter 6's exercises; `course.exercises` says how a check answers.

A score with a mistake in it is still a number between 0 and 1. So a check computes what
the known slips would give, and says which one the answer agrees with.
"""

import math

import numpy as np
import torch

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_equal,
    expect_no_slip,
    expect_number,
    seeded,
)
from gpt import GPT_CONFIG_124M, GPTModel
from gpt_class_finetune import add_classification_head, freeze_below
from llama import LlamaConfig, LlamaModel

# --- 6.1 What padding costs ----------------------------------------------------------


@check("6.1")
def check_6_1(attempt):
    lengths, batch_size = [3, 9, 4, 4, 6, 2, 5], 3
    found = expect_number(call(attempt, list(lengths), batch_size))
    right = _padding(lengths, batch_size)
    batches = [lengths[i : i + batch_size] for i in range(0, 7, batch_size)]
    computed = sum(len(batch) * max(batch) for batch in batches)
    expect_no_slip(
        found,
        right,
        {
            "this is the share of real tokens; what is asked for is the rest": 1
            - right,
            "padding is divided by the real tokens, not by all that are computed": (
                computed / sum(lengths) - 1
            ),
            "every batch is padded to the longest message of all; each batch has its "
            "own longest": _padding(lengths, batch_size, max(lengths)),
            "the last batch has fewer messages than the others": (
                1 - sum(lengths) / (3 * sum(max(batch) for batch in batches))
            ),
            "the last batch is left out because it is not full": _padding(
                lengths[:6], batch_size
            ),
            "the shares of the batches are averaged; a wide batch weighs more": (
                sum(_padding(b, len(b)) for b in batches) / len(batches)
            ),
            "the messages are sorted first; they come in the order that is given": (
                _padding(sorted(lengths), batch_size)
            ),
            "these are per cent; a share from 0 to 1 is asked for": 100 * right,
            "this is a number of tokens; a share from 0 to 1 is asked for": (
                computed - sum(lengths)
            ),
        },
    )
    expect_close(found, right, "the share for batches of their own length is not right")
    fixed = expect_number(call(attempt, list(lengths), batch_size, 20))
    expect_no_slip(
        fixed, 1 - sum(lengths) / 140, {"`length` is given, and changes nothing": right}
    )
    expect_close(
        fixed, 1 - sum(lengths) / 140, "the share at a fixed length is not right"
    )
    for alike, size, message in (
        ([5, 5], 2, "messages of the same length need no padding"),
        ([4, 1], 1, "one message at a time needs no padding"),
        ([8, 2, 2], 16, "fewer messages than batch_size make one batch"),
    ):
        none = expect_number(call(attempt, list(alike), size))
        expect_close(none, _padding(alike, size), message)
    return "The share of padding is right with and without a fixed length."


def _padding(lengths, batch_size, length=None):
    starts = range(0, len(lengths), batch_size)
    batches = [lengths[start : start + batch_size] for start in starts]
    return 1 - sum(lengths) / sum(len(b) * (length or max(b)) for b in batches)


# --- 6.2 What learns -----------------------------------------------------------------


@check("6.2")
def check_6_2(attempt):
    every, block, norm, head = _sizes(_small_gpt())
    for blocks in (1, 3, 4):
        found = expect_number(call(attempt, _small_gpt(), blocks))
        tensors = freeze_below(_small_gpt(), blocks).parameters()
        expect_no_slip(
            found,
            blocks * block + norm + head,
            {
                "all parameters are counted, those that are frozen too": every,
                "what is frozen is counted, and what learns is not": (
                    every - blocks * block - norm - head
                ),
                "the last norm learns as well": blocks * block + head,
                "the head learns as well": blocks * block + norm,
                "the norm and the head learn as well, not the blocks alone": (
                    blocks * block
                ),
                "the lower blocks are counted; it is the upper ones that learn": (
                    (4 - blocks) * block + norm + head
                ),
                "one block more is counted than learns": (
                    (blocks + 1) * block + norm + head
                ),
                "tensors are counted, not the numbers in them": len(
                    [p for p in tensors if p.requires_grad]
                ),
            },
            atol=0,
        )
        expect_equal(
            round(found),
            blocks * block + norm + head,
            f"with {blocks} of 4 blocks the number is not right",
        )
    none = expect_number(call(attempt, _small_gpt(), 0))
    expect(
        none != 4 * block + norm + head,
        "with trainable_blocks=0 all blocks are counted; a slice that begins at -0 is "
        "the whole list",
    )
    expect_equal(
        round(none), norm + head, "with trainable_blocks=0 the number is not right"
    )
    whole = expect_number(call(attempt, _small_gpt(), None))
    expect_equal(round(whole), every, "None means that everything learns")
    _, block, norm, head = _sizes(_small_llama())
    other = expect_number(call(attempt, _small_llama(), 2))
    expect_equal(
        round(other),
        2 * block + norm + head,
        "for a model built like SmolLM2 the number is not right; count what is in the "
        "model that is given",
    )
    return "The numbers are right for no block, some blocks and the whole model."


_SIZES = {"vocab_size": 31, "context_length": 8, "emb_dim": 12, "n_heads": 3}
_SIZES["tie_weights"] = True


def _small_gpt():
    cfg = {**GPT_CONFIG_124M, **_SIZES, "n_layers": 4}
    return add_classification_head(GPTModel(cfg), 3)


def _small_llama():
    heads = {"n_kv_groups": 1, "head_dim": 4, "hidden_dim": 20, "n_layers": 3}
    rest = {"rope_base": 1e4, "rope_scaling": None, "norm_eps": 1e-5}
    cfg = LlamaConfig(**_SIZES, **heads, **rest)
    return add_classification_head(LlamaModel(cfg), 2)


def _sizes(model):
    """The numbers of parameters of a model, a block, the last norm and the head."""
    parts = model, model.trf_blocks[0], model.final_norm, model.out_head
    return tuple(sum(p.numel() for p in part.parameters()) for part in parts)


# --- 6.3 What the first token knows --------------------------------------------------


@check("6.3")
def check_6_3(attempt):
    train = [([4, 1], 0), ([4, 9], 0), ([4, 7], 1), ([7, 3], 0), ([7, 9, 2], 1)]
    train += [([5, 2], 1), ([5], 1), ([6, 2], 1), ([7], 1), ([6, 8], 1), ([5, 3], 0)]
    test = [([7, 2], 1), ([5, 1], 0), ([6, 7], 0), ([5, 1], 0)]
    test += [([8, 2], 1), ([7, 3], 1), ([5, 3], 0), ([4, 7], 1)]
    test += [([4, 5], 1), ([4, 1], 1), ([8, 2], 0), ([8, 2], 0)]
    found = expect_number(call(attempt, list(train), list(test)))
    # 4 means 0; 5, 6 and 7 mean 1; 8 was never seen: 1, the larger class of training.
    right = 3 / 12
    expect_no_slip(
        found,
        right,
        {
            "messages whose first token was not seen in training are left out": 2 / 9,
            "the rule is made from the test messages, and may use training only": (
                11 / 12
            ),
            "the rule is made from training and test messages together; it may use "
            "training only": 10 / 12,
            "this is the accuracy on the training messages": 8 / 11,
            "the last token is looked at, not the first": 7 / 12,
            "the last message with a first token decides for it; count all of them": (
                9 / 12
            ),
            "the first message with a first token decides for it; count all of them": (
                1 / 12
            ),
            "every message gets the larger class, whatever its first token": 6 / 12,
            "a first token that was never seen gets class 0, not the larger class": (
                4 / 12
            ),
            "these are per cent; a share from 0 to 1 is asked for": 100 * right,
            "this is a number of messages; a share from 0 to 1 is asked for": 3,
        },
    )
    expect_close(found, right, "the accuracy of the rule is not right")
    behind = [([1], 0), ([2, 1], 1), ([3, 1], 1)]
    expect_close(
        expect_number(call(attempt, behind, [([1], 0)])),
        1.0,
        "tokens behind the first are counted as well; the table is one of first tokens",
    )
    # Two first tokens mean 0 and one means 1, which is the class of more messages.
    many = [([1], 0), ([2], 0), ([3], 1), ([3], 1), ([3], 1)]
    expect_close(
        expect_number(call(attempt, many, [([9], 1)])),
        1.0,
        "the larger class is that of more messages, not that of more first tokens",
    )
    uneven = [([2], 1)] * 2 + [([1], 0)] * 5
    for flip in (0, 1):
        one = [(ids, target ^ flip) for ids, target in uneven]
        other = [([2, 2], 1 ^ flip)] * 5 + [([3], 0 ^ flip)]
        expect_close(
            expect_number(call(attempt, one, other)),
            1.0,
            "a first token that was never seen must get the larger class of training",
        )
    return "It is the best table of first tokens that the training messages allow."


# --- 6.4 Two kinds of mistake --------------------------------------------------------


@check("6.4")
def check_6_4(attempt):
    guesses = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0])
    targets = torch.tensor([1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0])
    found = _triple(call(attempt, guesses.clone(), targets.clone()))
    # Three spam found, two false alarms, three missed, four let through rightly.
    precision, recall, of_wanted, accuracy = 3 / 5, 3 / 6, 4 / 6, 7 / 12
    f1 = 2 * precision * recall / (precision + recall)
    expect_no_slip(
        found[0],
        precision,
        {
            "what you call precision is recall, the share of the spam found": recall,
            "the precision is that of class 0; spam is class 1": 4 / 7,
            "what you call precision is accuracy": accuracy,
            "these are per cent; shares from 0 to 1 are asked for": 100 * precision,
            "what you call precision is divided by all messages": 3 / 12,
        },
    )
    expect_close(found[0], precision, "the precision is not right")
    expect_no_slip(
        found[1],
        recall,
        {
            "what you call recall is precision": precision,
            "what you call recall is accuracy": accuracy,
            "the recall is that of class 0; spam is class 1": of_wanted,
            "what you call recall is the share of wanted messages that are lost": 2 / 6,
        },
    )
    expect_close(found[1], recall, "the recall is not right")
    expect_no_slip(
        found[2],
        f1,
        {
            "F1 is the plain mean; it is the harmonic one": (precision + recall) / 2,
            "F1 is the geometric mean; it is the harmonic one": (
                math.sqrt(precision * recall)
            ),
            "F1 lacks a factor of 2": f1 / 2,
            "F1 is the product": precision * recall,
            "what you call F1 is accuracy": accuracy,
        },
    )
    expect_close(found[2], f1, "F1 is not right")
    for guesses, targets, right, what in (
        ([0, 0, 0, 0], [1, 0, 1, 0], (0, 0, 0), "a filter that never says spam"),
        ([1, 0], [0, 1], (0, 0, 0), "a filter with false alarms and no hit"),
        ([1, 0, 0], [0, 0, 0], (0, 0, 0), "a test without any spam"),
        ([1, 1, 1, 1], [0, 1, 0, 0], (1 / 4, 1, 2 / 5), "a filter that only says spam"),
    ):
        case = _triple(call(attempt, torch.tensor(guesses), torch.tensor(targets)))
        expect(
            not any(math.isnan(number) for number in case),
            f"{what} gives NaN; count a share of nothing as 0",
        )
        expect_close(case, right, f"the three numbers are not right for {what}")
    return "Precision, recall and F1 are right, for a silent filter as well."


def _triple(found):
    """Three numbers of the reader's, in a tuple, a list or a tensor."""
    parts = found.tolist() if hasattr(found, "tolist") else found
    triple = isinstance(parts, tuple | list) and len(parts) == 3
    expect(triple, f"the result is {describe(found)}, not three numbers in a tuple")
    return tuple(expect_number(number) for number in parts)


# --- 6.5 No message of grandmother's -------------------------------------------------


@check("6.5")
def check_6_5(attempt):
    eight = [0.05, 0.10, 0.15, 0.20, 0.30, 0.60, 0.70, 0.90]
    seven = [0.60, 0.55, 0.45, 0.35, 0.25, 0.20, 0.15]
    ties = [0.80, 0.80, 0.50, 0.20]
    for wanted, caught, shares in (
        (eight, [0.40, 0.95], (0, 0.125, 0.25, 0.5)),
        (seven, [0.58, 0.50, 0.40, 0.90, 0.30], (0.2, 0.25, 0.45, 0)),
        (ties, [0.80, 0.90, 0.60, 0.30], (0.25, 0.5, 0.75)),
        ([0.2], [0.8], (0,)),
        ([0.2, 0.99900], [0.99905, 0.9995], (0,)),  # as a trained model is sure
    ):
        spam = torch.tensor(wanted + caught)
        targets = torch.tensor([0] * len(wanted) + [1] * len(caught))
        order = torch.randperm(len(spam), generator=seeded(len(wanted)))
        for most in shares:
            _check_threshold(attempt, spam[order], targets[order], most)
    return "The threshold loses no more than it may, and catches what it can."


def _check_threshold(attempt, spam, targets, most):
    found = expect_number(call(attempt, spam.clone(), targets.clone(), most))
    wanted, allowed = int((targets == 0).sum()), int(most * (targets == 0).sum())

    def called(threshold, target):
        # in double, so that a threshold just above a float32 stays above it
        return int(((spam.double() >= threshold) & (targets == target)).sum())

    lost = called(found, 0)
    expect(
        lost <= allowed,
        f"at the threshold {found:.3g} {lost} of {wanted} wanted messages are lost, "
        f"and {allowed} may be, the share {most:g}; a message counts as spam from the "
        "threshold on",
    )
    most_caught = max(
        called(candidate, 1)
        for candidate in [*spam, torch.tensor(2.0)]
        if called(candidate, 0) <= allowed
    )
    caught, there = called(found, 1), int((targets == 1).sum())
    expect(
        caught == most_caught,
        f"with the share {most:g} of {wanted} wanted messages to lose, your threshold "
        f"{found:.3g} catches {caught} of {there} spam messages, and a lower one would "
        "do better",
    )


# --- 6.6 Is 90 % nine times out of ten? ----------------------------------------------


@check("6.6")
def check_6_6(attempt):
    spam = torch.rand(500, generator=seeded(3))
    noise = torch.rand(500, generator=seeded(4))
    wave = 0.3 * torch.sin(20 * spam)  # now too sure, now not sure enough
    targets = (noise < spam + wave).long()
    found = expect_number(call(attempt, spam.clone(), targets.clone(), 5))
    gaps, weights = _gaps(spam, targets, 5)
    right = float((gaps * weights).sum())
    sure = torch.maximum(spam, 1 - spam)
    correct = ((spam >= 0.5).long() == targets).long()
    expect_no_slip(
        found,
        right,
        {
            "the bins are averaged; each weighs as much as it holds messages": (
                gaps.mean().item()
            ),
            "this is the calibration of the likelier class, not that of spam": (
                _error(sure, correct, 5)
            ),
            "this is the mean distance between probability and class, without bins": (
                (spam - targets).abs().mean().item()
            ),
            "the number of bins is not the one that is given": _error(
                spam, targets, 10
            ),
            "the differences keep their signs, and cancel out": abs(
                (spam.mean() - targets.float().mean()).item()
            ),
            "this is the largest distance; the mean of all is asked for": (
                gaps.max().item()
            ),
            "the distances are squared": (gaps**2 * weights).sum().item(),
            "the distances are squared before the mean, and the root is taken after": (
                (gaps**2 * weights).sum().sqrt().item()
            ),
            "the distances are added up without a weight": gaps.sum().item(),
            "these are per cent; a share from 0 to 1 is asked for": 100 * right,
            "the middle of each group stands in for the mean probability in it": (
                _error(((spam * 5).floor() + 0.5) / 5, targets, 5)
            ),
        },
        atol=1e-5,
    )
    expect_close(found, right, "the calibration error is not right", atol=1e-5)
    for probabilities, classes, bins, message in (
        ([0.25] * 4 + [0.75] * 4, [1, 0, 0, 0, 1, 1, 1, 0], 4, "a calibrated forecast"),
        ([0.0, 0.05, 0.5, 0.5], [1, 0, 0, 1], 10, "a probability of exactly 0"),
        ([1.0, 0.95, 0.5, 0.5], [0, 1, 0, 1], 10, "a probability of exactly 1"),
        ([0.0, 1.0], [0, 1], 10, "a forecast that is certain and right"),
        ([0.2, 0.4, 0.9], [0, 1, 1], 1, "a single group"),
    ):
        case = torch.tensor(probabilities), torch.tensor(classes)
        expect_close(
            expect_number(call(attempt, case[0].clone(), case[1].clone(), bins)),
            _error(*case, bins),
            f"the error is not right for {message}",
            atol=1e-5,
        )
    return "The gap between promise and fact is right, bin by bin."


def _gaps(spam, targets, bins):
    """The distance in each group that holds messages, and its share of the messages."""
    group = (spam * bins).ceil().clamp(min=1)
    inside = [group == number for number in group.unique()]
    gaps = [(spam[i].mean() - targets[i].float().mean()).abs() for i in inside]
    return torch.stack(gaps), torch.stack([i.float().mean() for i in inside])


def _error(spam, targets, bins):
    gaps, weights = _gaps(spam, targets, bins)
    return float((gaps * weights).sum())


# --- 6.7 Ask all of them -------------------------------------------------------------


@check("6.7")
def check_6_7(attempt):
    logits = torch.randn(4, 6, 3, generator=seeded(1))
    mask = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]]
    ).bool()
    found = _as_tensor(call(attempt, logits.clone(), mask.clone()))
    right = torch.stack([row[real].mean(dim=0) for row, real in zip(logits, mask)])
    zeroed = logits * mask[..., None]
    lengths = mask.sum(dim=1).tolist()
    last = [int(real.nonzero().max()) for real in mask]
    expect_no_slip(
        found,
        right,
        {
            "padding is averaged with the rest": logits.mean(dim=1),
            "padding is set to 0, but still counted in the number of tokens": (
                zeroed.mean(dim=1)
            ),
            "the logits are added up, not averaged": zeroed.sum(dim=1),
            "this is the last position": logits[:, -1],
            "this is the last real token": logits[range(4), last],
            "the mean goes over the messages of the batch": logits.mean(dim=0),
            "padding is looked for on the right only; it may be on either side": (
                torch.stack([row[:n].mean(dim=0) for row, n in zip(logits, lengths)])
            ),
            "all are divided by the same number; each message has its own": (
                zeroed.sum(dim=1) / (mask.sum() / 4)
            ),
            "this is the largest logit of each class; the mean is asked for": (
                logits.masked_fill(~mask[..., None], -math.inf).amax(dim=1)
            ),
            "these are probabilities; average the logits as they are": (
                torch.stack(
                    [r[m].softmax(dim=-1).mean(dim=0) for r, m in zip(logits, mask)]
                )
            ),
            "the padding is averaged, and the real tokens are not": (
                torch.stack([r[~m].mean(dim=0) for r, m in zip(logits, mask)])
            ),
        },
    )
    expect_close(found, right, "the mean over the real tokens is not right")
    expect_close(
        _as_tensor(call(attempt, logits.clone(), mask.long())),
        right,
        "a mask of 0 and 1 must do as well",
    )
    expect_close(
        _as_tensor(call(attempt, logits[1:2].clone(), mask[1:2].clone())),
        right[1:2],
        "a batch of one message is not right",
    )
    return "Each message is the mean of its real tokens, whatever surrounds it."


def _as_tensor(found):
    """Numbers in lists or arrays as a tensor; everything else is left as it is."""
    if isinstance(found, torch.Tensor):
        return found
    try:
        return torch.tensor(np.array(found).tolist())
    except (RuntimeError, TypeError, ValueError):
        return found
