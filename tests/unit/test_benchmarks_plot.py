"""The benchmarks' pictures: what they are drawn of, and that both kinds of pages can show them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import plot, plot_scale
from benchmarks.measure import Cost
from benchmarks.plot import ratios_of
from benchmarks.plot_scale import axis, panels, points_of
from benchmarks.plot_svg import WIDTH
from benchmarks.race_figures import Run, ratios, summaries
from benchmarks.scale import Point

MACHINE = {"cores": 2, "date": "2026-11-22", "data": {"wanted": {"gigabytes": 4.0}}}


def race(*runs: tuple[str, str, float], **machine: Any) -> dict[str, Any]:
    made = [Run(story, contender, 1, wall, 2 * wall, 1, 1, 50, 0, 0.1, 0.2) for story, contender, wall in runs]
    return {"machine": MACHINE | machine, "runs": [asdict(one) for one in made]}


def point(by: str, number: float, backup: float, restore: float) -> Point:
    return Point(by, number, 7, Cost(backup, 1, 1, 1, 0), Cost(restore, 1, 1, 1, 0))


def scale(*points: Point, **machine: Any) -> dict[str, Any]:
    return {"machine": MACHINE | machine, "points": [asdict(one) for one in points]}


def shapes(svg: str, kind: str, tag: str) -> list[dict[str, str]]:
    elements = ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    return [dict(element.attrib) for element in elements if element.get("class") == kind]


def words(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.text]


def drawn_by(
    main: Callable[[], None], contents: Sequence[dict[str, Any]], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What a command draws of some files."""
    given = [directory / f"{number}.json" for number in range(len(contents))]
    for path, content in zip(given, contents, strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, given), str(directory / "plot.svg")])
    main()
    return (directory / "plot.svg").read_text(encoding="utf-8")


RACE = plot.drawing(
    ratios(summaries([Run("full", who, 1, 4, 8, 1, 1, 5, 0, 0, 0) for who in ("ours", "aws")])), "a & b"
)
SCALE = plot_scale.drawing([point("links", 0, 1, 2), point("links", 30, 1, 30), point("sizes", 1, 1, 1)], "a & b")


@pytest.mark.parametrize("svg", [RACE, SCALE], ids=["race", "scale"])
def test_a_drawing_is_xml_and_small_and_has_its_colours_for_both_pages(svg: str) -> None:
    assert len(svg) < 40_000
    assert words(svg).count("a & b") == 2
    light, dark = svg.split("@media (prefers-color-scheme: dark)")
    for kind in re.findall(r'class="(\w+)"', svg):
        assert f".{kind}{{fill:#" in light
        assert f".{kind}{{fill:#" in dark
    assert ".paper{fill:#ffffff;" in light
    assert ".paper{fill:#ffffff;" not in dark


# Races


def test_a_drawing_says_each_ratio() -> None:
    assert {"full backup / aws", "1.00"} <= set(words(RACE))


def test_the_ratios_of_a_file_are_of_its_own_rounds_and_stand_by_story() -> None:
    first = race(("full", "ours", 1), ("full", "aws", 2), ("restore", "ours", 3), ("restore", "aws", 4))
    second = race(("full", "ours", 4), ("full", "trove", 5))
    assert [(one.story, one.against, one.wall) for one in ratios_of([first, second])] == [
        ("full", "aws", 0.5),
        ("full", "trove", 0.8),
        ("restore", "aws", 0.75),
    ]


def test_several_races_are_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = race(("full", "ours", 1), ("full", "aws", 2))
    second = race(("full", "ours", 4), ("full", "trove", 5), date="2026-11-23")
    told = words(drawn_by(plot.main, [first, second], tmp_path, monkeypatch))
    assert "guestagent / rival, medians; 4 GB, 2 cores, 2026-11-22 and 2026-11-23; under 1 is faster" in told
    assert {"full backup / aws", "0.50", "full backup / trove", "0.80"} <= set(told)


def test_races_of_different_data_or_machines_are_not_one_picture() -> None:
    with pytest.raises(SystemExit, match="the files are of 1, 4 GB; draw each apart"):
        plot.caption([race(), race(data={"wanted": {"gigabytes": 1.0}})])
    with pytest.raises(SystemExit, match="the files are of machines with 2 and 8 cores; draw each apart"):
        plot.caption([race(), race(cores=8)])


# Curves


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (23.3, [0, 5, 10, 15, 20, 25]),
        (30, [0, 10, 20, 30]),
        (19_000, [0, 5000, 10_000, 15_000, 20_000]),
        (1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.4, [0, 0.1, 0.2, 0.3, 0.4]),
        (0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_an_axis_holds_all_numbers_in_round_steps(most: float, ticks: list[float]) -> None:
    found = axis([0, most], (100, 200))
    assert found.ticks() == pytest.approx(ticks)
    assert (found.at(0), found.at(ticks[-1])) == pytest.approx((100, 200))


def test_numbers_below_a_panel_have_room_beside_each_other() -> None:
    kinds = [point(by, number, 1, 1) for by, number in (("links", 30), ("tables", 19_000), ("gigabytes", 16))]
    assert [panel.x.ticks() for panel in panels(kinds)] == [[0, 10, 20, 30], [0, 10_000, 20_000], [0, 5, 10, 15, 20]]


def test_points_come_back_from_a_file() -> None:
    points = [point("tables", 10, 1, 2), point("links", 0, 3, 4)]
    assert points_of(json.loads(json.dumps(scale(*points)))) == points


def test_curves_go_from_left_to_right_through_medians() -> None:
    points = [point("links", 30, 2, 30), *(point("links", 10, wall, 10 * wall) for wall in (1, 9, 2))]
    svg = plot_scale.drawing([*points, point("links", 0, 2, 0)], "")
    left, right = plot_scale.BEFORE, WIDTH - plot_scale.AFTER
    bottom, top = plot_scale.BOTTOM, plot_scale.TOP
    (_, backup), (_, restore) = (shapes(svg, name, "polyline") for name in ("backup", "restore"))
    places = [[tuple(map(float, place.split(","))) for place in one["points"].split()] for one in (backup, restore)]
    third, level = left + (right - left) / 3, bottom + (top - bottom) / 15
    assert places[0] == [pytest.approx(place, abs=0.1) for place in ((left, level), (third, level), (right, level))]
    middle = bottom + (top - bottom) * 2 / 3
    assert places[1] == [pytest.approx(place, abs=0.1) for place in ((left, bottom), (third, middle), (right, top))]


def test_backups_and_restores_differ_in_more_than_colour() -> None:
    assert len(shapes(SCALE, "backup", "circle")) == len(shapes(SCALE, "restore", "rect")) == 3 + 1  # and the legend
    assert not shapes(SCALE, "restore", "circle")


def test_several_files_of_points_are_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        scale(point("gigabytes", 1, 1, 1), point("gigabytes", 16, 20, 10)),
        scale(point("tables", 19_000, 10, 12)),
        scale(point("links", 30, 2, 30), date="2026-11-23"),
    ]
    told = words(drawn_by(plot_scale.main, files, tmp_path, monkeypatch))
    assert "wall seconds of a backup, and of its restore; 2 cores, 2026-11-22 and 2026-11-23" in told
    assert {"gigabytes", "small tables", "links (backup: the last one's)", "20,000", "20 s", "30 s"} <= set(told)
