"""What goes wrong at which request, made from a seed, printed as one line, and read back from that line.

    Script.of(17)                                        the same faults whenever and wherever it is asked
    Script.parse("put-segment@2*1:lost-ack get@1*5:500") the second put of a segment, and the first five reads
    Script.parse("any@4*0:expired")                      every request from the fourth on

Nothing here injects anything: a gate or a disk asks a Play, request by request, whether it is to go wrong.
"""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Self


class Kind(Enum):
    """What a request is for; of ANY are all of them."""

    PUT_SEGMENT = "put-segment"
    PUT_KEY = "put-key"
    PUT_MANIFEST = "put-manifest"
    GET = "get"
    HEAD = "head"
    LIST = "list"
    DELETE = "delete"
    ANY = "any"


class What(Enum):
    """How a request goes wrong."""

    ERROR = "500"
    SLOW_DOWN = "503"
    RESET_BEFORE = "reset-before"
    """The connection is reset before the request's body is read."""
    RESET_IN = "reset-in"
    RESET_AFTER = "reset-after"
    """The request is read whole, and not obeyed."""
    RESET_ANSWER = "reset-answer"
    """The connection is reset in the middle of the answer's body."""
    SHORT = "short"
    """The answer ends before its Content-Length, in good order."""
    LESS = "less"
    """The answer is half of what it should be, and its Content-Length agrees."""
    FLIP = "flip"
    """A bit of the answer's body is another one."""
    STALL = "stall"
    """Nothing happens for longer than anybody waits; the request is obeyed after all then."""
    STALL_ANSWER = "stall-answer"
    """Nothing comes after the first half of the answer's body."""
    SLOW = "slow"
    OK_ERROR = "200-error"
    """An error's document with status 200; the request is not obeyed."""
    LOST_ACK = "lost-ack"
    """The request is obeyed, and the connection reset before the answer."""
    LOST_ACK_ERROR = "lost-ack-500"
    LATE = "late"
    """The connection is reset, and the request obeyed when the story is over, as by a proxy that had kept it."""
    TWICE = "twice"
    """The request is obeyed twice, and the second answer counts."""
    EXPIRED = "expired"
    SKEWED = "skewed"
    LAG = "lag"
    """A listing lacks what was put since the script began."""
    FULL = "full"
    SWALLOW = "swallow"
    """A put is confirmed, and nothing stored: no retry can help, only a look afterwards."""
    IO_ERROR = "io-error"
    DENIED = "denied"
    READ_ONLY = "read-only"
    CUT = "cut"
    """A file is stored, and its second half lost."""


FOREVER = 0
"""As ``times``: every request from the first one on."""

_PUTS = frozenset({Kind.PUT_SEGMENT, Kind.PUT_KEY, Kind.PUT_MANIFEST})
_CHANGES = _PUTS | {Kind.DELETE}
_BODIED = frozenset({Kind.GET, Kind.LIST})
"""What is answered by a body that anybody reads."""
_EACH = frozenset(Kind) - {Kind.ANY}
_ALL = frozenset({Kind.ANY})

S3: Mapping[What, frozenset[Kind]] = {
    What.ERROR: _EACH,
    What.SLOW_DOWN: _EACH | _ALL,
    What.RESET_BEFORE: _EACH,
    What.RESET_IN: _CHANGES,
    What.RESET_AFTER: _CHANGES,
    What.RESET_ANSWER: _BODIED,
    What.SHORT: _BODIED,
    What.LESS: _BODIED,
    What.FLIP: frozenset({Kind.GET}),  # a listing has no digest to tell
    What.STALL: _EACH,
    What.STALL_ANSWER: _BODIED,
    What.SLOW: _EACH,
    What.OK_ERROR: _EACH - {Kind.HEAD},
    What.LOST_ACK: _CHANGES,
    What.LOST_ACK_ERROR: _CHANGES,
    What.LATE: _CHANGES,
    What.TWICE: _CHANGES,
    What.EXPIRED: _ALL,
    What.SKEWED: _EACH | _ALL,
    What.LAG: frozenset({Kind.LIST}),
    What.FULL: _PUTS,
    What.SWALLOW: _PUTS,
}
"""Which request an S3 server can get wrong in which way."""

DISK: Mapping[What, frozenset[Kind]] = {
    What.FULL: _PUTS,
    What.IO_ERROR: _EACH - {Kind.HEAD},
    What.DENIED: _EACH - {Kind.HEAD},
    What.READ_ONLY: _CHANGES,
    What.STALL: _EACH - {Kind.HEAD},
    What.LOST_ACK: _PUTS,
    What.CUT: _PUTS,
    What.LESS: frozenset({Kind.GET}),
    What.FLIP: frozenset({Kind.GET}),
}
"""The same for a filesystem, where a read and a question for the size begin alike."""

_FEW = {What.STALL: (1, 1, 2), What.STALL_ANSWER: (1, 1, 2), What.EXPIRED: (FOREVER,), What.SKEWED: (1, FOREVER)}
_USUAL = (1, 1, 2, 5, FOREVER)
"""How often a fault comes: seldom enough for retries, and too often for them."""
_STORM = (5, 12, 40, FOREVER)
"""How often it comes where a store that is overloaded says so to everybody."""
_RARE = (Kind.PUT_KEY, Kind.PUT_MANIFEST)
"""What a story does but once."""
_LINE = re.compile(r"([a-z-]+)@(\d+)\*(\d+):([a-z0-9-]+)")


@dataclass(frozen=True)
class Fault:
    """``times`` requests of that kind go wrong, from the ``first`` one on (counted from 1)."""

    kind: Kind
    first: int
    times: int
    what: What

    def __str__(self) -> str:
        return f"{self.kind.value}@{self.first}*{self.times}:{self.what.value}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What ``str`` made."""
        found = _LINE.fullmatch(text)
        if found is None:
            raise ValueError(f"not a fault: {text!r}")
        return cls(Kind(found[1]), int(found[2]), int(found[3]), What(found[4]))

    @classmethod
    def drawn(cls, dice: random.Random, kind: Kind, what: What, *, made: int = 0) -> Self:
        """One of that kind, at one of the ``made`` requests of a story; 0: at one that a small story comes to."""
        storm = kind is Kind.ANY and what is What.SLOW_DOWN
        times = dice.choice(_STORM if storm else _FEW.get(what, _USUAL))
        return cls(kind, _early_or_late(dice, made) if made else _early(dice, kind), times, what)

    def strikes(self, number: int) -> bool:
        """Whether the request of that number goes wrong."""
        return number >= self.first and (self.times == FOREVER or number < self.first + self.times)


def _early(dice: random.Random, kind: Kind) -> int:
    """The number of a request that a small story comes to."""
    return 1 if kind in _RARE else dice.choice((1, 1, 2, 3) if kind is not Kind.ANY else (1, 2, 4, 6, 9))


def _early_or_late(dice: random.Random, made: int) -> int:
    """One of so many requests: the first ones and the last one more often than those between."""
    return dice.choice((1, min(2, made), dice.randint(1, made), dice.randint(1, made), made))


@dataclass(frozen=True)
class Script:
    """The faults of one story; of several that strike one request, the first one counts."""

    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.faults)) or "none"

    @classmethod
    def parse(cls, line: str) -> Self:
        """What ``str`` made."""
        return cls(() if line == "none" else tuple(map(Fault.parse, line.split())))

    @classmethod
    def of(
        cls,
        seed: int | str,
        *,
        suits: Mapping[What, frozenset[Kind]] = S3,
        kinds: Collection[Kind] = tuple(Kind),
        but: Collection[What] = (),
    ) -> Self:
        """The faults that a seed stands for: one to three of those that suit the store and ``kinds`` of requests."""
        dice = random.Random(f"faults/{seed}")
        count = dice.choices((1, 2, 3), weights=(6, 3, 1))[0]
        return cls(tuple(Fault.drawn(dice, *dice.choice(cells(suits, kinds, but))) for _ in range(count)))


def cells(
    suits: Mapping[What, frozenset[Kind]], kinds: Iterable[Kind] = tuple(Kind), but: Collection[What] = ()
) -> list[tuple[Kind, What]]:
    """Every kind of request with every way in which it can go wrong, always in the same order."""
    return [(kind, what) for what, fit in suits.items() if what not in but for kind in kinds if kind in fit]


@dataclass(frozen=True)
class Hit:
    """A fault that struck, and what it struck."""

    fault: Fault
    kind: Kind
    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.kind.value} {self.number}, {self.name}"


class Play:
    """A script under way: counts requests, from any thread, and says which of them go wrong."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.hits: list[Hit] = []
        self.seen: Counter[Kind] = Counter()
        self._lock = threading.Lock()

    def meet(self, kind: Kind, name: str) -> Fault | None:
        """Count a request; gives the fault that strikes it."""
        with self._lock:
            self.seen.update((kind, Kind.ANY))
            for fault in self.script.faults:
                number = self.seen[fault.kind]
                if fault.kind in (kind, Kind.ANY) and fault.strikes(number):
                    self.hits.append(Hit(fault, kind, number, name))
                    return fault
        return None
