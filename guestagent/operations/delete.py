"""The delete story: never a parent without its children, never half; what is damaged for good only by its own name."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from guestagent.catalog import Remains, Unreadable
from guestagent.errors import Foreign, Refused
from guestagent.manifest import Backup, timestamp
from guestagent.model import BackupId
from guestagent.operations.host import Host
from guestagent.operations.sweep import sweep_own, unfinished
from guestagent.progress import Watch

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ruin:
    """A backup that is damaged, and what lies there: nobody can tell any more what it held."""

    backup: Unreadable
    remains: Remains

    @property
    def id(self) -> BackupId:
        """The backup's id."""
        return self.backup.id

    def properties(self) -> dict[str, Any]:
        """What users see of it, by the names of a backup's properties; None for what only its manifest told."""
        modified = self.remains.modified
        return {
            "id": self.id,
            "instance_id": self.remains.instance_id,
            "locationRef": self.backup.location,
            "name": None,
            "type": None,
            "parent_id": None,
            "size": round(self.remains.size / 2**30, 4),
            "stored_size": self.remains.size,
            "status": "FAILED",
            "updated": timestamp(modified)[:19] + "Z" if modified else None,
            "note": self.backup.error.what,
        }


def doomed(host: Host, wanted: BackupId, *, cascade: bool) -> list[Backup]:
    """What a delete would delete, children before their parents; raises Refused if that is more than was meant.

    A backup that cannot be read may be a child that is lost with its parent, and so it refuses every delete but that
    of a backup that stands on it.
    """
    target = host.catalog.look(wanted)
    if isinstance(target, Unreadable):
        raise type(target.error)(target.error.what, hint=target.remedy)
    everything, unreadable = host.catalog.census()
    family = [target]
    for member in family:  # grows while it is walked
        family += [one for one in _children(member.id, everything) if one not in family]
    if len(family) > 1 and not cascade:
        raise Refused(
            f"{len(family) - 1} backups stand on {wanted}, {family[1].id} among them",
            hint="delete those first, or give --cascade",
        )
    older = _ancestors(target, everything)
    for one in unreadable:
        if one.id not in older:
            raise Refused(
                f"backup {one.id} cannot be read and may stand on {wanted}: {one.error.what}", hint=one.remedy
            )
    return family[::-1]


def ruined(host: Host, wanted: BackupId) -> Ruin:
    """What a delete of a damaged backup would delete: that alone.

    Raises Refused for one that can be read, here or by somebody else, and for one that others say they stand on.
    """
    found = host.catalog.look(wanted)
    if isinstance(found, Backup):
        raise Refused(f"backup {wanted} can be read and is not damaged", hint="leave out --damaged")
    if isinstance(found.error, Foreign):
        raise Refused(f"backup {wanted} is not damaged: {found.error.what}", hint=found.error.hint)
    everything, _ = host.catalog.census()
    if children := _children(wanted, everything):
        raise Refused(
            f"{len(children)} backups stand on {wanted}, {children[0].id} among them",
            hint="put its whole objects back, or delete those first: without it they cannot be restored",
        )
    return Ruin(found, host.catalog.remains(found.location))


def _children(parent: BackupId, everything: Iterable[Backup]) -> list[Backup]:
    return [one for one in everything if one.manifest.parent is not None and one.manifest.parent.id == parent]


def _ancestors(target: Backup, everything: Iterable[Backup]) -> set[BackupId]:
    """What the target stands on, as far as can be read; none of that stands on the target, which came later."""
    known = {one.id: one for one in everything}
    found: set[BackupId] = set()
    at: Backup | None = target
    while at is not None and at.manifest.parent is not None and at.manifest.parent.id not in found:
        found.add(at.manifest.parent.id)
        at = known.get(at.manifest.parent.id)
    return found


def delete(host: Host, wanted: BackupId, watch: Watch, *, cascade: bool = False) -> list[Backup]:
    """Delete a backup, and with ``cascade`` all that stand on it; gives what was deleted."""
    sweep_own(host)
    victims = doomed(host, wanted, cascade=cascade)
    watch.phase("delete", total=sum(victim.manifest.stored_size for victim in victims))
    for victim in victims:
        watch.check()
        with unfinished(host, victim.location):
            host.catalog.delete(victim)
        watch.advance(victim.manifest.stored_size)
    return victims


def delete_damaged(host: Host, wanted: BackupId, watch: Watch) -> Ruin:
    """Delete a backup that is damaged for good, and nothing else; gives what was deleted."""
    sweep_own(host)
    victim = ruined(host, wanted)
    size = victim.remains.size
    watch.phase("delete", total=size)
    watch.check()
    LOG.warning("%d bytes of a damaged backup are lost for good: %s", size, victim.backup.error.what)
    with unfinished(host, victim.backup.location):
        host.catalog.discard(victim.backup.location)
    watch.advance(size)
    return victim
