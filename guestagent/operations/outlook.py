"""What is told of a plan beside the plan: which keys it takes, and how long it will.

How long is learnt from restores that this host has done; who knows of them hands them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guestagent.chain import Chain
from guestagent.operations.host import Host

NEWEST = 10
"""Restores that count: those before may have been done with another disk, or over another network."""


@dataclass(frozen=True)
class Run:
    """A restore that was done: bytes of its chain's streams, and seconds."""

    raw_size: int
    seconds: float


def outlook(host: Host, chain: Chain, past: Sequence[Run]) -> dict[str, Any]:
    """Keys by their ids, and the time; ``past`` are the restores of this host, the newest last."""
    needed = {link.locked_by or host.catalog.key_id_of(link) for link in chain} - {""}
    missing = {link.locked_by for link in chain} - {""}
    seconds, basis = expected(chain, past)
    return {
        "keys_needed": sorted(needed),
        "keys_missing": sorted(missing),
        "expected_seconds": seconds,
        "expected_from": basis,
    }


def expected(chain: Chain, past: Sequence[Run]) -> tuple[float | None, str]:
    """How many seconds a restore takes, if anything is known of that, and by what; every byte counts the same."""
    newest = [run for run in past if run.raw_size > 0][-NEWEST:]
    if newest:
        basis = f"{len(newest)} {'restore' if len(newest) == 1 else 'restores'} on this host"
        return _in_proportion(chain, sum(run.raw_size for run in newest), sum(run.seconds for run in newest)), basis
    base = chain.base.manifest
    took = (base.finished - base.started).total_seconds()
    if base.raw_size > 0 and took > 0:
        return _in_proportion(chain, base.raw_size, took), "how long its full backup took"
    return None, "nothing"


def _in_proportion(chain: Chain, raw_size: int, seconds: float) -> float:
    return round(chain.raw_size * seconds / raw_size, 1)
