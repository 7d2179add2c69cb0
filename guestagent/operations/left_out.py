"""Tablespaces that a dump leaves out, and that the next one would not bring whole: of tables that are being rebuilt.

An ALTER TABLE or OPTIMIZE TABLE that copies fills a tablespace under a name of its own, ``#sql-...``, and gives it the
table's name at its end.  mariabackup passes by such names, rightly: what it has of the table is the old tablespace.
But where the statement ends after that dump, the next incremental takes of the new tablespace those pages alone that
changed since the parent's to_lsn, as of any other: whatever was filled in before is in no link.  With 10.11.19 that
said "completed OK!", as did its prepare, and the table was damaged or gone.

So a backup notes which tablespaces it has left out, and an incremental on it that comes upon one of them is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from guestagent.datadir.durable import explained
from guestagent.errors import BadLuck, Refused
from guestagent.manifest import Manifest
from guestagent.model import Lsn
from guestagent.operations.tablespace import FLAGS, HEAD, LSN, SPACE_ID, page_size
from guestagent.streams.chunks import PAYLOAD, Chunk

UNFINISHED = "#sql"
"""What the names of tables begin with that a statement has not finished yet."""
LOOKS = 10
"""How often tables are looked at, at most, while they come and go."""
Halves = Mapping[int, str]
"""Tablespaces by their numbers, with the names of their tables, as DATABASE/TABLE in the words of the filesystem."""
_META = re.compile(rb"^space_id = ([0-9]{1,10})$", re.MULTILINE)


class Brought:
    """The tablespaces that a stream brings, by their numbers; its chunks are noted as they pass, in any order."""

    def __init__(self) -> None:
        self.spaces: set[int] = set()

    def note(self, view: memoryview, chunk: Chunk) -> None:
        """Take note of a chunk that is whole in ``view``; from any thread."""
        if chunk.kind == PAYLOAD and chunk.offset == 0:
            space = _space_in(chunk.path, view[chunk.payload : chunk.end])
            if space:
                self.spaces.add(space)


def _space_in(path: bytes, payload: memoryview) -> int:
    """The tablespace that the beginning of a file tells, 0 for none: of one that comes whole, or what comes of it."""
    if path.endswith((b".ibd", b".new")):
        return int.from_bytes(payload[SPACE_ID], "big")
    found = _META.search(payload) if path.endswith(b".ibd.meta") else None
    return int(found[1]) if found else 0


def find(datadir: Path, brought: Collection[int], upto: Lsn) -> tuple[int, ...]:
    """The tablespaces that had pages at ``upto``, a dump's to_lsn, and that it has not brought."""
    with explained(f"look at the tablespaces of {datadir}"):
        return tuple(sorted(_spaces(datadir, since=upto, but=brought)))


def halves(datadir: Path, parent: Manifest) -> Halves:
    """Of the tablespaces that a parent has left out, those that no child of it would have the whole of.

    Raises Refused if one of them is a table's by now.  One whose pages have all changed since comes whole.
    """
    if not parent.left_out:
        return {}
    with explained(f"look at the tablespaces of {datadir}"):
        found = _spaces(datadir, since=parent.lsn.end)
    there = {space: name for space, name in found.items() if space in parent.left_out}
    _refuse(name for name in there.values() if not Path(name).name.startswith(UNFINISHED))
    return there


def check(found: Halves, brought: Collection[int]) -> None:
    """Raise Refused if a dump has brought one of which it cannot have the whole: its statement ended meanwhile."""
    _refuse(name for space, name in found.items() if space in brought)


def _refuse(names: Iterable[str]) -> None:
    found = sorted(names)
    if found:
        raise Refused(
            f"{len(found)} tables were being rebuilt when the parent was taken, {found[0]} among them: no incremental"
            " on it would have the whole of them",
            hint="take a full backup",
        )


def _spaces(datadir: Path, *, since: Lsn, but: Collection[int] = ()) -> Halves:
    """The tablespaces of single tables that have pages as they were at ``since``.

    One that is renamed between its listing and our look may lie where we have looked already: then all are looked at
    again.  Raises BadLuck if that goes on and on.
    """
    found: dict[int, str] = {}
    for _ in range(LOOKS):
        whole = True
        for path in datadir.glob("*/*.ibd"):
            try:
                space = _space_since(path, since, but)
            except FileNotFoundError:
                whole = False
                continue
            if space:
                found[space] = str(path.relative_to(datadir).with_suffix(""))
        if whole:
            return found
    raise BadLuck("tables were dropped or renamed each time that they were looked at", hint="back up when that is over")


def _space_since(path: Path, since: Lsn, but: Collection[int]) -> int:
    """The number of a file's tablespace if it has pages as they were at ``since`` and is none of ``but``, or 0."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        space = int.from_bytes(head[SPACE_ID], "big")
        return space if space and space not in but and _is_older(file, page_size(head[FLAGS]), since) else 0


def _is_older(file: BinaryIO, size: int, moment: Lsn) -> bool:
    """Whether any page was there, as it is, at that moment; a page that was never written has LSN 0."""
    at = 0
    while len(head := _read_at(file, at)) == HEAD:
        if 0 < int.from_bytes(head[LSN], "big") <= moment:
            return True
        at += size
    return False


def _read_at(file: BinaryIO, at: int) -> bytes:
    file.seek(at)
    return file.read(HEAD)
