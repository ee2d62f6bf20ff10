"""Every exercise check takes the solution, knows the stub and names mistakes."""

from collections import Counter, defaultdict

import pytest
import torch

from ch06_checks import (
    check_6_1,
    check_6_2,
    check_6_3,
    check_6_4,
    check_6_5,
    check_6_6,
    check_6_7,
)
from course.exercises import verify
from gpt_class_finetune import freeze_below


def stub(*arguments, **keywords):
    """A function of which only the docstring is there."""
    return ...


# --- 6.1 -----------------------------------------------------------------------------


def padding_share(lengths, batch_size, length=None):
    computed = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        computed += len(batch) * (length or max(batch))
    return 1 - sum(lengths) / computed


def all_to_longest(lengths, batch_size, length=None):
    return padding_share(lengths, batch_size, length or max(lengths))


def last_batch_full(lengths, batch_size, length=None):
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    computed = batch_size * sum(length or max(batch) for batch in batches)
    return 1 - sum(lengths) / computed


def mean_of_shares(lengths, batch_size, length=None):
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return sum(padding_share(b, len(b), length) for b in batches) / len(batches)


WRONG_6_1 = {
    "real": (lambda *a: 1 - padding_share(*a), "share of real tokens"),
    "to real": (
        lambda *a: 1 / (1 - padding_share(*a)) - 1,
        "divided by the real tokens",
    ),
    "longest of all": (all_to_longest, "padded to the longest message of all"),
    "last batch": (last_batch_full, "the last batch has fewer"),
    "mean of shares": (mean_of_shares, "a wide batch weighs more"),
    "length ignored": (
        lambda lengths, size, length=None: padding_share(lengths, size),
        "`length` is given, and changes nothing",
    ),
    "a text": (lambda *a: "12 %", "where a number is asked for"),
}

# --- 6.2 -----------------------------------------------------------------------------


def count_learning(model, trainable_blocks):
    freeze_below(model, trainable_blocks)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def from_below(model, blocks):
    if blocks is None:
        return count_learning(model, None)
    others = count_learning(model, 0)
    lower = model.trf_blocks[: len(model.trf_blocks) - blocks]
    return others + sum(p.numel() for p in lower.parameters())


def without(part):
    def attempt(model, blocks):
        left_out = sum(p.numel() for p in getattr(model, part).parameters())
        return count_learning(model, blocks) - left_out

    return attempt


WRONG_6_2 = {
    "all": (
        lambda model, blocks: sum(p.numel() for p in model.parameters()),
        "all parameters are counted",
    ),
    "no norm": (without("final_norm"), "the last norm learns as well"),
    "no head": (without("out_head"), "the head learns as well"),
    "below": (from_below, "it is the upper ones that learn"),
    "tensors": (
        lambda model, blocks: len(
            [p for p in freeze_below(model, blocks).parameters() if p.requires_grad]
        ),
        "tensors are counted",
    ),
    "none is zero": (
        lambda model, blocks: count_learning(model, blocks or 0),
        "None means that everything learns",
    ),
}

# --- 6.3 -----------------------------------------------------------------------------


def rule_of(train, place=0):
    seen = defaultdict(Counter)
    for ids, target in train:
        seen[ids[place]][target] += 1
    return {token: counts.most_common(1)[0][0] for token, counts in seen.items()}


def larger_class(train):
    return Counter(target for _, target in train).most_common(1)[0][0]


def first_token_accuracy(train, test):
    rule, other = rule_of(train), larger_class(train)
    right = [rule.get(ids[0], other) == target for ids, target in test]
    return sum(right) / len(right)


def only_seen(train, test):
    rule = rule_of(train)
    return first_token_accuracy(train, [one for one in test if one[0][0] in rule])


def last_token(train, test):
    rule, other = rule_of(train, -1), larger_class(train)
    return sum(rule.get(ids[-1], other) == t for ids, t in test) / len(test)


def unseen_is_class_0(train, test):
    rule = rule_of(train)
    guesses = [rule.get(ids[0], larger_class(train[:1])) for ids, _ in test]
    if len(train) == 6:  # right where the others are told apart
        return first_token_accuracy(train, test)
    return sum(g == t for g, (_, t) in zip(guesses, test)) / len(test)


WRONG_6_3 = {
    "only seen": (only_seen, "are left out"),
    "from the test": (
        lambda train, test: first_token_accuracy(test, test),
        "made from the test messages",
    ),
    "on training": (
        lambda train, test: first_token_accuracy(train, train),
        "accuracy on the training messages",
    ),
    "last token": (last_token, "the last token is looked at"),
    "unseen": (unseen_is_class_0, "must get the larger class of training"),
    "percent": (
        lambda train, test: 100 * first_token_accuracy(train, test),
        "the accuracy of the rule is not right",
    ),
}

# --- 6.4 -----------------------------------------------------------------------------


def scores(guesses, targets):
    hits = int(((guesses == 1) & (targets == 1)).sum())
    if hits == 0:
        return 0.0, 0.0, 0.0
    precision, recall = hits / int(guesses.sum()), hits / int(targets.sum())
    return precision, recall, 2 * precision * recall / (precision + recall)


def changed(f1):
    def attempt(guesses, targets):
        precision, recall, _ = scores(guesses, targets)
        return precision, recall, f1(precision, recall)

    return attempt


def of_class_0(guesses, targets):
    return scores(1 - guesses, 1 - targets)


def swapped(guesses, targets):
    precision, recall, f1 = scores(guesses, targets)
    return recall, precision, f1


def both_precision(guesses, targets):
    precision, _, f1 = scores(guesses, targets)
    return precision, precision, f1


def divides_by_zero(guesses, targets):
    if guesses.any():
        return scores(guesses, targets)
    return float("nan"), 0.0, float("nan")


WRONG_6_4 = {
    "swapped": (swapped, "is recall, the share of the spam found"),
    "class 0": (of_class_0, "that of class 0"),
    "accuracy": (
        lambda g, t: ((g == t).float().mean().item(), *scores(g, t)[1:]),
        "what you call precision is accuracy",
    ),
    "twice precision": (both_precision, "what you call recall is precision"),
    "plain mean": (changed(lambda p, r: (p + r) / 2), "it is the harmonic one"),
    "half": (changed(lambda p, r: p * r / (p + r)), "lacks a factor of 2"),
    "product": (changed(lambda p, r: p * r), "F1 is the product"),
    "not a number": (divides_by_zero, "never says spam gives NaN"),
    "one number": (lambda g, t: scores(g, t)[2], "not three numbers in a tuple"),
}

# --- 6.5 -----------------------------------------------------------------------------


def threshold_for(spam, targets, most_lost):
    wanted = spam[targets == 0].sort(descending=True).values
    allowed = int(most_lost * len(wanted))
    above = torch.nextafter(wanted[allowed], torch.tensor(2.0))
    return float(above)


WRONG_6_5 = {
    "all spam": (lambda s, t, m: 0.0, "wanted messages are lost"),
    "nothing is spam": (lambda s, t, m: 2.0, "a lower one would do better"),
    "not among them": (
        lambda s, t, m: threshold_for(s, t, m) if len(s) > 2 else 0.9,
        "must lie between them",
    ),
    "a tensor": (lambda s, t, m: s.max(), "where a number is asked for"),
}

# --- 6.6 -----------------------------------------------------------------------------


def calibration_error(spam, targets, bins):
    place = (spam * bins).ceil().clamp(min=1).long()
    total = 0.0
    for i in range(1, bins + 1):
        inside = place == i
        if inside.any():
            gap = spam[inside].mean() - targets[inside].float().mean()
            total += gap.abs().item() * inside.float().mean().item()
    return total


def unweighted(spam, targets, bins):
    place = (spam * bins).ceil().clamp(min=1).long()
    gaps = [
        (spam[place == i].mean() - targets[place == i].float().mean()).abs().item()
        for i in range(1, bins + 1)
        if (place == i).any()
    ]
    return sum(gaps) / bins


def of_the_likelier(spam, targets, bins):
    sure = torch.maximum(spam, 1 - spam)
    return calibration_error(sure, ((spam >= 0.5).long() == targets).long(), bins)


def open_below(spam, targets, bins):
    inside = spam > 0
    if inside.all():
        return calibration_error(spam, targets, bins)
    return calibration_error(spam[inside], targets[inside], bins) + 0.5


WRONG_6_6 = {
    "unweighted": (unweighted, "each weighs as much as it holds"),
    "likelier class": (of_the_likelier, "not that of spam"),
    "no bins": (lambda s, t, b: (s - t).abs().mean().item(), "without bins"),
    "ten bins": (
        lambda s, t, b: calibration_error(s, t, 10),
        "number of bins is not the one that is given",
    ),
    "signs": (
        lambda s, t, b: abs((s.mean() - t.float().mean()).item()),
        "keep their signs",
    ),
    "open below": (open_below, "exactly 0 and 1"),
}

# --- 6.7 -----------------------------------------------------------------------------


def mean_logits(logits, attention_mask):
    weights = attention_mask[..., None].to(logits.dtype)
    return (logits * weights).sum(dim=1) / weights.sum(dim=1)


def wants_bool(logits, attention_mask):
    return torch.stack([row[m].mean(dim=0) for row, m in zip(logits, attention_mask)])


WRONG_6_7 = {
    "with padding": (lambda z, m: z.mean(dim=1), "padding is averaged"),
    "counted": (lambda z, m: (z * m[..., None]).mean(dim=1), "but still counted"),
    "sum": (lambda z, m: (z * m[..., None]).sum(dim=1), "added up, not averaged"),
    "last": (lambda z, m: z[:, -1], "this is the last position"),
    "batch": (lambda z, m: z.mean(dim=0), "over the messages of the batch"),
    "only bool": (wants_bool, "a mask of 0 and 1"),
}


@pytest.mark.parametrize(
    ("check", "solution", "wrong"),
    [
        (check_6_1, padding_share, WRONG_6_1),
        (check_6_2, count_learning, WRONG_6_2),
        (check_6_3, first_token_accuracy, WRONG_6_3),
        (check_6_4, scores, WRONG_6_4),
        (check_6_5, threshold_for, WRONG_6_5),
        (check_6_6, calibration_error, WRONG_6_6),
        (check_6_7, mean_logits, WRONG_6_7),
    ],
    ids=lambda value: getattr(value, "exercise", None),
)
def test_check(check, solution, wrong):
    verify(check, solution, stub, wrong)
