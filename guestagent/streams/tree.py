"""Files below one directory and nowhere else: paths from a stream become open files, and links lead nowhere.

Directories that files lie in are opened once and kept; more than a few hundred of them are opened anew each time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
KEPT = 256
"""Directories that stay open: fewer than the 1,024 descriptors that a process has by default."""

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """What is made below ``root``; paths are relative, with no ``..`` in them.  Safe in several threads."""

    def __init__(self, root: Path) -> None:
        self._lock = threading.Lock()
        self._kept: dict[bytes, int] = {b"": os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)}

    def close(self) -> None:
        """Let go of the directories; what is asked for later is an OSError."""
        with self._lock:
            kept, self._kept = self._kept, {b"": -1}  # a worker that was left alone must not meet whatever comes next
        for descriptor in kept.values():
            os.close(descriptor)

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor of the file, whose directories are made if need be."""
        above, _, name = path.rpartition(b"/")
        with self._directory(above) as parent:
            return os.open(name, flags | _FLAGS, FILE_MODE, dir_fd=parent)

    @contextlib.contextmanager
    def opened(self, path: bytes, flags: int) -> Iterator[int]:
        """As open, and closed at the end of a ``with``."""
        descriptor = self.open(path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def unlink(self, path: bytes) -> None:
        """Remove the file."""
        above, _, name = path.rpartition(b"/")
        with self._directory(above) as parent:
            os.unlink(name, dir_fd=parent)

    def rename(self, old: bytes, new: bytes) -> None:
        """Give the file another path, in the place of what may be there."""
        above, _, name = old.rpartition(b"/")
        new_above, _, new_name = new.rpartition(b"/")
        with self._directory(above) as parent, self._directory(new_above) as new_parent:
            os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=new_parent)

    @contextlib.contextmanager
    def _directory(self, path: bytes) -> Iterator[int]:
        kept = self._kept.get(path)
        if kept is not None:
            yield kept
            return
        descriptor = self._opened(path)
        if self._keep(path, descriptor):
            yield descriptor
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _opened(self, path: bytes) -> int:
        descriptor = os.dup(self._kept[b""])
        for component in path.split(b"/"):
            try:
                below = _made(descriptor, component)
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _keep(self, path: bytes, descriptor: int) -> bool:
        """Whether the descriptor is now the one of that directory; another worker may have been faster."""
        with self._lock:
            if len(self._kept) >= KEPT or self._kept[b""] < 0:
                return False
            return self._kept.setdefault(path, descriptor) == descriptor


def _made(parent: int, name: bytes) -> int:
    """A descriptor of the directory, made if need be."""
    flags = os.O_RDONLY | os.O_DIRECTORY | _FLAGS
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # another worker may have made it in between
            os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


class OpenFile:
    """The file that a worker writes to, kept open from one chunk to the next; a context manager."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._path = b""
        self._descriptor = -1

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, path: bytes) -> None:
        """Make the file, which must not be there."""
        self._take(path, os.O_EXCL | os.O_CREAT)

    def write(self, path: bytes, data: memoryview, place: int) -> None:
        """Write all of ``data`` at ``place`` of the file."""
        if path != self._path:
            self._take(path, 0)
        write_all(self._descriptor, data, place)

    def close(self) -> None:
        """Close the file, if one is open."""
        descriptor, self._descriptor, self._path = self._descriptor, -1, b""
        if descriptor >= 0:
            os.close(descriptor)

    def _take(self, path: bytes, flags: int) -> None:
        self.close()
        self._descriptor = self._tree.open(path, os.O_WRONLY | flags)
        self._path = path


def write_all(descriptor: int, data: memoryview, place: int) -> None:
    """Write all of ``data`` at ``place``, in as many calls as the system wants."""
    while len(data):
        count = os.pwrite(descriptor, data, place)
        data, place = data[count:], place + count
