"""Agents that end at random moments, hundreds of times: no request lost, none stuck, and every promise kept.

The same seed asks for the same and ends agents after the same time; what is hit then depends on the machine.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.integration.running import in_memory
from tests.torture.soak import Record, Soak, soak
from tests.torture.victims import victim

TOLD_EVERY = 20
GUESTS = ("guest1", "guest2")
"""Each in a process of its own, or they would wait for each other when they aim."""


def _torture(name: str, soak: Soak, failed: Path) -> Record:
    """Rounds with one guest until the time is over, or the other one has ``failed``."""
    began = time.monotonic()
    with in_memory(), victim(name, soak.seed) as tortured:
        for number in soak.numbers(first=1):
            if failed.exists():
                break
            try:
                tortured.round(number)
            except Exception as error:
                failed.touch()
                print(f"{name}: {error}", *error.__notes__, sep="\n", file=sys.__stderr__, flush=True)
                break
            if number % TOLD_EVERY == 0:
                took = (time.monotonic() - began) / number
                print(f"{name}: {number} rounds, {took:.1f} s each", file=sys.__stderr__, flush=True)
        tortured.record.seconds = time.monotonic() - began
        return tortured.record


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_agents_that_end_at_random_moments(tmp_path: Path, keep: Callable[[Record], None]) -> None:
    mine = soak("kills")
    record = Record("kills", mine.seed)
    with ProcessPoolExecutor(len(GUESTS), mp_context=multiprocessing.get_context("spawn")) as pool:
        for guest in [pool.submit(_torture, name, mine, tmp_path / "failed") for name in GUESTS]:
            record.add(guest.result())
    keep(record)
    assert record.wrong == []
