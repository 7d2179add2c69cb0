"""The links of a chain: where a manifest says that its parent is, and what to say of one that nobody can open."""

from __future__ import annotations

from guestagent.catalog.layout import split_location
from guestagent.errors import ChainBroken, ConfigError, UsageError
from guestagent.manifest import Backup, Parent
from guestagent.model import BackupId, InstanceId


def locked(backup: Backup) -> ConfigError:
    """What to raise for a backup whose key is not here."""
    return ConfigError(
        f"backup {backup.id} is encrypted with key {backup.locked_by}, which is not here",
        hint="name its file in [encryption] key_file or old_key_files",
    )


def place_of_parent(child: BackupId, parent: Parent) -> tuple[str, InstanceId, BackupId]:
    """Where a manifest says that its parent is; a stranger may have written it."""
    try:
        root, instance, wanted = split_location(parent.location)
    except UsageError as error:
        raise ChainBroken(f"chain broken at {child}: its parent {parent.id} is at {error.what}") from error
    if wanted != parent.id:
        raise ChainBroken(f"chain broken at {child}: its parent is {parent.id}, and lies at {parent.location}")
    return root, instance, wanted
