"""Everything that can happen to a process, in every phase of every story, by every door; judged by somebody else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.torture.process_run import soaked
from tests.torture.soak import Record, soak

SHARES = 2
"""Processes that play side by side, each with servers of its own."""

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


def test_everything_that_can_happen_to_a_process(keep: Callable[[Record], None]) -> None:
    wanted = soak("processes")
    record = Record(wanted.part, wanted.seed)
    with ProcessPoolExecutor(SHARES, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(soaked, wanted, share=share, shares=SHARES) for share in range(SHARES)]
        for share in shares:
            record.add(share.result())
    keep(record)
    assert record.wrong == []
