"""A slice of the random chains, always the same ones; hundreds are played by tests/torture/test_chains.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.running import in_memory
from tests.torture.chains_run import play
from tests.torture.chains_stage import Stage, stage

CASES = ((6, 2), (6, 5), (6, 8))


@pytest.fixture(scope="module")
def made() -> Iterator[Stage]:
    """One stage for all of them."""
    with in_memory(), stage() as found:
        yield found


@pytest.mark.parametrize(("seed", "number"), CASES)
def test_a_random_chain_restores_to_what_was_there(made: Stage, seed: int, number: int) -> None:
    played = play(made, seed, number, shrunk=0)
    assert not played.wrong, played.steps
    assert played.record.counts["full"]["completed"]
