"""The tables of docs/reliability.rst, made of the records that the torture left.

As a program, ``python -m tests.torture.reliability DIRECTORY > docs/_generated/reliability.rst``; several runs of a
part are added up.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.torture.matrix_verdict import table as matrix
from tests.torture.soak import SHARES, Record
from tests.torture.tables import rst

_TITLES: Mapping[str, str] = {
    "matrix": "Stores that go wrong",
    "processes": "Processes that end, stop or starve",
    "chains": "Random chains",
    "load": "Consistency under load",
    "kills": "An agent that is killed, again and again",
}


def page(records: Iterable[Record]) -> str:
    """All tables, the sums of all parts first."""
    parts: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: (list(SHARES).index(record.part), record.seed)):
        parts.setdefault(record.part, []).append(record)
    return "\n".join([_sums(parts), *(_section(part, found) for part, found in parts.items())])


def _sums(parts: Mapping[str, Sequence[Record]]) -> str:
    lines = [["part", "runs", "faulted", "wrong", "hours", "seeds"]]
    for part, found in parts.items():
        lines.append([_TITLES[part], *_numbers(found), ", ".join(str(record.seed) for record in found)])
    lines.append(["all", *_numbers([record for found in parts.values() for record in found]), ""])
    return rst(lines)


def _numbers(found: Sequence[Record]) -> list[str]:
    return [
        f"{sum(record.runs for record in found):,}",
        f"{sum(record.faulted for record in found):,}",
        f"{sum(len(record.wrong) for record in found):,}",
        f"{sum(record.seconds for record in found) / 3600:.1f}",
    ]


def _section(part: str, found: Sequence[Record]) -> str:
    title = _TITLES[part]
    about = dict(pair for record in found for pair in record.about.items())
    words = [title, "-" * len(title), ""]
    if about:
        words += ["; ".join(f"{name} {value}" for name, value in sorted(about.items())) + ".", ""]
    return "\n".join([*words, matrix(found) if part == "matrix" else counts(found)])


def counts(found: Sequence[Record]) -> str:
    """A line for each row of all records, a column for each that any of them counted."""
    total = Record("", 0)
    for record in found:
        total.add(record)
    columns = sorted({column for row in total.counts.values() for column in row}, key=_first_things_first)
    lines = [["", *columns]]
    for row, counted in sorted(total.counts.items()):
        lines.append([row, *(f"{counted[column]:,}" if counted[column] else "-" for column in columns)])
    return rst(lines)


def _first_things_first(column: str) -> tuple[bool, bool, str]:
    """How many there were, then what came of them, and what was wrong at the end."""
    return column == "wrong", column not in ("runs", "jobs", "faulted"), column


def main(directory: str) -> None:
    """Print the tables."""
    print(page(Record.read(path) for path in sorted(Path(directory).glob("*.json"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
