"""The server under many hands: in turn, stopped in time, refusing in one sentence."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from page_server import (
    MOST_BYTES,
    Desk,
    Refused,
    Waiting,
    event,
    page_app,
    running,
    serve,
)

WAIT = 20


class Steps:
    """Answers that go on until they are ended; how far each came."""

    def __init__(self):
        self.made, self.ended, self.gate = {}, [], threading.Event()
        self.gate.set()

    def start(self, name, length=10**9, seconds=0.0):
        def steps():
            try:
                for number in range(length):
                    self.gate.wait(WAIT)
                    time.sleep(seconds)
                    self.made[name] = number + 1
                    yield number
            finally:
                self.ended.append(name)

        return steps


async def all_of(iterator, most=None):
    async with contextlib.aclosing(iterator):
        found = []
        async for step in iterator:
            found.append(step)
            if len(found) == most:
                break
    return found


# --- The desk -------------------------------------------------------------------------


def test_who_comes_first_is_served_first_and_knows_its_place():
    async def ask():
        desk, steps = Desk(), Steps()
        return await asyncio.gather(
            *(all_of(desk.serve(steps.start(name, 2))) for name in "abc")
        )

    first, second, third = asyncio.run(ask())
    assert first == [0, 1]
    assert second == [Waiting(1), 0, 1]
    assert third == [Waiting(2), Waiting(1), 0, 1]


def test_who_leaves_frees_the_desk_within_a_step():
    async def ask():
        desk, steps = Desk(), Steps()
        seen = await all_of(desk.serve(steps.start("a")), most=3)
        return seen, await all_of(desk.serve(steps.start("b", 1))), steps

    seen, second, steps = asyncio.run(ask())
    assert seen == [0, 1, 2]
    assert steps.made["a"] == 3
    assert steps.ended == ["a", "b"]
    assert second == [0]


def test_who_leaves_the_line_computes_nothing():
    async def ask():
        desk, steps = Desk(), Steps()
        first = asyncio.ensure_future(all_of(desk.serve(steps.start("a", 5, 0.01))))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(all_of(desk.serve(steps.start("b"))))
        third = asyncio.ensure_future(all_of(desk.serve(steps.start("c", 1))))
        await asyncio.sleep(0.02)
        second.cancel()
        return await first, await third, steps.made

    first, third, made = asyncio.run(ask())
    assert first == [0, 1, 2, 3, 4]
    assert third[-1] == 0
    assert set(made) == {"a", "c"}


def test_too_long_a_line_is_told():
    async def ask():
        desk, steps = Desk(most_waiting=1), Steps()
        ends = [
            asyncio.ensure_future(all_of(desk.serve(steps.start(n, 3)))) for n in "ab"
        ]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="2 questions are waiting"):
            await all_of(desk.serve(steps.start("c")))
        return await asyncio.gather(*ends)

    assert len(asyncio.run(ask())) == 2


def test_an_answer_that_fails_frees_the_desk():
    async def ask():
        desk = Desk()
        with pytest.raises(ZeroDivisionError):
            await all_of(desk.serve(lambda: (1 / n for n in (1, 0))))
        return await all_of(desk.serve(lambda: iter("ab")))

    assert asyncio.run(ask()) == ["a", "b"]


@dataclasses.dataclass
class Fat:
    text: str


# --- Over the line --------------------------------------------------------------------


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def server(tmp_path, steps):
    (tmp_path / "index.html").write_text("<p>page</p>", encoding="utf-8")
    (tmp_path / "page.js").write_text("1", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")

    def ask(question):
        if "name" not in question:
            raise ValueError("name is missing.")

        def start():
            if question["name"] == "fails":
                return (Waiting(1 // number) for number in (1, 0))
            if question["name"] == "fat":
                return (Fat("x" * 100_000) for _ in steps.start("fat")())
            if question["name"] == "fails at once":
                raise ValueError("The model does not like it.")
            return (Waiting(n) for n in steps.start(**question)())

        return start

    with running(page_app(tmp_path, ask, lambda: {"kind": "test"})) as address:
        yield urlsplit(address).netloc


def send(server, body=b"", path="/ask", method="POST", **headers):
    connection = http.client.HTTPConnection(server, timeout=WAIT)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, headers)
    return connection.getresponse()


def message(answer):
    return json.loads(answer.read())["error"]["message"]


def wait_until(true, seconds=WAIT):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.005)


def ask_and_leave(server, steps):
    """A page that is closed after the first event of its answer."""
    connection = http.client.HTTPConnection(server, timeout=WAIT)
    connection.request("POST", "/ask", json.dumps({"name": "a", "seconds": 0.01}))
    connection.getresponse().readline()
    connection.sock.close()
    connection.close()
    wait_until(lambda: steps.ended == ["a"])


def test_an_answer_comes_as_events(server):
    answer = send(server, {"name": "a", "length": 3})
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/event-stream; charset=utf-8"
    expected = [{"kind": "waiting", "before": n} for n in range(3)]
    assert answer.read() == b"".join(map(event, expected))


def test_each_event_leaves_at_once(server, steps):
    steps.gate.clear()
    connection = http.client.HTTPConnection(server, timeout=WAIT)
    connection.request("POST", "/ask", json.dumps({"name": "a", "length": 2}))
    for number in range(2):
        threading.Timer(0.05, steps.gate.set).start()
        if number == 0:
            answer = connection.getresponse()
        assert answer.readline() == event({"kind": "waiting", "before": number})[:-1]
        answer.readline()


def test_a_closed_page_ends_its_answer(server, steps):
    ask_and_leave(server, steps)
    made = steps.made["a"]
    assert send(server, {"name": "b", "length": 1}).status == 200
    assert steps.made["a"] == made


def test_a_page_that_is_closed_while_it_waits_leaves_the_line(server, steps):
    steps.gate.clear()
    connections = []
    for name in "abc":
        connection = http.client.HTTPConnection(server, timeout=WAIT)
        connection.request("POST", "/ask", json.dumps({"name": name, "length": 1}))
        connections.append(connection)
        time.sleep(0.05)
    answer = connections[2].getresponse()
    assert b'"before": 2' in answer.readline()
    connections[1].sock.close()
    answer.readline()
    assert b'"before": 1' in answer.readline()
    steps.gate.set()
    assert answer.read().endswith(event({"kind": "waiting", "before": 0}))
    assert set(steps.made) == {"a", "c"}


def test_who_does_not_read_stops_the_model_and_then_loses_the_turn(
    server, steps, monkeypatch
):
    """The model waits for the line, not the line for the model."""
    monkeypatch.setattr("page_server.SECONDS_FOR_A_TOKEN", 0.5)
    body = json.dumps({"name": "fat"}).encode()
    head = (
        f"POST /ask HTTP/1.1\r\nHost: {server}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, port = server.split(":")
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((host, int(port)))
        lazy.sendall(head.encode() + body)
        wait_until(lambda: steps.ended == ["fat"])
    assert steps.made["fat"] < 500  # what the system takes before it is read
    assert send(server, {"name": "b", "length": 1}).status == 200


def test_a_mistake_in_the_middle_is_an_event_and_at_once_a_status(server, capsys):
    last = send(server, {"name": "fails"}).read().split(b"\n\n")[-2]
    assert b"The server made a mistake" in last
    answer = send(server, {"name": "fails at once"})
    assert (answer.status, message(answer)) == (400, "The model does not like it.")
    assert send(server, {"name": "b", "length": 1}).status == 200
    assert "ZeroDivisionError" in capsys.readouterr().err


BAD = {
    "nothing": (b"", 400, "is no JSON"),
    "half": (b'{"name": ', 400, "is no JSON"),
    "deep": (b"[" * 100_000, 400, "is no JSON"),
    "bytes": (b"\xff\xfe\x00", 400, "is no JSON"),
    "a list": (b"[]", 400, "no object with names"),
    "a number": (b"NaN", 400, "no object with names"),
    "a field short": (b"{}", 400, "name is missing."),
    "long": (b'{"name": "%s"}' % (b"x" * 1_000_000), 413, "may have 200,000"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_question_gets_one_sentence_and_the_server_lives(server, what):
    body, status, said = BAD[what]
    answer = send(server, body)
    assert answer.status == status
    told = message(answer)
    assert said in told
    assert "\n" not in told
    assert send(server, {"name": "b", "length": 1}).status == 200


def test_a_body_without_end_is_not_read(server):
    connection = http.client.HTTPConnection(server, timeout=WAIT)
    connection.putrequest("POST", "/ask")
    connection.putheader("Content-Length", str(10 * MOST_BYTES + 1))
    connection.endheaders()  # and not one byte of the body
    assert connection.getresponse().status == 400
    assert send(server, {"name": "b", "length": 1}).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/../secret.txt",
        "/..%2fsecret.txt",
        "//etc/passwd",
        "/page_server.py",
        "/index.html/",
        "/%00",
        "/ask",
    ],
)
def test_no_other_file_can_be_had(server, path):
    answer = send(server, path=path, method="GET")
    assert answer.status in (404, 405)
    assert b"secret" not in answer.read().replace(path.encode(), b"")


def test_the_page_and_its_files(server):
    for path, content, kind in (
        ("/", b"<p>page</p>", "html"),
        ("/page.js", b"1", "java"),
    ):
        answer = send(server, path=path, method="GET")
        assert answer.read() == content
        assert kind in answer.getheader("Content-Type")
        assert "default-src 'self'" in answer.getheader("Content-Security-Policy")
    assert (
        json.loads(send(server, path="/about", method="GET").read())["kind"] == "test"
    )


ORIGINS = {
    "none": ({}, 200),
    "its own": ({"Origin": "http://{server}"}, 200),
    "another port": ({"Origin": "http://127.0.0.1:1"}, 403),
    "another page": ({"Origin": "https://example.com"}, 403),
    "another scheme": ({"Origin": "https://{server}"}, 403),
    "a file": ({"Origin": "null"}, 403),
    "a name that leads here": ({"Host": "example.com"}, 403),
    "no name": ({"Host": "["}, 403),
    "its name, as a tunnel gives it": ({"Host": "localhost:1"}, 200),
    "a page of it behind a tunnel": (
        {"Host": "localhost:1", "Origin": "http://localhost:1"},
        200,
    ),
}


@pytest.mark.parametrize("who", ORIGINS)
def test_other_pages_may_not_ask(server, who):
    headers, status = ORIGINS[who]
    headers = {name: value.format(server=server) for name, value in headers.items()}
    assert send(server, {"name": "a", "length": 1}, **headers).status == status


def test_a_method_that_is_not_there_is_told(server):
    """Known mistake: the page's own address was said not to be there."""
    answer = send(server, path="/ask", method="GET")
    assert (answer.status, message(answer)) == (405, "/ask does not answer to GET.")


def test_why_it_cannot_listen_is_told(server, tmp_path, monkeypatch):
    """Known mistake: whatever it was, another server was said to run."""
    (tmp_path / "index.html").write_text("", encoding="utf-8")
    app = page_app(tmp_path, lambda question: lambda: iter(()), dict)
    host, port = server.split(":")
    with pytest.raises(ValueError, match="another one is running there"):
        serve(app, host, int(port))

    def unknown(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("page_server.bind_sockets", unknown)
    with pytest.raises(ValueError, match=r"not known\): --host must be a name") as told:
        serve(app, "nonsense.invalid", 8765)
    assert "running there" not in str(told.value)


def test_other_machines_are_let_in_with_a_warning(tmp_path, monkeypatch, capsys):
    (tmp_path / "index.html").write_text("", encoding="utf-8")
    app = page_app(tmp_path, lambda question: lambda: iter(()), dict, is_open=True)
    monkeypatch.setattr("page_server.asyncio.run", lambda listening: listening.close())
    serve(app, "0.0.0.0", 8765)
    told = capsys.readouterr().err
    assert "can use the model" in told
    assert "makes a name lead here" in told


def test_an_answer_that_nobody_waits_for_says_nothing_in_the_terminal(
    server, steps, caplog
):
    """There is nobody to be told that an answer broke off."""
    ask_and_leave(server, steps)
    assert send(server, {"name": "c", "length": 1}).status == 200
    assert [record.getMessage() for record in caplog.records] == []


def test_a_server_that_ends_within_an_answer_says_nothing_in_the_terminal(
    tmp_path, steps, caplog
):
    (tmp_path / "index.html").touch()

    def ask(_):
        return lambda: (Waiting(n) for n in steps.start("a", seconds=0.01)())

    with running(page_app(tmp_path, ask, dict)) as address:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=WAIT)
        connection.request("POST", "/ask", "{}")
        connection.getresponse().readline()
    connection.close()
    assert [record.getMessage() for record in caplog.records] == []


def test_twenty_at_once_are_all_served(server, steps):
    answers = {}

    def ask(number):
        answers[number] = send(server, {"name": str(number), "length": 20}).read()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    last = event({"kind": "waiting", "before": 19})
    assert [answers[n].endswith(last) for n in range(20)] == [True] * 20
    assert len(steps.ended) == len(set(steps.ended)) == 20
