"""The checks of the exercises in `swa.ipynb`; see `course.exercises`."""

import torch

from course.exercises import (
    as_tensor,
    call,
    check,
    describe,
    expect,
    expect_close,
    expect_no_slip,
    expect_number,
    expect_tensor,
)

# --- SW.1 How far back? --------------------------------------------------------------


@check("SW.1")
def check_SW_1(attempt):
    cases = ([3, 7, 2, 6], [4, 4, 4], [1, 1], [9], [4, None, 4], [None], [], [2, 1, 6])
    for windows in cases:  # in the first one no two slips come out alike
        found = call(attempt, list(windows))
        if None in windows:
            expect(
                found is None,
                f"for {windows} the result is {describe(found)}, but one layer sees "
                "everything, so there is no bound: None",
            )
            continue
        expect(found is not None, f"None for {windows}, where each layer has a bound")
        found = expect_number(found)
        many = len(windows)
        slips = {
            "a window holds its own token, too, so a layer carries a trace W - 1 "
            "places on": sum(windows),
            "each layer adds to what the others reach; this is the largest alone": (
                max(windows, default=1) - 1
            ),
            "this is W - 1 for the last layer, times all layers; the windows differ": (
                many * (windows[-1] - 1) if windows else 0
            ),
            "1 is taken off once for all layers; each layer's window holds the token "
            "itself": sum(windows) - 1,
            "this counts the token itself; the reach is how far it goes beyond": (
                sum(w - 1 for w in windows) + 1
            ),
            "windows are not multiplied; each layer adds W - 1 places": float(
                torch.tensor([float(w) for w in windows]).prod()
            ),
        }
        right = sum(w - 1 for w in windows)
        expect_no_slip(found, right, slips)
        expect_close(found, right, f"not right for {windows}")
    return "It is right for equal and unequal windows, without bound, without layers."


# --- SW.2 A mask for a chunk ---------------------------------------------------------


def _seen(T, S, window, sinks, newest=None, late=False):
    """Who sees whom; `newest` and `late` to make mistakes with."""
    keys = torch.arange(S)
    queries = (keys[S - T :] if newest is None else newest)[:, None]
    seen = (queries - keys < window - sinks) | (keys < sinks)
    return seen if late else seen & (keys <= queries)


@check("SW.2")
def check_SW_2(attempt):
    cases = (
        (4, 9, 5, 2),
        (4, 9, 3, 1),
        (1, 5, 3, 1),
        (5, 5, 2, 0),
        (3, 8, 20, 0),
        (6, 6, 4, 3),
    )
    for T, S, window, sinks in (*cases, (2, 7, 1, 0), (1, 1, 2, 1)):
        found = as_tensor(call(attempt, T, S, window, sinks))
        asked = f"T={T}, S={S}, window={window}, sinks={sinks}"
        expect_tensor(found, (T, S), "a row for each query, a column for each key")
        expect(
            found.dtype == torch.bool,
            f"the mask holds {found.dtype}; give bool, True for a key that is seen",
        )
        right, first = _seen(T, S, window, sinks), torch.arange(T)
        keys = torch.arange(S)
        slips = {
            "it says what is hidden; give what is seen": ~right,
            "each query sees one token too many: the window holds the token itself": (
                _seen(T, S, window + 1, sinks)
            ),
            "each query sees one token too few: the token itself is in the window": (
                _seen(T, S, window - 1, sinks)
            ),
            "the sinks come on top of a whole window; they are part of it": (
                _seen(T, S, window + sinks, sinks)
            ),
            "the sinks are hidden": _seen(T, S, window - sinks, 0),
            "the queries are taken for the first T of the text, not the last": (
                _seen(T, S, window, sinks, newest=first)
            ),
            "queries see what comes after them": (
                _seen(T, S, window, sinks, late=True)
            ),
            "a sink that comes after the query is seen; it is seen by later queries "
            "only": right | (keys < sinks),
            "of the window nothing is seen but the token itself and the sinks": right
            & ((keys == keys[S - T :, None]) | (keys < sinks)),
        }
        expect_no_slip(found, right, slips)
        expect_close(found.int(), right.int(), f"not right for {asked}")
    return "It is right for chunks and single tokens, with sinks and without."
