"""Which bytes in a store count as a backup: key layout, publish, get, list, chain, delete.

A backup exists if and only if its manifest does.  Below a store's URL lie
``<instance_id>/<backup_id>/data/00000000`` ... and ``.../manifest.json``; the
URL of ``<instance_id>/<backup_id>`` is the backup's location.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from guestagent.chain import MAX_LINKS, Chain
from guestagent.errors import (
    ChainBroken,
    Corrupt,
    NotFound,
    ObjectExists,
    ObjectMissing,
    Refused,
    StorageDenied,
    StorageError,
    UsageError,
)
from guestagent.manifest import MAX_MANIFEST, Backup, Manifest, Parent, Segment, digest
from guestagent.model import BackupId, InstanceId, backup_id, instance_id
from guestagent.storage import Storage

LOG = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DATA = "data"

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

    def __init__(self, url: str, *, instance: InstanceId | None, open_storage: Open) -> None:
        self._url = url.rstrip("/")
        self._instance = instance
        self._open = open_storage
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
            self._store(root).size(_manifest_key(instance, wanted))
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
        self._store(self._url).put(_segment_key(instance, owner, index), stored, sha256=sha256)

    def check_stored(self, manifest: Manifest) -> None:
        """Raise Corrupt unless every segment of the manifest lies in the store, whole by size."""
        prefix = f"{_folder(manifest.instance_id, manifest.id)}/{DATA}/"
        sizes = {found.key: found.size for found in self._store(self._url).list(prefix)}
        for segment in manifest.segments:
            key = _segment_key(manifest.instance_id, manifest.id, segment.index)
            if sizes.get(key) != segment.stored_size:
                raise Corrupt(
                    f"{self._url}/{key} should have {segment.stored_size} bytes and "
                    + (f"has {sizes[key]}" if key in sizes else "is missing"),
                    hint="the store lost an upload that it had confirmed; try again",
                )

    def publish(self, manifest: Manifest) -> Backup:
        """Write the manifest, which makes the backup exist; raises Refused if it does already.

        What comes back is what a reader will find: a manifest that could not be read is never written.
        """
        body = manifest.to_bytes()
        as_read = Manifest.from_bytes(body)
        key = _manifest_key(manifest.instance_id, manifest.id)
        try:
            self._store(self._url).put_new(key, body)
        except StorageError as error:
            if not self._holds(key, body):  # it may have been stored although the store's answer got lost
                raise _as_refusal(error, manifest.id) from error
        return Backup(as_read, self.location(manifest.instance_id, manifest.id), digest(body))

    def _holds(self, key: str, body: bytes) -> bool:
        try:
            return self._store(self._url).get(key, limit=len(body)) == body
        except (StorageError, Corrupt):
            return False

    # Reading data

    def fetch(self, owner: Backup, segment: Segment) -> bytes:
        """A segment's stored bytes, proven to be those of the manifest; raises Corrupt and names the object."""
        root, instance, wanted = split_location(owner.location)
        key = _segment_key(instance, wanted, segment.index)
        try:
            stored = self._store(root).get(key, limit=segment.stored_size)
        except ObjectMissing as error:
            raise Corrupt(f"{root}/{key} is missing", hint="the backup cannot be restored; use another") from error
        if digest(stored) != segment.sha256:
            raise Corrupt(
                f"{root}/{key} is not what the manifest promises", hint="the backup cannot be restored; use another"
            )
        return stored

    # Deleting

    def delete(self, backup: Backup) -> None:
        """Delete a backup: its manifest first, so that it never looks whole when it is not."""
        root, instance, wanted = split_location(backup.location)
        self._store(root).delete([_manifest_key(instance, wanted)])
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
            if not _is_backup_id(name) or self.exists(self.location(instance, backup_id(name))):
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
        store.delete(found.key for found in store.list(f"{_folder(instance, wanted)}/"))

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
        return [instance_id(name) for name in names if _is_instance_id(name)]

    def _instances_own_first(self) -> Iterator[InstanceId]:
        if self._instance:
            yield self._instance
        yield from (other for other in self._instances() if other != self._instance)

    def _readable(self, instance: InstanceId, name: str) -> Backup | None:
        if not _is_backup_id(name):
            return None
        try:
            return self._read(self._url, instance, backup_id(name))
        except ObjectMissing:
            return None
        except Corrupt as error:
            LOG.warning("%s is left out of the list: %s", self.location(instance, backup_id(name)), error)
            return None

    def _read(self, root: str, instance: InstanceId, wanted: BackupId) -> Backup:
        location = f"{root}/{_folder(instance, wanted)}"
        data = self._store(root).get(_manifest_key(instance, wanted), limit=MAX_MANIFEST)
        try:
            manifest = Manifest.from_bytes(data)
        except Corrupt as error:
            raise Corrupt(f"{location}/{MANIFEST}: {error.what}", hint=error.hint) from error
        if (manifest.id, manifest.instance_id) != (wanted, instance):
            raise Corrupt(f"{location}/{MANIFEST} is the manifest of {manifest.instance_id}/{manifest.id}")
        return Backup(manifest, location, digest(data))


def split_location(location: str) -> tuple[str, InstanceId, BackupId]:
    """The store's URL, the instance and the backup of a location; raises UsageError."""
    root, _, rest = location.rstrip("/").rpartition("/")
    root, _, instance = root.rpartition("/")
    if "://" not in root:
        raise UsageError(f"not a backup's location: {location!r}", hint="give URL/INSTANCE_ID/BACKUP_ID")
    return root, instance_id(instance), backup_id(rest)


def _recorded(child: BackupId, parent: Parent) -> tuple[str, InstanceId, BackupId]:
    """Where a manifest says that its parent is; a stranger may have written it."""
    try:
        root, instance, wanted = split_location(parent.location)
    except UsageError as error:
        raise ChainBroken(f"chain broken at {child}: its parent {parent.id} is at {error.what}") from error
    if wanted != parent.id:
        raise ChainBroken(f"chain broken at {child}: its parent is {parent.id}, and lies at {parent.location}")
    return root, instance, wanted


def _folder(instance: InstanceId, owner: BackupId) -> str:
    return f"{instance}/{owner}"


def _manifest_key(instance: InstanceId, owner: BackupId) -> str:
    return f"{_folder(instance, owner)}/{MANIFEST}"


def _segment_key(instance: InstanceId, owner: BackupId, index: int) -> str:
    return f"{_folder(instance, owner)}/{DATA}/{index:08d}"


def _as_refusal(error: StorageError, taken: BackupId) -> StorageError | Refused:
    if isinstance(error, ObjectExists):
        return Refused(f"backup {taken} exists already", hint="use another id")
    return error


def _is_backup_id(name: str) -> bool:
    try:
        return backup_id(name) == name
    except UsageError:
        return False


def _is_instance_id(name: str) -> bool:
    try:
        return bool(instance_id(name))
    except UsageError:
        return False
