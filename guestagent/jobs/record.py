"""A job's record: what was asked, how it stands, how it ended.  Pure values and their JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from guestagent import document
from guestagent.errors import Cancelled, Corrupt, GuestagentError, one_line
from guestagent.manifest import timestamp

FORMAT = 1
"""The form of the record; a record of another one is left alone."""
MOST_BYTES = 16 << 20
"""Of a record: a delete of many thousand backups tells of each."""
MOST_STEP = 4096
"""Bytes of what a running job says of its progress."""


class Kind(Enum):
    """What can be asked of a host."""

    BACKUP = "backup"
    RESTORE = "restore"
    VERIFY = "verify"
    DELETE = "delete"


class State(Enum):
    """How a job stands; the last three are for good."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self in (State.COMPLETED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Failure:
    """Why a job did not complete: the code of the error's family, what, the hint, and the exit status."""

    code: str
    what: str
    hint: str = ""
    exit_status: int = 1

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure that an error is; one that is not ours to explain is told by its name."""
        if isinstance(error, GuestagentError):
            return cls(error.code, error.what, error.hint, error.exit_status)
        return cls(GuestagentError.code, one_line(f"{type(error).__name__}: {error}"), "the log shows where")

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


@dataclass(frozen=True)
class Step:
    """How far a running job is: bytes of its phase, which link of how many, and bytes a second so far."""

    phase: str
    done: int = 0
    total: int | None = None
    link: int = 1
    links: int = 1
    rate: float = 0.0

    @classmethod
    def from_bytes(cls, data: bytes) -> Step:
        """Read one; raises Corrupt."""
        try:
            found = cls(**document.parsed(data, most=MOST_STEP))
        except (ValueError, TypeError) as error:
            raise Corrupt(f"not a step: {error}") from error
        counts = (found.done, 0 if found.total is None else found.total, found.link, found.links)
        if type(found.phase) is not str or any(type(count) is not int or count < 0 for count in counts):
            raise Corrupt("not a step: a value is of a wrong type or below 0")
        if type(found.rate) not in (int, float) or found.rate < 0:
            raise Corrupt("not a step: its rate is no number")
        return found

    @property
    def percent(self) -> int | None:
        """Of the phase, if its size is known; that of a dump is an estimate, so 100 comes with the end only."""
        return min(99, 100 * self.done // self.total) if self.total else None

    @property
    def left(self) -> float | None:
        """Seconds that the phase goes on, by its rate so far."""
        if not self.total or not self.rate:
            return None
        return round(max(0, self.total - self.done) / self.rate, 1)


@dataclass(frozen=True)
class Job:
    """One request and what became of it.

    ``id`` is the requester's: the same id again means the same job; a backup's job has the backup's id.
    ``request`` and ``result`` hold plain JSON values, as ``story`` has them.  ``origin`` is the door that it came
    through: ``cli``, ``rpc`` or ``trove``.  ``deadline`` is when a queued job is not to be begun any more.
    ``runner`` names the process that runs it.  ``told`` says whether whoever listens has heard of the end,
    and ``notification`` is what Trove wants to find again in what it hears: no part of the request.
    """

    id: str
    kind: Kind
    request: Mapping[str, Any]
    created: datetime
    origin: str
    state: State = State.QUEUED
    deadline: datetime | None = None
    started: datetime | None = None
    finished: datetime | None = None
    phase: str = ""
    failure: Failure | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    runner: str = ""
    told: bool = False
    notification: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """What it is about: a backup's id or location."""
        return str(self.request.get("source") or self.request.get("backup_id") or self.id)

    def __str__(self) -> str:
        """Its kind, subject and id, as in ``restore 2f... (job 7a...)``."""
        suffix = "" if self.subject == self.id else f" (job {self.id})"
        return f"{self.kind.value} {self.subject}{suffix}"

    def same_request(self, other: Job) -> bool:
        """Whether both ask for the same."""
        return self.kind is other.kind and dict(self.request) == dict(other.request)

    def begun(self, now: datetime, runner: str) -> Job:
        """The same job, running."""
        return replace(self, state=State.RUNNING, started=now, runner=runner)

    def completed(self, now: datetime, result: Mapping[str, Any]) -> Job:
        """The same job, done."""
        return replace(self, state=State.COMPLETED, finished=self._not_before(now), result=result)

    def failed(self, now: datetime, failure: Failure) -> Job:
        """The same job, failed or cancelled."""
        state = State.CANCELLED if failure.code == Cancelled.code else State.FAILED
        return replace(self, state=state, finished=self._not_before(now), failure=failure)

    def _not_before(self, now: datetime) -> datetime:
        """That moment, unless the clock was set back so far that the job would end before it began."""
        return max(now, self.started or now)

    def properties(self, step: Step | None = None) -> dict[str, Any]:
        """What users see of it, as JSON values; bytes, bytes a second, seconds, and times in UTC."""
        now = step if step and self.state is State.RUNNING else Step(self.phase)
        done = 100 if self.state is State.COMPLETED else now.percent
        return {
            "id": self.id,
            "kind": self.kind.value,
            "state": self.state.value,
            "phase": now.phase,
            "percent": done,
            "done": now.done,
            "total": now.total,
            "rate": round(now.rate),
            "left": now.left,
            "link": now.link,
            "links": now.links,
            "created": _written(self.created),
            "started": _written(self.started),
            "finished": _written(self.finished),
            "deadline": _written(self.deadline),
            "origin": self.origin,
            "request": dict(self.request),
            "error": asdict(self.failure) if self.failure else None,
            "result": dict(self.result) if self.state is State.COMPLETED else None,
        }

    def to_bytes(self) -> bytes:
        """The record, as JSON."""
        document = {
            "format": FORMAT,
            "id": self.id,
            "kind": self.kind.value,
            "request": dict(self.request),
            "origin": self.origin,
            "state": self.state.value,
            "created": _written(self.created),
            "deadline": _written(self.deadline),
            "started": _written(self.started),
            "finished": _written(self.finished),
            "phase": self.phase,
            "failure": asdict(self.failure) if self.failure else None,
            "result": dict(self.result),
            "runner": self.runner,
            "told": self.told,
            "notification": dict(self.notification),
        }
        return json.dumps(document, indent=1, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Job:
        """Read a record; raises Corrupt."""
        try:
            found = document.parsed(data, most=MOST_BYTES)
            if found["format"] != FORMAT:
                raise Corrupt(f"a job's record of format {found['format']}", hint="use the guestagent that wrote it")
            return cls(
                id=_text(found["id"]),
                kind=Kind(found["kind"]),
                request=_table(found["request"]),
                origin=_text(found["origin"]),
                state=State(found["state"]),
                created=_moment(found["created"]),
                deadline=_maybe(found["deadline"]),
                started=_maybe(found["started"]),
                finished=_maybe(found["finished"]),
                phase=_text(found["phase"]),
                failure=_failure(_table(found["failure"])) if found["failure"] else None,
                result=_table(found["result"]),
                runner=_text(found["runner"]),
                told=bool(found["told"]),
                notification=_table(found["notification"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"a job's record cannot be read: {error!r}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text belongs")
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where a table belongs")
    return value


def _failure(found: Mapping[str, Any]) -> Failure:
    status = found["exit_status"]
    if not isinstance(status, int):
        raise TypeError(f"{type(status).__name__} where a number belongs")
    return Failure(_text(found["code"]), _text(found["what"]), _text(found["hint"]), status)


def _written(moment: datetime | None) -> str | None:
    return timestamp(moment) if moment else None


def _maybe(text: str | None) -> datetime | None:
    return _moment(text) if text is not None else None


def _moment(text: str) -> datetime:
    return datetime.strptime(_text(text), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
