"""One job at a time per host, across processes: the lock that every story which changes something holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from guestagent.errors import Busy, GuestagentError

LOCK = "lock"
LONGEST = 4096
"""Bytes of what the lock file says of its holder."""


@contextmanager
def only_job(state_dir: Path, what: str) -> Iterator[None]:
    """Hold the host's lock for ``what``, such as ``backup 2f...``; raises Busy that names what holds it.

    The kernel drops the lock when its holder dies, however it dies.
    """
    with ExitStack() as stack:
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            _take(descriptor, what)
        except OSError as error:
            raise GuestagentError(
                f"cannot write to state_dir {state_dir}: {error.strerror}",
                hint="run as a user that may, or set state_dir",
            ) from error
        yield


def _take(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, LONGEST, 0).decode(errors="replace") or "another job"
        raise Busy(f"this host is busy with {holder}", hint="wait for it, or cancel it") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{what} (pid {os.getpid()})".encode(errors="replace")[:LONGEST], 0)
