"""The guard against the network: it cannot be taken out, so children try it."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from course import guard, paths

# A TCP and a UDP server on this machine, so that what is allowed is really done.
SERVERS = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
"""


def _run(code, *options, guard="1"):
    """Run `code` in a new process of the environment; return what it printed."""
    code = SERVERS + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "COURSE_GUARD": guard},
        cwd=Path(os.sep),
        check=False,
    )


@pytest.mark.parametrize(
    ("code", "host"),
    [
        ("socket.create_connection(('192.0.2.7', 80), 1)", "192.0.2.7"),
        ("socket.socket().connect(('192.0.2.7', 80))", "192.0.2.7"),
        ("socket.socket().connect_ex(('192.0.2.7', 80))", "192.0.2.7"),
        ("socket.getaddrinfo('example.org', 443)", "example.org"),
        ("socket.getaddrinfo(b'example.org', 443)", "example.org"),
        ("socket.gethostbyname('example.org')", "example.org"),
        ("socket.gethostbyname_ex('example.org')", "example.org"),
        ("socket.gethostbyaddr('192.0.2.7')", "192.0.2.7"),
        ("socket.getnameinfo(('192.0.2.7', 80), 0)", "192.0.2.7"),
        (
            "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.7', 53))",
            "192.0.2.7",
        ),
        (
            "socket.socket(type=socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, "
            "('192.0.2.7', 53))",
            "192.0.2.7",
        ),
        (
            "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
            "2001:db8::1",
        ),
        (
            "import urllib.request; urllib.request.urlopen('http://example.org/x')",
            "example.org",
        ),
        ("import requests; requests.get('https://example.org')", "example.org"),
        (
            "import asyncio; asyncio.run(asyncio.open_connection('example.org', 80))",
            "example.org",
        ),
    ],
)
def test_leaving_this_machine_raises_and_says_what_to_do(code, host):
    done = _run(code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "NetworkForbidden" in last
    assert host in last
    assert "course.assets.fetch" in last


def test_code_that_forgives_a_failing_network_does_not_hide_it():
    done = _run(
        """
        try:
            socket.create_connection(("192.0.2.7", 80), 1)
        except OSError:
            print("forgiven")
        """
    )
    assert done.returncode == 1
    assert "forgiven" not in done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "socket.create_connection(('127.0.0.1', port)).close()",
        "socket.create_connection(('localhost', port)).close()",
        "socket.socket().connect(('', port))",
        "socket.getaddrinfo('::1', 80)",
        "socket.getaddrinfo('::ffff:127.0.0.1', 80)",
        "socket.getaddrinfo(None, 80, flags=socket.AI_PASSIVE)",
        "socket.getaddrinfo(b'127.0.0.1', 80)",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "a, b = socket.socketpair(); a.sendmsg([b'x']); assert b.recv(1) == b'x'",
    ],
)
def test_this_machine_can_be_reached(code):
    done = _run(code + "; print('fine')")
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets here")
def test_sockets_in_the_file_system_can_be_reached(tmp_path):
    done = _run(
        f"""
        local = socket.socket(socket.AF_UNIX)
        local.bind({str(tmp_path / "s")!r})
        local.listen()
        socket.socket(socket.AF_UNIX).connect({str(tmp_path / "s")!r})
        print("fine")
        """
    )
    assert done.stdout.strip() == "fine", done.stderr


def test_children_inherit_it_even_isolated_ones():
    done = _run(
        """
        import subprocess, sys
        code = "import socket; socket.gethostbyname('example.org')"
        print(subprocess.run([sys.executable, "-I", "-c", code],
                             capture_output=True, text=True).stderr)
        """
    )
    assert "NetworkForbidden" in done.stdout


def test_without_the_variable_there_is_no_guard():
    code = "import sys; print('course.guard' in sys.modules)"
    assert _run(code, guard="0").stdout.strip() == "False"


def test_a_second_install_adds_no_second_hook():
    done = _run(
        """
        import sys
        from course import guard
        added = []
        sys.addaudithook = added.append
        guard.install()
        guard.install()
        print(len(added))
        """
    )
    assert done.stdout.strip() == "0", done.stderr


def test_the_environment_under_test_is_guarded():
    """The guard is on in the process that runs the tests, and in kernels."""
    assert Path(guard.__file__).parent == paths.ROOT / "course"
    with pytest.raises(guard.NetworkForbidden, match=r"192\.0\.2\.7"):
        socket.create_connection(("192.0.2.7", 80), 1)
