"""The guard against the network, which is on in every process that runs tests."""

import socket
import sys

import pytest

from course import guard
from course.testing.programs import run

AWAY = ("192.0.2.7", 80)


def udp():
    return socket.socket(type=socket.SOCK_DGRAM)


def inet6():
    return socket.socket(socket.AF_INET6)


@pytest.mark.parametrize(
    ("leave", "host"),
    [
        (lambda: socket.socket().connect(AWAY), "192.0.2.7"),
        (lambda: socket.socket().connect_ex(AWAY), "192.0.2.7"),
        (lambda: inet6().connect(("2001:db8::1", 80)), "2001:db8::1"),
        (lambda: udp().sendto(b"x", AWAY), "192.0.2.7"),
        (lambda: udp().sendmsg([b"x"], [], 0, AWAY), "192.0.2.7"),
        (lambda: socket.getaddrinfo("example.org", 443), "example.org"),
        (lambda: socket.getaddrinfo(b"example.org", 443), "example.org"),
        (lambda: socket.gethostbyname("example.org"), "example.org"),
        (lambda: socket.gethostbyaddr("192.0.2.7"), "192.0.2.7"),
        (lambda: socket.getnameinfo(AWAY, 0), "192.0.2.7"),
    ],
)
def test_leaving_this_machine_raises_and_says_what_to_do(leave, host):
    with pytest.raises(guard.NetworkForbidden) as caught:
        leave()
    assert host in str(caught.value)
    assert "course.assets.fetch" in str(caught.value)
    assert not isinstance(caught.value, OSError), "code may forgive a failing network"


def connected(host, port):
    with socket.socket() as sender:
        return sender.connect_ex((host, port)) == 0


def paired():
    one, other = socket.socketpair()
    with one, other:
        return one.sendmsg([b"x"]) == 1 and other.recv(1) == b"x"


@pytest.mark.parametrize(
    "stay",
    [
        lambda port: connected("127.0.0.1", port),
        lambda port: connected("localhost", port),
        lambda port: connected("", port),
        lambda port: socket.getaddrinfo("::1", port),
        lambda port: socket.getaddrinfo("::ffff:127.0.0.1", port),
        lambda port: socket.getaddrinfo(None, port, flags=socket.AI_PASSIVE),
        lambda port: socket.getaddrinfo(b"127.0.0.1", port),
        lambda port: udp().sendto(b"x", ("127.0.0.1", 9)),
        lambda port: paired(),
    ],
)
def test_this_machine_can_be_reached(stay):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert stay(server.getsockname()[1])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets here")
def test_sockets_in_the_file_system_can_be_reached(tmp_path):
    with (
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as other,
    ):
        local.bind(str(tmp_path / "s"))
        local.listen()
        other.connect(str(tmp_path / "s"))
        assert other.getpeername() == str(tmp_path / "s")


def test_children_inherit_it_even_isolated_ones():
    code = "import socket; socket.gethostbyname('example.org')"
    done = run(sys.executable, "-I", "-c", code, COURSE_GUARD="1")
    assert "NetworkForbidden" in done.stderr


def test_a_second_time_adds_no_hook(monkeypatch):
    added = []
    monkeypatch.setattr(sys, "addaudithook", added.append)
    guard.install()
    assert added == []
