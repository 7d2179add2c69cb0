"""Figures of a race: what is kept of each run, medians, ranges and ratios, and how they are drawn.

Nothing here measures anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

MB = 10**6
MIB = 1 << 20
OURS = "ours"


@dataclass(frozen=True)
class Run:
    """One run of one contender; times in seconds, memory and sizes in bytes.

    ``round`` counts from 1.  ``raw`` is the size of the stream before compression, as ours had it.  ``sync`` is what
    the kernel still took, after the run, to bring what was written to disk.  ``link`` is what the stored bytes need
    on a slow link.
    """

    story: str
    contender: str
    round: int
    wall: float
    cpu: float
    tree_rss: int
    agent_rss: int
    stored: int
    raw: int
    sync: float
    sink_cpu: float
    link: float | None = None


@dataclass(frozen=True)
class Range:
    """The middle of some values, and their ends."""

    median: float
    least: float
    most: float

    def drawn(self, digits: int = 1) -> str:
        """As in a table."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


def spread(values: Iterable[float]) -> Range:
    """The range of some values, of which there must be one at least."""
    known = list(values)
    return Range(median(known), min(known), max(known))


@dataclass(frozen=True)
class Summary:
    """One contender in one story."""

    story: str
    contender: str
    rounds: int
    wall: Range
    cpu: Range
    tree_rss: Range
    agent_rss: Range
    stored: float
    speed: float
    """Bytes of the stream a second."""
    sync: float
    link: float | None
    """Ratio of the wall time to what the stored bytes need on the link."""


def summary(runs: Sequence[Run], raw: int) -> Summary:
    """What runs of one contender in one story come to; ``raw`` are the bytes of that story's stream."""
    wall = spread(run.wall for run in runs)
    links = [run.wall / run.link for run in runs if run.link is not None]
    return Summary(
        story=runs[0].story,
        contender=runs[0].contender,
        rounds=len(runs),
        wall=wall,
        cpu=spread(run.cpu for run in runs),
        tree_rss=spread(run.tree_rss for run in runs),
        agent_rss=spread(run.agent_rss for run in runs),
        stored=median(run.stored for run in runs),
        speed=raw / wall.median,
        sync=median(run.sync for run in runs),
        link=median(links) if links else None,
    )


def summaries(runs: Iterable[Run]) -> list[Summary]:
    """The summary of each contender in each story, ours first."""
    stories: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.contender != OURS):
        stories.setdefault(run.story, {}).setdefault(run.contender, []).append(run)
    return [
        summary(own, max(run.raw for every in story.values() for run in every))
        for story in stories.values()
        for own in story.values()
    ]


@dataclass(frozen=True)
class Ratio:
    """A contender divided by another, medians of both: under 1 it is better."""

    story: str
    contender: str
    against: str
    wall: float
    cpu: float
    memory: float
    stored: float


def ratios(found: Sequence[Summary]) -> list[Ratio]:
    """Ours against every rival of each story; where ours runs in two ways, the other way against ours."""
    own = {one.story: one for one in found if one.contender == OURS}
    pairs = [(own[one.story], one) for one in found if one.contender != OURS and one.story in own]
    return [ratio(one, ours) if one.contender.startswith(OURS) else ratio(ours, one) for ours, one in pairs]


def ratio(one: Summary, other: Summary) -> Ratio:
    """One contender against another."""
    return Ratio(
        story=one.story,
        contender=one.contender,
        against=other.contender,
        wall=one.wall.median / other.wall.median,
        cpu=one.cpu.median / other.cpu.median,
        memory=one.tree_rss.median / other.tree_rss.median,
        stored=one.stored / other.stored,
    )


def values(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything, for a file."""
    found = summaries(runs)
    return {
        "runs": [asdict(run) for run in runs],
        "summaries": [asdict(one) for one in found],
        "ratios": [asdict(one) for one in ratios(found)],
    }


def runs_of(content: dict[str, Any]) -> list[Run]:
    """The runs of such a file."""
    return [Run(**run) for run in content["runs"]]


# Drawing

COLUMNS = ("story", "contender", "wall s", "CPU s", "peak MiB", "agent MiB", "stored MB", "MB/s", "of the link")
COMPARED = ("story", "contender", "against", "wall", "CPU", "memory", "stored")


def drawn(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as reStructuredText has it, with figures to the right."""
    widths = [max(len(line[number]) for line in (columns, *rows)) for number in range(len(columns))]
    rule = "  ".join("=" * width for width in widths)
    return "\n".join([rule, _line(columns, widths), rule, *(_line(row, widths) for row in rows), rule])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def summary_rows(found: Iterable[Summary]) -> list[list[str]]:
    """Rows of the table of all contenders."""
    return [
        [
            one.story,
            one.contender,
            one.wall.drawn(),
            one.cpu.drawn(),
            f"{one.tree_rss.median / MIB:.0f}",
            f"{one.agent_rss.most / MIB:.0f}" if one.contender.startswith(OURS) else "-",
            f"{one.stored / MB:,.0f}",
            f"{one.speed / MB:,.0f}",
            "-" if one.link is None else f"{one.link:.2f}",
        ]
        for one in found
    ]


def ratio_rows(found: Iterable[Ratio]) -> list[list[str]]:
    """Rows of the table of ratios."""
    return [
        [one.story, one.contender, one.against]
        + [f"{value:.2f}" for value in (one.wall, one.cpu, one.memory, one.stored)]
        for one in found
    ]


def draw(runs: Sequence[Run], write: Callable[[str], object] = print) -> None:
    """Both tables."""
    found = summaries(runs)
    write(drawn(COLUMNS, summary_rows(found)))
    write("")
    write(drawn(COMPARED, ratio_rows(ratios(found))))
