"""Stamps: times that strictly increase, over restarts and steps of the clock."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from guestagent import document
from guestagent.datadir import durable
from guestagent.errors import Corrupt, GuestagentError

LOG = logging.getLogger(__name__)

RESERVED = 60.0
"""Seconds of stamps that are reserved on disk at a time, so that a heartbeat seldom costs an fsync."""
RESERVED_AHEAD = 1.0
"""The same while the clock is behind, so that restarts do not drive the stamps away from it."""
STEP = 0.001
"""Seconds between two stamps at least; a double tells microseconds apart for two centuries."""
LATEST = 1e11
"""No clock shows this (the year 5138), and a number that is not much bigger has no room for a step."""

_FORMAT = 1
_MODE = 0o600
_MOST_BYTES = 4096


class Stamps:
    """A receiver drops what is not newer than the last that it saw; so no stamp may be given twice, or lie behind.

    ``path`` keeps the highest stamp that may have been given.  A disk that refuses to note it does not keep us from
    speaking: what is at risk then is a restart after a step of the clock, and it is told.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._last = self._reserved = _noted(path)

    def next(self) -> float:
        """The time, or a little more than the last stamp where the clock is not later than that."""
        with self._lock:
            now = self._clock()
            self._last = max(now, self._last + STEP)
            if self._last > self._reserved:
                self._reserve(max(now + RESERVED, self._last + RESERVED_AHEAD))
            return self._last

    def _reserve(self, until: float) -> None:
        document = {"format": _FORMAT, "reserved": until}
        try:
            with durable.explained("note the last stamp"):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                durable.write(self._path, json.dumps(document).encode(), mode=_MODE, like=self._path.parent)
        except GuestagentError as error:
            LOG.warning("%s: after a restart, updates may be taken for old ones", error)
            return
        self._reserved = until


def _noted(path: Path) -> float:
    """The highest stamp that may have been given; minus infinity if that is not known."""
    try:
        return _parsed(durable.read_small(path, most=_MOST_BYTES))
    except FileNotFoundError:
        return -math.inf
    except (OSError, Corrupt) as error:
        LOG.error("cannot read the last stamp from %s: %s; the clock alone decides now", durable.shown(path), error)
        return -math.inf


def _parsed(data: bytes) -> float:
    try:
        reserved = float(document.parsed(data, most=_MOST_BYTES)["reserved"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"not a stamp: {data[:40]!r}") from error
    if not 0 <= reserved < LATEST:
        raise Corrupt(f"not a stamp: {reserved!r}")
    return reserved
