"""Trove's endpoint: no namespace, versions 1.0 to 1.3.

Backups and the server's life are obeyed or answered; what else Trove asks of a guest is refused by name, and the parts
of ``prepare`` that are not about the backup are logged as not done.  A cast has no answer, so a backup that is refused
is told to the conductor as failed, by ``on_refused``, where Trove would wait for it for ever.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from guestagent import document
from guestagent.conductor import ORIGIN
from guestagent.database import answers, connect
from guestagent.errors import DatabaseError, GuestagentError, NotFound, Refused, one_line
from guestagent.jobs.lock import only_job
from guestagent.jobs.record import Job, Kind, State
from guestagent.model import InstanceId
from guestagent.operations import service
from guestagent.operations.host import Host
from guestagent.progress import Watch
from guestagent.rpc import places
from guestagent.rpc.checks import (
    DESCRIPTION_LIMIT,
    LOCATION_LIMIT,
    NAME_LIMIT,
    PATH_LIMIT,
    Arguments,
    shown,
)
from guestagent.rpc.orders import Worker, backup_request, new_id, order, restore_request
from guestagent.transport.oslo import expose, messaging

LOG = logging.getLogger(__name__)

VERSION = "1.3"
SQL_TIMEOUT = 5.0
COMMAND_LIMIT = 150.0
"""Seconds that stopping and starting the server may take together: Trove waits for 180."""
NOTIFICATION_LIMIT = 16384
"""Bytes of JSON."""
NOTIFICATION_DEPTH = 16
GIB = 1 << 30

_RESTORES = uuid.UUID("3f0b7f4e-0d4c-5a53-9f4f-6f1c2a1f7c55")
"""The namespace of the ids of jobs that ``prepare`` asks for."""

_Context = dict[str, Any]

_SNAPSHOTS = "volume snapshots are not made here; create_backup takes a backup of its own"
_CONFIGURATION = "the server's configuration is not changed here"
_REPLICATION = "replicas are not set up here"
REFUSED: Final = {
    "pre_create_backup": _SNAPSHOTS,
    "post_create_backup": _SNAPSHOTS,
    "get_replication_snapshot": _REPLICATION,
    "attach_replica": _REPLICATION,
    "attach_replication_slave": _REPLICATION,
    "detach_replica": _REPLICATION,
    "start_db_with_conf_changes": _CONFIGURATION,
    "reset_configuration": _CONFIGURATION,
    "update_overrides": _CONFIGURATION,
    "apply_overrides": _CONFIGURATION,
    "pre_upgrade": "the server is not upgraded here",
    "upgrade": "the server is not upgraded here",
    "post_upgrade": "the server is not upgraded here",
    "rebuild": "the server is not built anew here",
}
"""What Trove may ask that touches backups or the server's life, and that is not done."""


class RefusingWorker(Worker, Protocol):
    """What this endpoint asks beside that: some of Trove's casts are answered by a job's end alone."""

    def refuse(self, job: Job, error: GuestagentError) -> Job:
        """Remember a request that is not accepted as a job that failed."""


class OnRefused(Protocol):
    """Told of a backup that no job was made for."""

    def __call__(self, backup_id: str, error: GuestagentError, /, *, incremental: bool) -> object:
        """Tell whoever waits for it."""


class Trove:
    """The methods that Trove calls; ``host`` gives this host as it is configured now.

    ``on_refused`` is told of a backup that no job was made for; ``on_stopped`` whether the server is meant to be down.
    """

    target: Final = messaging.Target(version=VERSION)

    def __init__(
        self,
        worker: RefusingWorker,
        *,
        instance: InstanceId,
        host: Callable[[], Host],
        on_refused: OnRefused = lambda backup_id, error, *, incremental: None,
        on_stopped: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._worker = worker
        self._instance = instance
        self._host = host
        self._on_refused = on_refused
        self._on_stopped = on_stopped

    # Backups

    @expose
    def create_backup(self, context: _Context, /, **arguments: Any) -> None:
        """Take the backup that ``backup_info`` describes; a parent makes it incremental."""
        given = Arguments("create_backup", arguments)
        info = given.inner("backup_info")
        backup = info.id("id")
        self._check_instance(info)
        with self._told(backup, incremental=info.holds("parent")):
            given.end()
            name = info.text("name", limit=NAME_LIMIT, folded=True, default="")
            description = info.maybe_text("description", limit=DESCRIPTION_LIMIT, folded=True) or ""
            parent, checksum = self._parent(info)
            request = backup_request(name, description, parent=parent, checksum=checksum)
            self._submit(Kind.BACKUP, backup, request, context)

    @expose
    def prepare(self, context: _Context, /, **arguments: Any) -> None:
        """Restore the backup that ``backup_info`` names, into a datadir without anybody's data."""
        given = Arguments("prepare", arguments)
        info = given.maybe_inner("backup_info")
        others = given.others(but="ds_version")
        if others:
            LOG.warning("prepare: not done, since only backups are dealt with here: %s", one_line(", ".join(others)))
        if info is None:
            LOG.info("prepare names no backup: there is nothing to do")
            return
        backup = info.id("id")
        with self._remembered(backup, context):
            location = places.location(info, "location", self._host())
            request = restore_request(location, checksum=info.digest("checksum"), pristine=True, start=True)
            self._submit(Kind.RESTORE, self._restore_id(backup, location), request, context)

    @expose
    def backup_required_for_replication(self, context: _Context, /, **arguments: Any) -> bool:
        """Yes: a replica of this server begins with a backup of it."""
        Arguments("backup_required_for_replication", arguments).end()
        return True

    # The server's life

    @expose
    def rpc_ping(self, context: _Context, /, **arguments: Any) -> bool:
        """Yes, somebody is there."""
        Arguments("rpc_ping", arguments).end()
        return True

    @expose
    def get_filesystem_stats(self, context: _Context, /, **arguments: Any) -> dict[str, Any]:
        """How full the filesystem of ``fs_path`` is; none, as newer Troves send it, means that of the datadir."""
        given = Arguments("get_filesystem_stats", arguments)
        path = given.maybe_text("fs_path", limit=PATH_LIMIT)
        given.end()
        if path is not None and not os.path.isabs(path):
            raise given.wrong("fs_path", f"must be an absolute path, not {shown(path)}")
        return _stats(given, path or str(_datadir(self._host())))

    @expose
    def stop_db(self, context: _Context, /, **arguments: Any) -> None:
        """Stop the server; it stays down until ``restart``."""
        given = Arguments("stop_db", arguments)
        stays_down = given.maybe_flag("do_not_start_on_reboot")
        given.end()
        if stays_down:
            LOG.warning("stop_db: not done, since it is the unit's own matter: do_not_start_on_reboot")
        host = self._host()
        with only_job(host.state_dir, "stop_db"), self._meant_down():
            _stop(host, _watch())

    @expose
    def restart(self, context: _Context, /, **arguments: Any) -> None:
        """Stop the server and start it as it always is."""
        Arguments("restart", arguments).end()
        host = self._host()
        with only_job(host.state_dir, "restart"):
            watch = _watch()
            try:
                with self._meant_down():
                    _stop(host, watch)
                service.start(host.database, watch)
            finally:
                self._on_stopped(False)

    # Below

    @contextmanager
    def _meant_down(self) -> Iterator[None]:
        """Say that the server goes down on purpose; one that could not be stopped is not meant to be down."""
        self._on_stopped(True)
        try:
            yield
        except BaseException:
            self._on_stopped(False)
            raise

    def _submit(self, kind: Kind, job_id: str, request: Mapping[str, Any], context: _Context) -> None:
        self._worker.submit(order(kind, job_id, request, origin=ORIGIN, notification=_notification(context)))

    def _restore_id(self, backup: str, location: str) -> str:
        """The id of the job that a prepare asks for: the same as before, unless that one has failed."""
        attempt = 0
        while True:
            found = str(uuid.uuid5(_RESTORES, f"{self._instance} {backup} {location} {attempt}"))
            try:
                state = self._worker.get(found).state
            except NotFound:
                return found
            if state not in (State.FAILED, State.CANCELLED):
                return found
            attempt += 1

    @contextmanager
    def _remembered(self, backup: str, context: _Context) -> Iterator[None]:
        """Make a refusal a job that failed: heartbeats tell then that the instance is without its data."""
        try:
            yield
        except GuestagentError as error:
            refused = restore_request(backup, pristine=True, start=True)
            job = order(Kind.RESTORE, new_id(), refused, origin=ORIGIN, notification=_notification(context))
            self._worker.refuse(job, error)
            raise

    def _check_instance(self, info: Arguments) -> None:
        named = info.maybe_text("instance_id", limit=LOCATION_LIMIT)
        if named not in (None, self._instance):
            raise Refused(f"backup_info.instance_id is {shown(str(named))}, and this is {self._instance}")

    def _parent(self, info: Arguments) -> tuple[str | None, str | None]:
        parent = info.maybe_inner("parent")
        if parent is None:
            return None, None
        return places.own_backup(parent, "location", self._host()), parent.digest("checksum")

    @contextmanager
    def _told(self, backup: str, *, incremental: bool) -> Iterator[None]:
        """Tell of a refusal, unless there is a job of that id: that one speaks for itself."""
        try:
            yield
        except GuestagentError as error:
            try:
                self._worker.get(backup)
            except NotFound:
                self._on_refused(backup, error, incremental=incremental)
            raise


def _stop(host: Host, watch: Watch) -> None:
    """Stop the server; one that is not there and of which nothing is known is stopped."""
    try:
        datadir = _datadir(host)
    except DatabaseError:
        if _answers(host):
            raise
        LOG.info("no server answers, and [database] datadir is not set: there is nothing to stop")
        return
    service.stop(host.database, datadir, watch)


def _datadir(host: Host) -> Path:
    """Where the server's data are: as configured, or as the server says."""
    if host.database.datadir is not None:
        return host.database.datadir
    with connect(host.database.connection, timeout=SQL_TIMEOUT) as database:
        return database.facts().datadir


def _answers(host: Host) -> bool:
    try:
        answers(host.database.connection, timeout=0)
    except DatabaseError:
        return False
    return True


def _notification(context: _Context) -> dict[str, Any]:
    """What Trove's notification of the end is made from: the one part of a context that is kept, if it is small."""
    found = context.get("trove_notification")
    if not isinstance(found, dict) or not found:
        return {}
    try:
        document.parsed(json.dumps(found).encode(), most=NOTIFICATION_LIMIT, deepest=NOTIFICATION_DEPTH)
    except (TypeError, ValueError, RecursionError):
        LOG.warning("the context's notification is too big to be kept, or no JSON: none will be sent")
        return {}
    return found


def _watch() -> Watch:
    return Watch(limit=COMMAND_LIMIT)


def _stats(given: Arguments, path: str) -> dict[str, Any]:
    try:
        found = os.statvfs(path)
    except OSError as error:
        raise given.wrong("fs_path", f"{shown(path)} cannot be looked at: {error.strerror}") from error
    total, free = found.f_blocks * found.f_frsize, found.f_bfree * found.f_frsize
    return {
        "block_size": found.f_frsize,
        "total_blocks": found.f_blocks,
        "free_blocks": found.f_bfree,
        "total": round(total / GIB, 2),
        "free": free,
        "used": round((total - free) / GIB, 2),
    }


def _refusal(name: str, why: str) -> Callable[..., None]:
    def refuse(self: Trove, context: _Context, /, **arguments: Any) -> None:
        raise Refused(f"{name} is refused: {why}")

    refuse.__doc__ = f"Refuse: {why}."
    return expose(refuse)


for _name, _why in REFUSED.items():
    setattr(Trove, _name, _refusal(_name, _why))
