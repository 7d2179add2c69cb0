"""A dump's stream, cut into segments while it passes, and watched for its end.

The stream is followed chunk by chunk: files begin, grow and end in order, and
the stream ends only after every file did.  So a dump that is cut short or
garbled is caught while it is made.  A segment is a run of whole chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guestagent.errors import Corrupt
from guestagent.streams import chunks
from guestagent.streams.chunks import LONGEST_CHUNK, Chunk, Incomplete, read_chunk
from guestagent.streams.codec import Buffer

LOOK_AHEAD = 256 << 10
"""Bytes read beyond the chunk at hand, so that small chunks do not cost a system call each."""

Read = Callable[[memoryview], int]
"""Fills a view from its start and returns how many bytes; 0 only at a proven end (it raises otherwise)."""


@dataclass(frozen=True)
class RawSegment:
    """A segment that is not yet stored: whole chunks in the worker's own buffer."""

    index: int
    view: memoryview


class Splitter:
    """Cuts what ``read`` gives into segments of ``segment_size`` bytes and the rest of a chunk.

    ``files`` counts the files that ended, ``raw_size`` the bytes that passed, and
    ``ordered_from`` is the first segment that renames, removes or rewrites what came before.
    """

    def __init__(self, read: Read, *, dialect: str, segment_size: int) -> None:
        self._read = read
        self._dialect = dialect
        self._size = segment_size
        self._carry = b""
        self._index = 0
        self._over = False
        self._files = _Files()
        self.raw_size = 0
        self.ordered_from: int | None = None

    @property
    def files(self) -> int:
        """How many files the stream has ended so far."""
        return self._files.ended

    def buffer(self) -> Buffer:
        """A buffer that any segment of this stream fits into."""
        return Buffer(self._size + LONGEST_CHUNK + LOOK_AHEAD)

    def take(self, buffer: Buffer) -> RawSegment | None:
        """The next segment, in ``buffer``; None after the last.  Raises Corrupt, and whatever ``read`` raises."""
        if self._over:
            return None
        cut, filled = self._fill(buffer.view)
        self._carry = bytes(buffer.view[cut:filled])
        if not cut:
            self._over = True
            self._files.check_end()
            return None
        segment = RawSegment(self._index, buffer.view[:cut])
        self._index += 1
        self.raw_size += cut
        return segment

    def _fill(self, view: memoryview) -> tuple[int, int]:
        """Fill ``view`` with chunks; gives where the segment is cut and where the bytes end."""
        filled = len(self._carry)
        view[:filled] = self._carry
        at = 0
        while at < self._size:
            found, filled = self._next_chunk(view, at, filled)
            if found is None:
                break
            if self._files.disturbs(found):
                if at and self.ordered_from is None:
                    self.ordered_from = self._index + 1
                    break
                self._note_order()
            self._files.follow(found)
            at = found.end
        return at, filled

    def _note_order(self) -> None:
        if self.ordered_from is None:
            self.ordered_from = self._index

    def _next_chunk(self, view: memoryview, at: int, filled: int) -> tuple[Chunk | None, int]:
        """The whole chunk at ``at``, or None at the end of the stream; and where the bytes end now."""
        need = 1
        while True:
            filled = self._read_upto(view, at + need, filled)
            if filled == at:
                return None, filled
            if filled < at + need:
                raise Corrupt("the stream ends inside a chunk")
            try:
                chunk = read_chunk(view, at, filled, dialect=self._dialect)
            except Incomplete as error:
                need = error.need
                continue
            if chunk.end <= filled:
                return chunk, filled
            need = chunk.end - at

    def _read_upto(self, view: memoryview, upto: int, filled: int) -> int:
        """Read until ``upto`` bytes are there, or the stream ends."""
        while filled < upto:
            count = self._read(view[filled : min(len(view), upto + LOOK_AHEAD)])
            if not count:
                break
            filled += count
        return filled


class _Files:
    """Which files of the stream are open and which have ended."""

    def __init__(self) -> None:
        self.ended = 0
        self._open: dict[bytes, int] = {}
        self._done: set[bytes] = set()

    def disturbs(self, chunk: Chunk) -> bool:
        """Whether the chunk changes what earlier chunks made, so that order matters from here on."""
        if chunk.kind in (chunks.RENAME, chunks.REMOVE, chunks.SEEK):
            return True
        return chunk.path in self._done and chunk.path not in self._open

    def follow(self, chunk: Chunk) -> None:
        """Note the chunk; raises Corrupt if it cannot come here."""
        if chunk.kind == chunks.PAYLOAD:
            self._grow(chunk, chunk.offset, chunk.offset + chunk.end - chunk.payload)
        elif chunk.kind == chunks.SEEK:
            self._open[chunk.path] = chunk.offset
        elif chunk.kind == chunks.SPARSE:
            self._grow(chunk, chunk.offset, -1)
        elif chunk.kind == chunks.END:
            self._open.pop(chunk.path, None)
            self._done.add(chunk.path)
            self.ended += 1
        elif chunk.kind == chunks.RENAME:
            self._done.discard(chunk.path)
            self._done.add(chunk.new_path)

    def _grow(self, chunk: Chunk, begin: int, end: int) -> None:
        expected = self._open.get(chunk.path, 0)
        if expected not in (begin, -1):
            raise Corrupt(f"the stream jumps from {expected} to {begin} in {chunk.path.decode(errors='replace')}")
        self._open[chunk.path] = end

    def check_end(self) -> None:
        """Raise Corrupt unless every file has ended, and there was one."""
        if self._open:
            path = next(iter(self._open)).decode(errors="replace")
            raise Corrupt(f"the stream ends before {path} does ({len(self._open)} files are unfinished)")
        if not self.ended:
            raise Corrupt("the stream is empty")
