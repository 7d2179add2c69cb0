"""What others hear of a worker's jobs: each step once it is durable, each end once, on a full disk too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from guestagent.errors import Busy, GuestagentError, NotFound, Refused
from guestagent.jobs import pause
from guestagent.jobs import perform as performing
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Failure, Job, State
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


# Cancelling


def test_a_job_that_runs_is_cancelled(day: Day) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    day.gate.wait()
    assert work.cancel(job.id, "enough").state is RUNNING
    failure = day.ears.wait_for(job, CANCELLED).failure
    assert failure == Failure("cancelled", "enough", "", 10)
    assert work.cancel(job.id, "again").failure == failure


def test_a_job_that_runs_is_cancelled_by_a_command(day: Day) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    day.gate.wait()
    Ledger(day.ledger.state_dir).cancel(job.id, "by a command")
    failure = day.ears.wait_for(job, CANCELLED).failure
    assert failure == Failure("cancelled", "by a command", "", 10)


def test_a_job_that_waits_is_cancelled_and_told_at_once(day: Day) -> None:
    """What runs may run for hours."""
    work, first, second = day.worker(), asked(), asked()
    work.submit(first)
    day.gate.wait()
    work.submit(second)
    assert work.cancel(second.id, "enough").state is CANCELLED
    assert day.ears.states(second) == [QUEUED, CANCELLED]
    assert day.ledger.get(second.id).told
    day.gate.go.release()
    day.ears.wait_for(first, COMPLETED)
    day.done(work, asked())
    assert day.ears.states(second) == [QUEUED, CANCELLED]


def test_a_job_that_a_command_cancelled_is_told_when_its_turn_comes(day: Day) -> None:
    work, first, second = day.worker(), asked(), asked()
    work.submit(first)
    day.gate.wait()
    work.submit(second)
    Ledger(day.ledger.state_dir).cancel(second.id, "by a command")
    day.gate.go.release()
    day.ears.wait_for(second, CANCELLED)
    day.done(work, asked())
    assert second.id not in [job.id for job in day.gate.jobs]


def test_a_job_that_is_queued_twice_is_done_once(day: Day) -> None:
    work = day.worker(start=False)
    job = work.submit(asked())
    work._queue.append(job.id)
    work.start()
    day.gate.wait()
    day.gate.go.release()
    day.ears.wait_for(job, COMPLETED)
    day.done(work, asked())
    assert len(day.gate.jobs) == 2
    assert day.ears.states(job) == [QUEUED, RUNNING, COMPLETED]


def test_a_job_cancelled_while_no_agent_was_there_is_told_at_the_start(day: Day) -> None:
    job = day.worker(start=False).submit(asked())
    Ledger(day.ledger.state_dir).cancel(job.id, "by a command")
    day.worker()
    day.ears.wait_for(job, CANCELLED)
    assert day.gate.jobs == []


def test_a_job_that_runs_is_cancelled_even_on_a_full_disk(day: Day) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    day.gate.wait()
    with full_disk():
        with pytest.raises(GuestagentError, match="No space left"):
            work.cancel(job.id, "enough")
        assert eventually(lambda: day.gate.watches[0].cancel._reason == "enough")
    day.ears.wait_for(job, CANCELLED)


def test_nobody_cancels_what_is_not_there(day: Day) -> None:
    with pytest.raises(NotFound):
        day.worker().cancel(asked().id, "x")


# Telling


@pytest.mark.parametrize("error", [GuestagentError("the disk is full"), KeyError("surprise")], ids=["ours", "a bug"])
def test_a_listener_that_fails_costs_no_job_and_hears_of_the_end_later(
    day: Day, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    day.ears.deaf = error
    work, job = day.worker(), asked()
    assert work.submit(job) == job
    day.gate.wait()
    day.gate.watches[0].phase("delete")
    assert eventually(lambda: day.ledger.get(job.id).phase == "delete")
    day.gate.go.release()
    assert eventually(lambda: day.ledger.get(job.id).state is COMPLETED)
    tried = day.ears.tried
    day.ears.wait_until(lambda: day.ears.tried > tried + 2)
    assert not day.ledger.get(job.id).told
    day.ears.deaf = None
    day.ears.wait_for(job, COMPLETED)
    assert eventually(lambda: day.ledger.get(job.id).told)
    assert day.ears.states(job) == [COMPLETED]
    assert f"cannot tell that {job} is completed" in caplog.text
    day.done(work, asked())


def test_a_cancelled_job_that_could_not_be_told_is_told_by_and_by(day: Day) -> None:
    """Even if the worker had nothing to do and slept."""
    work, first, second = day.worker(), asked(), asked()
    work.submit(first)
    day.gate.wait()
    work.submit(second)
    day.ears.deaf = GuestagentError("no")
    work.cancel(second.id, "enough")
    assert not day.ledger.get(second.id).told
    day.ears.deaf = None
    day.gate.go.release()
    day.ears.wait_for(second, CANCELLED)


def test_an_end_that_was_told_but_not_noted_is_told_again(day: Day) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    day.gate.wait()
    day.gate.go.release()
    with full_disk(but=lambda name: day.ledger.get(job.id).state is not COMPLETED):
        day.ears.wait_until(lambda: day.ears.states(job).count(COMPLETED) > 1)
    assert eventually(lambda: day.ledger.get(job.id).told)
    assert day.ears.states(job)[:3] == [QUEUED, RUNNING, COMPLETED]


def test_late_ends_are_told_once_more_at_the_start(day: Day) -> None:
    late, old, untold = asked(), asked(), asked()
    for job, ended in ((late, now()), (old, now() - timedelta(days=1, seconds=1)), (untold, now())):
        day.ledger.accept(job)
        day.ledger.begin(job.id)
        day.ledger.complete(job.id, {})
        day.ledger.change(job.id, COMPLETED, lambda one: replace(one, told=True, finished=ended))  # noqa: B023
    day.ledger.change(untold.id, COMPLETED, lambda one: replace(one, told=False))
    work = day.worker()
    day.done(work, asked())
    assert [day.ears.states(job) for job in (late, old, untold)] == [[COMPLETED], [], [COMPLETED]]
    assert day.ledger.get(untold.id).told


def test_each_step_is_durable_before_it_is_told(day: Day) -> None:
    found: list[bool] = []
    hear = day.ears.__call__

    def look(job: Job) -> None:
        record = day.ledger.get(job.id)
        found.append((record.state, record.phase) == (job.state, job.phase))
        hear(job)

    work, job = day.worker(start=False), asked()
    work._on_change = look
    work.start()
    work.submit(job)
    day.gate.wait()
    day.gate.go.release()
    day.ears.wait_for(job, COMPLETED)
    assert found == [True] * 3


# A full disk


def test_what_was_reached_is_noted_when_the_disk_has_room_again(day: Day, caplog: pytest.LogCaptureFixture) -> None:
    work, job = day.worker(hang=0.05), asked()
    work.submit(job)
    day.gate.wait()
    with full_disk():
        day.gate.go.release()
        assert eventually(lambda: caplog.text.count("cannot note how a job ended") > 5)
        assert day.ledger.get(job.id).state is RUNNING
        with pytest.raises(Busy):
            only_job(day.ledger.state_dir, "x").__enter__()
        assert work.healthy(), "it waits, and does not hang"
    assert day.ears.wait_for(job, COMPLETED).result == {"deleted": [job.id]}


def test_a_job_that_cannot_begin_on_a_full_disk_fails_when_there_is_room(
    day: Day, caplog: pytest.LogCaptureFixture
) -> None:
    work, job = day.worker(start=False), asked()
    work.submit(job)
    with full_disk():
        work.start()
        assert eventually(lambda: "No space left" in caplog.text)
    ended = day.ears.wait_for(job, FAILED)
    assert ended.failure is not None
    assert "No space left" in ended.failure.what


def test_a_request_that_is_refused_can_be_remembered_as_a_job_that_failed(day: Day) -> None:
    work, job = day.worker(), asked()
    record = work.refuse(job, Refused("not here", hint="there"))
    assert (record.state, str(record.failure)) == (FAILED, "not here; there")
    assert day.ears.wait_for(job, FAILED) == record
    assert work.get(job.id).told
    assert work.submit(job) == work.get(job.id)


def test_a_stop_on_a_full_disk_ends(day: Day) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    day.gate.wait()
    with full_disk():
        assert work.stop("the end", timeout=PATIENCE)
    assert day.ledger.get(job.id).state is RUNNING, "the next one tells how it ended"


@pytest.mark.parametrize("what", ["gone", "spoiled"])
def test_a_record_that_somebody_took_away_does_not_stop_the_worker(day: Day, what: str) -> None:
    work, job = day.worker(), asked()
    work.submit(job)
    day.gate.wait()
    path = day.ledger.state_dir / "jobs" / f"{job.id}.json"
    path.unlink() if what == "gone" else path.write_bytes(b"{")
    day.gate.go.release()
    day.done(work, asked())
