"""Where our things lie in a datadir, and the names that they have.

::

    DATADIR/#sql-guestagent/          0700, there only while a restore runs or old data are kept
        README                        for people
        journal.json, blocker         a swap under way
        journal.json.for-PHASE        what journal.json becomes when that phase begins
        .restore/base, link-1 ...     the staging of the restore under way
        .old-LABEL                    what was there before a swap, kept until somebody forgets it
        .old-LABEL~strays             what else turned up while that swap was half done
        .trash-LABEL                  about to be deleted

It lies inside the datadir so that every move is a rename within one filesystem, for a mount
point too, and so that no right on the parent directory is needed.  The names are chosen with care:

* MariaDB lists every directory of the datadir as a database, and ``mariadb-dump --all-databases``
  fails on one with a dot, unless the name begins with ``#sql``;
* mariabackup takes a directory without a file for an empty database, so there is always a README;
* MySQL 8 looks for tablespaces in all directories except those whose name begins with a dot.
"""

from __future__ import annotations

import itertools
import os
import re
from contextlib import suppress
from pathlib import Path

from guestagent.datadir import durable
from guestagent.errors import Refused, UsageError

OURS = "#sql-guestagent"
STAGING = ".restore"
BASE = f"{STAGING}/base"
KEPT = ".old-"
TRASH = ".trash-"
STRAYS = "~strays"
JOURNAL = "journal.json"
READY = f"{JOURNAL}.for-"
BLOCKER = "blocker"
LABEL = r"[A-Za-z0-9][A-Za-z0-9._:+-]*"
"""What may name kept data: harmless in a path, and never with STRAYS at its end."""
PRIVATE = 0o700

_HIDDEN = frozenset({OURS, "lost+found"})
_README = "README"
_HALF_WRITTEN = frozenset(name + durable.FRESH for name in (_README, JOURNAL, BLOCKER))
_WORTHLESS = frozenset({_README, BLOCKER})
_README_MODE = 0o640
_README_TEXT = b"""\
This directory belongs to guestagent, which restores backups into the directory above.

.restore   the restore under way
.old-*     the data that were here before a restore, until the new server has proved itself
.trash-*   about to be deleted

While journal.json is here, data are being moved and no server can start.  The guestagent
service finishes an interrupted move when it starts, and so does `guestagent restore`.
"""


def ours(datadir: Path) -> Path:
    """Our directory in ``datadir``, there or not."""
    return datadir / OURS


def open_ours(datadir: Path) -> Path:
    """Our directory in ``datadir``, made if it is not there."""
    path = ours(datadir)
    with suppress(FileExistsError):
        os.mkdir(path, PRIVATE)
    if path.is_symlink() or not path.is_dir():
        raise Refused(f"{durable.shown(path)} is not a directory", hint="move it away")
    durable.give(path, datadir)
    durable.write(path / _README, _README_TEXT, mode=_README_MODE, like=datadir)
    durable.sync_directory(datadir)
    return path


def named(datadir: Path, prefix: str) -> list[Path]:
    """What lies in our directory under a name that begins with ``prefix``, ordered by name."""
    try:
        names = os.listdir(ours(datadir))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [ours(datadir) / name for name in sorted(names) if name.startswith(prefix)]


def tidy(datadir: Path) -> None:
    """Remove our directory if nothing is left in it that anybody needs."""
    left = named(datadir, "")
    if ours(datadir).is_dir() and all(_is_worthless(path.name) for path in left):
        for path in left:
            path.unlink()
        ours(datadir).rmdir()
        durable.sync_directory(datadir)


def sweep(datadir: Path) -> bool:
    """Delete what is marked for it, strays without what they strayed into, and half written files; then tidy.

    Says whether anything was deleted but such files.  Not for use while a swap is half done.
    """
    for path in named(datadir, ""):
        if _was_written_for_later(path.name):
            path.unlink()
    trash = named(datadir, TRASH) + [path for path in named(datadir, KEPT) if _is_orphan(path)]
    for path in trash:
        durable.remove_tree(path)
    tidy(datadir)
    return bool(trash)


def _is_worthless(name: str) -> bool:
    return name in _WORTHLESS or _was_written_for_later(name)


def _was_written_for_later(name: str) -> bool:
    return name in _HALF_WRITTEN or name.startswith(READY)


def _is_orphan(path: Path) -> bool:
    return path.name.endswith(STRAYS) and not path.with_name(path.name.removesuffix(STRAYS)).exists()


def entries(directory: Path) -> frozenset[str]:
    """The names in ``directory`` that are data: neither ours nor the filesystem's own lost+found."""
    return frozenset(os.listdir(directory)) - _HIDDEN


def unused(datadir: Path, prefix: str, label: str) -> str:
    """A name in our directory that begins with ``prefix`` and ``label`` and is not taken."""
    if not re.fullmatch(LABEL, label):
        raise UsageError(f"not a label for kept data: {label!r}", hint="use a backup id or a time")
    names = itertools.chain([prefix + label], (f"{prefix}{label}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(ours(datadir) / name))
