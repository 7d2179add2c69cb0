"""Draws how cost grows with size, tables and links as an SVG of a few kilobytes, for the documentation.

python -m benchmarks.plot_scale sizes.json tables.json links.json docs/_static/scale.svg

The files' points are one lot.  Both axes of a panel begin at nothing and are linear, so that a straight line is one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Cost
from benchmarks.plot_svg import FIRST, SECOND, WIDTH, box, curve, dot, measured, page, text
from benchmarks.scale import Point

HEIGHT, TOP, BOTTOM = 300, 64, 252
BEFORE, AFTER = 44, 26
"""What a panel leaves to its left and right, for the numbers of its axes."""
MARK = 7
"""Width of a point's mark."""
PARTS, DIGIT = 5, 7.2
"""An axis has at most that many parts; a digit is at most that wide, in any font of that size."""
NAMES = ("backup", "restore")
TITLES: Mapping[str, str] = {
    "gigabytes": "gigabytes",
    "tables": "small tables",
    "links": "links (backup: the last one's)",
}


@dataclass(frozen=True)
class Axis:
    """Numbers from nothing to ``end``, a whole number of steps, laid out from one place to another."""

    end: float
    step: float
    places: tuple[float, float]

    def at(self, value: float) -> float:
        """The place of a number."""
        first, last = self.places
        return first + value / self.end * (last - first)

    def ticks(self) -> list[float]:
        """The numbers to write beside it."""
        return [number * self.step for number in range(round(self.end / self.step) + 1)]


def axis(values: Sequence[float], places: tuple[float, float], parts: int = PARTS) -> Axis:
    """An axis for some numbers, in steps of 1, 2 or 5 and noughts."""
    most = max(values) or 1
    nought = 10.0 ** math.floor(math.log10(most / parts))
    step = next(nought * times for times in (1, 2, 5, 10) if nought * times * parts >= most)
    return Axis(math.ceil(most / step) * step, step, places)


def _across(values: Sequence[float], places: tuple[float, float]) -> Axis:
    """An axis whose numbers stand beside each other, with two digits' room between them."""
    room = (places[1] - places[0]) / ((len(f"{max(values):,g}") + 2) * DIGIT)
    return axis(values, places, max(1, min(PARTS, int(room))))


@dataclass(frozen=True)
class Panel:
    """The points of one kind between their axes."""

    by: str
    points: Mapping[float, Sequence[Point]]
    x: Axis
    y: Axis

    def lines(self) -> Iterator[str]:
        """All of it."""
        yield from self._grid()
        middle = (self.x.places[0] + self.x.places[1]) / 2
        yield text(middle, BOTTOM + 36, TITLES.get(self.by, self.by), anchor="middle")
        for name in NAMES:
            places = [(self.x.at(number), self.y.at(seconds(own, name))) for number, own in self.points.items()]
            yield curve(places, name)
            yield from (_mark(x, y, name) for x, y in places)

    def _grid(self) -> Iterator[str]:
        (left, right), (bottom, top) = self.x.places, self.y.places
        for value in self.x.ticks():
            yield box(self.x.at(value) - 0.5, top, 1, bottom - top, "grid")
            yield text(self.x.at(value), bottom + 16, f"{value:,g}", anchor="middle")
        for value in self.y.ticks():
            yield box(left, self.y.at(value) - 0.5, right - left, 1, "grid")
            yield text(left - 6, self.y.at(value) + 4, f"{value:g} s", anchor="end")


def _mark(x: float, y: float, name: str) -> str:
    """Round for a backup, square for a restore: colours are not all that tells them apart."""
    return dot(x, y, MARK / 2, name) if name == NAMES[0] else box(x - MARK / 2, y - MARK / 2, MARK, MARK, name)


def seconds(points: Sequence[Point], name: str) -> float:
    """Wall time of some runs of one point."""
    return median((point.backup if name == NAMES[0] else point.restore).wall for point in points)


def panels(points: Sequence[Point]) -> list[Panel]:
    """One for each kind of points, beside each other."""
    kinds = list(dict.fromkeys(point.by for point in points))
    width = WIDTH / len(kinds)
    return [
        _panel([point for point in points if point.by == by], (number * width + BEFORE, (number + 1) * width - AFTER))
        for number, by in enumerate(kinds)
    ]


def _panel(points: Sequence[Point], places: tuple[float, float]) -> Panel:
    numbers = sorted({point.number for point in points})
    groups = {number: [point for point in points if point.number == number] for number in numbers}
    costs = [seconds(group, name) for group in groups.values() for name in NAMES]
    return Panel(points[0].by, groups, _across(numbers, places), axis(costs, (BOTTOM, TOP)))


def drawing(points: Sequence[Point], caption: str) -> str:
    """The SVG."""
    lines = [*_legend(), *(line for panel in panels(points) for line in panel.lines())]
    return page(HEIGHT, caption, {"backup": FIRST, "restore": SECOND}, lines)


def _legend() -> Iterator[str]:
    for number, name in enumerate(NAMES):
        x = BEFORE + number * 120
        yield curve([(x, 36), (x + 20, 36)], name)
        yield _mark(x + 10, 36, name)
        yield text(x + 28, 40, name)


def points_of(content: Mapping[str, Any]) -> list[Point]:
    """The points of what benchmarks.scale wrote."""
    return [
        Point(**one | {"backup": Cost(**one["backup"]), "restore": Cost(**one["restore"])}) for one in content["points"]
    ]


def caption(contents: Sequence[Mapping[str, Any]]) -> str:
    """What the picture shows, and where it was measured."""
    return f"wall seconds of a backup, and of its restore; {measured([content['machine'] for content in contents])}"


def main() -> None:
    """Draw the points of some files into another file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+", help="what benchmarks.scale wrote")
    parser.add_argument("svg", type=Path, help="the picture to write")
    given = parser.parse_args()
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in given.json]
    points = [point for content in contents for point in points_of(content)]
    given.svg.write_text(drawing(points, caption(contents)), encoding="utf-8")


if __name__ == "__main__":
    main()
