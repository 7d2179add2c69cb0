"""The chunk format of mbstream and xbstream: headers read, paths and payloads checked.

A chunk is ``XBSTCK01``, one byte of flags, one byte of type, a u32 path length
and the path; everything is little-endian.  By type there follows:

====  ==================  ==========================================================
P     payload             u64 length, u64 offset, u32 CRC-32, the payload
E     end of the file     nothing
S     seek (mbstream)     u64 offset: the file's next payload stands there
R     rename (mbstream)   u32 length and the new path
D     remove (mbstream)   nothing
S     sparse (xbstream)   u32 entries, u64 length, u64 offset, u32 CRC-32 over map and
                          payload, per entry u32 skip and u32 length, the payload
====  ==================  ==========================================================

Of the flags, only the value 2 of mbstream means something here: the file may be there already, and begins anew.

Sources: ``extra/mariabackup/xbstream*`` of the MariaDB server and what its 10.11 mbstream accepts
(S, R, D and the flag were found by feeding it each), and the format page of Percona XtraBackup.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from zlib_ng import zlib_ng

from guestagent.errors import Corrupt

MAGIC = b"XBSTCK01"
MAX_PATH = 4096
MAX_NAME = 255
"""Bytes of one component, as Linux has it; an incremental's name.ibd.delta may be longer where name.ibd was not."""
MAX_DEPTH = 16
"""Directories of a path; both tools write one or two, and each may be one to be made."""
MAX_PAYLOAD = 16 << 20
"""Bytes in a segment of ours; the tools write data files in 10 MiB at the most unless told otherwise."""
MAX_DUMPED_PAYLOAD = 2 << 30
"""Bytes in what a tool writes: mariabackup sends changed pages by the quarter of a page's size, so up to 64 MiB at
once for pages of 16 KiB and 1 GiB for those of 64 KiB.  See split, which divides them."""
MAX_SPARSE_MAP = 1 << 16
MAX_FILE = 1 << 56
"""Bytes; more than any filesystem takes, and far enough from 2**63 that no sum of offsets reaches it."""
REWRITE = 0x02
"""The flags of a chunk that begins a file anew although the stream had ended it before."""

MBSTREAM = "mbstream"
XBSTREAM = "xbstream"

_HEAD = struct.Struct("<8sBcI")
_PAYLOAD = struct.Struct("<QQI")
_SPARSE = struct.Struct("<IQQI")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SPARSE_ENTRY = struct.Struct("<II")

LONGEST_CHUNK = _HEAD.size + MAX_PATH + _SPARSE.size + MAX_SPARSE_MAP * _SPARSE_ENTRY.size + MAX_PAYLOAD


_Read = Callable[[memoryview, int, int, int, bytes, int], "Chunk"]
"""From the buffer, where the chunk begins, where its path ended, where the bytes end, the path, and the most bytes."""


class Incomplete(Exception):
    """The header goes on beyond the bytes at hand; ``need`` says how many there must be at least."""

    def __init__(self, need: int) -> None:
        self.need = need


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk's header, with places given as offsets into the buffer that it was read from.

    ``body`` is where map and payload begin and ``end`` where the chunk does; ``offset`` is the
    place of the payload in the file; ``entries`` counts the sparse map's pairs; ``rewrite`` says
    that the file may begin anew here.
    """

    kind: str
    path: bytes
    body: int
    end: int
    offset: int = 0
    crc: int = 0
    entries: int = 0
    new_path: bytes = b""
    rewrite: bool = False

    @property
    def payload(self) -> int:
        """Where the payload begins in the buffer."""
        return self.body + self.entries * _SPARSE_ENTRY.size


PAYLOAD, END, SPARSE, SEEK, RENAME, REMOVE = "payload", "end", "sparse", "seek", "rename", "remove"


def read_chunk(view: memoryview, at: int, end: int, *, dialect: str, longest: int = MAX_PAYLOAD) -> Chunk:
    """The header of the chunk at ``at``, of which bytes up to ``end`` are there.

    The payload need not be there yet.  Raises Incomplete if the header is not, and Corrupt for
    anything that is not a chunk of ``dialect``, or one of more than ``longest`` bytes.
    """
    _need(at + _HEAD.size, at, end)
    magic, flags, kind, length = _HEAD.unpack_from(view, at)
    if magic != MAGIC:
        raise Corrupt("the stream has no chunk where one must begin")
    path, after = _path(view, at, at + _HEAD.size, length, end)
    read = _READERS[dialect].get(kind)
    if read is None:
        raise Corrupt(f"the stream has a chunk of unknown type {kind!r} for {shown(path)}")
    chunk = read(view, at, after, end, path, longest)
    return replace(chunk, rewrite=True) if dialect == MBSTREAM and flags == REWRITE else chunk


def check_crc(view: memoryview, chunk: Chunk) -> None:
    """Raise Corrupt unless the chunk's map and payload have the CRC-32 of its header."""
    if chunk.kind in (PAYLOAD, SPARSE) and zlib_ng.crc32(view[chunk.body : chunk.end]) != chunk.crc:
        raise _wrong_checksum(chunk)


def whole_chunks(view: memoryview, *, dialect: str) -> Iterator[Chunk]:
    """Every chunk of ``view``, which must hold whole chunks alone; raises Corrupt, also for a wrong CRC."""
    at = 0
    while at < len(view):
        try:
            chunk = read_chunk(view, at, len(view), dialect=dialect)
        except Incomplete as error:
            raise Corrupt("a segment ends inside a chunk's header") from error
        if chunk.end > len(view):
            raise Corrupt(f"a segment ends inside a chunk of {shown(chunk.path)}")
        check_crc(view, chunk)
        yield chunk
        at = chunk.end


def sparse_runs(view: memoryview, chunk: Chunk) -> Iterator[tuple[int, int, int]]:
    """Of a sparse chunk: (place in the file, place in the buffer, length) of each run of data; raises Corrupt."""
    place, source = chunk.offset, chunk.payload
    for entry in range(chunk.entries):
        skip, length = _SPARSE_ENTRY.unpack_from(view, chunk.body + entry * _SPARSE_ENTRY.size)
        place += skip
        yield place, source, length
        place, source = place + length, source + length
    if source != chunk.end:
        raise Corrupt(f"the sparse map of {shown(chunk.path)} does not fit its payload")


def file_end(view: memoryview, chunk: Chunk) -> int:
    """Where in the file a payload or sparse chunk ends; raises Corrupt for a map that does not fit."""
    if chunk.kind == PAYLOAD:
        return chunk.offset + chunk.end - chunk.payload
    return max((place + length for place, _, length in sparse_runs(view, chunk)), default=chunk.offset)


def _need(upto: int, at: int, end: int) -> None:
    if end < upto:
        raise Incomplete(upto - at)


def _path(view: memoryview, at: int, start: int, length: int, end: int) -> tuple[bytes, int]:
    if not 0 < length <= MAX_PATH:
        raise Corrupt(f"the stream has a path of {length} bytes")
    _need(start + length, at, end)
    return _inside(bytes(view[start : start + length])), start + length


def _inside(path: bytes) -> bytes:
    """The path in its only form, if it stays below the directory that it is extracted into; raises Corrupt."""
    plain = path.removeprefix(b"./")
    if b"\0" in plain or any(component in (b"", b".", b"..") for component in plain.split(b"/")):
        raise Corrupt(f"the stream has a file outside the target directory: {shown(path)}")
    if plain.count(b"/") > MAX_DEPTH:
        raise Corrupt(f"the stream has a file more than {MAX_DEPTH} directories deep: {shown(path)}")
    if longest := next((part for part in plain.split(b"/") if len(part) > MAX_NAME), b""):
        raise Corrupt(f"the stream has a file name that is too long: {shown(longest)}", hint="rename the table")
    return plain


def _payload(view: memoryview, at: int, after: int, end: int, path: bytes, longest: int) -> Chunk:
    _need(after + _PAYLOAD.size, at, end)
    length, offset, crc = _PAYLOAD.unpack_from(view, after)
    _check_extent(path, length, offset, longest)
    body = after + _PAYLOAD.size
    return Chunk(kind=PAYLOAD, path=path, body=body, end=body + length, offset=offset, crc=crc)


def _bare(kind: str) -> _Read:
    """A reader of chunks that end after their path."""
    return lambda view, at, after, end, path, longest: Chunk(kind=kind, path=path, body=after, end=after)


def _seek(view: memoryview, at: int, after: int, end: int, path: bytes, longest: int) -> Chunk:
    _need(after + _U64.size, at, end)
    (offset,) = _U64.unpack_from(view, after)
    _check_extent(path, 0, offset, longest)
    return Chunk(kind=SEEK, path=path, body=after, end=after + _U64.size, offset=offset)


def _sparse(view: memoryview, at: int, after: int, end: int, path: bytes, longest: int) -> Chunk:
    _need(after + _SPARSE.size, at, end)
    entries, length, offset, crc = _SPARSE.unpack_from(view, after)
    _check_extent(path, length, offset, MAX_PAYLOAD)
    if entries > MAX_SPARSE_MAP:
        raise Corrupt(f"the stream has a sparse map of {entries} entries for {shown(path)}")
    body = after + _SPARSE.size
    size = entries * _SPARSE_ENTRY.size + length
    return Chunk(kind=SPARSE, path=path, body=body, end=body + size, offset=offset, crc=crc, entries=entries)


def _rename(view: memoryview, at: int, after: int, end: int, path: bytes, longest: int) -> Chunk:
    _need(after + _U32.size, at, end)
    (length,) = _U32.unpack_from(view, after)
    new_path, stop = _path(view, at, after + _U32.size, length, end)
    return Chunk(kind=RENAME, path=path, body=after, end=stop, new_path=new_path)


def _check_extent(path: bytes, length: int, offset: int, longest: int) -> None:
    if length > longest or offset + length > MAX_FILE:
        raise Corrupt(f"the stream has a chunk of {length} bytes at offset {offset} for {shown(path)}")


class Divided:
    """A payload chunk, in pieces that are chunks of their own; ``head`` is its header, as it came.

    Every piece has a header as long as the first one's, so that it can be put where that is.
    """

    def __init__(self, chunk: Chunk, head: bytes) -> None:
        self._chunk = chunk
        self._head = bytearray(head)
        self._offset = chunk.offset
        self._crc = 0
        self.left = chunk.end - chunk.payload
        """Bytes of payload that are in no piece yet."""

    @property
    def head_size(self) -> int:
        """Bytes of each piece's header."""
        return len(self._head)

    def head_of(self, payload: memoryview) -> bytes:
        """The header of the next piece; raises Corrupt if, with the last one, the checksum of the whole is wrong."""
        self.left -= len(payload)
        self._crc = zlib_ng.crc32(payload, self._crc)
        if not self.left and self._crc != self._chunk.crc:
            raise _wrong_checksum(self._chunk)
        fields = len(payload), self._offset, zlib_ng.crc32(payload)
        _PAYLOAD.pack_into(self._head, len(self._head) - _PAYLOAD.size, *fields)
        head = bytes(self._head)
        self._offset += len(payload)
        self._head[len(MAGIC)] = 0  # only the first piece may begin the file anew
        return head


def _wrong_checksum(chunk: Chunk) -> Corrupt:
    return Corrupt(f"a chunk of {shown(chunk.path)} at offset {chunk.offset} has a wrong checksum")


def shown(path: bytes) -> str:
    """A path from a stream, fit for a message."""
    return path.decode(errors="backslashreplace")


_READERS: dict[str, dict[bytes, _Read]] = {
    MBSTREAM: {b"P": _payload, b"E": _bare(END), b"S": _seek, b"R": _rename, b"D": _bare(REMOVE)},
    XBSTREAM: {b"P": _payload, b"E": _bare(END), b"S": _sparse},
}
"""How the rest of a chunk is read, by dialect and type."""
