"""The cells of the matrix, story x store x encryption x request x fault, and the cases that a seed makes of them.

A case is one line, which plays it again:

    incremental s3 sealed put-manifest@1*1:lost-ack
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from tests.servers.faults.script import DISK, S3, Fault, Kind, Script, What, cells


class Story(Enum):
    """What is going on while the store goes wrong."""

    FULL = "full"
    INCREMENTAL = "incremental"
    RESTORE = "restore"
    """Into an empty directory."""
    REPLACE = "replace"
    """Over another datadir, whose server is down."""
    VERIFY = "verify"
    DELETE = "delete"
    REFUSED = "refused-delete"
    """Of a backup on which another stands."""
    ROTATE = "rotate"
    """From one key to another, of encrypted backups alone."""


STORES: Mapping[str, Mapping[What, frozenset[Kind]]] = {"s3": S3, "file": DISK}
_LOOKS = (Kind.GET, Kind.HEAD, Kind.LIST, Kind.ANY)
_KINDS: Mapping[Story, tuple[Kind, ...]] = {
    Story.FULL: tuple(Kind),
    Story.INCREMENTAL: tuple(Kind),
    Story.RESTORE: _LOOKS,
    Story.REPLACE: _LOOKS,
    Story.VERIFY: (Kind.GET, Kind.ANY),
    Story.DELETE: (*_LOOKS, Kind.DELETE),
    Story.REFUSED: _LOOKS,
    Story.ROTATE: (*_LOOKS, Kind.PUT_KEY),
}
"""The requests that a story makes."""
_AND_ANOTHER = 0.25
"""How often a second fault comes along."""


@dataclass(frozen=True)
class Case:
    """One run: a story on a store, and how the store goes wrong."""

    story: Story
    store: str
    sealed: bool
    script: Script

    def __str__(self) -> str:
        return f"{self.story.value} {self.store} {'sealed' if self.sealed else 'plain'} {self.script}"

    @classmethod
    def parse(cls, line: str) -> Case:
        """What ``str`` made."""
        story, store, sealed, script = line.split(maxsplit=3)
        return cls(Story(story), store, sealed == "sealed", Script.parse(script))


Cell = tuple[Story, str, bool, Kind, What]


def matrix(but: Collection[What] = ()) -> list[Cell]:
    """All cells, always in the same order; without some ways to go wrong."""
    return [
        (story, store, sealed, kind, what)
        for story, kinds in _KINDS.items()
        for store, suits in STORES.items()
        for sealed in (False, True)
        for kind, what in cells(suits, kinds, but)
        if sealed or (kind is not Kind.PUT_KEY and story is not Story.ROTATE)
    ]


def make_case(seed: int | str, number: int, *, but: Collection[What] = ()) -> Case:
    """Case ``number`` (from 0) of a seed; they meet every cell once before any twice, in an order of the seed's own."""
    every = matrix(but)
    random.Random(f"matrix/{seed}").shuffle(every)
    story, store, sealed, kind, what = every[number % len(every)]
    dice = random.Random(f"matrix/{seed}/{number}")
    faults = [Fault.drawn(dice, kind, what)]
    if dice.random() < _AND_ANOTHER:
        kinds = [one for one in _KINDS[story] if sealed or one is not Kind.PUT_KEY]
        faults += Script.of(f"{seed}/{number}", suits=STORES[store], kinds=kinds, but=but).faults[:1]
    return Case(story, store, sealed, Script(tuple(faults)))
