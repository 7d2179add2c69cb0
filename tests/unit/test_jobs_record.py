"""A job's record: what users see of it, its JSON there and back, and bytes that are no record."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from guestagent.errors import Busy, Cancelled, Corrupt
from guestagent.jobs.record import Failure, Job, Kind, State, Step
from tests.unit.jobs_scene import MOMENT, SOMETHING, asked

ID = "11111111-1111-4111-8111-111111111111"
LATER = MOMENT + timedelta(seconds=12.5)


def job(kind: Kind = Kind.BACKUP, **more: Any) -> Job:
    return asked(kind, **{"id": ID, "created": MOMENT, **more})


@pytest.mark.parametrize(
    ("state", "ended"),
    [("queued", False), ("running", False), ("completed", True), ("failed", True), ("cancelled", True)],
)
def test_what_has_ended(state: str, ended: bool) -> None:
    assert State(state).ended is ended


def test_a_failure_of_ours_keeps_all_that_it_says() -> None:
    failure = Failure.of(Busy("the host is busy", hint="wait"))
    assert failure == Failure("busy", "the host is busy", "wait", 7)
    assert str(failure) == "the host is busy; wait"
    assert str(Failure("busy", "the host is busy")) == "the host is busy"


def test_a_failure_of_somebody_elses_is_told_by_its_name() -> None:
    assert Failure.of(KeyError("x")) == Failure("failed", "KeyError: 'x'", "the log shows where", 1)
    assert Failure.of(SystemExit(3)).what == "SystemExit: 3"


@pytest.mark.parametrize(
    ("step", "percent", "left"),
    [
        (Step("dump", 50, None, rate=10.0), None, None),
        (Step("dump", 50, 0, rate=10.0), None, None),
        (Step("dump", 50, 200, rate=10.0), 25, 15.0),
        (Step("dump", 50, 200), 25, None),
        (Step("dump", 199, 200, rate=3.0), 99, 0.3),
        (Step("dump", 200, 200, rate=10.0), 99, 0.0),
        (Step("dump", 300, 200, rate=10.0), 99, 0.0),
    ],
)
def test_how_far_a_step_is(step: Step, percent: int | None, left: float | None) -> None:
    assert (step.percent, step.left) == (percent, left)


@pytest.mark.parametrize(
    ("one", "subject", "text"),
    [
        (job(), ID, f"backup {ID}"),
        (job(Kind.RESTORE), SOMETHING, f"restore {SOMETHING} (job {ID})"),
        (job(Kind.RESTORE, request={"source": "s3://b/i/x"}), "s3://b/i/x", f"restore s3://b/i/x (job {ID})"),
        (job(Kind.VERIFY), SOMETHING, f"verify {SOMETHING} (job {ID})"),
        (job(Kind.DELETE), SOMETHING, f"delete {SOMETHING} (job {ID})"),
    ],
    ids=str,
)
def test_what_a_job_is_about(one: Job, subject: str, text: str) -> None:
    assert (one.subject, str(one)) == (subject, text)


def test_the_same_request_is_one_of_the_same_kind_that_asks_the_same() -> None:
    assert job().same_request(job(origin="cli", deadline=LATER))
    assert not job().same_request(job(request={"name": "weekly"}))
    assert not replace(job(), kind=Kind.VERIFY).same_request(job())
    assert job().same_request(job(notification={"id": 1}))


def test_a_life() -> None:
    begun = job().begun(MOMENT, "a process")
    assert (begun.state, begun.started, begun.runner) == (State.RUNNING, MOMENT, "a process")
    done = begun.completed(LATER, {"size": 1})
    assert (done.state, done.finished, done.result, done.failure) == (State.COMPLETED, LATER, {"size": 1}, None)
    failed = begun.failed(LATER, Failure("storage", "no"))
    assert (failed.state, failed.finished, failed.failure) == (State.FAILED, LATER, Failure("storage", "no"))
    assert begun.failed(LATER, Failure.of(Cancelled("stopped"))).state is State.CANCELLED


def test_no_job_ends_before_it_begins_whatever_the_clock_says() -> None:
    begun = job().begun(LATER, "a process")
    assert begun.completed(MOMENT, {}).finished == LATER
    assert begun.failed(MOMENT, Failure("storage", "no")).finished == LATER
    assert job().failed(MOMENT, Failure("storage", "no")).finished == MOMENT


def test_what_users_see_of_a_job_that_waits() -> None:
    assert list(job(deadline=LATER).properties(Step("old", 5)).items()) == [
        ("id", ID),
        ("kind", "backup"),
        ("state", "queued"),
        ("phase", ""),
        ("percent", None),
        ("done", 0),
        ("total", None),
        ("rate", 0),
        ("left", None),
        ("link", 1),
        ("links", 1),
        ("created", "2026-11-22T14:00:00.000Z"),
        ("started", None),
        ("finished", None),
        ("deadline", "2026-11-22T14:00:12.500Z"),
        ("origin", "rpc"),
        ("request", {"name": "nightly", "description": "", "parent": None, "parent_checksum": None}),
        ("error", None),
        ("result", None),
    ]


def test_what_users_see_of_a_job_that_runs() -> None:
    running = replace(job().begun(LATER, "a process"), phase="fetch")
    seen = running.properties(Step("prepare", 50, 200, 2, 3, 9.6))
    wanted = {"phase": "prepare", "percent": 25, "done": 50, "total": 200, "rate": 10, "left": 15.6}
    assert {name: seen[name] for name in wanted} == wanted
    assert (seen["link"], seen["links"], seen["started"]) == (2, 3, "2026-11-22T14:00:12.500Z")
    assert running.properties()["phase"] == "fetch"
    assert "a process" not in json.dumps(seen)
    assert "tenant" not in json.dumps(job(notification={"tenant": "t"}).properties())


def test_what_users_see_of_a_job_that_has_ended() -> None:
    running = replace(job().begun(MOMENT, "a process"), phase="publish")
    done = running.completed(LATER, {"size": 1}).properties(Step("dump", 1, 4))
    assert (done["phase"], done["percent"], done["done"], done["result"]) == ("publish", 100, 0, {"size": 1})
    failed = replace(running, result={"size": 1}).failed(LATER, Failure("storage", "no", "wait", 8)).properties()
    assert (failed["percent"], failed["result"]) == (None, None)
    assert failed["error"] == {"code": "storage", "what": "no", "hint": "wait", "exit_status": 8}


@pytest.mark.parametrize(
    "one",
    [
        job(),
        job(Kind.RESTORE, deadline=LATER, request={"start": True}),
        replace(job(Kind.VERIFY).begun(LATER, "1 2 3 4"), phase="verify"),
        replace(job(Kind.DELETE, origin="cli"), told=True).begun(LATER, "x").completed(LATER, {"deleted": ["ä"]}),
        job().begun(LATER, "x").failed(LATER, Failure("storage", "ümlaut", "wait", 8)),
        job(origin="trove", notification={"id": 1, "tenant": "t"}),
        job(created=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)),
    ],
    ids=lambda one: f"{one.kind.value}-{one.state.value}",
)
def test_there_and_back(one: Job) -> None:
    assert Job.from_bytes(one.to_bytes()) == one


def test_a_record_of_another_format_is_left_alone() -> None:
    changed = json.loads(job().to_bytes()) | {"format": 2}
    with pytest.raises(Corrupt, match=r"format 2; use the guestagent that wrote it"):
        Job.from_bytes(json.dumps(changed).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"format": 1}',
        job().to_bytes()[:-20],
        job().to_bytes().replace(b'"backup"', b'"backdrop"'),
        job().to_bytes().replace(b'"queued"', b'"lost"'),
        job().to_bytes().replace(b"2026-11-22T14:00:00.000Z", b"yesterday"),
        job().to_bytes().replace(b'"failure": null', b'"failure": {"surprise": 1}'),
        job().to_bytes().replace(b'"result": {}', b'"result": 7'),
        job().to_bytes().replace(b'"created": "2026-11-22T14:00:00.000Z"', b'"created": null'),
    ],
)
def test_bytes_that_are_no_record(data: bytes) -> None:
    with pytest.raises(Corrupt, match="a job's record cannot be read"):
        Job.from_bytes(data)
