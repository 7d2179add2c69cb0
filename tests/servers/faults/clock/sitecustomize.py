"""A clock that steps: Python on whose path this lies sees the time that $GUESTAGENT_TEST_CLOCK says.

The variable names a file with a number of seconds, which may come, change and go at any moment; without it the time is
what it is.  Clocks that do not step, as time.monotonic, are let alone.
"""

from __future__ import annotations

import datetime
import os
import time
from typing import Any, Self

_SECONDS, _NANOSECONDS = time.time, time.time_ns
_FILE = os.environ.get("GUESTAGENT_TEST_CLOCK", "")


def _step() -> float:
    try:
        with open(_FILE, encoding="ascii") as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0


class Stepped(datetime.datetime):
    """The same, of that clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Self:
        return super().now(tz) + datetime.timedelta(seconds=_step())

    @classmethod
    def utcnow(cls) -> Self:
        return cls.now(datetime.UTC).replace(tzinfo=None)


def _install(module: Any) -> None:
    module.time = lambda: _SECONDS() + _step()
    module.time_ns = lambda: _NANOSECONDS() + int(_step() * 1e9)


if _FILE:
    _install(time)
    setattr(datetime, "datetime", Stepped)  # noqa: B010  (a type may not be assigned to)
