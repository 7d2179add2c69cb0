"""Pure values: identifiers, kinds, versions, LSNs and what a server says of itself.

No IO, no clock and no configuration lives here.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NewType

from guestagent.errors import Corrupt, UsageError

BackupId = NewType("BackupId", str)
InstanceId = NewType("InstanceId", str)
Lsn = NewType("Lsn", int)
"""A log sequence number of InnoDB: bytes of redo log since the server was created."""

MAX_LSN = 2**64 - 1

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"(?<!\d)(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?!\d)", re.ASCII)


def backup_id(text: str) -> BackupId:
    """The canonical form of a backup's UUID; raises UsageError for anything else."""
    try:
        canonical = str(uuid.UUID(text))
    except ValueError:
        canonical = ""
    if not canonical or canonical != text.lower():
        raise UsageError(f"not a backup id: {text!r}", hint="give the UUID that `backup list` shows")
    return BackupId(canonical)


def instance_id(text: str) -> InstanceId:
    """An instance's id, checked to be one harmless path component; raises UsageError."""
    if not _INSTANCE.fullmatch(text):
        raise UsageError(
            f"not an instance id: {text!r}",
            hint="use up to 128 letters, digits, dots, dashes and underscores, a letter or a digit first",
        )
    return InstanceId(text)


class Kind(Enum):
    """Whether a backup stands alone or continues a parent."""

    FULL = "full"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, order=True)
class Version:
    """A server's or a tool's version, compared by its three numbers."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Version:
        """The first a.b.c in ``text``, such as ``10.11.19-MariaDB-0+deb12u1``; raises Corrupt."""
        found = _VERSION.search(text)
        if not found:
            raise Corrupt(f"no version in {text!r}")
        return cls(*(int(number) for number in found.groups()))

    @property
    def series(self) -> str:
        """Major and minor number: what must be equal for two parts to work together."""
        return f"{self.major}.{self.minor}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True)
class Checkpoints:
    """The LSNs of one backup, as the tool's checkpoints file has them.

    ``begin`` is 0 for a full; ``end`` is the last checkpoint, where an incremental goes on;
    ``last`` is the end of the redo log that was copied (``last >= end``).
    """

    begin: Lsn
    end: Lsn
    last: Lsn


@dataclass(frozen=True)
class Binlog:
    """Where the binary log stood: file name, position in bytes, and the GTID set (may be empty)."""

    file: str
    position: int
    gtid: str


@dataclass(frozen=True)
class ServerFacts:
    """What a preflight learns from a running server by SQL.

    ``grants`` are the privileges that the account holds on ``*.*``, upper case.
    """

    datastore: str
    version: Version
    version_text: str
    datadir: Path
    lsn: Lsn
    grants: frozenset[str]
    account: str
