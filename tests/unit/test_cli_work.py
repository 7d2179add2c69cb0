"""What a command does itself is a job of the host like any other: in the ledger, whatever becomes of it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from guestagent.cli.door import Door
from guestagent.cli.work import do
from guestagent.errors import Busy, Cancelled, GuestagentError, Refused, ToolError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Job, Kind, State
from guestagent.progress import Cancel, Progress
from tests.fakes.bench import PATIENCE, Bench, CancelAt, Told, data_in, new_id
from tests.unit.control_scene import Scene, one_line
from tests.unit.jobs_scene import asked, full_disk, interrupted

NOBODY = "99999999-9999-4999-8999-999999999999"
NEW = {"name": "x", "description": "", "parent": None}

DIES = """
from contextlib import contextmanager
from guestagent.cli.work import do
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Kind
class Typed:
    @contextmanager
    def attended(self):
        yield Told(), Cancel()
    def ledger(self):
        return Ledger(bench.state)
def fatal(method, key):
    if key.endswith("00000001"):
        while not bench.objects():
            time.sleep(0.01)
        die()
bench.wrap = lambda inner: Acts(inner, fatal)
do(Typed(), bench.host(), Kind.BACKUP, {"name": "x", "description": "", "parent": None}, id=WANTED)
"""


class Typed:
    """Whoever typed a command, and looks at its progress."""

    def __init__(self, bench: Bench, progress: Progress | None = None, cancel: Cancel | None = None) -> None:
        self._bench = bench
        self.progress = progress or Told()
        self.cancel = cancel or Cancel()

    @contextmanager
    def attended(self) -> Iterator[tuple[Progress, Cancel]]:
        yield self.progress, self.cancel

    def ledger(self) -> Ledger:
        return Ledger(self._bench.state)


@pytest.fixture
def scene(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("COLUMNS", "300")
    return Scene(tmp_path, capsys)


def typed(bench: Bench, kind: Kind, request: dict[str, Any], *, by: Typed | None = None, id: str | None = None) -> Any:
    return do(cast(Door, by or Typed(bench)), bench.host(), kind, request, id=id)


def jobs(bench: Bench) -> list[Job]:
    return Ledger(bench.state).all()


def only(bench: Bench) -> Job:
    (job,) = jobs(bench)
    assert (job.origin, job.told) == ("cli", True)
    return job


# In process


def test_a_backup_by_a_command_is_a_job_with_its_id(bench: Bench) -> None:
    wanted, told = new_id(), Told()
    outcome = typed(bench, Kind.BACKUP, NEW, by=Typed(bench, told), id=wanted)
    (backup,) = bench.catalog().backups()
    assert outcome == backup.properties()
    job = only(bench)
    assert (job.id, job.kind, job.state, job.result) == (wanted, Kind.BACKUP, State.COMPLETED, outcome)
    assert job.phase == "publish"
    assert [name for name, _ in told.phases] == ["preflight", "dump", "publish"]
    assert sum(told.moved.values()) > 0


def test_what_has_no_id_gets_one(bench: Bench) -> None:
    (backup, tree) = bench.chain(1)[0]
    target = str(bench.top / "target")
    request = {"source": backup.id, "datadir": target, "replace": False, "start": None}
    outcome = typed(bench, Kind.RESTORE, request)
    assert (outcome["backup_id"], outcome["datadir"]) == (backup.id, target)
    assert data_in(Path(target)) == tree
    assert only(bench).id != backup.id
    assert typed(bench, Kind.DELETE, {"backup_id": backup.id, "cascade": False})["deleted"] == [backup.properties()]
    assert [job.kind for job in jobs(bench)] == [Kind.RESTORE, Kind.DELETE]
    assert {job.state for job in jobs(bench)} == {State.COMPLETED}


def test_a_command_that_fails_is_a_job_that_failed(bench: Bench) -> None:
    bench.tool(FAULT="start-exit-1")
    with pytest.raises(ToolError) as raised:
        typed(bench, Kind.BACKUP, NEW)
    job = only(bench)
    assert job.failure is not None
    assert (job.state, job.phase) == (State.FAILED, "dump")
    assert (job.failure.what, job.failure.code, job.failure.exit_status) == (raised.value.what, "tool", 1)


@pytest.mark.parametrize("phase", ["preflight", "dump", "publish"])
def test_a_command_that_is_stopped_is_a_job_that_was_cancelled(bench: Bench, phase: str) -> None:
    progress = CancelAt(phase)
    with pytest.raises(Cancelled, match="the test says so"):
        typed(bench, Kind.BACKUP, NEW, by=Typed(bench, progress, progress.cancel))
    assert only(bench).state is State.CANCELLED
    assert bench.objects() == {}


def test_the_no_progress_limit_is_the_configured_one(bench: Bench) -> None:
    bench.tool(FAULT="hang-start")
    with pytest.raises(GuestagentError, match=r"no progress for 0\.3 s in phase dump"):
        do(cast(Door, Typed(bench)), bench.host(no_progress_limit=0.3), Kind.BACKUP, NEW)
    assert only(bench).state is State.FAILED


def test_a_command_is_told_what_the_host_does_and_leaves_no_record(bench: Bench) -> None:
    with only_job(bench.state, "restore 3a"), pytest.raises(Busy, match="busy with restore 3a"):
        typed(bench, Kind.BACKUP, NEW)
    assert jobs(bench) == []


def test_while_a_command_works_the_next_one_is_told_which(bench: Bench) -> None:
    wanted = new_id()

    class Second(Told):
        def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
            super().phase(name)
            with pytest.raises(Busy, match=rf"this host is busy with backup {wanted} \(pid "):
                typed(bench, Kind.DELETE, {"backup_id": NOBODY, "cascade": False})

    typed(bench, Kind.BACKUP, NEW, by=Typed(bench, Second()), id=wanted)
    assert only(bench).id == wanted


def test_a_command_may_try_again_under_the_same_id(bench: Bench) -> None:
    wanted = new_id()
    bench.tool(FAULT="start-exit-1")
    with pytest.raises(ToolError):
        typed(bench, Kind.BACKUP, NEW, id=wanted)
    bench.tool(FAULT="")
    typed(bench, Kind.BACKUP, NEW, id=wanted)
    assert (only(bench).id, only(bench).state) == (wanted, State.COMPLETED)


def test_a_command_does_not_take_the_id_of_a_job_of_the_agents(bench: Bench) -> None:
    job = Ledger(bench.state).accept(asked(Kind.BACKUP))[0]
    for error in (Busy, Refused):
        with pytest.raises(error):
            typed(bench, Kind.BACKUP, NEW, id=job.id)
        assert not bench.runs()
        Ledger(bench.state).cancel(job.id, "x")


def test_a_command_that_cannot_be_written_down_does_nothing(bench: Bench) -> None:
    with full_disk(), pytest.raises(GuestagentError, match="No space left"):
        typed(bench, Kind.BACKUP, NEW)
    assert jobs(bench) == []
    assert not bench.runs()


def test_a_restore_whose_disk_for_records_fills_up_is_told_as_done(bench: Bench) -> None:
    """And the next command does not say of it that its process died."""
    (backup, tree) = bench.chain(1)[0]
    target = bench.top / "target"

    def no_record(name: str) -> bool:
        return name.removesuffix(".json") not in {job.id for job in jobs(bench)}

    with full_disk(but=no_record, kept=True):
        outcome = typed(bench, Kind.RESTORE, {"source": backup.id, "datadir": str(target)})
    assert data_in(target) == tree
    typed(bench, Kind.DELETE, {"backup_id": backup.id, "cascade": False})
    restored, _ = jobs(bench)
    assert (restored.state, restored.result, restored.phase) == (State.COMPLETED, outcome, "")


def test_the_next_command_tells_of_one_that_was_killed(bench: Bench) -> None:
    wanted = new_id()
    killed = bench.told_by_another(f"WANTED = {wanted!r}\n" + DIES)
    try:
        assert killed.wait(PATIENCE) == -signal.SIGKILL
    finally:
        killed.kill()
    assert only(bench).state is State.RUNNING
    assert bench.objects()
    typed(bench, Kind.DELETE, {"backup_id": bench.backup().id, "cascade": False})
    dead, alive = jobs(bench)
    assert (dead.id, dead.state, alive.state) == (wanted, State.FAILED, State.COMPLETED)
    assert dead.failure is not None
    assert dead.failure.what.startswith("the process that ran it died")
    assert bench.objects() == {}


def test_a_command_settles_what_a_dead_agent_left(bench: Bench) -> None:
    ledger = Ledger(bench.state)
    left = interrupted(ledger, asked(Kind.DELETE), phase="delete")
    typed(bench, Kind.BACKUP, NEW)
    ended = ledger.get(left.id)
    assert (ended.state, ended.told) == (State.FAILED, False), "the agent is yet to tell of it"


# As typed


def test_a_deletion_as_typed(scene: Scene) -> None:
    backup = scene.publish(1)
    done = scene.type("backup", "delete", backup.id, "-f", "value", "-c", "id")
    assert (done.status, done.out) == (0, f"{backup.id}\n")
    (job,) = scene.ledger.all()
    assert (job.kind, job.state, job.origin) == (Kind.DELETE, State.COMPLETED, "cli")
    assert job.request == {"backup_id": backup.id, "cascade": False}
    listed = scene.type("job", "list", "-f", "csv")
    assert re.search(rf"{job.id}.*delete.*completed", listed.out)


def test_a_deletion_of_what_is_damaged_as_typed(scene: Scene) -> None:
    whole, lost = scene.publish(1), scene.publish(2)
    (scene.place / "store" / "guest1" / lost.id / "manifest.json").write_text("{")
    words = ("backup", "delete", lost.id, "--damaged", "-f", "value", "-c", "id", "-c", "note")
    told = f"{lost.id} {lost.location}/manifest.json: manifest is not JSON: "
    looked = scene.type(*words, "--dry-run")
    assert (looked.status, looked.out[: len(told)]) == (0, told)
    assert scene.ledger.all() == []
    refused = scene.type("-q", "backup", "delete", whole.id)
    one_line(refused, 3, f"`guestagent backup delete {lost.id} --damaged`", by="guestagent")
    done = scene.type(*words)
    assert (done.status, done.out) == (0, looked.out)
    assert scene.ledger.all()[-1].request == {"backup_id": lost.id, "cascade": False, "damaged": True}
    one_line(scene.type("-q", *words), 4, "no backup", by="guestagent")
    one_line(scene.type("-q", "backup", "delete", whole.id, "--damaged"), 3, "is not damaged", by="guestagent")
    one_line(scene.type(*words, "--cascade"), 2, "not allowed with", by="guestagent")
    assert scene.type("backup", "delete", whole.id).status == 0


def test_what_only_looks_is_no_job(scene: Scene) -> None:
    backup = scene.publish(1)
    scene.type("backup", "delete", backup.id, "--dry-run")
    scene.type("restore", backup.id, "--plan")
    scene.type("backup", "verify", backup.id)
    assert scene.ledger.all() == []


@pytest.mark.parametrize(
    ("words", "kind", "status", "code"),
    [
        (("backup", "create", "nightly"), Kind.BACKUP, 9, "database"),
        (("backup", "delete", NOBODY, "--cascade"), Kind.DELETE, 4, "not-found"),
        (("restore", NOBODY, "--datadir", "/nowhere", "--no-start"), Kind.RESTORE, 4, "not-found"),
    ],
    ids=lambda value: value.value if isinstance(value, Kind) else "",
)
def test_a_failure_as_typed(scene: Scene, words: tuple[str, ...], kind: Kind, status: int, code: str) -> None:
    done = scene.type("-q", *words)
    assert done.status == status
    (job,) = scene.ledger.all()
    assert job.failure is not None
    assert (job.kind, job.state, job.failure.code, job.origin) == (kind, State.FAILED, code, "cli")
    assert job.failure.what in done.err


def test_what_a_backup_is_asked(scene: Scene) -> None:
    wanted = new_id()
    scene.type("backup", "create", "--id", wanted.upper(), "--parent", "latest", "--description", "x")
    scene.type("backup", "create", "nightly", "--parent", NOBODY.upper())
    first, second = scene.ledger.all()
    assert first.id == wanted
    assert first.request == {"name": wanted, "description": "x", "parent": "latest"}
    assert second.request == {"name": "nightly", "description": "", "parent": NOBODY}


def test_what_a_restore_is_asked(scene: Scene) -> None:
    scene.type("restore", NOBODY, "--datadir", "/x", "--replace", "--start")
    scene.type("restore", NOBODY)
    first, second = scene.ledger.all()
    none = {"accept_unencrypted": None}
    assert first.request == {"source": NOBODY, "datadir": "/x", "replace": True, "start": True} | none
    assert second.request == {"source": NOBODY, "datadir": None, "replace": False, "start": None} | none


def test_a_request_that_makes_no_sense_is_no_job(scene: Scene) -> None:
    one_line(scene.type("backup", "create", "--parent", "x"), 2, "not a backup id", by="guestagent")
    one_line(scene.type("backup", "delete", "x"), 2, "not a backup id", by="guestagent")
    assert scene.ledger.all() == []
