"""The worker: one job after the other, none lost, whatever comes in and whoever has the host."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Busy, Cancelled, ConfigError, GuestagentError, NotFound, Refused, StorageError
from guestagent.jobs import pause
from guestagent.jobs import perform as performing
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Failure, Job, Kind, State, Step
from tests.fakes.bench import PATIENCE
from tests.processes import eventually
from tests.unit.jobs_scene import Day, asked, full_disk

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


# One job


def test_a_request_becomes_a_job_that_is_done_and_told(day: Day) -> None:
    work, job = day.worker(), asked()
    assert work.running() is None
    assert work.submit(job) == job
    begun = day.gate.wait()
    assert (begun.id, begun.state) == (job.id, RUNNING)
    assert work.running() == job
    assert work.get(job.id) == begun
    assert work.all() == [begun]
    with pytest.raises(Busy, match=rf"busy with delete {job.subject} \(job {job.id}\) \(pid "):
        only_job(day.ledger.state_dir, "x").__enter__()
    day.gate.go.release()
    done = day.ears.wait_for(job, COMPLETED)
    assert done.result == {"deleted": [job.id]}
    assert eventually(lambda: day.ledger.get(job.id).told)
    assert work.running() is None
    assert day.ears.states(job) == [QUEUED, RUNNING, COMPLETED]
    with only_job(day.ledger.state_dir, "x"):
        pass


def test_phases_are_told_and_how_far_is_known(day: Day) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    day.gate.wait()
    day.gate.watches[0].phase("delete", total=10)
    day.ears.wait_until(lambda: [one.phase for one in day.ears.heard] == ["", "", "delete"])
    assert eventually(lambda: work.step(job.id) == Step("delete", 0, 10))
    day.gate.go.release()
    day.ears.wait_for(job, COMPLETED)
    assert work.step(job.id) is None


@pytest.mark.parametrize(
    ("error", "state", "what"),
    [
        (StorageError("no store"), FAILED, "no store"),
        (Cancelled("the story stopped itself"), CANCELLED, "the story stopped itself"),
        (KeyError("surprise"), FAILED, "KeyError: 'surprise'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_job_that_fails_is_told_and_the_next_one_is_done(
    day: Day, caplog: pytest.LogCaptureFixture, error: Exception, state: State, what: str
) -> None:
    def fail(_: Job) -> dict[str, Any]:
        raise error

    work, job = day.worker(), asked()
    day.gate.outcome = fail
    work.submit(job)
    day.gate.go.release()
    ended = day.ears.wait_for(job, state)
    assert ended.failure is not None
    assert ended.failure.what == what
    assert day.ears.states(job) == [QUEUED, RUNNING, state]
    assert ("this is a bug" in caplog.text) == isinstance(error, KeyError)
    assert what in caplog.text
    day.gate.outcome = lambda _: {}
    day.gate.wait()
    day.done(work, asked())


def test_the_watch_has_the_limit_of_the_moment(day: Day) -> None:
    day.limit = lambda: 0.02
    work, job = day.worker(), asked()
    work.submit(job)
    failure = day.ears.wait_for(job, FAILED).failure
    assert failure is not None
    assert failure.code == "stalled"


def test_a_limit_that_cannot_be_had_fails_the_job_before_it_begins(day: Day) -> None:
    """The configuration may have become a bad one; a job that is said to run and does not would stay so."""

    def bad() -> float:
        raise ConfigError("a bad configuration")

    day.limit = bad
    work, job = day.worker(), asked()
    work.submit(job)
    assert day.ears.wait_for(job, FAILED).failure == Failure("config", "a bad configuration", "", 2)
    assert day.ears.states(job) == [QUEUED, FAILED]


# The queue


def test_jobs_are_done_one_after_the_other(day: Day) -> None:
    work = day.worker()
    jobs = [work.submit(asked()) for _ in range(3)]
    for job in jobs:
        assert day.gate.wait().id == job.id
        assert [one.state for one in work.all() if one.state is RUNNING] == [RUNNING]
        day.gate.go.release()
    day.ears.wait_for(jobs[-1], COMPLETED)


def test_whoever_comes_to_a_full_queue_is_told_what_runs(day: Day) -> None:
    work, first = day.worker(queue_size=2), asked()
    work.submit(first)
    day.gate.wait()
    waiting = [work.submit(asked()) for _ in range(2)]
    late = asked()
    with pytest.raises(Busy, match=rf"is busy with delete .* \(job {first.id}\), and 2 jobs wait; ask again later"):
        work.submit(late)
    with pytest.raises(NotFound):
        work.get(late.id)
    assert work.submit(waiting[1]) == waiting[1], "the same request again needs no room"
    work.cancel(waiting[0].id, "make room")
    assert work.submit(late) == late


def test_room_made_by_a_command_counts_too(day: Day) -> None:
    work = day.worker(queue_size=1)
    work.submit(asked())
    day.gate.wait()
    waits = work.submit(asked())
    Ledger(day.ledger.state_dir).cancel(waits.id, "by a command")
    late = work.submit(asked())
    day.gate.go.release(2)
    day.ears.wait_for(late, COMPLETED)
    assert day.ears.states(waits) == [QUEUED, CANCELLED]


def test_a_full_queue_before_the_work_has_begun(day: Day) -> None:
    work = day.worker(queue_size=1, start=False)
    work.submit(asked())
    with pytest.raises(Busy, match="this host is not at work yet, and 1 jobs wait"):
        work.submit(asked())


def test_the_same_request_twice_is_one_job(day: Day) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    begun = day.gate.wait()
    assert work.submit(job) == begun
    day.gate.go.release()
    done = day.ears.wait_for(job, COMPLETED)
    late = replace(job, created=now() - timedelta(days=8), deadline=now() - timedelta(days=7))
    assert work.submit(late).result == done.result
    day.done(work, asked())
    assert len(day.gate.jobs) == 2


def test_the_same_request_from_many_threads_at_once_is_one_job(day: Day) -> None:
    work, job = day.worker(), asked()
    start, given = threading.Barrier(8), []

    def submit() -> None:
        start.wait(PATIENCE)
        given.append(work.submit(job).id)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert given == [job.id] * 8
    day.gate.go.release(8)
    day.ears.wait_for(job, COMPLETED)
    day.done(work, asked())
    assert len(day.gate.jobs) == 2
    assert day.ears.states(job) == [QUEUED, RUNNING, COMPLETED]


def test_another_request_under_the_same_id_is_refused(day: Day) -> None:
    work, job = day.worker(start=False), asked()
    work.submit(job)
    with pytest.raises(Refused, match="taken by another request"):
        work.submit(asked(id=job.id, request={"cascade": True}))


def test_what_waits_is_taken_up_at_the_next_start(day: Day) -> None:
    before = day.worker(start=False)
    jobs = [before.submit(asked(created=now() + timedelta(seconds=number))) for number in (2, 1)]
    day.worker()
    assert day.gate.wait().id == jobs[1].id
    day.gate.go.release()
    assert day.gate.wait().id == jobs[0].id


def test_a_request_that_was_written_down_but_not_answered_is_taken_up_when_it_comes_again(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk failed after the record was there, so its requester was told of the failure, and asks again."""
    work, job = day.worker(), asked()
    with monkeypatch.context() as patch:
        accept = day.ledger.accept

        def fail(one: Job) -> Any:
            accept(one)
            raise GuestagentError("cannot write to state_dir")

        patch.setattr(day.ledger, "accept", fail)
        with pytest.raises(GuestagentError):
            work.submit(job)
    work.submit(job)
    day.gate.wait()
    day.gate.go.release()
    day.ears.wait_for(job, COMPLETED)


def test_a_request_that_cannot_be_written_down_is_not_accepted(day: Day) -> None:
    work, job = day.worker(), asked()
    with full_disk(), pytest.raises(GuestagentError, match="No space left"):
        work.submit(job)
    assert work.all() == day.ears.heard == []
    day.done(work, job)


def test_a_job_whose_record_cannot_be_read_for_a_while_is_not_forgotten(
    day: Day, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work, job = day.worker(), asked()
    get = day.ledger.get
    failures: list[str] = []

    def fail(wanted: str) -> Job:
        if threading.current_thread().name == "worker" and len(failures) < 2:
            failures.append(wanted)
            raise GuestagentError("cannot read state_dir: too many open files")
        return get(wanted)

    monkeypatch.setattr(day.ledger, "get", fail)
    work.submit(job)
    day.gate.wait()
    day.gate.go.release()
    day.ears.wait_for(job, COMPLETED)
    assert failures == [job.id, job.id]
    assert "the worker goes on after an error" in caplog.text


# Deadlines


def test_a_request_after_its_deadline_is_refused(day: Day) -> None:
    work, late = day.worker(start=False), asked(deadline=now() - timedelta(seconds=1))
    with pytest.raises(Refused, match=rf"the deadline of this request was {late.deadline:%Y-%m-%dT%H:%M:%S}Z; send"):
        work.submit(late)
    assert work.all() == []


def test_a_job_that_waits_past_its_deadline_fails(day: Day) -> None:
    job = day.worker(start=False).submit(asked(deadline=now() + timedelta(seconds=60)))
    day.ledger.change(job.id, QUEUED, lambda one: replace(one, deadline=now() - timedelta(seconds=1)))
    day.worker()
    failure = day.ears.wait_for(job, FAILED).failure
    assert failure is not None
    assert (failure.code, failure.hint) == ("refused", "send a new one")
    assert day.ears.states(job) == [QUEUED, FAILED]
    assert day.gate.jobs == []


def test_a_job_that_has_waited_for_too_long_fails(day: Day) -> None:
    job = asked(created=now() - timedelta(seconds=100))
    day.ledger.accept(job)
    day.worker(wait_limit=99)
    failure = day.ears.wait_for(job, FAILED).failure
    assert failure is not None
    assert failure.what == f"this request has waited since {job.created:%Y-%m-%dT%H:%M:%S}Z"


def test_a_job_that_has_waited_for_less_is_done(day: Day) -> None:
    job = asked(created=now() - timedelta(seconds=100), deadline=now() + timedelta(hours=1))
    day.ledger.accept(job)
    day.worker(wait_limit=200)
    day.gate.wait()


def test_a_clock_that_stepped_back_makes_no_job_too_old(day: Day) -> None:
    job = asked(created=now() + timedelta(hours=1))
    day.worker(wait_limit=10).submit(job)
    day.gate.wait()


# Beside the commands of the host


def test_a_job_waits_for_a_command_that_works(day: Day, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    work, job = day.worker(), asked()
    with only_job(day.ledger.state_dir, "backup 2f"):
        work.submit(job)
        assert eventually(lambda: caplog.text.count("waits: this host is busy with backup 2f") > 1)
        assert work.running() == job
        assert work.get(job.id).state is QUEUED
        assert day.gate.jobs == []
    day.gate.wait()


def test_a_verify_waits_for_nobody(day: Day) -> None:
    work, job = day.worker(), asked(Kind.VERIFY)
    with only_job(day.ledger.state_dir, "backup 2f"):
        work.submit(job)
        day.gate.wait()
        day.gate.go.release()
        day.ears.wait_for(job, COMPLETED)


def test_a_job_that_waits_for_the_lock_can_be_cancelled(day: Day) -> None:
    work, job = day.worker(), asked()
    with only_job(day.ledger.state_dir, "backup 2f"):
        work.submit(job)
        assert eventually(lambda: work.running() == job)
        assert work.cancel(job.id, "enough").state is CANCELLED
        day.ears.wait_for(job, CANCELLED)
        assert eventually(lambda: work.running() is None)
    day.done(work, asked())
    assert day.ears.states(job) == [QUEUED, CANCELLED]


def test_a_job_that_waits_for_the_lock_may_be_cancelled_by_a_command(day: Day) -> None:
    work, job = day.worker(), asked()
    with only_job(day.ledger.state_dir, "backup 2f"):
        work.submit(job)
        Ledger(day.ledger.state_dir).cancel(job.id, "by a command")
        day.ears.wait_for(job, CANCELLED)


def test_a_job_that_is_cancelled_in_the_moment_before_it_begins(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    work, job = day.worker(), asked()
    begin = day.ledger.begin

    def late(wanted: str) -> Job:
        day.ledger.cancel(wanted, "just in time")
        return begin(wanted)

    monkeypatch.setattr(day.ledger, "begin", late)
    work.submit(job)
    day.ears.wait_for(job, CANCELLED)
    assert day.ears.states(job) == [QUEUED, CANCELLED]
    assert day.gate.jobs == []


def test_a_lock_that_cannot_be_had_fails_the_job(day: Day) -> None:
    work, job = day.worker(), asked()
    (day.ledger.state_dir / "lock").mkdir(parents=True)
    work.submit(job)
    failure = day.ears.wait_for(job, FAILED).failure
    assert failure is not None
    assert "cannot write to state_dir" in failure.what
