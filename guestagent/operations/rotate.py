"""The rotation story: data keys of existing backups are wrapped anew by the key of new ones; no data moves.

Each backup is one small object that is replaced at once, with a spare beside it for as long as that takes.  A rotation
that is stopped anywhere leaves backups of both keys, all of which can be restored with both at hand; the next one does
the rest.  Of two that meet at a backup, one leaves it to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from guestagent.catalog import Unreadable, Wrapping, split_location
from guestagent.errors import Busy, ConfigError, Corrupt, GuestagentError
from guestagent.keys import KeySource
from guestagent.manifest import Backup
from guestagent.model import InstanceId
from guestagent.operations.host import Host
from guestagent.progress import Watch


@dataclass(frozen=True)
class Rewrapped:
    """A backup that was not under the current key: ``key_id`` is the one that it was under, ``error`` why it still is.

    ``error`` is None where nothing keeps it there; ``key_id`` is empty where nobody can tell it, and the current key's
    where a rotation was stopped before its end.
    """

    backup: Backup | Unreadable
    key_id: str
    error: GuestagentError | None = None

    @property
    def instance_id(self) -> InstanceId:
        """Whose backup it is."""
        return split_location(self.backup.location)[1]


@dataclass(frozen=True)
class KeyInUse:
    """A key (empty id: none), how many backups are under it, and ``state``: current, old, missing or none.

    A backup whose rotation was stopped is under both keys.
    """

    id: str
    backups: int
    state: str


def outdated(host: Host, *, everything: bool = False) -> list[Rewrapped]:
    """What a rotation would rewrap, and what it could not: the encrypted backups that another key wraps.

    Those of this instance; ``everything``: all that the credentials may list.  Raises ConfigError if there is no
    current key.
    """
    return list(_outdated(host, _current(host).id, everything=everything))


def rotate(host: Host, watch: Watch, *, everything: bool = False) -> list[Rewrapped]:
    """Rewrap what ``outdated`` finds, oldest first; one that cannot be does not keep the others from it."""
    current = _current(host)
    found = outdated(host, everything=everything)
    done = []
    for number, one in enumerate(found, start=1):
        watch.check()
        watch.phase(f"rotate {one.backup.id}", link=number, links=len(found))
        done.append(_rotated(host, one, current))
    return done


def _rotated(host: Host, one: Rewrapped, current: KeySource) -> Rewrapped:
    """The same once it is rewrapped, or as another host's to rewrap, which does so now."""
    try:
        if one.error is None and isinstance(one.backup, Backup):
            host.catalog.rewrap(one.backup, current)
    except Busy as error:
        return replace(one, error=error)
    return one


def keys_in_use(host: Host, *, everything: bool = False) -> list[KeyInUse]:
    """The keys at hand and those that backups name: the current one first, those without a backup, too.

    A backup whose manifest cannot be read counts by its key.json; raises Corrupt where that cannot be read either.
    """
    current, old = host.keys.current, [key.id for key in host.keys.old]
    found = _census(host, None if everything else host.instance)
    counted = Counter(key_id for backup in found for key_id in _wrapping(host, backup).key_ids or ("",))
    states = {current.id: "current"} if current else {}
    states |= {key_id: "old" for key_id in old if key_id not in states}
    states |= {key_id: "missing" if key_id else "none" for key_id in sorted(counted) if key_id not in states}
    return [KeyInUse(key_id, counted[key_id], state) for key_id, state in states.items()]


def _current(host: Host) -> KeySource:
    if host.keys.current is None:
        raise ConfigError("no key for new backups is configured", hint="set [encryption] key_file or key")
    return host.keys.current


def _outdated(host: Host, current: str, *, everything: bool) -> Iterator[Rewrapped]:
    for backup in _census(host, None if everything else host.require_instance()):
        try:
            wrapping = _wrapping(host, backup)
        except Corrupt as error:
            yield Rewrapped(backup, "", error)
            continue
        others = [key_id for key_id in wrapping.key_ids if key_id != current]
        if others:
            yield Rewrapped(backup, others[0], _obstacle(backup, others[0]))
        elif isinstance(backup, Backup) and not wrapping.finished:
            yield Rewrapped(backup, current)


def _census(host: Host, instance: InstanceId | None) -> list[Backup | Unreadable]:
    """All that may need a key: what cannot be read, too."""
    found, unreadable = host.catalog.census(instance)
    return [*found, *unreadable]


def _wrapping(host: Host, backup: Backup | Unreadable) -> Wrapping:
    try:
        return host.catalog.wrapping(backup)
    except Corrupt as error:
        cause = backup.error if isinstance(backup, Unreadable) else error
        raise _unread(backup, f"nobody can tell which key backup {backup.id} needs", cause) from error


def _obstacle(backup: Backup | Unreadable, key_id: str) -> GuestagentError | None:
    """What keeps a backup under its key."""
    if isinstance(backup, Unreadable):
        return _unread(backup, f"backup {backup.id} stays under key {key_id}", backup.error)
    return None if backup.data_key else _missing(backup, key_id)


def _unread(backup: Backup | Unreadable, told: str, error: Corrupt) -> Corrupt:
    return Corrupt(f"{told}: {error.what}", hint=f"keep every key, and {Unreadable(backup.location, error).remedy}")


def _missing(backup: Backup, key_id: str) -> GuestagentError:
    return ConfigError(
        f"backup {backup.id} stays under key {key_id}, which is not here",
        hint="name it in [encryption] old_key_files or old_keys, and rotate again",
    )
