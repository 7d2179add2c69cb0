"""The names of a backup's objects below a store's URL, and the location that they make."""

from __future__ import annotations

from guestagent.errors import UsageError
from guestagent.model import BackupId, InstanceId, backup_id, instance_id

MANIFEST = "manifest.json"
KEY = "key.json"
SPARE = "key.next.json"
DATA = "data"


def split_location(location: str) -> tuple[str, InstanceId, BackupId]:
    """The store's URL, the instance and the backup of a location; raises UsageError."""
    root, _, rest = location.rstrip("/").rpartition("/")
    root, _, instance = root.rpartition("/")
    if "://" not in root:
        raise UsageError(f"not a backup's location: {location!r}", hint="give URL/INSTANCE_ID/BACKUP_ID")
    return root, instance_id(instance), backup_id(rest)


def folder(instance: InstanceId, owner: BackupId) -> str:
    """What all keys of a backup begin with."""
    return f"{instance}/{owner}"


def manifest_key(instance: InstanceId, owner: BackupId) -> str:
    """The key of a manifest."""
    return f"{folder(instance, owner)}/{MANIFEST}"


def key_key(instance: InstanceId, owner: BackupId) -> str:
    """The key of the object with the wrapped data key."""
    return f"{folder(instance, owner)}/{KEY}"


def spare_key(instance: InstanceId, owner: BackupId) -> str:
    """The key of the object that stands in for that one while it is replaced."""
    return f"{folder(instance, owner)}/{SPARE}"


def segment_key(instance: InstanceId, owner: BackupId, index: int) -> str:
    """The key of a segment."""
    return f"{folder(instance, owner)}/{DATA}/{index:08d}"


def is_backup_id(name: str) -> bool:
    """Whether a backup's folder may be called that."""
    try:
        return backup_id(name) == name
    except UsageError:
        return False


def is_instance_id(name: str) -> bool:
    """Whether an instance's folder may be called that."""
    try:
        return bool(instance_id(name))
    except UsageError:
        return False
