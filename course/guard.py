"""Forbid the network in this process: what the tests run must work offline.

The guard is an audit hook of the interpreter, so it sees every socket that Python code
opens, whichever library opened it.  It cannot be taken out again, which is the point.
Started by `course.startup` in every process where ``COURSE_GUARD`` is 1.
"""

import ipaddress
import socket
import sys
from typing import Any


class NetworkForbidden(RuntimeError):
    """Something wanted to reach another machine while the guard is on.

    No ``OSError``: code that forgives a failing network must not forgive this.
    """


_FIX = (
    "the tests run without a network (COURSE_GUARD=1). Get the file with "
    "course.assets.fetch, which the set-up calls beforehand, or serve it on 127.0.0.1"
)

# Events of the interpreter; the first argument of these is the host or the address.
_RESOLVING = {
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
    "socket.getnameinfo",
}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_SENDING = {"socket.connect", "socket.sendto", "socket.sendmsg"}

_installed = False


def _is_local(host: Any) -> bool:
    """Tell whether a host name or number means this machine and no other."""
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("ascii", "replace")
    if not host:  # no host: the wildcard address of a server
        return True
    name = host.lower().rstrip(".")
    if name in ("localhost", "ip6-localhost", "ip6-loopback"):
        return True
    if name.endswith(".localhost") or name == socket.gethostname().lower():
        return True
    try:
        number = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    number = getattr(number, "ipv4_mapped", None) or number
    return number.is_loopback or number.is_unspecified


def _host(address: Any) -> Any:
    return address[0] if isinstance(address, tuple) and address else address


def _hook(event: str, arguments: tuple) -> None:
    """Raise `NetworkForbidden` for events that would leave this machine."""
    if event in _RESOLVING:
        host = _host(arguments[0])
        if not _is_local(host):
            raise NetworkForbidden(f"Looking up {host!s} is forbidden: {_FIX}.")
    elif event in _SENDING:
        sender, address = arguments[0], arguments[1]
        if address is None or sender.family not in _FAMILIES:
            return  # already connected, or not a network at all
        if not _is_local(_host(address)):
            raise NetworkForbidden(
                f"Connecting to {_host(address)!s} is forbidden: {_FIX}."
            )


def install() -> None:
    """Switch the guard on for the rest of this process; a second call does nothing."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)
