"""Draws the ratios of races as an SVG of a few kilobytes, for the documentation.

python -m benchmarks.plot race.json more.json docs/_static/race.svg

Runs that did not alternate are not compared: the ratios of each file are those of its own rounds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plot_svg import FIRST, SECOND, WIDTH, box, measured, page, text
from benchmarks.race_figures import OURS, Ratio, ratios, runs_of, summaries

LEFT, RIGHT, TOP = 190, 60, 56
BAR, GAP = 13, 12
"""Height of a bar, and what is left between two pairs of them."""
DIGIT = 7.2
"""At most as wide as a digit is, in any font of that size."""
COLOURS = {"wall": FIRST, "cpu": SECOND, "equal": ("#444444", "#b4bac2")}
NAMES: Mapping[str, str] = {"wall": "wall time", "cpu": "CPU seconds"}
TITLES: Mapping[str, str] = {
    "full": "full backup",
    "inc1": "incremental, 1 %",
    "inc10": "incremental, 10 %",
    "restore": "restore, full",
    "restore2": "restore, 1+2",
    "restore7": "restore, 1+7",
}
STEP = 0.25


@dataclass(frozen=True)
class Scale:
    """Where a ratio is, from left to right."""

    end: float

    def at(self, value: float) -> float:
        """The place of a value; what is off the scale is at its end."""
        return LEFT + min(value, self.end) / self.end * (WIDTH - LEFT - RIGHT)


def drawing(found: Sequence[Ratio], caption: str) -> str:
    """The SVG: a pair of bars for each ratio of ours to a rival, and a line where both are equal."""
    shown = [one for one in found if one.contender == OURS]
    most = max([1.0, *(value for one in shown for value in (one.wall, one.cpu))])
    scale = Scale(min(2.0, math.ceil(most / STEP) * STEP))
    height = TOP + len(shown) * (2 * BAR + GAP) + 40
    lines = [
        *_legend(),
        *_grid(scale, height - 34),
        *(line for number, one in enumerate(shown) for line in _bars(one, TOP + number * (2 * BAR + GAP), scale)),
        _line(scale.at(1), height - 34, "equal"),
        *(line for number, one in enumerate(shown) for line in _words(one, TOP + number * (2 * BAR + GAP), scale)),
    ]
    return page(height, caption, COLOURS, lines)


def _line(x: float, bottom: float, kind: str) -> str:
    return box(x - 0.5, TOP - 6, 1, bottom - TOP + 6, kind)


def _legend() -> Iterator[str]:
    for number, name in enumerate(NAMES):
        yield box(LEFT + number * 120, 28, 12, BAR - 1, name)
        yield text(LEFT + number * 120 + 18, 38, NAMES[name])


def _grid(scale: Scale, bottom: float) -> Iterator[str]:
    for number in range(int(scale.end / STEP) + 1):
        value = number * STEP
        x = scale.at(value)
        yield _line(x, bottom, "grid")
        yield text(x, bottom + 16, f"{value:g}", anchor="middle")


def _bars(one: Ratio, y: float, scale: Scale) -> Iterator[str]:
    for number, name in enumerate(NAMES):
        yield box(LEFT, y + number * BAR, scale.at(float(getattr(one, name))) - LEFT, BAR - 1, name)


def _words(one: Ratio, y: float, scale: Scale) -> Iterator[str]:
    """What stands beside two bars; a number on paper of its own, since lines go through there."""
    title = f"{TITLES.get(one.story, one.story)} / {one.against}"
    yield text(LEFT - 8, y + BAR + 4, title, anchor="end")
    for number, name in enumerate(NAMES):
        value = float(getattr(one, name))
        told, x, top = f"{value:.2f}", scale.at(value) + 2, y + number * BAR
        yield box(x, top, len(told) * DIGIT + 6, BAR - 1, "paper")
        yield text(x + 3, top + BAR - 3, told)


def ratios_of(contents: Sequence[dict[str, Any]]) -> list[Ratio]:
    """The ratios of each file's own rounds, those of one story beside each other."""
    found = [one for content in contents for one in ratios(summaries(runs_of(content)))]
    stories = list(dict.fromkeys(one.story for one in found))
    return sorted(found, key=lambda one: stories.index(one.story))


def caption(contents: Sequence[Mapping[str, Any]]) -> str:
    """What the picture shows, and where it was measured: files of data of one size."""
    machines = [content["machine"] for content in contents]
    sizes = sorted({machine["data"]["wanted"]["gigabytes"] for machine in machines})
    if len(sizes) > 1:
        raise SystemExit(f"the files are of {', '.join(f'{size:g}' for size in sizes)} GB; draw each apart")
    return f"guestagent / rival, medians; {sizes[0]:g} GB, {measured(machines)}; under 1 is faster"


def main() -> None:
    """Draw some files' figures into another file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+", help="what benchmarks.race wrote")
    parser.add_argument("svg", type=Path, help="the picture to write")
    given = parser.parse_args()
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in given.json]
    given.svg.write_text(drawing(ratios_of(contents), caption(contents)), encoding="utf-8")


if __name__ == "__main__":
    main()
