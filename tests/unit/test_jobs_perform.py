"""One job, performed: told while it runs, stopped by whoever asks, and its end noted whatever happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Cancelled, GuestagentError, Stalled, StorageError
from guestagent.jobs import ledger as book
from guestagent.jobs import perform as room
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.perform import Attendant, perform
from guestagent.jobs.record import Failure, Job, State, Step
from guestagent.progress import Cancel, Watch
from tests.fakes.bench import PATIENCE, Told
from tests.processes import eventually
from tests.unit.jobs_scene import asked, full_disk


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state")


@pytest.fixture
def begun(ledger: Ledger) -> Job:
    ledger.accept(job := asked())
    return ledger.begin(job.id)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK", 0.01)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attendants() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("attendant-")]


def test_a_story_that_ends_well(ledger: Ledger, begun: Job) -> None:
    def story(watch: Watch) -> dict[str, Any]:
        watch.phase("dump", total=10)
        return {"size": 1}

    done = perform(ledger, begun, story, cancel=Cancel())
    assert (done.state, done.phase, done.result) == (State.COMPLETED, "dump", {"size": 1})
    assert ledger.get(begun.id) == done
    assert attendants() == []


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_steps_makes_no_job_shorter_or_longer(
    ledger: Ledger, begun: Job, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    really = book._now
    monkeypatch.setattr(book, "_now", lambda: really() + timedelta(hours=hours))
    done = perform(ledger, begun, lambda _: {}, cancel=Cancel())

    def fail(_: Watch) -> dict[str, Any]:
        raise StorageError("no")

    ledger.accept(other := asked())
    with pytest.raises(StorageError):
        perform(ledger, ledger.begin(other.id), fail, cancel=Cancel())
    for job in (done, ledger.get(other.id)):
        assert job.started
        assert job.finished
        assert timedelta() <= job.finished - job.started < timedelta(hours=1)


@pytest.mark.parametrize(
    ("error", "state", "failure"),
    [
        (StorageError("no store", hint="wait"), State.FAILED, Failure("storage", "no store", "wait", 8)),
        (Cancelled("stopped by SIGINT"), State.CANCELLED, Failure("cancelled", "stopped by SIGINT", "", 10)),
        (KeyError("surprise"), State.FAILED, Failure("failed", "KeyError: 'surprise'", "the log shows where", 1)),
        (KeyboardInterrupt(), State.FAILED, Failure("failed", "KeyboardInterrupt: ", "the log shows where", 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_story_that_fails(ledger: Ledger, begun: Job, error: BaseException, state: State, failure: Failure) -> None:
    def story(watch: Watch) -> dict[str, Any]:
        raise error

    with pytest.raises(type(error)) as raised:
        perform(ledger, begun, story, cancel=Cancel())
    assert raised.value is error
    ended = ledger.get(begun.id)
    assert (ended.state, ended.failure, ended.result) == (state, failure, {})
    assert attendants() == []


def test_the_limit_is_the_watchs(ledger: Ledger, begun: Job) -> None:
    def story(watch: Watch) -> dict[str, Any]:
        while True:
            watch.check()

    with pytest.raises(Stalled, match=r"no progress for 0\.01 s"):
        perform(ledger, begun, story, cancel=Cancel(), limit=0.01)
    assert ledger.get(begun.id).state is State.FAILED


def test_what_is_shown_and_what_is_noted(ledger: Ledger, begun: Job) -> None:
    shown = Told()
    changes: list[Job] = []

    def story(watch: Watch) -> dict[str, Any]:
        watch.phase("fetch", total=100, links=2)
        watch.advance(30)
        assert eventually(lambda: (ledger.step(begun.id) or Step("")).done == 30)
        assert eventually(lambda: ledger.get(begun.id).phase == "fetch")
        watch.phase("seal")
        assert eventually(lambda: ledger.get(begun.id).phase == "seal")
        return {}

    perform(ledger, begun, story, cancel=Cancel(), shown=shown, on_change=changes.append)
    assert shown.phases == [("fetch 1/2", 100), ("seal", None)]
    assert shown.moved == {"fetch 1/2": 30}
    assert [(job.state, job.phase) for job in changes] == [(State.RUNNING, "fetch"), (State.RUNNING, "seal")]


def test_the_last_phase_is_noted_before_the_end(ledger: Ledger, begun: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the thread that notes has not had its turn yet."""
    monkeypatch.setattr(room, "LOOK", PATIENCE)

    def story(watch: Watch) -> dict[str, Any]:
        watch.phase("start")
        raise StorageError("no")

    with pytest.raises(StorageError):
        perform(ledger, begun, story, cancel=Cancel())
    assert ledger.get(begun.id).phase == "start"


def test_a_phase_that_goes_on_is_noted_once(ledger: Ledger, begun: Job) -> None:
    changes: list[Job] = []

    def story(watch: Watch) -> dict[str, Any]:
        for link in (1, 2):
            watch.phase("prepare", link=link, links=2)
            assert eventually(lambda: (ledger.step(begun.id) or Step("")).link == link)  # noqa: B023
        return {}

    perform(ledger, begun, story, cancel=Cancel(), on_change=changes.append)
    assert [job.phase for job in changes] == ["prepare"]


def test_a_request_of_another_process_to_stop(ledger: Ledger, begun: Job) -> None:
    def story(watch: Watch) -> dict[str, Any]:
        Ledger(ledger.state_dir).cancel(begun.id, "enough")
        assert eventually(lambda: cancelled(watch))
        watch.check()
        raise AssertionError

    with pytest.raises(Cancelled, match="enough"):
        perform(ledger, begun, story, cancel=Cancel())
    assert ledger.get(begun.id).state is State.CANCELLED


def cancelled(watch: Watch) -> bool:
    try:
        watch.check()
    except Cancelled:
        return True
    return False


def test_a_request_to_stop_is_obeyed_on_a_full_disk_too(
    ledger: Ledger, begun: Job, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the phase nor how far can be noted, and that is said once, not twice a second."""
    ledger.cancel(begun.id, "enough")

    def story(watch: Watch) -> dict[str, Any]:
        with full_disk():
            watch.phase("dump")
            assert eventually(lambda: cancelled(watch) and "cannot note how far" in caplog.text)
            for count in range(3):
                watch.advance(1)
                assert eventually(lambda: (ledger.step(begun.id) or Step("")).done == count + 1)  # noqa: B023
        assert eventually(lambda: ledger.get(begun.id).phase == "dump")
        with full_disk():
            watch.phase("publish")
            assert eventually(lambda: caplog.text.count("cannot note how far") == 2)
        watch.check()
        raise AssertionError

    with pytest.raises(Cancelled, match="enough"):
        perform(ledger, begun, story, cancel=Cancel())
    assert (ledger.get(begun.id).state, ledger.get(begun.id).phase) == (State.CANCELLED, "publish")
    assert caplog.text.count("cannot note how far") == 2


def test_an_end_that_cannot_be_noted_does_not_hide_why(
    ledger: Ledger, begun: Job, caplog: pytest.LogCaptureFixture
) -> None:
    error = StorageError("the cause")

    def story(watch: Watch) -> dict[str, Any]:
        raise error

    with full_disk(), pytest.raises(StorageError) as raised:
        perform(ledger, begun, story, cancel=Cancel())
    assert raised.value is error
    assert f"cannot note that delete {begun.subject} (job {begun.id}) has failed: cannot write" in caplog.text
    assert ledger.get(begun.id).state is State.RUNNING


def test_a_good_end_that_cannot_be_noted_is_told(ledger: Ledger, begun: Job) -> None:
    said = rf"\(job {begun.id}\) is done, and that cannot be noted: cannot write to state_dir .*; .*make room"
    with full_disk(), pytest.raises(GuestagentError, match=said):
        perform(ledger, begun, lambda watch: {}, cancel=Cancel())
    assert ledger.get(begun.id).state is State.RUNNING


@pytest.mark.parametrize("well", [True, False])
def test_whoever_insists_writes_the_end(ledger: Ledger, begun: Job, well: bool) -> None:
    insisted: list[Job] = []

    def story(watch: Watch) -> dict[str, Any]:
        if not well:
            raise StorageError("no")
        return {}

    def insist(write: Callable[[], Job]) -> Job:
        insisted.append(write())
        return insisted[-1]

    try:
        perform(ledger, begun, story, cancel=Cancel(), insist=insist)
    except StorageError:
        assert not well
    assert insisted == [ledger.get(begun.id)]


# How far


def steps(ledger: Ledger, begun: Job, clock: Clock) -> Attendant:
    return Attendant(ledger, begun, Cancel(), clock=clock)


def test_bytes_are_counted_by_phase_with_their_rate(ledger: Ledger, begun: Job) -> None:
    clock = Clock()
    attendant = steps(ledger, begun, clock)
    assert attendant.step == Step("")
    attendant.phase("dump", total=100)
    clock.now += 2
    attendant.advance(10)
    clock.now += 2
    attendant.advance(10)
    assert attendant.step == Step("dump", 20, 100, rate=5.0)
    attendant.phase("publish", link=2, links=3)
    assert attendant.step == Step("publish", 0, None, 2, 3)
    clock.now += 1
    attendant.advance(7)
    assert attendant.step == Step("publish", 7, None, 2, 3, 7.0)


def test_bytes_within_no_time_have_a_rate(ledger: Ledger, begun: Job) -> None:
    attendant = steps(ledger, begun, Clock())
    attendant.advance(1)
    assert attendant.step.rate == 1000


def test_a_prepare_goes_on_beside_the_download(ledger: Ledger, begun: Job) -> None:
    clock = Clock()
    attendant = steps(ledger, begun, clock)
    attendant.phase("fetch", total=100, links=2)
    clock.now += 1
    attendant.advance(50)
    attendant.phase("prepare", link=1, links=2)
    assert attendant.step == Step("prepare", 50, 100, 1, 2, 50.0)
    clock.now += 1
    attendant.advance(40)
    assert attendant.step == Step("prepare", 90, 100, 1, 2, 45.0)
    attendant.phase("prepare", total=7, link=2, links=2)
    assert attendant.step == Step("prepare", 0, 7, 2, 2)


def test_bytes_of_many_threads_are_all_counted(ledger: Ledger, begun: Job) -> None:
    attendant = steps(ledger, begun, Clock())

    def count() -> None:
        for _ in range(500):
            attendant.advance(1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert attendant.step.done == 2000


def test_a_step_that_stays_is_not_written_again(ledger: Ledger, begun: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[Step] = []
    looks = threading.Semaphore(0)

    def look(wanted: str) -> None:
        looks.release()

    monkeypatch.setattr(ledger, "note", lambda wanted, step: notes.append(step))
    monkeypatch.setattr(ledger, "asked_to_stop", look)
    with Attendant(ledger, begun, Cancel()):
        for _ in range(5):
            assert looks.acquire(timeout=PATIENCE)
    assert notes == [Step("")]


def test_a_shown_progress_that_fails_fails_the_job(ledger: Ledger, begun: Job) -> None:
    class Broken(Told):
        def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
            raise ZeroDivisionError

    def story(watch: Watch) -> dict[str, Any]:
        watch.phase("dump")
        return {}

    with pytest.raises(ZeroDivisionError):
        perform(ledger, begun, story, cancel=Cancel(), shown=Broken())
    assert ledger.get(begun.id).state is State.FAILED
    assert attendants() == []


def test_a_thread_that_cannot_be_had_fails_the_job(
    ledger: Ledger, begun: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        perform(ledger, begun, lambda watch: {}, cancel=Cancel())
    assert ledger.get(begun.id).failure == Failure.of(RuntimeError("can't start new thread"))
