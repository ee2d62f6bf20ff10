"""Every exercise check takes the solution, knows the stub and names mistakes.

`RIGHT_...` are right answers written otherwise, `WRONG_...` wrong ones, each with the
part of the message that it must get.
"""

import math
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from ch06_checks import (
    check_6_1,
    check_6_2,
    check_6_3,
    check_6_4,
    check_6_5,
    check_6_6,
    check_6_7,
)
from course.exercises import answer, verify
from frozen_features import collate_messages
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
    "a text": (lambda *a: "12 %", "not a number"),
    "per cent": (lambda *a: 100 * padding_share(*a), "these are per cent"),
    "tokens": (
        lambda lengths, *a: (
            sum(lengths) / (1 - padding_share(lengths, *a)) - sum(lengths)
        ),
        "this is a number of tokens",
    ),
    "sorted": (
        lambda lengths, *a: padding_share(sorted(lengths), *a),
        "the messages are sorted first",
    ),
    "last left out": (
        lambda lengths, size, length=None: padding_share(
            lengths[: len(lengths) // size * size] or lengths, size, length
        ),
        "because it is not full",
    ),
    "largest batch": (
        lambda lengths, size, length=None: (
            padding_share(lengths, size, length)
            if size <= len(lengths)
            else padding_share(lengths, 1, length)
        ),
        "make one batch",
    ),
}


def padding_in_numpy(lengths, batch_size, length=None):
    lengths = np.array(lengths)
    rows = np.array_split(lengths, range(batch_size, len(lengths), batch_size))
    widths = np.concatenate([np.full(len(row), length or row.max()) for row in rows])
    return (widths - lengths).sum() / widths.sum()


def padding_token_by_token(lengths, batch_size, length=None):
    real = padding = 0
    while lengths:
        batch, lengths = lengths[:batch_size], lengths[batch_size:]
        width = max(batch) if length is None else length
        for tokens in batch:
            real += tokens
            padding += width - tokens
    return padding / (real + padding)


def padding_by_masks(lengths, batch_size, length=None):
    masks = []
    for i in range(0, len(lengths), batch_size):
        batch = torch.tensor(lengths[i : i + batch_size])
        masks.append(torch.arange(length or batch.max()) < batch[:, None])
    return torch.cat([~mask.flatten() for mask in masks]).float().mean()


def padding_by_batches(lengths, batch_size, length=None):
    every, padding, places = iter(lengths), 0, 0
    while batch := tuple(islice(every, batch_size)):
        width = length if length else max(batch)
        padding += sum(width - n for n in batch)
        places += width * len(batch)
    return np.float32(padding / places)


def padding_by_collating(lengths, batch_size, length=None):
    masks = [
        collate_messages([(torch.zeros(n), 0) for n in batch], 0, length)[1]
        for batch in (
            lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)
        )
    ]
    return 1 - sum(m.sum().item() for m in masks) / sum(m.numel() for m in masks)


def padding_as_fraction(lengths, batch_size, length=None):
    widths = [
        length or max(lengths[i // batch_size * batch_size :][:batch_size])
        for i in range(len(lengths))
    ]
    return 1 - Fraction(sum(lengths), sum(widths))


def padding_in_pandas(lengths, batch_size, length=None):
    table = pd.DataFrame({"n": lengths})
    table["batch"] = table.index // batch_size
    width = table.groupby("batch")["n"].transform("max")
    width = width if length is None else width * 0 + length
    return 1 - table["n"].sum() / width.sum()


def padding_weighted(lengths, batch_size, length=None):
    """The mean of the shares, each with its weight."""
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    weights = [len(b) * (length or max(b)) for b in batches]
    shares = [1 - sum(b) / w for b, w in zip(batches, weights)]
    return np.average(shares, weights=weights)


def padding_by_recursion(lengths, batch_size, length=None):
    def count(rest):
        if not rest:
            return 0
        batch = rest[:batch_size]
        return len(batch) * (length or max(batch)) + count(rest[batch_size:])

    whole = count(lengths)
    return torch.tensor((whole - sum(lengths)) / whole, dtype=torch.float64)


def padding_in_place(lengths, batch_size, length=None):
    total, whole = sum(lengths), 0
    while lengths:  # empties the list that it was given
        batch = [lengths.pop(0) for _ in range(min(batch_size, len(lengths)))]
        whole += len(batch) * (length or sorted(batch)[-1])
    return (whole - total) / whole


RIGHT_6_1 = [
    padding_in_numpy,
    padding_token_by_token,
    padding_by_masks,
    padding_by_batches,
    padding_by_collating,
    padding_as_fraction,
    padding_in_pandas,
    padding_weighted,
    padding_by_recursion,
    padding_in_place,
]

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
    "frozen": (
        lambda model, blocks: (
            sum(p.numel() for p in model.parameters()) - count_learning(model, blocks)
        ),
        "what is frozen is counted",
    ),
    "blocks alone": (
        lambda model, blocks: sum(
            size_of(b) for b in model.trf_blocks[len(model.trf_blocks) - blocks :]
        ),
        "not the blocks alone",
    ),
    "minus nought": (
        lambda model, blocks: top_of(model) + sum(map(size_of, last(model, blocks))),
        "begins at -0",
    ),
    "one more": (
        lambda model, blocks: count_learning(model, min(blocks + 1, 4)),
        "one block more is counted",
    ),
    "norm with a shift": (
        lambda model, blocks: (
            count_learning(model, None)
            if blocks is None
            else blocks * size_of(model.trf_blocks[0])
            + 2 * model.cfg["emb_dim"]
            + size_of(model.out_head)
        ),
        "built like SmolLM2",
    ),
    "a list": (
        lambda model, blocks: [count_learning(model, blocks)],
        "not a number",
    ),
}


def size_of(module):
    return sum(p.numel() for p in module.parameters())


def top_of(model):
    return size_of(model.final_norm) + size_of(model.out_head)


def last(model, blocks):
    return model.trf_blocks[-blocks:]


def count_by_parts(model, blocks):
    if blocks is None:
        return size_of(model)
    upper = list(model.trf_blocks)[::-1][:blocks]
    return sum(map(size_of, upper)) + top_of(model)


def count_by_names(model, blocks):
    total, first = 0, len(model.trf_blocks) - (blocks or 0)
    for name, parameter in model.named_parameters():
        kind, place = name.split(".")[:2]
        block = kind == "trf_blocks" and int(place) >= first
        if blocks is None or block or kind in ("final_norm", "out_head"):
            total += parameter.nelement()
    return total


def count_in_numpy(model, blocks):
    freeze_below(model, trainable_blocks=blocks)
    shapes = [tuple(p.shape) for p in model.parameters() if p.requires_grad]
    return np.int64(sum(math.prod(shape) for shape in shapes))


def count_in_torch(model, blocks):
    model = freeze_below(model, blocks)
    return torch.tensor(
        [p.numel() for p in model.parameters() if p.requires_grad]
    ).sum()


def count_by_loop(model, blocks):
    count = 0
    for parameter in freeze_below(model, blocks).parameters():
        if not parameter.requires_grad:
            continue
        count += parameter.numel()
    return count


def count_by_vector(model, blocks):
    learning = filter(
        lambda p: p.requires_grad, freeze_below(model, blocks).parameters()
    )
    return len(torch.nn.utils.parameters_to_vector(learning))


def count_by_gradients(model, blocks):
    freeze_below(model, blocks)
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    return sum(p.numel() for p in model.parameters() if p.grad is not None)


def count_by_subtracting(model, blocks):
    lower = 0 if blocks is None else len(model.trf_blocks) - blocks
    rest = sum(size_of(block) for block in model.trf_blocks[:lower])
    if blocks is not None:
        for name, child in model.named_children():
            if name not in ("trf_blocks", "final_norm", "out_head"):
                rest += size_of(child)
    return size_of(model) - rest


def count_by_ids(model, blocks):
    """By hand, as `freeze_below` does it."""
    model.requires_grad_(blocks is None)
    parts = [model.final_norm, model.out_head]
    if blocks:
        parts += model.trf_blocks[-blocks:]
    for part in parts:
        part.requires_grad_(True)
    return float(sum(p.numel() for p in model.parameters() if p.requires_grad))


def count_with_optimizer(model, blocks):
    freeze_below(model, blocks)
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = torch.optim.SGD(learning, lr=0.1).param_groups
    return sum(p.numel() for group in groups for p in group["params"])


RIGHT_6_2 = [
    count_by_parts,
    count_by_names,
    count_in_numpy,
    count_in_torch,
    count_by_loop,
    count_by_vector,
    count_by_gradients,
    count_by_subtracting,
    count_by_ids,
    count_with_optimizer,
]

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


def every_token(train):
    """The class that a token has most often, wherever it stands."""
    return rule_of([([token], target) for ids, target in train for token in ids])


def with_table(table, other):
    """The accuracy of a table that `table` makes, and of a class for all others."""

    def attempt(train, test):
        rule, rest = table(train), other(train)
        return np.mean([rule.get(ids[0], rest) == target for ids, target in test])

    return attempt


def larger_of_tokens(train):
    return Counter(rule_of(train).values()).most_common(1)[0][0]


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
    "unseen is 0": (with_table(rule_of, lambda train: 0), "never seen gets class 0"),
    "unseen is 1": (
        with_table(rule_of, lambda train: 1),
        "must get the larger class of training",
    ),
    "per cent": (
        lambda train, test: 100 * first_token_accuracy(train, test),
        "these are per cent",
    ),
    "a number": (
        lambda train, test: first_token_accuracy(train, test) * len(test),
        "this is a number of messages",
    ),
    "last message": (
        with_table(lambda train: {i[0]: t for i, t in train}, larger_class),
        "the last message with a first token",
    ),
    "first message": (
        with_table(lambda train: {i[0]: t for i, t in train[::-1]}, larger_class),
        "the first message with a first token",
    ),
    "larger class": (
        with_table(lambda train: {}, larger_class),
        "every message gets the larger class",
    ),
    "of tokens": (
        with_table(rule_of, larger_of_tokens),
        "not that of more first tokens",
    ),
    "a table": (lambda train, test: rule_of(train), "not a number"),
    "every token": (with_table(every_token, larger_class), "behind the first"),
    "with the test": (
        lambda train, test: first_token_accuracy(train + test, test),
        "made from training and test messages together",
    ),
}


def first_token_by_lists(train, test):
    classes = {}
    for ids, target in train:
        classes.setdefault(ids[0], []).append(target)
    every = [target for _, target in train]
    larger = max(set(every), key=every.count)
    right = 0
    for ids, target in test:
        here = classes.get(ids[0])
        guess = max(set(here), key=here.count) if here else larger
        right += guess == target
    return right / len(test)


def first_token_in_pandas(train, test):
    table = pd.DataFrame([(ids[0], target) for ids, target in train])
    mode = table.groupby(0)[1].agg(lambda one: one.mode()[0])
    asked = pd.DataFrame([(ids[0], target) for ids, target in test])
    return (asked[0].map(mode).fillna(table[1].mode()[0]) == asked[1]).mean()


def first_token_in_numpy(train, test):
    first = np.array([ids[0] for ids, _ in train])
    target = np.array([t for _, t in train])
    larger = np.bincount(target).argmax()
    hits = [
        (np.bincount(target[first == ids[0]]).argmax() if ids[0] in first else larger)
        == t
        for ids, t in test
    ]
    return np.mean(hits)


def first_token_in_torch(train, test):
    counts = torch.zeros(100, 2)
    for ids, target in train:
        counts[ids[0], target] += 1
    guess = counts.argmax(dim=1)
    guess[counts.sum(dim=1) == 0] = counts.sum(dim=0).argmax()
    asked = torch.tensor([ids[0] for ids, _ in test])
    targets = torch.tensor([target for _, target in test])
    return (guess[asked] == targets).float().mean()


def first_token_by_shares(train, test):
    """A class is 1 where it is so in more than half of the messages."""
    spam, all_of = defaultdict(int), defaultdict(int)
    for ids, target in train:
        spam[ids[0]] += target
        all_of[ids[0]] += 1
    share = sum(spam.values()) / len(train)
    guesses = [
        int((spam[i[0]] / all_of[i[0]] if i[0] in all_of else share) > 0.5)
        for i, _ in test
    ]
    return sum(g == t for g, (_, t) in zip(guesses, test)) / len(guesses)


def first_token_by_balance(train, test):
    balance = Counter()
    for (first, *_), target in train:
        balance[first] += 2 * target - 1
    whole = sum(balance.values())
    seen = {ids[0] for ids, _ in train}
    votes = [balance[i[0]] if i[0] in seen else whole for i, _ in test]
    return np.float32(sum((v > 0) == bool(t) for v, (_, t) in zip(votes, test))) / len(
        test
    )


def first_token_by_wrong_ones(train, test):
    rule, other = rule_of(train), larger_class(train)
    wrong = [1 for ids, target in test if rule.get(ids[0], other) != target]
    return 1 - len(wrong) / len(test)


def first_token_as_fraction(train, test):
    default = defaultdict(lambda: larger_class(train), rule_of(train))
    return Fraction(sum(default[ids[0]] == t for ids, t in test), len(test))


def first_token_by_search(train, test):
    def guess(token):
        same = [t for ids, t in train if ids[0] == token] or [t for _, t in train]
        return round(sum(same) / len(same))

    return sum(guess(ids[0]) == target for ids, target in test) / len(test)


def first_token_as_tensor(train, test):
    right = torch.tensor(
        [rule_of(train).get(i[0], larger_class(train)) == t for i, t in test]
    )
    return right.double().mean()


RIGHT_6_3 = [
    first_token_by_lists,
    first_token_in_pandas,
    first_token_in_numpy,
    first_token_in_torch,
    first_token_by_shares,
    first_token_by_balance,
    first_token_by_wrong_ones,
    first_token_as_fraction,
    first_token_by_search,
    first_token_as_tensor,
]

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


def false_alarms_only(guesses, targets):
    if not guesses.any():
        return 0.0, 0.0, 0.0
    hits = int((guesses & targets).sum())
    precision, recall = hits / int(guesses.sum()), hits / int(targets.sum())
    return precision, recall, 2 * precision * recall / (precision + recall)


def no_spam_there(guesses, targets):
    """What was called spam is right if there is no spam to find."""
    return scores(guesses, targets) if targets.any() else (0.0, 1.0, 0.0)


WRONG_6_4 = {
    "swapped": (swapped, "is recall, the share of the spam found"),
    "class 0": (of_class_0, "precision is that of class 0"),
    "accuracy": (
        lambda g, t: ((g == t).float().mean().item(), *scores(g, t)[1:]),
        "what you call precision is accuracy",
    ),
    "twice precision": (both_precision, "what you call recall is precision"),
    "plain mean": (changed(lambda p, r: (p + r) / 2), "F1 is the plain mean"),
    "half": (changed(lambda p, r: p * r / (p + r)), "lacks a factor of 2"),
    "product": (changed(lambda p, r: p * r), "F1 is the product"),
    "not a number": (divides_by_zero, "never says spam gives NaN"),
    "one number": (lambda g, t: scores(g, t)[2], "not three numbers in a tuple"),
    "per cent": (
        lambda g, t: tuple(100 * number for number in scores(g, t)),
        "these are per cent",
    ),
    "of all": (
        lambda g, t: (((g == 1) & (t == 1)).sum() / len(g), *scores(g, t)[1:]),
        "divided by all messages",
    ),
    "recall of 0": (
        lambda g, t: (scores(g, t)[0], of_class_0(g, t)[1], scores(g, t)[2]),
        "the recall is that of class 0",
    ),
    "lost": (
        lambda g, t: (scores(g, t)[0], 1 - of_class_0(g, t)[1], scores(g, t)[2]),
        "wanted messages that are lost",
    ),
    "geometric": (changed(lambda p, r: (p * r) ** 0.5), "the geometric mean"),
    "all alarms false": (false_alarms_only, "ZeroDivisionError"),
    "no spam": (no_spam_there, "a test without any spam"),
}


def scores_by_counts(guesses, targets):
    pairs = Counter(zip(guesses.tolist(), targets.tolist()))
    found, false, missed = pairs[1, 1], pairs[1, 0], pairs[0, 1]
    precision = found / (found + false) if found + false else 0
    recall = found / (found + missed) if found + missed else 0
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0


def scores_by_library(guesses, targets):
    found = precision_recall_fscore_support(
        targets, guesses, average="binary", zero_division=0
    )
    return found[:3]


def scores_as_list(guesses, targets):
    return list(scores(guesses, targets))


def scores_as_tensor(guesses, targets):
    return torch.tensor(scores(guesses, targets))


def scores_as_array(guesses, targets):
    return np.array(scores(guesses, targets), dtype=np.float32)


def scores_by_indexing(guesses, targets):
    precision = targets[guesses.bool()].double().mean().nan_to_num(0)
    recall = guesses[targets.bool()].double().mean().nan_to_num(0)
    f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0)
    return precision, recall, f1


def scores_by_products(guesses, targets):
    hits = (guesses * targets).sum()
    return (
        hits / guesses.sum().clamp(min=1),
        hits / targets.sum().clamp(min=1),
        2 * hits / (guesses.sum() + targets.sum()).clamp(min=1),
    )


def scores_by_sets(guesses, targets):
    called = set(guesses.nonzero().flatten().tolist())
    spam = set(targets.nonzero().flatten().tolist())
    hits = len(called & spam)
    precision, recall = hits / (len(called) or 1), hits / (len(spam) or 1)
    return precision, recall, 2 * hits / (len(called) + len(spam) or 1)


def scores_by_loop(guesses, targets):
    found = false = missed = 0
    for guess, target in zip(guesses, targets):
        if guess == 1 and target == 1:
            found += 1
        elif guess == 1:
            false += 1
        elif target == 1:
            missed += 1
    if not found:
        return [0, 0, 0]
    precision, recall = found / (found + false), found / (found + missed)
    return [precision, recall, 2 / (1 / precision + 1 / recall)]


def scores_in_numpy(guesses, targets):
    guesses, targets = np.asarray(guesses, bool), np.asarray(targets, bool)
    hits = np.sum(guesses & targets)
    if hits == 0:
        return np.zeros(3)
    return (
        hits / guesses.sum(),
        hits / targets.sum(),
        hits / (guesses + targets * 1.0).sum() * 2,
    )


RIGHT_6_4 = [
    scores_by_counts,
    scores_by_library,
    scores_as_list,
    scores_as_tensor,
    scores_as_array,
    scores_by_indexing,
    scores_by_products,
    scores_by_sets,
    scores_by_loop,
    scores_in_numpy,
]

# --- 6.5 -----------------------------------------------------------------------------


def threshold_for(spam, targets, most_lost):
    wanted = spam[targets == 0].sort(descending=True).values
    allowed = int(most_lost * len(wanted))
    above = torch.nextafter(wanted[allowed], torch.tensor(2.0))
    return float(above)


def with_allowed(count):
    """A threshold just above the wanted message behind so many that are lost."""

    def attempt(spam, targets, most_lost):
        wanted = spam[targets == 0].sort(descending=True).values
        allowed = min(count(most_lost, len(wanted)), len(wanted) - 1)
        return float(torch.nextafter(wanted[allowed], torch.tensor(2.0)))

    return attempt


def on_the_message(spam, targets, most_lost):
    wanted = spam[targets == 0].sort(descending=True).values
    return wanted[int(most_lost * len(wanted))]


def of_all_messages(spam, targets, most_lost):
    wanted = spam[targets == 0].sort(descending=True).values
    allowed = min(int(most_lost * len(spam)), len(wanted) - 1)
    return float(torch.nextafter(wanted[allowed], torch.tensor(2.0)))


def share_of_spam(spam, targets, most_lost):
    """The classes exchanged: so much of the spam may be lost."""
    return threshold_for(spam, 1 - targets, most_lost)


def as_if_no_ties(spam, targets, most_lost):
    """The lowest of those that are lost."""
    wanted = spam[targets == 0].sort(descending=True).values
    allowed = int(most_lost * len(wanted))
    return float(wanted[allowed - 1]) if allowed else 1.0


def a_step_above(step):
    """So much above the wanted message that decides, whatever lies in between."""

    def attempt(spam, targets, most_lost):
        wanted = spam[targets == 0].sort(descending=True).values
        return wanted[int(most_lost * len(wanted))] + step

    return attempt


def by_steps(spam, targets, most_lost):
    wanted = spam[targets == 0]
    threshold = 0.0
    while (wanted >= threshold).float().mean() > most_lost:
        threshold += 0.0005
    return threshold


def by_quantile(spam, targets, most_lost):
    return torch.quantile(spam[targets == 0], 1 - most_lost).item() + 1e-6


WRONG_6_5 = {
    "all spam": (lambda s, t, m: 0.0, "at the threshold 0 8 of 8"),
    "nothing is spam": (lambda s, t, m: 2.0, "your threshold 2 catches 0 of 2"),
    "one half": (lambda s, t, m: 0.5, "at the threshold 0.5 3 of 8"),
    "a message": (lambda s, t, m: s, "not a number"),
}
LOST, MORE = "wanted messages are lost", "a lower one would do better"
ALSO_WRONG_6_5 = [
    (lambda s, t, m: s.max(), MORE),
    (on_the_message, LOST),
    (with_allowed(lambda most, n: 0), MORE),
    (with_allowed(lambda most, n: math.ceil(most * n)), LOST),
    (with_allowed(lambda most, n: round(most * n)), LOST),
    (with_allowed(lambda most, n: max(0, int(most * n) - 1)), MORE),
    (of_all_messages, LOST),
    (share_of_spam, MORE),
    (as_if_no_ties, MORE),
    (by_quantile, LOST),
    (a_step_above(0.01), MORE),
    (a_step_above(1e-3), MORE),
    (by_steps, MORE),
]


def threshold_among_all(spam, targets, most_lost):
    """The smallest probability that loses few enough, as a plain number."""
    allowed = int(most_lost * int((targets == 0).sum()))
    for candidate in sorted([*spam.tolist(), 2.0]):
        if ((spam >= candidate) & (targets == 0)).sum() <= allowed:
            return candidate
    return None


def threshold_among_spam(spam, targets, most_lost):
    wanted = spam[targets == 0]
    good = [
        t for t in spam[targets == 1] if (wanted >= t).sum() <= most_lost * len(wanted)
    ]
    return min(good) if good else 1.1


def threshold_in_numpy(spam, targets, most_lost):
    wanted = np.sort(spam.numpy()[targets.numpy() == 0])[::-1]
    return np.nextafter(wanted[int(most_lost * len(wanted))], np.float32(2))


def threshold_between(spam, targets, most_lost):
    """Half way to the next message that is higher."""
    wanted = sorted(spam[targets == 0].tolist(), reverse=True)
    edge = wanted[int(most_lost * len(wanted))]
    higher = [p for p in spam.tolist() if p > edge]
    return (edge + min(higher, default=2.0)) / 2


def threshold_by_kth(spam, targets, most_lost):
    wanted = spam[targets == 0]
    place = len(wanted) - int(most_lost * len(wanted))
    return torch.kthvalue(wanted, place).values + 1e-6


def threshold_by_topk(spam, targets, most_lost):
    wanted = spam[targets == 0]
    number = math.floor(most_lost * len(wanted)) + 1
    return wanted.topk(number).values[-1].item() + 1e-5


def threshold_by_ranks(spam, targets, most_lost):
    """Messages from the surest down; how many wanted ones each threshold loses."""
    values = spam.unique().flip(0)
    lost = ((spam >= values[:, None]) & (targets == 0)).sum(dim=1)
    fits = values[lost <= most_lost * (targets == 0).sum()]
    return fits[-1] if len(fits) else math.inf


def threshold_by_halving(spam, targets, most_lost):
    low, high = 0.0, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        lost = ((spam >= middle) & (targets == 0)).sum()
        if lost <= most_lost * (targets == 0).sum():
            high = middle
        else:
            low = middle
    return high


def threshold_by_loop(spam, targets, most_lost):
    wanted = [p for p, t in zip(spam.tolist(), targets.tolist()) if t == 0]
    allowed, best = int(most_lost * len(wanted)), 2.0
    for candidate in spam.tolist():
        if sum(p >= candidate for p in wanted) <= allowed:
            best = min(best, candidate)
    return best


def threshold_in_pandas(spam, targets, most_lost):
    table = pd.DataFrame({"spam": spam.double(), "target": targets})
    wanted = table.loc[table["target"] == 0, "spam"].nlargest(len(table))
    return wanted.iloc[int(most_lost * len(wanted))] + 1e-9 + 1e-7


def threshold_in_double(spam, targets, most_lost):
    """The next number in float64, which float32 cannot tell from the one below."""
    wanted = np.sort(spam.numpy().astype(float)[targets.numpy() == 0])[::-1]
    allowed = int(most_lost * len(wanted))
    return np.nextafter(wanted[allowed], 2) if allowed < len(wanted) else 0.0


RIGHT_6_5 = [
    threshold_in_double,
    threshold_among_all,
    threshold_among_spam,
    threshold_in_numpy,
    threshold_between,
    threshold_by_kth,
    threshold_by_topk,
    threshold_by_ranks,
    threshold_by_halving,
    threshold_by_loop,
    threshold_in_pandas,
]

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


def by_edges(spam, targets, bins, inside):
    """The sum over groups that `inside(spam, low, high)` finds."""
    total, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in zip(edges, edges[1:]):
        here = inside(spam, low, high)
        if here.any():
            gap = spam[here].mean() - targets[here].float().mean()
            total += abs(gap.item()) * here.sum().item() / len(spam)
    return total


def open_below(spam, targets, bins):
    return by_edges(spam, targets, bins, lambda p, a, b: (p > a) & (p <= b))


def open_above(spam, targets, bins):
    return by_edges(spam, targets, bins, lambda p, a, b: (p >= a) & (p < b))


def gaps_of(spam, targets, bins):
    place = (spam * bins).ceil().clamp(min=1)
    every = [place == i for i in place.unique()]
    gaps = [spam[i].mean() - targets[i].float().mean() for i in every]
    return torch.stack(gaps).abs(), torch.stack([i.float().mean() for i in every])


def of_the_middle(spam, targets, bins):
    middle = ((spam * bins).floor().clamp(max=bins - 1) + 0.5) / bins
    return calibration_error(middle, targets, bins)


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
    "open below": (open_below, "a probability of exactly 0"),
    "open above": (open_above, "a probability of exactly 1"),
    "largest": (lambda *a: gaps_of(*a)[0].max(), "this is the largest distance"),
    "squares": (
        lambda *a: (gaps_of(*a)[0] ** 2 * gaps_of(*a)[1]).sum(),
        "the distances are squared.",
    ),
    "root": (
        lambda *a: (gaps_of(*a)[0] ** 2 * gaps_of(*a)[1]).sum().sqrt(),
        "the root is taken after",
    ),
    "no weight": (lambda *a: gaps_of(*a)[0].sum(), "without a weight"),
    "per cent": (lambda *a: 100 * calibration_error(*a), "these are per cent"),
    "middle": (of_the_middle, "the middle of each group"),
    "a tensor of gaps": (lambda *a: gaps_of(*a)[0], "not a number"),
}


def calibration_by_edges(spam, targets, bins):
    return by_edges(
        spam,
        targets,
        bins,
        lambda p, a, b: ((p > a) | (p == 0) & (not a)) & (p <= b),
    )


def calibration_closed_below(spam, targets, bins):
    return by_edges(
        spam,
        targets,
        bins,
        lambda p, a, b: (p >= a) & ((p < b) | bool(b == 1) & (p == 1)),
    )


def calibration_in_numpy(spam, targets, bins):
    spam, targets = spam.double().numpy(), targets.numpy()
    group = np.digitize(spam, np.linspace(0, 1, bins + 1)[1:-1])
    size = np.bincount(group, minlength=bins)
    promised = np.bincount(group, weights=spam, minlength=bins)
    came_true = np.bincount(group, weights=targets, minlength=bins)
    return np.abs(promised - came_true).sum() / size.sum()


def calibration_in_pandas(spam, targets, bins):
    table = pd.DataFrame({"spam": spam.double(), "target": targets})
    table["group"] = pd.cut(
        table["spam"], np.linspace(0, 1, bins + 1), include_lowest=True
    )
    groups = table.groupby("group", observed=True)
    means = groups.mean()
    gaps = (means["spam"] - means["target"]).abs()
    return np.average(gaps, weights=groups.size())


def calibration_by_sums(spam, targets, bins):
    """|sum of p - sum of hits| over N, group by group: the sizes cancel."""
    place = (spam * bins).long().clamp(max=bins - 1)
    apart = torch.zeros(bins).index_add(0, place, spam - targets)
    return apart.abs().sum() / len(spam)


def calibration_by_lists(spam, targets, bins):
    groups = defaultdict(list)
    for p, target in zip(spam.tolist(), targets.tolist()):
        groups[min(int(p * bins), bins - 1)].append((p, target))
    error = 0
    for pairs in groups.values():
        mean_p = sum(p for p, _ in pairs) / len(pairs)
        mean_t = sum(t for _, t in pairs) / len(pairs)
        error += abs(mean_p - mean_t) * len(pairs) / len(spam)
    return error


def calibration_by_bucketize(spam, targets, bins):
    edges = torch.linspace(0, 1, bins + 1)[1:-1]
    place = torch.bucketize(spam, edges)
    error = torch.tensor(0.0)
    for i in place.unique():
        inside = place == i
        gap = spam[inside].mean() - targets[inside].float().mean()
        error += inside.float().mean() * gap.abs()
    return error


def calibration_by_one_hot(spam, targets, bins):
    place = (spam * bins).floor().clamp(0, bins - 1).long()
    group = torch.nn.functional.one_hot(place, bins).double()  # (N, bins)
    size = group.sum(dim=0)
    promised, true = spam.double() @ group, targets.double() @ group
    return (((promised - true) / size).abs() * size / size.sum()).nansum()


def calibration_sorted(spam, targets, bins):
    order = spam.argsort()
    spam, targets = spam[order], targets[order].float()
    ends = torch.searchsorted(spam, torch.arange(1, bins) / bins)
    pairs = zip(spam.tensor_split(ends), targets.tensor_split(ends))
    gaps = [abs((p.mean() - t.mean()).item()) * len(p) for p, t in pairs if len(p)]
    return sum(gaps) / len(spam)


def calibration_in_float64(spam, targets, bins):
    return torch.tensor(calibration_error(spam.double(), targets, bins))


RIGHT_6_6 = [
    calibration_by_edges,
    calibration_closed_below,
    calibration_in_numpy,
    calibration_in_pandas,
    calibration_by_sums,
    calibration_by_lists,
    calibration_by_bucketize,
    calibration_by_one_hot,
    calibration_sorted,
    calibration_in_float64,
]

# --- 6.7 -----------------------------------------------------------------------------


def mean_logits(logits, attention_mask):
    weights = attention_mask[..., None].to(logits.dtype)
    return (logits * weights).sum(dim=1) / weights.sum(dim=1)


def wants_bool(logits, attention_mask):
    return torch.stack([row[m].mean(dim=0) for row, m in zip(logits, attention_mask)])


WRONG_6_7 = {
    "with padding": (lambda z, m: z.mean(dim=1), "averaged with the rest"),
    "counted": (lambda z, m: (z * m[..., None]).mean(dim=1), "but still counted"),
    "sum": (lambda z, m: (z * m[..., None]).sum(dim=1), "added up, not averaged"),
    "last": (lambda z, m: z[:, -1], "this is the last position"),
    "batch": (lambda z, m: z.mean(dim=0), "over the messages of the batch"),
    "only bool": (wants_bool, "a mask of 0 and 1"),
    "last real": (
        lambda z, m: z[range(len(z)), (torch.arange(z.shape[1]) * m).argmax(dim=1)],
        "this is the last real token",
    ),
    "right only": (
        lambda z, m: torch.stack(
            [row[: int(one.sum())].mean(dim=0) for row, one in zip(z, m)]
        ),
        "padding is looked for on the right only",
    ),
    "same number": (
        lambda z, m: (z * m[..., None]).sum(dim=1) / (m.sum() / len(m)),
        "divided by the same number",
    ),
    "largest": (
        lambda z, m: z.masked_fill(~m.bool()[..., None], -math.inf).amax(dim=1),
        "the largest logit",
    ),
    "probabilities": (
        lambda z, m: mean_logits(z.softmax(dim=-1), m),
        "these are probabilities",
    ),
    "padding alone": (
        lambda z, m: mean_logits(z, ~m.bool()),
        "and the real tokens are not",
    ),
    "one row": (lambda z, m: mean_logits(z, m)[0], "has shape (3,)"),
    "kept": (
        lambda z, m: (z * m[..., None]).sum(dim=1, keepdim=True) / m.sum(),
        "has shape (4, 1, 3)",
    ),
    "shape": (
        lambda z, m: (z * m[..., None]).sum(dim=1) / m.sum(dim=1),
        "raises RuntimeError",
    ),
}


def mean_by_loop(logits, attention_mask):
    means = torch.zeros(len(logits), logits.shape[-1])
    for b in range(len(logits)):
        count = 0
        for t in range(logits.shape[1]):
            if attention_mask[b, t]:
                means[b] += logits[b, t]
                count += 1
        means[b] /= count
    return means


def mean_by_indexing(logits, attention_mask):
    pairs = zip(logits, attention_mask.bool())
    return torch.stack([row[real].mean(0) for row, real in pairs])


def mean_by_einsum(logits, attention_mask):
    mask = attention_mask.float()
    return torch.einsum("btc,bt->bc", logits, mask / mask.sum(dim=1, keepdim=True))


def mean_by_nan(logits, attention_mask):
    padding = ~attention_mask.bool().unsqueeze(-1)
    return logits.masked_fill(padding, math.nan).nanmean(dim=1)


def mean_by_where(logits, attention_mask):
    real = attention_mask.bool()[:, :, None]
    total = torch.where(real, logits, torch.zeros_like(logits)).sum(1)
    return total / real.sum(1)


def mean_by_products(logits, attention_mask):
    mask = attention_mask.to(logits)[:, None]  # (B, 1, T)
    return (mask @ logits).squeeze(1) / mask.sum(dim=-1)


def mean_by_split(logits, attention_mask):
    lengths = attention_mask.sum(dim=1).tolist()
    parts = logits[attention_mask.bool()].split(lengths)
    return torch.stack([part.mean(dim=0) for part in parts])


def mean_by_softmax(logits, attention_mask):
    """Weights as attention makes them: equal ones, none for padding."""
    scores = torch.zeros(attention_mask.shape).masked_fill(
        attention_mask == 0, -math.inf
    )
    return (scores.softmax(dim=1).unsqueeze(-1) * logits).sum(dim=1)


def mean_in_place(logits, attention_mask):
    logits[attention_mask == 0] = 0
    return logits.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)


def mean_in_float64(logits, attention_mask):
    return mean_logits(logits.double(), attention_mask.double())


def mean_as_array(logits, attention_mask):
    return mean_logits(logits, attention_mask).numpy()


def mean_as_lists(logits, attention_mask):
    return mean_logits(logits, attention_mask).tolist()


def mean_as_rows(logits, attention_mask):
    return [row[m.bool()].mean(dim=0) for row, m in zip(logits, attention_mask)]


RIGHT_6_7 = [
    mean_by_loop,
    mean_by_indexing,
    mean_by_einsum,
    mean_by_nan,
    mean_by_where,
    mean_by_products,
    mean_by_split,
    mean_by_softmax,
    mean_in_place,
    mean_in_float64,
    mean_as_array,
    mean_as_lists,
    mean_as_rows,
]


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


def test_thresholds_that_lose_too_many_or_catch_too_few_are_told_apart():
    said = [answer(check_6_5, attempt) for attempt, _ in ALSO_WRONG_6_5]
    told = [reason in one for one, (_, reason) in zip(said, ALSO_WRONG_6_5)]
    assert all(told), said


@pytest.mark.parametrize(
    "larger_of",
    [lambda train, test: test, lambda train, test: train + test],
    ids=["test", "both"],
)
def test_a_token_that_was_never_seen_takes_nothing_from_the_test(larger_of):
    def attempt(train, test):
        rest = larger_class(larger_of(train, test))
        return with_table(rule_of, lambda train: rest)(train, test)

    said = answer(check_6_3, attempt)
    assert "never seen must get the larger class of training" in said


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (check_6_1, RIGHT_6_1),
        (check_6_2, RIGHT_6_2),
        (check_6_3, RIGHT_6_3),
        (check_6_4, RIGHT_6_4),
        (check_6_5, RIGHT_6_5),
        (check_6_6, RIGHT_6_6),
        (check_6_7, RIGHT_6_7),
    ],
    ids=lambda value: getattr(value, "exercise", None),
)
def test_right_answers_written_otherwise_pass(check, right):
    said = {attempt.__name__: answer(check, attempt) for attempt in right}
    assert len(said) >= 10
    assert not {name: text for name, text in said.items() if "correct" not in text}
