"""The delete story: never a parent without its children, never half."""

from __future__ import annotations

from guestagent.errors import Refused
from guestagent.manifest import Backup
from guestagent.model import BackupId
from guestagent.operations.host import Host
from guestagent.operations.sweep import sweep_own, unfinished
from guestagent.progress import Watch


def doomed(host: Host, wanted: BackupId, *, cascade: bool) -> list[Backup]:
    """What a delete would delete, children before their parents; raises Refused if that is more than was meant.

    A backup that cannot be read may be a child that is lost with its parent, and so it refuses every delete.
    """
    target = host.catalog.get(wanted)
    everything, unreadable = host.catalog.census()
    family = [target]
    for member in family:  # grows while it is walked
        family += [one for one in everything if _stands_on(one, member) and one not in family]
    if len(family) > 1 and not cascade:
        raise Refused(
            f"{len(family) - 1} backups stand on {wanted}, {family[1].id} among them",
            hint="delete those first, or give --cascade",
        )
    for one in unreadable:
        raise Refused(
            f"backup {one.id} cannot be read and may stand on {wanted}: {one.error.what}",
            hint=f"try again, or put whole objects back; if it is lost, remove {one.location} from the store by hand",
        )
    return family[::-1]


def _stands_on(one: Backup, other: Backup) -> bool:
    parent = one.manifest.parent
    return parent is not None and parent.id == other.id


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
