"""``guestagent job``: the host's own records, whoever wrote them, with no agent about."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from guestagent.cli import drawn
from guestagent.errors import Busy, GuestagentError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Failure, Job, Kind, State, Step
from guestagent.streams import orphans
from tests.unit.control_scene import Scene, one_line

NOBODY = "99999999-9999-4999-8999-999999999999"
CREATED = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


@pytest.fixture
def scene(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("COLUMNS", "300")
    return Scene(tmp_path, capsys)


def job(number: int, kind: Kind = Kind.BACKUP, **request: object) -> Job:
    wanted = f"{number:08d}-0000-4000-8000-000000000000"
    asked = {"name": f"b{number}", "description": "", "parent": None, **request}
    return Job(wanted, kind, asked, created=CREATED + timedelta(minutes=number), origin="cli")


def accept(ledger: Ledger, one: Job) -> str:
    return ledger.accept(one)[0].id


def dead_process() -> str:
    """The name of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = orphans.Name.of(process.pid)
    return str(name)


def interrupted(ledger: Ledger, one: Job) -> str:
    """A job whose process is gone in the middle of it."""
    accept(ledger, one)
    runner = dead_process()
    ledger.change(one.id, State.QUEUED, lambda found: replace(found.begun(CREATED, runner), phase="dump"))
    return one.id


def test_no_jobs_are_an_empty_list(scene: Scene) -> None:
    done = scene.type("job", "list")
    assert (done.status, done.err) == (0, "")
    assert re.findall(r"\w+", done.out) == list(drawn.LISTED)
    assert scene.type("job", "list", "-f", "json").json == []


def test_no_store_and_no_instance_are_needed(scene: Scene) -> None:
    accept(scene.ledger, job(1))
    scene.config.write_text(f"[DEFAULT]\nstate_dir = {scene.place}/state\n")
    assert [row["state"] for row in scene.type("job", "list", "-f", "json").json] == ["queued"]
    assert scene.type("job", "show", job(1).id).status == 0


def test_the_list_has_every_state_and_the_newest_last(scene: Scene) -> None:
    ledger = scene.ledger
    for number in (5, 3, 1, 4, 2):
        accept(ledger, job(number))
    ledger.begin(job(1).id)
    ledger.complete(job(1).id, {"id": job(1).id})
    ledger.begin(job(2).id)
    ledger.fail(job(2).id, Failure.of(Busy("busy with\nanother", hint="wait\tfor it")))
    ledger.cancel(job(3).id, "enough")
    ledger.begin(job(4).id)
    ledger.note(job(4).id, Step("dump", 50, 200))
    rows = scene.type("job", "list", "-f", "json").json
    assert [row["id"][:8] for row in rows] == ["00000001", "00000002", "00000003", "00000004", "00000005"]
    assert list(rows[0]) == list(drawn.LISTED)
    assert [row["state"] for row in rows] == ["completed", "failed", "cancelled", "running", "queued"]
    assert [row["percent"] for row in rows] == [100, None, None, 25, None]
    assert rows[1]["error"] == "busy with another; wait for it"
    assert "cancelled before it began: enough" in rows[2]["error"]
    assert (rows[3]["phase"], rows[3]["error"], rows[4]["error"]) == ("dump", None, None)
    assert rows[0]["created"].startswith("2026-11-22T14:01:00")
    table = scene.type("job", "list").out
    assert len([line for line in table.splitlines() if line.startswith("| 0000")]) == 5


def test_a_job_shows_everything(scene: Scene) -> None:
    ledger = scene.ledger
    wanted = accept(ledger, job(1))
    ledger.begin(wanted)
    ledger.note(wanted, Step("dump", 50, 200, 1, 1, 25.0))
    shown = scene.type("job", "show", wanted.upper(), "-f", "json").json
    assert list(shown) == list(drawn.PROPERTIES) == list(ledger.get(wanted).properties())
    assert (shown["phase"], shown["done"], shown["total"], shown["left"]) == ("dump", 50, 200, 6.0)
    assert shown["request"] == {"name": "b1", "description": "", "parent": None}
    fields = re.findall(r"^\| (\w+)", scene.type("job", "show", wanted).out, re.MULTILINE)
    assert fields == ["Field", *drawn.PROPERTIES]


def test_people_read_details_as_lines(scene: Scene) -> None:
    ledger = scene.ledger
    wanted = accept(ledger, job(1, Kind.VERIFY, backup_id=NOBODY))
    ledger.begin(wanted)
    links = [{"id": "a", "verified": "whole", "name": ""}, {"id": "b", "verified": "whole"}]
    ledger.complete(wanted, {"links": links, "words": ["one", "two"], "nothing": []})
    table = scene.type("job", "show", wanted, "-c", "result").out
    lines = [line.split("|")[2].rstrip() for line in table.splitlines()[3:-1]]
    assert lines == [" links:", "   id a, verified whole", "   id b, verified whole", " words:", "   one", "   two"]
    assert scene.type("job", "show", wanted, "-f", "json").json["result"]["links"] == links
    request = scene.type("job", "show", wanted, "-f", "value", "-c", "request").out
    assert NOBODY in request


def test_a_job_whose_process_is_gone_is_shown_as_failed(scene: Scene) -> None:
    wanted = interrupted(scene.ledger, job(1))
    (row,) = scene.type("job", "list", "-f", "json").json
    assert row["state"] == "failed"
    assert row["error"].startswith(
        "interrupted: the process that ran it died in phase dump, or could not note its end; "
    )
    shown = scene.type("job", "show", wanted, "-f", "json").json
    assert shown["error"]["exit_status"] == GuestagentError.exit_status
    assert scene.ledger.get(wanted).state is State.RUNNING, "only told, not written"


def test_one_that_never_came_to_a_phase(scene: Scene) -> None:
    wanted = accept(scene.ledger, job(1))
    runner = dead_process()
    scene.ledger.change(wanted, State.QUEUED, lambda found: found.begun(CREATED, runner))
    told = scene.type("job", "list", "-f", "value", "-c", "error").out
    assert "interrupted: the process that ran it died, or could not note its end; what it left" in told


def test_a_process_that_ends_while_we_look_is_not_taken_for_dead(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = interrupted(scene.ledger, job(1))
    stale = scene.ledger.get(wanted)
    scene.ledger.complete(wanted, {})
    monkeypatch.setattr(Ledger, "all", lambda _: [stale])
    assert scene.type("job", "list", "-f", "value", "-c", "state").out == "completed\n"


def test_a_job_that_waits_is_cancelled_at_once(scene: Scene) -> None:
    wanted = accept(scene.ledger, job(1))
    done = scene.type("job", "cancel", wanted, "-f", "json")
    assert (done.status, done.err, done.json["state"]) == (0, "", "cancelled")
    assert done.json["error"]["what"] == "cancelled before it began: stopped by `guestagent job cancel`"
    assert scene.ledger.get(wanted).state is State.CANCELLED
    one_line(
        scene.type("job", "cancel", wanted),
        3,
        f"job {wanted} has already ended: cancelled; there is nothing",
        by="guestagent",
    )


def test_a_job_that_runs_is_asked_to_stop(scene: Scene) -> None:
    wanted = accept(scene.ledger, job(1))
    scene.ledger.begin(wanted)
    done = scene.type("job", "cancel", wanted, "-f", "json")
    assert (done.status, done.json["state"]) == (0, "running")
    assert done.err == f"job {wanted} is asked to stop; `guestagent job show` says when it has\n"
    assert scene.ledger.asked_to_stop(wanted) == "stopped by `guestagent job cancel`"
    assert scene.type("-q", "job", "cancel", wanted).err == ""


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_a_job_that_has_ended_cannot_be_cancelled(scene: Scene, state: str) -> None:
    wanted = accept(scene.ledger, job(1))
    scene.ledger.begin(wanted)
    if state == "completed":
        scene.ledger.complete(wanted, {})
    else:
        scene.ledger.fail(wanted, Failure.of(GuestagentError("broken")))
    one_line(scene.type("job", "cancel", wanted), 3, f"job {wanted} has already ended: {state}", by="guestagent")


def test_a_dead_job_cannot_be_cancelled(scene: Scene) -> None:
    wanted = interrupted(scene.ledger, job(1))
    one_line(scene.type("job", "cancel", wanted), 3, "has already ended: failed", by="guestagent")


def test_a_job_that_ends_just_before_the_cancel(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = accept(scene.ledger, job(1))
    scene.ledger.begin(wanted)
    cancel = Ledger.cancel

    def too_late(ledger: Ledger, one: str, reason: str) -> Job:
        ledger.complete(one, {})
        return cancel(ledger, one, reason)

    monkeypatch.setattr(Ledger, "cancel", too_late)
    one_line(scene.type("job", "cancel", wanted), 3, "has already ended: completed", by="guestagent")


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["show", NOBODY], 4, f"no job {NOBODY}"),
        (["cancel", NOBODY], 4, f"no job {NOBODY}"),
        (["show", "../../etc/passwd"], 2, "not a job id: '../../etc/passwd'"),
        (["cancel", "7"], 2, "not a job id: '7'"),
        (["cancel"], 2, "ID"),
        (["show", NOBODY, "-c", "nosuch"], 2, "no column 'nosuch'; there are id, kind,"),
        (["list", "-c", "nosuch"], 2, "no column 'nosuch'; there are id, kind,"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(scene: Scene, words: list[str], status: int, told: str) -> None:
    one_line(scene.type("job", *words), status, told, by="guestagent")


def test_a_wrong_configuration_is_told(scene: Scene) -> None:
    scene.configure(DEFAULT="state_dir = here")
    one_line(scene.type("job", "list"), 2, "[DEFAULT] state_dir is not an absolute path", by="guestagent")
