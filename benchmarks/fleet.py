"""What a fleet of agents costs its broker and its control plane, and what it costs that the broker goes away.

Some hundreds of agents' RPC layers run in a few processes against one private RabbitMQ, with a conductor, and a few
real ``guestagent serve`` beside them.  They are started, called, left alone with their heartbeats, and bereft of their
broker::

    python -m benchmarks.fleet --agents 300 --json fleet.json

``--lockstep`` leaves out the agent's own pauses before reconnects, to show what they are for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet_agents import Wanted, name_of
from benchmarks.fleet_calls import Names, answering, caller, create, measure, ping
from benchmarks.fleet_figures import (
    MILLI,
    Beats,
    Latency,
    Real,
    Report,
    Restart,
    Size,
    Start,
    draw,
    reached,
    spread,
)
from benchmarks.fleet_servers import QUEUES, Broker, Told, connections_to, crowds, real, real_agents
from benchmarks.idle import KIB_A_MIB

RETURN = 120.0
"""Seconds in which the agents must answer again."""


@dataclass(frozen=True)
class Settings:
    """What is measured; times in seconds."""

    agents: int = 300
    processes: int = 6
    real: int = 2
    queues: str = "durable"
    lockstep: bool = False
    interval: float = 10
    watch: float = 20
    calls: int = 400
    callers: int = 4
    outage: float = 20

    @property
    def names(self) -> Names:
        """The fleet's instance ids."""
        return [name_of(number) for number in range(self.agents)]

    def crowds(self, url: str, place: Path) -> list[Wanted]:
        """What each process is asked for."""
        edges = [self.agents * number // self.processes for number in range(self.processes + 1)]
        return [
            Wanted(url, str(place), first, end - first, self.interval, self.lockstep)
            for first, end in itertools.pairwise(edges)
        ]


class Fleet:
    """A fleet that runs, and the servers about it."""

    def __init__(self, settings: Settings, broker: Broker, conductor: Told, url: str) -> None:
        self._settings = settings
        self._broker = broker
        self._conductor = conductor
        self._url = url
        self._fresh_cpu, self._fresh_memory = broker.cpu(), broker.memory()
        self._crowds: list[Told] = []
        self._real: dict[str, int] = {}

    @contextmanager
    def started(self, place: Path) -> Iterator[Start]:
        """Have the agents running; gives how that went."""
        used, began = self._broker.cpu(), time.monotonic()
        with crowds(self._settings.crowds(self._url, place)) as self._crowds:
            times = [at for crowd in self._crowds for at in crowd.heard()["listening"]]
            listening = reached(times, since=began, wanted=self._settings.agents)
            yield Start(listening, round(self._broker.cpu() - used, 2))

    def size(self) -> Size:
        """What an agent takes; to be asked when all have been called, and have sent heartbeats."""
        looks = [crowd.look() for crowd in self._crowds]
        connections = sum(connections_to(self._broker.port, crowd.pid) for crowd in self._crowds)
        agents = self._settings.agents
        return Size(
            private=round(sum(look["private"] - look["before"] for look in looks) / agents / KIB_A_MIB, 2),
            threads=round(sum(look["threads"] - 1 for look in looks) / agents, 2),
            connections=round(connections / agents, 2),
            queues=round(self._broker.queues_of(self._url) / agents, 2),
            broker=round((self._broker.memory() - self._fresh_memory) / agents, 2),
        )

    def real(self, place: Path) -> list[Real]:
        """What real agents take once they have answered."""
        with real_agents(self._settings.real, self._url, place, self._settings.interval) as pids:
            with caller(self._url) as client:
                for name in pids:
                    ping(client, name)
            time.sleep(self._settings.interval * 1.2)  # until each has sent a heartbeat
            return [real(pid, self._broker.port) for pid in pids.values()]

    def calls(self) -> dict[str, Latency]:
        """How long calls to random agents take."""
        with caller(self._url) as client:
            given = {"calls": self._settings.calls, "callers": self._settings.callers}
            return {
                "ping": measure(client, self._settings.names, ping, **given),
                "create": measure(client, self._settings.names, create, **given),
            }

    def heartbeats(self) -> Beats:
        """Watch heartbeats for a while."""
        before, used, began = self._conductor.look()["cpu"], self._broker.cpu(), time.monotonic()
        time.sleep(self._settings.watch)
        look, seconds = self._conductor.look(), time.monotonic() - began
        came = look["came"]
        count = max(1, len(came))
        return Beats(
            interval=self._settings.interval,
            seconds=round(seconds, 1),
            instances=len({name for name, _ in came}),
            per_second=round(len(came) / seconds, 2),
            spread=spread((at for _, at in came), since=began),
            conductor_cpu=round((look["cpu"] - before) / count * MILLI, 2),
            broker_cpu=round((self._broker.cpu() - used) / count * MILLI, 2),
        )

    def restart(self) -> Restart:
        """Kill the broker, let it stay away, and watch the agents come back."""
        before, began = self._failed(), time.monotonic()
        self._broker.kill()
        time.sleep(self._settings.outage)
        self._broker.start()
        up, clock, names = time.monotonic(), time.time(), self._settings.names
        with caller(self._url) as client:
            back = reached(answering(client, names, limit=RETURN), since=up, wanted=len(names))
        used = self._broker.cpu() - self._fresh_cpu
        return Restart(
            away=round(up - began, 1),
            answering=back,
            listeners=spread(self._broker.listeners({crowd.pid for crowd in self._crowds}), since=clock),
            attempts=self._failed() - before,
            broker_cpu=round(used, 2),
        )

    def _failed(self) -> int:
        return sum(int(crowd.look()["failed"]) for crowd in self._crowds)


def run(settings: Settings) -> Report:
    """Measure everything."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        broker = stack.enter_context(Broker())
        url = broker.address(settings.queues)
        conductor = stack.enter_context(Told("benchmarks.fleet_conductor", url=url))
        conductor.heard()
        fleet = Fleet(settings, broker, conductor, url)
        start = stack.enter_context(fleet.started(place))
        return Report(
            agents=settings.agents,
            processes=settings.processes,
            queues=settings.queues,
            reconnect="lockstep" if settings.lockstep else "spread",
            start=start,
            calls=fleet.calls(),
            heartbeats=fleet.heartbeats(),
            size=fleet.size(),
            real=fleet.real(place),
            restart=fleet.restart(),
        )


def parsed() -> argparse.Namespace:
    """What was asked for on the command line."""
    usual = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=usual.agents, help="how many agents")
    parser.add_argument("--processes", type=int, default=usual.processes, help="in how many processes")
    parser.add_argument("--real", type=int, default=usual.real, help="how many real agents beside them")
    parser.add_argument("--queues", choices=QUEUES, default=usual.queues, help="what kind of queues")
    parser.add_argument("--lockstep", action="store_true", help="without the agent's own pauses before reconnects")
    parser.add_argument("--interval", type=float, default=usual.interval, help="seconds between two heartbeats")
    parser.add_argument("--watch", type=float, default=usual.watch, help="seconds for which heartbeats are watched")
    parser.add_argument("--calls", type=int, default=usual.calls, help="how many calls of each kind")
    parser.add_argument("--callers", type=int, default=usual.callers, help="how many call at a time")
    parser.add_argument("--outage", type=float, default=usual.outage, help="seconds before the broker is started again")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    return parser.parse_args()


def main() -> None:
    """Measure, and print."""
    given = vars(parsed())
    file: Path | None = given.pop("json")
    logging.getLogger().addHandler(logging.NullHandler())
    report = run(Settings(**given))
    draw(report)
    if file is not None:
        file.write_text(json.dumps(report.values(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
