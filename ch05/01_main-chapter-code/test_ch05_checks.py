"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import pytest
import torch
from torch.nn import functional as F

import ch05_checks
from ch05_checks import (
    check_5_1,
    check_5_2,
    check_5_3,
    check_5_4,
    check_5_5,
    check_5_6,
    check_5_7,
    check_5_8,
    check_5_9,
    check_5_10,
)
from course.exercises import verify
from gpt import GPTModel, count_parameters
from gpt_download import GPT2_NAMES
from gpt_train import (
    checkpoint_info,
    load_checkpoint,
    save_checkpoint,
    train_model_simple,
)
from resumable import resumable


def stub(*arguments, **keywords):
    """A function of which only the docstring is there."""
    return ...


# --- 5.1 ------------------------------------------------------------------------------


def rare_word(logits, token, temperatures, draws, generator):
    pairs = []
    for temperature in temperatures:
        probabilities = torch.softmax(logits / temperature, dim=-1)
        drawn = torch.multinomial(
            probabilities, draws, replacement=True, generator=generator
        )
        expected = draws * probabilities[token].item()
        pairs.append((expected, int((drawn == token).sum())))
    return pairs


def rare(expected=None, counted=None):
    """A wrong answer: one of the two numbers by another rule."""

    def attempt(logits, token, temperatures, draws, generator):
        right = rare_word(logits, token, temperatures, draws, generator)
        return [
            (
                e if expected is None else expected(logits, token, t, draws),
                c if counted is None else counted(logits, token, t, draws, e),
            )
            for t, (e, c) in zip(temperatures, right, strict=True)
        ]

    return attempt


def own_randomness(logits, token, t, draws, expected):
    drawn = torch.multinomial(torch.softmax(logits / t, dim=-1), draws, True)
    return int((drawn == token).sum())


def drawn_with_logits_times(logits, token, t, draws, expected):
    share = torch.softmax(logits * t, dim=-1)[token].item()
    return round(draws * share) + 2


WRONG_5_1 = {
    "probability": (
        rare(lambda z, i, t, n: (z / t).softmax(-1)[i].item()),
        "out of so many draws, how many?",
    ),
    "multiplied": (
        rare(lambda z, i, t, n: n * (z * t).softmax(-1)[i].item()),
        "so that hot is cold",
    ),
    "probabilities divided": (
        rare(lambda z, i, t, n: n * z.softmax(-1)[i].item() / t),
        "it belongs to the logits",
    ),
    "no temperature": (
        rare(lambda z, i, t, n: n * z.softmax(-1)[i].item()),
        "the temperature changes nothing",
    ),
    "likeliest": (
        rare(lambda z, i, t, n: n * (z / t).softmax(-1).max().item()),
        "not of the one asked for",
    ),
    "copied": (
        rare(counted=lambda z, i, t, n, e: round(e)),
        "expected number, rounded",
    ),
    "another seed": (rare(counted=own_randomness), "draw with the generator you get"),
    "other draws": (rare(counted=drawn_with_logits_times), "are expected, "),
    "shares": (rare(counted=lambda z, i, t, n, e: e / n), "is no whole number"),
    "one pair": (lambda *arguments: (1.0, 1), "not a list of 4 pairs"),
}


# --- 5.2 ------------------------------------------------------------------------------


def temperature_for(logits, share, low=1e-3, high=1e3, steps=60):
    for _ in range(steps):
        middle = math.sqrt(low * high)
        if torch.softmax(logits / middle, dim=-1).max() > share:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


WRONG_5_2 = {
    "inverse": (lambda z, s: 1 / temperature_for(z, s), "this is 1 / temperature"),
    "no sum": (
        lambda z, s: math.log(z.softmax(-1).max().item()) / math.log(s),
        "their sum is not 1 any more",
    ),
    "too early": (
        lambda z, s: temperature_for(z, s, steps=9),
        "not within 0.001: go on halving",
    ),
    "never above 1": (
        lambda z, s: temperature_for(z, s, high=0.5),
        "for a share of 0.5 a hotter one than",
    ),
    "never below 1": (
        lambda z, s: temperature_for(z, s, low=0.9),
        "for a share of 0.5 a colder one than",
    ),
    "negative": (lambda z, s: -1.0, "the temperature is -1.0, which is none"),
    "a list": (lambda z, s: [1.0], "not a number"),
}


# --- 5.3 ------------------------------------------------------------------------------


def always_the_same(temperature, top_k, top_p, vocab_size):
    left = vocab_size if top_k is None else min(top_k, vocab_size)
    enough = top_p is not None and top_p <= 1 / left
    return temperature == 0 or left == 1 or enough


def certain(cold=0.0, one=True, greedy=True, share=None, after_k=True, capped=True):
    """A wrong answer: `always_the_same` with one idea changed."""

    def attempt(temperature, top_k, top_p, vocab_size):
        left = vocab_size if top_k is None else top_k
        left = min(left, vocab_size) if capped else left
        bound = 1 / (left if after_k else vocab_size) if share is None else share
        enough = top_p is not None and top_p <= bound
        cold_enough = temperature <= cold if greedy else False
        return cold_enough or (one and left == 1) or enough

    return attempt


WRONG_5_3 = {
    "no greedy": (certain(greedy=False), "temperature 0 takes the likeliest token"),
    "cold is certain": (certain(cold=0.05), "rare, but not impossible"),
    "top_k=1 forgotten": (certain(one=False), "top_k=1 leaves one token"),
    "a small top_p": (certain(share=0.1), "may have less than 0.01"),
    "top_p never": (certain(share=0.0), "the likelier one has at least a half"),
    "top_p of everything": (certain(after_k=False), "top_p looks at what is left"),
    "top_k too large": (certain(capped=False), "no more than the 4 tokens"),
    "a number": (lambda *settings: 1, "not True or False"),
    "always": (lambda *settings: True, "without any setting every token may come"),
}


# --- 5.4 ------------------------------------------------------------------------------

CPU = torch.device("cpu")
PLAN = {"eval_freq": 10**6, "eval_iter": 1, "start_context": None, "tokenizer": None}


def one_more_epoch(folder, model, optimizer, train_loader, val_loader, more=1):
    epochs = checkpoint_info(folder)["progress"]["epoch"]
    train = resumable(train_model_simple, folder, resume=True)
    train(model, train_loader, val_loader, optimizer, CPU, epochs + more, **PLAN)


def one_epoch(model, optimizer, *loaders, train=train_model_simple):
    train(model, *loaders, optimizer, CPU, 1, **PLAN)


def only_the_model(folder, model, optimizer, *loaders):
    load_checkpoint(folder, model)
    one_epoch(model, optimizer, *loaders)


def without_the_order(folder, model, optimizer, *loaders):
    load_checkpoint(folder, model, optimizer)
    one_epoch(model, optimizer, *loaders)


def not_saved(folder, model, optimizer, *loaders):
    before = checkpoint_info(folder)["progress"]
    one_more_epoch(folder, model, optimizer, *loaders)
    save_checkpoint(folder, model, optimizer, progress=before)


def forgotten_resume(folder, model, optimizer, *loaders):
    one_epoch(model, optimizer, *loaders, train=resumable(train_model_simple, folder))


def nothing_more(folder, model, optimizer, *loaders):
    train = resumable(train_model_simple, folder, resume=True)
    one_epoch(model, optimizer, *loaders, train=train)


WRONG_5_4 = {
    "optimizer": (only_the_model, "the optimizer began anew"),
    "order": (without_the_order, "in the order of the first epoch again"),
    "start": (forgotten_resume, "training began from the start"),
    "nothing": (nothing_more, "nothing was trained"),
    "too many": (
        lambda *parts: one_more_epoch(*parts, more=2),
        "more than one epoch was added",
    ),
    "not saved": (not_saved, "still says that 2 epochs are done"),
    "only loaded": (
        lambda folder, model, optimizer, *loaders: model.requires_grad_(True) and None,
        "the weights are not those of three epochs in one go",
    ),
}


# --- 5.5 ------------------------------------------------------------------------------


@torch.no_grad()
def text_loss(model, token_ids, window):
    total = 0.0
    for start in range(0, len(token_ids) - 1, window):
        targets = torch.tensor([token_ids[start + 1 : start + window + 1]])
        inputs = torch.tensor([token_ids[start : start + targets.shape[1]]])
        logits = model(inputs)
        total += F.cross_entropy(logits[0], targets[0], reduction="sum").item()
    return total / (len(token_ids) - 1)


@torch.no_grad()
def window_losses(model, token_ids, window, ahead=1, length=None):
    """A tensor of losses for each window."""
    for start in range(0, len(token_ids) - 1, window):
        targets = token_ids[start + ahead : start + ahead + (length or window)]
        if targets:
            inputs = torch.tensor([token_ids[start : start + len(targets)]])
            yield F.cross_entropy(
                model(inputs)[0], torch.tensor(targets), reduction="none"
            )


def mean_of_means(model, token_ids, window):
    return torch.stack(
        [w.mean() for w in window_losses(model, token_ids, window)]
    ).mean()


def full_windows(model, token_ids, window):
    parts = list(window_losses(model, token_ids, window))
    full = [w for w in parts if len(w) == window] or parts
    return torch.cat(full).mean().item()


def without_seams(model, token_ids, window):
    parts = window_losses(model, token_ids, window, length=max(window - 1, 1))
    return torch.cat(list(parts)).mean().item()


def unshifted(model, token_ids, window):
    return torch.cat(list(window_losses(model, token_ids, window, ahead=0))).mean()


WRONG_5_5 = {
    "mean of means": (mean_of_means, "a short last window counts too much"),
    "full windows": (full_windows, "the short window at the end is left out"),
    "seams": (without_seams, "the first token of each window is never predicted"),
    "unshifted": (unshifted, "each input is its own target"),
    "sum": (
        lambda m, ids, w: (len(ids) - 1) * text_loss(m, ids, w),
        "this is the sum, not the mean",
    ),
    "perplexity": (
        lambda m, ids, w: math.exp(text_loss(m, ids, w)),
        "the loss is its logarithm",
    ),
    "bits": (
        lambda m, ids, w: text_loss(m, ids, w) / math.log(2),
        "a loss is to base e",
    ),
    "first window": (
        lambda m, ids, w: text_loss(m, ids[: w + 1], w),
        "in windows of 5 the loss is not right",
    ),
    "a list": (lambda m, ids, w: [1.0], "a list of 1, not a number"),
}


# --- 5.6 ------------------------------------------------------------------------------


def largest_that_fits(memory, tokens, bytes_per_number):
    best = None
    for name, cfg in GPT2_NAMES.items():
        with torch.device("meta"):
            numbers = count_parameters(GPTModel(cfg))
        numbers += 2 * cfg["n_layers"] * cfg["emb_dim"] * tokens
        if numbers * bytes_per_number <= memory:
            best = name
    return best


def by_arithmetic(memory, tokens, size, tied=True, cache=2, layers=True, fixed=None):
    best = None
    for name, cfg in GPT2_NAMES.items():
        D, L, V = cfg["emb_dim"], cfg["n_layers"], cfg["vocab_size"]
        numbers = (V + cfg["context_length"]) * D + L * (12 * D * D + 13 * D) + 2 * D
        numbers += 0 if tied else V * D
        numbers += cache * (L if layers else 1) * D * tokens
        if numbers * (fixed or size) <= memory:
            best = name
    return best


def smallest(memory, tokens, size):
    names = [name for name in GPT2_NAMES if _fits(name, memory, tokens, size)]
    return names[0] if names else None


def _fits(name, memory, tokens, size):
    largest, names = by_arithmetic(memory, tokens, size), list(GPT2_NAMES)
    return largest is not None and names.index(name) <= names.index(largest)


def but(**slip):
    return lambda *case: by_arithmetic(*case, **slip)


WRONG_5_6 = {
    "untied": (but(tied=False), "but these models are tied"),
    "no cache": (but(cache=0), "the cache is left out"),
    "keys only": (but(cache=1), "keys and values, which is two numbers"),
    "one block": (but(layers=False), "every block has its own"),
    "float32": (but(fixed=4), "whatever the third argument says"),
    "smallest": (smallest, "the smallest that fits is chosen"),
    "always the small one": (
        lambda *case: "gpt2-small-124M",
        "largest that fits is another one",
    ),
    "a config": (
        lambda *case: GPT2_NAMES["gpt2-small-124M"],
        "not a key of GPT2_NAMES",
    ),
}


# --- 5.7 ------------------------------------------------------------------------------


def perplexity(parts):
    tokens = sum(count for _, count in parts)
    return math.exp(sum(loss * count for loss, count in parts) / tokens)


def plain_mean(numbers):
    return sum(numbers) / len(numbers)


WRONG_5_7 = {
    "loss": (lambda parts: math.log(perplexity(parts)), "this is the mean loss"),
    "unweighted": (
        lambda parts: math.exp(plain_mean([loss for loss, _ in parts])),
        "all parts count alike",
    ),
    "averaged": (
        lambda parts: plain_mean([math.exp(loss) for loss, _ in parts]),
        "perplexities are averaged; average",
    ),
    "averaged by length": (
        lambda parts: (
            sum(math.exp(loss) * n for loss, n in parts) / sum(n for _, n in parts)
        ),
        "are averaged, by length",
    ),
    "base 2": (
        lambda parts: 2 ** math.log(perplexity(parts)),
        "2 is the wrong number to raise",
    ),
    "the sum": (lambda parts: 1.0, "the perplexity is not right"),
    "None": (lambda parts: "7", "the text '7', not a number"),
}


# --- 5.8 ------------------------------------------------------------------------------


def nucleus(probabilities, top_p):
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += probabilities[token]
        if total >= top_p:
            break
    return kept


def walk(by_share=True, crossing=True, at_bound=True):
    """A wrong answer: the loop with one idea changed."""

    def attempt(probabilities, top_p):
        order = list(range(len(probabilities)))
        if by_share:
            order.sort(key=lambda i: probabilities[i], reverse=True)
        kept, total = [], 0.0
        for token in order:
            total += probabilities[token]
            if not crossing and total > top_p:
                break
            kept.append(token)
            if crossing and (total >= top_p if at_bound else total > top_p):
                break
        return kept

    return attempt


WRONG_5_8 = {
    "crossing": (walk(crossing=False), "that crosses the bound is left out"),
    "at the bound": (walk(at_bound=False), "one token too many is kept"),
    "order of ids": (walk(by_share=False), "in the order of their ids, not the"),
    "sorted": (
        lambda shares, p: sorted(nucleus(shares, p)),
        "the right tokens, but in the order of their ids",
    ),
    "shares": (
        lambda shares, p: [shares[i] for i in nucleus(shares, p)],
        "their token ids are asked for",
    ),
    "each by itself": (
        lambda shares, p: [i for i in nucleus(shares, 1.0) if shares[i] >= p],
        "it is their sum that counts",
    ),
    "everything": (
        lambda shares, p: list(range(len(shares))),
        "other tokens are kept",
    ),
    "a set": (lambda shares, p: set(nucleus(shares, p)), "not a list of token ids"),
}


# --- 5.9 ------------------------------------------------------------------------------


def penalise(logits, token_ids, penalty):
    result = logits.clone()
    for token in set(token_ids):
        value = logits[token]
        result[token] = value / penalty if value > 0 else value * penalty
    return result


def with_rule(rule, of=set):
    def attempt(logits, token_ids, penalty):
        result = logits.clone()
        for token in of(token_ids):
            result[token] = rule(result[token], penalty)
        return result

    return attempt


def paper(value, penalty):
    return value / penalty if value > 0 else value * penalty


def in_place(logits, token_ids, penalty):
    logits[:] = penalise(logits, token_ids, penalty)
    return logits


WRONG_5_9 = {
    "divided": (with_rule(lambda z, p: z / p), "a negative logit is divided"),
    "multiplied": (with_rule(lambda z, p: z * p), "every logit is multiplied"),
    "subtracted": (with_rule(lambda z, p: z - p), "the penalty is subtracted"),
    "several times": (with_rule(paper, of=list), "is punished several times"),
    "all tokens": (
        with_rule(paper, of=lambda token_ids: range(6)),
        "not just those of the text",
    ),
    "exchanged": (
        with_rule(lambda z, p: paper(z, 1 / p)),
        "the two cases are exchanged",
    ),
    "in place": (in_place, "the logits themselves were changed"),
    "nothing": (lambda z, ids, p: z.clone(), "a logit is wrong"),
    "a list": (lambda z, ids, p: penalise(z, ids, p).tolist(), "not a tensor"),
}


# --- 5.10 -----------------------------------------------------------------------------


def whole_characters(data):
    for waiting in range(min(3, len(data)) + 1):
        end = len(data) - waiting
        try:
            return data[:end].decode("utf-8"), data[end:]
        except UnicodeDecodeError:
            pass
    raise ValueError("not the beginning of a text in UTF-8")


def by_first_byte(data):
    """By the first byte of each character, which says how many follow."""
    place = 0
    while place < len(data):
        first = data[place]
        length = 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
        if place + length > len(data):
            break
        place += length
    return data[:place].decode("utf-8"), data[place:]


def all_or_nothing(data):
    try:
        return data.decode("utf-8"), b""
    except UnicodeDecodeError:
        return "", data


def up_to_two(data):
    for end in range(len(data), max(len(data) - 3, -1), -1):
        try:
            return data[:end].decode("utf-8"), data[end:]
        except UnicodeDecodeError:
            pass
    return data.decode("utf-8", "replace"), b""


def always_waiting(data):
    text, rest = whole_characters(data)
    return text[:-1], text[-1:].encode("utf-8") + rest


WRONG_5_10 = {
    "thrown away": (lambda data: (data.decode("utf-8", "ignore"), b""), "thrown away"),
    "replaced": (
        lambda data: (data.decode("utf-8", "replace"), b""),
        "shown as a replacement character",
    ),
    "all or nothing": (all_or_nothing, "the whole ones before it wait, too"),
    "no emoji": (up_to_two, "not whole yet when 3 have come"),
    "always waiting": (always_waiting, "always waits, even when it is whole"),
    "latin": (lambda data: (data.decode("latin-1"), b""), "the pair is not right"),
    "text only": (lambda data: whole_characters(data)[0], "not a pair (text, rest)"),
}


# --- all of them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "solution", "wrong"),
    [
        (check_5_1, rare_word, WRONG_5_1),
        (check_5_2, temperature_for, WRONG_5_2),
        (check_5_3, always_the_same, WRONG_5_3),
        (check_5_4, one_more_epoch, WRONG_5_4),
        (check_5_5, text_loss, WRONG_5_5),
        (check_5_6, largest_that_fits, WRONG_5_6),
        (check_5_7, perplexity, WRONG_5_7),
        (check_5_8, nucleus, WRONG_5_8),
        (check_5_9, penalise, WRONG_5_9),
        (check_5_10, whole_characters, WRONG_5_10),
    ],
)
def test_check(check, solution, wrong):
    verify(check, solution, stub, wrong)


def one_by_one(logits, token, temperatures, draws, generator):
    pairs = []
    for temperature in temperatures:
        shares = torch.softmax(logits / temperature, dim=-1)
        times = sum(
            torch.multinomial(shares, 1, generator=generator).item() == token
            for _ in range(draws)
        )
        pairs.append((shares[token] * draws, times))
    return pairs


def by_a_fine_grid(logits, share):
    grid = torch.logspace(-2, 2, 20001, dtype=torch.float64)
    shares = torch.softmax(logits / grid[:, None], dim=-1).amax(dim=-1)
    return grid[(shares - share).abs().argmin()]


def with_one_pass(model, token_ids, window):
    parts = [token_ids[s : s + window + 1] for s in range(0, len(token_ids), window)]
    losses = [
        F.cross_entropy(model(torch.tensor([p[:-1]]))[0], torch.tensor(p[1:]))
        * len(p[1:])
        for p in parts
        if len(p) > 1
    ]
    return sum(losses).detach() / (len(token_ids) - 1)


def by_torch(logits, token_ids, penalty):
    written = torch.zeros(len(logits), dtype=torch.bool)
    written[torch.tensor(token_ids, dtype=torch.long)] = True
    punished = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(written, punished, logits)


@pytest.mark.parametrize(
    ("check", "other"),
    [
        (check_5_1, one_by_one),
        (check_5_2, by_a_fine_grid),
        (check_5_5, with_one_pass),
        (check_5_6, by_arithmetic),
        (check_5_8, walk()),
        (check_5_9, by_torch),
        (check_5_10, by_first_byte),
    ],
)
def test_other_right_answers_pass_too(check, other, capsys):
    check(other)
    assert ": correct. " in capsys.readouterr().out


def test_the_arithmetic_of_the_memory_is_that_of_the_models():
    for cfg in GPT2_NAMES.values():
        with torch.device("meta"):
            numbers = count_parameters(GPTModel(cfg))
        cache = 2 * cfg["n_layers"] * cfg["emb_dim"] * 1024
        assert ch05_checks._needed(cfg, 1024, 2) == 2 * (numbers + cache)


def test_whatever_the_seed_is_what_generate_does():
    """The certain settings leave one token for many logits, the others leave two."""
    from gpt_generate import next_token_probabilities

    for temperature, top_k, top_p, vocab, certain_, _ in ch05_checks._SETTINGS:
        generator = torch.Generator().manual_seed(0)
        V = min(vocab, 500)
        spread = torch.logspace(-3, 1, 200, dtype=torch.float64)[:, None]
        noise = torch.rand(200, V, generator=generator, dtype=torch.float64)
        left = next_token_probabilities(spread * noise, temperature, top_k, top_p)
        most = int((left > 0).sum(dim=-1).max())
        assert (most == 1) == certain_
