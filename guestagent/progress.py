"""How long work is watched and stopped: phases and bytes out, cancellation and the no-progress limit in.

Nothing here draws or prints; a door hands in a :class:`Progress` that does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Protocol

from guestagent.errors import Cancelled, Stalled


class Span:
    """Work that began at a moment; how long it takes is told by a clock that does not step, as the host's may."""

    def __init__(self, began: datetime, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.began = began
        self._clock = clock
        self._since = clock()

    @property
    def now(self) -> datetime:
        """The moment that it is by now, seen from the beginning."""
        return self.began + timedelta(seconds=self._clock() - self._since)


class Progress(Protocol):
    """What a door shows of long work.  Called from several threads; must not block or raise."""

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        """Begin a phase of ``total`` bytes (None: unknown), for link ``link`` of ``links``."""

    def advance(self, count: int) -> None:
        """Count ``count`` more bytes of the present phase."""


class Silent:
    """A progress that nobody looks at."""

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        """Show nothing."""

    def advance(self, count: int) -> None:
        """Show nothing."""


class Cancel:
    """A request to stop, set once from any thread or from a signal handler.

    It has no lock: a handler that interrupts its own thread would wait for that for ever.
    """

    def __init__(self) -> None:
        self._reason: str | None = None

    def set(self, reason: str) -> None:
        """Ask for the stop; the first reason stays."""
        if self._reason is None:
            self._reason = reason

    def check(self) -> None:
        """Raise Cancelled if a stop was asked for."""
        if self._reason is not None:
            raise Cancelled(self._reason)


def _nothing() -> None:
    """Ask nothing."""


class Watch:
    """One job's eye: forwards progress, and says when the job must end.

    ``limit`` is the number of seconds that may pass without a byte (0: no limit).  ``seen`` is when
    the job was last heard of at all, by ``clock``: even one that waits looks at its watch.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        *,
        cancel: Cancel | None = None,
        limit: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cancel = cancel or Cancel()
        self._progress = progress or Silent()
        self._limit = limit
        self._clock = clock
        self._last = self.seen = clock()
        self._name = "start"
        self._also: Callable[[], None] = _nothing

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        """Begin a phase."""
        self._name = name
        self.alive()
        self._progress.phase(name, total=total, link=link, links=links)

    def advance(self, count: int) -> None:
        """Count bytes that moved."""
        self.alive()
        self._progress.advance(count)

    def alive(self) -> None:
        """Note a sign of life that is not a byte, such as a line on a tool's stderr."""
        self._last = self.seen = self._clock()

    @property
    def still(self) -> float:
        """Seconds since the last sign of life."""
        return self._clock() - self._last

    @contextmanager
    def asking(self, also: Callable[[], None]) -> Iterator[None]:
        """Have each check inside ask ``also``, too, which raises when the job must end for reasons of its own."""
        self._also = also
        try:
            yield
        finally:
            self._also = _nothing

    def check(self) -> None:
        """Raise Cancelled or Stalled when the job must end."""
        self.cancel.check()
        self._also()
        self.seen = self._clock()
        if self._limit and self.seen - self._last > self._limit:
            raise Stalled(
                f"no progress for {self._limit:g} s in phase {self._name}",
                hint="look for locks held by a session, a full disk or a store that hangs",
            )
