"""Tables of Aria that a restored server would take for those of another system, and refuse.

A table that was repaired or optimized bears the number of the transaction that did so.  Aria's log has no such number
of its own, and its control file only has the newest one as of the last checkpoint, which is made every 30 seconds at
most.  Where many statements have read and few have written since, a dump soon after has a table that is newer than the
control file: "Index for table ... is corrupt; try to repair it".  Then the control file is given the table's number.
"""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

from guestagent.datadir.durable import explained

LOG = logging.getLogger(__name__)

CONTROL = "aria_log_control"
FORMAT = bytes.fromhex("fefe0c01")
"""How a control file of version 1 begins (ma_control_file.c)."""
CREATED, CREATED_SUM = slice(0, 26), slice(26, 30)
"""What stays as it was created, and its CRC-32."""
CHANGED, CHANGED_SUM = slice(34, 52), slice(30, 34)
"""What every checkpoint writes, and its CRC-32."""
NEWEST = slice(45, 51)
"""Of that, the number of the newest transaction; all numbers of this file are little-endian."""
INDEX = bytes.fromhex("fefe0903")
"""How the index file of a table begins, of version 3 (ma_open.c)."""
MADE_BY = slice(137, 145)
"""Where it has the number of the transaction that made or repaired the table (create_trid), big-endian."""


def admit(base: Path) -> None:
    """Have the control file of a prepared base know the newest of its tables' numbers; raises if it cannot be read.

    A control file that is not as expected is left as it is.
    """
    control = base / CONTROL
    with explained(f"look at {control}"):
        if not control.is_file():
            return
        body = control.read_bytes()
        newest = max((_made_by(path) for path in base.glob("*/*.MAI")), default=0)
        if not _as_expected(body):
            LOG.warning("%s is not as expected, and is left as it is", control)
        elif newest > int.from_bytes(body[NEWEST], "little"):
            LOG.info("%s: the newest transaction is %d, by a table that was repaired", control, newest)
            control.write_bytes(_with_newest(body, newest))


def _made_by(index: Path) -> int:
    with index.open("rb") as file:
        head = file.read(MADE_BY.stop)
    return int.from_bytes(head[MADE_BY]) if head.startswith(INDEX) else 0


def _as_expected(body: bytes) -> bool:
    sums = ((CREATED, CREATED_SUM), (CHANGED, CHANGED_SUM))
    return (
        len(body) == CHANGED.stop
        and body.startswith(FORMAT)
        and all(_crc(body[what]) == body[its_sum] for what, its_sum in sums)
    )


def _with_newest(body: bytes, newest: int) -> bytes:
    changed = body[CHANGED.start : NEWEST.start] + newest.to_bytes(6, "little") + body[NEWEST.stop : CHANGED.stop]
    return body[: CHANGED_SUM.start] + _crc(changed) + changed


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")
