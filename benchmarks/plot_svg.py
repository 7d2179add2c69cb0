"""What the benchmarks' pictures share: colours for light and dark pages, words, boxes, lines, and the page around them.

What a picture shows is in ``plot`` and ``plot_scale``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH = 760
"""Of every picture, as wide as the documentation's text."""
PAGE: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#16191d"),
    "ink": ("#222222", "#dfe3e8"),
    "grid": ("#dddddd", "#3a4048"),
}
"""What each class of shapes is drawn with, on a light page and on a dark one."""
FIRST, SECOND = ("#2f6f9f", "#4f9bd0"), ("#d08a2e", "#d08a2e")
"""Two colours that most eyes tell apart, for what is compared."""


def page(height: int, caption: str, colours: Mapping[str, tuple[str, str]], lines: Iterable[str]) -> str:
    """The whole SVG, with the caption in its first line."""
    light, dark = ({name: pair[number] for name, pair in {**PAGE, **colours}.items()} for number in (0, 1))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="sans-serif" font-size="12" role="img">',
            f"<title>{escape(caption)}</title>",
            f"<style>{_style(light)}@media (prefers-color-scheme: dark) {{{_style(dark)}}}</style>",
            box(0, 0, WIDTH, height, "paper"),
            text(10, 18, caption),
            *lines,
            "</svg>\n",
        ]
    )


def _style(colours: Mapping[str, str]) -> str:
    return "".join(f".{name}{{fill:{colour};color:{colour}}}" for name, colour in colours.items())


def text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    """Words on a line that is at ``y``."""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="ink">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A filled box from its upper left corner; a line, if it is 1 wide or high."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'


def curve(places: Sequence[tuple[float, float]], kind: str) -> str:
    """A line through some places."""
    told = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{told}" class="{kind}" style="fill:none;stroke:currentColor;stroke-width:2"/>'


def dot(x: float, y: float, radius: float, kind: str) -> str:
    """A filled circle around a place."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"/>'


def measured(machines: Sequence[Mapping[str, Any]]) -> str:
    """Where and when the files were made that one picture shows: machines with equally many cores."""
    cores = sorted({machine["cores"] for machine in machines})
    if len(cores) > 1:
        raise SystemExit(f"the files are of machines with {_listed(cores)} cores; draw each apart")
    return f"{cores[0]} cores, {_listed(sorted({machine['date'] for machine in machines}))}"


def _listed(values: Iterable[object]) -> str:
    return " and ".join(str(value) for value in values)
