"""Agents that end at random moments, hundreds of times: no request lost, none stuck, and every promise kept.

``GUESTAGENT_TEST_ROUNDS`` is how many rounds, ``GUESTAGENT_TEST_SEED`` what they are made from; both are printed.
The same seed asks for the same and ends agents after the same time; what is hit then depends on the machine.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.integration.running import in_memory
from tests.torture.victims import victim

FEW = 20
"""Rounds where nobody has said how many."""
TOLD_EVERY = 20
GUESTS = ("guest1", "guest2")
"""Each in a process of its own, or they would wait for each other when they aim."""


def _say(words: str) -> None:
    print(words, file=sys.__stderr__, flush=True)


def _torture(name: str, seed: int, rounds: int, failed: Path) -> Counter[str]:
    """So many rounds with one guest, unless the other one has ``failed``; gives how often jobs ended in which way."""
    began = time.monotonic()
    with in_memory(), victim(name, seed) as tortured:
        for number in range(1, rounds + 1):
            if failed.exists():
                break
            try:
                tortured.round(number)
            except BaseException:
                failed.touch()
                raise
            if number % TOLD_EVERY == 0 or number == rounds:
                _say(f"{name}: {number} of {rounds} rounds, {(time.monotonic() - began) / number:.1f} s each")
        return tortured.tally


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_agents_that_end_at_random_moments(tmp_path: Path) -> None:
    rounds = int(os.environ.get("GUESTAGENT_TEST_ROUNDS") or FEW)
    seed = int(os.environ.get("GUESTAGENT_TEST_SEED") or random.randrange(1 << 32))
    _say(f"\n{rounds} rounds, GUESTAGENT_TEST_SEED={seed}")
    shares = [rounds // len(GUESTS) + (number < rounds % len(GUESTS)) for number in range(len(GUESTS))]
    with ProcessPoolExecutor(len(GUESTS), mp_context=multiprocessing.get_context("spawn")) as pool:
        guests = [
            pool.submit(_torture, name, seed, share, tmp_path / "failed")
            for name, share in zip(GUESTS, shares, strict=True)
        ]
        tallies = [guest.result() for guest in guests]
    for what, count in sorted(sum(tallies, Counter()).items()):
        _say(f"{count:5} {what}")
