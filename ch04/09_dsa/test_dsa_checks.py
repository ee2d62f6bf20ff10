"""Every exercise check takes the solution, knows the stub and names mistakes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from course.exercises import verify
from dsa_checks import check_DSA_1, check_DSA_2, check_DSA_3


def stub(*arguments, **keywords):
    return ...


# --- DSA.1 ---------------------------------------------------------------------------


def break_even(top_k, row, index_dim):
    return top_k * row // (row - index_dim) + 1


def by_search(top_k, row, index_dim):
    tokens = 1
    while tokens * row <= tokens * index_dim + top_k * row:
        tokens += 1
    return np.int64(tokens)


WRONG_DSA_1 = {
    "k": (lambda k, row, width: k + 1, "that must be made up for"),
    "equal": (lambda k, row, width: k * row // (row - width), "one token more"),
    "picked": (lambda k, row, width: k + k * width // row + 1, "not of the picked"),
    "alone": (lambda k, row, width: k * row // width + 1, "the indexer alone"),
    "one row": (lambda k, row, width: row // (row - width) + 1, "are k rows"),
    "fraction": (lambda k, row, width: k * row / (row - width) + 0.01, "no whole"),
    "none": (lambda k, row, width: 0, "not right for"),
}


def test_DSA_1():
    verify(check_DSA_1, break_even, stub, WRONG_DSA_1)
    check_DSA_1(by_search)


# --- DSA.2 ---------------------------------------------------------------------------


def pick_with_recent(scores, k, recent):
    wanted = scores.clone()
    wanted[len(scores) - recent :] = torch.inf
    return wanted.topk(k).indices


def by_parts(scores, k, recent):
    old = len(scores) - recent
    best = sorted(range(old), key=lambda place: -scores[place])[: k - recent]
    return [*range(old, len(scores)), *best]


def in_place(scores, k, recent):
    scores[len(scores) - recent :] = torch.inf
    return scores.topk(k).indices


def twice(scores, k, recent):
    old, S = len(scores) - recent, len(scores)
    best = scores.clone()
    best[-1] = 99.0
    return torch.cat((torch.arange(old, S), best.topk(k - recent).indices))


def oldest(scores, k, recent):
    wanted = scores.clone()
    wanted[:recent] = torch.inf
    return wanted.topk(k).indices


def lowest(scores, k, recent):
    wanted = -scores
    wanted[len(scores) - recent :] = torch.inf
    return wanted.topk(k).indices


def on_top(scores, k, recent):
    old = len(scores) - recent
    most = min(k, old)
    return torch.cat((scores[:old].topk(most).indices, torch.arange(old, len(scores))))


def raised(add):
    """A wrong answer: the newest are raised by a number that need not be enough."""

    def attempt(scores, k, recent):
        wanted = scores.clone()
        wanted[len(scores) - recent :] += add
        return wanted.topk(k).indices

    return attempt


def set_to(number):
    """A wrong answer: the newest get a score that need not be the highest."""

    def attempt(scores, k, recent):
        wanted = scores.clone()
        wanted[len(scores) - recent :] = scores.max() if number is None else number
        return wanted.topk(k).indices

    return attempt


def mask(scores, k, recent):
    picked = torch.zeros(len(scores), dtype=torch.bool)
    picked[pick_with_recent(scores, k, recent)] = True
    return picked


def overlapping(scores, k, recent):
    newest = torch.arange(len(scores) - recent, len(scores))
    return torch.cat((newest, scores.topk(k - recent).indices))


ALSO_WRONG_DSA_2 = {  # a message may be that of another mistake
    "set to 10": (set_to(10.0), "whether new or not"),
    "set to 10,000": (set_to(1e4), "whether new or not"),
    "raised by 100": (raised(100), "whether new or not"),
    "a tie": (set_to(None), "not the right places"),
    "list of a mask": (lambda s, k, r: mask(s, k, r).tolist(), "is a mask"),
    "list of scores": (lambda s, k, r: s.topk(k).values.tolist(), "holds scores"),
    "fractions": (
        lambda s, k, r: [place + 0.9 for place in pick_with_recent(s, k, r).tolist()],
        "scores or fractions",
    ),
    "overlapping": (overlapping, "picked twice"),
}
WRONG_DSA_2 = {
    "mask": (mask, "is a mask"),
    "both parts": (lambda s, k, r: s.topk(k), "values and places"),
    "best": (lambda s, k, r: s.topk(k).indices, "whether new or not"),
    "oldest": (oldest, "the oldest are always there"),
    "lowest": (lowest, "the lowest scores"),
    "newest": (lambda s, k, r: torch.arange(len(s) - k, len(s)), "and no other"),
    "in place": (in_place, "have changed"),
    "on top": (on_top, "on top of k others"),
    "twice": (twice, "picked twice"),
    "scores": (lambda s, k, r: s.topk(k).values, "give places"),
    "outside": (lambda s, k, r: torch.arange(k) + len(s), "outside of the text"),
    "first": (lambda s, k, r: torch.arange(k) + 1 - (k == len(s)), "not the right"),
    "words": (lambda s, k, r: "first", "where a tensor is asked for"),
}


def test_DSA_2():
    verify(check_DSA_2, pick_with_recent, stub, WRONG_DSA_2)
    for wrong, words in ALSO_WRONG_DSA_2.values():
        with pytest.raises(AssertionError, match=words):
            check_DSA_2(wrong)
    check_DSA_2(by_parts)
    check_DSA_2(lambda s, k, r: pick_with_recent(s, k, r).int())
    check_DSA_2(lambda s, k, r: pick_with_recent(s, k, r).numpy())
    check_DSA_2(lambda s, k, r: pick_with_recent(s, k, r).double())
    check_DSA_2(lambda s, k, r: list(pick_with_recent(s, k, r)))
    check_DSA_2(lambda s, k, r: set(by_parts(s, k, r)))
    check_DSA_2(lambda s, k, r: [np.int64(place) for place in by_parts(s, k, r)])


# --- DSA.3 ---------------------------------------------------------------------------


def loss_of_picked(scores, weights, picked):
    target = weights[picked] / weights[picked].sum()
    log_found = torch.log_softmax(scores[picked], dim=0)
    return (target * (target.log() - log_found)).sum()


def by_torch(scores, weights, picked):
    target = F.normalize(weights[picked], p=1, dim=0)
    return F.kl_div(scores[picked].log_softmax(0), target, reduction="sum").item()


def raw(scores, weights, picked):
    target = weights[picked]
    return (target * (target.log() - scores[picked].log_softmax(0))).sum()


def softmax_of_all(scores, weights, picked):
    target = weights[picked] / weights[picked].sum()
    return (target * (target.log() - scores.log_softmax(0)[picked])).sum()


def both(scores, weights, picked):
    target = weights[picked]
    return (target * (target.log() - scores.log_softmax(0)[picked])).sum()


def exchanged(scores, weights, picked):
    target = (weights[picked] / weights[picked].sum()).log()
    found = scores[picked].log_softmax(0)
    return (found.exp() * (found - target)).sum()


def cross_entropy(scores, weights, picked):
    target = weights[picked] / weights[picked].sum()
    return -(target * scores[picked].log_softmax(0)).sum()


def softmax_of_weights(scores, weights, picked):
    target = weights[picked].log_softmax(0)
    return (target.exp() * (target - scores[picked].log_softmax(0))).sum()


WRONG_DSA_3 = {
    "raw weights": (raw, "no longer sum to 1; divide"),
    "softmax of all": (softmax_of_all, "take the picked ones alone"),
    "both": (both, "do not sum to 1, and"),
    "all": (
        lambda s, w, p: (w * (w.log() - s.log_softmax(0))).sum(),
        "the loss over all tokens",
    ),
    "exchanged": (exchanged, "in one another's place"),
    "mean": (lambda s, w, p: loss_of_picked(s, w, p) / len(p), "the mean over"),
    "cross-entropy": (cross_entropy, "the entropy of the weights"),
    "sign": (lambda s, w, p: -loss_of_picked(s, w, p), "the sign is turned"),
    "softmax of weights": (softmax_of_weights, "a distribution already"),
    "other": (lambda s, w, p: 0.5 + loss_of_picked(s, w, p), "not right for"),
    "words": (lambda s, w, p: "zero", "not a number"),
}


def test_DSA_3():
    verify(check_DSA_3, loss_of_picked, stub, WRONG_DSA_3)
    check_DSA_3(by_torch)
    check_DSA_3(lambda s, w, p: loss_of_picked(s.float(), w.float(), p))
