"""Room on the disk that a running job keeps for its end: a disk that fills up meanwhile must not cost the record of it.

The room is a file beside the record, with bytes in it for as long as the job runs.  The record of the end is written
over those bytes, which asks for no more room, and then takes the place of the record before.
"""

from __future__ import annotations

import os
from pathlib import Path

from guestagent.datadir import durable

SIZE = 64 << 10
"""Bytes: what one backup, a restore or two long texts make.  The end of a delete of many needs more than is kept."""

_OVER = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def keep(room: Path, *, mode: int, like: Path) -> None:
    """Have the room, durably, with the owner of ``like``; raises OSError where there is none."""
    if not room.exists():
        durable.write(room, bytes(SIZE), mode=mode, like=like)


def spend(room: Path, path: Path, data: bytes) -> bool:
    """Create or replace ``path``, wholly or not at all, durably, in the room for it; False: none was kept."""
    try:
        handle = os.open(room, _OVER)
    except FileNotFoundError:
        return False
    with open(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.ftruncate(handle, len(data))
        os.fsync(handle)
    os.rename(room, path)
    durable.sync_directory(path.parent)
    return True
