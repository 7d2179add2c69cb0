"""How the agent's cost grows: with the size of the data, with the number of tables, with the links of a chain.

Each point is a backup and a restore of its own, several times::

    python -m benchmarks.scale --directory /var/tmp/race --sizes 1,4,16 --tables 10,1000,20000 --links 30

Data sets are made in the directory and stay there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import race_machine
from benchmarks.dataset import GB, DataSet, ensure, ensure_tables, fingerprint
from benchmarks.measure import Cost, Failed
from benchmarks.race_contenders import Contender, Made, Ours, Scene
from benchmarks.race_figures import MB, MIB, drawn
from benchmarks.race_place import about, add_options, keep

CHANGED = 0.002
"""What changes before each link."""
SHOWN_LINKS = (0, 1, 2, 4, 7, 12, 20, 30)
"""Incrementals of the chains that are restored."""
COLUMNS = ("by", "number", "raw MB", "backup s", "CPU s", "agent MiB", "restore s", "CPU s", "agent MiB")


@dataclass(frozen=True)
class Point:
    """One run of both; ``number`` is what the curve goes by."""

    by: str
    number: float
    raw: int
    backup: Cost
    restore: Cost


@dataclass
class Scale:
    """Measures points; ``told`` hears of each."""

    given: argparse.Namespace
    told: Callable[[Point], None]

    def sizes(self, numbers: Sequence[float]) -> None:
        """By gigabytes of mixed data."""
        for number in numbers:
            directory = self.given.directory / f"data-{number:g}"
            data = ensure(directory, number, small_tables=self.given.small_tables, seed=self.given.seed)
            self._single("gigabytes", number, data, int(number * GB))

    def tables(self, numbers: Sequence[float]) -> None:
        """By small tables, and nothing else."""
        for number in numbers:
            data = ensure_tables(self.given.directory / f"tables-{number:g}", int(number))
            self._single("tables", number, data, GB // 10)

    def links(self, count: int) -> None:
        """By the incrementals of a chain: each restored alone, with what taking it cost."""
        numbers = [number for number in SHOWN_LINKS if number <= count]
        size = self.given.gigabytes
        directory = self.given.directory / f"data-{size:g}"
        original = ensure(directory, size, small_tables=self.given.small_tables, seed=self.given.seed)
        with ExitStack() as stack:
            copied: Callable[[Path], DataSet] = lambda place: original.pristine(place / "source")  # noqa: E731
            scene = about(self.given, stack, copied, int(size * GB))
            ours = Ours(scene)
            scene.data.start()
            taken = list(chain(scene, ours, count))
            expected = _print(scene.data)
            scene.data.stop()
            made = [one for _, one in taken]
            for number in numbers:
                upto = made[: number + 1]
                for _ in range(self.given.rounds):
                    restored = _restored(scene, ours, upto)
                    self.told(Point("links", number, sum(one.raw for one in upto), taken[number][0], restored))
            if numbers[-1] == count:
                _prove(scene, expected)

    def _single(self, by: str, number: float, data: DataSet, expected: int) -> None:
        """One full backup, and its restore, several times."""
        with ExitStack() as stack:
            scene = about(self.given, stack, lambda _: data, expected)
            ours = Ours(scene)
            for turn in range(self.given.rounds):
                scene.data.start()
                os.sync()
                cost, made = ours.backup()
                wanted = _print(scene.data) if turn == 0 else {}
                scene.data.stop()
                restored = _restored(scene, ours, [made])
                if turn == 0:
                    _prove(scene, wanted)
                scene.store.remove(made.prefix)
                self.told(Point(by, number, made.raw, cost, restored))


def chain(scene: Scene, ours: Contender, count: int) -> Iterator[tuple[Cost, Made]]:
    """A base and that many incrementals."""
    cost, made = ours.backup()
    yield cost, made
    for number in range(count):
        scene.change(CHANGED, number)
        cost, made = ours.backup(made)
        yield cost, made


def _restored(scene: Scene, ours: Contender, links: Sequence[Made]) -> Cost:
    shutil.rmtree(scene.target.parent, ignore_errors=True)
    scene.target.parent.mkdir(parents=True)
    os.sync()
    return ours.restore(links)


def _print(data: DataSet) -> dict[str, str]:
    with data.session() as session:
        return fingerprint(session)


def _prove(scene: Scene, expected: dict[str, str]) -> None:
    with DataSet(scene.target.parent) as copy:
        if _print(copy) != expected:
            raise RuntimeError("other data was restored than was backed up")


def rows(points: Sequence[Point]) -> list[list[str]]:
    """Rows of the table, medians over the rounds."""
    groups: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.by, point.number), []).append(point)
    return [
        [
            by,
            f"{number:g}",
            f"{group[0].raw / MB:,.0f}",
            *_cells([point.backup for point in group]),
            *_cells([point.restore for point in group]),
        ]
        for (by, number), group in groups.items()
    ]


def _cells(costs: Sequence[Cost]) -> list[str]:
    return [
        f"{median(cost.wall for cost in costs):.1f}",
        f"{median(cost.cpu for cost in costs):.1f}",
        f"{max(cost.agent_rss for cost in costs) / MIB:.0f}",
    ]


def slopes(points: Sequence[Point]) -> list[str]:
    """What one more of each kind costs, between neighbouring numbers: equal figures are a straight line."""
    lines = []
    for by in dict.fromkeys(point.by for point in points):
        middle = {number: _medians(points, by, number) for number in _numbers(points, by)}
        for (low, before), (high, after) in pairwise(middle.items()):
            more = [(late - early) / (high - low) for early, late in zip(before, after, strict=True)]
            lines.append(f"{by} {low:g} to {high:g}: backup {more[0]:.4g} s each, restore {more[1]:.4g} s each")
    return lines


def _numbers(points: Sequence[Point], by: str) -> list[float]:
    return sorted({point.number for point in points if point.by == by})


def _medians(points: Sequence[Point], by: str, number: float) -> tuple[float, float]:
    mine = [point for point in points if (point.by, point.number) == (by, number)]
    return median(point.backup.wall for point in mine), median(point.restore.wall for point in mine)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, gigabytes=0.3)
    parser.add_argument("--sizes", type=_numbers_of, default=[1, 4, 16], help="gigabytes, separated by commas")
    parser.add_argument("--tables", type=_numbers_of, default=[10, 1000, 20000], help="small tables, by commas")
    parser.add_argument("--links", type=int, default=30, help="incrementals of the chain (of --gigabytes); 0: none")
    parser.add_argument("--rounds", type=int, default=3, help="how often each point")
    return parser.parse_args(words)


def _numbers_of(text: str) -> list[float]:
    return [float(word) for word in text.split(",") if word]


def main() -> None:
    """Measure, and print."""
    given = parsed()
    points: list[Point] = []

    def told(point: Point) -> None:
        points.append(point)
        print(f"{point.by} {point.number:g}: {point.backup}, {point.restore}", file=sys.stderr, flush=True)

    try:
        measure(Scale(given, told))
    except Failed as error:
        sys.exit(str(error))
    finally:
        print("\n".join([drawn(COLUMNS, rows(points)), *slopes(points)]))
        facts = race_machine.facts(given.directory, os.environ)
        keep(given.json, facts, {"points": [asdict(one) for one in points]})


def measure(scale: Scale) -> None:
    """Measure all that was asked for."""
    scale.sizes(scale.given.sizes)
    scale.tables(scale.given.tables)
    if scale.given.links:
        scale.links(scale.given.links)


if __name__ == "__main__":
    main()
