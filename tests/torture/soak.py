"""How long each part of the torture runs, what its cases are made from, and what it leaves: a record of counts.

``GUESTAGENT_TEST_SECONDS`` is the time of all parts together (an hour), ``GUESTAGENT_TEST_SEED`` what every case is
made from, and ``GUESTAGENT_TEST_RECORDS`` a directory for the records that docs/reliability.rst is made of.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AN_HOUR = 3600.0
SHARES: Mapping[str, float] = {
    "matrix": 0.40,
    "processes": 0.16,
    "chains": 0.24,
    "load": 0.10,
    "kills": 0.08,
    "fuzz": 0.02,
}
"""Of the time of all parts."""


@dataclass
class Record:
    """What a part did: counts by row and column, and a line for each run that was wrong, from which it replays."""

    part: str
    seed: int
    runs: int = 0
    faulted: int = 0
    """Runs in which something did go wrong, as it was meant to."""
    seconds: float = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)
    """Versions, and what else a reader of the counts should know."""

    def count(self, row: str, *columns: str) -> None:
        """Count one more in each of these columns of a row."""
        self.counts.setdefault(row, Counter()).update(columns)

    def add(self, other: Record) -> None:
        """Add what another process did for the same part."""
        self.runs += other.runs
        self.faulted += other.faulted
        self.seconds = max(self.seconds, other.seconds)
        for row, columns in other.counts.items():
            self.counts.setdefault(row, Counter()).update(columns)
        self.wrong += other.wrong
        self.about |= other.about

    def __str__(self) -> str:
        faulted = f" ({self.faulted:,} faulted)" if self.faulted else ""
        return f"{self.part}: {self.runs:,} runs{faulted}, {len(self.wrong)} wrong, {self.seconds:.0f} s"

    def write(self, directory: Path) -> Path:
        """Write it as ``<part>-<seed>.json``."""
        path = directory / f"{self.part}-{self.seed}.json"
        # Not asdict, which counts the pairs of a Counter.
        path.write_text(json.dumps(vars(self), indent=1, sort_keys=True) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> Record:
        """What ``write`` wrote."""
        found: dict[str, Any] = json.loads(path.read_text())
        counts = {row: Counter(columns) for row, columns in found.pop("counts").items()}
        return cls(counts=counts, **found)


@dataclass(frozen=True)
class Soak:
    """A part's seed, and the moment until which it makes new cases; can be sent to other processes of this host."""

    part: str
    seed: int
    seconds: float
    until: float
    """On the monotonic clock, which all processes of a host share."""

    def numbers(self, *, first: int = 0, step: int = 1) -> Iterator[int]:
        """Numbers of cases, at least one, until the time is over."""
        number = first
        yield number
        while time.monotonic() < self.until:
            number += step
            yield number


def seed() -> int:
    """What cases are made from: as asked for, or anything, and then the same for all parts."""
    return int(os.environ.setdefault("GUESTAGENT_TEST_SEED", str(random.randrange(1 << 32))))


def soak(part: str) -> Soak:
    """The soak of a part, which begins now."""
    seconds = float(os.environ.get("GUESTAGENT_TEST_SECONDS") or AN_HOUR) * SHARES[part]
    return Soak(part, seed(), seconds, until=time.monotonic() + seconds)
