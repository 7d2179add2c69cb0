"""What Trove's conductor is told: of backups, of requests that came to an end, and of the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from guestagent.conductor import AGAIN, LONGEST_NOTE, Conductor
from guestagent.errors import ConfigError, DatabaseError, GuestagentError, Refused
from guestagent.jobs.record import Failure, Job, Kind, Step
from guestagent.outbox.box import Letter, Outbox

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
RESULT = {"type": "full", "size": 0.25, "checksum": "c" * 64, "locationRef": "s3://b/g/b1", "note": None}
FAILURE = Failure("tool", "mariabackup exited with 1", "look at its log")


class Host:
    """What the conductor asks of the host."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.stopped = False
        self.jobs: list[Job] = []
        self.looks = 0
        self.used = 1.5
        self.steps: dict[str, Step] = {}

    def ask(self) -> str:
        if self.error is not None:
            raise self.error
        return "10.11.19"

    def all(self) -> list[Job]:
        self.looks += 1
        return self.jobs

    def step(self, wanted: str) -> Step | None:
        return self.steps.get(wanted)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


@pytest.fixture
def conductor(outbox: Outbox, host: Host) -> Conductor:
    return Conductor(
        outbox,
        "guest-1",
        ask=host.ask,
        stopped=lambda: host.stopped,
        records=host,
        used=lambda: host.used,
    )


def queued(
    kind: Kind = Kind.BACKUP,
    job_id: str = "b1",
    *,
    origin: str = "trove",
    notification: Mapping[str, Any] | None = None,
    **request: Any,
) -> Job:
    return Job(job_id, kind, request, NOW, origin, notification=notification or {})


def running(*arguments: Any, **options: Any) -> Job:
    return queued(*arguments, **options).begun(NOW, "runner")


def completed(job: Job, at: datetime = NOW, **result: Any) -> Job:
    return job.completed(at, {**RESULT, **result})


def failed(job: Job, at: datetime = NOW, failure: Failure = FAILURE) -> Job:
    return job.failed(at, failure)


def letters(outbox: Outbox) -> list[Letter]:
    """What is in the outbox, which is empty then."""
    found = []
    while (letter := outbox.due()) is not None:
        found.append(letter)
        outbox.done(letter)
    return found


def updates(outbox: Outbox) -> list[Mapping[str, Any]]:
    return [letter.arguments for letter in letters(outbox) if letter.method == "update_backup"]


def payload(conductor: Conductor) -> Mapping[str, Any]:
    method, arguments = conductor.heartbeat()
    assert method == "heartbeat"
    assert arguments["instance_id"] == "guest-1"
    return dict(arguments["payload"])


IDS = {"instance_id": "guest-1", "backup_id": "b1"}
BUILDING = {**IDS, "size": 1.5, "state": "BUILDING", "backup_type": "full"}
COMPLETED = {
    **IDS,
    "size": 0.25,
    "state": "COMPLETED",
    "backup_type": "full",
    "success": True,
    "checksum": "c" * 64,
    "location": "s3://b/g/b1",
    "note": "",
}
FAILED = {
    **IDS,
    "size": 1.5,
    "state": "FAILED",
    "backup_type": "full",
    "success": False,
    "note": "mariabackup exited with 1; look at its log",
}


# Backups


def test_a_backup_from_start_to_end(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(queued())
    assert letters(outbox) == []
    conductor.changed(running())
    assert updates(outbox) == [BUILDING]
    conductor.changed(completed(running()))
    assert letters(outbox) == [Letter(2, "backup b1", "update_backup", COMPLETED, AGAIN)]


def test_the_start_is_told_once_and_the_end_anew(conductor: Conductor, outbox: Outbox, host: Host) -> None:
    conductor.changed(running())
    (letter,) = letters(outbox)
    assert letter.again == ()
    host.used = 7.0
    conductor.changed(running())
    assert letters(outbox) == []
    conductor.changed(failed(running()))
    assert updates(outbox) == [FAILED]


def test_an_end_takes_the_place_of_a_start_that_nobody_took(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(running())
    conductor.changed(completed(running()))
    assert updates(outbox) == [COMPLETED]


def test_an_end_whose_start_was_told_by_another_process(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(failed(queued()))
    assert updates(outbox) == [FAILED]


def test_a_cancelled_backup_is_a_failed_one(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(failed(running(), failure=Failure("cancelled", "stopped by SIGTERM")))
    assert updates(outbox) == [FAILED | {"note": "stopped by SIGTERM"}]


def test_an_end_without_a_failure_says_at_least_how_it_ended(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(failed(running(), failure=Failure("tool", "")))
    assert updates(outbox) == [FAILED | {"note": ""}]


def test_incrementals_are_told_as_such(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(running(parent="b0"))
    assert updates(outbox) == [BUILDING | {"backup_type": "incremental"}]
    conductor.changed(completed(running(parent="b0"), type="incremental", note="took a while"))
    assert updates(outbox) == [COMPLETED | {"backup_type": "incremental", "note": "took a while"}]


def test_what_is_not_known_is_not_told(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(running().completed(NOW, {}))
    assert updates(outbox) == [BUILDING | {"state": "COMPLETED", "success": True, "note": ""}]


def test_a_long_note_is_cut(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(failed(running(), failure=Failure("tool", "x" * 5000)))
    (update,) = updates(outbox)
    assert len(update["note"]) == LONGEST_NOTE
    assert update["note"].endswith("x…")


@pytest.mark.parametrize("origin", ["cli", "rpc"])
def test_only_what_trove_asked_for_is_told_as_a_backup(conductor: Conductor, outbox: Outbox, origin: str) -> None:
    conductor.changed(running(origin=origin))
    conductor.changed(completed(running(origin=origin)))
    for kind in (Kind.VERIFY, Kind.DELETE, Kind.RESTORE):
        conductor.changed(failed(running(kind)))
    assert letters(outbox) == []


def test_a_refusal_is_told(conductor: Conductor, outbox: Outbox) -> None:
    conductor.refused("b1", Refused("this host is busy", hint="wait"), incremental=False)
    conductor.refused("b2", Refused("no"), incremental=True)
    assert updates(outbox) == [
        FAILED | {"note": "this host is busy; wait"},
        FAILED | {"backup_id": "b2", "note": "no", "backup_type": "incremental"},
    ]


def test_a_disk_that_refuses_is_an_error_and_the_end_may_be_told_later(
    conductor: Conductor, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise GuestagentError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Outbox, "put", refuse)
        with pytest.raises(GuestagentError):
            conductor.changed(failed(running()))
    conductor.changed(failed(running()))
    assert updates(outbox) == [FAILED]


def test_a_checksum_is_as_long_as_the_conductors_table_has_room_for(outbox: Outbox) -> None:
    conductor = Conductor(outbox, "guest-1", ask=lambda: None, digits=32)
    conductor.changed(completed(running(), checksum="0123456789abcdef" * 4))
    assert [update["checksum"] for update in updates(outbox)] == ["0123456789abcdef" * 2]


def test_a_conductor_without_records_tells_what_it_was_told(outbox: Outbox) -> None:
    conductor = Conductor(outbox, "guest-1", ask=lambda: None)
    assert payload(conductor) == {"service_status": "healthy", "job": None}
    conductor.changed(running())
    assert payload(conductor)["job"] == {"id": "b1", "kind": "backup", "phase": "", "percent": None}


# Notifications


def test_a_notification_that_came_along_is_answered(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(completed(running(Kind.RESTORE, "r1", notification={"request_id": "req-1"})))
    conductor.changed(failed(running(Kind.RESTORE, "r2", notification={"request_id": "req-2"})))
    first, second = letters(outbox)
    assert (first.method, first.arguments) == (
        "notify_end",
        {"serialized_notification": {"request_id": "req-1"}, "notification_args": {}},
    )
    why = "mariabackup exited with 1; look at its log"
    assert (second.method, second.arguments) == (
        "notify_exc_info",
        {
            "serialized_notification": {"request_id": "req-2", "instance_id": "guest-1"},
            "message": why,
            "exception": [why],
        },
    )
    assert first.again == second.again == ()


def test_none_that_came_along_is_answered_by_none(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(failed(running(Kind.RESTORE)))
    assert letters(outbox) == []


# The heartbeat


def test_a_server_that_answers_is_healthy(conductor: Conductor) -> None:
    assert payload(conductor) == {"service_status": "healthy", "job": None}


def test_a_server_that_is_down_has_crashed_or_was_stopped(conductor: Conductor, host: Host) -> None:
    host.error = DatabaseError("no answer")
    assert payload(conductor)["service_status"] == "crashed"
    host.stopped = True
    assert payload(conductor)["service_status"] == "shutdown"
    host.error = None
    assert payload(conductor)["service_status"] == "healthy"


@pytest.mark.parametrize("error", [ConfigError("no such file"), ZeroDivisionError("odd")])
def test_what_cannot_be_known_is_not_told_and_the_heart_beats_on(
    conductor: Conductor, host: Host, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    host.error = error
    assert payload(conductor) == {"job": None}
    assert "cannot say how the database is" in caplog.text


def test_what_runs_is_told(conductor: Conductor, host: Host) -> None:
    conductor.changed(queued())
    assert payload(conductor)["job"] is None
    conductor.changed(running())
    assert payload(conductor)["job"] == {"id": "b1", "kind": "backup", "phase": "", "percent": None}
    host.steps["b1"] = Step("dump", done=50, total=200)
    assert payload(conductor)["job"] == {"id": "b1", "kind": "backup", "phase": "dump", "percent": 25}
    assert json.dumps(payload(conductor))
    conductor.changed(completed(running()))
    assert payload(conductor) == {"service_status": "healthy", "job": None}


def test_news_that_come_late_change_nothing(conductor: Conductor, outbox: Outbox) -> None:
    conductor.changed(running(Kind.BACKUP, "b1"))
    conductor.changed(queued(Kind.BACKUP, "b1"))
    assert payload(conductor)["job"]["id"] == "b1"
    conductor.changed(completed(running()))
    letters(outbox)
    conductor.changed(queued())
    conductor.changed(running())
    assert payload(conductor)["job"] is None
    assert letters(outbox) == []


def test_a_restore_builds(conductor: Conductor, host: Host, outbox: Outbox) -> None:
    host.error = DatabaseError("no answer")
    conductor.changed(queued(Kind.RESTORE, "r1"))
    assert outbox.hurried()
    assert payload(conductor)["service_status"] == "building"
    conductor.changed(running(Kind.RESTORE, "r1"))
    assert payload(conductor)["service_status"] == "building"
    host.error = None
    conductor.changed(completed(running(Kind.RESTORE, "r1")))
    assert outbox.hurried()
    assert payload(conductor)["service_status"] == "healthy"


def test_a_restore_of_ours_builds_from_its_start(conductor: Conductor) -> None:
    conductor.changed(queued(Kind.RESTORE, "r1", origin="rpc"))
    assert payload(conductor)["service_status"] == "healthy"
    conductor.changed(running(Kind.RESTORE, "r1", origin="rpc"))
    assert payload(conductor)["service_status"] == "building"


def test_an_instance_without_its_data_is_not_healthy(conductor: Conductor, host: Host) -> None:
    bad = failed(running(Kind.RESTORE, "r1"))
    assert payload(conductor)["service_status"] == "healthy"
    host.jobs = [failed(running(Kind.BACKUP)), bad]
    conductor.changed(bad)
    assert payload(conductor)["service_status"] == "failed to spawn"
    # Somebody restores by the command line, of which only the ledger knows.
    later = NOW + timedelta(hours=1)
    host.jobs += [running(Kind.RESTORE, "r2"), completed(running(Kind.RESTORE, "r3", origin="cli"), later)]
    assert payload(conductor)["service_status"] == "healthy"


def test_an_instance_without_its_data_is_known_after_a_restart(conductor: Conductor, host: Host) -> None:
    host.jobs = [failed(running(Kind.RESTORE, "r1"))]
    assert payload(conductor)["service_status"] == "failed to spawn"


def test_a_restore_of_ours_that_failed_left_the_data(conductor: Conductor, host: Host) -> None:
    host.jobs = [failed(running(Kind.RESTORE, "r1", origin="rpc"))]
    assert payload(conductor)["service_status"] == "healthy"


def test_the_ledger_is_not_read_at_each_beat(conductor: Conductor, host: Host) -> None:
    for _ in range(5):
        payload(conductor)
    assert host.looks == 1
