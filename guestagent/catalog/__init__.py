"""Which bytes in a store count as a backup: key layout, publish, get, list, chain, delete.

A backup exists if and only if its manifest does.  Below a store's URL lie
``<instance_id>/<backup_id>/data/00000000`` ..., ``.../manifest.json`` and, where it is encrypted,
``.../key.json``; the URL of ``<instance_id>/<backup_id>`` is the backup's location.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from guestagent.catalog.layout import (
    DATA,
    MANIFEST,
    folder,
    is_backup_id,
    is_instance_id,
    key_key,
    manifest_key,
    segment_key,
    split_location,
)
from guestagent.chain import MAX_LINKS, Chain
from guestagent.errors import (
    ChainBroken,
    ConfigError,
    Corrupt,
    NotFound,
    ObjectExists,
    ObjectMissing,
    Refused,
    StorageDenied,
    StorageError,
    UsageError,
)
from guestagent.keys import KeyRing, KeySource
from guestagent.manifest import MAX_MANIFEST, Backup, Manifest, Parent, Segment, digest
from guestagent.model import BackupId, InstanceId, backup_id, instance_id
from guestagent.storage import Storage
from guestagent.streams.seal import HIDDEN, Seal, new_data_key
from guestagent.wrapped import MAX_SIZE, WrappedKey, context

__all__ = ["Catalog", "Orphan", "split_location"]

LOG = logging.getLogger(__name__)

Open = Callable[[str], Storage]
"""Opens the store of a URL; the catalog keeps it and closes it."""


@dataclass(frozen=True)
class Orphan:
    """Objects of a backup that has no manifest: one under way somewhere, or what a dead one left."""

    instance_id: InstanceId
    id: BackupId
    size: int
    modified: datetime


class Catalog:
    """The backups below one store's URL, seen by one instance (None: by nobody in particular)."""

    def __init__(
        self, url: str, *, instance: InstanceId | None, open_storage: Open, keys: KeyRing | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._instance = instance
        self._open = open_storage
        self._keys = keys or KeyRing()
        self._stores: dict[str, Storage] = {}

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    # Finding

    def location(self, instance: InstanceId, wanted: BackupId) -> str:
        """The URL that a backup has, or would have, in this store."""
        return f"{self._url}/{instance}/{wanted}"

    def get(self, wanted: BackupId) -> Backup:
        """The backup of that id: the own instance's first, then anybody's; raises NotFound."""
        for instance in self._instances_own_first():
            try:
                return self._read(self._url, instance, wanted)
            except ObjectMissing:
                continue
        raise NotFound(
            f"no backup {wanted} below {self._url}", hint="`guestagent backup list` shows those that there are"
        )

    def at(self, location: str) -> Backup:
        """The backup at a location; raises NotFound, and UsageError for what cannot be one."""
        root, instance, wanted = split_location(location)
        try:
            return self._read(root, instance, wanted)
        except ObjectMissing as error:
            raise NotFound(f"no backup at {location}") from error

    def exists(self, location: str) -> bool:
        """Whether a backup's manifest is there."""
        root, instance, wanted = split_location(location)
        try:
            self._store(root).size(manifest_key(instance, wanted))
        except ObjectMissing:
            return False
        return True

    def backups(self, instance: InstanceId | None = None) -> list[Backup]:
        """The backups of ``instance`` (None: of all that the credentials may list), oldest first.

        A manifest that cannot be read is reported in the log and left out.
        """
        store = self._store(self._url)
        instances = [instance] if instance else self._instances()
        found = [
            backup
            for owner in instances
            for name in store.folders(f"{owner}/")
            if (backup := self._readable(owner, name)) is not None
        ]
        return sorted(found, key=lambda backup: (backup.manifest.started, backup.id))

    def chain(self, tip: Backup) -> Chain:
        """All that a restore of ``tip`` needs, base first, checked; raises ChainBroken."""
        links = [tip]
        while links[-1].manifest.parent is not None:
            if len(links) >= MAX_LINKS:
                raise ChainBroken(f"chain of {tip.id} has more than {MAX_LINKS} links", hint="take a full backup")
            links.append(self._parent_of(links[-1], seen={link.id for link in links}))
        for link in links:
            if link.locked_by:
                raise ConfigError(
                    f"backup {link.id} is encrypted with key {link.locked_by}, which is not here",
                    hint="name its file in [encryption] key_file or old_key_files",
                )
        return Chain(tuple(reversed(links)))

    def _parent_of(self, child: Backup, *, seen: set[BackupId]) -> Backup:
        parent = child.manifest.parent
        assert parent is not None
        if parent.id in seen:
            raise ChainBroken(f"chain broken at {child.id}: its parent {parent.id} is its own descendant")
        recorded, instance, wanted = _recorded(child.id, parent)
        here, _, _ = split_location(child.location)
        for root in dict.fromkeys([here, recorded]):  # a store that was moved still holds together
            try:
                return self._read(root, instance, wanted)
            except ObjectMissing:
                continue
        raise ChainBroken(f"chain broken at {child.id}: its parent {parent.id} is gone", hint="take a full backup")

    # Writing

    def put_segment(self, instance: InstanceId, owner: BackupId, index: int, stored: bytes, sha256: str) -> None:
        """Store one segment of a backup that is being made."""
        self._store(self._url).put(segment_key(instance, owner, index), stored, sha256=sha256)

    def check_stored(self, manifest: Manifest) -> None:
        """Raise Corrupt unless every segment of the manifest lies in the store, whole by size."""
        prefix = f"{folder(manifest.instance_id, manifest.id)}/{DATA}/"
        sizes = {found.key: found.size for found in self._store(self._url).list(prefix)}
        for segment in manifest.segments:
            key = segment_key(manifest.instance_id, manifest.id, segment.index)
            if sizes.get(key) != segment.stored_size:
                raise Corrupt(
                    f"{self._url}/{key} should have {segment.stored_size} bytes and "
                    + (f"has {sizes[key]}" if key in sizes else "is missing"),
                    hint="the store lost an upload that it had confirmed; try again",
                )

    def new_data_key(self, instance: InstanceId, owner: BackupId) -> bytes:
        """A data key for a backup that is about to be made, stored wrapped; empty if none is to be encrypted."""
        if self._keys.current is None:
            return b""
        data_key = new_data_key()
        self._put_key(self._url, instance, owner, self._keys.current, data_key)
        return data_key

    def publish(self, manifest: Manifest, *, data_key: bytes = b"") -> Backup:
        """Write the manifest, which makes the backup exist; raises Refused if it does already.

        What comes back is what a reader will find: a manifest that could not be read is never written.
        """
        body = (Seal(data_key, manifest.id).lock(manifest) if data_key else manifest).to_bytes()
        as_read = Manifest.from_bytes(body)
        if data_key:
            as_read = Seal(data_key, manifest.id).unlock(as_read)
        key = manifest_key(manifest.instance_id, manifest.id)
        try:
            self._store(self._url).put_new(key, body)
        except StorageError as error:
            if not self._holds(key, body):  # it may have been stored although the store's answer got lost
                raise _as_refusal(error, manifest.id) from error
        return Backup(as_read, self.location(manifest.instance_id, manifest.id), digest(body), data_key)

    def _holds(self, key: str, body: bytes) -> bool:
        try:
            return self._store(self._url).get(key, limit=len(body)) == body
        except (StorageError, Corrupt):
            return False

    # Reading data

    def fetch(self, owner: Backup, segment: Segment) -> bytes:
        """A segment's stored bytes, proven to be those of the manifest; raises Corrupt and names the object."""
        root, instance, wanted = split_location(owner.location)
        key = segment_key(instance, wanted, segment.index)
        try:
            stored = self._store(root).get(key, limit=segment.stored_size)
        except ObjectMissing as error:
            raise Corrupt(f"{root}/{key} is missing", hint="the backup cannot be restored; use another") from error
        if digest(stored) != segment.sha256:
            raise Corrupt(
                f"{root}/{key} is not what the manifest promises", hint="the backup cannot be restored; use another"
            )
        return stored

    # Keys

    def encrypts(self, backup: Backup) -> bool:
        """Whether backups beside this one are encrypted, or new ones would be."""
        if self._keys.current is not None:
            return True
        root, instance, wanted = split_location(backup.location)
        store = self._store(root)
        others = (name for name in store.folders(f"{instance}/") if is_backup_id(name) and name != wanted)
        return any(self._has_key(store, instance, backup_id(name)) for name in others)

    @staticmethod
    def _has_key(store: Storage, instance: InstanceId, owner: BackupId) -> bool:
        try:
            store.size(key_key(instance, owner))
        except ObjectMissing:
            return False
        return True

    def key_id_of(self, backup: Backup) -> str:
        """The id of the key that a backup's data key is wrapped with; empty if it is not encrypted."""
        return self._wrapped(*split_location(backup.location)).key_id if backup.manifest.encryption else ""

    def rewrap(self, backup: Backup, new: KeySource) -> None:
        """Wrap a backup's data key anew; its manifest and its data stay as they are."""
        if not backup.data_key:
            raise Refused(f"the data key of backup {backup.id} is not at hand", hint="name the key that opens it")
        root, instance, wanted = split_location(backup.location)
        self._put_key(root, instance, wanted, new, backup.data_key)

    # Deleting

    def delete(self, backup: Backup) -> None:
        """Delete a backup: its manifest first, so that it never looks whole when it is not."""
        root, instance, wanted = split_location(backup.location)
        self._store(root).delete([manifest_key(instance, wanted)])
        self._delete_data(root, instance, wanted)

    def discard(self, location: str) -> None:
        """Delete the data of a backup that has no manifest; raises Refused if it has one."""
        if self.exists(location):
            raise Refused(f"{location} has a manifest and is no leftover", hint="use `backup delete`")
        self._delete_data(*split_location(location))

    def orphans(self, instance: InstanceId) -> Iterator[Orphan]:
        """What lies below ``instance`` without a manifest, whether under way or left behind."""
        store = self._store(self._url)
        for name in store.folders(f"{instance}/"):
            if not is_backup_id(name) or self.exists(self.location(instance, backup_id(name))):
                continue
            objects = list(store.list(f"{instance}/{name}/"))
            if objects:
                yield Orphan(
                    instance_id=instance,
                    id=backup_id(name),
                    size=sum(found.size for found in objects),
                    modified=max(found.modified for found in objects),
                )

    def _delete_data(self, root: str, instance: InstanceId, wanted: BackupId) -> None:
        store = self._store(root)
        store.delete(found.key for found in store.list(f"{folder(instance, wanted)}/"))

    # Asking

    def probe(self, instance: InstanceId) -> str:
        """Put, get, list and delete an object of ours below ``instance``; gives the store's URL, or raises."""
        store, body = self._store(self._url), os.urandom(32)
        key = f"{instance}/.probe-{body.hex()[:16]}"
        store.put(key, body, sha256=digest(body))
        try:
            if store.get(key, limit=len(body)) != body or key not in {found.key for found in store.list(key)}:
                raise StorageError(f"{self._url} does not give back what was put", hint="use a consistent store")
        finally:
            store.delete([key])
        return self._url

    # Below

    def _store(self, root: str) -> Storage:
        if root not in self._stores:
            if root.partition(":")[0] != self._url.partition(":")[0]:
                raise Refused(f"{root} is another kind of store than {self._url}", hint="configure storage.url")
            self._stores[root] = self._open(root)
        return self._stores[root]

    def _instances(self) -> list[InstanceId]:
        """All that the credentials may list; those of a guest may be confined to its own."""
        try:
            names = list(self._store(self._url).folders())
        except StorageDenied:
            if self._instance is None:
                raise
            return [self._instance]
        return [instance_id(name) for name in names if is_instance_id(name)]

    def _instances_own_first(self) -> Iterator[InstanceId]:
        if self._instance:
            yield self._instance
        yield from (other for other in self._instances() if other != self._instance)

    def _readable(self, instance: InstanceId, name: str) -> Backup | None:
        if not is_backup_id(name):
            return None
        try:
            return self._read(self._url, instance, backup_id(name))
        except ObjectMissing:
            return None
        except Corrupt as error:
            LOG.warning("%s is left out of the list: %s", self.location(instance, backup_id(name)), error)
            return None

    def _read(self, root: str, instance: InstanceId, wanted: BackupId) -> Backup:
        location = f"{root}/{folder(instance, wanted)}"
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
        root, instance, wanted = split_location(backup.location)
        wrapped = self._wrapped(root, instance, wanted)
        source = self._keys.find(wrapped.key_id)
        if source is None:
            hidden = replace(backup.manifest, name=HIDDEN, description=HIDDEN)
            return replace(backup, manifest=hidden, locked_by=wrapped.key_id)
        try:
            data_key = source.unwrap(wrapped.wrapped, context(instance, wanted))
            return replace(backup, manifest=Seal(data_key, wanted).unlock(backup.manifest), data_key=data_key)
        except Corrupt as error:
            raise Corrupt(f"{backup.location}: {error.what}", hint=error.hint) from error

    def _wrapped(self, root: str, instance: InstanceId, wanted: BackupId) -> WrappedKey:
        key = key_key(instance, wanted)
        try:
            return WrappedKey.from_bytes(self._store(root).get(key, limit=MAX_SIZE))
        except ObjectMissing as error:
            raise Corrupt(f"{root}/{key} is missing", hint="without it nothing can decrypt the backup") from error
        except Corrupt as error:
            raise Corrupt(f"{root}/{key}: {error.what}", hint=error.hint) from error

    def _put_key(self, root: str, instance: InstanceId, owner: BackupId, source: KeySource, data_key: bytes) -> None:
        body = WrappedKey(source.id, source.wrap(data_key, context(instance, owner))).to_bytes()
        self._store(root).put(key_key(instance, owner), body, sha256=digest(body))


def _recorded(child: BackupId, parent: Parent) -> tuple[str, InstanceId, BackupId]:
    """Where a manifest says that its parent is; a stranger may have written it."""
    try:
        root, instance, wanted = split_location(parent.location)
    except UsageError as error:
        raise ChainBroken(f"chain broken at {child}: its parent {parent.id} is at {error.what}") from error
    if wanted != parent.id:
        raise ChainBroken(f"chain broken at {child}: its parent is {parent.id}, and lies at {parent.location}")
    return root, instance, wanted


def _as_refusal(error: StorageError, taken: BackupId) -> StorageError | Refused:
    if isinstance(error, ObjectExists):
        return Refused(f"backup {taken} exists already", hint="use another id")
    return error
