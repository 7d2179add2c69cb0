"""A limit of bytes a second that all workers of one job share.

Nothing moves here: whoever is about to send or to fetch bytes asks first, and waits for its turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from guestagent.errors import Cancelled
from guestagent.progress import Watch

LOOK = 0.1
"""Seconds between two looks at whether to stop, while waiting for a turn."""


def _never() -> bool:
    return False


class Pace:
    """``rate`` bytes a second (0: no limit), first come, first served.

    Whoever asks passes as soon as all that passed before it has had its time.  So one piece runs ahead and never more,
    and the average is exact, however late anybody wakes up; a time in which nobody asks is not made up for.
    """

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free = clock()

    def spend(self, count: int, stopped: Callable[[], bool], *, urgent: Callable[[], bool] = _never) -> None:
        """Return once ``count`` bytes may pass; raises Cancelled if ``stopped()`` says so while they may not.

        ``urgent()`` lets them pass at once; whoever comes later makes up for it.
        """
        turn = self._turn(count) if self._rate else self._clock()
        while (left := turn - self._clock()) > 0 and not urgent():
            if stopped():
                raise Cancelled("stopped while it waited for its turn under the rate limit")
            self._sleep(min(left, LOOK))

    def _turn(self, count: int) -> float:
        with self._lock:
            turn = max(self._free, self._clock())
            self._free = turn + count / self._rate
            return turn


class Gate:
    """One job's pace, for the workers of its crew; a context manager that turns away whoever waits when it ends.

    It ends before the crew does, which then need not wait for them.  Where nobody can see to that, ``heed`` tells it
    how to learn that the crew has to stop.  Nobody waits while ``urgent()``.
    """

    def __init__(self, rate: float, watch: Watch, *, urgent: Callable[[], bool] = _never) -> None:
        self._pace = Pace(rate)
        self._watch = watch
        self._urgent = urgent
        self._stopped: Callable[[], bool] = lambda: False

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = lambda: True

    def heed(self, stopped: Callable[[], bool]) -> None:
        """Turn away whoever waits as soon as ``stopped()`` says so."""
        self._stopped = stopped

    def let(self, count: int) -> None:
        """Return once ``count`` bytes may pass; raises Cancelled if the work is to end before."""
        self._pace.spend(count, self._look, urgent=self._urgent)

    def _look(self) -> bool:
        self._watch.alive()  # who waits for its turn is not stuck
        return self._stopped()
