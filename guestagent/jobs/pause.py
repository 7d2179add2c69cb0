"""When to try again what did not work."""

from __future__ import annotations

import random
import time

FIRST, LONGEST = 1.0, 60.0
"""Seconds between two tries: doubled each time, with jitter."""


class Pause:
    """When to try again: after a second, and twice as long each time, with jitter."""

    def __init__(self) -> None:
        self._next = FIRST
        self._due: float | None = None

    def longer(self) -> None:
        """Wait from now on; a little longer than the last time."""
        self._due = time.monotonic() + self._next * random.uniform(0.5, 1.0)
        self._next = min(2 * self._next, LONGEST)

    def over(self) -> None:
        """Wait no more; whoever fails again waits longer."""
        self._due = None

    def left(self) -> float | None:
        """Seconds to wait; None: for ever."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())
