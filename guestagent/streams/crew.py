"""A crew: a few threads that take tasks from one source and do them; the first failure wins.

Tasks are *pulled*: whoever is free takes the next one, under a lock, and works
on it in a workspace of its own.  So memory is the number of workers times a
workspace, and nothing waits in a queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from guestagent.progress import Watch
from guestagent.streams.process import lower_thread

LOG = logging.getLogger(__name__)

Space = TypeVar("Space")
Task = TypeVar("Task")

LOOK = 0.1
"""Seconds between two looks at the watch while waiting."""
PATIENCE = 5.0
"""Seconds that a stopped worker gets to come back; one that hangs in a store's socket is then left alone."""


@dataclass(frozen=True)
class Team:
    """How many workers, and by how much less than the rest of the process they count for the scheduler (0 to 19)."""

    size: int
    niceness: int = 0


class Crew(Generic[Space, Task]):
    """The workers of a team; each makes a ``workspace`` once, then takes and works until nothing is left.

    ``take`` runs in one worker at a time and returns None at the end of the work; ``work`` runs
    in parallel.  An exception of either stops the crew and is raised by :meth:`wait`.
    """

    def __init__(
        self,
        team: Team,
        *,
        workspace: Callable[[], Space],
        take: Callable[[Space], Task | None],
        work: Callable[[Space, Task], None],
    ) -> None:
        self._workspace = workspace
        self._take = take
        self._work = work
        self._niceness = team.niceness
        self._turn = threading.Lock()
        self._state = threading.Condition()
        self._running = team.size
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._main, name=f"crew-{n}", daemon=True) for n in range(team.size)]

    def __enter__(self) -> Crew[Space, Task]:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:  # no more threads to be had; those that run must not go on alone
            self._stop.set()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        deadline = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                LOG.warning("%s does not come back and is left alone", thread.name)

    def stopped(self) -> bool:
        """Whether the work is to end before it is done; long waits in ``take`` and ``work`` ask this."""
        return self._stop.is_set()

    def wait(self, watch: Watch, until: Callable[[], bool] = lambda: False) -> None:
        """Wait until all is done, or ``until()`` is true; raises the first failure, and what the watch raises."""
        while True:
            watch.check()
            with self._state:
                if self._failure is not None:
                    raise self._failure
                if self._running == 0 or until():
                    return
                self._state.wait(LOOK)

    def nap(self, seconds: float) -> None:
        """Sleep in a worker, at most until the work is to end."""
        self._stop.wait(seconds)

    def tell(self) -> None:
        """Wake the one who waits, so that it looks at its ``until`` at once."""
        with self._state:
            self._state.notify_all()

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # wait() raises it where somebody can act on it
            self._fail(error)
        with self._state:
            self._running -= 1
            self._state.notify_all()

    def _loop(self) -> None:
        lower_thread(self._niceness)
        space = self._workspace()
        while not self._stop.is_set():
            with self._turn:
                task = None if self._stop.is_set() else self._take(space)
            if task is None:
                return
            self._work(space, task)

    def _fail(self, error: BaseException) -> None:
        with self._state:
            if self._failure is None:
                self._failure = error
        self._stop.set()
