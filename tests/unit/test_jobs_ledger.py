"""The ledger: what every process of the host may ask and change of its jobs."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from guestagent.errors import Busy, NotFound, Refused, UsageError
from guestagent.jobs.ledger import Ledger, is_interrupted, job_id
from guestagent.jobs.record import Failure, Job, State, Step
from guestagent.streams import orphans
from tests.fakes.bench import PATIENCE
from tests.unit.jobs_scene import MOMENT, asked, dead, full_disk, interrupted, not_us

ROOT = os.geteuid() == 0
NOBODY = 65534
WHY = Failure("storage", "no", "wait", 8)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state")


def place(ledger: Ledger) -> Path:
    return ledger.state_dir / "jobs"


def files(ledger: Ledger) -> set[str]:
    """What lies in the directory of the jobs, beside its lock."""
    return set(os.listdir(place(ledger))) - {".lock"}


def running(ledger: Ledger, job: Job) -> Job:
    """The job, begun by this process."""
    ledger.accept(job)
    return ledger.begin(job.id)


def ended(ledger: Ledger, job: Job, *, told: bool = True) -> Job:
    running(ledger, job)
    done = ledger.complete(job.id, {"deleted": []})
    return ledger.tell(job.id) if told else done


# Ids


def test_an_id_is_a_uuid() -> None:
    assert job_id("ABCDEF12-1111-4111-8111-111111111111") == "abcdef12-1111-4111-8111-111111111111"


@pytest.mark.parametrize("text", ["", "x", "../../etc/passwd", "1" * 36, "{11111111-1111-4111-8111-111111111111}"])
def test_anything_else_is_no_id(ledger: Ledger, text: str) -> None:
    with pytest.raises(UsageError, match=r"not a job id: .*; give the UUID"):
        ledger.get(text)


def test_no_job_of_that_id(ledger: Ledger) -> None:
    wanted = asked().id
    for ask in (ledger.get, ledger.begin, ledger.tell, lambda one: ledger.cancel(one, "x")):
        with pytest.raises(NotFound, match=rf"no job {wanted} on this host; see `job list`"):
            ask(wanted)
    assert ledger.all() == []
    assert ledger.step(wanted) is None


def test_no_job_ever(ledger: Ledger) -> None:
    assert ledger.all() == ledger.interrupted() == []
    assert not ledger.state_dir.exists()


# A life


def test_a_job_from_its_request_to_its_end(ledger: Ledger) -> None:
    job = asked()
    assert ledger.accept(job) == (job, True)
    assert ledger.get(job.id) == job
    begun = ledger.begin(job.id)
    assert (begun.state, begun.runner) == (State.RUNNING, str(orphans.ourselves()))
    assert begun.started is not None
    assert ledger.enter(job.id, "delete") == replace(begun, phase="delete")
    done = ledger.complete(job.id, {"deleted": ["x"]})
    assert (done.state, done.phase, done.result, done.told) == (State.COMPLETED, "delete", {"deleted": ["x"]}, False)
    assert done.finished is not None
    assert done.finished >= begun.started >= job.created
    assert ledger.get(job.id) == done
    assert ledger.tell(job.id) == replace(done, told=True) == ledger.get(job.id)


def test_what_is_not_in_the_right_state_stays(ledger: Ledger) -> None:
    job = asked()
    ledger.accept(job)
    assert ledger.enter(job.id, "x") == ledger.complete(job.id, {}) == ledger.fail(job.id, WHY) == job
    assert ledger.tell(job.id).told is False
    begun = ledger.begin(job.id)
    assert ledger.begin(job.id) == ledger.fail(job.id, WHY, state=State.QUEUED) == begun
    failed = ledger.fail(job.id, WHY)
    assert (failed.state, failed.failure) == (State.FAILED, WHY)
    assert ledger.complete(job.id, {}) == ledger.begin(job.id) == ledger.cancel(job.id, "x") == failed


def test_a_queued_job_can_fail_too(ledger: Ledger) -> None:
    job, _ = ledger.accept(asked())
    assert ledger.fail(job.id, WHY, state=State.QUEUED).state is State.FAILED


def test_a_told_end_is_not_written_again(ledger: Ledger) -> None:
    job = ended(ledger, asked())
    with full_disk():
        assert ledger.tell(job.id) == job


def test_the_end_is_noted_only_for_the_runner_that_is_meant(ledger: Ledger) -> None:
    """Whoever settles a dead job may be overtaken by somebody who has begun it anew."""
    gone = interrupted(ledger, asked(origin="cli"))
    begun = ledger.open(gone)
    assert ledger.fail(gone.id, WHY, runner=gone.runner) == begun
    assert ledger.complete(gone.id, {}, runner=gone.runner) == begun == ledger.get(gone.id)
    assert ledger.fail(gone.id, WHY, runner=begun.runner).state is State.FAILED


def test_jobs_are_listed_from_the_oldest_on(ledger: Ledger) -> None:
    made = [asked(created=MOMENT + timedelta(seconds=number)) for number in (3, 1, 2)]
    for job in made:
        ledger.accept(job)
    assert ledger.all() == [made[1], made[2], made[0]]


# The same request


def test_the_same_request_again_is_the_same_job_whatever_became_of_it(ledger: Ledger) -> None:
    job, _ = ledger.accept(asked())
    again = replace(job, created=MOMENT, origin="trove")
    assert ledger.accept(again) == (job, False)
    begun = ledger.begin(job.id)
    assert ledger.accept(again) == (begun, False)
    failed = ledger.fail(job.id, WHY)
    assert ledger.accept(again) == (failed, False)


def test_the_id_of_another_request_is_taken(ledger: Ledger) -> None:
    job, _ = ledger.accept(asked())
    with pytest.raises(Refused, match=rf"id {job.id} is taken by another request; send this one with an id of its own"):
        ledger.accept(asked(id=job.id, request={"cascade": True}))
    assert ledger.all() == [job]


def test_many_at_once_make_one_job(ledger: Ledger) -> None:
    job, new = asked(), []
    start = threading.Barrier(8)

    def accept() -> None:
        start.wait(PATIENCE)
        new.append(ledger.accept(job)[1])

    threads = [threading.Thread(target=accept) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(new) == [False] * 7 + [True]


def test_two_processes_change_records_one_after_the_other(ledger: Ledger) -> None:
    job, _ = ledger.accept(asked())
    with (place(ledger) / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: ledger.begin(job.id))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert ledger.get(job.id) == job
    thread.join(PATIENCE)
    assert ledger.get(job.id).state is State.RUNNING


# Commands, which begin at once


def test_a_command_begins_its_job_at_once(ledger: Ledger) -> None:
    job = asked(origin="cli", told=True)
    begun = ledger.open(job)
    assert begun == replace(job.begun(MOMENT, str(orphans.ourselves())), started=begun.started) == ledger.get(job.id)
    with pytest.raises(Busy, match=rf"job {job.id} is running already; wait for it, or cancel it"):
        ledger.open(job)


def test_a_job_that_waits_is_not_begun_anew(ledger: Ledger) -> None:
    job, _ = ledger.accept(asked())
    with pytest.raises(Busy, match="is queued already"):
        ledger.open(replace(job, origin="cli"))
    assert ledger.get(job.id) == job


def test_a_command_whose_last_run_has_ended_or_died_may_begin_anew(ledger: Ledger) -> None:
    job = asked(origin="cli", told=True)
    ledger.open(job)
    ledger.cancel(job.id, "no")
    ledger.note(job.id, Step("dump", 7))
    ledger.change(job.id, State.RUNNING, lambda one: replace(one, runner=not_us()))
    assert ledger.open(job).state is State.RUNNING
    assert ledger.asked_to_stop(job.id) is None
    assert ledger.step(job.id) is None
    ledger.fail(job.id, WHY)
    again = ledger.open(job)
    assert (again.state, again.failure) == (State.RUNNING, None)


@pytest.mark.parametrize("origin", ["rpc", "trove"])
def test_a_command_does_not_take_the_id_of_somebody_elses_job(ledger: Ledger, origin: str) -> None:
    """Else the end of that one would never be told, and its requester would be answered another's."""
    waits = [interrupted(ledger, asked(origin=origin)), ended(ledger, asked(origin=origin), told=False)]
    for job in waits:
        with pytest.raises(Refused, match=rf"id {job.id} is taken by another request; use another id"):
            ledger.open(replace(asked(id=job.id), origin="cli"))
        assert ledger.get(job.id) == job


# Cancelling


def test_a_job_that_waits_is_cancelled_at_once(ledger: Ledger) -> None:
    job, _ = ledger.accept(asked())
    cancelled = ledger.cancel(job.id, "enough")
    assert cancelled.state is State.CANCELLED
    assert cancelled.failure == Failure("cancelled", "cancelled before it began: enough", "", 10)
    assert ledger.begin(job.id) == cancelled == ledger.get(job.id)
    assert files(ledger) == {f"{job.id}.json"}


def test_a_job_that_runs_is_asked_to_stop(ledger: Ledger) -> None:
    begun = running(ledger, asked())
    assert ledger.asked_to_stop(begun.id) is None
    assert ledger.cancel(begun.id, "enough\udcff") == begun
    assert ledger.asked_to_stop(begun.id) == "enough?"
    ledger.fail(begun.id, WHY)
    assert ledger.asked_to_stop(begun.id) is None


def test_a_request_to_stop_without_a_reason(ledger: Ledger) -> None:
    begun = running(ledger, asked())
    ledger.cancel(begun.id, "")
    assert ledger.asked_to_stop(begun.id) == "cancelled"


# How far


def test_how_far_a_job_is(ledger: Ledger) -> None:
    begun = running(ledger, asked())
    assert ledger.step(begun.id) is None
    ledger.note(begun.id, Step("dump", 5, 10, 1, 2, 3.5))
    assert ledger.step(begun.id) == Step("dump", 5, 10, 1, 2, 3.5)
    ledger.complete(begun.id, {})
    assert ledger.step(begun.id) is None
    assert files(ledger) == {f"{begun.id}.json"}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b'{"phase": "x", "surprise": 1}', b"7"])
def test_a_note_that_a_power_cut_has_spoiled(ledger: Ledger, data: bytes) -> None:
    begun = running(ledger, asked())
    (place(ledger) / f"{begun.id}.progress").write_bytes(data)
    assert ledger.step(begun.id) is None


def test_a_note_that_cannot_be_written_is_no_failure(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    begun = running(ledger, asked())
    (place(ledger) / f"{begun.id}.progress").mkdir()
    ledger.note(begun.id, Step("dump"))
    assert "cannot write" in caplog.text


# Interrupted


def test_a_job_is_interrupted_once_its_process_is_gone(ledger: Ledger) -> None:
    waits, ours, gone = asked(), asked(), asked()
    ledger.accept(waits)
    running(ledger, ours)
    ledger.accept(gone)
    begun = ledger.change(gone.id, State.QUEUED, lambda one: one.begun(MOMENT, dead()))
    assert ledger.interrupted() == [begun]
    assert is_interrupted(begun)
    assert not is_interrupted(ledger.get(ours.id))
    ledger.fail(gone.id, WHY)
    assert ledger.interrupted() == []


@pytest.mark.parametrize("runner", ["", "nonsense", "1 2 3"])
def test_a_job_that_nobody_runs_is_interrupted(ledger: Ledger, runner: str) -> None:
    begun = running(ledger, asked())
    assert is_interrupted(replace(begun, runner=runner))
