"""What the conductor hears of an agent that serves: how the database is, and whether it is meant to be down."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import DatabaseError, GuestagentError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job, Kind, State
from guestagent.outbox.box import Outbox
from guestagent.serve import telling
from guestagent.serve.settings import Settings
from guestagent.serve.telling import Silence, Telling
from tests.processes import eventually
from tests.servers.conductor import Conductor
from tests.unit.serve_scene import GUEST, Scene, staged

BACKUP = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with staged(tmp_path) as made:
        made.state.mkdir(mode=0o700)
        made.configure(conductor="enabled = true\nheartbeat_interval = 1")
        yield made


@pytest.fixture
def conductor(scene: Scene) -> Iterator[Conductor]:
    with Conductor(f"local://{scene.place}/run") as made:
        yield made


def made(scene: Scene) -> Telling:
    return Telling(Settings([str(scene.config)]), Ledger(scene.state))


def job(kind: Kind, state: State) -> Job:
    return Job(BACKUP, kind, {}, created=datetime(2026, 11, 22, tzinfo=UTC), origin="trove", state=state)


def test_heartbeats_say_whether_the_server_is_meant_to_be_down(
    scene: Scene, conductor: Conductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, timeout: float) -> str:
        assert timeout == telling.ASK_TIMEOUT
        raise DatabaseError("no answer")

    monkeypatch.setattr(telling, "answers", down)
    told = made(scene)
    assert told.healthy()
    told.start()
    try:
        assert eventually(lambda: status(conductor) == "crashed")
        told.stopped(True)
        assert eventually(lambda: status(conductor) == "shutdown")
        assert told.healthy()
    finally:
        told.stop(timeout=5)
    assert not told.healthy()

    again = made(scene)
    again.start()
    beats = row(conductor)["beats"]
    try:
        assert eventually(lambda: row(conductor)["beats"] > beats)
        assert status(conductor) == "shutdown"
        monkeypatch.setattr(telling, "answers", lambda *_, timeout: "10.11.19-MariaDB")
        assert eventually(lambda: status(conductor) == "healthy")
    finally:
        again.stop(timeout=5)


def test_the_mark_of_a_stopped_server_is_ours_alone_and_goes_with_a_restore(scene: Scene) -> None:
    told = made(scene)
    mark = scene.state / "server-stopped"

    told.stopped(True)
    assert stat.S_IMODE(mark.stat().st_mode) == 0o600
    told.changed(job(Kind.RESTORE, State.RUNNING))
    assert mark.exists()
    told.changed(job(Kind.RESTORE, State.COMPLETED))
    assert not mark.exists()
    told.stopped(False)
    told.stop(timeout=1)


def test_a_mark_that_cannot_be_made_is_an_error(scene: Scene) -> None:
    told = made(scene)
    scene.state.rename(scene.place / "gone")

    with pytest.raises(GuestagentError, match=f"cannot write to state_dir {scene.state}"):
        told.stopped(True)
    told.stop(timeout=1)


def test_a_refused_backup_is_noted_with_the_space_in_use(scene: Scene) -> None:
    told = made(scene)

    told.refused(BACKUP, GuestagentError("too late"), incremental=True)
    told.stop(timeout=1)

    letter = Outbox(scene.state / "outbox").due()
    assert letter is not None
    assert letter.arguments["backup_id"] == BACKUP
    assert letter.arguments["state"] == "FAILED"
    assert letter.arguments["size"] == 0.0


def test_the_space_in_use_is_that_of_the_datadirs_filesystem(scene: Scene) -> None:
    scene.datadir.mkdir()
    told = made(scene)

    told.refused(BACKUP, GuestagentError("too late"))
    told.stop(timeout=1)

    letter = Outbox(scene.state / "outbox").due()
    assert letter is not None
    found = os.statvfs(scene.datadir)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize / (1 << 30)
    assert letter.arguments["size"] == pytest.approx(used, abs=0.5)


def test_without_a_conductor_nothing_is_done_nor_wrong() -> None:
    silence = Silence()
    silence.start()
    silence.changed(job(Kind.BACKUP, State.COMPLETED))
    silence.refused(BACKUP, GuestagentError("too late"), incremental=False)
    silence.stopped(True)
    silence.stop(timeout=1)
    assert silence.healthy()


def row(conductor: Conductor) -> dict[str, Any]:
    return conductor.tables.load("instance", GUEST) or {"beats": 0}


def status(conductor: Conductor) -> object:
    return row(conductor).get("status")
