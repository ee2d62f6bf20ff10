"""The checks of the exercises in `dsa.ipynb`; see `course.exercises`."""

import numpy as np
import torch

from course.exercises import (
    call,
    check,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_tensor,
    random_tensor,
)

# --- DSA.1 From how many tokens on? ---------------------------------------------------


@check("DSA.1")
def check_DSA_1(attempt):
    for k, row, width in ((10, 50, 20), (2048, 576, 128), (256, 2048, 64), (12, 4, 1)):
        found = expect_number(call(attempt, k, row, width))
        right = k * row // (row - width) + 1
        slips = {
            "the indexer reads its keys of all tokens, too; that must be made up for": (
                k + 1
            ),
            "at that length both read the same number; one token more is needed, or "
            "the next whole number": k * row // (row - width),
            "the indexer's keys are read of all tokens, not of the picked ones": (
                k + k * width // row + 1
            ),
            "this is where the indexer alone reads as much as the picked rows": (
                k * row // width + 1
            ),
            "k picked tokens are k rows": row // (row - width) + 1,
        }
        expect_no_slip(found, right, slips)
        whole = found == int(found)
        expect(whole, "the result is no whole number of tokens; take the first that is")
        expect_close(found, right, f"not right for {(k, row, width)}")
    return "From that length on picking reads less, and one token earlier it does not."


# --- DSA.2 The newest always ----------------------------------------------------------


@check("DSA.2")
def check_DSA_2(attempt):
    cases = [(9, 4, 2, 0), (9, 4, 0, 0), (7, 7, 3, 0), (8, 3, 3, 0), (20, 5, 1, 0)]
    cases += [(S, k, k, S // 3) for k in (1, 2, 4) for S in (12, 15, 40)]
    for S, k, recent, best in cases:
        # large in some cases, so that no fixed number beats them all
        scores = random_tensor(S, seed=S + k) * (1e6 if best else 1)
        highest = scores.abs().max() + 8
        scores[best], scores[-1] = highest, -highest  # the newest is the worst
        given = scores.clone()
        found = call(attempt, given, k, recent)
        expect(
            torch.equal(given, scores),
            "the scores that were given have changed; work on new ones",
        )
        _expect_picks(_places(found), scores, k, recent)
    return "The newest are there whatever their scores, and the best of the others."


def _places(found):
    """Places of any library, in a list, a set, an array or a tensor, as a tensor."""
    parts = found if isinstance(found, tuple) else ()
    expect(
        not any(isinstance(part, torch.Tensor) and part.ndim for part in parts),
        "the result holds several tensors, such as values and places; give the places "
        "alone",
    )
    if isinstance(found, (list, tuple, set, np.ndarray)):
        numbers = np.asarray([*found])
        if numbers.dtype.kind not in "biuf":
            return found
        found = torch.as_tensor(numbers)
    if not isinstance(found, torch.Tensor):
        return found
    expect(
        found.dtype != torch.bool,
        "the result is a mask; give the places of the tokens that are picked",
    )
    expect(
        not found.is_floating_point() or torch.equal(found, found.round()),
        "the result holds scores or fractions; give places, whole numbers",
    )
    return found.long()


def _expect_picks(found, scores, k, recent):
    S = len(scores)
    if isinstance(found, torch.Tensor) and found.ndim == 1:
        twice = len(found) - len(found.unique())
        expect(not twice, "a token is picked twice, so that fewer than k different are")
        expect(
            len(found) != k + recent or not recent,
            "the newest come on top of k others; they count among the k",
        )
    expect_tensor(found, (k,), "places of k tokens")
    expect(bool(((found >= 0) & (found < S)).all()), "a place lies outside of the text")
    old, picks = S - recent, set(found.tolist())
    best = scores[:old].argsort(descending=True)[: k - recent].tolist()
    right = {*best, *range(old, S)}
    worst = scores[:old].argsort()[: k - recent].tolist()
    slips = {
        "the k best are picked, whether new or not": set(
            scores.argsort(descending=True)[:k].tolist()
        ),
        "the oldest are always there instead of the newest": {
            *range(recent),
            *(recent + scores[recent:].argsort(descending=True)[: k - recent]).tolist(),
        },
        "the lowest scores of the others are picked": {*worst, *range(old, S)},
        "the newest k are picked and no other": set(range(S - k, S)),
    }
    for message, outcome in slips.items():
        expect(picks != outcome or outcome == right, message)
    expect(picks == right, f"not the right places for k={k}, recent={recent}")


# --- DSA.3 The loss over the picked ---------------------------------------------------


@check("DSA.3")
def check_DSA_3(attempt):
    for S, k in ((8, 3), (6, 6), (12, 1), (9, 4)):
        scores = 2 * random_tensor(S, seed=S)
        weights = torch.softmax(2 * random_tensor(S, seed=S + 1), dim=0)
        picked = random_tensor(S, seed=S + 2).argsort()[:k]
        given = scores.clone(), weights.clone(), picked.clone()
        found = expect_number(call(attempt, *given))
        p = weights[picked] / weights[picked].sum()
        log_q = torch.log_softmax(scores[picked], dim=0)
        right = (p * (p.log() - log_q)).sum()
        over_all = torch.log_softmax(scores, dim=0)[picked]
        raw = weights[picked]
        slips = {
            "the weights of the picked no longer sum to 1; divide by their sum": (
                raw * (raw.log() - log_q)
            ).sum(),
            "the softmax runs over all tokens; take the picked ones alone": (
                p * (p.log() - over_all)
            ).sum(),
            "the weights do not sum to 1, and the softmax runs over all tokens": (
                raw * (raw.log() - over_all)
            ).sum(),
            "this is the loss over all tokens": (
                weights * (weights.log() - torch.log_softmax(scores, dim=0))
            ).sum(),
            "the two distributions stand in one another's place": (
                log_q.exp() * (log_q - p.log())
            ).sum(),
            "this is the mean over the picked; take the sum": right / k,
            "this is the cross-entropy; the entropy of the weights is missing": -(
                p * log_q
            ).sum(),
            "the sign is turned": -right,
            "a softmax of the weights is taken; they are a distribution already": (
                torch.softmax(raw, 0) * (torch.log_softmax(raw, 0) - log_q)
            ).sum(),
        }
        expect_no_slip(
            found, float(right), {m: float(o) for m, o in slips.items()}, 1e-5
        )
        expect_close(found, float(right), f"not right for {k} of {S} tokens", 1e-5)
    return "It is 0 for a single pick, and right for some and for all."
