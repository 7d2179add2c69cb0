"""What lies in the store, and whether it lies as it should: segments by sizes alone, what was just put by its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import dropwhile

from guestagent.catalog.layout import DATA, folder, segment_key
from guestagent.catalog.reading import twice
from guestagent.errors import Corrupt, ObjectMissing
from guestagent.manifest import Manifest
from guestagent.model import BackupId, InstanceId
from guestagent.storage import Storage

LOST = "the store lost an upload that it had confirmed; try again"


def is_there(store: Storage, key: str) -> bool:
    """Whether the store has that object."""
    try:
        store.size(key)
    except ObjectMissing:
        return False
    return True


@dataclass(frozen=True)
class Remains:
    """What lies at a backup's place, whatever it says: how many objects, their bytes, and the newest one's time."""

    instance_id: InstanceId
    id: BackupId
    objects: int
    size: int
    modified: datetime | None


def remains(store: Storage, instance: InstanceId, wanted: BackupId) -> Remains:
    """What a listing shows of a backup, with or without a manifest."""
    found = list(store.list(f"{folder(instance, wanted)}/"))
    newest = max((one.modified for one in found), default=None)
    return Remains(instance, wanted, len(found), sum(one.size for one in found), newest)


@dataclass(frozen=True)
class Flaw:
    """An object that is not there (``found`` is None), or that has another size than the manifest says; bytes."""

    key: str
    expected: int
    found: int | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.key} is missing"
        return f"{self.key} is not what the manifest promises: {self.found} bytes instead of {self.expected}"


def flaws(store: Storage, manifest: Manifest) -> list[Flaw]:
    """What a listing shows of a backup's segments that the manifest does not say."""
    listed = store.list(f"{folder(manifest.instance_id, manifest.id)}/{DATA}/")
    sizes = {found.key: found.size for found in listed}
    wanted = {
        segment_key(manifest.instance_id, manifest.id, segment.index): segment.stored_size
        for segment in manifest.segments
    }
    return [Flaw(key, size, sizes.get(key)) for key, size in wanted.items() if sizes.get(key) != size]


def check_held(store: Storage, key: str, body: bytes) -> None:
    """Raise Corrupt unless the store gives back what has just been put: some confirm what they do not keep."""
    twice(lambda: _check_bytes(store, key, body))


def _check_bytes(store: Storage, key: str, body: bytes) -> None:
    try:
        found = store.get(key, limit=len(body))
    except ObjectMissing as error:
        raise Corrupt(f"{store.url}/{key} is missing", hint=LOST) from error
    if found != body:
        raise Corrupt(
            f"{store.url}/{key} should have {len(body)} bytes that were put there, and has {len(found)} others",
            hint=LOST,
        )


def confirmed(store: Storage, suspects: Iterable[Flaw]) -> list[Flaw]:
    """The flaws from the first one on that the object itself confirms: some stores' listings lag behind."""
    return list(dropwhile(lambda flaw: _is_whole(store, flaw), suspects))


def _is_whole(store: Storage, suspect: Flaw) -> bool:
    try:
        return store.size(suspect.key) == suspect.expected
    except ObjectMissing:
        return False
