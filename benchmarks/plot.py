"""Draws a race's ratios as an SVG of a few kilobytes, for the documentation.

python -m benchmarks.plot race.json docs/_static/race.svg
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.race_figures import OURS, Ratio, ratios, runs_of, summaries

WIDTH, LEFT, RIGHT, TOP = 760, 190, 60, 56
BAR, GAP = 13, 12
"""Height of a bar, and what is left between two pairs of them."""
DIGIT = 7.2
"""At most as wide as a digit is, in any font of that size."""
LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "ink": "#222222",
    "grid": "#dddddd",
    "equal": "#444444",
    "wall": "#2f6f9f",
    "cpu": "#d08a2e",
}
"""What each class of shapes is filled and drawn with."""
DARK: Mapping[str, str] = LIGHT | {
    "paper": "#16191d",
    "ink": "#dfe3e8",
    "grid": "#3a4048",
    "equal": "#b4bac2",
    "wall": "#4f9bd0",
}
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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(caption)}</title>",
        f"<style>{_style(LIGHT)}@media (prefers-color-scheme: dark) {{{_style(DARK)}}}</style>",
        f'<rect width="{WIDTH}" height="{height}" class="paper"/>',
        *_legend(caption),
        *_grid(scale, height - 34),
        *(line for number, one in enumerate(shown) for line in _bars(one, TOP + number * (2 * BAR + GAP), scale)),
        _line(scale.at(1), height - 34, "equal"),
        *(line for number, one in enumerate(shown) for line in _words(one, TOP + number * (2 * BAR + GAP), scale)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _style(colours: Mapping[str, str]) -> str:
    return "".join(f".{name}{{fill:{colour}}}" for name, colour in colours.items())


def _text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="ink">{escape(words)}</text>'


def _box(x: float, y: float, width: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR - 1}" class="{kind}"/>'


def _line(x: float, bottom: float, kind: str) -> str:
    return f'<rect x="{x - 0.5:.1f}" y="{TOP - 6}" width="1" height="{bottom - TOP + 6:.1f}" class="{kind}"/>'


def _legend(caption: str) -> Iterator[str]:
    yield _text(10, 18, caption)
    for number, name in enumerate(NAMES):
        yield _box(LEFT + number * 120, 28, 12, name)
        yield _text(LEFT + number * 120 + 18, 38, NAMES[name])


def _grid(scale: Scale, bottom: float) -> Iterator[str]:
    for number in range(int(scale.end / STEP) + 1):
        value = number * STEP
        x = scale.at(value)
        yield _line(x, bottom, "grid")
        yield _text(x, bottom + 16, f"{value:g}", anchor="middle")


def _bars(one: Ratio, y: float, scale: Scale) -> Iterator[str]:
    for number, name in enumerate(NAMES):
        yield _box(LEFT, y + number * BAR, scale.at(float(getattr(one, name))) - LEFT, name)


def _words(one: Ratio, y: float, scale: Scale) -> Iterator[str]:
    """What stands beside two bars; a number on paper of its own, since lines go through there."""
    title = f"{TITLES.get(one.story, one.story)} / {one.against}"
    yield _text(LEFT - 8, y + BAR + 4, title, anchor="end")
    for number, name in enumerate(NAMES):
        value = float(getattr(one, name))
        told, x, top = f"{value:.2f}", scale.at(value) + 2, y + number * BAR
        yield _box(x, top, len(told) * DIGIT + 6, "paper")
        yield _text(x + 3, top + BAR - 3, told)


def caption(content: Mapping[str, Any]) -> str:
    """What the picture shows, and where it was measured."""
    machine = content["machine"]
    size = machine["data"]["wanted"]["gigabytes"]
    return f"guestagent / rival, medians; {size:g} GB, {machine['cores']} cores, {machine['date']}; under 1 is faster"


def main() -> None:
    """Draw a file's figures into another file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="what benchmarks.race wrote")
    parser.add_argument("svg", type=Path, help="the picture to write")
    given = parser.parse_args()
    content = json.loads(given.json.read_text(encoding="utf-8"))
    given.svg.write_text(drawing(ratios(summaries(runs_of(content))), caption(content)), encoding="utf-8")


if __name__ == "__main__":
    main()
