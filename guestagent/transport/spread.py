"""Reconnects to RabbitMQ at growing and random distances, since thousands of agents lose their broker at one moment.

oslo.messaging's driver tries again after the same seconds everywhere, so that a fleet comes back as one wave; its
``kombu_reconnect_splay`` changes what the log says, and not when it tries (18.3).  Connections that listen are held
back; those that send have somebody who waits for them, and only lose their step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from guestagent.transport.oslo import common

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 30.0
"""Seconds before a lost connection is tried again, beside oslo's own: random, up to a limit that doubles."""
QUIET = 60.0
"""Seconds without a failure after which the next one counts as the first."""
SHORTEST = 0.5
"""To which part the distances that oslo.messaging is configured to are shortened at most, at each lost connection."""
SLICE = 0.5
"""Seconds after which a pause looks whether it is still wanted."""
_DOUBLINGS = 8


class Pauses:
    """How long to wait before each attempt."""

    def __init__(self) -> None:
        self._failures = 0
        self._quiet_from = float("-inf")

    def next(self) -> float:
        """Seconds to wait after a failure that happened now."""
        now = time.monotonic()
        if now > self._quiet_from:
            self._failures = 0
        pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures, _DOUBLINGS)))
        self._failures += 1
        self._quiet_from = now + pause + QUIET
        return pause


def spread_reconnects(transport: Any) -> None:
    """Let what listens through a transport to RabbitMQ come back at a time of its own; others stay as they are."""
    pool: Any = getattr(transport._driver, "_connection_pool", None)
    if hasattr(getattr(pool, "connection_cls", None), "ensure"):
        pool.connection_cls = _spread(pool.connection_cls)


def _spread(kind: Any) -> Any:
    """A driver's class of connections, with pauses of ours."""

    class Spread(kind):  # type: ignore[misc]
        """Waits before it tries again what failed for want of a connection."""

        interval_start: float
        interval_stepping: float
        interval_max: float

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._pauses = Pauses()
            self._steps: tuple[float, ...] = ()
            super().__init__(*arguments, **options)

        def ensure_connection(self) -> None:
            self._steps = self._steps or (self.interval_start, self.interval_stepping, self.interval_max)
            part = random.uniform(SHORTEST, 1)
            self.interval_start, self.interval_stepping, self.interval_max = (part * step for step in self._steps)
            super().ensure_connection()

        def ensure(
            self,
            method: Callable[[], object],
            retry: int | None = None,
            recoverable_error_callback: Callable[[Exception], object] | None = None,
            **options: Any,
        ) -> Any:
            def failed(error: Exception) -> None:
                if recoverable_error_callback is not None:
                    recoverable_error_callback(error)
                if self.purpose == common.PURPOSE_LISTEN:
                    self._pause(self._pauses.next())

            return super().ensure(method, retry, failed, **options)

        def _pause(self, seconds: float) -> None:
            until = time.monotonic() + seconds
            while not self._consume_loop_stopped and (left := until - time.monotonic()) > 0:
                time.sleep(min(SLICE, left))

    return Spread
