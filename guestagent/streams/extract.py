"""Chunks to files: below one directory and nowhere else, from any thread, in any order.

Large aligned payloads bypass the page cache (O_DIRECT through an aligned
bounce buffer) where the filesystem can; everything else is written ordinarily.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guestagent.errors import Corrupt, GuestagentError
from guestagent.manifest import MAX_FILES
from guestagent.streams import chunks
from guestagent.streams.chunks import Chunk, file_end, shown, sparse_runs, whole_chunks
from guestagent.streams.codec import Buffer

ALIGNMENT = 4096
DIRECT_FROM = 256 << 10
"""Bytes of a payload from which on the page cache costs more than it gives."""
BOUNCE = 1 << 20
"""Bytes copied to aligned memory and written at a time."""

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


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
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> Extraction:
        return self

    def __exit__(self, *_: object) -> None:
        root, self._root = self._root, -1  # a worker that was left alone must not meet whatever gets this number next
        os.close(root)

    def apply(self, view: memoryview, bounce: Buffer, *, ordered: bool = False) -> None:
        """Write the chunks of one raw segment; raises Corrupt.

        ``ordered`` promises that every earlier segment has been applied: only then may chunks
        rename, remove or rewrite what earlier ones made.
        """
        for chunk in whole_chunks(view, dialect=self._dialect):
            try:
                self._apply(view, chunk, bounce, ordered)
            except OSError as error:
                raise _explained(error, f"{self._directory}/{shown(chunk.path)}") from error

    def check_complete(self, files: int) -> None:
        """Raise Corrupt unless exactly ``files`` files have ended and each has every byte."""
        if self._ended != files:
            raise Corrupt(f"the segments end {self._ended} files and the manifest has {files}")
        for path, file in self._files.items():
            if not file.is_whole():
                raise Corrupt(f"the segments do not hold all of {shown(path)}")

    def _apply(self, view: memoryview, chunk: Chunk, bounce: Buffer, ordered: bool) -> None:
        if chunk.kind in (chunks.RENAME, chunks.REMOVE, chunks.SEEK) and not ordered:
            raise Corrupt(f"a {chunk.kind} of {shown(chunk.path)} where the manifest has none")
        if chunk.kind in (chunks.RENAME, chunks.REMOVE):
            self._move(chunk)
            return
        file = self._file(chunk, ordered)
        if chunk.kind == chunks.SEEK:
            file.loose = True
        elif chunk.kind == chunks.END:
            self._end(chunk, file)
        else:
            self._fill(view, chunk, bounce, file)

    def _file(self, chunk: Chunk, ordered: bool) -> _File:
        """The file's record; made with an empty file at first, and again where the stream begins it anew.

        Under the lock, so that no other worker writes to a file that is about to be made.
        """
        with self._lock:
            file = self._files.get(chunk.path)
            if file is None and len(self._files) >= MAX_FILES:
                raise Corrupt(f"the stream has more than {MAX_FILES} files")
            if file is None or (ordered and file.ended and chunk.rewrite):
                self._create(chunk.path, replace=file is not None)
                self._files[chunk.path] = file = _File()
            return file

    def _create(self, path: bytes, *, replace: bool) -> None:
        with self._parent(path) as (parent, name):
            if replace:
                os.unlink(name, dir_fd=parent)
            with _opened(parent, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
                pass

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
        with self._parent(chunk.path) as (parent, name):
            if chunk.kind == chunks.REMOVE:
                os.unlink(name, dir_fd=parent)
                return
            with self._parent(chunk.new_path) as (new_parent, new_name):
                os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=new_parent)
        self._files[chunk.new_path] = file

    def _fill(self, view: memoryview, chunk: Chunk, bounce: Buffer, file: _File) -> None:
        end = file_end(view, chunk)
        if chunk.kind == chunks.SPARSE:
            self._write_sparse(view, chunk, bounce, end)
        else:
            self._write(chunk.path, view[chunk.payload : chunk.end], bounce, place=chunk.offset)
        with self._lock:
            file.add(chunk.offset, end)

    def _write_sparse(self, view: memoryview, chunk: Chunk, bounce: Buffer, end: int) -> None:
        """Write the runs of data; what lies between them stays a hole."""
        reached = chunk.offset
        for place, source, length in sparse_runs(view, chunk):
            if length:
                self._write(chunk.path, view[source : source + length], bounce, place=place)
                reached = place + length
        if reached < end:  # a byte of the hole, since to set the size would race with other workers
            self._write(chunk.path, memoryview(b"\0"), bounce, place=end - 1)

    def _write(self, path: bytes, payload: memoryview, bounce: Buffer, *, place: int) -> None:
        with self._parent(path) as (parent, name):
            done = 0
            if self._direct and len(payload) >= DIRECT_FROM and place % ALIGNMENT == 0:
                done = self._write_direct(parent, name, payload, bounce, place=place)
            if done < len(payload):
                with _opened(parent, name, os.O_WRONLY) as descriptor:
                    _write_all(descriptor, payload[done:], place + done)

    def _write_direct(self, parent: int, name: bytes, payload: memoryview, bounce: Buffer, *, place: int) -> int:
        """Write the aligned part of ``payload`` past the page cache; gives its length, 0 if that cannot be."""
        whole = len(payload) - len(payload) % ALIGNMENT
        try:
            with _opened(parent, name, os.O_WRONLY | os.O_DIRECT) as descriptor:
                for start in range(0, whole, BOUNCE):
                    piece = payload[start : min(start + BOUNCE, whole)]
                    bounce.view[: len(piece)] = piece
                    _write_all(descriptor, bounce.view[: len(piece)], place + start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = False  # the filesystem has no O_DIRECT, or wants another alignment
            return 0
        return whole

    @contextlib.contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The open directory that ``path`` lies in, made if need be, and the path's last component."""
        *above, name = path.split(b"/")
        descriptor = os.dup(self._root)
        try:
            for component in above:
                below = _directory(descriptor, component)
                os.close(descriptor)
                descriptor = below
            yield descriptor, name
        finally:
            os.close(descriptor)


def _directory(parent: int, name: bytes) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # another worker may have made it in between
            os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


@contextlib.contextmanager
def _opened(parent: int, name: bytes, flags: int) -> Iterator[int]:
    descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: memoryview, place: int) -> None:
    while len(data):
        count = os.pwrite(descriptor, data, place)
        data, place = data[count:], place + count


def _explained(error: OSError, path: str) -> GuestagentError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GuestagentError(f"no space left for {path}", hint="free space, or name another target")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return Corrupt(f"the stream's {path} leads through something that is not a directory")
    return GuestagentError(f"cannot write {path}: {error.strerror}")
