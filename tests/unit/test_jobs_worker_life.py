"""A worker's start, its sleep and its end: what the dead left comes first, and what waits outlives it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import GuestagentError, StorageError
from guestagent.jobs import pause, worker
from guestagent.jobs import perform as performing
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.lock import only_job
from guestagent.jobs.pause import Pause
from guestagent.jobs.record import Failure, Job, State
from guestagent.progress import Watch
from tests.fakes.bench import PATIENCE
from tests.processes import eventually
from tests.unit.jobs_scene import MOMENT, Day, asked, interrupted

QUEUED, RUNNING, COMPLETED = State.QUEUED, State.RUNNING, State.COMPLETED
FAILED, CANCELLED = State.FAILED, State.CANCELLED


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause, "FIRST", 0.01)
    monkeypatch.setattr(pause, "LONGEST", 0.02)
    monkeypatch.setattr(performing, "LOOK", 0.01)


@pytest.fixture
def day(tmp_path: Path) -> Iterator[Day]:
    made = Day(Ledger(tmp_path / "state"))
    yield made
    made.close()


def now() -> datetime:
    return datetime.now(tz=UTC)


# The start


def test_what_dead_agents_left_is_settled_first(day: Day) -> None:
    job = interrupted(day.ledger, asked())
    waits, _ = day.ledger.accept(asked())

    def settle(give_up: bool) -> None:
        assert day.gate.jobs == []
        day.settled.append(give_up)
        day.ledger.fail(job.id, Failure("failed", "the process that ran it died"))

    day.settle = settle
    day.worker()
    day.ears.wait_for(job, FAILED)
    assert day.gate.wait().id == waits.id
    assert day.settled == [False]
    assert day.ears.states(job) == [FAILED]


@pytest.mark.parametrize("error", [StorageError("no store"), KeyError("surprise")], ids=["ours", "a bug"])
def test_what_cannot_be_settled_is_tried_again_and_jobs_are_done_meanwhile(day: Day, error: Exception) -> None:
    job, tries = interrupted(day.ledger, asked()), threading.Semaphore(0)
    away = True

    def settle(give_up: bool) -> None:
        tries.release()
        if away:
            raise error
        day.ledger.fail(job.id, Failure("failed", "it died"))

    day.settle = settle
    work = day.worker()
    for _ in range(3):
        assert tries.acquire(timeout=PATIENCE)
    day.done(work, asked())
    away = False
    day.ears.wait_for(job, FAILED)


def test_what_is_undecided_is_given_up_after_a_while(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settlement says that it went well, and left a backup that only the store can tell of."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    job = interrupted(day.ledger, asked())

    def settle(give_up: bool) -> None:
        day.settled.append(give_up)
        clock.offset += worker.UNSURE / 3
        if give_up:
            day.ledger.fail(job.id, Failure("failed", "it died"))

    day.settle = settle
    day.worker()
    day.ears.wait_for(job, FAILED)
    assert day.settled == [False, False, False, True]


class Clock:
    """The real one, and what a test adds."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._real = time.monotonic

    def __call__(self) -> float:
        return self._real() + self.offset


def test_a_command_that_died_since_is_cleaned_up_after_before_the_next_job(day: Day) -> None:
    work = day.worker()
    day.done(work, asked())
    assert day.settled == [False]
    died = interrupted(day.ledger, asked(origin="cli"))

    def settle(give_up: bool) -> None:
        day.settled.append(give_up)
        day.ledger.fail(died.id, Failure("failed", "it died"))

    day.settle = settle
    day.done(work, asked())
    day.ears.wait_for(died, FAILED)
    assert day.settled == [False, False]
    day.done(work, asked())
    assert day.settled == [False, False]


def test_nothing_is_done_while_there_is_nothing_to_do(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    """No turn of the thread's, and so no wake-up, without a reason."""
    work = day.worker()
    day.done(work, asked())
    assert eventually(lambda: work.running() is None)
    assert work._pause.left() is None
    waits: list[float | None] = []
    real = work._changed.wait

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return real(timeout)

    monkeypatch.setattr(work._changed, "wait", wait)
    day.done(work, asked())
    day.done(work, asked())
    assert set(waits) <= {None}


def test_after_a_trouble_that_is_over_the_pauses_are_short_again(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause, "LONGEST", 0.1)
    work, job = day.worker(), asked()
    day.ears.deaf = GuestagentError("no")
    work.submit(job)
    day.gate.wait()
    day.gate.go.release()
    day.ears.wait_until(lambda: day.ears.tried > 5)
    assert work._pause._next > pause.FIRST
    day.ears.deaf = None
    day.ears.wait_for(job, COMPLETED)
    assert eventually(lambda: work._pause._next == pause.FIRST)
    assert work._pause.left() is None


# The end


def test_a_stop_cancels_what_runs_tells_of_it_and_leaves_what_waits(day: Day) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    day.gate.wait()
    waits = work.submit(asked())
    assert work.stop("stopped by SIGTERM", timeout=PATIENCE)
    assert not work.healthy()
    ended = day.ledger.get(job.id)
    assert (ended.state, ended.told) == (CANCELLED, True)
    assert ended.failure == Failure("cancelled", "stopped by SIGTERM", "", 10)
    assert day.ears.states(job) == [QUEUED, RUNNING, CANCELLED]
    assert day.ledger.get(waits.id) == waits
    assert work.submit(asked()).state is QUEUED, "a request that still comes is for the next agent"
    day.worker()
    assert day.gate.wait().id == waits.id


def test_a_stop_while_a_job_waits_for_the_lock_leaves_it_queued(day: Day) -> None:
    work, job = day.worker(), asked()
    with only_job(day.ledger.state_dir, "backup 2f"):
        work.submit(job)
        assert eventually(lambda: work.running() == job)
        assert work.stop("the end", timeout=PATIENCE)
    assert day.ledger.get(job.id) == job
    assert day.ears.states(job) == [QUEUED]
    day.worker()
    day.gate.wait()


def test_a_stop_of_an_idle_worker_and_of_one_that_never_began(day: Day) -> None:
    work = day.worker(start=False)
    assert not work.healthy()
    assert work.stop("the end", timeout=0)
    busy = day.worker()
    assert busy.stop("the end", timeout=PATIENCE)
    assert busy.stop("again", timeout=0)


def test_a_story_that_does_not_stop_is_said_to_run_still(day: Day) -> None:
    release = threading.Event()

    def deaf(job: Job, watch: Watch) -> dict[str, Any]:
        day.gate.begun.release()
        assert release.wait(PATIENCE)
        return {}

    work = day.worker(start=False)
    work._story = deaf
    work.start()
    work.submit(job := asked())
    assert day.gate.begun.acquire(timeout=PATIENCE)
    try:
        assert work.stop("the end", timeout=0.01) is False
        assert day.ledger.get(job.id).state is RUNNING
    finally:
        release.set()
    assert work.stop("the end", timeout=PATIENCE)
    assert day.ledger.get(job.id).state is COMPLETED, "it was not heard, so it is done"


def test_a_worker_is_healthy_while_its_story_looks_at_its_watch(day: Day) -> None:
    work = day.worker(hang=0.3)
    assert work.healthy()
    looks = threading.Event()

    def story(job: Job, watch: Watch) -> dict[str, Any]:
        day.gate.begun.release()
        assert looks.wait(PATIENCE)
        watch.check()
        while not day.gate.go.acquire(timeout=0.01):
            watch.check()
        return {}

    work._story = story
    work.submit(job := asked())
    assert day.gate.begun.acquire(timeout=PATIENCE)
    assert eventually(lambda: not work.healthy())
    looks.set()
    assert eventually(work.healthy)
    day.gate.go.release()
    day.ears.wait_for(job, COMPLETED)
    assert work.healthy()


# Pauses


def test_pauses_double_up_to_the_longest_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause, "FIRST", 1.0)
    monkeypatch.setattr(pause, "LONGEST", 3.0)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    one = Pause()
    assert one.left() is None
    for jitter, wanted in ((1.0, 1.0), (0.5, 1.0), (1.0, 3.0), (1.0, 3.0)):
        monkeypatch.setattr(random, "uniform", _jitter(jitter))
        one.longer()
        assert one.left() == wanted
    monkeypatch.setattr(time, "monotonic", lambda: 200.0)
    assert one.left() == 0
    one.over()
    assert one.left() is None


def _jitter(value: float) -> Callable[[float, float], float]:
    def uniform(low: float, high: float) -> float:
        assert (low, high) == (0.5, 1.0)
        return value

    return uniform


def test_jobs_of_other_days_do_no_harm(day: Day) -> None:
    """A ledger with every kind of record, and a worker that comes to it."""
    for number, state in enumerate(State):
        job = asked(created=MOMENT + timedelta(seconds=number), origin="cli", told=True)
        day.ledger.accept(job)
        if state is RUNNING:
            day.ledger.begin(job.id)
        elif state.ended:
            day.ledger.change(job.id, QUEUED, lambda one: replace(one, state=state, finished=MOMENT))  # noqa: B023
    work = day.worker(wait_limit=1e9)
    assert day.gate.wait().created == MOMENT
    day.gate.go.release()
    day.done(work, asked())
