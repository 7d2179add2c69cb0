"""Which bytes in a store count as a backup: key layout, publish, get, list, chain, delete.

A backup exists if and only if its manifest does.  Below a store's URL lie
``<instance_id>/<backup_id>/data/00000000`` ..., ``.../manifest.json`` and, where it is encrypted,
``.../key.json``, with ``.../key.next.json`` beside it for as long as it is replaced; the URL of
``<instance_id>/<backup_id>`` is the backup's location.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta

from guestagent.catalog import probe, wrapping
from guestagent.catalog.layout import (
    folder,
    is_backup_id,
    is_instance_id,
    key_key,
    manifest_key,
    segment_key,
    spare_key,
    split_location,
)
from guestagent.catalog.links import locked, place_of_parent
from guestagent.catalog.objects import LOST, Remains, check_held, confirmed, flaws, is_there, remains
from guestagent.catalog.reading import Reader, Unreadable, twice
from guestagent.catalog.wrapping import Wrapping
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
)
from guestagent.keys import KeyRing, KeySource
from guestagent.manifest import Backup, Manifest, Segment, digest
from guestagent.model import BackupId, InstanceId, backup_id, instance_id
from guestagent.storage import Storage
from guestagent.streams.seal import Seal, new_data_key
from guestagent.wrapped import WrappedKey, context

__all__ = ["Catalog", "Remains", "Unreadable", "Wrapping", "locked", "split_location"]

LOG = logging.getLogger(__name__)

Open = Callable[[str], Storage]
"""Opens the store of a URL; the catalog keeps it and closes it."""


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
        self._reader = Reader(self._store, self._keys)

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
        """The backup of that id: the own instance's first, then anybody's; raises NotFound, and Corrupt."""
        found = self.look(wanted)
        if isinstance(found, Unreadable):
            raise found.error
        return found

    def look(self, wanted: BackupId) -> Backup | Unreadable:
        """As ``get``, for who wants to know of one that cannot be read, too."""
        for instance in self._instances_own_first():
            location = self.location(instance, wanted)
            try:
                return self._reader.backup(location)
            except ObjectMissing:
                continue
            except Corrupt as error:
                return Unreadable(location, error)
        raise NotFound(
            f"no backup {wanted} below {self._url}", hint="`guestagent backup list` shows those that there are"
        )

    def at(self, location: str) -> Backup:
        """The backup at a location; raises NotFound, and UsageError for what cannot be one."""
        root, instance, wanted = split_location(location)
        try:
            return self._reader.backup(f"{root}/{folder(instance, wanted)}")
        except ObjectMissing as error:
            raise NotFound(f"no backup at {location}") from error

    def exists(self, location: str) -> bool:
        """Whether a backup's manifest is there."""
        root, instance, wanted = split_location(location)
        return is_there(self._store(root), manifest_key(instance, wanted))

    def stands(self, location: str) -> bool:
        """Whether a backup is there, and whole: a manifest, its key, and segments of the sizes that it says.

        A manifest alone may have come late, by a put that nobody waited for any more.
        """
        if not self.exists(location):
            return False
        try:
            self.check_whole(self.at(location))
        except (NotFound, Corrupt) as error:
            LOG.info("what lies at %s is no backup: %s", location, error)
            return False
        return True

    def backups(self, instance: InstanceId | None = None) -> list[Backup]:
        """The backups of ``instance`` (None: of all that the credentials may list), oldest first; to be shown.

        A manifest that cannot be read is reported in the log and left out: nothing may be decided by that.
        """
        found, unreadable = self.census(instance)
        for one in unreadable:
            LOG.warning("%s is left out of the list: %s", one.location, one.error)
        return found

    def census(self, instance: InstanceId | None = None) -> tuple[list[Backup], list[Unreadable]]:
        """As ``backups``, and beside them those that are there and cannot be read."""
        store = self._store(self._url)
        found: list[Backup] = []
        unreadable = []
        for owner in [instance] if instance else self._instances():
            for name in filter(is_backup_id, store.folders(f"{owner}/")):
                location = self.location(owner, backup_id(name))
                try:
                    found.append(self._reader.backup(location))
                except ObjectMissing:
                    continue
                except Corrupt as error:
                    unreadable.append(Unreadable(location, error))
        return sorted(found, key=lambda backup: (backup.manifest.started, backup.id)), unreadable

    def chain(self, tip: Backup, *, locked_too: bool = False) -> Chain:
        """All that a restore of ``tip`` needs, base first, checked; raises ChainBroken.

        A link whose key is not here raises ConfigError, unless ``locked_too``: then ``locked_by`` names the key.
        """
        links = [tip]
        while links[-1].manifest.parent is not None:
            if len(links) >= MAX_LINKS:
                raise ChainBroken(f"chain of {tip.id} has more than {MAX_LINKS} links", hint="take a full backup")
            links.append(self._parent_of(links[-1], seen={link.id for link in links}))
        for link in links:
            if link.locked_by and not locked_too:
                raise locked(link)
        return Chain(tuple(reversed(links)))

    def _parent_of(self, child: Backup, *, seen: set[BackupId]) -> Backup:
        parent = child.manifest.parent
        assert parent is not None
        if parent.id in seen:
            raise ChainBroken(f"chain broken at {child.id}: its parent {parent.id} is its own descendant")
        recorded, instance, wanted = place_of_parent(child.id, parent)
        here, _, _ = split_location(child.location)
        for root in dict.fromkeys([here, recorded]):  # a store that was moved still holds together
            try:
                return self._reader.backup(f"{root}/{folder(instance, wanted)}")
            except ObjectMissing:
                continue
        raise ChainBroken(f"chain broken at {child.id}: its parent {parent.id} is gone", hint="take a full backup")

    # Writing

    def put_segment(self, instance: InstanceId, owner: BackupId, index: int, stored: bytes, sha256: str) -> None:
        """Store one segment of a backup that is being made."""
        self._store(self._url).put(segment_key(instance, owner, index), stored, sha256=sha256)

    @property
    def sent_again(self) -> bool:
        """Whether an earlier try of something that was put may still arrive, under the same key."""
        return self._store(self._url).sent_again

    def check_stored(self, manifest: Manifest) -> None:
        """Raise Corrupt unless every segment of the manifest lies in the store, whole by size."""
        for flaw in flaws(self._store(self._url), manifest):
            raise Corrupt(
                f"{self._url}/{flaw.key} should have {flaw.expected} bytes and "
                + ("is missing" if flaw.found is None else f"has {flaw.found}"),
                hint=LOST,
            )

    def new_data_key(self, instance: InstanceId, owner: BackupId) -> bytes:
        """A data key for a backup that is about to be made, stored wrapped; empty if none is to be encrypted."""
        if self._keys.current is None:
            return b""
        key = self._keys.current
        data_key = new_data_key()
        body = WrappedKey(key.id, key.wrap(data_key, context(instance, owner))).to_bytes()
        wrapping.put_held(self._store(self._url), key_key(instance, owner), body)
        return data_key

    def publish(self, manifest: Manifest, *, data_key: bytes = b"") -> Backup:
        """Write the manifest, which makes the backup exist; raises Refused if it does already.

        What comes back is what a reader will find: a manifest that could not be read is never written, and one that
        the store does not give back, byte by byte, raises Corrupt.
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
        check_held(self._store(self._url), key, body)
        return Backup(as_read, self.location(manifest.instance_id, manifest.id), digest(body), data_key)

    def _holds(self, key: str, body: bytes) -> bool:
        try:
            return self._store(self._url).get(key, limit=len(body)) == body
        except (StorageError, Corrupt):
            return False

    # Reading data

    def check_whole(self, backup: Backup) -> None:
        """Raise Corrupt, which names the first, if objects of a backup's data are missing or of another size."""
        root, _, _ = split_location(backup.location)
        found = confirmed(self._store(root), flaws(self._store(root), backup.manifest))
        if found:
            more = f", and so are {len(found) - 1} more of that backup" if found[1:] else ""
            raise Corrupt(f"{root}/{found[0]}{more}", hint="the backup cannot be restored; use another")

    def fetch(self, owner: Backup, segment: Segment) -> bytes:
        """A segment's stored bytes, proven to be those of the manifest; raises Corrupt and names the object."""
        return twice(lambda: self._fetched(owner, segment))

    def _fetched(self, owner: Backup, segment: Segment) -> bytes:
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
        others = [backup_id(name) for name in store.folders(f"{instance}/") if is_backup_id(name) and name != wanted]
        # A spare tells as well: it may be all that a rotation which was stopped has left of a key.
        return any(is_there(store, key(instance, other)) for key in (key_key, spare_key) for other in others)

    def wrapping(self, backup: Backup | Unreadable) -> Wrapping:
        """The keys that wrap a backup's data key; none if it is not encrypted.

        Those of one that cannot be read are in its key.json; raises Corrupt where neither that nor its spare tells.
        """
        if isinstance(backup, Backup) and backup.manifest.encryption is None:
            return Wrapping()
        return wrapping.look(self._reader, backup.location)

    def key_id_of(self, backup: Backup | Unreadable) -> str:
        """The id of the key that a backup's data key is wrapped with; empty if it is not encrypted; as ``wrapping``."""
        return next(iter(self.wrapping(backup).key_ids), "")

    def rewrap(self, backup: Backup, new: KeySource) -> None:
        """Wrap a backup's data key anew; its manifest and its data stay as they are."""
        if not backup.data_key:
            raise Refused(f"the data key of backup {backup.id} is not at hand", hint="name the key that opens it")
        root, _, _ = split_location(backup.location)
        wrapping.rewrap(self._store(root), self._reader, backup, new)

    # Deleting

    def delete(self, backup: Backup) -> None:
        """Delete a backup: its manifest first, so that it never looks whole when it is not.

        What the manifest names goes whether a listing shows it or not: some stores' listings lag behind.
        """
        root, instance, wanted = split_location(backup.location)
        self._store(root).delete([manifest_key(instance, wanted)])
        named = [segment_key(instance, wanted, segment.index) for segment in backup.manifest.segments]
        if backup.manifest.encryption is not None:
            named += [key_key(instance, wanted), spare_key(instance, wanted)]
        self._store(root).delete(named)
        self._delete_data(root, instance, wanted)

    def discard(self, location: str) -> None:
        """Delete what lies there and is no whole backup, its manifest first; raises Refused if it is one."""
        if self.stands(location):
            raise Refused(f"{location} is whole and no leftover", hint="use `backup delete`")
        root, instance, wanted = split_location(location)
        store = self._store(root)
        store.delete([manifest_key(instance, wanted)])
        self._delete_data(root, instance, wanted)

    def remains(self, location: str) -> Remains:
        """What lies there, for who cannot read what it says."""
        root, instance, wanted = split_location(location)
        return remains(self._store(root), instance, wanted)

    def _delete_data(self, root: str, instance: InstanceId, wanted: BackupId) -> None:
        store = self._store(root)
        store.delete(found.key for found in store.list(f"{folder(instance, wanted)}/"))

    # Asking

    def probe(self, instance: InstanceId) -> str:
        """Put, get, list and delete an object of ours below ``instance``; gives the store's URL, or raises."""
        probe.there_and_back(self._store(self._url), instance)
        return self._url

    def has_conditional_put(self, instance: InstanceId) -> bool:
        """Whether the store itself keeps a manifest from being overwritten, tried below ``instance``."""
        return probe.conditional_put(self._store(self._url), instance)

    def clock_ahead(self, instance: InstanceId) -> timedelta | None:
        """How far the store's clock is ahead of ours; None for a store that has none of its own."""
        return self._store(self._url).clock_ahead(f"{instance}/")

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


def _as_refusal(error: StorageError, taken: BackupId) -> StorageError | Refused:
    if isinstance(error, ObjectExists):
        return Refused(f"backup {taken} exists already", hint="use another id")
    return error
