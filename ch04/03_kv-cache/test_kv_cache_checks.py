"""Every exercise check takes the solution, knows the stub and names mistakes."""

from collections import deque

import numpy as np
import pytest
import torch

from course.exercises import WrongAnswer, verify
from kv_cache_checks import check_K_1, check_K_2, check_K_3


def stub(*arguments, **keywords):
    return ...


# --- K.1 -----------------------------------------------------------------------------


def ring_contents(seen, window, sinks):
    places = list(range(min(seen, window)))
    for t in range(window, seen):
        places[sinks + (t - sinks) % (window - sinks)] = t
    return places


def by_playing(seen, window, sinks):
    """Another way, as a tensor."""
    places, turn = [], window - sinks
    for t in range(seen):
        if t < window:
            places.append(t)
        else:
            places[sinks + (t - window) % turn] = t
    return torch.tensor(places)


def no_sinks(seen, window, sinks):
    return ring_contents(seen, window, 0)


def in_order(seen, window, sinks):
    return sorted(ring_contents(seen, window, sinks))


def one_late(seen, window, sinks):
    return ring_contents(max(seen - 1, 0), window, sinks)


def one_early(seen, window, sinks):
    return ring_contents(seen + 1, window, sinks)


def too_wide(seen, window, sinks):
    return ring_contents(seen, window + sinks, sinks)


def only_a_number(seen, window, sinks):
    return min(seen, window)


def turns_from_0(seen, window, sinks):
    places = list(range(min(seen, window)))
    for t in range(window, seen):
        places[sinks + t % (window - sinks)] = t
    return places


def all_turns_from_0(seen, window, sinks):
    places = [None] * window
    for t in range(seen):
        places[t if t < sinks else sinks + t % (window - sinks)] = t
    return [t for t in places if t is not None]


def turns_from_the_window(seen, window, sinks):
    """Known mistake of the check: it said that the turns count from token 0."""
    places = list(range(min(seen, window)))
    for t in range(window, seen):
        places[sinks + (t - window + 1) % (window - sinks)] = t
    return places


def last_tokens(seen, window, sinks):
    return list(range(max(0, seen - window), seen))


def halves(seen, window, sinks):
    return [t + 0.5 for t in ring_contents(seen, window, sinks)]


def free_places(seen, window, sinks):
    held = ring_contents(seen, window, sinks)
    return held + [None] * (window - len(held))


WRONG_K_1 = {
    "no sinks": (no_sinks, "do not stay"),
    "in order": (in_order, "in the order of the text"),
    "one late": (one_late, "the newest token is missing"),
    "one early": (one_early, "has not been added yet"),
    "too wide": (too_wide, "a whole window takes turns"),
    "a number": (only_a_number, "the result is the number"),
    "turns from 0": (turns_from_0, "the turns are counted from token 0"),
    "all turns from 0": (all_turns_from_0, "all turns are counted from token 0"),
    "last tokens": (last_tokens, "without the sinks"),
    "halves": (halves, "a whole number is asked for"),
    "free places": (free_places, "they are left out"),
    "turns from the window": (turns_from_the_window, "not what lies there"),
    "a set": (lambda *of: set(ring_contents(*of)), "the result is a set of"),
}


def test_K_1():
    verify(check_K_1, ring_contents, stub, WRONG_K_1)
    check_K_1(by_playing)
    for make in (np.array, deque, iter):
        check_K_1(lambda *arguments, make=make: make(ring_contents(*arguments)))


# --- K.2 -----------------------------------------------------------------------------


def break_even(guesses, guess_cost, pass_cost):
    cost = guesses * guess_cost + pass_cost
    if cost > guesses + 1:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if sum(middle**i for i in range(guesses + 1)) < cost:
            low = middle
        else:
            high = middle
    return high


def by_roots(guesses, guess_cost, pass_cost):
    """Another way: the root of a polynomial."""
    cost = guesses * guess_cost + pass_cost
    roots = np.roots([1.0] * guesses + [1.0 - cost])
    real = [r.real for r in roots if abs(r.imag) < 1e-9 and -1e-9 < r.real < 1 + 1e-9]
    return torch.tensor(max(real)) if real else None


def on_a_grid(*arguments):
    """Another way: many shares, tried."""
    guesses, guess_cost, pass_cost = arguments
    shares = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    tokens = sum(shares**i for i in range(guesses + 1))
    enough = tokens >= guesses * guess_cost + pass_cost - 1e-9
    return shares[enough].min() if enough.any() else None


def solved(tokens, cost):
    """The share at which the tokens reach the cost, 1 at most."""

    def answer(k, guess, one_pass):
        if k * guess + one_pass > k + 1:
            return None
        shares = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        enough = tokens(shares, k) >= cost(k, guess, one_pass) - 1e-9
        return shares[enough].min() if enough.any() else 1.0

    return answer


def geometric(start=0, more=0):
    return lambda a, k: sum(a**i for i in range(start, k + 1 + more))


def right_cost(k, guess, one_pass):
    return k * guess + one_pass


def only_stayed(k, guess, one_pass):
    """The cost of the guesses that stayed alone, at the share that comes out."""
    if k * guess + one_pass > k + 1:
        return None
    shares = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    tokens = geometric()(shares, k)
    enough = tokens >= (tokens - 1) * guess + one_pass - 1e-9
    return shares[enough].min()


WRONG_K_2 = {
    "no own token": (solved(geometric(start=1), right_cost), "own token is missing"),
    "independent": (solved(lambda a, k: 1 + k * a, right_cost), "an earlier one went"),
    "too short": (solved(geometric(more=-1), right_cost), "last guess never counts"),
    "too long": (solved(geometric(more=1), right_cost), "a token too many"),
    "only those that stayed": (only_stayed, "only the guesses that stayed"),
    "free guesses": (solved(geometric(), lambda k, g, p: p), "guesses cost nothing"),
    "free pass": (solved(geometric(), lambda k, g, p: k * g), "checks them costs"),
    "many passes": (
        solved(geometric(), lambda k, g, p: k * (g + p)),
        "a pass is charged for each guess",
    ),
    "one guess": (solved(geometric(), lambda k, g, p: g + p), "only one guess"),
    "the share that goes": (
        lambda *arguments: (found := break_even(*arguments)) and 1 - found,
        "the share that goes",
    ),
    "the cost": (right_cost, "what a round costs"),
    "of the most": (
        lambda k, g, p: (k * g + p) / (k + 1),
        "for each that it can give",
    ),
    "per cent": (
        lambda *arguments: (found := break_even(*arguments)) and 100 * found,
        "per cent",
    ),
    "always a share": (
        lambda *arguments: break_even(*arguments) or 1.0,
        "even if all guesses stay",
    ),
    "never": (lambda *arguments: [None][0], "where a share is enough"),
    "words": (lambda *arguments: "half", "not a number"),
}


def test_K_2():
    verify(check_K_2, break_even, stub, WRONG_K_2)
    for_each_token = solved(geometric(), lambda k, g, p: k * g + (k + 1) * p)
    with pytest.raises(WrongAnswer, match="or for each token that it reads"):
        check_K_2(for_each_token)
    check_K_2(by_roots)
    check_K_2(on_a_grid)


# --- K.3 -----------------------------------------------------------------------------


class MyLayer:
    def __init__(self, max_length):
        self.max_length, self.length = max_length, 0

    def append(self, keys, values):
        start, end = self.length, self.length + keys.shape[2]
        if end > self.max_length:
            raise ValueError("full")
        if start == 0:
            B, G, _, K = keys.shape
            self.keys = torch.empty(B, G, self.max_length, K, dtype=keys.dtype)
            self.values = torch.empty_like(self.keys)
        return self.write(keys, values, start, end)

    def write(self, keys, values, start, end):
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Stub:
    def __init__(self, max_length):
        self.length = 0

    def append(self, keys, values):
        return ...


class OneTensor:
    """Another way: both parts in one tensor, the length counted by a property."""

    def __init__(self, max_length):
        self.room, self.parts, self.count = max_length, None, 0

    @property
    def length(self):
        return self.count

    def append(self, keys, values):
        new = keys.shape[2]
        if self.count + new > self.room:
            raise ValueError("no room")
        if self.parts is None:
            self.parts = keys.new_zeros(2, *keys.shape[:2], self.room, keys.shape[3])
        self.parts[0, :, :, self.count : self.count + new] = keys
        self.parts[1, :, :, self.count : self.count + new] = values
        self.count += new
        return [part[:, :, : self.count] for part in self.parts]


class Concatenates(MyLayer):
    def write(self, keys, values, start, end):
        if start:
            keys = torch.cat((self.old[0], keys), dim=2)
            values = torch.cat((self.old[1], values), dim=2)
        self.old, self.length = (keys.clone(), values.clone()), end
        return self.old


class NewOnly(MyLayer):
    def write(self, keys, values, start, end):
        super().write(keys, values, start, end)
        return self.keys[:, :, start:end], self.values[:, :, start:end]


class WholeRoom(MyLayer):
    def write(self, keys, values, start, end):
        super().write(keys, values, start, end)
        return self.keys, self.values


class Exchanged(MyLayer):
    def write(self, keys, values, start, end):
        return super().write(keys, values, start, end)[::-1]


class NoLength(MyLayer):
    def write(self, keys, values, start, end):
        found = super().write(keys, values, start, end)
        self.length = start + 1
        return found


class DropsInSilence(MyLayer):
    def append(self, keys, values):
        if self.length + keys.shape[2] > self.max_length:
            return self.keys[:, :, : self.length], self.values[:, :, : self.length]
        return super().append(keys, values)


class LeavesItToTorch(MyLayer):
    def append(self, keys, values):
        limit, self.max_length = self.max_length, 99
        if self.length:
            return self.write(keys, values, self.length, self.length + keys.shape[2])
        self.max_length = limit
        return super().append(keys, values)


class CountsFirst(MyLayer):
    def append(self, keys, values):
        start = self.length
        self.length += keys.shape[2]
        if self.length > self.max_length:
            raise ValueError("full")
        self.length = start
        return super().append(keys, values)


class WritesFirst(MyLayer):
    """Overwrites the last tokens before it notices."""

    def append(self, keys, values):
        if self.length + keys.shape[2] > self.max_length:
            self.keys[:, :, -2:] = keys
            raise ValueError("full")
        return super().append(keys, values)


class RoomOfFloat32(MyLayer):
    def append(self, keys, values):
        if self.length == 0 and keys.shape[2] <= self.max_length:
            B, G, T, K = keys.shape
            self.keys = torch.empty(B, G, self.max_length, K)
            self.values = torch.empty_like(self.keys)
            return self.write(keys, values, 0, T)
        return super().append(keys, values)


class ConcatenatesValues(MyLayer):
    def write(self, keys, values, start, end):
        whole = torch.cat((self.old, values), dim=2) if start else values.clone()
        self.old = whole
        return super().write(keys, values, start, end)[0], whole


class Clones(MyLayer):
    def write(self, keys, values, start, end):
        return [part.clone() for part in super().write(keys, values, start, end)]


class RoomOfSix(MyLayer):
    def __init__(self, max_length):
        super().__init__(6)


class RefusesTheLast(MyLayer):
    def append(self, keys, values):
        if self.length + keys.shape[2] >= self.max_length:
            raise ValueError("full")
        return super().append(keys, values)


class SharedRoom(MyLayer):
    """Room of the class, one for each shape: layers write over each other."""

    rooms = {}

    def append(self, keys, values):
        end = self.length + keys.shape[2]
        if end > self.max_length:
            raise ValueError("full")
        B, G, _, K = keys.shape
        if (B, G, K) not in self.rooms:
            room = keys.new_empty(2, B, G, self.max_length, K)
            self.rooms[B, G, K] = room
        self.keys, self.values = self.rooms[B, G, K]
        return self.write(keys, values, self.length, end)


class LengthAsMethod:
    def __init__(self, max_length):
        self.layer = MyLayer(max_length)

    def length(self):
        return self.layer.length

    def append(self, keys, values):
        return self.layer.append(keys, values)


class CutsTheFirst(MyLayer):
    def append(self, keys, values):
        if self.length == 0:
            keys, values = (
                keys[:, :, : self.max_length],
                values[:, :, : self.max_length],
            )
        return super().append(keys, values)


class OneSilently(MyLayer):
    """Refuses two tokens too many, but leaves one to a slice past the end."""

    def append(self, keys, values):
        end = self.length + keys.shape[2]
        if self.length == self.max_length and keys.shape[2] == 1:
            return self.write(keys, values, self.length, end)
        return super().append(keys, values)


class OneTensorForBoth(MyLayer):
    def write(self, keys, values, start, end):
        self.values = self.keys
        return super().write(keys, values, start, end)


WRONG_K_3 = {
    "float32": (RoomOfFloat32, "the room holds torch.float32"),
    "concatenates values": (ConcatenatesValues, "the values move"),
    "a room of six": (RoomOfSix, "refuses 5 more after 3 tokens, for which"),
    "refuses the last": (RefusesTheLast, "refuses 1 more after 5 tokens, for which"),
    "one room for all": (SharedRoom, "two layers write into one room"),
    "a method": (LengthAsMethod, "`length` is a method"),
    "cuts the first": (CutsTheFirst, "a first piece longer"),
    "one silently": (OneSilently, "and is lost"),
    "one tensor for both": (OneTensorForBoth, "do both share one tensor"),
    "concatenates": (Concatenates, "another place in memory"),
    "new only": (NewOnly, "the new tokens alone"),
    "whole room": (WholeRoom, "free places included"),
    "exchanged": (Exchanged, "keys and values are exchanged"),
    "no length": (NoLength, "`length` is not the number"),
    "silence": (DropsInSilence, "where fewer fit"),
    "torch's error": (LeavesItToTorch, "not ValueError"),
    "counts first": (CountsFirst, "has changed `length`"),
    "writes first": (WritesFirst, "finds other keys"),
}


def test_K_3():
    verify(check_K_3, MyLayer, Stub, WRONG_K_3)
    check_K_3(OneTensor)
    with pytest.raises(WrongAnswer, match="without a copy"):
        check_K_3(Clones)
