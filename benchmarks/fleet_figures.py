"""Figures of a fleet: what of them is reported, and how it is drawn.  Nothing here measures anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MIB = 1 << 20
MOST_STARS = 50
MILLI = 1000


@dataclass(frozen=True)
class Latency:
    """How long calls took, in milliseconds, and how many ended in a second."""

    calls: int
    p50: float
    p95: float
    p99: float
    per_second: float


@dataclass(frozen=True)
class Reached:
    """Seconds until half, nearly all, and all of the agents were there; ``count`` are those that came at all."""

    count: int
    half: float
    most: float
    all: float


@dataclass(frozen=True)
class Spread:
    """Events by second since something began: how many came, in how many seconds, and the fullest second."""

    count: int
    by_second: list[int]
    fullest: int
    seconds: int


@dataclass(frozen=True)
class Start:
    """A fleet that begins to listen; CPU in seconds, the broker's."""

    listening: Reached
    broker_cpu: float


@dataclass(frozen=True)
class Size:
    """What one of the fleet's agents takes, on its side and on the broker's; sizes in MiB.

    ``private`` leaves out the interpreter and the modules, which the agents of one process share here.
    """

    private: float
    threads: float
    connections: float
    queues: float
    broker: float


@dataclass(frozen=True)
class Real:
    """What a ``guestagent serve`` of its own takes; sizes in MiB; connections after it was asked for something."""

    rss: float
    private: float
    proportional: float
    threads: int
    connections: int


@dataclass(frozen=True)
class Beats:
    """Heartbeats as they reach the conductor, and what both servers make of them: CPU milliseconds for each."""

    interval: float
    seconds: float
    instances: int
    per_second: float
    spread: Spread
    conductor_cpu: float
    broker_cpu: float


@dataclass(frozen=True)
class Restart:
    """What it costs that the broker is killed, stays away, and comes back.

    Seconds count from the moment at which it takes connections again.  ``attempts`` failed while it was away.
    ``listeners`` are the connections on which agents take requests.  ``broker_cpu`` leaves out what a broker's start
    costs without a fleet.
    """

    away: float
    answering: Reached
    listeners: Spread
    attempts: int
    broker_cpu: float


@dataclass(frozen=True)
class Report:
    """All of it."""

    agents: int
    processes: int
    queues: str
    reconnect: str
    start: Start
    size: Size
    real: list[Real]
    calls: Mapping[str, Latency]
    heartbeats: Beats
    restart: Restart

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


# Making them


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest of ``values`` that at least ``part`` of them do not exceed; nan for none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


def latency(seconds: Sequence[float], *, took: float) -> Latency:
    """Of calls that took ``seconds`` each and ``took`` together."""
    p50, p95, p99 = (round(quantile(seconds, part) * MILLI, 2) for part in (0.5, 0.95, 0.99))
    return Latency(len(seconds), p50, p95, p99, round(len(seconds) / took, 1))


def reached(times: Sequence[float], *, since: float, wanted: int) -> Reached:
    """When how many of ``wanted`` were there; ``times`` of those that came."""
    delays = [at - since for at in times] + [math.inf] * (wanted - len(times))
    half, most, everyone = (round(quantile(delays, part), 2) for part in (0.5, 0.95, 1.0))
    return Reached(len(times), half, most, everyone)


def spread(times: Iterable[float], *, since: float) -> Spread:
    """Events by second since ``since``; what came before counts for the first one."""
    seconds = [max(0, int(at - since)) for at in times]
    found = [seconds.count(second) for second in range(max(seconds, default=-1) + 1)]
    return Spread(len(seconds), found, max(found, default=0), len(found))


# Drawing them


def draw(report: Report, write: Callable[[str], object] = print) -> None:
    """Tables for people, and for docs/benchmarks.rst."""
    write(
        f"{report.agents} agents in {report.processes} processes, {report.queues} queues, {report.reconnect} reconnects"
    )
    for line in _table(("what", "figure"), list(_rows(report))):
        write(line)
    _bars("listeners connected, by second since the broker takes them again", report.restart.listeners, write)
    _bars("heartbeats that reach the conductor, by second", report.heartbeats.spread, write)


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    start, size, beats, restart = report.start, report.size, report.heartbeats, report.restart
    yield "agents listening: 50 / 95 / 100 %", f"{_seconds(start.listening)} s"
    yield "broker's CPU for that, an agent", f"{start.broker_cpu / report.agents * MILLI:.1f} ms"
    yield "an agent's RPC layer: private memory, threads", f"{size.private:.2f} MiB, {size.threads:.1f}"
    yield "an agent at the broker: connections, queues", f"{size.connections:.1f}, {size.queues:.1f}"
    yield "an agent at the broker: memory", f"{size.broker:.2f} MiB"
    for real in report.real:
        yield "guestagent serve: RSS, private, proportional", f"{real.rss:.1f}, {real.private:.1f}, {_share(real)}"
        yield "guestagent serve: threads, connections", f"{real.threads}, {real.connections}"
    for name, one in report.calls.items():
        yield f"{name}: p50 / p95 / p99", f"{one.p50:.1f} / {one.p95:.1f} / {one.p99:.1f} ms"
        yield f"{name}: calls in a second", f"{one.per_second:.0f}"
    yield f"heartbeats in a second (every {beats.interval:g} s)", f"{beats.per_second:.1f}"
    yield "heartbeats in the fullest second", f"{beats.spread.fullest}"
    yield "CPU of a heartbeat: conductor stub, broker", f"{beats.conductor_cpu:.1f}, {beats.broker_cpu:.1f} ms"
    yield "broker away", f"{restart.away:.0f} s"
    yield "agents answering again: 50 / 95 / 100 %", f"{_seconds(restart.answering)} s"
    yield "listeners that come in the fullest second", f"{restart.listeners.fullest} of {restart.listeners.count}"
    yield "attempts that failed, an agent", f"{restart.attempts / report.agents:.1f}"
    yield "broker's CPU for the return, an agent", f"{restart.broker_cpu / report.agents * MILLI:.1f} ms"


def _seconds(found: Reached) -> str:
    return f"{found.half:.1f} / {found.most:.1f} / {found.all:.1f}"


def _share(real: Real) -> str:
    return f"{real.proportional:.1f} MiB"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> Iterator[str]:
    left, right = (max(len(row[column]) for row in [head, *rows]) for column in (0, 1))
    rule = f"{'=' * left}  {'=' * right}"
    yield rule
    yield f"{head[0]:{left}}  {head[1]}"
    yield rule
    yield from (f"{name:{left}}  {figure}" for name, figure in rows)
    yield rule


def _bars(title: str, found: Spread, write: Callable[[str], object]) -> None:
    scale = max(1.0, found.fullest / MOST_STARS)
    write("")
    write(f"{title}:")
    for second, count in enumerate(found.by_second):
        write(f"{second:4} {count:5} {'*' * round(count / scale)}".rstrip())
