"""From a job's record to the operation that it asks for, and from its outcome to plain values.

The request of each kind, as JSON values:

- backup: ``name``, ``description``, ``parent`` (a backup's id, ``latest`` or null) and ``parent_checksum``
- restore: ``source`` (a backup's id or location), ``checksum``, ``datadir``, ``replace``, ``pristine``,
  ``start`` and ``accept_unencrypted``
- verify: ``backup_id``
- delete: ``backup_id``, ``cascade`` and ``damaged``

A checksum is the SHA-256 of a manifest that must be the one found, or null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from guestagent.errors import one_line
from guestagent.jobs.record import Job, Kind
from guestagent.manifest import Backup
from guestagent.model import backup_id
from guestagent.operations.backup import BackupRequest, backup
from guestagent.operations.delete import delete, delete_damaged
from guestagent.operations.host import Host
from guestagent.operations.plan import RestoreRequest
from guestagent.operations.restore import restore
from guestagent.operations.verify import verify
from guestagent.progress import Watch

Outcome = dict[str, Any]


def tell(host: Host, job: Job, watch: Watch) -> Outcome:
    """Do what the job asks for, with the host's catalog open; gives its result.  Raises what the operation raises."""
    return _STORIES[job.kind](host, job, watch)


def restore_request(request: Mapping[str, Any]) -> RestoreRequest:
    """The restore that a record asks for."""
    return RestoreRequest(
        source=request["source"],
        datadir=Path(request["datadir"]) if request.get("datadir") else None,
        replace=bool(request.get("replace")),
        start=request.get("start"),
        checksum=request.get("checksum"),
        pristine=bool(request.get("pristine")),
        accept_unencrypted=request.get("accept_unencrypted"),
    )


def _backup(host: Host, job: Job, watch: Watch) -> Outcome:
    request = BackupRequest(
        id=backup_id(job.id),
        name=job.request["name"],
        description=job.request["description"],
        parent=job.request["parent"],
        parent_checksum=job.request.get("parent_checksum"),
    )
    return backup(host, request, watch).properties()


def _restore(host: Host, job: Job, watch: Watch) -> Outcome:
    return restore(host, restore_request(job.request), watch).properties()


def _verify(host: Host, job: Job, watch: Watch) -> Outcome:
    chain = verify(host, backup_id(job.request["backup_id"]), watch)
    return {"links": [_verified(link) for link in chain]}


def _verified(link: Backup) -> Outcome:
    manifest = link.manifest
    return {
        "id": link.id,
        "name": one_line(manifest.name),
        "type": manifest.kind.value,
        "segments": len(manifest.segments),
        "stored_size": manifest.stored_size,
        "verified": "whole",
    }


def _delete(host: Host, job: Job, watch: Watch) -> Outcome:
    wanted, cascade = backup_id(job.request["backup_id"]), job.request["cascade"]
    if job.request.get("damaged"):
        return {"deleted": [delete_damaged(host, wanted, watch).properties()]}
    return {"deleted": [one.properties() for one in delete(host, wanted, watch, cascade=cascade)]}


_STORIES: Mapping[Kind, Callable[[Host, Job, Watch], Outcome]] = {
    Kind.BACKUP: _backup,
    Kind.RESTORE: _restore,
    Kind.VERIFY: _verify,
    Kind.DELETE: _delete,
}
