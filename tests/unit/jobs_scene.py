"""What the tests of jobs share: requests of every kind, a process that is gone, a disk that is full, a worker's day."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import durable
from guestagent.jobs import room
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job, Kind, State
from guestagent.jobs.worker import Worker
from guestagent.progress import Watch
from guestagent.streams import orphans
from tests.fakes.bench import PATIENCE

MOMENT = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
SOMETHING = "99999999-9999-4999-8999-999999999999"
ASKED: dict[Kind, dict[str, Any]] = {
    Kind.BACKUP: {"name": "nightly", "description": "", "parent": None, "parent_checksum": None},
    Kind.RESTORE: {
        "source": SOMETHING,
        "checksum": None,
        "replace": False,
        "pristine": False,
        "start": None,
        "datadir": None,
    },
    Kind.VERIFY: {"backup_id": SOMETHING},
    Kind.DELETE: {"backup_id": SOMETHING, "cascade": False},
}

Change = tuple[str, State, str]


def asked(kind: Kind = Kind.DELETE, *, id: str = "", request: Mapping[str, Any] | None = None, **more: Any) -> Job:
    """A request that has just come in, by RPC; ``request`` is what differs from the plainest one."""
    now = datetime.now(tz=UTC)
    fields = {"created": now.replace(microsecond=now.microsecond // 1000 * 1000), "origin": "rpc", **more}
    return Job(id or str(uuid.uuid4()), kind, ASKED[kind] | dict(request or {}), **fields)


def dead() -> str:
    """The name of a process that ran a job, and is gone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = orphans.Name.of(process.pid)
    assert name is not None
    return str(name)


def not_us() -> str:
    """A name with our pid, of a process that had it before us."""
    return str(replace(orphans.ourselves(), start=1))


def interrupted(ledger: Ledger, job: Job, *, phase: str = "") -> Job:
    """The job, accepted and begun by a process that is gone."""
    record, _ = ledger.accept(job)
    return ledger.change(record.id, State.QUEUED, lambda one: replace(one.begun(MOMENT, not_us()), phase=phase))


@contextmanager
def full_disk(*, but: Callable[[str], bool] = lambda name: False, kept: bool = False) -> Iterator[None]:
    """No durable file can be written meanwhile, except those that ``but`` says, and what has room ``kept`` for it.

    Without that room it is a disk that takes nothing at all, for whatever reason.
    """
    write, spend = durable.write, room.spend

    def refuse(path: Any, data: bytes, **options: Any) -> None:
        if not but(path.name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, **options)

    def refuse_room(spent: Path, path: Path, data: bytes) -> bool:
        if not (kept or but(path.name)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return spend(spent, path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "write", refuse)
        patch.setattr(room, "spend", refuse_room)
        yield


class Gate:
    """A story that begins, waits until it is let go or its watch says that it must end, and then has an outcome."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.jobs: list[Job] = []
        self.watches: list[Watch] = []
        self.outcome: Callable[[Job], dict[str, Any]] = lambda job: {"deleted": [job.id]}

    def __call__(self, job: Job, watch: Watch) -> dict[str, Any]:
        self.jobs.append(job)
        self.watches.append(watch)
        self.begun.release()
        for _ in range(int(PATIENCE / 0.01)):
            watch.check()
            if self.go.acquire(timeout=0.01):
                return self.outcome(job)
        raise AssertionError("nobody let the story go on")

    def wait(self) -> Job:
        """Wait until the next story has begun; gives its job."""
        assert self.begun.acquire(timeout=PATIENCE), "no job has begun"
        return self.jobs[-1]


class Ears:
    """Hears of every change; ``deaf`` is what it raises, or None."""

    def __init__(self) -> None:
        self.heard: list[Job] = []
        self.deaf: Exception | None = None
        self.tried = 0
        self._news = threading.Condition()

    def __call__(self, job: Job) -> None:
        with self._news:
            self.tried += 1
            self._news.notify_all()
            if self.deaf is not None:
                raise self.deaf
            self.heard.append(job)

    def wait_until(self, heard: Callable[[], bool]) -> None:
        """Wait until what was heard is as wanted."""
        with self._news:
            assert self._news.wait_for(heard, PATIENCE), [(job.state.value, job.phase) for job in self.heard]

    def wait_for(self, job: Job, state: State) -> Job:
        """Wait until that job is said to be so; gives the record."""
        self.wait_until(lambda: state in self.states(job))
        return next(one for one in self.heard if (one.id, one.state) == (job.id, state))

    def states(self, job: Job) -> list[State]:
        """What was heard of one job."""
        return [one.state for one in self.heard if one.id == job.id]


class Day:
    """A worker with its ledger, a story that waits at a gate, and whoever listens; ``close`` it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.gate = Gate()
        self.ears = Ears()
        self.settled: list[bool] = []
        self.settle: Callable[[bool], object] = self.settled.append
        self.limit: Callable[[], float] = lambda: 0.0
        self._workers: list[Worker] = []

    def worker(self, *, start: bool = True, **options: Any) -> Worker:
        """A worker of this day, already at work."""
        made = Worker(
            self.ledger,
            self.gate,
            on_change=self.ears,
            **{"settle": self._settle, "limit": self._limit, **options},
        )
        self._workers.append(made)
        if start:
            made.start()
        return made

    def _settle(self, give_up: bool) -> object:
        return self.settle(give_up)

    def _limit(self) -> float:
        return self.limit()

    def close(self) -> None:
        """End all workers, whatever they wait for."""
        for worker in self._workers:
            assert worker.stop("the day is over", timeout=PATIENCE) is True

    def done(self, worker: Worker, job: Job) -> Job:
        """Submit a job and see it through."""
        worker.submit(job)
        self.gate.wait()
        self.gate.go.release()
        return self.ears.wait_for(job, State.COMPLETED)
