"""The checks of chapter 5's exercises; `course.exercises` says how a check answers.

Where a slip gives plausible numbers, a check computes what the known slips would give,
and says which one the answer agrees with.
"""

import contextlib
import io
import math
import tempfile
from pathlib import Path

import numpy
import torch

from ch05_slips import (
    CHARACTER_SLIPS,
    MEMORY_SLIPS,
    NUCLEI,
    NUCLEUS_SLIPS,
    SETTINGS,
    TEXTS,
    TINY,
    after_epochs,
    checkpoint_after,
    flat_weights,
    in_order_of_ids,
    kept_by_nucleus,
    largest_model,
    memory_cases,
    one_more_slips,
    penalised,
    penalty_slips,
    random_loader,
    rare_word_slips,
    smallest_model,
    text_loss_slips,
    weights_after,
    weights_gone_on,
    whole_text,
    window_losses,
)
from checkpoints import CHECKPOINT
from course.differences import difference
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
from gpt import GPTModel
from gpt_download import GPT2_NAMES
from gpt_train import checkpoint_info

# --- 5.1 How often does a rare word come? ---------------------------------------------


@check("5.1")
def check_5_1(attempt):
    logits = torch.tensor([2.0, 0.5, 0.0, -1.0, -2.0, 1.0]).double()
    temperatures, draws, token = [0.5, 1.0, 2.0, 5.0], 6000, 3

    def once(seed):
        generator = seeded(seed)
        found = call(attempt, logits, token, temperatures, draws, generator)
        _expect_pairs(found, len(temperatures))
        drawn = not torch.equal(generator.get_state(), seeded(seed).get_state())
        pairs = [tuple(map(_plain, pair)) for pair in found]
        return [e for e, _ in pairs], [c for _, c in pairs], drawn

    expected, counted, drawn = once(1)
    right = [draws * (logits / t).softmax(dim=0)[token].item() for t in temperatures]
    turned = difference(counted, right, 1e-2) is None
    expect(not turned, "the pairs are the wrong way round; what is expected is first")
    expect_no_slip(expected, right, rare_word_slips(logits, token, temperatures, draws))
    expect_close(expected, right, "the expected numbers are not right", atol=1e-2)
    whole = all(number == int(number) for number in counted)
    expect(
        whole, "a count is no whole number: draw, and count how often the token comes"
    )
    copied = all(abs(c - e) <= 1 for c, e in zip(counted, expected))
    expect(not copied, "each count is the expected number, rounded; draw, and count")
    expect(drawn, "the generator was not used: draw with the one you get")
    for mean, count in zip(expected, counted):
        near = abs(count - mean) < 6 * math.sqrt(mean * (1 - mean / draws)) + 1
        expect(
            near, f"of {draws} draws about {mean:.0f} are expected, {count:.0f} is far"
        )
    same = once(1)[1] == counted
    expect(same, "the same seed gives other counts: draw with the generator you get")
    alike = once(2)[1] == once(3)[1] == counted
    expect(not alike, "three seeds give the same counts: draw on, do not seed it anew")
    return "At four temperatures the counts lie near what is expected."


def _plain(number):
    """A number of any library, without its gradient, as a float."""
    if isinstance(number, torch.Tensor):
        number = number.detach()
    return expect_number(number)


def _expect_pairs(found, count):
    """Pairs in a list, as lists, tuples or a table of numbers."""
    table = isinstance(found, (torch.Tensor, numpy.ndarray)) and found.ndim == 2
    message = f"the result is {describe(found)}, not a list of {count} pairs"
    expect(table or isinstance(found, (list, tuple)), message)
    expect(len(found) == count, message)
    for pair in found:
        is_pair = isinstance(pair, (list, tuple, torch.Tensor, numpy.ndarray))
        two = is_pair and len(pair) == 2
        expect(two, f"the list holds {describe(pair)} where a pair is asked for")


# --- 5.2 The temperature that does it -------------------------------------------------


@check("5.2")
def check_5_2(attempt):
    logits = torch.tensor([1.5, 0.0, 2.0, -0.5, -1.0, -3.0, 0.5, 1.0]).double()
    turned = logits.flip(0) - 7  # the same probabilities in another order
    for some in (logits, turned, logits[:3] * 10):
        few = len(some) == 3  # of three, one has more than a third
        for share in (0.5, 0.4 if few else 0.3, 0.9, 0.35 if few else 0.15, 0.99):
            found = _plain(call(attempt, some.clone(), share))
            usable = 0 < found < math.inf
            expect(usable, f"the temperature is {found}; give a number above 0")
            reached = (some / found).softmax(dim=0).max().item()
            if abs(reached - share) > 1e-3:
                seen = "right for one order of the logits, but not for the other order"
                expect(some is not turned, seen + ", each of them 7 lower")
                _expect_temperature(some, share, found, reached)
    return "Three models, five shares of each, from 0.15 to 0.99."


def _expect_temperature(logits, share, found, reached):
    inverse = (logits * found).softmax(dim=0).max().item()
    expect(abs(inverse - share) > 1e-3, "this is 1 / temperature")
    power = logits.softmax(dim=0).max().item() ** (1 / found)
    slip = "the probability is raised to 1 / temperature, but so are all the others, "
    expect(abs(power - share) > 1e-3, slip + "and their sum is not 1 any more")
    seen = f"with {found:.4g} the likeliest token has {reached:.4f}, where {share} is "
    heat = "too hot" if reached < share else "too cold"
    expect(False, f"{seen}asked for, to within 0.001: that temperature is {heat}")


# --- 5.3 Whatever the seed ------------------------------------------------------------


@check("5.3")
def check_5_3(attempt):
    for temperature, top_k, top_p, vocab_size, certain, missed in SETTINGS:
        found = call(attempt, temperature, top_k, top_p, vocab_size)
        is_bool = isinstance(found, (bool, numpy.bool_))
        if isinstance(found, torch.Tensor):
            is_bool = found.dtype == torch.bool and found.numel() == 1
        expect(is_bool, f"the result is {describe(found)}, not True or False")
        shown = f"for temperature={temperature}, top_k={top_k}, top_p={top_p} and "
        shown += f"{vocab_size} tokens you say {bool(found)}, but {missed}"
        expect(bool(found) == certain, shown)
    return "Twenty-three settings, twelve of them certain."


# --- 5.4 One more epoch ---------------------------------------------------------------


@check("5.4")
def check_5_4(attempt):
    for epochs in (2, 1):
        with contextlib.redirect_stdout(io.StringIO()):
            _expect_one_more(attempt, epochs)
    return (
        "Two epochs and one, and one and one, are as in one go, to the last digit, and "
        "so is one more from the checkpoint that you leave."
    )


def _expect_one_more(attempt, epochs):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        (folder / CHECKPOINT).write_bytes(checkpoint_after(epochs))
        first, train_loader, optimizer = after_epochs(None, 0)
        val_loader, updates = random_loader(seed=1), []
        optimizer.register_step_post_hook(lambda *_: updates.append(1))
        call(attempt, folder, first, optimizer, train_loader, val_loader)
        weights = flat_weights(first)
        right, mistakes = one_more_slips(epochs)
        if epochs != 2:
            mistakes = {
                "right after a run of two epochs, but not after one of "
                f"{epochs}; is a number of epochs written into your code?": weights
            }
        expect_no_slip(weights, right, mistakes)
        message = f"the weights are not those of {epochs + 1} epochs in one go"
        expect(torch.equal(weights, right), message)
        most = len(train_loader)
        message = f"the weights are right, but after {len(updates)} updates, where an "
        message += f"epoch has {most}: go on from the checkpoint, do not begin anew"
        expect(len(updates) <= most, message)
        done = checkpoint_info(folder)["progress"].get("epoch")
        message = f"the checkpoint in the folder still says that {done} epochs are done"
        expect(done == epochs + 1, message + "; the longer run belongs there now")
        _expect_to_go_on(folder, right, epochs + 2)


def _expect_to_go_on(folder, weights, epochs):
    """The checkpoint is that of the longer run: one more epoch can follow."""
    message = "the checkpoint in the folder does not let a run go on: it must hold the "
    message += "optimizer, and where the run stands, as well"
    try:
        saved, later = weights_gone_on(folder, epochs)
    except (ValueError, KeyError):
        raise AssertionError(message) from None
    other = "the checkpoint in the folder holds other weights than your model has"
    expect(torch.equal(saved, weights), other)
    expect(torch.equal(later, weights_after(epochs)), message)


# --- 5.5 What a text costs a model ----------------------------------------------------


@check("5.5")
def check_5_5(attempt):
    torch.manual_seed(2)
    model = GPTModel(TINY).double().eval()
    for tokens, window in ((24, 5), (21, 5), (6, 9), (2, 3), (7, 1)):
        ids = torch.randint(29, (tokens,), generator=seeded(tokens)).tolist()
        with torch.no_grad():
            losses = window_losses(model, ids, window)
            mistakes = text_loss_slips(model, ids, window, losses)
        found = _plain(call(attempt, model, list(ids), window))
        expect(not model.training, "the model is left in training mode")
        right = torch.cat(losses).mean().item()
        expect_no_slip(found, right, mistakes)
        shown = f"for {tokens} tokens in windows of {window} the loss is not right"
        expect_close(found, right, shown)
    return "Five texts, with full and short last windows, every token counted once."


# --- 5.6 The largest that fits --------------------------------------------------------


@check("5.6")
def check_5_6(attempt):
    cases = memory_cases()
    found = [call(attempt, *case) for case in cases]
    for name in found:
        fits = name is None or (isinstance(name, str) and name in GPT2_NAMES)
        expect(fits, f"the result is {describe(name)}, not a key of GPT2_NAMES or None")
    right = [largest_model(*case) for case in cases]
    for message, slip in MEMORY_SLIPS.items():
        same = found == [largest_model(*case, **slip) for case in cases]
        expect(not same, message)
    ordered = found == [smallest_model(*case) for case in cases]
    expect(not ordered, "the smallest that fits is chosen, not the largest")
    for case, name, wanted in zip(cases, found, right):
        memory, tokens, size = case
        shown = f"for {memory:,} bytes, {tokens} tokens and {size} bytes a number the "
        expect(name == wanted, f"{shown}largest that fits is not {name}")
    return "Eight memories, some just enough and some one byte too small."


# --- 5.7 Perplexity of a text in parts ------------------------------------------------


@check("5.7")
def check_5_7(attempt):
    for parts in (
        [(2.0, 100), (5.0, 10)],
        [(1.0, 3), (0.0, 1), (4.0, 8)],
        [(3.0, 7)],
        [(3.0, 5000), (2.0, 7000)],
    ):
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
            "the mean is negative; the loss is minus a logarithm already": (
                math.exp(-weighted)
            ),
        }
        found, right = _plain(call(attempt, list(parts))), math.exp(weighted)
        lost = found in (0, math.inf) or math.isnan(found)
        expect(not lost, f"the perplexity is {found}: add up losses, not probabilities")
        expect_no_slip(found, right, mistakes)
        message = f"the perplexity of {parts} is not right"
        expect_close(found, right, message, atol=1e-5 * right)  # float32 will do
    return "Four texts, of one, two and three parts, one of them long."


# --- 5.8 The nucleus by hand ----------------------------------------------------------


@check("5.8")
def check_5_8(attempt):
    def given_by(function):
        return [in_order_of_ids(function(*case), case[0]) for case in NUCLEI]

    found = given_by(lambda shares, p: _ids(call(attempt, list(shares), p)))
    for message, slip in NUCLEUS_SLIPS.items():
        expect(found != given_by(slip), message)
    for kept, (shares, top_p) in zip(found, NUCLEI):
        shown = f"for {shares} and top_p={top_p} other tokens are kept"
        expect_equal(kept, kept_by_nucleus(shares, top_p), shown)
    return "Seven nuclei, two of them with equally likely tokens."


def _ids(kept):
    """A list of ids, whatever sequence of whole numbers it was."""
    if isinstance(kept, (torch.Tensor, numpy.ndarray)) and kept.ndim == 1:
        kept = kept.tolist()
    is_list = isinstance(kept, (list, tuple))
    expect(is_list, f"the result is {describe(kept)}, not a list of token ids")
    return [token.item() if hasattr(token, "item") else token for token in kept]


# --- 5.9 A penalty for repetition -----------------------------------------------------


@check("5.9")
def check_5_9(attempt):
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0, 0.0, 4.0]).double()
    for written, penalty in (([0, 1, 0, 0, 3], 1.25), ([5, 2, 2], 2.0), ([], 1.5)):
        before = logits.clone()
        found = call(attempt, logits, list(written), penalty)
        is_tensor = isinstance(found, torch.Tensor)
        expect(is_tensor, f"the result is {describe(found)}, not a tensor")
        same_shape = found.shape == logits.shape
        expect(same_shape, f"the result has shape {tuple(found.shape)}, not (V,)")
        untouched = torch.equal(logits, before)
        expect(untouched, "the logits themselves were changed; make a copy first")
        right = penalised(logits, set(written), penalty)
        mistakes = penalty_slips(logits, written, penalty)
        expect_no_slip(found.double(), right, mistakes)
        message = f"for the text {written} and a penalty of {penalty} a logit is wrong"
        expect_close(found, right, message)
    return "Positive and negative logits, repeated tokens, and an empty text."


# --- 5.10 Whole characters only -------------------------------------------------------


@check("5.10")
def check_5_10(attempt):
    cases = [t.encode()[:end] for t in TEXTS for end in range(len(t.encode()) + 1)]
    found = [_text_and_rest(call(attempt, data)) for data in cases]
    for message, slip in CHARACTER_SLIPS.items():
        same = found == [slip(data) for data in cases]
        expect(not same, message)
    for data, pair in zip(cases, found):
        expect_equal(pair, whole_text(data), f"for {data!r} the pair is not right")
    return f"{len(cases)} pieces, cut after every byte of characters of 1 to 4 bytes."


def _text_and_rest(pair):
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    expect(is_pair, f"the result is {describe(pair)}, not a pair (text, rest)")
    text, rest = pair
    expect(isinstance(text, str), f"the text is {describe(text)}, not a str")
    is_bytes = isinstance(rest, (bytes, bytearray, memoryview))
    expect(is_bytes, f"the rest is {describe(rest)}, not bytes")
    return text, bytes(rest)
