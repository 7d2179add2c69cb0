"""Who runs a process of ours, across restarts: names for processes, and the children that outlived their parent.

A pid alone names nothing, since it is given out again.  Together with the time at which its process
started, the boot and the pid namespace it does.
"""

from __future__ import annotations

import logging
import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from guestagent.errors import ToolError

LOG = logging.getLogger(__name__)

MARK = "GUESTAGENT_PARENT"
"""The variable in a tool's environment that names the process which started it."""
GRACE = 10.0
"""Seconds that an orphan may take to be gone after SIGKILL."""

_PROC = Path("/proc")
_START_FIELD = 19
"""Of /proc/PID/stat after the closing bracket of the name: field 22 of proc(5), in clock ticks since the boot."""


@dataclass(frozen=True)
class Name:
    """One process, and never another one: pid, start in clock ticks since the boot, boot id, pid namespace."""

    pid: int
    start: int
    boot: str
    namespace: str

    @classmethod
    def of(cls, pid: int) -> Name | None:
        """The name of a process that is there, and no zombie."""
        try:
            words = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        if not words or words[0] in (b"Z", b"X"):
            return None
        return cls(pid, int(words[_START_FIELD]), _boot(), _namespace())

    @classmethod
    def parse(cls, text: str) -> Name | None:
        """What ``str`` gave, or None for anything else."""
        with suppress(ValueError):
            pid, start, boot, namespace = text.split(" ")
            return cls(int(pid), int(start), boot, namespace)
        return None

    @property
    def alive(self) -> bool:
        """Whether that very process runs; one of another boot or namespace does not."""
        return Name.of(self.pid) == self

    @property
    def near(self) -> bool:
        """Whether its pid means something to us: same boot, same namespace."""
        return (self.boot, self.namespace) == (_boot(), _namespace())

    def __str__(self) -> str:
        return f"{self.pid} {self.start} {self.boot} {self.namespace}"


def ourselves() -> Name:
    """The name of this process."""
    found = Name.of(os.getpid())
    assert found is not None
    return found


def alive(text: str) -> bool:
    """Whether the process with the name ``text`` runs."""
    name = Name.parse(text)
    return name is not None and name.alive


def end_orphans() -> list[int]:
    """End every tool whose parent, one of us, is gone; gives their pids.  Raises ToolError if one does not go."""
    return [pid for pid in _pids() if _orphaned(pid) and _ended(pid)]


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _orphaned(pid: int) -> bool:
    parent = _parent_of(pid)
    return parent is not None and parent.near and not parent.alive


def _parent_of(pid: int) -> Name | None:
    """The process of ours that started ``pid``; None for one that is not ours to look at."""
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    prefix = f"{MARK}=".encode()
    for entry in environment.split(b"\0"):
        if entry.startswith(prefix):
            return Name.parse(entry.removeprefix(prefix).decode(errors="replace"))
    return None


def _ended(pid: int) -> bool:
    """Whether it was there, and is gone; the descriptor makes sure that it is the one that was looked at."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise _undying(pid, f"cannot be ended: {error.strerror}") from error
    try:
        return _orphaned(pid) and _killed(pid, handle)
    finally:
        os.close(handle)


def _killed(pid: int, handle: int) -> bool:
    LOG.warning("ending process %d, which a dead guestagent left behind", pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except OSError as error:
        raise _undying(pid, f"cannot be ended: {error.strerror}") from error
    if not _gone(handle):
        raise _undying(pid, "does not end")
    return True


def _gone(handle: int) -> bool:
    """Whether the process ends in time; its descriptor is readable from then on."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(GRACE * 1000))


def _undying(pid: int, why: str) -> ToolError:
    return ToolError(f"process {pid}, left behind by a dead guestagent, {why}", hint="look what it does, and end it")


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def _namespace() -> str:
    return os.readlink(_PROC / "self/ns/pid")
