"""The checks of the exercises in `from-model-to-browser.ipynb`."""

import json

import numpy

from course.exercises import call, check, describe, expect, expect_equal

# --- UI.1 Events from pieces ----------------------------------------------------------


def _line(events, space=(", ", ": ")):
    return "".join(
        f"data: {json.dumps(event, ensure_ascii=False, separators=space)}\n\n"
        for event in events
    ).encode()


def _cut(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@check("UI.1")
def check_UI_1(attempt):
    plain = [{"text": "one"}, {"text": "two"}, {"kind": "end"}]
    found = _events(attempt, [_line([event]) for event in plain])
    expect_equal(
        found, plain, "three events, each in a piece of its own, are not right"
    )
    together = _events(attempt, [_line(plain)])
    expect(
        len(together) == 3,
        f"three events came in one piece, and {len(together)} of them arrive; the line "
        "glues together what leaves at about the same time",
    )
    expect_equal(together, plain, "three events in one piece are not right")
    halves = _cut(_line(plain), 7)
    found = _events(attempt, halves)
    expect(
        len(found) == 3,
        f"three events were cut into pieces of 7 bytes, and {len(found)} arrive; keep "
        "the rest of a piece until the next one comes",
    )
    expect_equal(found, plain, "three events in pieces of 7 bytes are not right")
    snow = [{"text": "\u2603 \u65e5\u672c"}, {"text": "\u2028 and \U0001f642"}]
    for size in (1, 2, 3, 1000):
        found = _events(attempt, _cut(_line(snow), size))
        expect_equal(
            found,
            snow,
            f"characters of several bytes are wrong, in pieces of {size}: join bytes "
            "before you make a text of them, and end a line at a line break alone",
        )
    broken = [{"text": "a line\n\ndata: that looks like one"}]
    expect_equal(
        _events(attempt, _cut(_line(broken), 5)),
        broken,
        "a text that holds line breaks and `data: ` is not right; in JSON a line break "
        "is written as two signs, so take `data: ` away at the start of a line only",
    )
    expect_equal(
        _events(attempt, _cut(_line(plain, (",", ":")), 4)),
        plain,
        "the same JSON without blanks is not right; let json.loads read it",
    )
    _expect_events(
        attempt,
        [_line([True, "two"])],
        [True, "two"],
        "an event whose JSON is no object, such as true, is not right; take away the "
        "first six bytes, not every byte that occurs among them",
    )
    _check_in_time(attempt, plain)
    _expect_events(
        attempt,
        [_line(plain[:2]), _line(plain[2:])[:9]],
        plain[:2],
        "a stream that ends in the middle of an event is not read up to there; what is "
        "cut off is dropped: somebody has pressed stop",
    )
    for missing in (1, 2):
        _expect_events(
            attempt,
            [_line(plain[:2])[:-missing]],
            plain[:1],
            "an event is given out whose two line breaks have not both come; without "
            "them it is cut off, and dropped",
        )
    _expect_events(
        attempt,
        [_line([None, 0, {}])],
        [None, 0, {}],
        "an event whose JSON is null, 0 or {} is missing; give out each one, whatever "
        "it is",
    )
    return "However the line cuts them, events come out whole, and as soon as they can."


def _events(attempt, pieces):
    return list(call(attempt, iter(pieces)))


def _expect_events(attempt, pieces, expected, message):
    """The same, where a mistake may well raise."""
    try:
        found = _events(attempt, pieces)
    except AssertionError as problem:
        raise AssertionError(f"{message} ({problem})") from None
    expect_equal(found, expected, message)


def _check_in_time(attempt, plain):
    """Each event comes before the next piece is asked for."""
    whole = _Pieces(_line(plain[:1]), _line(plain[1:]))
    _expect_first(
        _next_of(attempt, whole),
        whole,
        "the first event is given out only after the next piece was asked for; who "
        "writes slowly is then seen one event late",
    )
    third = _line(plain[2:])
    begun = _Pieces(_line(plain[:2]) + third[:9], third[9:])
    events = _next_of(attempt, begun)
    _expect_first(
        events,
        begun,
        "a piece holds two events and the beginning of a third, and the first one is "
        "given out only after more was asked for; it need not wait for the third",
    )
    _expect_first(
        events,
        begun,
        "a piece holds two events, and the second one is given out only after the "
        "next piece has come; look again whether a whole one is left",
    )
    snow = _line([{"text": "\u2603"}])
    within = snow.index(b"\xe2") + 1
    half = _Pieces(_line(plain[:1]) + snow[:within], snow[within:])
    _expect_first(
        _next_of(attempt, half),
        half,
        "a piece holds an event and half a character of the next one, and the event is "
        "given out only when that character is whole; cut bytes, and make text of one "
        "event",
    )


def _next_of(attempt, pieces):
    events = call(attempt, pieces)
    expect(
        not isinstance(events, (list, tuple)),
        f"the result is {describe(events)}; yield each event, so that it can be shown "
        "before the next one has come",
    )
    return iter(events)


def _expect_first(events, pieces, message):
    try:
        next(events)
    except StopIteration:
        raise AssertionError(message) from None
    expect(pieces.asked == 1, message)


class _Pieces:
    """Pieces of a stream, and how many of them were asked for."""

    def __init__(self, *pieces):
        self.pieces, self.asked = iter(pieces), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.asked += 1
        return next(self.pieces)


# --- UI.2 Who may ask -----------------------------------------------------------------

OWN = "127.0.0.1:5000"
REQUESTS = [  # Host, Origin, may ask, what to say if it is decided otherwise
    (OWN, f"http://{OWN}", True, "the page itself is refused"),
    (
        "localhost:5000",
        "http://localhost:5000",
        True,
        "the page opened as localhost is refused",
    ),
    (OWN, None, True, "a program that is no browser sends no Origin, and is refused"),
    (OWN, "https://example.com", False, "another page in the reader's browser may ask"),
    (
        OWN,
        "http://127.0.0.1:8888",
        False,
        "a page of another server on this machine "
        "may ask; the port belongs to an origin",
    ),
    (
        OWN,
        f"https://{OWN}",
        False,
        f"a page of https://{OWN} may ask; the scheme belongs to an origin, too",
    ),
    (
        OWN,
        f"http://{OWN}.example.com",
        False,
        "http://127.0.0.1:5000.example.com may "
        "ask, an address that only begins like the right one",
    ),
    (
        OWN,
        f"https://example.com/?http://{OWN}",
        False,
        "an address may ask that holds the right one somewhere",
    ),
    (
        OWN,
        "null",
        False,
        "a file or a frame without an address sends Origin: null, and may ask",
    ),
    (OWN, "", False, "an empty Origin may ask; only None stands for none"),
    (
        "example.com",
        "http://example.com",
        False,
        "a name that somebody made lead to "
        "this machine may ask; its pages are of the same origin as the server then "
        "(DNS rebinding)",
    ),
    (
        "example.com:5000",
        None,
        False,
        "a request to another name may ask if it has no "
        "Origin; look at Host in any case",
    ),
    (
        "127.0.0.1.example.com:5000",
        None,
        False,
        "a name may ask that only begins like an address of this machine",
    ),
    (
        "localhost.example.com:5000",
        None,
        False,
        "a name may ask that only begins like localhost",
    ),
    (
        "evil-localhost:5000",
        "http://evil-localhost:5000",
        False,
        "a name may ask that only ends like one of this machine",
    ),
    (
        "127a0b0c1:5000",
        None,
        False,
        "a name may ask that has other signs in the place of the dots; in a pattern a "
        "dot stands for any sign",
    ),
    (
        "localhost:5000",
        f"http://{OWN}",
        False,
        "a page that was opened as 127.0.0.1 may ask under the name localhost; to a "
        "browser these are two origins",
    ),
    (
        "127.0.0.1:9999",
        "http://127.0.0.1:9999",
        False,
        "a request for another port may ask; this server is at 5000",
    ),
    (
        f"{OWN}1",
        f"http://{OWN}1",
        False,
        "a request for port 50001 may ask, a number that only begins like 5000",
    ),
]


@check("UI.2")
def check_UI_2(attempt):
    for host, origin, allowed, said in REQUESTS:
        found = call(attempt, host, origin)
        expect(
            isinstance(found, (bool, numpy.bool_)),
            f"the result is {describe(found)}; return True or False",
        )
        expect(found == allowed, f"{said} (Host {host!r}, Origin {origin!r})")
    return "The page and the reader's own programs may ask, and nobody else."
