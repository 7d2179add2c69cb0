"""Chains from servers that are written to all the time: every link restores to exactly what its position names."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.torture.load_run import Run, soaked
from tests.torture.soak import Record, Soak, soak

SHARES = 2


def _told(run: Run) -> None:
    if run.wrong:
        print(run, file=sys.__stderr__, flush=True)


def _share(part: Soak, share: int) -> Record:
    return soaked(part.seed, part.numbers(first=share, step=SHARES), _told)


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_every_link_taken_under_a_load(keep: Callable[[Record], None]) -> None:
    part = soak("load")
    record = Record(part.part, part.seed)
    with ProcessPoolExecutor(SHARES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for share in [pool.submit(_share, part, share) for share in range(SHARES)]:
            record.add(share.result())
    keep(record)
    assert record.wrong == []
