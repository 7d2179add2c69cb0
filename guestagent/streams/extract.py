"""Chunks to files: below one directory and nowhere else, from any thread, in any order.

Large aligned payloads bypass the page cache (O_DIRECT through an aligned
bounce buffer) where the filesystem can; everything else is written ordinarily.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from guestagent.errors import Corrupt, GuestagentError
from guestagent.manifest import MAX_FILES
from guestagent.streams import chunks
from guestagent.streams.chunks import Chunk, file_end, shown, sparse_runs, whole_chunks
from guestagent.streams.codec import Buffer
from guestagent.streams.tree import OpenFile, Tree, write_all

ALIGNMENT = 4096
DIRECT_FROM = 256 << 10
"""Bytes of a payload from which on the page cache costs more than it gives."""
BOUNCE = 1 << 20
"""Bytes copied to aligned memory and written at a time."""


@dataclass(slots=True)
class _File:
    """What has been seen of one file.

    ``seams`` is the exclusive or of the hashes of both ends of each piece: where pieces meet it
    cancels out, so of a whole file its begin and its end are left.  It says nothing once the
    stream has moved to another place in the file (``loose``).
    """

    written: int = 0
    seams: int = 0
    ended: bool = False
    loose: bool = False

    def add(self, begin: int, end: int) -> None:
        """Note a piece."""
        self.written += end - begin
        self.seams ^= hash((begin,)) ^ hash((end,))

    def is_whole(self) -> bool:
        """Whether the file has ended, and each byte of it came once."""
        return self.ended and (self.loose or self.seams == hash((0,)) ^ hash((self.written,)))


class Extraction:
    """The files of one stream, on their way into ``directory``."""

    def __init__(self, directory: Path, *, dialect: str) -> None:
        self._directory = directory
        self._dialect = dialect
        self._lock = threading.Lock()
        self._files: dict[bytes, _File] = {}
        self._ended = 0
        self._direct = True
        self._tree = Tree(directory)

    def __enter__(self) -> Extraction:
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.close()

    def apply(self, view: memoryview, bounce: Buffer, *, ordered: bool = False) -> None:
        """Write the chunks of one raw segment; raises Corrupt.

        ``ordered`` promises that every earlier segment has been applied: only then may chunks
        rename, remove or rewrite what earlier ones made.
        """
        with OpenFile(self._tree) as at_hand:
            for chunk in whole_chunks(view, dialect=self._dialect):
                try:
                    self._apply(_Piece(view, chunk, bounce, at_hand), ordered)
                except OSError as error:
                    raise _explained(error, f"{self._directory}/{shown(chunk.path)}") from error

    def check_complete(self, files: int) -> None:
        """Raise Corrupt unless exactly ``files`` files have ended and each has every byte."""
        if self._ended != files:
            raise Corrupt(f"the segments end {self._ended} files and the manifest has {files}")
        for path, file in self._files.items():
            if not file.is_whole():
                raise Corrupt(f"the segments do not hold all of {shown(path)}")

    def _apply(self, piece: _Piece, ordered: bool) -> None:
        chunk = piece.chunk
        if chunk.kind in (chunks.RENAME, chunks.REMOVE, chunks.SEEK) and not ordered:
            raise Corrupt(f"a {chunk.kind} of {shown(chunk.path)} where the manifest has none")
        if chunk.kind in (chunks.RENAME, chunks.REMOVE):
            piece.at_hand.close()
            self._move(chunk)
            return
        file = self._file(piece, ordered)
        if chunk.kind == chunks.SEEK:
            file.loose = True
        elif chunk.kind == chunks.END:
            self._end(chunk, file)
        else:
            self._fill(piece, file)

    def _file(self, piece: _Piece, ordered: bool) -> _File:
        """The file's record; made with an empty file at first, and again where the stream begins it anew.

        Under the lock, so that no other worker writes to a file that is about to be made.
        """
        path = piece.chunk.path
        with self._lock:
            file = self._files.get(path)
            if file is None and len(self._files) >= MAX_FILES:
                raise Corrupt(f"the stream has more than {MAX_FILES} files")
            if file is None or (ordered and file.ended and piece.chunk.rewrite):
                if file is not None:
                    self._tree.unlink(path)
                piece.at_hand.create(path)
                self._files[path] = file = _File()
            return file

    def _end(self, chunk: Chunk, file: _File) -> None:
        with self._lock:
            if file.ended:
                raise Corrupt(f"the segments end {shown(chunk.path)} twice")
            file.ended = True
            self._ended += 1

    def _move(self, chunk: Chunk) -> None:
        """Rename or remove a file; one that the stream does not have is passed over, as mbstream does."""
        file = self._files.pop(chunk.path, None)
        if file is None:
            return
        if chunk.kind == chunks.REMOVE:
            self._tree.unlink(chunk.path)
            return
        self._tree.rename(chunk.path, chunk.new_path)
        self._files[chunk.new_path] = file

    def _fill(self, piece: _Piece, file: _File) -> None:
        chunk = piece.chunk
        end = file_end(piece.view, chunk)
        if chunk.kind == chunks.SPARSE:
            self._write_sparse(piece, end)
        else:
            self._write(piece, piece.view[chunk.payload : chunk.end], place=chunk.offset)
        with self._lock:
            file.add(chunk.offset, end)

    def _write_sparse(self, piece: _Piece, end: int) -> None:
        """Write the runs of data; what lies between them stays a hole."""
        reached = piece.chunk.offset
        for place, source, length in sparse_runs(piece.view, piece.chunk):
            if length:
                self._write(piece, piece.view[source : source + length], place=place)
                reached = place + length
        if reached < end:  # a byte of the hole, since to set the size would race with other workers
            self._write(piece, memoryview(b"\0"), place=end - 1)

    def _write(self, piece: _Piece, payload: memoryview, *, place: int) -> None:
        done = 0
        if self._direct and len(payload) >= DIRECT_FROM and place % ALIGNMENT == 0:
            done = self._write_direct(piece, payload, place=place)
        if done < len(payload):
            piece.at_hand.write(piece.chunk.path, payload[done:], place + done)

    def _write_direct(self, piece: _Piece, payload: memoryview, *, place: int) -> int:
        """Write the aligned part of ``payload`` past the page cache; gives its length, 0 if that cannot be."""
        whole = len(payload) - len(payload) % ALIGNMENT
        bounce = piece.bounce.view
        try:
            with self._tree.opened(piece.chunk.path, os.O_WRONLY | os.O_DIRECT) as descriptor:
                for start in range(0, whole, BOUNCE):
                    part = payload[start : min(start + BOUNCE, whole)]
                    bounce[: len(part)] = part
                    write_all(descriptor, bounce[: len(part)], place + start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = False  # the filesystem has no O_DIRECT, or wants another alignment
            return 0
        return whole


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk, the segment that it is in, and what its worker works with."""

    view: memoryview
    chunk: Chunk
    bounce: Buffer
    at_hand: OpenFile


def _explained(error: OSError, path: str) -> GuestagentError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GuestagentError(f"no space left for {path}", hint="free space, or name another target")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return Corrupt(f"the stream's {path} leads through something that is not a directory")
    return GuestagentError(f"cannot write {path}: {error.strerror}")
