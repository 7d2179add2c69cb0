"""Stories on stores that go wrong, thousands of times, and each judged by somebody else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version

import pytest

from tests.torture.matrix_cases import matrix
from tests.torture.matrix_run import soaked
from tests.torture.soak import Record, soak

SHARES = 4
"""Processes: they wait for stalls more than they work."""

pytestmark = [pytest.mark.torture, pytest.mark.timeout(0)]


def test_every_story_on_a_store_that_goes_wrong(keep: Callable[[Record], None]) -> None:
    wanted = soak("matrix")
    about = {"cells": f"{len(matrix()):,}", "moto": version("moto")}
    record = Record(wanted.part, wanted.seed, about=about)
    with ProcessPoolExecutor(SHARES, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(soaked, wanted, share=share, shares=SHARES) for share in range(SHARES)]
        for share in shares:
            record.add(share.result())
    keep(record)
    assert record.wrong == []
