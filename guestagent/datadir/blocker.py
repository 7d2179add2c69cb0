"""Small files that keep every server from starting on a datadir while its data are exchanged.

A server that finds one where Aria's control file or InnoDB's system tablespace belongs ends at
once.  Both are needed: without the first Aria, without the second InnoDB would recover, and
write to, whatever half of the tables it finds.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from guestagent.datadir import durable, layout

PIVOTS = ("aria_log_control", "ibdata1")
"""The files that a server opens before any other, in the order in which they are replaced.

New ones come in the other way round.  So MariaDB's Aria, without which it never starts, is the
first to go and the last to come; InnoDB alone it can be told to do without.
"""

_MAGIC = b"guestagent is exchanging the data in this directory"
_REST = b""", or was interrupted while it did.
No server can start here until it has finished: start the guestagent service, or restore again.
"""
_MODE = 0o400
_MOST = 4096


def put(datadir: Path, name: str) -> None:
    """Replace the entry ``name`` of ``datadir`` by a blocker, in one step."""
    blocker = layout.ours(datadir) / layout.BLOCKER
    durable.write(blocker, _MAGIC + _REST, mode=_MODE, like=datadir)
    os.rename(blocker, datadir / name)


def is_one(path: Path) -> bool:
    """Whether ``path`` is a blocker, of this version or another."""
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size <= _MOST:
            return path.read_bytes().startswith(_MAGIC)
    return False
