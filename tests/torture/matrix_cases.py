"""The cells of the matrix, story x face x store x encryption x request x fault, and a seed's cases of them.

A case is one line, which plays it again:

    incremental s3 sealed rpc put-manifest@1*1:lost-ack
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import product

from tests.servers.faults.script import DISK, FOREVER, S3, Fault, Kind, Script, What, cells
from tests.torture.matrix_requests import REQUESTS


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


class Face(Enum):
    """By what it is asked for."""

    CLI = "cli"
    RPC = "rpc"
    """The agent, in Trove's words where Trove has them."""


BACKUPS = (Story.FULL, Story.INCREMENTAL)
STORES: Mapping[str, Mapping[What, frozenset[Kind]]] = {"s3": S3, "file": DISK}
_AND_ANOTHER = 0.25
"""How often a second fault comes along."""
_FAILED = {
    "s3": (What.ERROR, What.FULL, What.EXPIRED),
    "file": (What.FULL, What.IO_ERROR, What.READ_ONLY),
}
"""What makes a backup fail for good, and then clear away what it has stored."""


@dataclass(frozen=True)
class Case:
    """One run: a story on a store, and how the store goes wrong."""

    story: Story
    store: str
    sealed: bool
    face: Face
    script: Script

    def __str__(self) -> str:
        sealed = "sealed" if self.sealed else "plain"
        return f"{self.story.value} {self.store} {sealed} {self.face.value} {self.script}"

    @classmethod
    def parse(cls, line: str) -> Case:
        """What ``str`` made."""
        story, store, sealed, face, script = line.split(maxsplit=4)
        return cls(Story(story), store, sealed == "sealed", Face(face), Script.parse(script))


Cell = tuple[Story, str, bool, Face, Kind, What]


def requests(story: Story, store: str, sealed: bool, face: Face) -> dict[Kind, int]:
    """How many requests of each kind a story makes where nothing goes wrong; none, if it cannot be told so."""
    made = REQUESTS.get((story.value, store, "sealed" if sealed else "plain", face.value), {})
    found = {Kind(name): number for name, number in made.items()}
    return found | {Kind.ANY: sum(found.values())} if found else {}


def matrix(but: Collection[What] = ()) -> list[Cell]:
    """All cells, always in the same order; without some ways to go wrong."""
    return [
        (story, store, sealed, face, kind, what)
        for story, store, sealed, face in product(Story, STORES, (False, True), Face)
        for kind, what in cells(STORES[store], _kinds(story, store, sealed, face), but)
    ]


def _kinds(story: Story, store: str, sealed: bool, face: Face) -> list[Kind]:
    """The requests that a story makes; a backup deletes what it has stored when it has failed."""
    made = requests(story, store, sealed, face)
    return [kind for kind in Kind if kind in made or (kind is Kind.DELETE and story in BACKUPS)]


def make_case(seed: int | str, number: int, *, but: Collection[What] = ()) -> Case:
    """Case ``number`` (from 0) of a seed; they meet every cell once before any twice, in an order of the seed's own."""
    every = matrix(but)
    random.Random(f"matrix/{seed}").shuffle(every)
    story, store, sealed, face, kind, what = every[number % len(every)]
    dice = random.Random(f"matrix/{seed}/{number}")
    made = requests(story, store, sealed, face)
    faults = [Fault.drawn(dice, kind, what, made=made.get(kind, 0))]
    if kind not in made:
        put = dice.choice((Kind.PUT_SEGMENT, Kind.PUT_MANIFEST))
        faults.append(Fault(put, dice.randint(min(2, made[put]), made[put]), FOREVER, dice.choice(_FAILED[store])))
    elif dice.random() < _AND_ANOTHER:
        kind, what = dice.choice(cells(STORES[store], made, but))
        faults.append(Fault.drawn(dice, kind, what, made=made[kind]))
    return Case(story, store, sealed, face, Script(tuple(faults)))
