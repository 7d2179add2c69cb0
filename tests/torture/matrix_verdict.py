"""What came of a case, what errors must say, and what is counted of many cases: a record, and a table for the docs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.servers.faults.script import What
from tests.torture.soak import Record
from tests.torture.tables import rst

_NET = r"reset|closed|broke|timed? ?out|timeout|does not answer|IncompleteRead|[Cc]onnection"
_LOST = r"is missing|should have \d+ bytes|not what the manifest"
_GARBLED = rf"does not speak S3|{_NET}"
_DAMAGED = rf"not what|does not speak S3|does not open|manifest|key\.json|JSON|parse|XML|longer than|{_NET}"
CAUSES: Mapping[What, re.Pattern[str]] = {
    What.ERROR: re.compile(r"overloaded or down|\b500\b"),
    What.SLOW_DOWN: re.compile(r"overloaded or down|\b503\b"),
    What.RESET_BEFORE: re.compile(_NET),
    What.RESET_IN: re.compile(_NET),
    What.RESET_AFTER: re.compile(_NET),
    What.RESET_ANSWER: re.compile(_GARBLED),
    What.SHORT: re.compile(_GARBLED),
    What.LESS: re.compile(rf"{_DAMAGED}|bytes that were put there, and has"),
    What.FLIP: re.compile(_DAMAGED),
    What.STALL: re.compile(_NET),
    What.STALL_ANSWER: re.compile(_NET),
    What.SLOW: re.compile(_NET),
    What.OK_ERROR: re.compile(rf"overloaded or down|InternalError|\b500\b|{_DAMAGED}"),
    What.LOST_ACK: re.compile(rf"{_NET}|Input/output error"),
    What.LOST_ACK_ERROR: re.compile(r"overloaded or down|\b500\b"),
    What.LATE: re.compile(_NET),
    What.TWICE: re.compile(r"exists already"),
    What.EXPIRED: re.compile(r"expired|access denied"),
    What.SKEWED: re.compile(r"clock|access denied"),
    What.LAG: re.compile(_LOST),
    What.FULL: re.compile(r"full"),
    What.SWALLOW: re.compile(_LOST),
    What.IO_ERROR: re.compile(r"Input/output error"),
    What.DENIED: re.compile(r"Permission denied"),
    What.READ_ONLY: re.compile(r"Read-only file system"),
    What.CUT: re.compile(rf"{_LOST}|key\.json"),
}
"""What an error says that comes of this; a HEAD's answer has no body to tell why, and so "denied" is all it can say."""


@dataclass
class Verdict:
    """What came of a case: how it ended, what it told, what was struck, and what was wrong with that."""

    case: str
    ended: str = ""
    told: str = ""
    struck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unsure: bool = False
    """Whether it failed since nobody could know that it had not: the store took the manifest, and never said so."""
    requests: dict[str, int] = field(default_factory=dict)
    """How many of each kind were made of the store."""
    seconds: float = 0

    def __str__(self) -> str:
        return f"{self.case}: {self.ended} ({self.told}), struck {self.struck}, wrong: {self.wrong}"


def count(record: Record, verdict: Verdict) -> None:
    """Add a run to the record of many."""
    record.runs += 1
    record.faulted += bool(verdict.struck)
    record.count(_row(verdict), *_columns(verdict))
    if verdict.wrong:
        record.wrong.append(str(verdict))


def _row(verdict: Verdict) -> str:
    """The story, the face, the store, and the first fault: its request and its kind."""
    story, store, _, face, script = verdict.case.split(maxsplit=4)
    first = script.split()[0]
    return f"{story} {face} {store} {first.partition('@')[0]} {first.partition(':')[2]}"


def _columns(verdict: Verdict) -> list[str]:
    end = "completed" if verdict.ended == "completed" else "failed"
    return [
        "runs",
        *(["faulted", end] if verdict.struck else ["not struck"]),
        *(["unsure"] if verdict.unsure else []),
        *(["wrong"] if verdict.wrong else []),
    ]


_STORIES = ("full", "incremental", "restore", "replace", "verify", "delete", "refused-delete", "rotate")
_FACES = {"cli": "by command", "rpc": "by RPC"}
_Counts = Mapping[tuple[str, str, str, str], Counter[str]]


def table(records: Iterable[Record]) -> str:
    """A table for the docs: a line for each fault of each store, a column for each story, and sums for each face."""
    cells: dict[tuple[str, str, str, str], Counter[str]] = {}
    for record in records:
        for row, counted in record.counts.items():
            story, face, store, _, what = row.split()
            cells.setdefault((story, face, store, what), Counter()).update(counted)
    lines = [["store", "fault", *_STORIES, "wrong"]]
    for store, what in sorted({(store, what) for _, _, store, what in cells}):
        lines.append([store, f"``{what}``", *_sums(cells, store=store, what=what)])
    for face, words in _FACES.items():
        lines.append(["both", words, *_sums(cells, face=face)])
    lines.append(["both", "all", *_sums(cells)])
    return rst(lines)


def _sums(cells: _Counts, *, face: str = "", store: str = "", what: str = "") -> list[str]:
    """For each story completed and failed runs, of those that were struck; at the end those that were wrong."""
    found: dict[str, Counter[str]] = {story: Counter() for story in _STORIES}
    for (story, *others), counted in cells.items():
        if all(wanted in ("", other) for wanted, other in zip((face, store, what), others, strict=True)):
            found[story].update(counted)
    ends = [f"{one['completed']:,} + {one['failed']:,}" if one["faulted"] else "-" for one in found.values()]
    return [*ends, f"{sum(one['wrong'] for one in found.values()):,}"]
