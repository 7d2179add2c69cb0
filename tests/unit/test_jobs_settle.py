"""What is left of dead jobs: told once, as what they had become, and cleaned up.  Those that live are left alone."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import swap
from guestagent.datadir.staging import half_swapped
from guestagent.errors import GuestagentError, StorageDenied, StorageError, ToolError
from guestagent.jobs import settle as room
from guestagent.jobs.ledger import Ledger, is_interrupted
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Job, Kind, State, Step
from guestagent.jobs.settle import settle, settle_locked
from guestagent.operations import sweep
from guestagent.streams import orphans
from tests.fakes.bench import BEFORE, INSTANCE, PATIENCE, Bench, data_in, write_tree
from tests.fakes.stores import Refuses, Through
from tests.processes import eventually, is_gone
from tests.unit.jobs_scene import MOMENT, asked, full_disk, interrupted, not_us

DIED = "the process that ran it died"
UNNOTED = ", or could not note its end"

JOB = """
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.perform import perform
from guestagent.jobs.record import Job
from guestagent.jobs.story import tell
def do():
    ledger = Ledger(bench.state)
    with only_job(bench.state, "a job"):
        job = ledger.open(Job.from_bytes(os.environ["JOB"].encode()))
        host = bench.host()
        perform(ledger, job, lambda watch: tell(host, job, watch), cancel=Cancel(), on_change=lambda _: noted())
def noted():
    pass
"""


@pytest.fixture(autouse=True)
def our_own_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else looks for orphans on this machine finds none of ours, and we find none of theirs."""
    monkeypatch.setattr(orphans, "MARK", f"{orphans.MARK}_{os.getpid()}")


@pytest.fixture
def ledger(bench: Bench) -> Ledger:
    return Ledger(bench.state)


def dies(bench: Bench, monkeypatch: pytest.MonkeyPatch, job: Job, lines: str) -> None:
    """Another process begins the job and, by these lines, kills itself in the middle of it."""
    monkeypatch.setenv("JOB", job.to_bytes().decode())
    killed = bench.told_by_another(JOB + lines + "\ndo()\n")
    try:
        assert killed.wait(PATIENCE) == -signal.SIGKILL
    finally:
        killed.kill()
    assert is_interrupted(Ledger(bench.state).get(job.id))


def what(job: Job, *, hint: str = "ask for it again, under a new id") -> str:
    assert job.failure is not None
    assert (job.state, job.failure.code, job.failure.exit_status) == (State.FAILED, "failed", 1)
    assert job.failure.hint == hint
    return job.failure.what


def remedy(bench: Bench) -> str:
    """What to do where no server runs on the target."""
    start = " ".join(bench.server.command("start"))
    return f"see that these are the data that you want, and start the server ({start}); or restore again, with --start"


# Backups


def test_a_backup_that_died_in_its_dump_has_failed_and_leaves_nothing(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = asked(Kind.BACKUP)
    dies(
        bench,
        monkeypatch,
        job,
        """
def fatal(method, key):
    if key.endswith("/00000001"):
        while not bench.objects() or Ledger(bench.state).all()[0].phase != "dump":
            time.sleep(0.01)
        die()
bench.wrap = lambda inner: Acts(inner, fatal)
""",
    )
    assert bench.objects()
    (ended,) = settle(ledger, bench.host())
    assert what(ended).startswith(f"{DIED} in phase dump")
    assert ledger.get(job.id) == ended
    assert bench.objects() == {}
    bench.check_no_child()
    bench.check_scratch()
    assert settle(ledger, bench.host()) == [], "and it is told once"
    assert ledger.get(job.id) == ended


def test_a_backup_that_was_published_is_complete(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = asked(Kind.BACKUP)
    dies(
        bench,
        monkeypatch,
        job,
        """
class Published(Through):
    def put_new(self, key, body):
        super().put_new(key, body)
        die()
bench.wrap = Published
""",
    )
    (ended,) = settle(ledger, bench.host())
    (backup,) = bench.catalog().backups()
    assert (ended.state, ended.result) == (State.COMPLETED, backup.properties())
    assert backup.id == job.id
    assert f"{job} was complete when its process died" in caplog.text
    assert bench.restore(backup, datadir=bench.top / "target").backup.id == job.id


@pytest.mark.parametrize("victim", ["its own", "its parent's"])
def test_a_backup_that_could_not_be_restored_has_failed(bench: Bench, ledger: Ledger, victim: str) -> None:
    """Its manifest may have come late, after its data had been discarded, or those of its parent were."""
    parent = bench.backup()
    job = interrupted(ledger, asked(Kind.BACKUP))
    taken = bench.backup(parent, id=job.id)
    bench.object(parent if victim == "its parent's" else taken, "data/00000000").unlink()
    (ended,) = settle(ledger, bench.host())
    assert what(ended) == DIED + UNNOTED


def test_a_backup_whose_parent_is_gone_has_failed(bench: Bench, ledger: Ledger) -> None:
    parent = bench.backup()
    job = interrupted(ledger, asked(Kind.BACKUP))
    bench.backup(parent, id=job.id)
    bench.catalog().delete(parent)
    (ended,) = settle(ledger, bench.host())
    assert what(ended) == DIED + UNNOTED


def test_how_far_it_was_is_told(bench: Bench, ledger: Ledger) -> None:
    host = bench.host()
    for phase, step, words in (
        ("", None, DIED),
        ("dump", None, f"{DIED} in phase dump"),
        ("dump", Step("dump", 5, 10), f"{DIED} in phase dump, at 5 of about 10 bytes"),
        ("dump", Step("dump", 5), f"{DIED} in phase dump"),
        ("publish", Step("dump", 5, 10), f"{DIED} in phase publish"),
    ):
        job = interrupted(ledger, asked(Kind.BACKUP), phase=phase)
        if step is not None:
            ledger.note(job.id, step)
        (ended,) = settle(ledger, host)
        assert what(ended) == words + UNNOTED


@pytest.mark.parametrize("error", [StorageError("503 slow down"), StorageDenied("no")], ids=["slow", "denied"])
def test_a_backup_of_which_only_the_store_can_tell_waits_for_the_store(
    bench: Bench, ledger: Ledger, caplog: pytest.LogCaptureFixture, error: StorageError
) -> None:
    backup, other = interrupted(ledger, asked(Kind.BACKUP)), interrupted(ledger, asked(Kind.DELETE))
    bench.wrap = lambda inner: Refuses(inner, "get", error=error)
    (ended,) = settle(ledger, bench.host())
    assert ended.id == other.id, "the others need not wait"
    assert ledger.interrupted() == [backup]
    assert f"cannot tell how {backup} ended: {error.what}" in caplog.text
    bench.wrap = lambda inner: inner
    (ended,) = settle(ledger, bench.host())
    assert what(ended) == DIED + UNNOTED
    assert ended.id == backup.id


def test_a_store_that_does_not_come_back_is_given_up(bench: Bench, ledger: Ledger) -> None:
    job = interrupted(ledger, asked(Kind.BACKUP))
    bench.wrap = lambda inner: Refuses(inner, "get")
    assert settle(ledger, bench.host()) == []
    (ended,) = settle(ledger, bench.host(), give_up=True)
    assert (ended.id, what(ended)) == (job.id, DIED + UNNOTED)


def test_a_manifest_that_cannot_be_read_is_no_backup(bench: Bench, ledger: Ledger) -> None:
    """And it must not keep the host from doing anything else for ever."""
    job = interrupted(ledger, asked(Kind.BACKUP))
    place = bench.store / INSTANCE / job.id
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{}")
    (ended,) = settle(ledger, bench.host())
    assert what(ended) == DIED + UNNOTED


def test_a_host_without_an_id_of_its_own_asks_no_store(bench: Bench, ledger: Ledger) -> None:
    bench.wrap = lambda inner: Refuses(inner, "get")
    bench.instance = None
    interrupted(ledger, asked(Kind.BACKUP))
    (ended,) = settle(ledger, bench.host())
    assert what(ended) == DIED + UNNOTED


@pytest.mark.parametrize("kind", [Kind.VERIFY, Kind.DELETE])
def test_other_jobs_have_failed(bench: Bench, ledger: Ledger, kind: Kind) -> None:
    bench.wrap = lambda inner: Refuses(inner, "get")
    interrupted(ledger, asked(kind))
    (ended,) = settle(ledger, bench.host())
    assert what(ended) == DIED + UNNOTED


def test_a_full_disk_keeps_them_for_later(bench: Bench, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    job = interrupted(ledger, asked())
    with full_disk():
        assert settle(ledger, bench.host()) == []
    assert "No space left" in caplog.text
    assert ledger.interrupted() == [job]


def test_who_lives_waits_or_has_ended_is_left_alone(bench: Bench, ledger: Ledger) -> None:
    ledger.accept(asked())
    ledger.open(asked(origin="cli"))
    ledger.cancel(ledger.accept(asked())[0].id, "x")
    before = ledger.all()
    assert settle(ledger, bench.host()) == []
    assert ledger.all() == before


def test_a_job_that_is_begun_anew_meanwhile_is_not_ended(bench: Bench, ledger: Ledger) -> None:
    job = interrupted(ledger, asked(Kind.BACKUP, origin="cli"))

    class Slow(Through):
        def get(self, key: str, *, limit: int) -> bytes:
            if is_interrupted(ledger.get(job.id)):
                ledger.open(job)
            return super().get(key, limit=limit)

    bench.wrap = Slow
    assert settle(ledger, bench.host()) == []
    assert ledger.get(job.id).state is State.RUNNING


# Restores


PREPARE_DIES = """
def noted():
    if Ledger(bench.state).all()[0].phase == "prepare":
        die()
"""

SWAP_DIES = """
rename = os.rename
def dies(source, target, **options):
    if Path(target) == bench.datadir / "shop":
        die()
    rename(source, target, **options)
os.rename = dies
"""


def dead_in_its_swap(bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> tuple[Job, dict[str, bytes]]:
    (backup, tree) = bench.chain(1)[0]
    bench.server.end()
    job = asked(Kind.RESTORE, request={"source": backup.id, "replace": True, "datadir": str(bench.datadir)})
    dies(bench, monkeypatch, job, SWAP_DIES)
    assert half_swapped(bench.datadir)
    return job, tree


def test_a_restore_that_died_in_its_swap_is_ended_and_says_how(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, tree = dead_in_its_swap(bench, ledger, monkeypatch)
    (ended,) = settle(ledger, bench.host(datadir=None))
    assert ended.id == job.id
    told = what(ended, hint=remedy(bench))
    kept = bench.datadir / "#sql-guestagent" / f".old-{job.request['source']}"
    assert told.startswith(f"{DIED} in phase ")
    assert told.endswith(
        f"{UNNOTED}; finished a swap in {bench.datadir}: the new data are in place, the old are kept in {kept}; "
        f"no server runs on {bench.datadir}, whose data were restored from backup {job.request['source']}"
    )
    assert data_in(bench.datadir) == tree
    assert not half_swapped(bench.datadir)


def test_a_swap_that_cannot_be_ended_is_told_too(bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    dead_in_its_swap(bench, ledger, monkeypatch)

    def fail(_: Path) -> str:
        raise GuestagentError("cannot recover the swap: input/output error")

    monkeypatch.setattr(swap, "recover", fail)
    (ended,) = settle(ledger, bench.host(datadir=None))
    assert what(ended).endswith("; cannot recover the swap: input/output error")


def test_while_another_job_has_the_host_nothing_is_touched(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The dead are told all the same, and whoever has the host, or comes next, sweeps."""
    caplog.set_level(logging.INFO)
    job, tree = dead_in_its_swap(bench, ledger, monkeypatch)
    (bench.state / "scratch").mkdir(exist_ok=True)
    with only_job(bench.state, "backup 2f"):
        (ended,) = settle(ledger, bench.host())
        assert half_swapped(bench.datadir)
        assert (bench.state / "scratch").exists()
    assert ended.id == job.id
    assert "finished a swap" not in what(ended)
    assert "this host is busy with backup 2f" in caplog.text
    assert settle(ledger, bench.host()) == []
    assert data_in(bench.datadir) == tree, "the configured datadir is looked at, whether a job says so or not"
    assert "an earlier restore had died in its swap: finished a swap" in caplog.text
    assert f"no server runs on {bench.datadir}" in caplog.text
    assert remedy(bench) in caplog.text
    assert not (bench.state / "scratch").exists()


STOP_DIES = """
from guestagent.operations import service
def stopped(*arguments, stop=service.stop):
    stop(*arguments)
    while Ledger(bench.state).all()[0].phase != "stop":
        time.sleep(0.01)
    die()
service.stop = stopped
"""

START_DIES = """
from guestagent.operations import service
def starting(*_):
    while Ledger(bench.state).all()[0].phase != "start":
        time.sleep(0.01)
    die()
service.start_quietly = starting
"""


@pytest.mark.parametrize("phase", ["stop", "start"])
def test_a_server_that_a_dead_restore_has_left_down_is_told_with_its_data_and_the_remedy(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, phase: str
) -> None:
    (backup, tree) = bench.chain(1)[0]
    job = asked(Kind.RESTORE, request={"source": backup.id, "replace": True})
    dies(bench, monkeypatch, job, STOP_DIES if phase == "stop" else START_DIES)
    assert not bench.server.running
    (ended,) = settle(ledger, bench.host())
    whose, older = "never restored", ""
    if phase == "start":
        whose = f"restored from backup {backup.id}"
        older = f"; older data are kept in {bench.datadir / '#sql-guestagent' / f'.old-{backup.id}'}"
    down = f"; no server runs on {bench.datadir}, whose data were {whose}{older}"
    told = what(ended, hint=remedy(bench))
    assert told.startswith(f"{DIED} in phase {phase}")
    assert told.endswith(f"{UNNOTED}{down}")
    assert f"{told}; {remedy(bench)}" in caplog.text
    assert data_in(bench.datadir) == (tree if phase == "start" else BEFORE)


def test_a_server_that_runs_after_all_is_not_told_of(bench: Bench, ledger: Ledger) -> None:
    interrupted(ledger, asked(Kind.RESTORE), phase="start")
    (ended,) = settle(ledger, bench.host())
    assert what(ended) == f"{DIED} in phase start{UNNOTED}"


@pytest.mark.parametrize("target", ["nowhere", "not configured"])
def test_a_restore_whose_target_is_not_there(bench: Bench, ledger: Ledger, target: str) -> None:
    nowhere = bench.top / "nowhere"
    interrupted(ledger, asked(Kind.RESTORE), phase="plan")
    (ended,) = settle(ledger, bench.host(datadir=nowhere if target == "nowhere" else None))
    assert what(ended) == f"{DIED} in phase plan{UNNOTED}"
    assert not nowhere.exists()


def test_a_restore_that_died_before_its_swap_has_changed_nothing(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backup = bench.backup()
    job = asked(Kind.RESTORE, request={"source": backup.id, "replace": True})
    bench.tool(PHASE="prepare", FAULT="hang")
    dies(bench, monkeypatch, job, PREPARE_DIES)
    (ended,) = settle(ledger, bench.host())
    assert what(ended).startswith(f"{DIED} in phase prepare, at ")
    assert data_in(bench.datadir) == BEFORE
    assert bench.server.running
    bench.check_no_child()


def test_a_host_without_a_datadir_has_nothing_to_recover(bench: Bench, ledger: Ledger) -> None:
    assert settle(ledger, bench.host(datadir=None)) == []
    assert settle(ledger, bench.host(datadir=bench.top / "nowhere")) == []


def test_a_datadir_that_is_not_ours_to_recover_keeps_nothing_else_from_being_settled(
    bench: Bench, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.datadir / "#sql-guestagent").mkdir()
    (bench.datadir / "#sql-guestagent" / "journal.json").write_text("spoilt")
    assert settle(ledger, bench.host()) == []
    assert "cannot look for an interrupted restore: " in caplog.text


# Tools


def test_tools_of_the_dead_are_ended_also_while_another_job_has_the_host(bench: Bench, ledger: Ledger) -> None:
    for busy in (False, True):
        argv = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, env=os.environ | {orphans.MARK: not_us()}) as tool:
            try:
                assert eventually(lambda: orphans._orphaned(tool.pid))
                if busy:
                    with only_job(bench.state, "backup 2f"):
                        settle(ledger, bench.host())
                else:
                    settle(ledger, bench.host())
                assert eventually(lambda: is_gone(tool.pid))
            finally:
                tool.kill()


def test_tools_are_ended_before_what_they_write_is_swept(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def note(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            told.append(name)
            return real(*arguments)

        return call

    monkeypatch.setattr(room, "end_orphans", note("tools", orphans.end_orphans))
    monkeypatch.setattr(room, "sweep_own", note("sweep", sweep.sweep_own))
    monkeypatch.setattr(swap, "recover", note("swap", swap.recover))
    interrupted(ledger, asked(Kind.RESTORE))
    settle_locked(ledger, bench.host())
    assert told == ["tools", "swap", "sweep"]


def test_a_tool_that_does_not_end_keeps_the_rest_from_beginning(
    bench: Bench, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still write to what would be swept, or restored over."""

    def fail() -> list[int]:
        raise ToolError("process 7, left behind by a dead guestagent, does not end")

    monkeypatch.setattr(room, "end_orphans", fail)
    job = interrupted(ledger, asked())
    write_tree(bench.state / "scratch", {"job-x/target": b""})
    with pytest.raises(ToolError):
        settle(ledger, bench.host())
    assert ledger.get(job.id) == job
    assert (bench.state / "scratch/job-x/target").exists()
    with only_job(bench.state, "the lock is free"):
        pass


def test_the_store_is_closed_again(bench: Bench, ledger: Ledger) -> None:
    closed = []

    class Noted(Through):
        def close(self) -> None:
            closed.append(True)
            super().close()

    bench.wrap = Noted
    interrupted(ledger, replace(asked(Kind.BACKUP), created=MOMENT))
    settle(ledger, bench.host())
    assert closed == [True]
