"""The checks of chapter 6's exercises; `course.exercises` says how a check answers.

A score with a mistake in it is still a number between 0 and 1. So a check computes what
the known slips would give, and says which one the answer agrees with.
"""

import math
from numbers import Real

import torch

from course.exercises import (
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_equal,
    expect_no_slip,
)
from gpt import GPT_CONFIG_124M, GPTModel
from gpt_class_finetune import add_classification_head, freeze_below


def _expect_number(found):
    is_number = isinstance(found, Real) and not isinstance(found, bool)
    expect(is_number, f"the result is {describe(found)}, where a number is asked for")
    return found


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- 6.1 What padding costs ----------------------------------------------------------


@check("6.1")
def check_6_1(attempt):
    lengths, batch_size = [3, 9, 4, 4, 6, 2, 5], 3
    found = _expect_number(call(attempt, lengths, batch_size))
    real = sum(lengths)
    batches = [lengths[i : i + batch_size] for i in range(0, 7, batch_size)]
    computed = sum(len(batch) * max(batch) for batch in batches)
    to_longest = len(lengths) * max(lengths)
    right = 1 - real / computed
    expect_no_slip(
        found,
        right,
        {
            "this is the share of real tokens; what is asked for is the rest": (
                real / computed
            ),
            "padding is divided by the real tokens, not by all that are computed": (
                computed / real - 1
            ),
            "every batch is padded to the longest message of all; each batch has its "
            "own longest": 1 - real / to_longest,
            "the last batch has fewer messages than the others": (
                1 - real / (3 * sum(max(batch) for batch in batches))
            ),
            "the shares of the batches are averaged; a wide batch weighs more": (
                sum(1 - sum(b) / (len(b) * max(b)) for b in batches) / len(batches)
            ),
        },
    )
    expect_close(found, right, "the share for batches of their own length is not right")
    fixed = _expect_number(call(attempt, lengths, batch_size, 20))
    expect_no_slip(
        fixed, 1 - real / 140, {"`length` is given, and changes nothing": right}
    )
    expect_close(fixed, 1 - real / 140, "the share at a fixed length is not right")
    none = call(attempt, [5, 5], 2)
    expect_close(none, 0.0, "messages of the same length need no padding")
    return "The share of padding is right with and without a fixed length."


# --- 6.2 What learns -----------------------------------------------------------------


@check("6.2")
def check_6_2(attempt):
    cfg = {
        **GPT_CONFIG_124M,
        "vocab_size": 31,
        "context_length": 8,
        "emb_dim": 12,
        "n_heads": 3,
        "n_layers": 4,
        "tie_weights": True,
    }
    model = add_classification_head(GPTModel(cfg), 3)
    every = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.trf_blocks[0].parameters())
    norm, head = 2 * 12, 3 * 12 + 3
    for blocks in (1, 0, 3):
        found = _expect_number(call(attempt, model, blocks))
        expect_no_slip(
            found,
            blocks * block + norm + head,
            {
                "all parameters are counted, those that are frozen too": every,
                "the last norm learns as well": blocks * block + head,
                "the head learns as well": blocks * block + norm,
                "the lower blocks are counted; it is the upper ones that learn": (
                    (4 - blocks) * block + norm + head
                ),
                "tensors are counted, not the numbers in them": len(
                    [
                        p
                        for p in freeze_below(model, blocks).parameters()
                        if p.requires_grad
                    ]
                ),
            },
            atol=0,
        )
        expect_equal(
            int(found),
            blocks * block + norm + head,
            f"with {blocks} blocks the number is not right",
        )
    whole = _expect_number(call(attempt, model, None))
    expect_equal(int(whole), every, "None means that everything learns")
    return "The numbers are right for no block, some blocks and the whole model."


# --- 6.3 What the first token knows --------------------------------------------------


@check("6.3")
def check_6_3(attempt):
    train = [([4, 1], 0), ([4, 9, 9], 0), ([4, 7], 1)]
    train += [([5, 1], 1), ([5], 1), ([6, 2], 1)]
    test = [([4, 9], 0), ([4, 4], 1), ([5, 2], 1), ([8, 1], 1), ([6, 1], 0)]
    test += [([8, 5], 0), ([8, 7], 0)]
    found = _expect_number(call(attempt, train, test))
    # 4 means 0; 5 and 6 mean 1; 8 was never seen, so 1, the larger class of training.
    right = 3 / 7
    expect_no_slip(
        found,
        right,
        {
            "messages whose first token was not seen in training are left out": 2 / 4,
            "the rule is made from the test messages, and may use training only": 5 / 7,
            "this is the accuracy on the training messages": 5 / 6,
            "the last token is looked at, not the first": 4 / 7,
        },
    )
    expect_close(found, right, "the accuracy of the rule is not right")
    uneven = [([2], 1)] * 2 + [([1], 0)] * 5
    for flip in (False, True):
        one = [(ids, target ^ flip) for ids, target in uneven]
        other = [([2, 2], 1 ^ flip), ([3], 0 ^ flip), ([3], 0 ^ flip)]
        expect_close(
            call(attempt, one, other),
            1.0,
            "a first token that was never seen must get the larger class of training",
        )
    return "It is the best that a reader of first tokens can learn."


# --- 6.4 Two kinds of mistake --------------------------------------------------------


@check("6.4")
def check_6_4(attempt):
    guesses = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0])
    targets = torch.tensor([1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0])
    found = call(attempt, guesses, targets)
    triple = isinstance(found, tuple) and len(found) == 3
    expect(triple, f"the result is {describe(found)}, not three numbers in a tuple")
    found = tuple(float(number) for number in found)
    # Three spam found, two false alarms, three missed, four let through rightly.
    precision, recall = 3 / 5, 3 / 6
    right = (precision, recall, 2 * precision * recall / (precision + recall))
    expect_no_slip(
        found[0],
        right[0],
        {
            "what you call precision is recall, the share of the spam found": recall,
            "the precision is that of class 0; spam is class 1": 4 / 7,
            "what you call precision is accuracy": 7 / 12,
        },
    )
    expect_close(found[0], right[0], "the precision is not right")
    expect_no_slip(
        found[1],
        right[1],
        {"what you call recall is precision": precision},
    )
    expect_close(found[1], right[1], "the recall is not right")
    expect_no_slip(
        found[2],
        right[2],
        {
            "F1 is the plain mean; it is the harmonic one": (precision + recall) / 2,
            "F1 lacks a factor of 2": right[2] / 2,
            "F1 is the product": precision * recall,
        },
    )
    expect_close(found[2], right[2], "F1 is not right")
    nothing = call(
        attempt, torch.zeros(4, dtype=torch.long), torch.tensor([1, 0, 1, 0])
    )
    nothing = tuple(float(number) for number in nothing)
    expect(
        not any(math.isnan(number) for number in nothing),
        "a filter that never says spam gives NaN; count its precision as 0",
    )
    expect_equal(nothing, (0.0, 0.0, 0.0), "a filter that never says spam scores 0")
    return "Precision, recall and F1 are right, for a silent filter as well."


# --- 6.5 No message of grandmother's -------------------------------------------------


@check("6.5")
def check_6_5(attempt):
    spam = torch.tensor([0.05, 0.10, 0.15, 0.20, 0.30, 0.60, 0.70, 0.90, 0.40, 0.95])
    targets = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])

    def lost(threshold):
        return int(((spam >= threshold) & (targets == 0)).sum())

    for most in (0, 0.125, 0.25, 0.5):
        found = _expect_number(call(attempt, spam, targets, most))
        allowed = int(most * 8)
        number = lost(found)
        expect(
            number <= allowed,
            f"at the threshold {found:.3g} {number} of 8 wanted messages are lost, and "
            f"{allowed} may be; a message counts as spam from the threshold on",
        )
        best = min(
            (t for t in [*spam.tolist(), 1.1] if lost(t) <= allowed),
            key=lambda t: t,
        )
        caught = int(((spam >= found) & (targets == 1)).sum())
        most_caught = int(((spam >= best) & (targets == 1)).sum())
        expect(
            caught == most_caught,
            f"with {most:g} of the wanted messages to lose, your threshold {found:.3g} "
            f"catches {caught} of 2 spam messages, and a lower one would do better",
        )
    easy = call(attempt, torch.tensor([0.2, 0.8]), torch.tensor([0, 1]), 0.0)
    expect(
        0.2 < easy <= 0.8,
        "where the classes are apart, the threshold must lie between them",
    )
    return "The threshold loses no more than it may, and catches what it can."


# --- 6.6 Is 90 % nine times out of ten? ----------------------------------------------


@check("6.6")
def check_6_6(attempt):
    spam = torch.rand(500, generator=_seeded(3))
    noise = torch.rand(500, generator=_seeded(4))
    wave = 0.3 * torch.sin(20 * spam)  # now too sure, now not sure enough
    targets = (noise < spam + wave).long()
    found = float(call(attempt, spam, targets, 5))

    def gap(confidence, hits, weigh=True, part=5):
        total = 0.0
        for i in range(part):
            inside = (confidence > i / part) & (confidence <= (i + 1) / part)
            if inside.any():
                apart = (confidence[inside].mean() - hits[inside].float().mean()).abs()
                total += apart.item() * (inside.float().mean().item() if weigh else 1)
        return total if weigh else total / part

    right = gap(spam, targets)
    sure = torch.maximum(spam, 1 - spam)
    correct = ((spam >= 0.5).long() == targets).long()
    expect_no_slip(
        found,
        right,
        {
            "the bins are averaged; each weighs as much as it holds messages": gap(
                spam, targets, weigh=False
            ),
            "this is the calibration of the likelier class, not that of spam": (
                gap(sure, correct)
            ),
            "this is the mean distance between probability and class, without bins": (
                (spam - targets).abs().mean().item()
            ),
            "the number of bins is not the one that is given": gap(
                spam, targets, part=10
            ),
            "the differences keep their signs, and cancel out": abs(
                (spam.mean() - targets.float().mean()).item()
            ),
        },
        atol=1e-5,
    )
    expect_close(found, right, "the calibration error is not right", atol=1e-5)
    perfect = torch.tensor([0.25] * 4 + [0.75] * 4)
    hits = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0])
    expect_close(
        call(attempt, perfect, hits, 4), 0.0, "a calibrated forecast has an error of 0"
    )
    expect_close(
        call(attempt, torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), 10),
        0.0,
        "probabilities of exactly 0 and 1 must fall into a bin, too",
    )
    return "The gap between promise and fact is right, bin by bin."


# --- 6.7 Ask all of them -------------------------------------------------------------


@check("6.7")
def check_6_7(attempt):
    logits = torch.randn(3, 6, 2, generator=_seeded(1))
    mask = torch.tensor(
        [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.bool
    )
    found = call(attempt, logits, mask)
    right = torch.stack([row[real].mean(dim=0) for row, real in zip(logits, mask)])
    zeroed = logits * mask[..., None]
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
            "the mean goes over the messages of the batch": logits.mean(dim=0),
        },
    )
    expect_close(found, right, "the mean over the real tokens is not right")
    expect_close(
        call(attempt, logits, mask.long()), right, "a mask of 0 and 1 must do as well"
    )
    return "Each message is the mean of its real tokens, whatever surrounds it."
