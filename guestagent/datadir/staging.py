"""The room that a restore works in, inside the target, until its result is proven and swapped in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from guestagent.datadir import durable, layout
from guestagent.datadir.durable import explained, shown
from guestagent.errors import Refused

_PARENT_MODE = 0o755


@dataclass(frozen=True)
class Staging:
    """An open staging; ``made`` are the directories that opening it made, outermost first."""

    datadir: Path
    made: tuple[Path, ...]

    @property
    def base(self) -> Path:
        """Where the base is extracted and prepared: the datadir to be."""
        return layout.ours(self.datadir) / layout.BASE

    def link(self, number: int) -> Path:
        """The directory that link ``number`` is extracted into, made if it is not there."""
        path = _room(self.datadir) / f"link-{number}"
        with explained(f"make {shown(path)}"):
            _make(path, like=self.datadir)
        return path

    def discard(self) -> None:
        """Remove the staging, and the directories that opening it made as far as they are empty.

        Does nothing to a staging whose swap has begun: ``swap.recover`` is what ends that.
        """
        if half_swapped(self.datadir):
            return
        with explained(f"clear {shown(_room(self.datadir))}"):
            durable.remove_tree(_room(self.datadir))
            layout.tidy(self.datadir)
            for path in reversed(self.made):
                if not os.listdir(path):
                    path.rmdir()


def open_staging(datadir: Path) -> Staging:
    """Make ``datadir`` if it is not there, and an empty staging in it; what a dead restore left there is cleared."""
    if half_swapped(datadir):
        raise Refused(
            f"a swap in {shown(datadir)} is half done",
            hint="start the guestagent service, or restore again, to finish it",
        )
    with explained(f"make a staging in {shown(datadir)}"):
        made = _make_datadir(datadir)
        layout.open_ours(datadir)
        durable.remove_tree(_room(datadir))
        staging = Staging(datadir, made)
        _make(_room(datadir), like=datadir)
        _make(staging.base, like=datadir)
        return staging


def clear(datadir: Path) -> bool:
    """Remove the staging that a dead restore left in ``datadir``; says whether there was one.

    Does nothing to one whose swap has begun, as ``discard``.
    """
    if half_swapped(datadir) or not os.path.lexists(_room(datadir)):
        return False
    with explained(f"clear {shown(_room(datadir))}"):
        durable.remove_tree(_room(datadir))
        layout.tidy(datadir)
    return True


def half_swapped(datadir: Path) -> bool:
    """Whether a swap was begun in ``datadir`` and has not ended."""
    return os.path.lexists(layout.ours(datadir) / layout.JOURNAL)


def _room(datadir: Path) -> Path:
    return layout.ours(datadir) / layout.STAGING


def _make(path: Path, *, like: Path) -> None:
    path.mkdir(layout.PRIVATE, exist_ok=True)
    durable.give(path, like)


def _make_datadir(datadir: Path) -> tuple[Path, ...]:
    missing = [path for path in (datadir, *datadir.parents) if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(layout.PRIVATE if path == datadir else _PARENT_MODE)
        durable.sync_directory(path.parent)
    return tuple(reversed(missing))
