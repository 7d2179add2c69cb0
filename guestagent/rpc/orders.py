"""What both endpoints hand to the worker, and how they show a job."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from guestagent.jobs.record import Job, Kind, Step

Shown = dict[str, Any]


class Worker(Protocol):
    """What the endpoints ask of guestagent.jobs.worker."""

    def submit(self, job: Job) -> Job:
        """Take a request, durably; the same again gives the recorded job.  Raises Busy and Refused."""

    def cancel(self, wanted: str, reason: str) -> Job:
        """Cancel a job; raises NotFound."""

    def get(self, wanted: str) -> Job:
        """A job; raises NotFound."""

    def all(self) -> list[Job]:
        """All jobs, oldest first."""

    def step(self, wanted: str) -> Step | None:
        """How far a running job is."""

    def running(self) -> Job | None:
        """The job that runs."""


def new_id() -> str:
    """The id of a request that came without one."""
    return str(uuid.uuid4())


def order(
    kind: Kind,
    job_id: str,
    request: Mapping[str, Any],
    *,
    origin: str,
    deadline: datetime | None = None,
    notification: Mapping[str, Any] | None = None,
) -> Job:
    """A job as it is asked for now."""
    return Job(
        id=job_id,
        kind=kind,
        request=request,
        created=datetime.now(UTC),
        origin=origin,
        deadline=deadline,
        notification=notification or {},
    )


def backup_request(name: str, description: str, *, parent: str | None, checksum: str | None = None) -> Shown:
    """What a job of kind BACKUP is asked."""
    return {"name": name, "description": description, "parent": parent, "parent_checksum": checksum}


def restore_request(
    source: str,
    *,
    checksum: str | None = None,
    replace: bool = False,
    pristine: bool = False,
    start: bool | None,
    accept_unencrypted: str | None = None,
) -> Shown:
    """What a job of kind RESTORE is asked."""
    return {
        "source": source,
        "checksum": checksum,
        "replace": replace,
        "pristine": pristine,
        "start": start,
        "datadir": None,
        "accept_unencrypted": accept_unencrypted,
    }


def face(worker: Worker, job: Job) -> Shown:
    """What callers see of a job, with how far it is."""
    return job.properties(worker.step(job.id))
