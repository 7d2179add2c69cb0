"""How many files a backup holds open, and how many it may.

The tools keep the file of every InnoDB table open from beginning to end, so that no DDL escapes them.  One that runs
out of files fails in words that lead astray; and mariabackup 10.11, with ten to spare beside its tables, says that it
completed and has left out those of Aria, the privileges among them.  A prepare opens files as it needs them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from guestagent.datadir.durable import explained
from guestagent.errors import Refused
from guestagent.streams.limits import MORE_FILES, most_files

OWN = 200
"""Files beside those of tables: the system's and up to 127 undo tablespaces, logs, connections, what each thread has in
hand.  A dump in two threads has been seen to need 12."""
GROWTH = 100
"""Tables that may be made during a backup."""


@dataclass(frozen=True)
class OpenFiles:
    """What a backup needs, and what it may have."""

    needed: int
    most: int

    def __str__(self) -> str:
        return f"a backup holds up to {self.needed} files open, one for each InnoDB table, and may hold {self.most}"

    @property
    def share(self) -> float:
        """How much of what it may have it needs."""
        return self.needed / self.most


def look(datadir: Path, *, growth: int = GROWTH) -> OpenFiles:
    """Count the tablespaces of a server, partitions included; raises for a datadir that cannot be looked at."""
    with explained(f"look at {datadir}"):
        general = sum(name.endswith(".ibd") for name in os.listdir(datadir))
    tables = general + sum(1 for _ in datadir.glob("*/*.ibd"))
    return OpenFiles(needed=tables + OWN + growth, most=most_files())


def check(datadir: Path, *, growth: int = GROWTH) -> None:
    """Raise Refused if a backup would hold more files open than it may."""
    found = look(datadir, growth=growth)
    if found.needed > found.most:
        raise Refused(str(found), hint=MORE_FILES)
