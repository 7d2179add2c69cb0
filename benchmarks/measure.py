"""What a command costs, with all that it starts: time, processors, memory.  What is run, and why, is not known here."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

PAUSE = 0.1
"""Seconds between two looks at the memory of a process tree."""
KIB = 1 << 10
TAIL = 30
"""Lines of a log that are shown when a command has failed."""


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds of the clock and of all processors, peaks of resident memory in bytes.

    ``tree_rss`` is the most that all processes of the run held at once.  ``agent_rss`` is the same for those that run
    the program of the first one: for the agent itself and what it forks, without the tools that it starts.
    """

    wall: float
    cpu: float
    tree_rss: int
    agent_rss: int
    status: int


class Failed(Exception):
    """A command of a benchmark ended with an error; carries the end of its log."""

    def __init__(self, argv: Sequence[str], status: int, log: Path) -> None:
        lines = log.read_text(errors="replace").splitlines()[-TAIL:]
        super().__init__("\n".join([f"{argv[0]} ended with {status}; the end of {log}:", *lines]))


def cost_of(
    argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[Cost, str]:
    """Run a command to its end; gives what it took, and its stdout.  Raises Failed unless it ended well.

    stdout and stderr go to files, ``log`` with the suffixes .out and .log.
    """
    out, err = log.with_suffix(".out"), log.with_suffix(".log")
    with out.open("wb") as stdout, err.open("wb") as stderr:
        began = perf_counter()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
            cwd=cwd,
        )
        cost = _watched(process, began)
    if cost.status:
        raise Failed(argv, cost.status, err)
    return cost, out.read_text(errors="replace")


def _watched(process: subprocess.Popen[bytes], began: float) -> Cost:
    """What a process takes until it ends.

    wait4 counts the descendants as well, since each of them is waited for by its parent.
    """
    with Peaks(process.pid) as peaks:
        try:
            _, state, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(state)
    return Cost(wall, used.ru_utime + used.ru_stime, peaks.tree, peaks.agent, process.returncode)


@dataclass(frozen=True)
class Seen:
    """One process at one moment; memory in bytes."""

    pid: int
    program: str
    rss: int


class Peaks:
    """Looks at a process tree ten times a second, in a thread, while the context lasts.

    A process counts from the second look on that finds it running the same program: between fork and exec a child
    shows its parent's memory as its own.
    """

    def __init__(self, pid: int) -> None:
        self.tree = 0
        self.agent = 0
        self._root = pid
        self._known: set[tuple[int, str]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="peaks")

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def note(self, seen: Sequence[Seen]) -> None:
        """Take one look into account; the first of ``seen`` is the root."""
        counted = [one for one in seen if one.pid == self._root or (one.pid, one.program) in self._known]
        own = [one for one in counted if one.program == seen[0].program]
        self.tree = max(self.tree, sum(one.rss for one in counted))
        self.agent = max(self.agent, sum(one.rss for one in own))
        self._known = {(one.pid, one.program) for one in seen}

    def _look_on(self) -> None:
        while True:
            if seen := list(tree(self._root)):
                self.note(seen)
            if self._over.wait(PAUSE):
                return


def tree(pid: int) -> Iterator[Seen]:
    """A process and all its descendants that are alive, the process first."""
    try:
        yield Seen(pid, os.readlink(f"/proc/{pid}/exe"), _resident(pid))
        children = [child for task in os.listdir(f"/proc/{pid}/task") for child in _children(pid, task)]
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended since it was found
    for child in children:
        yield from tree(child)


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _children(pid: int, task: str) -> list[int]:
    with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]
