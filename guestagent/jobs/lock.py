"""One job at a time per host, across processes: the lock that every story which changes something holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from guestagent.datadir import durable
from guestagent.errors import Busy, GuestagentError

LOCK = "lock"
AGENT_LOCK = "agent.lock"
KERNELS = Path("/proc/locks")
"""The locks that are held, a line each: number, FLOCK, kind, access, pid, MAJOR:MINOR:INODE and the range."""
LONGEST = 4096
"""Bytes of what the lock file says of its holder."""


@contextmanager
def only_job(state_dir: Path, what: str) -> Iterator[None]:
    """Hold the host's lock for ``what``, such as ``backup 2f...``; raises Busy that names what holds it.

    The kernel drops the lock when its holder dies, however it dies.
    """
    with _held(
        state_dir, LOCK, f"{what} (pid {os.getpid()})", "this host is busy with {}", "wait for it, or cancel it"
    ):
        yield


@contextmanager
def only_agent(state_dir: Path) -> Iterator[None]:
    """Hold the lock of the one agent that lives in this state_dir; raises Busy that names the other one."""
    who = f"the agent with pid {os.getpid()}"
    with _held(state_dir, AGENT_LOCK, who, f"{{}} uses state_dir {state_dir}", "stop it, or use another state_dir"):
        yield


@contextmanager
def _held(state_dir: Path, name: str, who: str, busy: str, hint: str) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(state_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            durable.give(descriptor, state_dir)  # root may come first, and the agent must get in later
            holder = _take(descriptor, who)
        except OSError as error:
            raise GuestagentError(
                f"cannot write to state_dir {state_dir}: {error.strerror}",
                hint="run as a user that may, or set state_dir",
            ) from error
        if holder is not None:
            raise Busy(busy.format(holder), hint=hint)
        yield


def holder(state_dir: Path) -> str | None:
    """What holds the host's lock, such as ``backup 2f... (pid 12)``, if anything does.

    Only asks, and so is in nobody's way: to try the lock would be to hold it for a moment.
    """
    path = state_dir / LOCK
    with durable.explained(f"see what holds {path}"):
        held = KERNELS.read_text()
        with suppress(FileNotFoundError):  # no job yet
            who = durable.read_small(path, most=LONGEST).decode(errors="replace")
            inode = path.stat().st_ino
            pids = [words[4] for words in map(str.split, held.splitlines()) if _is_on(words, inode)]
            return who if any(who.endswith(f"(pid {pid})") for pid in pids) else None
    return None


def _is_on(words: Sequence[str], inode: int) -> bool:
    """Whether a line of the kernel's tells of a lock like ours on that inode; devices go by several numbers."""
    return words[1] == "FLOCK" and words[5].endswith(f":{inode}")


def _take(descriptor: int, who: str) -> str | None:
    """Take the lock and write down who has it; gives who else has it instead."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, LONGEST, 0).decode(errors="replace") or "another job"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, who.encode(errors="replace")[:LONGEST], 0)
    return None
