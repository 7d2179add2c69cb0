"""Tables of Aria and of MyISAM that are made anew while a dump runs: the tool does not have all of them then.

mariabackup copies such tables while statements go on, and mends its copies by a list of what was done to tables
meanwhile.  That list has gaps, and a prepare replays nothing of the kind from Aria's log.  With 10.11.19, which said
"completed OK!" each time, tables of Aria that were renamed were missing or stale, those that were emptied had their
old rows, and some that were filled at once had none; of MyISAM, a file was missing after an ALTER TABLE, and old rows
were there after a TRUNCATE TABLE.

No log tells of all that, but the tables' index files do: which they are, and where Aria's log stood, or at which
second MyISAM was, when the table was made or emptied.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from guestagent.datadir.durable import explained
from guestagent.errors import BadLuck

MYISAM = ".MYI"
HEAD = 4096
"""Bytes of an index file that are looked at; with 64 keys, what is wanted of MyISAM stands before the first 1,200."""
ARIA_MADE, ARIA_EMPTIED = slice(28, 35), slice(42, 49)
"""Where an index file of Aria holds such places in the log (create_rename_lsn and skip_redo_lsn)."""
MYISAM_KEYS, MYISAM_SIZES = 18, 21
"""Where one of MyISAM has the number of its keys, and of the sizes of their blocks; each adds 8 bytes to its state."""
MYISAM_SECOND = 144
"""Where, if there were none of either, it would have the 8 bytes of that second (create_time)."""

SLACK = 0.1
"""Seconds by which the clock that a server reads may be behind ours (it moves with the kernel's ticks)."""
PATIENCE = 3.0
"""Seconds that tables get to grow old enough to be told apart from what is made of them."""


class Made(NamedTuple):
    """What changes as a table is made anew: its file, and Aria's places in the log or ``second``, MyISAM's moment."""

    inode: int
    places: bytes = b""
    second: int = 0


Tables = Mapping[str, Made]
"""For each table, as DATABASE/TABLE in the words of the filesystem, how it was made."""


def settled(datadir: Path) -> Tables:
    """As ``look``, such that any table that is made or emptied from now on will differ, or is not among them.

    A table of MyISAM that was made in this very second could be emptied in it, too: the second's end is waited for.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        begin = time.time() - SLACK
        found = look(datadir)
        present = range(int(begin), int(time.time()) + 1)
        if not any(made.second in present for made in found.values()) or time.monotonic() > deadline:
            return {name: made for name, made in found.items() if made.second not in present}
        time.sleep(SLACK)


def look(datadir: Path) -> Tables:
    """The tables that there are; raises for a datadir that cannot be looked at."""
    with explained(f"look at {datadir}"):
        return dict(_found(datadir))


def check(datadir: Path, before: Tables) -> None:
    """Raise BadLuck if a table is not the one that it was ``before`` a dump; those that are gone do no harm."""
    changed = sorted(name for name, made in look(datadir).items() if before.get(name) != made)
    if changed:
        raise BadLuck(
            f"{len(changed)} tables of Aria or MyISAM were made, altered, renamed or emptied during the dump,"
            f" {changed[0]} among them",
            hint="the tool may lose such tables: back up while nobody does that, or make them InnoDB",
        )


def _found(datadir: Path) -> Iterator[tuple[str, Made]]:
    for path in datadir.glob("*/*.M[AY]I"):
        if path.name.startswith("#sql"):
            continue  # an ALTER TABLE at work, which ends with a table under its own name
        with suppress(FileNotFoundError):  # dropped since it was listed
            yield str(path.relative_to(datadir).with_suffix("")), _made(path)


def _made(path: Path) -> Made:
    with path.open("rb") as file:
        inode, head = os.fstat(file.fileno()).st_ino, file.read(HEAD)
    if path.suffix != MYISAM:
        return Made(inode, places=head[ARIA_MADE] + head[ARIA_EMPTIED])
    at = MYISAM_SECOND + 8 * sum(head[MYISAM_KEYS : MYISAM_KEYS + 1] + head[MYISAM_SIZES : MYISAM_SIZES + 1])
    return Made(inode, second=int.from_bytes(head[at : at + 8], "big"))
