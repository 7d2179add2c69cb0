"""Our own endpoint: namespace ``backup``, version 1.0.  What starts work answers the job at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from guestagent import __version__
from guestagent.jobs.lock import holder
from guestagent.jobs.record import Kind
from guestagent.manifest import timestamp
from guestagent.model import InstanceId, backup_id
from guestagent.operations.doctor import doctor
from guestagent.operations.host import Host
from guestagent.operations.preflight import LATEST
from guestagent.rpc import places
from guestagent.rpc.checks import DESCRIPTION_LIMIT, NAME_LIMIT, Arguments
from guestagent.rpc.orders import Shown, Worker, backup_request, face, new_id, order, restore_request
from guestagent.transport.oslo import expose, messaging

ORIGIN = "rpc"
NAMESPACE = "backup"
VERSION = "1.0"
CANCELLED = "cancelled by a request over RPC"
MOST_JOBS = 1000
JOBS = 50

_Context = dict[str, Any]
_Rows = list[Shown]


class Ours:
    """The methods that ``guestagent-ctl`` calls; ``host`` gives this host as it is configured now."""

    target: Final = messaging.Target(namespace=NAMESPACE, version=VERSION)

    def __init__(self, worker: Worker, *, instance: InstanceId, host: Callable[[], Host]) -> None:
        self._worker = worker
        self._instance = instance
        self._host = host

    # What starts work

    @expose
    def create(self, context: _Context, /, **arguments: Any) -> Shown:
        """Take a backup: id, name, description, parent (an id, or ``latest``), deadline."""
        given = Arguments("create", arguments)
        name = given.text("name", limit=NAME_LIMIT, default="")
        description = given.text("description", limit=DESCRIPTION_LIMIT, default="")
        parent = given.maybe_id("parent", or_word=LATEST)
        backup = given.maybe_id("id") or new_id()
        return self._submit(Kind.BACKUP, given, backup_request(name or backup, description, parent=parent), id=backup)

    @expose
    def restore(self, context: _Context, /, **arguments: Any) -> Shown:
        """Bring a backup back: source (id or location), id, replace, start, accept_unencrypted (an id), deadline."""
        given = Arguments("restore", arguments)
        request = restore_request(
            places.source(given, "source", self._host()),
            replace=given.flag("replace", default=False),
            start=given.maybe_flag("start"),
            accept_unencrypted=given.maybe_id("accept_unencrypted"),
        )
        return self._submit(Kind.RESTORE, given, request)

    @expose
    def verify(self, context: _Context, /, **arguments: Any) -> Shown:
        """Look at every byte of a backup's chain: backup_id, id, deadline."""
        given = Arguments("verify", arguments)
        return self._submit(Kind.VERIFY, given, {"backup_id": given.id("backup_id")})

    @expose
    def delete(self, context: _Context, /, **arguments: Any) -> Shown:
        """Delete a backup: backup_id, cascade, id, deadline."""
        given = Arguments("delete", arguments)
        request = {"backup_id": given.id("backup_id"), "cascade": given.flag("cascade", default=False)}
        return self._submit(Kind.DELETE, given, request)

    @expose
    def cancel(self, context: _Context, /, **arguments: Any) -> Shown:
        """Cancel a job: job_id."""
        given = Arguments("cancel", arguments)
        wanted = given.id("job_id")
        given.end()
        return face(self._worker, self._worker.cancel(wanted, CANCELLED))

    # What only asks

    @expose
    def show(self, context: _Context, /, **arguments: Any) -> Shown:
        """What is known of a backup: backup_id."""
        given = Arguments("show", arguments)
        wanted = given.id("backup_id")
        given.end()
        host = self._host()
        with host.catalog:
            return host.catalog.get(backup_id(wanted)).properties()

    @expose
    def list(self, context: _Context, /, **arguments: Any) -> _Rows:
        """This instance's backups, oldest first; ``all``: those of all that the credentials may list."""
        given = Arguments("list", arguments)
        everybody = given.flag("all", default=False)
        given.end()
        host = self._host()
        with host.catalog:
            return [found.properties() for found in host.catalog.backups(None if everybody else self._instance)]

    @expose
    def jobs(self, context: _Context, /, **arguments: Any) -> _Rows:
        """This host's jobs, newest first: job_id for one alone, limit."""
        given = Arguments("jobs", arguments)
        wanted = given.maybe_id("job_id")
        limit = given.number("limit", least=1, most=MOST_JOBS, default=JOBS)
        given.end()
        found = [self._worker.get(wanted)] if wanted else self._worker.all()[::-1][:limit]
        return [face(self._worker, job) for job in found]

    @expose
    def doctor(self, context: _Context, /, **arguments: Any) -> _Rows:
        """May this host back up and restore?  One row a check."""
        Arguments("doctor", arguments).end()
        host = self._host()
        with host.catalog:
            return [asdict(finding) for finding in doctor(host, holder)]

    @expose
    def ping(self, context: _Context, /, **arguments: Any) -> Shown:
        """Who is there, and what it does: guest_id, version, now (UTC) and the job that runs."""
        Arguments("ping", arguments).end()
        running = self._worker.running()
        return {
            "guest_id": self._instance,
            "version": __version__,
            "now": timestamp(datetime.now(UTC)),
            "job": face(self._worker, running) if running else None,
        }

    def _submit(self, kind: Kind, given: Arguments, request: Shown, *, id: str | None = None) -> Shown:
        job_id = id or given.maybe_id("id") or new_id()
        deadline = given.moment("deadline")
        given.end()
        job = self._worker.submit(order(kind, job_id, request, origin=ORIGIN, deadline=deadline))
        return face(self._worker, job)
