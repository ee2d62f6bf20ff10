"""The checks of chapter 5's exercises; `course.exercises` says how a check answers.

Where a slip gives plausible numbers, a check computes what the known slips would give,
and says which one the answer agrees with.
"""

import contextlib
import functools
import io
import math
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

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
from gpt_download import GPT2_NAMES
from gpt_train import checkpoint_info, load_checkpoint, train_model_simple
from resumable import resumable

TINY = {
    **GPT_CONFIG_124M,
    "vocab_size": 29,
    "context_length": 9,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
}


# --- 5.1 How often does a rare word come? ---------------------------------------------


@check("5.1")
def check_5_1(attempt):
    logits = torch.tensor([2.0, 0.5, 0.0, -1.0, -2.0, 1.0]).double()
    temperatures, draws, token = [0.5, 1.0, 2.0, 5.0], 6000, 3

    def once(seed):
        found = call(attempt, logits, token, temperatures, draws, seeded(seed))
        pairs = isinstance(found, list) and len(found) == len(temperatures)
        pairs = pairs and all(isinstance(p, tuple) and len(p) == 2 for p in found)
        expect(pairs, f"the result is {describe(found)}, not a list of 4 pairs")
        return [float(p[0]) for p in found], [float(p[1]) for p in found]

    expected, counted = once(1)
    right = [draws * (logits / t).softmax(dim=0)[token].item() for t in temperatures]
    expect_no_slip(expected, right, _rare_mistakes(logits, token, temperatures, draws))
    expect_close(expected, right, "the expected numbers are not right", atol=1e-3)
    whole = all(number == int(number) for number in counted)
    expect(
        whole, "a count is no whole number: draw, and count how often the token comes"
    )
    copied = all(abs(c - e) <= 1 for c, e in zip(counted, expected))
    expect(not copied, "each count is the expected number, rounded; draw, and count")
    for mean, count in zip(expected, counted):
        near = abs(count - mean) < 6 * math.sqrt(mean * (1 - mean / draws)) + 1
        expect(
            near, f"of {draws} draws about {mean:.0f} are expected, {count:.0f} is far"
        )
    same = once(1)[1] == counted
    expect(same, "the same seed gives other counts: draw with the generator you get")
    return "At four temperatures the counts lie near what is expected."


def _rare_mistakes(logits, token, temperatures, draws):
    shares = logits.softmax(dim=0)
    right = [(logits / t).softmax(dim=0)[token].item() for t in temperatures]
    return {
        "the first numbers are probabilities; out of so many draws, how many?": right,
        "the logits are multiplied by the temperature, so that hot is cold": [
            draws * (logits * t).softmax(dim=0)[token].item() for t in temperatures
        ],
        "the probabilities are divided by the temperature; it belongs to the logits": [
            draws * shares[token].item() / t for t in temperatures
        ],
        "the temperature changes nothing": [
            draws * shares[token].item() for _ in temperatures
        ],
        "these are the numbers of the likeliest token, not of the one asked for": [
            draws * (logits / t).softmax(dim=0).max().item() for t in temperatures
        ],
    }


# --- 5.2 The temperature that does it -------------------------------------------------


@check("5.2")
def check_5_2(attempt):
    logits = torch.tensor([1.5, 0.0, 2.0, -0.5, -1.0, -3.0, 0.5, 1.0]).double()
    for share in (0.5, 0.3, 0.9, 0.15, 0.99):
        found = expect_number(call(attempt, logits, share))
        expect(0 < found < math.inf, f"the temperature is {found}, which is none")
        reached = (logits / found).softmax(dim=0).max().item()
        if abs(reached - share) > 1e-3:
            _expect_temperature(logits, share, found, reached)
    return "Five shares, from 0.15 to 0.99, each within a thousandth."


def _expect_temperature(logits, share, found, reached):
    inverse = (logits * found).softmax(dim=0).max().item()
    expect(abs(inverse - share) > 1e-3, "this is 1 / temperature")
    power = logits.softmax(dim=0).max().item() ** (1 / found)
    slip = "the probability is raised to 1 / temperature, but so are all the others, "
    expect(abs(power - share) > 1e-3, slip + "and their sum is not 1 any more")
    close = f"with {found:.4g} the likeliest token has {reached:.4f}, near {share} but "
    expect(abs(reached - share) > 0.03, close + "not within 0.001: go on halving")
    colder = "colder" if reached < share else "hotter"
    where = f"for a share of {share} a {colder} one than {found:.4g} is needed"
    expect(False, f"{where}; does your search start wide enough?")


# --- 5.3 Whatever the seed ------------------------------------------------------------

_SETTINGS = [
    # temperature, top_k, top_p, vocab_size, certain, what a wrong answer has missed
    (1.0, None, None, 50257, False, "without any setting every token may come"),
    (0.0, None, None, 50257, True, "temperature 0 takes the likeliest token"),
    (1.0, 1, None, 50257, True, "top_k=1 leaves one token"),
    (0.7, 1, None, 50257, True, "top_k=1 leaves one token, at any temperature"),
    (1.0, 2, None, 50257, False, "top_k=2 leaves two tokens, and either may come"),
    (0.01, None, None, 50257, False, "a low temperature makes the others rare, but "
     "not impossible"),
    (1.0, None, 0.01, 50257, False, "the likeliest of 50,257 may have less than 0.01, "
     "and then top_p=0.01 keeps others, too"),
    (1.0, None, 0.5, 2, True, "of two tokens the likelier one has at least a half, and "
     "top_p=0.5 asks for no more"),
    (1.0, None, 0.51, 2, False, "top_p=0.51 may need the second token as well"),
    (1.3, 4, 0.25, 50257, True, "of the 4 tokens that top_k leaves the likeliest has "
     "at least a quarter, and top_p looks at what is left"),
    (1.0, 4, 0.3, 50257, False, "top_p=0.3 may need two of the 4 tokens"),
    (1.0, 100, 0.25, 4, True, "top_k=100 leaves no more than the 4 tokens that there "
     "are"),
    (1.0, None, None, 1, True, "a vocabulary of one token leaves no choice"),
    (1.0, None, 1.0, 50257, False, "top_p=1 leaves all tokens in"),
]  # fmt: skip


@check("5.3")
def check_5_3(attempt):
    for temperature, top_k, top_p, vocab_size, certain, missed in _SETTINGS:
        found = call(attempt, temperature, top_k, top_p, vocab_size)
        is_bool = isinstance(found, bool)
        expect(is_bool, f"the result is {describe(found)}, not True or False")
        shown = f"for temperature={temperature}, top_k={top_k}, top_p={top_p} and "
        shown += f"{vocab_size} tokens you say {found}, but {missed}"
        expect(found == certain, shown)
    return "Fourteen settings, seven of them certain."


# --- 5.4 One more epoch ---------------------------------------------------------------


@check("5.4")
def check_5_4(attempt):
    with (
        tempfile.TemporaryDirectory() as place,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        folder, epochs = Path(place) / "run", 2
        _epochs(folder, epochs)
        first, train_loader, optimizer = _epochs(None, 0)
        val_loader = _loader(seed=1)
        call(attempt, folder, first, optimizer, train_loader, val_loader)
        weights = _flat(first)
        right, mistakes = _one_more(epochs)
        expect_no_slip(weights, right, mistakes)
        message = "the weights are not those of three epochs in one go"
        expect(torch.equal(weights, right), message)
        done = checkpoint_info(folder)["progress"]["epoch"]
        message = f"the checkpoint in the folder still says that {done} epochs are done"
        expect(done == epochs + 1, message + "; the longer run belongs there now")
    return "Two epochs and one more are the same as three, to the last digit."


def _loader(seed):
    ids = torch.randint(29, (10, 7), generator=seeded(seed))
    data = TensorDataset(ids[:, :-1], ids[:, 1:])
    return DataLoader(data, batch_size=2, shuffle=True, generator=seeded(seed))


def _epochs(folder, count):
    """A model that was trained for so many epochs, with its loader and optimizer."""
    torch.manual_seed(5)
    model, loader = GPTModel(TINY), _loader(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if count:
        _train(model, loader, optimizer, count, folder)
    return model, loader, optimizer


def _train(model, loader, optimizer, epochs, folder=None):
    loop = (
        train_model_simple if folder is None else resumable(train_model_simple, folder)
    )
    plan = (torch.device("cpu"), epochs, 10**6, 1, None, None)
    loop(model, loader, _loader(seed=1), optimizer, *plan)


def _flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@functools.cache
def _one_more(epochs):
    """The right weights after one more epoch, and those of the known slips."""
    with tempfile.TemporaryDirectory() as folder:
        saved, _, _ = _epochs(folder, epochs)
        stale, loader, fresh = _epochs(None, 0)
        load_checkpoint(folder, stale)
        _train(stale, loader, fresh, 1)
        order, loader, optimizer = _epochs(None, 0)
        load_checkpoint(folder, order, optimizer)
        _train(order, loader, optimizer, 1)
    return _flat(_epochs(None, epochs + 1)[0]), {
        "nothing was trained; num_epochs counts those before the checkpoint, too": (
            _flat(saved)
        ),
        "training began from the start, not from the checkpoint; these are the weights "
        "after one epoch": _flat(_epochs(None, 1)[0]),
        "the optimizer began anew; the checkpoint has its running means as well": (
            _flat(stale)
        ),
        "weights and optimizer are those of the checkpoint, but the batches come in "
        "the order of the first epoch again; the checkpoint has their generator, too": (
            _flat(order)
        ),
        "more than one epoch was added": _flat(_epochs(None, 2 * epochs)[0]),
        "more than one epoch was added, the checkpoint's number and one": (
            _flat(_epochs(None, 2 * epochs + 1)[0])
        ),
    }


# --- 5.5 What a text costs a model ----------------------------------------------------


@check("5.5")
def check_5_5(attempt):
    torch.manual_seed(2)
    model = GPTModel(TINY).double().eval()
    for tokens, window in ((24, 5), (21, 5), (6, 9), (2, 3)):
        ids = torch.randint(29, (tokens,), generator=seeded(tokens)).tolist()
        with torch.no_grad():
            losses = _window_losses(model, ids, window)
            mistakes = _loss_mistakes(model, ids, window, losses)
        found = expect_number(call(attempt, model, list(ids), window))
        right = torch.cat(losses).mean().item()
        expect_no_slip(found, right, mistakes)
        shown = f"for {tokens} tokens in windows of {window} the loss is not right"
        expect_close(found, right, shown)
    return "Four texts, with full and short last windows, every token counted once."


def _window_losses(model, ids, window, shift=1, step=None, length=None):
    """The loss of each target, a tensor for each window; the options plant slips."""
    losses = []
    for start in range(0, len(ids) - 1, step or window):
        targets = ids[start + shift : start + shift + (length or window)]
        inputs = ids[start : start + len(targets)]
        if targets:
            shares = model(torch.tensor([inputs]))[0].log_softmax(dim=-1)
            losses.append(-shares[range(len(targets)), targets])
    return losses


def _loss_mistakes(model, ids, window, losses):
    whole = [part for part in losses if len(part) == window] or losses
    seams = _window_losses(model, ids, window, length=max(window - 1, 1))
    all_of_them = torch.cat(losses)
    return {
        "the mean is one of window means, so a short last window counts too much": (
            torch.stack([part.mean() for part in losses]).mean().item()
        ),
        "the short window at the end is left out": torch.cat(whole).mean().item(),
        "the first token of each window is never predicted; the last input of a window "
        "has a target, too, the first token of the next": (
            torch.cat(seams).mean().item()
        ),
        "each input is its own target; a model predicts the token after it": (
            torch.cat(_window_losses(model, ids, window, shift=0)).mean().item()
        ),
        "this is the sum, not the mean": all_of_them.sum().item(),
        "this is the perplexity; the loss is its logarithm": (
            all_of_them.mean().exp().item()
        ),
        "the logarithm is to base 2; a loss is to base e": (
            all_of_them.mean().item() / math.log(2)
        ),
    }


# --- 5.6 The largest that fits --------------------------------------------------------


@check("5.6")
def check_5_6(attempt):
    cases = _memory_cases()
    found = [call(attempt, *case) for case in cases]
    for name in found:
        fits = name is None or (isinstance(name, str) and name in GPT2_NAMES)
        expect(fits, f"the result is {describe(name)}, not a key of GPT2_NAMES or None")
    right = [_largest(*case) for case in cases]
    for message, slip in _MEMORY_SLIPS.items():
        same = found == [_largest(*case, **slip) for case in cases]
        expect(not same, message)
    ordered = found == [_smallest(*case) for case in cases]
    expect(not ordered, "the smallest that fits is chosen, not the largest")
    for case, name, wanted in zip(cases, found, right):
        memory, tokens, size = case
        shown = f"for {memory:,} bytes, {tokens} tokens and {size} bytes a number the "
        expect_equal(name, wanted, shown + "largest that fits is another one")
    return "Seven memories, some just enough and some one byte too small."


def _needed(cfg, tokens, size, tied=True, cache=2.0, layers=True):
    """Bytes of the weights and of keys and values; the options plant slips."""
    V, T, D, L = (
        cfg[n] for n in ("vocab_size", "context_length", "emb_dim", "n_layers")
    )
    weights = (V + T) * D + L * (12 * D * D + 13 * D) + 2 * D + (0 if tied else V * D)
    return int(size * (weights + cache * (L if layers else 1) * D * tokens))


def _largest(memory, tokens, size, fixed=None, **slip):
    chosen = None
    for name, cfg in GPT2_NAMES.items():
        if _needed(cfg, tokens, fixed or size, **slip) <= memory:
            chosen = name
    return chosen


def _smallest(memory, tokens, size):
    for name, cfg in GPT2_NAMES.items():
        if _needed(cfg, tokens, size) <= memory:
            return name
    return None


def _memory_cases():
    small, medium, _, xl = GPT2_NAMES.values()
    one_block = _needed(xl, 1024, 2, layers=False)
    return [
        (_needed(medium, 1024, 4), 1024, 4),
        (_needed(medium, 1024, 4) - 1, 1024, 4),
        (_needed(xl, 10, 2), 10, 2),
        # Too little for the largest, but enough for one of the slips.
        (_needed(xl, 1024, 2, cache=1.0), 1024, 2),
        (one_block, 1024, 2),
        (one_block - 1, 1024, 2),
        (_needed(small, 1, 4) - 1, 1, 4),
    ]


_MEMORY_SLIPS = {
    "the output head is counted beside the embedding, but these models are tied": (
        {"tied": False}
    ),
    "the cache is left out": {"cache": 0.0},
    "the cache holds keys and values, which is two numbers, not one": {"cache": 1.0},
    "the cache is that of one block; every block has its own": {"layers": False},
    "every number is taken for 4 bytes, whatever the third argument says": {"fixed": 4},
}


# --- 5.7 Perplexity of a text in parts ------------------------------------------------


@check("5.7")
def check_5_7(attempt):
    for parts in ([(2.0, 100), (5.0, 10)], [(1.0, 3), (0.0, 1), (4.0, 8)], [(3.0, 7)]):
        total = sum(tokens for _, tokens in parts)
        losses = [loss for loss, _ in parts]
        weighted = sum(loss * tokens for loss, tokens in parts) / total
        mistakes = {
            "this is the mean loss; perplexity is e to that power": weighted,
            "all parts count alike, whatever their length": (
                math.exp(sum(losses) / len(losses))
            ),
            "the perplexities are averaged; average the losses first": (
                sum(map(math.exp, losses)) / len(losses)
            ),
            "the perplexities are averaged, by length; average the losses first": (
                sum(math.exp(loss) * tokens for loss, tokens in parts) / total
            ),
            "the losses are to base e, so 2 is the wrong number to raise": 2**weighted,
        }
        found, right = expect_number(call(attempt, list(parts))), math.exp(weighted)
        expect_no_slip(found, right, mistakes)
        expect_close(found, right, "the perplexity is not right")
    return "Three texts, of one, two and three parts."


# --- 5.8 The nucleus by hand ----------------------------------------------------------

_NUCLEI = [
    # Eighths and sixteenths, whose sums are exact.
    ([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.7),
    ([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.75),
    ([0.125, 0.5, 0.0625, 0.25, 0.0625], 0.3),
    ([0.25, 0.0, 0.625, 0.125], 1.0),
    ([1.0], 0.5),
]


@check("5.8")
def check_5_8(attempt):
    found = [call(attempt, list(shares), top_p) for shares, top_p in _NUCLEI]
    for kept in found:
        is_list = isinstance(kept, list)
        expect(is_list, f"the result is {describe(kept)}, not a list of token ids")
    for message, slip in _NUCLEUS_SLIPS.items():
        same = found == [slip(*case) for case in _NUCLEI]
        expect(not same, message)
    for kept, (shares, top_p) in zip(found, _NUCLEI):
        shown = f"for {shares} and top_p={top_p} other tokens are kept"
        expect_equal(kept, _nucleus(shares, top_p), shown)
    return "Five nuclei, two of them with the bound met exactly."


def _by_share(shares):
    return sorted(range(len(shares)), key=lambda token: -shares[token])


def _nucleus(shares, top_p):
    kept, total = [], 0.0
    for token in _by_share(shares):
        if total >= top_p:
            break
        kept.append(token)
        total += shares[token]
    return kept


def _without_crossing(shares, top_p):
    kept, total = [], 0.0
    for token in _by_share(shares):
        total += shares[token]
        if total > top_p:
            break
        kept.append(token)
    return kept


def _one_too_many(shares, top_p):
    kept, total = [], 0.0
    for token in _by_share(shares):
        if total > top_p:
            break
        kept.append(token)
        total += shares[token]
    return kept


def _unsorted(shares, top_p):
    kept, total = [], 0.0
    for token, share in enumerate(shares):
        if total >= top_p:
            break
        kept.append(token)
        total += share
    return kept


_NUCLEUS_SLIPS = {
    "the token that crosses the bound is left out": _without_crossing,
    "where the bound is met exactly one token too many is kept": _one_too_many,
    "tokens are taken in the order of their ids, not the likeliest first": _unsorted,
    "the right tokens, but in the order of their ids; the likeliest comes first": (
        lambda shares, top_p: sorted(_nucleus(shares, top_p))
    ),
    "these are probabilities; their token ids are asked for": (
        lambda shares, top_p: [shares[token] for token in _nucleus(shares, top_p)]
    ),
    "each token is compared with top_p by itself; it is their sum that counts": (
        lambda shares, top_p: [t for t in _by_share(shares) if shares[t] >= top_p]
    ),
}


# --- 5.9 A penalty for repetition -----------------------------------------------------


@check("5.9")
def check_5_9(attempt):
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0, 0.0, 4.0]).double()
    for written, penalty in (([0, 1, 0, 0, 3], 1.25), ([5, 2, 2], 2.0), ([], 1.5)):
        before = logits.clone()
        found = call(attempt, logits, list(written), penalty)
        is_tensor = isinstance(found, torch.Tensor)
        expect(is_tensor, f"the result is {describe(found)}, not a tensor")
        untouched = torch.equal(logits, before)
        expect(untouched, "the logits themselves were changed; make a copy first")
        right = _penalised(logits, set(written), penalty)
        mistakes = _penalty_mistakes(logits, written, penalty)
        expect_no_slip(found.double(), right, mistakes)
        message = f"for the text {written} and a penalty of {penalty} a logit is wrong"
        expect_close(found, right, message)
    return "Positive and negative logits, repeated tokens, and an empty text."


def _penalised(logits, tokens, penalty):
    result = logits.clone()
    for token in tokens:
        value = result[token]
        result[token] = value / penalty if value > 0 else value * penalty
    return result


def _penalty_mistakes(logits, written, penalty):
    at = sorted(set(written))
    divided, multiplied, lowered = logits.clone(), logits.clone(), logits.clone()
    divided[at] /= penalty
    multiplied[at] *= penalty
    lowered[at] -= penalty
    return {
        "a negative logit is divided, which makes its token likelier": divided,
        "every logit is multiplied, which makes the positive ones likelier": multiplied,
        "the penalty is subtracted; it divides or multiplies": lowered,
        "a token that came several times is punished several times": (
            _penalised(logits, written, penalty)
        ),
        "all tokens are punished, not just those of the text": (
            _penalised(logits, range(len(logits)), penalty)
        ),
        "the two cases are exchanged: the tokens of the text become likelier": (
            _penalised(logits, at, 1 / penalty)
        ),
    }


# --- 5.10 Whole characters only -------------------------------------------------------

_TEXTS = ["lamp", "na\u00efve", "\u65e5\u672c", "a\U0001f680b", "\U0001f600\U0001f600"]


@check("5.10")
def check_5_10(attempt):
    cases = [t.encode()[:end] for t in _TEXTS for end in range(len(t.encode()) + 1)]
    found = [call(attempt, data) for data in cases]
    for pair in found:
        fits = isinstance(pair, tuple) and len(pair) == 2
        fits = fits and isinstance(pair[0], str) and isinstance(pair[1], bytes)
        expect(fits, f"the result is {describe(pair)}, not a pair (text, rest)")
    for message, slip in _CHARACTER_SLIPS.items():
        same = found == [slip(data) for data in cases]
        expect(not same, message)
    for data, pair in zip(cases, found):
        expect_equal(pair, _whole(data), f"for {data!r} the pair is not right")
    return f"{len(cases)} pieces, cut after every byte of characters of 1 to 4 bytes."


def _whole(data, most=3):
    """The text of the whole characters, and the bytes of one that is unfinished."""
    for cut in range(most + 1):
        with contextlib.suppress(UnicodeDecodeError):
            return data[: len(data) - cut].decode("utf-8"), data[len(data) - cut :]
    return data.decode("utf-8", errors="replace"), b""


_CHARACTER_SLIPS = {
    "the unfinished bytes are thrown away; they belong into the rest": (
        lambda data: (data.decode("utf-8", errors="ignore"), b"")
    ),
    "an unfinished character is shown as a replacement character": (
        lambda data: (data.decode("utf-8", errors="replace"), b"")
    ),
    "when the last character is unfinished, the whole ones before it wait, too": (
        lambda data: _whole(data) if not _whole(data)[1] else ("", data)
    ),
    "characters of 4 bytes, such as emoji, are not whole yet when 3 have come": (
        lambda data: _whole(data, most=2)
    ),
    "the last character always waits, even when it is whole": (
        lambda data: (
            (_whole(data)[0][:-1], _whole(data)[0][-1:].encode() + _whole(data)[1])
        )
    ),
}
