"""What a service says to systemd: started, at work on what, reloading, stopping, and still alive.

The protocol is one datagram of ``NAME=value`` lines a message, to the socket that NOTIFY_SOCKET names (see
sd_notify(3)).  Without that variable nobody listens, and everything here does nothing.  Nothing here knows what a job
is, nor raises: an agent does not end because systemd could not be told how it is.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

LOG = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that a message may wait for room in systemd's queue."""
_MICRO = 1_000_000


class Notifier:
    """The way to the service manager; an empty ``address`` stands for none.

    ``watchdog`` is the number of seconds after which a silent service is killed, 0 for never.
    """

    def __init__(self, address: str = "", *, watchdog: float = 0) -> None:
        self.watchdog = watchdog
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._deaf = False

    def ready(self, status: str) -> None:
        """Say that the start, or a reload, is over."""
        self._tell("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Say what is going on, for people."""
        self._tell(_status(status))

    def reloading(self) -> None:
        """Say that a reload begins; ``ready`` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """Say that the end begins."""
        self._tell("STOPPING=1", _status(status))

    def extend(self, seconds: float) -> None:
        """Ask for time: the start, or the stop, takes up to ``seconds`` from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * _MICRO)}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            self._send("\n".join(lines).encode(errors="replace"))
        except OSError as error:
            self._note_deaf(error)
        else:
            self._deaf = False

    def _send(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way:
            way.settimeout(PATIENCE)
            way.connect(self._address)
            way.sendall(message)

    def _note_deaf(self, error: OSError) -> None:
        """Log the first failure of a row: pings would fill the log."""
        if not self._deaf:
            LOG.warning("cannot reach systemd at NOTIFY_SOCKET: %s", error)
        self._deaf = True


def notifier(environment: MutableMapping[str, str] = os.environ) -> Notifier:
    """The notifier that the environment names; its variables are taken out: our children are not the service."""
    address = environment.pop("NOTIFY_SOCKET", "")
    limit = environment.pop("WATCHDOG_USEC", "")
    whose = environment.pop("WATCHDOG_PID", "")
    if address and address[0] not in "/@":
        LOG.warning("NOTIFY_SOCKET names no UNIX socket: %s", address)
        address = ""
    watched = limit.isdecimal() and whose in ("", str(os.getpid()))
    return Notifier(address, watchdog=int(limit) / _MICRO if watched else 0)


def _status(text: str) -> str:
    """The line of a status, which must be one."""
    return "STATUS=" + " ".join(text.split())
