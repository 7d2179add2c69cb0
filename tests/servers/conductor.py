"""Trove's conductor, as far as a guest can tell: its messages, its rule for stale ones, and its way with rows.

It takes ``heartbeat``, ``update_backup``, ``notify_end`` and ``notify_exc_info`` on topic ``trove-conductor``, with
several workers at once.  Each loads a row, takes its time, and saves the whole of it; an update whose ``sent`` is not
later than the last of the same instance and method is dropped; so is one on a backup of another instance, or on one
that does not exist.  Rows outlive a stop, as they do in a database.

    with Conductor(url) as conductor:
        conductor.expect("2f...", "guest1")      # what Trove's API does before it asks the guest
        conductor.stop()                         # an outage of the conductor alone ...
        conductor.start()                        # ... and the same rows again
        assert conductor.backup("2f...")["state"] == "COMPLETED"
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from guestagent.transport.oslo import expose, messaging
from guestagent.transport.server import QuietServer
from tests.servers.rpc_agent import transport_to

TOPIC = "trove-conductor"
EXCHANGE = "trove"
WORKERS = 4
COLUMNS = frozenset({"state", "size", "backup_type", "checksum", "location", "note", "success"})
STATES = frozenset({"NEW", "BUILDING", "SAVING", "COMPLETED", "FAILED", "DELETE_FAILED"})
STATUSES = frozenset(
    {
        "healthy",
        "running",
        "blocked",
        "paused",
        "shutdown",
        "crashed",
        "failed to spawn",
        "building",
        "unknown",
        "new",
        "deleted",
    }
)

Row = dict[str, Any]


class Tables:
    """Rows by key; whoever loads one gets a copy, and saves it whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, ...], Row] = {}

    def load(self, *key: str) -> Row | None:
        with self._lock:
            row = self._rows.get(key)
            return None if row is None else dict(row)

    def save(self, row: Row, *key: str) -> None:
        with self._lock:
            self._rows[key] = dict(row)


class _Endpoint:
    """What the conductor exposes."""

    target = messaging.Target(version="1.0")

    def __init__(self, owner: Conductor) -> None:
        self._owner = owner
        self._tables = owner.tables

    @expose
    def heartbeat(self, ctxt: Any, instance_id: str, payload: Mapping[str, Any], sent: float | None = None) -> None:
        row = self._tables.load("instance", instance_id) or {"beats": 0}
        if self._too_old(instance_id, "heartbeat", sent):
            return
        status = payload.get("service_status")
        if status is not None:
            if status not in STATUSES:
                raise ValueError(f"{status} is not a valid ServiceStatus")
            row["status"] = status
        self._take_time()
        self._tables.save(row | {"payload": dict(payload), "beats": row["beats"] + 1}, "instance", instance_id)

    @expose
    def update_backup(
        self, ctxt: Any, instance_id: str, backup_id: str, sent: float | None = None, **fields: Any
    ) -> None:
        row = self._tables.load("backup", backup_id)
        if row is None:
            self._owner.unhandled.append(backup_id)
            raise LookupError(f"no backup {backup_id}")
        if self._too_old(instance_id, "update_backup", sent) or row["instance_id"] != instance_id:
            return
        if fields.get("state", "NEW") not in STATES:
            raise ValueError(f"no state {fields['state']}")
        self._take_time()
        row.update({name: value for name, value in fields.items() if name in COLUMNS})
        self._tables.save(row, "backup", backup_id)

    @expose
    def notify_end(
        self, ctxt: Any, serialized_notification: Mapping[str, Any], notification_args: Mapping[str, Any]
    ) -> None:
        self._owner.notified("notify_end", serialized_notification)

    @expose
    def notify_exc_info(
        self, ctxt: Any, serialized_notification: Mapping[str, Any], message: str, exception: list[str]
    ) -> None:
        self._owner.notified("notify_exc_info", serialized_notification, message, *exception)

    def _too_old(self, instance_id: str, method: str, sent: float | None) -> bool:
        self._owner.received(instance_id, method, sent)
        if sent is None:
            return False
        seen = self._tables.load("seen", instance_id, method)
        if seen is not None and seen["sent"] >= sent:
            self._owner.dropped.append((method, sent))
            return True
        self._tables.save({"sent": sent}, "seen", instance_id, method)
        return False

    def _take_time(self) -> None:
        time.sleep(self._owner.slowness)


class Conductor:
    """A conductor on threads of this process; a context manager that has it running inside.

    One of ``workers`` = 1 takes messages in the order in which they came.
    """

    def __init__(
        self,
        url: str,
        *,
        exchange: str = EXCHANGE,
        topic: str = TOPIC,
        slowness: float = 0.0,
        workers: int = WORKERS,
    ) -> None:
        self.tables = Tables()
        self.slowness = slowness
        """Seconds between loading and saving a row."""
        self._workers = workers
        self.dropped: list[tuple[str, float]] = []
        """What came too late: the method, and ``sent``."""
        self.messages: list[tuple[str, str, float | None]] = []
        """All heartbeats and updates, in the order in which they were taken up: instance, method and ``sent``."""
        self.notifications: list[tuple[Any, ...]] = []
        self.unhandled: list[str] = []
        """Backups without a row that updates were about."""
        self._url = url
        self._target = messaging.Target(exchange=exchange, topic=topic, server="conductor")
        self._transport: Any = None
        self._server: Any = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Take messages, those first that waited in the queue."""
        self._transport = transport_to(self._url)
        self._server = messaging.get_rpc_server(
            self._transport,
            self._target,
            [_Endpoint(self)],
            access_policy=messaging.ExplicitRPCAccessPolicy,
            server_cls=QuietServer,
        )
        self._server.start(override_pool_size=self._workers)

    def stop(self) -> None:
        """Finish what was taken and take no more; a second time does nothing."""
        if self._server is not None:
            self._server.stop()
            self._server.wait()
            self._transport.cleanup()
            self._server = self._transport = None

    # What Trove's API does

    def expect(self, backup_id: str, instance_id: str) -> None:
        """Make the row of a backup that a guest is about to be asked for."""
        self.tables.save({"instance_id": instance_id, "state": "NEW"}, "backup", backup_id)

    # What a test wants to know

    def backup(self, backup_id: str) -> Row:
        """A backup's row; empty if there is none."""
        return self.tables.load("backup", backup_id) or {}

    def instance(self, instance_id: str) -> Row:
        """What the heartbeats of an instance came to: status, payload (of the last), beats."""
        return self.tables.load("instance", instance_id) or {}

    # For the endpoint

    def received(self, instance_id: str, method: str, sent: float | None) -> None:
        self.messages.append((instance_id, method, sent))

    def notified(self, method: str, notification: Mapping[str, Any], *words: str) -> None:
        self.notifications.append((method, dict(notification), *words))
