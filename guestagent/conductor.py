"""Trove's conductor: what it is told of this host's jobs and of its database, in its own words.

``Conductor`` turns jobs into messages and gives the heartbeat; ``Casts`` sends messages.  When and how often is the
outbox's business; what the words mean is described in docs/rpc.rst.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Protocol

from guestagent.errors import DatabaseError, GuestagentError
from guestagent.jobs.record import Job, Kind, State, Step
from guestagent.outbox.box import Outbox
from guestagent.outbox.postman import Message
from guestagent.outbox.stamps import Stamps

LOG = logging.getLogger(__name__)

TOPIC = "trove-conductor"
VERSION = "1.0"
ORIGIN = "trove"
"""What a job's ``origin`` says of one that came in Trove's words."""
AGAIN = (60.0, 600.0)
"""Seconds after which an end is told anew.

The conductor confirms a message before it handles it, and may die in between.  And it handles several at once: of two
that waited together, the older is dropped if the newer is looked at first, though they are about different backups.
"""
LONGEST_NOTE = 1000
REMEMBERED = 100
"""Ended jobs of which older news is known to be old."""

_STAMPED = frozenset({"heartbeat", "update_backup"})
"""The methods whose messages carry ``sent``."""

HEALTHY, CRASHED, SHUTDOWN, BUILDING, FAILED = "healthy", "crashed", "shutdown", "building", "failed to spawn"
"""Trove's words for the state of a database."""


class Casts:
    """Sends messages to the conductor; for one thread, since their stamps must arrive in order."""

    def __init__(
        self,
        transport: Any,
        stamps: Stamps,
        *,
        topic: str = TOPIC,
        exchange: str | None = None,
        serializer: Any = None,
    ) -> None:
        from guestagent.transport.oslo import messaging  # noqa: PLC0415  (the command line does without)

        self._stamps = stamps
        # The driver lets its library's errors through where it cannot even connect.
        self._failures = (messaging.MessagingException, messaging.MessageUndeliverable, OSError, *_library_errors())
        self._client = messaging.get_rpc_client(
            transport,
            messaging.Target(exchange=exchange, topic=topic, version=VERSION),
            retry=0,
            serializer=serializer,
            transport_options=messaging.TransportOptions(at_least_once=True),
        )

    def send(self, method: str, arguments: Mapping[str, Any]) -> None:
        """Send a message, once; raises GuestagentError unless the broker confirmed that it has put it into a queue."""
        stamp = {"sent": self._stamps.next()} if method in _STAMPED else {}
        try:
            self._client.cast({}, method, **arguments, **stamp)
        except self._failures as error:
            hint = "look at transport_url, and at whether the conductor listens"
            raise GuestagentError(f"{method} was not delivered: {error}", hint=hint) from error


def _library_errors() -> tuple[type[Exception], ...]:
    return import_module("kombu.exceptions").KombuError, import_module("amqp.exceptions").AMQPError


class Records(Protocol):
    """What this host remembers of its jobs."""

    def all(self) -> Iterable[Job]:
        """All of them; looked at when a restore may have ended."""

    def step(self, wanted: str) -> Step | None:
        """How far a running one is."""


class _NoRecords:
    def all(self) -> Iterable[Job]:
        return ()

    def step(self, wanted: str) -> Step | None:
        return None


class Conductor:
    """What the conductor hears of ``instance``.

    - ask: raises DatabaseError unless the server answers
    - stopped: whether the server is down because somebody asked for that
    - records: the jobs of this host
    - used: GB that the database takes up, as Trove counts them
    - again: seconds after which an end is told anew
    - digits: how many digits of a manifest's SHA-256 the conductor's table has room for
    """

    def __init__(
        self,
        outbox: Outbox,
        instance: str,
        *,
        ask: Callable[[], object],
        stopped: Callable[[], bool] = lambda: False,
        records: Records | None = None,
        used: Callable[[], float] = lambda: 0.0,
        again: tuple[float, ...] = AGAIN,
        digits: int = 64,
    ) -> None:
        self._outbox = outbox
        self._instance = instance
        self._ask = ask
        self._stopped = stopped
        self._records = records or _NoRecords()
        self._used = used
        self._digits = digits
        self._again = again
        self._lock = threading.Lock()
        self._active: dict[str, Job] = {}
        self._ended: deque[str] = deque(maxlen=REMEMBERED)
        self._told: tuple[str, Mapping[str, Any]] = ("", {})
        self._spoilt: bool | None = None

    # What changed

    def changed(self, job: Job) -> None:
        """Tell what became of a job; when this returns it outlives a power cut.

        Raises GuestagentError if the disk does not take it; whoever calls tells an end again then.
        """
        with self._lock:
            if not self._remember(job):
                return
            if job.origin == ORIGIN and job.kind is Kind.BACKUP and job.state is not State.QUEUED:
                self._update(job)
            if job.origin == ORIGIN and job.state.ended:
                self._notify(job)
        if job.kind is Kind.RESTORE:
            self._outbox.hurry()

    def refused(self, backup_id: str, error: GuestagentError, *, incremental: bool) -> None:
        """Tell that a backup which Trove asked for will not be made: a cast has no answer."""
        backup_type = "incremental" if incremental else "full"
        self._put(
            backup_id, _failed(str(error)) | {"size": self._used(), "backup_type": backup_type}, again=self._again
        )

    def _remember(self, job: Job) -> bool:
        """Whether this is news: threads may come late with what a job was before."""
        if job.state.ended:
            self._active.pop(job.id, None)
            self._ended.append(job.id)
            self._spoilt = None
            return True
        known = self._active.get(job.id)
        if job.id in self._ended or (known is not None and known.state is State.RUNNING and job.state is State.QUEUED):
            return False
        self._active[job.id] = job
        return True

    def _update(self, job: Job) -> None:
        """All that is known: the conductor writes whole rows, and what stood in an earlier message may be lost."""
        told, before = self._told
        size = before["size"] if told == job.id else self._used()
        fields = {"size": size, "state": "BUILDING", "backup_type": _type(job)} | _end(job, digits=self._digits)
        if (job.id, fields) != self._told:
            self._put(job.id, fields, again=self._again if job.state.ended else ())
            self._told = (job.id, fields)

    def _put(self, backup_id: str, fields: Mapping[str, Any], *, again: tuple[float, ...]) -> None:
        arguments = {"instance_id": self._instance, "backup_id": backup_id, **fields}
        self._outbox.put(f"backup {backup_id}", "update_backup", arguments, again=again)

    def _notify(self, job: Job) -> None:
        """Trove's notifications of what a request came to; only a request that brought one along gets one."""
        notification = job.notification
        if not notification:
            return
        subject = f"notification {job.id}"
        if job.state is State.COMPLETED:
            self._outbox.put(
                subject, "notify_end", {"serialized_notification": dict(notification), "notification_args": {}}
            )
        else:
            why = _shortened(str(job.failure or job.state.value))
            serialized = {**notification, "instance_id": self._instance}
            self._outbox.put(
                subject,
                "notify_exc_info",
                {"serialized_notification": serialized, "message": why, "exception": [why]},
            )

    # How it goes

    def heartbeat(self) -> Message:
        """That we live, how the database is, and what runs."""
        payload = {"job": self._running(), **self._service_status()}
        return "heartbeat", {"instance_id": self._instance, "payload": payload}

    def _running(self) -> Mapping[str, Any] | None:
        job = next((one for one in self._of_now() if one.state is State.RUNNING), None)
        if job is None:
            return None
        step = self._records.step(job.id) or Step(job.phase)
        return {"id": job.id, "kind": job.kind.value, "phase": step.phase, "percent": step.percent}

    def _of_now(self) -> list[Job]:
        with self._lock:
            return list(self._active.values())

    def _service_status(self) -> Mapping[str, str]:
        """The conductor leaves the status as it is if it is not told one: so where it cannot be known, none is told."""
        try:
            return {"service_status": self.status()}
        except Exception as error:
            LOG.exception("cannot say how the database is: %s", error)
            return {}

    def status(self) -> str:
        """How the database is, as Trove has it."""
        if any(_rebuilds(job) for job in self._of_now()):
            return BUILDING
        if self._is_spoilt():
            return FAILED
        try:
            self._ask()
        except DatabaseError:
            return SHUTDOWN if self._stopped() else CRASHED
        return HEALTHY

    def _is_spoilt(self) -> bool:
        """Whether the instance lacks the data that Trove wanted in it; a server that runs on others is not healthy.

        A restore by the command line, in another process, mends it.
        """
        if self._spoilt is not False:
            restores = [job for job in self._records.all() if job.kind is Kind.RESTORE and job.state.ended]
            last = max(restores, key=lambda job: job.finished or job.created, default=None)
            self._spoilt = last is not None and last.origin == ORIGIN and last.state is not State.COMPLETED
        return self._spoilt


def _rebuilds(job: Job) -> bool:
    """Whether the database is not to be used: while it is restored, and from the moment that Trove asked for it."""
    return job.kind is Kind.RESTORE and (job.origin == ORIGIN or job.state is State.RUNNING)


def _type(job: Job) -> str:
    return str(job.result.get("type") or ("incremental" if job.request.get("parent") else "full"))


def _end(job: Job, *, digits: int) -> dict[str, Any]:
    """What is known at the end only; nothing before."""
    if not job.state.ended:
        return {}
    if job.state is not State.COMPLETED:
        return _failed(str(job.failure or job.state.value))
    known = {
        "state": "COMPLETED",
        "success": True,
        "size": job.result.get("size"),
        "checksum": str(job.result["checksum"])[:digits] if "checksum" in job.result else None,
        "location": job.result.get("locationRef"),
        "note": _shortened(str(job.result.get("note") or "")),
    }
    return {name: value for name, value in known.items() if value is not None}


def _failed(note: str) -> dict[str, Any]:
    """The fields of a backup that is not one; Trove has no word for cancelled."""
    return {"state": "FAILED", "success": False, "note": _shortened(note)}


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_NOTE else text[: LONGEST_NOTE - 1] + "…"
