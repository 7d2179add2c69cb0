"""The journal of a swap: what is to move, and how far it has come.  Read as if a stranger had written it."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from guestagent import document
from guestagent.datadir import durable, layout
from guestagent.errors import Corrupt

_FORMAT = 1
_MODE = 0o640
_MOST_BYTES = 64 << 20
_INCOMING = re.compile(rf"{re.escape(layout.BASE)}|{re.escape(layout.KEPT)}{layout.LABEL}")
_OUTGOING = re.compile(rf"({re.escape(layout.KEPT)}|{re.escape(layout.TRASH)}){layout.LABEL}")
_HINT = "restore into another directory, and look at this one by hand"


class Phase(Enum):
    """How far a swap has come, and so what ends it after a crash."""

    BACK = "back"
    """No new data are in, and none shall come: undo."""
    OUT = "out"
    """The old data move out: go on."""
    IN = "in"
    """The old data are out, the new move in: go on."""
    LAST = "last"
    """Everything is in place but the files that let a server start: go on."""


@dataclass(frozen=True)
class Journal:
    """One swap; ``incoming`` and ``outgoing`` are directories below ours, ``old`` and ``new`` names of entries."""

    phase: Phase
    incoming: str
    outgoing: str
    old: frozenset[str]
    new: frozenset[str]

    def at(self, phase: Phase) -> Journal:
        """The same swap in another phase."""
        return replace(self, phase=phase)

    def to_bytes(self) -> bytes:
        """As JSON; names that are not UTF-8 are escaped."""
        found = {
            "format": _FORMAT,
            "phase": self.phase.value,
            "incoming": self.incoming,
            "outgoing": self.outgoing,
            "old": sorted(self.old),
            "new": sorted(self.new),
        }
        return json.dumps(found, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Journal:
        """Read a journal; raises Corrupt for anything else."""
        try:
            return _parsed(document.parsed(data, most=_MOST_BYTES))
        except (ValueError, TypeError, KeyError) as error:
            raise Corrupt(f"not a swap's journal: {error}", hint=_HINT) from error


def _parsed(found: Any) -> Journal:
    if found["format"] != _FORMAT:
        raise ValueError(f"format {found['format']!r}")
    return Journal(
        phase=Phase(found["phase"]),
        incoming=_place(found["incoming"], _INCOMING),
        outgoing=_place(found["outgoing"], _OUTGOING),
        old=_names(found["old"]),
        new=_names(found["new"]),
    )


def _place(value: Any, shape: re.Pattern[str]) -> str:
    if not shape.fullmatch(value):
        raise ValueError(f"directory {value!r}")
    return str(value)


def _names(values: Any) -> frozenset[str]:
    if not isinstance(values, list):
        raise TypeError("entries that are not a list")
    return frozenset(map(_name, values))


def _name(value: Any) -> str:
    if not isinstance(value, str) or value in ("", ".", "..", layout.OURS) or "/" in value or "\0" in value:
        raise ValueError(f"entry {value!r}")
    return value


def read(datadir: Path) -> Journal | None:
    """The journal of the swap that is half done in ``datadir``, if one is."""
    path = _path(datadir)
    with durable.explained(f"read {durable.shown(path)}"):
        try:
            data = durable.read_small(path, most=_MOST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
    return Journal.from_bytes(data)


def begin(datadir: Path, journal: Journal) -> None:
    """Write the journal of a swap and, before it, that of each phase to come: noting one then needs no more room."""
    try:
        for phase in Phase:
            durable.write(_ready(datadir, phase), journal.at(phase).to_bytes(), mode=_MODE, like=datadir)
        durable.write(_path(datadir), journal.to_bytes(), mode=_MODE, like=datadir)
    except OSError:
        remove(datadir)
        raise


def write(datadir: Path, journal: Journal) -> None:
    """Write or replace the journal, durably; by a rename alone if it was made ready when the swap began."""
    ready, data = _ready(datadir, journal.phase), journal.to_bytes()
    if not _holds(ready, data):
        durable.write(_path(datadir), data, mode=_MODE, like=datadir)
        return
    durable.give(ready, datadir)
    os.rename(ready, _path(datadir))
    durable.sync_directory(layout.ours(datadir))


def remove(datadir: Path) -> None:
    """The swap is over, or shall not begin: the journal goes, after what was made ready for it."""
    for path in reversed(layout.named(datadir, layout.JOURNAL)):
        path.unlink()
    durable.sync_directory(layout.ours(datadir))


def _holds(path: Path, data: bytes) -> bool:
    # whatever else lies there, or nothing (an older version's swap, or it is used up): it is written anew
    with suppress(OSError):
        return durable.read_small(path, most=_MOST_BYTES) == data
    return False


def _ready(datadir: Path, phase: Phase) -> Path:
    return layout.ours(datadir) / (layout.READY + phase.value)


def _path(datadir: Path) -> Path:
    return layout.ours(datadir) / layout.JOURNAL
