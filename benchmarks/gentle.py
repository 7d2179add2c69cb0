"""What a busy server feels of a backup: transactions and their latency without one, with ours, with a pipeline.

Clients read and update rows of the big tables, at a pace that leaves the server room, while backups are taken one
after another for some seconds; rounds alternate::

    python -m benchmarks.gentle --directory /var/tmp/race --gigabytes 4 --seconds 30 --rounds 3 --tools DIR

``--only checkpoint`` asks instead what ``[database] checkpoint_first`` does to incrementals, and to the server.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from statistics import median

from benchmarks import race_machine
from benchmarks.gentle_clients import Clients, Done
from benchmarks.measure import Failed
from benchmarks.race_contenders import Contender, Made, Ours, Rival, Scene
from benchmarks.race_figures import MB, drawn, spread
from benchmarks.race_place import add_options, keep, scene, some_of
from benchmarks.rivals import PIPELINES

MILLI = 1000
QUIET = "no backup"
SETTLE = 2.0
"""Seconds that the clients run before a trial."""
CASES = ("backup", "checkpoint")
LATENCIES = ("p50", "p95", "p99", "longest")


@dataclass(frozen=True)
class Taken:
    """Backups that were taken in a trial: how many, and what one took on average."""

    count: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    stored: float = 0.0


@dataclass(frozen=True)
class Trial:
    """Some seconds with one kind of backup, or with none; latencies in milliseconds."""

    case: str
    contender: str
    round: int
    seconds: float
    per_second: float
    worst_second: int
    p50: float
    p95: float
    p99: float
    longest: float
    backups: Taken = Taken()


def trial(case: str, contender: str, number: int, done: Sequence[Done], window: tuple[float, float]) -> Trial:
    """What clients did within a window of time."""
    began, ended = window
    inside = [one for one in done if began <= one.at < ended]
    times = sorted(one.took * MILLI for one in inside) or [float("nan")]
    whole = max(1, int(ended - began))
    by_second = [0] * whole
    for one in inside:
        if (second := int(one.at - began)) < whole:
            by_second[second] += 1
    return Trial(
        case=case,
        contender=contender,
        round=number,
        seconds=ended - began,
        per_second=len(inside) / (ended - began),
        worst_second=min(by_second),
        p50=_quantile(times, 0.50),
        p95=_quantile(times, 0.95),
        p99=_quantile(times, 0.99),
        longest=times[-1],
    )


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


@dataclass
class Gentle:
    """Trials on one data set, whose server runs."""

    scene: Scene
    seconds: float
    pause: float
    told: Callable[[Trial], None]

    def trials(self, case: str, contenders: Sequence[Contender | None], rounds: int) -> None:
        """Each contender once a round, in an order of the round's own; None stands for no backup."""
        for number in range(1, rounds + 1):
            for contender in random.Random(number).sample(contenders, len(contenders)):
                self.scene.checkpoint()  # so that each trial begins with as little redo
                on = contender.backup()[1] if contender is not None and case == "checkpoint" else None
                self.told(self._one(case, contender, number, on))
                if on is not None:
                    self.scene.store.remove(on.prefix)

    def _one(self, case: str, contender: Contender | None, number: int, on: Made | None) -> Trial:
        with Clients(self.scene.data.socket, pause=self.pause, seed=number) as clients:
            # The redo that an incremental carries is what came since the last checkpoint.
            time.sleep(SETTLE if on is None else self.seconds)
            began = time.time()
            taken = [] if contender is None else list(self._backups(contender, on, began + self.seconds))
            if on is None:
                time.sleep(max(0.0, began + self.seconds - time.time()))
            ended = time.time()
        found = trial(case, QUIET if contender is None else contender.name, number, clients.done, (began, ended))
        return replace(found, backups=_mean(taken))

    def _backups(self, contender: Contender, on: Made | None, until: float) -> Iterator[tuple[float, float, float]]:
        """Take backups until the time is over, one of them at least, and one only where it is an incremental."""
        while True:
            cost, made = contender.backup(on)
            self.scene.store.remove(made.prefix)
            yield cost.wall, cost.cpu, made.stored
            if on is not None or time.time() >= until:
                return


def _mean(taken: Sequence[tuple[float, float, float]]) -> Taken:
    return Taken(len(taken), *(sum(values) / len(taken) for values in zip(*taken, strict=True)))


def backups(where: Scene, limit: str) -> list[Contender | None]:
    """Who takes part, and None for nobody."""
    pipeline = PIPELINES["aws"]
    nice = ("nice", "-n", "19", "ionice", "-c", "idle")
    return [
        None,
        Ours(where),
        Ours(where, "ours-nice-tool", settings="[database]\nnice = 19\nionice = idle\n"),
        Ours(where, "ours-nice-all", before=nice),
        Ours(where, "ours-limited", settings=f"[stream]\nrate_limit = {limit}\n"),
        Rival(where, pipeline),
        Rival(where, pipeline, name="aws-nice-all", before=nice),
    ]


def checkpoints(where: Scene) -> list[Contender | None]:
    """Incrementals with and without a checkpoint before them."""
    settings = "[database]\ncheckpoint_first = {}\n"
    return [Ours(where, f"ours-{value}", settings=settings.format(value)) for value in ("never", "incremental")]


COLUMNS = (
    *("case", "with", "tps", "of quiet", "worst s", "p50 ms", "p95 ms", "p99 ms", "max ms"),
    *("backup s", "CPU s", "MB"),
)


def rows(trials: Sequence[Trial]) -> list[list[str]]:
    """Rows of the table: medians over the rounds."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for one in trials:
        groups.setdefault((one.case, one.contender), []).append(one)
    quiet = {case: median(one.per_second for one in group) for (case, who), group in groups.items() if who == QUIET}
    return [_row(group, quiet.get(case)) for (case, _), group in groups.items()]


def _row(group: Sequence[Trial], quiet: float | None) -> list[str]:
    tps = spread(one.per_second for one in group)
    middle = {name: median(getattr(one, name) for one in group) for name in ("worst_second", *LATENCIES)}
    return [
        group[0].case,
        group[0].contender,
        tps.drawn(0),
        "-" if quiet is None else f"{tps.median / quiet:.2f}",
        f"{middle['worst_second']:.0f}",
        *(f"{middle[name]:.1f}" for name in LATENCIES),
        f"{median(one.backups.wall for one in group):.1f}",
        f"{median(one.backups.cpu for one in group):.1f}",
        f"{median(one.backups.stored for one in group) / MB:.0f}",
    ]


def parsed() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--only", type=some_of(CASES), default=list(CASES), help=f"of {','.join(CASES)}")
    parser.add_argument("--contenders", help="of the backups, only those with these names, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="how often each of them")
    parser.add_argument("--seconds", type=float, default=30, help="how long each time, at least")
    parser.add_argument("--pause", type=float, default=0.003, help="seconds between two transactions of a client")
    parser.add_argument("--limit", default="20M", help="rate_limit of the slow backup")
    return parser.parse_args()


def main() -> None:
    """Measure, and print."""
    given = parsed()
    trials: list[Trial] = []

    def told(one: Trial) -> None:
        trials.append(one)
        print(one, file=sys.stderr, flush=True)

    facts: dict[str, object] = {}
    try:
        measure(given, told, facts)
    except Failed as error:
        sys.exit(str(error))
    finally:
        print(drawn(COLUMNS, rows(trials)))
        keep(given.json, facts, {"pause": given.pause, "trials": [asdict(one) for one in trials]})


def measure(given: argparse.Namespace, told: Callable[[Trial], None], facts: dict[str, object]) -> None:
    """Run all trials; adds where they ran to ``facts``."""
    with ExitStack() as stack:
        where = scene(given, stack)
        facts |= race_machine.facts(where.place, where.environment()) | {"data": where.data.record}
        where.data.start()
        gentle = Gentle(where, given.seconds, given.pause, told)
        for case in given.only:
            who = backups(where, given.limit) if case == "backup" else checkpoints(where)
            chosen = [one for one in who if not given.contenders or _named(one) in given.contenders.split(",")]
            gentle.trials(case, chosen or who, given.rounds)


def _named(contender: Contender | None) -> str:
    return QUIET if contender is None else contender.name


if __name__ == "__main__":
    main()
