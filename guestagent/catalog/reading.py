"""How a manifest and its key are read, and when they are believed damaged: not before a second answer says so, too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from guestagent.catalog.layout import MANIFEST, key_key, manifest_key, spare_key, split_location
from guestagent.errors import Corrupt, Foreign, ObjectMissing
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

    @property
    def remedy(self) -> str:
        """What whoever needs it read, or gone, can do."""
        if isinstance(self.error, Foreign):
            return self.error.hint
        return f"try again, or put whole objects back; if it is lost, `guestagent backup delete {self.id} --damaged`"


def twice(read: Callable[[], T], *, again: Callable[[], T] | None = None) -> T:
    """What ``read`` gives, asked once more if that is Corrupt: it may have been the answer, and not the object.

    ``again`` is what is asked then, where that is something else.
    """
    try:
        return read()
    except Corrupt as error:
        LOG.debug("read once more: %s", error)
    return (again or read)()


class Reader:
    """Reads backups by their locations, with the keys that are at hand."""

    def __init__(self, store: Callable[[str], Storage], keys: KeyRing) -> None:
        self._store = store
        self._keys = keys

    def backup(self, location: str) -> Backup:
        """The backup at a location; raises ObjectMissing if there is none, and Corrupt."""
        return twice(lambda: self._backup(location), again=lambda: self._backup(location, again=True))

    def wrapped(self, location: str) -> WrappedKey:
        """The wrapped data key of an encrypted backup; raises Corrupt, too, if there is none."""
        root, instance, wanted = split_location(location)
        key = key_key(instance, wanted)
        try:
            return self._wrapped(root, key)
        except ObjectMissing as error:
            raise Corrupt(f"{root}/{key} is missing", hint="without it nothing can decrypt the backup") from error

    def spare(self, location: str) -> WrappedKey | None:
        """The same from the object that stands in for key.json while it is replaced; None if there is none."""
        root, instance, wanted = split_location(location)
        try:
            return self._wrapped(root, spare_key(instance, wanted))
        except ObjectMissing:
            return None

    def has_good_spare(self, backup: Backup) -> bool:
        """Whether a spare is there, and opens to the backup's data key."""

        def opens() -> bool:
            spare = self.spare(backup.location)
            return spare is not None and self._data_key(backup, spare) == backup.data_key

        try:
            return twice(opens)
        except Corrupt as error:
            LOG.debug("no good spare: %s", error)
            return False

    def _wrapped(self, root: str, key: str) -> WrappedKey:
        try:
            return WrappedKey.from_bytes(self._store(root).get(key, limit=MAX_SIZE))
        except Corrupt as error:
            raise type(error)(f"{root}/{key}: {error.what}", hint=error.hint) from error

    def _backup(self, location: str, *, again: bool = False) -> Backup:
        root, instance, wanted = split_location(location)
        data = self._store(root).get(manifest_key(instance, wanted), limit=MAX_MANIFEST)
        try:
            manifest = Manifest.from_bytes(data)
        except Corrupt as error:
            raise type(error)(f"{location}/{MANIFEST}: {error.what}", hint=error.hint) from error
        if (manifest.id, manifest.instance_id) != (wanted, instance):
            raise Foreign(
                f"{location}/{MANIFEST} is the manifest of {manifest.instance_id}/{manifest.id}",
                hint="move it back to its own place",
            )
        return self._unlocked(Backup(manifest, location, digest(data)), again=again)

    def _unlocked(self, backup: Backup, *, again: bool) -> Backup:
        """An encrypted backup with what its key shows of it, if that is here; raises Corrupt if it does not open.

        Where key.json does not help, its spare may: a rotation has been stopped, or the store has lost what it put.
        """
        if backup.manifest.encryption is None:
            return backup
        try:
            found = self._opened(backup, self.wrapped(backup.location))
        except Corrupt as error:
            by_spare = self._by_spare(backup) if again else None
            if by_spare is None:
                raise
            LOG.warning("%s; its spare helps, and `guestagent key rotate` mends it", error.what)
            return by_spare
        if found.data_key:
            return found
        by_spare = self._by_spare(backup)
        return by_spare if by_spare and by_spare.data_key else found

    def _by_spare(self, backup: Backup) -> Backup | None:
        """The same by its spare; None if there is none, or it does not open either."""

        def opened() -> Backup | None:
            spare = self.spare(backup.location)
            return None if spare is None else self._opened(backup, spare)

        try:
            return twice(opened)
        except Corrupt as error:
            LOG.debug("the spare is of no help: %s", error)
            return None

    def _opened(self, backup: Backup, wrapped: WrappedKey) -> Backup:
        try:
            data_key = self._data_key(backup, wrapped)
            if data_key:
                shown = Seal(data_key, split_location(backup.location)[2]).unlock(backup.manifest)
                return replace(backup, manifest=shown, data_key=data_key)
        except Corrupt as error:
            raise Corrupt(f"{backup.location}: {error.what}", hint=error.hint) from error
        hidden = replace(backup.manifest, name=HIDDEN, description=HIDDEN)
        return replace(backup, manifest=hidden, locked_by=wrapped.key_id)

    def _data_key(self, backup: Backup, wrapped: WrappedKey) -> bytes:
        """What is wrapped; empty if the key that opens it is not here; raises Corrupt."""
        _, instance, wanted = split_location(backup.location)
        source = self._keys.find(wrapped.key_id)
        return b"" if source is None else source.unwrap(wrapped.wrapped, context(instance, wanted))
