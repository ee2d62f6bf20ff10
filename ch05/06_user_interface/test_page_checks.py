"""Every exercise check takes right answers of any form, and names mistakes."""

import codecs
import contextlib
import json
import re
from urllib.parse import urlsplit

import numpy
import pytest

from course.exercises import answer, verify
from page_checks import check_UI_1, check_UI_2


def stub(*arguments):
    return ...


# --- UI.1 -----------------------------------------------------------------------------


def read_events(pieces):
    waiting = b""
    for piece in pieces:
        *lines, waiting = (waiting + piece).split(b"\n\n")
        for line in lines:
            yield json.loads(line.removeprefix(b"data: "))


def with_a_decoder(pieces):
    decoder, waiting = codecs.getincrementaldecoder("utf-8")(), ""
    for piece in pieces:
        waiting += decoder.decode(piece)
        while "\n\n" in waiting:
            line, waiting = waiting.split("\n\n", 1)
            yield json.loads(line[6:])


def with_a_buffer(pieces):
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while (end := buffer.find(b"\n\n")) >= 0:
            yield json.loads(bytes(buffer[len("data: ") : end]))
            del buffer[: end + 2]


def by_lines(pieces):
    line, data = b"", None
    for piece in pieces:
        for number in piece:
            line += bytes([number])
            if not line.endswith(b"\n"):
                continue
            if line.startswith(b"data:"):
                data = line[5:]
            elif line == b"\n":
                yield json.loads(data)
            line = b""


def with_iterdecode(pieces):
    waiting = ""
    for text in codecs.iterdecode(pieces, "utf-8"):
        *lines, waiting = (waiting + text).split("\n\n")
        for line in lines:
            yield json.loads(line[len("data: ") :])


def by_partition(pieces):
    waiting = b""
    for piece in pieces:
        waiting += piece
        while b"\n\n" in waiting:
            line, _, waiting = waiting.partition(b"\n\n")
            yield json.loads(line.removeprefix(b"data: "))


class AsAnIterator:
    def __init__(self, pieces):
        self.pieces, self.waiting, self.lines = pieces, b"", []

    def __iter__(self):
        return self

    def __next__(self):
        while not self.lines:
            self.waiting += next(self.pieces)
            *self.lines, self.waiting = self.waiting.split(b"\n\n")
        return json.loads(self.lines.pop(0)[6:])


class AsAnIterable:
    def __init__(self, pieces):
        self.pieces = pieces

    def __iter__(self):
        return read_events(self.pieces)


def at_one_line_break(pieces):
    waiting = b""
    for piece in pieces:
        *lines, waiting = (waiting + piece).split(b"\n")
        for line in lines:
            if line:
                yield json.loads(line[6:])


def whole_json_is_enough(pieces):
    waiting = b""
    for piece in pieces:
        *lines, waiting = (waiting + piece).split(b"\n\n")
        for line in lines:
            yield json.loads(line[6:])
    with contextlib.suppress(ValueError):
        yield json.loads(waiting[6:])


def swallows_what_is_false(pieces):
    for event in read_events(pieces):
        if event:
            yield event


def waits_for_whole_characters(pieces):
    waiting = b""
    for piece in pieces:
        waiting += piece
        try:
            *lines, rest = waiting.decode().split("\n\n")
        except UnicodeDecodeError:
            continue
        waiting = rest.encode()
        for line in lines:
            yield json.loads(line[6:])


def each_piece_alone(pieces):
    for piece in pieces:
        yield json.loads(piece.decode().strip().removeprefix("data: "))


def rest_is_lost(pieces):
    for piece in pieces:
        for line in piece.split(b"\n\n"):
            if line.startswith(b"data: ") and line.endswith(b"}"):
                yield json.loads(line[6:])


def decoded_alone(pieces):
    waiting = ""
    for piece in pieces:
        *lines, waiting = (waiting + piece.decode(errors="replace")).split("\n\n")
        for line in lines:
            yield json.loads(line.removeprefix("data: "))


def decoded_strictly(pieces):
    return read_events(piece.decode().encode() for piece in pieces)


def splits_lines(pieces):
    waiting = b""
    for piece in pieces:
        waiting += piece
        if waiting.endswith(b"\n\n"):
            try:
                text = waiting.decode()
            except UnicodeDecodeError:
                continue
            for line in text.splitlines():
                if line:
                    yield json.loads(line.removeprefix("data: "))
            waiting = b""


def everywhere(pieces):
    waiting = b""
    for piece in pieces:
        *lines, waiting = (waiting + piece).split(b"\n\n")
        for line in lines:
            yield json.loads(line.replace(b"data: ", b""))


def all_at_the_end(pieces):
    yield from read_events([b"".join(pieces)])


def as_a_list(pieces):
    return list(read_events(pieces))


def one_late(pieces):
    events, last = read_events(pieces), None
    for event in events:
        if last is not None:
            yield last
        last = event
    yield last


def waits_for_an_end(pieces):
    waiting = b""
    for piece in pieces:
        waiting += piece
        if waiting.endswith(b"\n\n"):
            yield from read_events([waiting])
            waiting = b""


def one_for_each_piece(pieces):
    waiting = b""
    for piece in pieces:
        waiting += piece
        if b"\n\n" in waiting:
            line, waiting = waiting.split(b"\n\n", 1)
            yield json.loads(line[6:])
    yield from read_events([waiting])


def flushes_the_rest(pieces):
    waiting = b""
    for piece in pieces:
        *lines, waiting = (waiting + piece).split(b"\n\n")
        for line in lines:
            yield json.loads(line[6:])
    if waiting:
        yield json.loads(waiting[6:])


def strips_letters(pieces):
    waiting = b""
    for piece in pieces:
        *lines, waiting = (waiting + piece).split(b"\n\n")
        for line in lines:
            yield json.loads(line.lstrip(b"data: "))


def by_pattern(pieces):
    waiting = ""
    for piece in pieces:
        waiting += piece.decode(errors="replace")
        for found in re.findall(r'"text": "(.*?)"', waiting):
            yield {"text": found}
        waiting = ""


def as_texts(pieces):
    for event in read_events(pieces):
        yield json.dumps(event)


@pytest.mark.parametrize(
    "right",
    [
        with_a_decoder,
        with_iterdecode,
        with_a_buffer,
        by_partition,
        by_lines,
        AsAnIterator,
        AsAnIterable,
    ],
)
def test_UI_1_takes_another_way(right):
    assert "correct" in answer(check_UI_1, right)


def test_UI_1():
    verify(
        check_UI_1,
        read_events,
        stub,
        {
            "the rest is lost": (
                rest_is_lost,
                "and 0 arrive; keep the rest",
            ),
            "decoded alone": (decoded_alone, "are wrong, in pieces of 1"),
            "strictly": (
                decoded_strictly,
                "UnicodeDecodeError",
            ),
            "everywhere": (everywhere, "a text that holds line breaks and `data: `"),
            "at the end": (all_at_the_end, "only after the next piece was asked for"),
            "a list": (as_a_list, "yield each event"),
            "waits": (waits_for_an_end, "it need not wait for the third"),
            "one a piece": (one_for_each_piece, "whether a whole one is left"),
            "the rest": (flushes_the_rest, "somebody has pressed stop"),
            "letters": (strips_letters, "whose JSON is no object"),
            "one break": (at_one_line_break, "two line breaks have not both come"),
            "false": (swallows_what_is_false, "null, 0 or {} is missing"),
            "characters": (
                waits_for_whole_characters,
                "only when that character is whole",
            ),
            "as texts": (as_texts, "is the text"),
        },
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (each_piece_alone, "JSONDecodeError"),
        (splits_lines, "JSONDecodeError"),
        (one_late, "only after the next piece was asked for"),
        (by_pattern, "three events, each in a piece of its own"),
        (whole_json_is_enough, "two line breaks have not both come"),
    ],
)
def test_UI_1_refuses_these_too(wrong, said):
    assert said in answer(check_UI_1, wrong)


# --- UI.2 -----------------------------------------------------------------------------

OWN_HOSTS = ("127.0.0.1:5000", "localhost:5000")


def may_ask(host, origin):
    return host in OWN_HOSTS and origin in (None, f"http://{host}")


def with_parts(host, origin):
    here = urlsplit(f"//{host}")
    if here.hostname not in ("127.0.0.1", "localhost") or here.port != 5000:
        return False
    return origin is None or urlsplit(origin)[:2] == ("http", host)


def by_table(host, origin):
    allowed = {(own, None) for own in OWN_HOSTS}
    allowed |= {(own, f"http://{own}") for own in OWN_HOSTS}
    return (host, origin) in allowed


def everybody(host, origin):
    return True


def nobody(host, origin):
    return False


def needs_an_origin(host, origin):
    return origin is not None and may_ask(host, origin)


def same_only(host, origin):
    return origin in (None, f"http://{host}")


def host_only(host, origin):
    return host in OWN_HOSTS


def origin_begins(host, origin):
    return host in OWN_HOSTS and (origin or f"http://{host}").startswith(
        f"http://{host}"
    )


def origin_holds(host, origin):
    return host in OWN_HOSTS and f"http://{host}" in (origin or f"http://{host}")


def null_is_none(host, origin):
    return may_ask(host, None if origin == "null" else origin)


def empty_is_none(host, origin):
    return may_ask(host, origin or None)


def host_with_origin_only(host, origin):
    if origin is None:
        return True
    return may_ask(host, origin)


def host_begins(host, origin):
    own = host.startswith(("127.0.0.1", "localhost"))
    return own and origin in (None, f"http://{host}")


def any_port(host, origin):
    own = urlsplit(f"//{host}").hostname in ("127.0.0.1", "localhost")
    return own and origin in (None, f"http://{host}")


def port_of_origin_ignored(host, origin):
    name = urlsplit(origin).hostname if origin else "localhost"
    return host in OWN_HOSTS and name in ("127.0.0.1", "localhost")


def only_the_address(host, origin):
    return host == OWN_HOSTS[0] and may_ask(host, origin)


def any_scheme(host, origin):
    return host in OWN_HOSTS and (origin is None or urlsplit(origin).netloc == host)


def host_begins_with_the_port(host, origin):
    return host.startswith(OWN_HOSTS) and origin in (None, f"http://{host}")


def as_numpy(host, origin):
    return numpy.bool_(may_ask(host, origin))


def by_pattern_of_hosts(host, origin):
    own = re.fullmatch(r"(127\.0\.0\.1|localhost):5000", host)
    return bool(own) and origin in (None, f"http://{host}")


def under_either_name(host, origin):
    return host in OWN_HOSTS and origin in (None, *(f"http://{h}" for h in OWN_HOSTS))


def host_ends(host, origin):
    return host.endswith(OWN_HOSTS) and origin in (None, f"http://{host}")


def localhost_begins(host, origin):
    name, _, port = host.partition(":")
    own = name == "127.0.0.1" or name.startswith("localhost")
    return own and port == "5000" and origin in (None, f"http://{host}")


def bare_dots(host, origin):
    own = re.fullmatch(r"(127.0.0.1|localhost):5000", host)
    return bool(own) and origin in (None, f"http://{host}")


def says_yes(host, origin):
    return "yes" if may_ask(host, origin) else "no"


@pytest.mark.parametrize("right", [with_parts, by_table, by_pattern_of_hosts, as_numpy])
def test_UI_2_takes_another_way(right):
    assert "correct" in answer(check_UI_2, right)


def test_UI_2():
    verify(
        check_UI_2,
        may_ask,
        stub,
        {
            "nobody": (nobody, "the page itself is refused"),
            "needs one": (needs_an_origin, "sends no Origin, and is refused"),
            "same only": (same_only, "DNS rebinding"),
            "host only": (host_only, "another page in the reader's browser"),
            "begins": (origin_begins, "only begins like the right one"),
            "null": (null_is_none, "Origin: null"),
            "empty": (empty_is_none, "an empty Origin"),
            "host sometimes": (host_with_origin_only, "look at Host in any case"),
            "host begins": (host_begins, "only begins like an address of this machine"),
            "any port": (any_port, "this server is at 5000"),
            "port ignored": (port_of_origin_ignored, "the port belongs to an origin"),
            "the address": (only_the_address, "opened as localhost"),
            "any scheme": (any_scheme, "the scheme belongs to an origin"),
            "begins with it": (host_begins_with_the_port, "request for port 50001"),
            "either name": (under_either_name, "these are two origins"),
            "ends": (host_ends, "only ends like one of this machine"),
            "localhost begins": (localhost_begins, "only begins like localhost"),
            "dots": (bare_dots, "in the place of the dots"),
            "yes": (says_yes, "return True or False"),
        },
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (everybody, "another page in the reader's browser"),
        (origin_holds, "only begins like the right one"),
    ],
)
def test_UI_2_refuses_these_too(wrong, said):
    assert said in answer(check_UI_2, wrong)
