"""What happens in one round, all of it from a seed: what is asked, when the agent ends, and how."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

MOST_BACKUPS = 8
"""Backups from which on some are deleted."""
LONGEST_CHAIN = 5


class Ask(Enum):
    """What is asked of an agent."""

    FULL = "full"
    INCREMENTAL = "incremental"
    RESTORE = "restore"
    VERIFY = "verify"
    DELETE = "delete"


class End(Enum):
    """How the process ends that runs the first job."""

    KILL = "kill"
    TWICE = "kill, and again on its way up"
    STOP = "SIGTERM"
    COMMAND = "kill of a command beside the agent"
    NONE = "nothing"


USUAL = {Ask.FULL: 0.6, Ask.INCREMENTAL: 0.6, Ask.RESTORE: 1.3, Ask.VERIFY: 0.15, Ask.DELETE: 0.1}
"""Seconds that a job takes, about; the end comes within these and a little longer."""
LONGER = 1.25
AT_ONCE = 0.04
"""Seconds within which a request is being accepted."""
ON_THE_WAY_UP = 0.8
SWAP = "swap"
"""The end of the phase stop; no phase of its own, and over in a moment."""
PHASES = {
    Ask.FULL: ("preflight", "dump", "publish"),
    Ask.INCREMENTAL: ("preflight", "dump", "publish"),
    Ask.RESTORE: ("plan", "fetch", "prepare", "seal", "stop", SWAP, SWAP, SWAP, SWAP, "start"),
}
"""What is aimed at."""
INTO_A_PHASE, INTO_THE_SWAP = 0.15, 0.002
"""Seconds after its beginning, at most."""


@dataclass(frozen=True)
class Plan:
    """One round: ``asks`` in this order, and ``seconds`` after the first of them, or after its ``phase``, ``end``."""

    number: int
    asks: tuple[Ask, ...]
    end: End
    phase: str
    seconds: float
    pick: float
    """Which of the backups is restored, verified or deleted, from 0 to 1."""
    explicit: bool
    """Whether the parent of an incremental is named, or is ``latest``."""

    def __str__(self) -> str:
        return (
            f"round {self.number}: {', then '.join(ask.value for ask in self.asks)};"
            f" {self.end.value} {self.seconds:.3f} s after {self.phase or 'that'}"
        )


def make_plan(seed: str, number: int, *, backups: int, chain: int) -> Plan:
    """The plan of a round, for a guest with so many backups, and with a chain so long to continue."""
    dice = random.Random(f"{seed}/{number}")
    first = _ask(dice, backups, chain)
    end = dice.choices(list(End), weights=[70, 10, 8, 8, 4])[0]
    if end is End.COMMAND and first not in (Ask.FULL, Ask.INCREMENTAL, Ask.RESTORE):
        end = End.KILL
    alone = end is not End.COMMAND and _luck(dice, 0.5)
    asks = [first] if alone else [first, _behind(dice, first, backups)]
    phase, seconds = "", dice.uniform(0, AT_ONCE if _luck(dice, 0.15) else LONGER * _usual(asks))
    if first in PHASES and end is not End.COMMAND and _luck(dice, 0.6):
        phase = dice.choice(PHASES[first])
        seconds = dice.uniform(0, INTO_THE_SWAP if phase == SWAP else INTO_A_PHASE)
    return Plan(number, tuple(asks), end, phase, seconds, pick=dice.random(), explicit=_luck(dice, 0.5))


def _luck(dice: random.Random, chance: float) -> bool:
    return dice.random() < chance


def _ask(dice: random.Random, backups: int, chain: int) -> Ask:
    if not backups:
        return Ask.FULL
    if backups > MOST_BACKUPS:
        return Ask.DELETE
    weights = [15, 35 if 0 < chain < LONGEST_CHAIN else 0, 38, 6, 6]
    return dice.choices(list(Ask), weights=weights)[0]


def _behind(dice: random.Random, first: Ask, backups: int) -> Ask:
    """What waits meanwhile: one restore a round at most, and nothing that needs a backup which may be gone."""
    if first is Ask.DELETE or not backups:
        return Ask.FULL
    return dice.choice([Ask.FULL, Ask.VERIFY] if first is Ask.RESTORE else [Ask.FULL, Ask.VERIFY, Ask.RESTORE])


def _usual(asks: Sequence[Ask]) -> float:
    return sum(USUAL[ask] for ask in asks)
