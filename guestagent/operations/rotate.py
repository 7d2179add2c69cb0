"""The rotation story: data keys of existing backups are wrapped anew by the key of new ones; no data moves.

Each backup is one small object that is replaced at once.  A rotation that is stopped anywhere leaves backups of both
keys, all of which can be restored with both at hand; the next rotation does the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from guestagent.errors import ConfigError, GuestagentError
from guestagent.keys import KeySource
from guestagent.manifest import Backup
from guestagent.operations.host import Host
from guestagent.progress import Watch


@dataclass(frozen=True)
class Rewrapped:
    """A backup that was not under the current key: ``key_id`` is the one that it was under, ``error`` why it still is.

    ``error`` is None where nothing keeps it there.
    """

    backup: Backup
    key_id: str
    error: GuestagentError | None = None


@dataclass(frozen=True)
class KeyInUse:
    """A key (empty id: none), how many backups are under it, and ``state``: current, old, missing or none."""

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
    for number, one in enumerate(found, start=1):
        watch.check()
        watch.phase(f"rotate {one.backup.id}", link=number, links=len(found))
        if one.error is None:
            host.catalog.rewrap(one.backup, current)
    return found


def keys_in_use(host: Host, *, everything: bool = False) -> list[KeyInUse]:
    """The keys at hand and those that backups name: the current one first, those without a backup, too."""
    current, old = host.keys.current, [key.id for key in host.keys.old]
    found = host.catalog.backups(None if everything else host.instance)
    counted = Counter(host.catalog.key_id_of(backup) for backup in found)
    states = {current.id: "current"} if current else {}
    states |= {key_id: "old" for key_id in old if key_id not in states}
    states |= {key_id: "missing" if key_id else "none" for key_id in sorted(counted) if key_id not in states}
    return [KeyInUse(key_id, counted[key_id], state) for key_id, state in states.items()]


def _current(host: Host) -> KeySource:
    if host.keys.current is None:
        raise ConfigError("no key for new backups is configured", hint="set [encryption] key_file or key")
    return host.keys.current


def _outdated(host: Host, current: str, *, everything: bool) -> Iterator[Rewrapped]:
    for backup in host.catalog.backups(None if everything else host.require_instance()):
        key_id = host.catalog.key_id_of(backup)
        if key_id not in ("", current):
            yield Rewrapped(backup, key_id, None if backup.data_key else _missing(backup, key_id))


def _missing(backup: Backup, key_id: str) -> GuestagentError:
    return ConfigError(
        f"backup {backup.id} stays under key {key_id}, which is not here",
        hint="name it in [encryption] old_key_files or old_keys, and rotate again",
    )
