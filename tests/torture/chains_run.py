"""Chains, one after the other: each is made from a seed and a number, and shrunk by hypothesis if it goes wrong.

As a program, to play some of a seed's chains, or one of them again:

    python -m tests.torture.chains_run SEED FROM TO
    python -m tests.torture.chains_run case SEED NUMBER
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.internal.conjecture import engine
from hypothesis.reporting import with_reporter
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.running import in_memory
from tests.torture.chains_machine import Chains
from tests.torture.chains_player import Player
from tests.torture.chains_stage import Stage, stage
from tests.torture.soak import Record

LEAST_STEPS, MOST_STEPS = 8, 16
SHRINKING = 30
"""Seconds that a chain may be shrunk for; the steps that are left then are shown."""


@dataclass(frozen=True)
class Played:
    """What came of a chain: what it did, and what was wrong with it, and by which steps, if anything."""

    record: Record
    wrong: str = ""
    steps: str = ""


def play(made: Stage, seed: int, number: int, *, shrunk: float = SHRINKING) -> Played:
    """Play the chain of that number, and again, shorter, if it goes wrong."""
    dice = random.Random(f"{seed}/{number}")
    runs: list[Player] = []
    machine = type("Chain", (Chains,), {"stage": made, "runs": runs})
    hypothesis.seed(dice.getrandbits(64))(machine)
    chosen = settings(
        max_examples=1,
        stateful_step_count=dice.randint(LEAST_STEPS, MOST_STEPS),
        phases=(Phase.generate, Phase.shrink) if shrunk else (Phase.generate,),
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.normal,
    )
    engine.MAX_SHRINKING_SECONDS = int(shrunk)
    try:
        with with_reporter(lambda _: None):
            run_state_machine_as_test(machine, settings=chosen)
    except Exception:
        failed = [player for player in runs if player.wrong]
        if not failed:
            raise
        shortest = min(failed, key=lambda player: len(player.log))
        once = "" if len(failed) > 1 else ", and not again"
        steps = "\n".join([*shortest.log, shortest.wrong])
        return Played(failed[0].record, f"case {seed} {number}: {failed[0].wrong}{once}", steps)
    return Played(next(player for player in runs if player.over).record)


def run(seed: int, numbers: Iterable[int], told: Callable[[str], object]) -> Record:
    """Play chains of a seed; tells how it goes, and the steps of those that go wrong."""
    began = time.monotonic()
    record = Record("chains", seed)
    with in_memory(), stage() as made:
        for number in numbers:
            played = play(made, seed, number, shrunk=0 if record.wrong else SHRINKING)
            record.add(played.record)
            record.runs += 1
            if played.wrong:
                record.wrong.append(played.wrong)
                told(f"{played.wrong}\n{played.steps}")
    record.seconds = time.monotonic() - began
    return record


def main(*words: str) -> int:
    """Play what the words say; gives 1 if anything was wrong."""
    one = words[0] == "case"
    seed, first = (int(word) for word in words[one : one + 2])
    record = run(seed, range(first, first + 1 if one else int(words[2])), lambda line: print(line, flush=True))
    print(record)
    return int(bool(record.wrong))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
