"""The checks of the exercises in `kv-cache.ipynb`; see `course.exercises`."""

from collections.abc import Iterable

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
    expect_tensor,
    random_tensor,
)

# --- K.1 Where does a token lie? -----------------------------------------------------


def _ring(seen, window, sinks, turn=None, shift=None):
    """The places as they are filled; `turn` and `shift` to make mistakes with."""
    turn = window - sinks if turn is None else turn
    shift = sinks if shift is None else shift
    places = {}
    for t in range(seen):
        places[t if t < sinks else shift + (t - sinks) % turn] = t
    return [places[place] for place in sorted(places)]


def _late_turns(seen, window, sinks, first):
    """The mistake `sinks + t % turn`, for the tokens from `first` on."""
    places = {}
    for t in range(seen):
        places[t if t < first else sinks + t % (window - sinks)] = t
    return [places[place] for place in sorted(places)]


@check("K.1")
def check_K_1(attempt):
    cases = (
        (9, 7, 3),
        (23, 7, 3),
        (5, 4, 1),
        (6, 4, 1),
        (10, 4, 0),
        (9, 5, 2),
        (3, 5, 2),
    )
    for seen, window, sinks in (*cases, (0, 4, 1), (7, 1, 0), (4, 4, 1)):
        found = call(attempt, seen, window, sinks)
        kind = (
            f"the result is {describe(found)}, where a list of positions is asked for"
        )
        no_order = isinstance(found, (str, dict, set, frozenset))
        expect(isinstance(found, Iterable) and not no_order, kind)
        found = found.tolist() if hasattr(found, "tolist") else list(found)
        expect(
            not any(place is None or place is ... for place in found),
            "free places stand in the list; they are left out",
        )
        right = _ring(seen, window, sinks)
        slips = {
            "the first tokens do not stay: sinks keep their places for good": (
                _ring(seen, window, 0)
            ),
            "the newest tokens one after the other, without the sinks; a new one "
            "should take the place of an old one": (
                list(range(max(0, seen - window), seen))
            ),
            "the turns are counted from token 0, not from the first token after the "
            "sinks": _late_turns(seen, window, sinks, window),
            "all turns are counted from token 0, not from the first token after the "
            "sinks": _late_turns(seen, window, sinks, sinks),
            "the tokens are those of the window, but in the order of the text and not "
            "of the places": sorted(right),
            "the newest token is missing, or one too many has gone": (
                _ring(seen - 1, window, sinks)
            ),
            "a token is there that has not been added yet": (
                _ring(seen + 1, window, sinks)
            ),
            "beside the sinks a whole window takes turns; only the places that are "
            "left should": _ring(seen, window + sinks, sinks),
        }
        expect_no_slip(found, right, slips)
        expect_equal(found, right, f"not what lies there for {seen, window, sinks}")
    return "It is right for windows with sinks and without, full and not yet full."


# --- K.2 When does guessing pay? ------------------------------------------------------


def _share(tokens, cost):
    """The share at which `tokens` of it, which grow with it, reach what they cost."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens(middle) < cost else (low, middle)
    return high


@check("K.2")
def check_K_2(attempt):
    for k, guess, one_pass in (
        (4, 0.3, 1.6),
        (1, 0.5, 1.25),
        (7, 0.1, 2.0),
        (3, 0.0, 1.25),
        (1, 0.5, 1.5),
        (2, 0.0, 1.0),
        (4, 0.9, 1.5),
        (1, 0.75, 1.5),
    ):
        found = call(attempt, k, guess, one_pass)
        cost = k * guess + one_pass
        asked = f"guesses={k}, guess_cost={guess}, pass_cost={one_pass}"
        if cost > k + 1:
            expect(
                found is None,
                f"for {asked} the result is {describe(found)}, but even if all guesses "
                "stay, a round gives fewer steps' worth of tokens than it costs: None",
            )
            continue
        expect(found is not None, f"None for {asked}, where a share is enough")
        found = expect_number(found)
        _expect_no_slip_of_K_2(found, k, guess, one_pass)
        right = _share(_tokens(k), cost)
        expect_close(found, right, f"not right for {asked}", atol=1e-4)
    return "It is right for dear and cheap guesses, and where none are good enough."


def _tokens(k, start=0):
    return lambda share: sum(share**i for i in range(start, k + 1))


def _expect_no_slip_of_K_2(found, k, guess, one_pass):
    tokens, cost = _tokens(k), k * guess + one_pass
    right = _share(tokens, cost)
    slips = {
        "the large model's own token is missing, which each round gives": (
            _share(_tokens(k, start=1), cost)
        ),
        "a guess counts although an earlier one went": (cost - 1) / k,
        "the last guess never counts": _share(_tokens(k - 1), cost),
        "a token too many: k guesses can all stay, and one token of the model's own "
        "comes after them": _share(_tokens(k + 1), cost),
        "only the guesses that stayed are charged": _share(
            lambda a: tokens(a) - (tokens(a) - 1) * guess, one_pass
        ),
        "the guesses cost nothing here": _share(tokens, one_pass),
        "the pass that checks them costs nothing here": _share(tokens, k * guess),
        "a pass is charged for each guess, or for each token that it reads, but one "
        "pass checks them all": _share(tokens, k * (guess + one_pass)),
        "only one guess is charged, but they are made one after the other": (
            _share(tokens, guess + one_pass)
        ),
        "this is the share that goes, not the share that stays": 1 - right,
        "this is what a round costs, not yet the share of guesses": cost,
        "this is the tokens that a round must give for each that it can give, not yet "
        "the share of guesses": cost / (k + 1),
        "this is per cent; give a share from 0 to 1": 100 * right,
    }
    expect_no_slip(found, right, slips, atol=1e-4)


# --- K.3 A cache of your own ---------------------------------------------------------


@check("K.3")
def check_K_3(attempt):
    for B, G, K, room in ((1, 1, 2, 6), (2, 3, 4, 9)):
        all_keys = random_tensor(B, G, room + 1, K, seed=1)
        all_values = random_tensor(B, G, room + 1, K, seed=2)
        long = all_keys, all_values
        layer = call(attempt, room)
        all_keys, all_values = all_keys[:, :, :room], all_values[:, :, :room]
        start, places, held = 0, set(), []
        for end in (2, 3, room - 1):
            keys, values = _append(layer, all_keys, all_values, start, end)
            _expect_parts(keys, values, all_keys, all_values, start, end)
            parts = (keys, values)
            held.append(parts)  # else freed memory could be taken again
            places.add(tuple(part.untyped_storage().data_ptr() for part in parts))
            expect_equal(
                _length(layer), end, "`length` is not the number of tokens held"
            )
            start = end
        moves = [len(set(of)) > 1 for of in zip(*places, strict=True)]
        one = "keys" if moves[0] else "values"
        expect(moves[0] == moves[1], f"the {one} move at a later call, the others stay")
        expect(
            not any(moves),
            "what append returns lies at another place in memory at a later call: make "
            "the room once, and return a slice of it, without a copy",
        )
        _expect_refused(layer, all_keys, all_values, 2)
        keys, values = _append(layer, all_keys, all_values, room - 1, room)
        about = "after a refused call the next token finds other keys or values"
        expect_close(keys, all_keys, about)
        expect_close(values, all_values, about)
        # The room is full. A slice past the end takes ONE token without an error.
        _expect_refused(layer, all_keys, all_values, 1)
        _expect_refused(call(attempt, room), *long, room + 1)
        _expect_own_room(call(attempt, room), call(attempt, room), all_keys, all_values)
    return "It holds all tokens in one place, and refuses without losing any."


def _append(layer, keys, values, start, end):
    expect(hasattr(layer, "append"), "there is no method called append")
    # Clones, so that what the layer keeps must be copies.
    parts = keys[:, :, start:end].clone(), values[:, :, start:end].clone()
    try:
        found = call(layer.append, *parts)
    except AssertionError as error:
        refused = isinstance(error.__cause__, ValueError)
        expect(
            not refused,
            f"append refuses {end - start} more after {start} tokens, for which there "
            f"is room: {error.__cause__}",
        )
        raise
    for part in parts:
        part.zero_()
    pair = isinstance(found, (tuple, list)) and len(found) == 2
    expect(
        pair, f"append returns {describe(found)}, where keys and values are asked for"
    )
    return found


def _expect_parts(keys, values, all_keys, all_values, start, end):
    shape = (*all_keys.shape[:2], end, all_keys.shape[3])
    for part in (keys, values):
        is_tensor = isinstance(part, torch.Tensor)
        expect(
            is_tensor, f"append returns {describe(part)} where a tensor is asked for"
        )
        tokens = part.shape[2] if part.ndim == 4 else None
        expect(
            tokens != end - start or start == 0,
            "append returns the new tokens alone; attention needs all of them",
        )
        expect(
            tokens != all_keys.shape[2],
            "append returns the whole room, free places included; give what is filled",
        )
        expect_tensor(part, shape, "batch, heads, tokens so far, head width")
        expect(
            part.dtype == all_keys.dtype,
            f"the room holds {part.dtype} but the keys are {all_keys.dtype}: numbers "
            "change on their way in",
        )
    given = all_keys[:, :, :end], all_values[:, :, :end]
    if torch.equal(keys, given[1]):
        both = torch.equal(values, given[0])
        expect(not both, "keys and values are exchanged")
        expect(False, "the keys are those of the values: do both share one tensor?")
    expect_close(keys, all_keys[:, :, :end], "the keys are not those of all tokens")
    expect_close(
        values, all_values[:, :, :end], "the values are not those of all tokens"
    )


def _expect_own_room(first, second, keys, values):
    """Two layers in turn, as the blocks of a model append."""
    for start, end in ((0, 2), (2, 3)):
        found = _append(first, keys, values, start, end)
        _append(second, values, keys, start, end)
    for part, given in zip(found, (keys, values), strict=True):
        expect(
            torch.equal(part, given[:, :, : part.shape[2]]),
            "two layers write into one room: make it in the instance, not in the class",
        )


def _length(layer):
    expect(hasattr(layer, "length"), "there is no attribute called length")
    expect(
        not callable(layer.length),
        "`length` is a method; make it an attribute or a property",
    )
    return int(layer.length)


def _expect_refused(layer, keys, values, tokens):
    """More tokens than fit: `ValueError`, and the layer is as it was."""
    before = _length(layer)
    try:
        layer.append(keys[:, :, :tokens] + 1, values[:, :, :tokens] + 1)
    except ValueError:
        pass
    except Exception as error:
        raise AssertionError(
            f"with more tokens than fit append raises {type(error).__name__}, not "
            "ValueError: look whether it fits before you write"
        ) from error
    else:
        one = "one token too many is taken without a word, and is lost"
        many = f"{tokens} tokens are taken without a word where fewer fit"
        first = "a first piece longer than the room is taken without a word"
        said = first if before == 0 else one if tokens == 1 else many
        raise AssertionError(f"{said}; raise ValueError")
    expect(
        _length(layer) == before,
        "a refused call has changed `length`: raise before anything is changed",
    )
