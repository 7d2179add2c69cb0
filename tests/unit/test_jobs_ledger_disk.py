"""The ledger on disk: durable, bounded, for us alone, and whole whatever is killed, full or foreign."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from guestagent.datadir import durable
from guestagent.errors import Corrupt, GuestagentError
from guestagent.jobs import room
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Failure, Job, Kind, State, Step
from tests.fakes.bench import PATIENCE
from tests.processes import eventually
from tests.unit.datadir_scene import at_each_step, killed_at
from tests.unit.datadir_scene import full_disk as no_room
from tests.unit.jobs_scene import MOMENT, asked, full_disk, interrupted

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


# What is kept


def test_no_more_is_kept_than_the_history(ledger: Ledger) -> None:
    short = Ledger(ledger.state_dir, history=3)
    jobs = [ended(short, asked(created=MOMENT + timedelta(seconds=number))) for number in range(6)]
    waits, _ = short.accept(asked(created=MOMENT))
    begun = running(short, asked(created=MOMENT))
    ended(short, asked(created=MOMENT - timedelta(days=1)))
    assert [job.id for job in short.all()] == sorted([waits.id, begun.id]) + [job.id for job in jobs[3:]]


def test_an_end_that_nobody_has_heard_of_is_kept(ledger: Ledger) -> None:
    short = Ledger(ledger.state_dir, history=1)
    untold = ended(short, asked(created=MOMENT), told=False)
    later = [ended(short, asked(created=MOMENT + timedelta(seconds=number))) for number in range(1, 4)]
    assert short.all() == [untold, later[-1]]
    short.tell(untold.id)
    assert short.all() == [later[-1]]


def test_no_history_at_all(ledger: Ledger) -> None:
    short = Ledger(ledger.state_dir, history=0)
    job = ended(short, asked())
    assert job.state is State.COMPLETED
    assert files(short) == set()


def test_what_was_half_written_goes_with_the_next_end(ledger: Ledger) -> None:
    begun = running(ledger, asked())
    for name in (f"{asked().id}.json.new", f"{asked().id}.room.new", f"{begun.id}.new", f"{begun.id}.json.new"):
        (place(ledger) / name).write_text("half")
    ledger.complete(begun.id, {})
    assert files(ledger) == {f"{begun.id}.json"}


@pytest.mark.parametrize("call", ["unlink", "listdir"])
def test_an_end_is_an_end_even_if_nothing_can_be_tidied(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    begun = running(ledger, asked())
    ledger.note(begun.id, Step("dump"))

    def fail(path: Path, *_: object) -> None:
        raise FileNotFoundError if str(path).endswith(".new") else OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        assert ledger.complete(begun.id, {}).state is State.COMPLETED
    assert "cannot tidy up" in caplog.text
    assert ledger.get(begun.id).state is State.COMPLETED


# What does not belong there


def test_what_is_no_record_is_left_alone_and_left_out(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    short = Ledger(ledger.state_dir, history=1)
    job = ended(short, asked())
    foreign = {
        f"{asked().id}.json": b"\xff\xfe",
        f"{asked().id[:-1]}.json": job.to_bytes(),
        "copy of it.json": job.to_bytes(),
        "README": b"mine",
        f"{asked().id}.json~": job.to_bytes(),
    }
    for name, data in foreign.items():
        (place(ledger) / name).write_bytes(data)
    (place(ledger) / f"{asked().id}.json").mkdir()
    assert short.all() == [job]
    assert caplog.text.count("is left out") == 2
    last = ended(short, asked())
    assert short.all() == [last]
    assert {name: (place(ledger) / name).read_bytes() for name in foreign} == foreign


def test_a_record_under_another_id_is_not_that_jobs(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    job, other = ended(ledger, asked()), asked().id
    (place(ledger) / f"{other}.json").write_bytes(job.to_bytes())
    with pytest.raises(Corrupt, match=rf"the record of job {job.id} lies under another id, {other}; remove "):
        ledger.get(other)
    assert ledger.all() == [job]
    assert f"{other}.json is left out" in caplog.text


def test_a_record_that_cannot_be_read_is_neither_replaced_nor_forgotten(ledger: Ledger) -> None:
    job = running(ledger, asked())
    path = place(ledger) / f"{job.id}.json"
    path.write_bytes(b"{")
    for write in (
        lambda: ledger.accept(job),
        lambda: ledger.open(job),
        lambda: ledger.complete(job.id, {}),
        lambda: ledger.cancel(job.id, "x"),
    ):
        with pytest.raises(Corrupt):
            write()
    assert path.read_bytes() == b"{"


def test_a_job_forgotten_while_the_list_is_read(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, gone = ended(ledger, asked()), ended(ledger, asked())
    listed = os.listdir(place(ledger))
    (place(ledger) / f"{gone.id}.json").unlink()
    monkeypatch.setattr(os, "listdir", lambda _: listed)
    assert ledger.all() == [kept]


# Disks and rights


def test_a_full_disk_is_told_and_leaves_every_record_as_it_was(ledger: Ledger) -> None:
    waits, _ = ledger.accept(asked())
    begun = running(ledger, asked())
    done = ended(ledger, asked(), told=False)
    new = asked()
    for write in (
        lambda: ledger.accept(new),
        lambda: ledger.open(new),
        lambda: ledger.begin(waits.id),
        lambda: ledger.cancel(waits.id, "x"),
        lambda: ledger.cancel(begun.id, "x"),
        lambda: ledger.enter(begun.id, "x"),
        lambda: ledger.complete(begun.id, {}),
        lambda: ledger.fail(begun.id, WHY),
        lambda: ledger.tell(done.id),
    ):
        with full_disk(), pytest.raises(GuestagentError, match=r"cannot write to state_dir .*: No space left") as told:
            write()
        assert told.value.hint == "run as a user that may, make room, or set state_dir"
        assert {job.id: job for job in ledger.all()} == {job.id: job for job in (waits, begun, done)}
        assert ledger.asked_to_stop(begun.id) is None


@pytest.mark.parametrize("what", ["accept", "open", "complete", "cancel"])
def test_a_disk_that_fails_at_any_step_is_told_as_ours(ledger: Ledger, what: str) -> None:
    """Whatever fails, the record is the old one or the new one, and the lock is free."""
    for number in range(40):
        job = asked(origin="cli")
        if what in ("complete", "cancel"):
            running(ledger, job)
        acts: dict[str, Callable[[], object]] = {
            "accept": lambda: ledger.accept(job),  # noqa: B023
            "open": lambda: ledger.open(job),  # noqa: B023
            "complete": lambda: ledger.complete(job.id, {}),  # noqa: B023
            "cancel": lambda: ledger.cancel(job.id, "x"),  # noqa: B023
        }
        reached = []

        def fail(step: int) -> None:
            if step == number:  # noqa: B023
                reached.append(step)  # noqa: B023
                no_room()

        with at_each_step(fail), suppress(GuestagentError):
            acts[what]()
        acts["accept"]()
        assert ledger.get(job.id).id == job.id
        if not reached:
            break
    assert 3 < number < 39


def test_a_filesystem_without_locks_is_told(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(GuestagentError, match=r"cannot write to state_dir .*: no locks available"):
        ledger.accept(asked())
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_records_that_may_not_be_read_are_no_empty_list(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = ledger.accept(asked())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(GuestagentError, match=r"cannot read state_dir .*: Permission denied; run as a user that"):
            ledger.all()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "read_small", refuse)
        with pytest.raises(GuestagentError, match=r"cannot read state_dir .*: Permission denied"):
            ledger.get(job.id)


def test_a_state_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GuestagentError, match=r"cannot write to state_dir .*: Not a directory"):
        Ledger(tmp_path / "file" / "state").accept(asked())


def test_the_records_are_for_us_alone(ledger: Ledger) -> None:
    begun = running(ledger, asked())
    ledger.cancel(begun.id, "x")
    assert stat.S_IMODE(ledger.state_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(place(ledger).stat().st_mode) == 0o700
    for name in (".lock", f"{begun.id}.json", f"{begun.id}.cancel"):
        assert stat.S_IMODE((place(ledger) / name).stat().st_mode) == 0o600


@pytest.mark.skipif(not ROOT, reason="only root may give files away")
def test_what_root_makes_first_belongs_to_whom_the_state_dir_belongs_to(ledger: Ledger) -> None:
    """Else a command typed with sudo would keep the agent out, which is not root."""
    ledger.state_dir.mkdir()
    os.chown(ledger.state_dir, NOBODY, NOBODY)
    begun = ledger.open(asked(origin="cli"))
    ledger.cancel(begun.id, "x")
    found = [place(ledger), *(place(ledger) / name for name in (".lock", f"{begun.id}.json", f"{begun.id}.cancel"))]
    assert {path.stat().st_uid for path in found} == {NOBODY}


def test_a_request_is_on_disk_before_it_is_accepted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    job, _ = ledger.accept(asked())
    record = place(ledger) / f"{job.id}.json"
    assert synced == [str(ledger.state_dir), f"{record}{durable.FRESH}", str(place(ledger))]
    synced.clear()
    ledger.begin(job.id)
    kept = record.with_suffix(".room")
    assert synced == [f"{kept}{durable.FRESH}", str(place(ledger)), f"{record}{durable.FRESH}", str(place(ledger))]
    synced.clear()
    ledger.complete(job.id, {})
    assert synced == [str(kept), str(place(ledger))]


# Room for the end


def test_an_end_is_noted_on_a_full_disk_in_the_room_that_was_kept_for_it(ledger: Ledger) -> None:
    """Else the next one would say of what was done that its process died."""
    done, failed = running(ledger, asked()), running(ledger, asked())
    kept = {job.id: (place(ledger) / f"{job.id}.room").stat() for job in (done, failed)}
    assert {status.st_size for status in kept.values()} == {room.SIZE}
    with full_disk(kept=True):
        with pytest.raises(GuestagentError, match="No space left"):
            ledger.enter(done.id, "x")
        assert ledger.complete(done.id, {"size": 1}).result == {"size": 1}
        assert ledger.fail(failed.id, WHY).failure == WHY
        assert ledger.interrupted() == []
    assert {job.id: job.state for job in ledger.all()} == {done.id: State.COMPLETED, failed.id: State.FAILED}
    assert files(ledger) == {f"{done.id}.json", f"{failed.id}.json"}
    for job in (done, failed):
        found = (place(ledger) / f"{job.id}.json").stat()
        assert (found.st_ino, stat.S_IMODE(found.st_mode)) == (kept[job.id].st_ino, 0o600), "no other room was taken"


def test_a_job_for_whose_end_there_is_no_room_does_not_begin(ledger: Ledger) -> None:
    waits, _ = ledger.accept(asked())
    new = asked(origin="cli")
    begins: list[Callable[[], Job]] = [lambda: ledger.begin(waits.id), lambda: ledger.open(new)]
    for begin in begins:
        with full_disk(but=lambda name: name.endswith(".json")), pytest.raises(GuestagentError, match="No space left"):
            begin()
    assert ledger.all() == [waits]
    assert files(ledger) == {f"{waits.id}.json"}


def test_an_end_of_which_there_is_much_to_tell_needs_more_room_than_was_kept(ledger: Ledger) -> None:
    begun, result = running(ledger, asked()), {"deleted": ["x" * room.SIZE]}
    assert ledger.complete(begun.id, result) == ledger.get(begun.id)
    assert ledger.get(begun.id).result == result


def test_a_job_of_an_older_version_has_no_room_and_ends_all_the_same(ledger: Ledger) -> None:
    begun = running(ledger, asked())
    (place(ledger) / f"{begun.id}.room").unlink()
    assert ledger.complete(begun.id, {}) == ledger.get(begun.id)
    again = running(ledger, asked())
    (place(ledger) / f"{again.id}.room").unlink()
    ledger.enter(again.id, "x")
    with full_disk(kept=True):
        ledger.fail(again.id, WHY)
    assert files(ledger) == {f"{begun.id}.json", f"{again.id}.json"}


def test_the_room_of_the_dead_is_there_for_who_tells_of_them(ledger: Ledger) -> None:
    job = interrupted(ledger, asked())
    with full_disk(kept=True):
        assert ledger.fail(job.id, WHY).failure == WHY


# Killed


@pytest.mark.parametrize("what", ["accept", "begin", "complete", "cancel", "tell"])
def test_a_kill_at_any_step_leaves_the_old_record_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    states: list[tuple[State, bool] | None] = []
    for number in range(40):
        ledger = Ledger(tmp_path / str(number), history=1)
        ended(ledger, asked(created=MOMENT - timedelta(days=1)))
        job = asked()
        made: dict[str, Callable[[], object]] = {
            "accept": lambda: None,
            "begin": lambda: ledger.accept(job),  # noqa: B023
            "cancel": lambda: ledger.accept(job),  # noqa: B023
            "complete": lambda: running(ledger, job),  # noqa: B023
            "tell": lambda: ended(ledger, job, told=False),  # noqa: B023
        }
        acts: dict[str, Callable[[], object]] = {
            "accept": lambda: ledger.accept(job),  # noqa: B023
            "begin": lambda: ledger.begin(job.id),  # noqa: B023
            "cancel": lambda: ledger.cancel(job.id, "x"),  # noqa: B023
            "complete": lambda: ledger.complete(job.id, {}),  # noqa: B023
            "tell": lambda: ledger.tell(job.id),  # noqa: B023
        }
        made[what]()
        killed = killed_at(number, acts[what])
        found = {one.id: one for one in ledger.all()}
        states.append((found[job.id].state, found[job.id].told) if job.id in found else None)
        acts[what]()  # the next one finds no lock, and nothing half
        assert {"accept": State.QUEUED, "begin": State.RUNNING, "cancel": State.CANCELLED}.get(
            what, State.COMPLETED
        ) is ledger.get(job.id).state
        if not killed:
            break
    assert 3 < number < 39
    changes = [state for index, state in enumerate(states) if index == 0 or states[index - 1] != state]
    assert len(changes) == 2, "first the old, and from one step on the new"


def test_a_process_that_is_killed_in_a_job_leaves_it_interrupted(ledger: Ledger, tmp_path: Path) -> None:
    job = asked(Kind.BACKUP, origin="cli")
    script = (
        "import os, signal, sys; from pathlib import Path; from guestagent.jobs.ledger import Ledger;"
        "from guestagent.jobs.record import Job;"
        "Ledger(Path(sys.argv[1])).open(Job.from_bytes(sys.argv[2].encode())); os.kill(os.getpid(), signal.SIGKILL)"
    )
    argv = [sys.executable, "-c", script, str(ledger.state_dir), json.dumps(json.loads(job.to_bytes()))]
    assert subprocess.run(argv, timeout=PATIENCE, check=False).returncode == -9
    assert [one.id for one in ledger.interrupted()] == [job.id]
