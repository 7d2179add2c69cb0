"""A dump's stream, cut into segments while it passes, and watched for its end.

The stream is followed chunk by chunk: files begin, grow and end in order, and
the stream ends only after every file did.  So a dump that is cut short or
garbled is caught while it is made.  A segment is a run of whole chunks; one
that is too large for it is divided into several, which mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guestagent.errors import Corrupt, Refused
from guestagent.manifest import MAX_FILES, MAX_SEGMENTS
from guestagent.streams import chunks
from guestagent.streams.chunks import (
    LONGEST_CHUNK,
    MAX_DUMPED_PAYLOAD,
    MAX_PAYLOAD,
    Chunk,
    Divided,
    Incomplete,
    file_end,
    read_chunk,
    shown,
)
from guestagent.streams.codec import Buffer

LOOK_AHEAD = 256 << 10
"""Bytes read beyond the chunk at hand, so that small chunks do not cost a system call each."""

PIECE = 8 << 20
"""Bytes of payload in each piece of a chunk that is divided; many times what is read ahead."""

Read = Callable[[memoryview], int]
"""Fills a view from its start and returns how many bytes; 0 only at a proven end (it raises otherwise)."""


@dataclass(frozen=True)
class RawSegment:
    """A segment that is not yet stored: whole chunks in the worker's own buffer; ``last`` as the splitter tells it."""

    index: int
    view: memoryview
    last: bool


class Splitter:
    """Cuts what ``read`` gives into segments of ``segment_size`` bytes and the rest of a chunk.

    Only with ``tells_last`` is a segment's ``last`` true where the stream ends with it; it costs waiting for the
    first byte of the next one.
    ``files`` counts the files that ended, and ``ordered_from`` is the first segment that
    renames, removes or rewrites what came before.
    """

    def __init__(self, read: Read, *, dialect: str, segment_size: int, tells_last: bool = False) -> None:
        self._read = read
        self._tells_last = tells_last
        self._dialect = dialect
        self._size = segment_size
        self._carry = b""
        self._index = 0
        self._over = False
        self._files = _Files()
        self._divided: Divided | None = None
        self.ordered_from: int | None = None

    @property
    def files(self) -> int:
        """How many files the stream has ended so far."""
        return self._files.ended

    def buffer(self) -> Buffer:
        """A buffer that any segment of this stream fits into."""
        return Buffer(self._size + LONGEST_CHUNK + LOOK_AHEAD + 1)

    def take(self, buffer: Buffer) -> RawSegment | None:
        """The next segment, in ``buffer``; None after the last.  Raises Corrupt, and whatever ``read`` raises."""
        if self._over:
            self._files.check_end()
            return None
        cut, filled = self._fill(buffer.view)
        if self._tells_last and not self._divided:
            filled = self._read_upto(buffer.view, cut + 1, filled)
            self._over = filled == cut
        self._carry = bytes(buffer.view[cut:filled])
        if not cut:
            self._files.check_end()
            return None
        if self._index == MAX_SEGMENTS:
            raise Refused(f"the stream has more than {MAX_SEGMENTS} segments", hint="make segments larger")
        segment = RawSegment(self._index, buffer.view[:cut], last=self._over)
        self._index += 1
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
            if self.ordered_from is None and self._files.disturbs(found):
                if at:
                    break  # so that a segment begins with what needs the order
                self.ordered_from = self._index
            self._files.follow(view, found)
            at = found.end
        return at, filled

    def _next_chunk(self, view: memoryview, at: int, filled: int) -> tuple[Chunk | None, int]:
        """The whole chunk at ``at``, or None at the end of the stream; and where the bytes end now."""
        if self._divided and filled == at:
            return self._piece(self._divided, view, at, filled + self._divided.head_size)
        need = 1
        while True:
            filled = self._read_upto(view, at + need, filled)
            if filled == at:
                return None, filled
            if filled < at + need:
                raise Corrupt("the stream ends inside a chunk")
            try:
                chunk = read_chunk(view, at, filled, dialect=self._dialect, longest=MAX_DUMPED_PAYLOAD)
            except Incomplete as error:
                need = error.need
                continue
            if chunk.end - chunk.payload > MAX_PAYLOAD:
                self._divided = Divided(chunk, bytes(view[at : chunk.body]))
                return self._piece(self._divided, view, at, filled)
            if chunk.end <= filled:
                return chunk, filled
            need = chunk.end - at

    def _piece(self, divided: Divided, view: memoryview, at: int, filled: int) -> tuple[Chunk, int]:
        """The next piece of a chunk that is too large for us, at ``at``; reads nothing of what follows it."""
        body = at + divided.head_size
        end = body + min(PIECE, divided.left)
        while filled < end:
            count = self._read(view[filled:end])
            if not count:
                raise Corrupt("the stream ends inside a chunk")
            filled += count
        view[at:body] = divided.head_of(view[body:end])
        if not divided.left:
            self._divided = None
        return read_chunk(view, at, end, dialect=self._dialect), filled

    def _read_upto(self, view: memoryview, upto: int, filled: int) -> int:
        """Read until ``upto`` bytes are there, or the stream ends."""
        while filled < upto:
            count = self._read(view[filled : min(len(view), upto + LOOK_AHEAD)])
            if not count:
                break
            filled += count
        return filled


class _Files:
    """Which files of the stream are open, and up to where, and which have ended."""

    def __init__(self) -> None:
        self.ended = 0
        self._open: dict[bytes, int] = {}
        self._done: set[bytes] = set()

    def disturbs(self, chunk: Chunk) -> bool:
        """Whether the chunk changes what earlier chunks made, so that order matters from here on."""
        return chunk.path in self._done or chunk.kind in (chunks.RENAME, chunks.REMOVE, chunks.SEEK)

    def follow(self, view: memoryview, chunk: Chunk) -> None:
        """Note the chunk; raises Corrupt if it cannot come here."""
        if chunk.kind in (chunks.RENAME, chunks.REMOVE):
            self._move(chunk)
            return
        self._begin(chunk)
        if chunk.kind == chunks.SEEK:
            self._open[chunk.path] = chunk.offset
        elif chunk.kind == chunks.END:
            del self._open[chunk.path]
            self._done.add(chunk.path)
            self.ended += 1
            if self.ended > MAX_FILES:
                raise Refused(f"the stream has more than {MAX_FILES} files", hint="drop tables")
        else:
            self._grow(chunk, file_end(view, chunk))

    def check_end(self) -> None:
        """Raise Corrupt unless every file has ended, and there was one."""
        if self._open:
            path = shown(next(iter(self._open)))
            raise Corrupt(f"the stream ends before {path} does ({len(self._open)} files are unfinished)")
        if not self.ended:
            raise Corrupt("the stream is empty")

    def _move(self, chunk: Chunk) -> None:
        """A file under its new name, or gone; the tools pass over files that the stream does not have."""
        for path in (chunk.path, chunk.new_path):
            if path in self._open:
                raise Corrupt(f"the stream has a {chunk.kind} of {shown(path)} before it ends")
        if chunk.path in self._done:
            self._done.remove(chunk.path)
            if chunk.kind == chunks.RENAME:
                self._done.add(chunk.new_path)

    def _begin(self, chunk: Chunk) -> None:
        if chunk.path in self._open:
            return
        if chunk.path in self._done and not chunk.rewrite:
            raise Corrupt(f"the stream has {shown(chunk.path)} twice")
        self._open[chunk.path] = 0

    def _grow(self, chunk: Chunk, end: int) -> None:
        expected = self._open[chunk.path]
        if chunk.offset != expected:
            raise Corrupt(f"the stream jumps from {expected} to {chunk.offset} in {shown(chunk.path)}")
        self._open[chunk.path] = end
