"""Random chains: what is restored equals the source at that backup, or the request is refused for the right reason."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.torture.chains_run import run
from tests.torture.soak import Record, Soak, soak

SHARES = 2


def _say(words: str) -> None:
    print(words, file=sys.__stderr__, flush=True)


def _share(mine: Soak, share: int) -> Record:
    return run(mine.seed, mine.numbers(first=share, step=SHARES), _say)


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_random_chains(keep: Callable[[Record], None]) -> None:
    mine = soak("chains")
    record = Record("chains", mine.seed)
    with ProcessPoolExecutor(SHARES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for share in [pool.submit(_share, mine, share) for share in range(SHARES)]:
            record.add(share.result())
    keep(record)
    assert record.wrong == []
