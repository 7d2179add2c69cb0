"""The races' figures, as they are made of runs; the rivals' texts, as bash reads them; what a run costs."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from benchmarks.dataset import DataSet
from benchmarks.gentle import trial
from benchmarks.gentle_clients import Done
from benchmarks.measure import Cost, Failed, Peaks, Seen, cost_of
from benchmarks.race_contenders import Contender, Made, Scene
from benchmarks.race_figures import Range, Run, drawn, ratios, runs_of, spread, summaries, summary_rows, values
from benchmarks.race_place import alone, some_of
from benchmarks.race_store import Store
from benchmarks.race_stories import Link, Race, shuffled
from benchmarks.rivals import AWS, PIPELINES, Pipeline, Place, variables
from benchmarks.scale import Point, rows, slopes

MIB = 1 << 20


def run(contender: str = "ours", number: int = 1, *, story: str = "full", wall: float = 1, raw: int = 0) -> Run:
    return Run(story, contender, number, wall, 2 * wall, 200 * MIB, 100 * MIB, 50, raw, 0.1, 0.2)


# What a run costs


def test_a_run_costs_what_all_its_processes_cost(tmp_path: Path) -> None:
    child = "import time; x = bytearray(64 << 20); x[::4096] = bytes(b'a') * len(x[::4096]); time.sleep(0.5)"
    parent = f"import subprocess, sys; print('done'); subprocess.run([sys.executable, '-c', {child!r}])"
    cost, printed = cost_of(["bash", "-c", '"$@"; true', "bash", sys.executable, "-c", parent], tmp_path / "run.log")
    assert printed == "done\n"
    assert cost.wall > 0.5
    assert cost.cpu > 0.02
    assert cost.tree_rss > 64 * MIB > 16 * MIB > cost.agent_rss > 0


def test_a_command_that_fails_ends_the_benchmark_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"ended with 3; the end of .*run\.log:\nno such thing"):
        cost_of(["sh", "-c", "echo no such thing >&2; exit 3"], tmp_path / "run.log")


def test_a_process_counts_from_the_second_look_that_finds_its_program() -> None:
    peaks = Peaks(1)
    peaks.note([Seen(1, "agent", 100), Seen(2, "agent", 100)])  # not yet what it will be
    assert (peaks.tree, peaks.agent) == (100, 100)
    peaks.note([Seen(1, "agent", 90), Seen(2, "tool", 30)])
    assert (peaks.tree, peaks.agent) == (100, 100)
    peaks.note([Seen(1, "agent", 90), Seen(2, "tool", 30), Seen(3, "agent", 5)])
    assert (peaks.tree, peaks.agent) == (120, 100)
    peaks.note([Seen(1, "agent", 90), Seen(2, "tool", 30), Seen(3, "agent", 15)])
    assert (peaks.tree, peaks.agent) == (135, 105)


# Rivals


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_bash_can_read_a_rival(pipeline: Pipeline) -> None:
    for text in (pipeline.backup(), pipeline.backup(incremental=True), pipeline.restore()):
        assert text.startswith("set -euo pipefail\n")
        subprocess.run(["bash", "-n", "-c", text], check=True, timeout=10)


def test_only_an_incremental_begins_at_an_lsn() -> None:
    assert "--incremental-lsn" not in AWS.backup()
    assert '--incremental-lsn="$2"' in AWS.backup(incremental=True)


def test_a_rival_finds_every_variable_that_it_asks_for() -> None:
    place = Place(Path("s"), "root", "mysql", "http://store", "bucket", ("a", "b"), 1, Path("scratch"), Path("target"))
    known = "".join(f"{name}=x; " for name in variables(place))
    for pipeline in PIPELINES.values():
        for text in (pipeline.backup(incremental=True), pipeline.restore()):
            quiet = "for tool in mariabackup mbstream zstd gzip aws rclone s5cmd mkdir rm chown x; do\n"
            quiet += 'eval "$tool() { return 0; }"\ndone\n'
            argv = ["bash", "-c", known + quiet + text, pipeline.name, "key", "7"]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
            assert "unbound variable" not in done.stderr


# Figures


def test_a_range_has_its_middle_and_its_ends() -> None:
    assert spread([3, 1, 2, 10]) == Range(2.5, 1, 10)
    assert spread([3, 1, 2]).drawn() == "2.0 (1.0-3.0)"


def test_summaries_stand_by_story_with_ours_first() -> None:
    found = summaries([run("aws"), run("ours"), run("aws", story="restore"), run("ours", story="restore")])
    assert [(one.story, one.contender) for one in found] == [
        ("full", "ours"),
        ("full", "aws"),
        ("restore", "ours"),
        ("restore", "aws"),
    ]


def test_a_rivals_speed_is_that_of_the_same_stream() -> None:
    ours, aws = summaries([run(wall=2, raw=1000), run("aws", wall=4), run("aws", 2, wall=6)])
    assert (ours.speed, aws.speed, aws.rounds) == (500, 200, 2)


def test_ratios_are_of_medians() -> None:
    found = ratios(summaries([*(run("ours", wall=wall) for wall in (1, 2, 9)), run("aws", wall=4)]))
    assert [(one.contender, one.against, one.wall, one.cpu) for one in found] == [("ours", "aws", 0.5, 0.5)]


def test_another_way_of_ours_is_measured_by_ours() -> None:
    found = ratios(summaries([run("ours", wall=4), run("ours-encrypted", wall=5)]))
    assert [(one.contender, one.against, one.wall) for one in found] == [("ours-encrypted", "ours", 1.25)]


def test_runs_come_back_from_a_file() -> None:
    runs = [run(), run("aws", 2)]
    assert runs_of(values(runs)) == runs


def test_a_table_is_restructured_text() -> None:
    assert drawn(("a", "long one"), [["one", "1"]]).splitlines() == [
        "===  ========",
        "a    long one",
        "===  ========",
        "one  1",
        "===  ========",
    ]


def test_only_ours_has_an_agent() -> None:
    cells = {row[1]: row[5] for row in summary_rows(summaries([run(), run("aws")]))}
    assert cells == {"ours": "100", "aws": "-"}


def test_only_known_words_are_taken() -> None:
    assert some_of(("full", "inc1"))("inc1,full") == ["inc1", "full"]
    with pytest.raises(argparse.ArgumentTypeError, match="half is none of full, inc1"):
        some_of(("full", "inc1"))("full,half")


def test_two_benchmarks_do_not_share_a_directory(tmp_path: Path) -> None:
    place = tmp_path / "race"
    place.mkdir()
    (place / "left by a run that was killed").touch()
    with alone(place) as found:
        assert list(found.iterdir()) == []
        with pytest.raises(BlockingIOError), alone(place):
            pass
        assert found.exists()
    assert not place.exists()


# Stories


@dataclass
class Sink:
    """A store's sink that costs nothing."""

    def cpu_seconds(self) -> float:
        return 0.0


@dataclass
class Shop:
    """A store that remembers the links before it, and what was removed."""

    sink: Sink = field(default_factory=Sink)
    removed: list[str] = field(default_factory=list)

    def remove(self, prefix: str) -> None:
        self.removed.append(prefix)


@dataclass
class Data:
    """A data set of nothing."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


@dataclass
class Runner:
    """A contender that is done at once."""

    name: str
    order: list[str]

    def backup(self, on: Made | None = None) -> tuple[Cost, Made]:
        self.order.append(self.name)
        return Cost(1, 1, 1, 1, 0), Made(f"{self.name}-key", self.name, 1, 10, 20)

    def restore(self, chain: Sequence[Made]) -> Cost:
        return Cost(1, 1, 1, 1, 0)


def test_each_contender_runs_once_a_round_after_warming_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sync", lambda: None)
    store, order, told = Shop(), list[str](), list[Run]()
    contenders: list[Contender] = [Runner(name, order) for name in ("ours", "aws", "rclone", "trove")]
    scene = Scene(cast(DataSet, Data()), cast(Store, store), tmp_path / "restored" / "data", tmp_path, 1)
    Race(scene, contenders, rounds=3, told=told.append).run(["full"])
    rounds = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert len(rounds) == 4
    assert all(sorted(names) == ["aws", "ours", "rclone", "trove"] for names in rounds)
    assert store.removed == order  # nothing that a run stored is left for the next one
    assert [one.round for one in told] == [1] * 4 + [2] * 4 + [3] * 4


def test_nobody_always_runs_behind_the_same_one() -> None:
    contenders: list[Contender] = [Runner(name, []) for name in ("ours", "aws", "trove")]
    orders = [[one.name for one in shuffled(contenders, number)] for number in range(1, 6)]
    assert len({tuple(names) for names in orders}) > 2
    assert orders[0] == [one.name for one in shuffled(contenders, 1)]


def test_a_link_says_what_it_is() -> None:
    assert str(Link(25_000_000, 0.02)) == "200 Mbit/s, 20 ms"


# Gentleness and scale


def test_a_trial_counts_what_ended_in_its_window() -> None:
    done = [Done(9.9, 1), *(Done(10 + number / 10, 0.001 * (number + 1)) for number in range(20)), Done(12, 1)]
    found = trial("backup", "ours", 1, done, (10, 12))
    assert (found.per_second, found.worst_second) == (10, 10)
    assert (found.p50, found.p95, found.longest) == pytest.approx((11, 20, 20))


def test_a_trial_without_transactions_is_no_error() -> None:
    found = trial("backup", "ours", 1, [], (10, 12))
    assert (found.per_second, found.worst_second) == (0, 0)
    assert math.isnan(found.p95)


def test_slopes_are_the_cost_of_one_more() -> None:
    points = [
        Point("tables", number, 7, Cost(wall, 1, 1, MIB, 0), Cost(2 * wall, 1, 1, MIB, 0))
        for number, wall in ((10, 1), (20, 2), (20, 4), (40, 5))
    ]
    assert slopes(points) == [
        "tables 10 to 20: backup 0.2 s each, restore 0.4 s each",
        "tables 20 to 40: backup 0.1 s each, restore 0.2 s each",
    ]
    assert [row[3] for row in rows(points)] == ["1.0", "3.0", "5.0"]
