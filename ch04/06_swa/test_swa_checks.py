"""Every exercise check takes the solution, knows the stub and names mistakes."""

import math

import torch

from course.exercises import answer, verify
from swa_checks import check_SW_1, check_SW_2


def stub(*arguments, **keywords):
    return ...


# --- SW.1 ----------------------------------------------------------------------------


def reach(windows):
    if None in windows:
        return None
    return sum(window - 1 for window in windows)


def by_tensor(windows):
    """Another way, with a number of PyTorch."""
    if any(window is None for window in windows):
        return None
    return (torch.tensor(windows).long() - 1).sum()


def none_is_skipped(windows):
    return sum(window - 1 for window in windows if window is not None)


def whole_windows(windows):
    return None if None in windows else sum(windows)


def largest(windows):
    return None if None in windows else max(windows, default=1) - 1


def last_times_all(windows):
    return None if None in windows or not windows else len(windows) * (windows[-1] - 1)


def one_for_all(windows):
    return None if None in windows else sum(windows) - bool(windows)


def itself_too(windows):
    return None if None in windows else reach(windows) + 1


def product(windows):
    return None if None in windows else math.prod(windows)


def twice(windows):
    return None if None in windows else 2 * reach(windows)


def never(windows):
    return dict.fromkeys(windows).get("bound")


def test_SW_1():
    verify(
        check_SW_1,
        reach,
        stub,
        {
            "skipped": (none_is_skipped, "one layer sees"),
            "whole windows": (whole_windows, "holds its own token, too"),
            "largest": (largest, "the largest alone"),
            "last": (last_times_all, "for the last layer"),
            "one for all": (one_for_all, "once for all layers"),
            "itself": (itself_too, "counts the token itself"),
            "product": (product, "not multiplied"),
            "twice": (twice, "not right for"),
            "never": (never, "where each layer has a bound"),
        },
    )
    assert "correct" in answer(check_SW_1, by_tensor)


# --- SW.2 ----------------------------------------------------------------------------


def window_mask(T, S, window, sinks):
    keys = torch.arange(S)
    queries = keys[S - T :, None]
    young = keys > queries - (window - sinks)
    return (keys <= queries) & (young | (keys < sinks))


def in_loops(T, S, window, sinks):
    rows = [
        [s <= t and (s < sinks or t - s < window - sinks) for s in range(S)]
        for t in range(S - T, S)
    ]
    return torch.tensor(rows)


def turned_round(*sizes):
    return ~window_mask(*sizes)


def one_more(T, S, window, sinks):
    return window_mask(T, S, window + 1, sinks)


def one_less(T, S, window, sinks):
    return window_mask(T, S, window - 1, sinks)


def on_top(T, S, window, sinks):
    return window_mask(T, S, window + sinks, sinks)


def no_sinks(T, S, window, sinks):
    return window_mask(T, S, window - sinks, 0)


def at_the_start(T, S, window, sinks):
    return window_mask(S, S, window, sinks)[:T]


def future(T, S, window, sinks):
    keys = torch.arange(S)
    return (keys > keys[S - T :, None] - (window - sinks)) | (keys < sinks)


def early_sinks(T, S, window, sinks):
    keys = torch.arange(S)
    young = keys > keys[S - T :, None] - (window - sinks)
    return (keys <= keys[S - T :, None]) & young | (keys < sinks)


def itself_alone(T, S, window, sinks):
    keys = torch.arange(S)
    queries = keys[S - T :, None]
    return (keys == queries) | (keys <= queries) & (keys < sinks)


def floats(*sizes):
    return window_mask(*sizes).float()


def square(T, S, window, sinks):
    return window_mask(S, S, window, sinks)


def test_SW_2():
    verify(
        check_SW_2,
        window_mask,
        stub,
        {
            "turned round": (turned_round, "what is hidden"),
            "one more": (one_more, "one token too many"),
            "one less": (one_less, "one token too few"),
            "on top": (on_top, "on top of a whole window"),
            "no sinks": (no_sinks, "the sinks are hidden"),
            "start": (at_the_start, "the first T of the text"),
            "future": (future, "what comes after them"),
            "early sinks": (early_sinks, "a sink that comes after the query"),
            "itself": (itself_alone, "nothing is seen but the token itself"),
            "floats": (floats, "the mask holds torch.float32"),
            "square": (square, "has shape"),
        },
    )
    assert "correct" in answer(check_SW_2, in_loops)
    by_numpy = answer(check_SW_2, lambda *sizes: window_mask(*sizes).numpy())
    assert "correct" in by_numpy
