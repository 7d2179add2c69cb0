"""What a test leaves behind in the system, and what became of a process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

SOON = 30.0
"""Seconds after which a test gives up waiting."""


def eventually(happened: Callable[[], bool]) -> bool:
    """Whether it happened soon, also where all is slow; once is enough, what may pass by again included."""
    deadline = time.monotonic() + 2 * SOON
    while not (seen := happened()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen


def state(pid: int) -> str:
    """One letter as in ps: R, S, Z ...; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one of which only an adoptive parent has not taken note counts as gone."""
    return state(pid) in ("", "Z")


def children() -> set[int]:
    """Our children, the dead ones that nobody gathered included."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(parent) == os.getpid():
                found.add(int(entry.name))
    return found


def nothing_more_than(before: tuple[set[str], set[int], set[str]]) -> bool:
    """Whether nothing belongs to this process that did not before; what others have left may be gone by now."""
    descriptors, processes, threads = belongings()
    return descriptors <= before[0] and processes <= before[1] and threads <= before[2]


def belongings() -> tuple[set[str], set[int], set[str]]:
    """Open descriptors, children and threads of this process."""
    descriptors = set(os.listdir("/proc/self/fd"))
    return descriptors, children(), {thread.name for thread in threading.enumerate()}
