"""What the sink stores: objects made of blobs, in the blocks of one mapped file.

Nothing here knows HTTP but the status of a refusal.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

BLOCK = 1 << 20
MOST_BLOCKS = 1 << 20
SECTOR = 512
TOUCH = 23
"""MADV_POPULATE_WRITE."""


class Refused(Exception):
    """The answer is an error of S3."""

    def __init__(self, status: HTTPStatus, code: str) -> None:
        super().__init__(code)
        self.status = status


class Arena:
    """A mapped file of blocks."""

    def __init__(self, path: Path, *, used: set[int], reserve: int, most: int) -> None:
        bound = max(used, default=-1) + 1
        with path.open("a+b") as file:
            disk, taken = os.fstatvfs(file.fileno()), os.fstat(file.fileno()).st_blocks * SECTOR
            self._count = max(bound, min((taken + disk.f_bavail * disk.f_frsize) // BLOCK, most))
            os.ftruncate(file.fileno(), self._count * BLOCK)
            self._map = mmap.mmap(file.fileno(), self._count * BLOCK)
        self._view = memoryview(self._map)
        if touched := min(reserve // BLOCK, self._count) * BLOCK:
            self._map.madvise(TOUCH, 0, touched)
        self._fresh = itertools.count(bound)
        self.spare = [number for number in range(bound) if number not in used]

    def take(self) -> int:
        """The number of a free block; needs no lock, for each step is one of the interpreter."""
        try:
            return self.spare.pop()
        except IndexError:
            number = next(self._fresh)
        if number >= self._count:
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, "InsufficientStorage")
        return number

    def block(self, number: int) -> memoryview:
        """The bytes of a block."""
        return self._view[number * BLOCK : (number + 1) * BLOCK]


class Blob:
    """Bytes in blocks, which are free again when nobody holds the blob any more."""

    def __init__(self, arena: Arena, blocks: Iterable[int] = (), size: int = 0) -> None:
        self._arena = arena
        self.blocks = list(blocks)
        self.size = size
        weakref.finalize(self, arena.spare.extend, self.blocks).atexit = False

    def grow(self, wanted: int) -> memoryview:
        """Room for the next bytes, ``wanted`` at most."""
        used = self.size % BLOCK
        if not used:
            self.blocks.append(self._arena.take())
        room = self._arena.block(self.blocks[-1])[used : used + wanted]
        self.size += len(room)
        return room

    def slices(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from ``start`` to ``stop``."""
        while start < min(stop, self.size):
            used = start % BLOCK
            size = min(BLOCK - used, min(stop, self.size) - start)
            yield self._arena.block(self.blocks[start // BLOCK])[used : used + size]
            start += size


@dataclass(frozen=True)
class Stored:
    """An object: one blob, or one for each part."""

    blobs: tuple[Blob, ...]
    headers: dict[str, str]
    etag: str = field(default_factory=lambda: f'"{os.urandom(16).hex()}-1"')
    modified: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        """How many bytes."""
        return sum(blob.size for blob in self.blobs)

    def slices(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes from ``start`` to ``stop``."""
        for blob in self.blobs:
            yield from blob.slices(max(start, 0), stop)
            start, stop = start - blob.size, stop - blob.size


class Shelf:
    """All objects, by bucket/key, and their arena; ``save`` keeps them for the next sink in that directory."""

    def __init__(self, directory: Path, *, reserve: int, most: int = MOST_BLOCKS) -> None:
        self._index = directory / "index.json"
        saved = json.loads(self._index.read_text()) if self._index.exists() else {}
        # Once blocks are used anew the old index lies.
        self._index.unlink(missing_ok=True)
        used = {number for entry in saved.values() for blocks, _ in entry["blobs"] for number in blocks}
        self.arena = Arena(directory / "arena", used=used, reserve=reserve, most=most)
        self.objects = {path: self._loaded(**entry) for path, entry in saved.items()}
        self.uploads: dict[str, dict[int, Stored]] = {}
        self._lock = threading.Lock()

    def put(self, path: str, stored: Stored, *, new: bool) -> None:
        """Store an object; with ``new`` it must not be there yet."""
        with self._lock:
            if new and path in self.objects:
                raise Refused(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
            # What was there is freed after the lock.
            before, self.objects[path] = self.objects.get(path), stored
        del before

    def find(self, path: str) -> Stored:
        """The object at a path."""
        try:
            return self.objects[path]
        except KeyError:
            raise Refused(HTTPStatus.NOT_FOUND, "NoSuchKey") from None

    def parts(self, upload: str) -> dict[int, Stored]:
        """The parts of an upload that came so far."""
        try:
            return self.uploads[upload]
        except KeyError:
            raise Refused(HTTPStatus.NOT_FOUND, "NoSuchUpload") from None

    def save(self) -> None:
        """Write the index."""
        entries = {
            path: vars(stored) | {"blobs": [(blob.blocks, blob.size) for blob in stored.blobs]}
            for path, stored in dict(self.objects).items()
        }
        self._index.write_text(json.dumps(entries))

    def _loaded(
        self, blobs: list[tuple[list[int], int]], headers: dict[str, str], etag: str, modified: float
    ) -> Stored:
        return Stored(tuple(Blob(self.arena, blocks, size) for blocks, size in blobs), headers, etag, modified)
