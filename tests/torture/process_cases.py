"""The cells of faults in processes, story x face x victim x phase, and the cases that a seed makes of them.

A case is one line, which plays it again:

    replace rpc s3 sealed tool:kill@prepare+0.120
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum


class Story(Enum):
    """What is going on."""

    FULL = "full"
    INCREMENTAL = "incremental"
    REPLACE = "replace"
    """A restore over the data of a server that runs, which is stopped and started."""


class Face(Enum):
    """By which door it was asked for."""

    COMMAND = "command"
    RPC = "rpc"
    """Of an agent, over sockets; backups in Trove's words, restores in ours."""
    RABBIT = "rabbit"
    """The same over a RabbitMQ."""


class Victim(Enum):
    """Who is struck."""

    TOOL = "tool"
    RUNNER = "runner"
    """Who runs the job: the command, or the agent."""
    SERVER = "server"
    STORE = "store"
    """The filesystem of the store; as all below it, one that fills."""
    STATE = "state"
    DATA = "data"
    """Of the datadir that is restored to."""
    CLOCK = "clock"
    BROKER = "broker"


@dataclass(frozen=True)
class Fault:
    """What happens to a victim, so many seconds after the beginning of a phase."""

    victim: Victim
    what: str
    phase: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.victim.value}:{self.what}@{self.phase}+{self.seconds:.3f}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """What ``str`` made."""
        victim, _, rest = text.partition(":")
        what, _, rest = rest.partition("@")
        phase, _, seconds = rest.partition("+")
        return cls(Victim(victim), what, phase, float(seconds or 0))


@dataclass(frozen=True)
class Case:
    """One run."""

    story: Story
    face: Face
    store: str
    sealed: bool
    fault: Fault

    def __str__(self) -> str:
        sealed = "sealed" if self.sealed else "plain"
        return f"{self.story.value} {self.face.value} {self.store} {sealed} {self.fault}"

    @classmethod
    def parse(cls, line: str) -> Case:
        """What ``str`` made."""
        story, face, store, sealed, fault = line.split()
        return cls(Story(story), Face(face), store, sealed == "sealed", Fault.parse(fault))

    @property
    def row(self) -> str:
        """What cases are counted by."""
        return f"{self.story.value} {self.face.value} {self.fault.victim.value}/{self.fault.what}"


PHASES: Mapping[str, float] = {
    "preflight": 0.15,
    "dump": 0.35,
    "publish": 0.03,
    "plan": 0.05,
    "fetch": 0.08,
    "prepare": 0.15,
    "seal": 0.04,
    "stop": 0.2,
    "start": 0.5,
}
"""Until how many seconds after its beginning each is struck."""
_OF: Mapping[Story, tuple[str, ...]] = {
    Story.FULL: ("preflight", "dump", "publish"),
    Story.INCREMENTAL: ("preflight", "dump", "publish"),
    Story.REPLACE: ("plan", "fetch", "prepare", "seal", "stop", "start"),
}
FLOODS = ("flood-lines", "flood-line", "flood-end")
"""Megabytes on stderr: in lines, in one line that is none, and then the end."""
SIGNALS = ("kill", "term", "stop")
_AT: Mapping[Story, tuple[tuple[Victim, tuple[str, ...], tuple[str, ...]], ...]] = {
    Story.FULL: (
        (Victim.TOOL, (*SIGNALS, *FLOODS), ("dump",)),
        (Victim.SERVER, SIGNALS, ("dump",)),
        (Victim.SERVER, ("kill",), ("preflight",)),
        (Victim.STORE, ("full",), ("dump",)),
        (Victim.STATE, ("full",), ("preflight", "dump")),
        (Victim.CLOCK, ("forth", "back"), ("preflight", "dump")),
    ),
    Story.REPLACE: (
        (Victim.TOOL, (*SIGNALS, *FLOODS), ("prepare",)),
        (Victim.SERVER, ("kill",), ("fetch",)),
        (Victim.SERVER, SIGNALS, ("start",)),
        (Victim.DATA, ("full",), ("fetch", "prepare", "seal", "stop")),
        (Victim.STATE, ("full",), ("fetch", "start")),
        (Victim.CLOCK, ("forth", "back"), ("fetch", "start")),
    ),
}
STORES = (("file", False), ("s3", True), ("file", True), ("s3", False))
BLOCK = 40
"""Cases after which another scene is set up: a store, encrypted or not."""
_BROKERS = 2
"""Broker faults in a shuffled deck of cells for each story; each takes half a minute."""

Cell = tuple[Story, Face, Victim, str, str]


def cells(but: Collection[Victim] = ()) -> list[Cell]:
    """All cells, always in the same order; without some victims."""
    return [cell for cell in _cells() if cell[2] not in but]


def _cells() -> Iterator[Cell]:
    for story, phases in _OF.items():
        at = (*_AT[Story.REPLACE if story is Story.REPLACE else Story.FULL], (Victim.RUNNER, SIGNALS, phases))
        for face in (Face.COMMAND, Face.RPC):
            for victim, whats, where in at:
                yield from ((story, face, victim, what, phase) for what in whats for phase in where)
        for phase in phases[-_BROKERS:]:
            yield story, Face.RABBIT, Victim.BROKER, "kill", phase


def make_case(seed: int | str, number: int, *, but: Collection[Victim] = ()) -> Case:
    """Case ``number`` (from 0) of a seed; they meet every cell once before any twice, in an order of the seed's own."""
    every = cells(but)
    lap, place = divmod(number, len(every))
    random.Random(f"processes/{seed}/{lap}").shuffle(every)
    story, face, victim, what, phase = every[place]
    dice = random.Random(f"processes/{seed}/{number}")
    most = 0.0 if what in FLOODS or victim is Victim.BROKER else PHASES[phase]
    fault = Fault(victim, what, phase, round(dice.uniform(0, most), 3))
    store, sealed = STORES[(number // BLOCK + number % 2) % len(STORES)]
    if victim is Victim.STORE and store != "file":
        fault = replace(fault, victim=Victim.STATE)
    return Case(story, face, store, sealed, fault)
