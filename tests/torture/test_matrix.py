"""Stories on stores that go wrong, thousands of times, and each judged by somebody else.

``GUESTAGENT_TEST_MATRIX`` is how many cases, ``GUESTAGENT_TEST_SEED`` what they are made from, and
``GUESTAGENT_TEST_SUMMARY`` names a file for the summary that the table in the docs is made of.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.torture.matrix_cases import make_case
from tests.torture.matrix_run import run
from tests.torture.matrix_verdict import Verdict, summary

FEW = 60
"""Cases where nobody has said how many."""
SHARES = 2


def _share(seed: int, cases: int, share: int) -> list[Verdict]:
    return run(make_case(seed, number) for number in range(share, cases, SHARES))


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_every_story_on_a_store_that_goes_wrong() -> None:
    cases = int(os.environ.get("GUESTAGENT_TEST_MATRIX") or FEW)
    seed = int(os.environ.get("GUESTAGENT_TEST_SEED") or random.randrange(1 << 32))
    print(f"\n{cases} cases, GUESTAGENT_TEST_SEED={seed}", file=sys.__stderr__, flush=True)
    with ProcessPoolExecutor(SHARES, mp_context=multiprocessing.get_context("spawn")) as pool:
        shares = [pool.submit(_share, seed, cases, share) for share in range(SHARES)]
        found = [verdict for share in shares for verdict in share.result()]
    made = summary(seed, found)
    if path := os.environ.get("GUESTAGENT_TEST_SUMMARY"):
        Path(path).write_text(json.dumps(made, indent=1))
    print({name: made[name] for name in ("runs", "faulted", "faults")}, file=sys.__stderr__, flush=True)
    assert [str(verdict) for verdict in found if verdict.wrong] == []
