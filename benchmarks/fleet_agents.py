"""Many agents' RPC layers in one process: real servers, endpoints, outboxes and heartbeats, and no work behind them.

``benchmarks.fleet`` starts some of these.  One line of JSON on stdin says what to make; after that every line ``look``
is answered by a line of JSON on stdout with what the process has seen and what it takes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.idle import memory
from guestagent.catalog import Catalog
from guestagent.conductor import Casts, Conductor
from guestagent.engines import Connection
from guestagent.errors import GuestagentError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job, Step
from guestagent.model import InstanceId
from guestagent.operations.host import DatabaseSettings, Host
from guestagent.outbox.box import Outbox
from guestagent.outbox.postman import Postman
from guestagent.outbox.stamps import Stamps
from guestagent.rpc.ours import Ours
from guestagent.rpc.server import RpcServer
from guestagent.rpc.trove import Trove
from guestagent.rpc.wire import open_transport
from guestagent.storage import open_storage
from guestagent.transport import spread
from tests.fakes.rpc import bare_conf

STARTERS = 8
"""Agents of one process that start at a time."""
PATIENCE = 120.0
"""Seconds that one may take to listen."""
STOP_PATIENCE = 5.0


@dataclass(frozen=True)
class Wanted:
    """What a process of agents is asked for; ``interval`` is that of heartbeats, in seconds.

    ``lockstep`` takes away our pauses before reconnects, and leaves oslo.messaging's.
    """

    url: str
    place: str
    first: int
    count: int
    interval: float
    lockstep: bool


class Clerk:
    """A worker that writes requests down as durably as the real one does, and performs none of them."""

    def __init__(self, state_dir: Path) -> None:
        self._ledger = Ledger(state_dir)

    def submit(self, job: Job) -> Job:
        """Write a request down."""
        return self._ledger.accept(job)[0]

    def refuse(self, job: Job, error: GuestagentError) -> Job:
        """Nothing is refused here."""
        raise error

    def cancel(self, wanted: str, reason: str) -> Job:
        """Cancel a request."""
        return self._ledger.cancel(wanted, reason)

    def get(self, wanted: str) -> Job:
        """A request."""
        return self._ledger.get(wanted)

    def all(self) -> list[Job]:
        """All requests."""
        return self._ledger.all()

    def step(self, wanted: str) -> Step | None:
        """None is ever begun."""

    def running(self) -> Job | None:
        """None is ever begun."""


class Agent:
    """One agent, put together as ``guestagent.serve`` does."""

    def __init__(self, instance: str, wanted: Wanted) -> None:
        self._state = Path(wanted.place) / instance
        self._state.mkdir()
        self._instance = InstanceId(instance)
        clerk = Clerk(self._state)
        trove = Trove(clerk, instance=self._instance, host=self._host, on_refused=_nobody, on_stopped=_nobody)
        endpoints = [trove, Ours(clerk, instance=self._instance, host=self._host)]
        self._server = RpcServer(_transport(wanted), endpoints, instance=instance)
        outbox = Outbox(self._state / "outbox")
        conductor = Conductor(outbox, instance, ask=lambda: None)
        self._casting = _transport(wanted)
        casts = Casts(self._casting, Stamps(self._state / "stamps"), exchange="trove")
        self._postman = Postman(outbox, casts.send, heartbeat=conductor.heartbeat, interval=wanted.interval)

    def start(self) -> float:
        """Begin; gives the moment from which it listens."""
        if not self._server.start(patience=PATIENCE):
            raise RuntimeError(f"{self._instance} does not listen")
        listening = time.monotonic()
        self._postman.start()
        return listening

    def stop(self) -> None:
        """End."""
        self._server.stop(patience=STOP_PATIENCE)
        self._postman.stop(STOP_PATIENCE)
        self._casting.cleanup()

    def _host(self) -> Host:
        return Host(
            instance=self._instance,
            catalog=Catalog(f"file://{self._state}/store", instance=self._instance, open_storage=open_storage),
            state_dir=self._state,
            database=DatabaseSettings(connection=Connection(socket="/nowhere", user="backup"), datadir=None),
        )


def _nobody(*_: object, **__: object) -> None:
    """Tell nobody."""


def _transport(wanted: Wanted) -> Any:
    return open_transport(bare_conf(), wanted.url)


# What the process as a whole does


class Attempts(logging.Handler):
    """Counts what oslo.messaging logs of attempts to connect that failed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.failed = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line."""
        self.failed += "is unreachable" in record.msg


class Crowd:
    """The agents of this process."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._attempts = Attempts()
        for name in ("oslo.messaging._drivers.impl_rabbit", "oslo_messaging._drivers.impl_rabbit"):
            logger = logging.getLogger(name)
            logger.addHandler(self._attempts)
            logger.propagate = False

    def start(self) -> list[float]:
        """Start all; gives the moments from which they listen, by the clock that a host's processes share."""
        names = [name_of(number) for number in range(self._wanted.first, self._wanted.first + self._wanted.count)]
        with ThreadPoolExecutor(STARTERS) as starters:
            return list(starters.map(self._start, names))

    def _start(self, name: str) -> float:
        return Agent(name, self._wanted).start()

    def look(self) -> dict[str, float]:
        """What this process takes, and has seen."""
        return {"private": private(), "threads": threading.active_count(), "failed": self._attempts.failed}


def name_of(number: int) -> str:
    """The instance id of the fleet's agent of that number."""
    return f"guest{number}"


def private() -> int:
    """This process's own memory, in KiB."""
    return memory(os.getpid(), "Private_Dirty") + memory(os.getpid(), "Private_Clean")


def say(**values: object) -> None:
    """One line of JSON for whoever started us."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Start what the first line asks for, and answer the further ones."""
    logging.getLogger().addHandler(logging.NullHandler())
    wanted = Wanted(**json.loads(sys.stdin.readline()))
    if wanted.lockstep:
        spread.FIRST_PAUSE, spread.LONGEST_PAUSE, spread.SHORTEST = 0.0, 0.0, 1.0
    crowd = Crowd(wanted)
    before = private()
    say(listening=crowd.start())
    for _ in sys.stdin:
        say(before=before, **crowd.look())
    os._exit(0)  # the threads would wait for requests, and for a broker that is gone


if __name__ == "__main__":
    main()
