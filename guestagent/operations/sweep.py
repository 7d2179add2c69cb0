"""What dead jobs left behind, found and removed; never anything that may still be somebody's.

A backup is marked in state_dir, by its location, before its first object is
stored, and again before it is deleted.  A mark that is still there, while
nothing else runs on this host, is of one that died or failed.  One whose data
may be read and not deleted is reported once, and then left alone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guestagent.catalog import split_location
from guestagent.datadir import durable
from guestagent.errors import GuestagentError, Refused, StorageDenied
from guestagent.model import BackupId
from guestagent.operations.host import Host, unwritable

LOG = logging.getLogger(__name__)

_MODE = 0o600
DENIED = ".denied"
"""The end of a mark's name whose data nobody tries to delete any more."""


_LATER = "data at %s stays until the next sweep: %s"


@contextmanager
def unfinished(host: Host, location: str) -> Iterator[None]:
    """For as long as data may lie there without a manifest: none of it stays behind unknown, whatever happens.

    After a failure the mark stays: a store may yet finish a put that nobody waits for any more.
    """
    mark = _mark(host, location)
    try:
        yield
    except BaseException:
        _discarded(host, location)
        raise
    _unmark(mark)


def sweep_own(host: Host) -> list[BackupId]:
    """Remove what jobs of this host left in stores and state_dir when they died; gives the ids of those backups.

    Only under the host lock: a mark then belongs to nobody who lives.
    """
    shutil.rmtree(host.state_dir / "scratch", ignore_errors=True)
    swept = []
    for mark in sorted(_marks(host).glob("*")):
        if mark.suffix == durable.FRESH:  # died before it marked anything
            _unmark(mark)
        elif mark.suffix != DENIED and _swept(host, mark):
            swept.append(BackupId(mark.name))
    return swept


def _swept(host: Host, mark: Path) -> bool:
    """Whether there was something to sweep, and it is gone now.

    A manifest is not enough to be spared: it may have come late, after its data had been discarded.
    """
    try:
        location = mark.read_text(encoding="utf-8")
        finished = host.catalog.stands(location)
    except (OSError, UnicodeDecodeError, GuestagentError) as error:
        LOG.warning("cannot sweep what %s stands for: %s", mark, error)
        return False
    if not finished and not _discarded(host, location):
        return False
    _unmark(mark)
    return not finished


def _discarded(host: Host, location: str) -> bool:
    LOG.info("removing what lies at %s and is no backup", location)
    try:
        host.catalog.discard(location)
    except Refused:  # a delete that came to nothing
        LOG.info("%s is whole, and stays", location)
        return False
    except StorageDenied as error:
        _denied(host, location, error)
        return False
    except GuestagentError as error:
        LOG.warning(_LATER, location, error)
        return False
    return True


def _denied(host: Host, location: str, error: StorageDenied) -> None:
    """Leave alone what we may read and not delete; who may not even read may have stale credentials."""
    mark = _marks(host) / split_location(location)[2]
    aside = mark.with_name(mark.name + DENIED)
    try:
        host.catalog.exists(location)
        mark.rename(aside)
    except (GuestagentError, OSError):
        LOG.warning(_LATER, location, error)
    else:
        LOG.warning("data at %s is not ours to delete, and not tried again: %s; then remove %s", location, error, aside)


def _mark(host: Host, location: str) -> Path:
    """Write the mark durably; raises GuestagentError where state_dir does not allow it."""
    _, _, wanted = split_location(location)
    path = _marks(host) / wanted
    try:
        durable.make_private(path.parent, like=host.state_dir)
        durable.write(path, location.encode(), mode=_MODE, like=path.parent)
    except OSError as error:
        raise unwritable(host.state_dir, error) from error
    return path


def _unmark(mark: Path) -> None:
    try:
        mark.unlink(missing_ok=True)
    except OSError as error:
        LOG.warning("cannot remove %s; the next sweep tries again: %s", mark, error.strerror)


def _marks(host: Host) -> Path:
    return host.state_dir / "unfinished"
