"""What came of a case, what errors must say, and the summary of many cases: JSON, and a table for the docs.

As a program, ``python -m tests.torture.matrix_verdict SUMMARY...`` prints the table of those summaries.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.faults.script import What

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
    What.LESS: re.compile(_DAMAGED),
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
    seconds: float = 0

    def __str__(self) -> str:
        return f"{self.case}: {self.ended} ({self.told}), struck {self.struck}, wrong: {self.wrong}"


def summary(seed: int | str, verdicts: Iterable[Verdict], **about: Any) -> dict[str, Any]:
    """Counts by story and fault, and whatever was wrong, as JSON takes it."""
    found = list(verdicts)
    counts: dict[str, Counter[str]] = {}
    for verdict in found:
        counts.setdefault(_row(verdict), Counter()).update(_column(verdict))
    return {
        "seed": seed,
        **about,
        "runs": len(found),
        "faulted": sum(bool(verdict.struck) for verdict in found),
        "unsure": sum(verdict.unsure for verdict in found),
        "faults": sum(len(verdict.struck) for verdict in found),
        "seconds": round(sum(verdict.seconds for verdict in found), 1),
        "counts": {row: dict(count) for row, count in sorted(counts.items())},
        "wrong": [asdict(verdict) for verdict in found if verdict.wrong],
    }


def _row(verdict: Verdict) -> str:
    """The story, the store, and the first fault: its request and its kind."""
    story, store, _, script = verdict.case.split(maxsplit=3)
    first = script.split()[0]
    return f"{story} {store} {first.partition('@')[0]} {first.partition(':')[2]}"


def _column(verdict: Verdict) -> list[str]:
    end = "completed" if verdict.ended == "completed" else "failed"
    return [
        "runs",
        *(["faulted", end] if verdict.struck else ["not struck"]),
        *(["unsure"] if verdict.unsure else []),
        *(["wrong"] if verdict.wrong else []),
    ]


_COLUMNS = ("runs", "faulted", "completed", "failed", "wrong")
_STORIES = ("full", "incremental", "restore", "replace", "verify", "delete", "refused-delete", "rotate")


def table(summaries: Iterable[Mapping[str, Any]]) -> str:
    """A table for the docs: a line for each fault of each store, with counts for each story."""
    cells: dict[tuple[str, str, str], Counter[str]] = {}
    for one in summaries:
        for row, count in one["counts"].items():
            story, store, _, what = row.split()
            cells.setdefault((store, what, story), Counter()).update(count)
    rows = sorted({(store, what) for store, what, _ in cells})
    lines = [["store", "fault", *_STORIES, "wrong"]]
    for store, what in rows:
        found = [cells.get((store, what, story), Counter()) for story in _STORIES]
        lines.append([store, f"``{what}``", *map(_cell, found), str(sum(one["wrong"] for one in found))])
    total = [sum((cells[key] for key in cells if key[2] == story), Counter()) for story in _STORIES]
    lines.append(["both", "all", *map(_cell, total), str(sum(one["wrong"] for one in total))])
    return _rst(lines)


def _cell(count: Counter[str]) -> str:
    """Completed and failed runs, of those that were struck."""
    return f"{count['completed']} + {count['failed']}" if count["faulted"] else "-"


def _rst(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    bar = "  ".join("=" * width for width in widths)
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([bar, texts[0], bar, *texts[1:], bar, ""])


def main(*paths: str) -> None:
    """Print the table, and in a line what it is made of."""
    found = [json.loads(Path(path).read_text()) for path in paths]
    total = {name: sum(one[name] for one in found) for name in ("runs", "faulted", "faults", "unsure")}
    wrong = sum(len(one["wrong"]) for one in found)
    seeds = ", ".join(sorted({str(one["seed"]) for one in found}))
    print(table(found))
    print(
        f"{total['runs']} runs, {total['faulted']} of them struck, by {total['faults']} faults; {wrong} wrong;"
        f" {total['unsure']} failed although the store had taken the manifest; seeds {seeds}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
