"""Ports of 127.0.0.1 for the servers of tests, which no client of anything can be given meanwhile."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_FIRST, _LAST = 10_000, 65_535
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_MANY = 10_000
"""Ports that one chooses from, at least; all of them if the kernel leaves fewer to servers."""

_random = random.SystemRandom()  # test runs that begin with one seed do not meet


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different.

    They are none of those from which the kernel chooses for clients: such a one could be taken between this and the
    server's start, or while the server is down; and who tries to reach it then could be connected with itself.
    """
    with ExitStack() as held:
        return [_bound(held.enter_context(socket.socket())) for _ in range(count)]


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _bound(one: socket.socket) -> int:
    while True:
        port = _random.choice(_ports())
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port


def _ports() -> list[int]:
    low, high = (int(word) for word in _RANGE.read_text().split())
    found = [port for port in range(_FIRST, _LAST + 1) if not low <= port <= high]
    return found if len(found) >= _MANY else list(range(_FIRST, _LAST + 1))
