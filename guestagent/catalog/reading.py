"""How a manifest and its key are read, and when they are believed damaged: not before a second answer says so, too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from guestagent.catalog.layout import MANIFEST, key_key, manifest_key, split_location
from guestagent.errors import Corrupt, ObjectMissing
from guestagent.keys import KeyRing
from guestagent.manifest import MAX_MANIFEST, Backup, Manifest, digest
from guestagent.model import BackupId
from guestagent.storage import Storage
from guestagent.streams.seal import HIDDEN, Seal
from guestagent.wrapped import MAX_SIZE, WrappedKey, context

LOG = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Unreadable:
    """A backup that is there, and that nobody can read: whatever it says, and stands on, may be lost with it."""

    location: str
    error: Corrupt

    @property
    def id(self) -> BackupId:
        """The id that its place gives it."""
        return split_location(self.location)[2]


def twice(read: Callable[[], T]) -> T:
    """What ``read`` gives, asked once more if that is Corrupt: it may have been the answer, and not the object."""
    try:
        return read()
    except Corrupt as error:
        LOG.debug("read once more: %s", error)
    return read()


class Reader:
    """Reads backups by their locations, with the keys that are at hand."""

    def __init__(self, store: Callable[[str], Storage], keys: KeyRing) -> None:
        self._store = store
        self._keys = keys

    def backup(self, location: str) -> Backup:
        """The backup at a location; raises ObjectMissing if there is none, and Corrupt."""
        return twice(lambda: self._backup(location))

    def wrapped(self, location: str) -> WrappedKey:
        """The wrapped data key of an encrypted backup; raises Corrupt, too, if there is none."""
        root, instance, wanted = split_location(location)
        key = key_key(instance, wanted)
        try:
            return WrappedKey.from_bytes(self._store(root).get(key, limit=MAX_SIZE))
        except ObjectMissing as error:
            raise Corrupt(f"{root}/{key} is missing", hint="without it nothing can decrypt the backup") from error
        except Corrupt as error:
            raise Corrupt(f"{root}/{key}: {error.what}", hint=error.hint) from error

    def _backup(self, location: str) -> Backup:
        root, instance, wanted = split_location(location)
        data = self._store(root).get(manifest_key(instance, wanted), limit=MAX_MANIFEST)
        try:
            manifest = Manifest.from_bytes(data)
        except Corrupt as error:
            raise Corrupt(f"{location}/{MANIFEST}: {error.what}", hint=error.hint) from error
        if (manifest.id, manifest.instance_id) != (wanted, instance):
            raise Corrupt(f"{location}/{MANIFEST} is the manifest of {manifest.instance_id}/{manifest.id}")
        return self._unlocked(Backup(manifest, location, digest(data)))

    def _unlocked(self, backup: Backup) -> Backup:
        """An encrypted backup with what its key shows of it, if that is here; raises Corrupt if it does not open."""
        if backup.manifest.encryption is None:
            return backup
        _, instance, wanted = split_location(backup.location)
        wrapped = self.wrapped(backup.location)
        source = self._keys.find(wrapped.key_id)
        if source is None:
            hidden = replace(backup.manifest, name=HIDDEN, description=HIDDEN)
            return replace(backup, manifest=hidden, locked_by=wrapped.key_id)
        try:
            data_key = source.unwrap(wrapped.wrapped, context(instance, wanted))
            return replace(backup, manifest=Seal(data_key, wanted).unlock(backup.manifest), data_key=data_key)
        except Corrupt as error:
            raise Corrupt(f"{backup.location}: {error.what}", hint=error.hint) from error
