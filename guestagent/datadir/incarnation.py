"""The agent's own id in a datadir, and through which backups' states that datadir has passed.

The tools take an incremental on any parent with a lower LSN, from another server or another branch
too, and such a chain restores to corrupt tables.  So the agent keeps a file in the datadir.  A
restore writes a new one, with the ids of the restored chain; every backup adds its own id.
An incremental is safe exactly if its parent's id is there: a server that was created anew, restored
from an older backup or from another branch, or rolled back with a snapshot, does not know it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guestagent import document, model
from guestagent.datadir import durable
from guestagent.datadir.durable import explained, shown
from guestagent.errors import Refused, UsageError
from guestagent.model import BackupId, InstanceId

FILE = ".guestagent-incarnation"
MOST = 1000
"""How many ids a history keeps, newest last."""

_FORMAT = 1
_MODE = 0o640
_MOST_BYTES = 1 << 20
_FULL = "take a full backup"


@dataclass(frozen=True)
class Incarnation:
    """One life of a datadir, from its creation or its restore on; ``history`` is oldest first."""

    id: str
    instance_id: InstanceId
    restored_from: BackupId | None
    history: tuple[BackupId, ...]

    def passed_through(self, backup: BackupId) -> bool:
        """Whether the state of ``backup`` lies on this datadir's own past."""
        return backup in self.history

    def with_backup(self, backup: BackupId) -> Incarnation:
        """The same life with ``backup`` in its past."""
        others = tuple(known for known in self.history if known != backup)
        return replace(self, history=(*others, backup)[-MOST:])

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps({"format": _FORMAT, **vars(self)}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Incarnation:
        """Read one; raises ValueError for anything else."""
        try:
            return _parsed(document.parsed(data, most=_MOST_BYTES))
        except (UsageError, AttributeError, TypeError, KeyError) as error:
            raise ValueError(str(error)) from error


def _parsed(found: Any) -> Incarnation:
    if found["format"] != _FORMAT:
        raise ValueError(f"format {found['format']!r}")
    restored_from, history = found["restored_from"], found["history"]
    if not isinstance(history, list):
        raise TypeError("history is not a list")
    return Incarnation(
        id=str(uuid.UUID(found["id"])),
        instance_id=model.instance_id(found["instance_id"]),
        restored_from=None if restored_from is None else model.backup_id(restored_from),
        history=tuple(map(model.backup_id, history))[-MOST:],
    )


def fresh(instance_id: InstanceId, *, chain: Sequence[BackupId] = ()) -> Incarnation:
    """A new life; ``chain`` are the ids of the backups that it was restored from, base first."""
    return Incarnation(
        id=str(uuid.uuid4()),
        instance_id=instance_id,
        restored_from=chain[-1] if chain else None,
        history=tuple(chain)[-MOST:],
    )


def read(datadir: Path) -> Incarnation | None:
    """The incarnation of ``datadir``, or None if it has none; raises Refused if it cannot be read."""
    path = datadir / FILE
    with explained(f"read {shown(path)}"):
        try:
            data = durable.read_small(path, most=_MOST_BYTES)
        except FileNotFoundError:
            return None
    try:
        return Incarnation.from_bytes(data)
    except ValueError as error:
        raise Refused(f"{shown(path)} is damaged: {error}", hint=f"delete it and {_FULL}") from error


def write(datadir: Path, incarnation: Incarnation) -> None:
    """Give ``datadir`` this incarnation, durably, with the owner of the datadir."""
    path = datadir / FILE
    with explained(f"write {shown(path)}"):
        durable.write(path, incarnation.to_bytes(), mode=_MODE, like=datadir)


def check_parent(incarnation: Incarnation | None, parent: BackupId, *, instance_id: InstanceId) -> None:
    """Raise Refused, with the reason, unless an incremental on ``parent`` is safe on this datadir."""
    if incarnation is None:
        wrong = "the datadir does not know its past: the server was created anew, or restored by other means"
    elif incarnation.instance_id != instance_id:
        wrong = f"the datadir was copied from instance {incarnation.instance_id}"
    elif not incarnation.passed_through(parent):
        origin = incarnation.restored_from
        begun = f"restored from {origin}" if origin else "created anew"
        wrong = f"this datadir has not passed through it: it was {begun}, or rolled back, since"
    else:
        return
    raise Refused(f"no incremental on {parent}: {wrong}", hint=_FULL)
