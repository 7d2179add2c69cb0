"""Streams to test with: every chunk of mbstream and xbstream, and sources that hand them out in pieces."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

REWRITE = 2


def head(kind: bytes, path: bytes, flags: int = 0) -> bytes:
    return b"XBSTCK01" + bytes([flags]) + kind + struct.pack("<I", len(path)) + path


def payload(path: bytes, data: bytes, offset: int = 0, *, flags: int = 0) -> bytes:
    return head(b"P", path, flags) + struct.pack("<QQI", len(data), offset, zlib.crc32(data)) + data


def end(path: bytes, *, flags: int = 0) -> bytes:
    return head(b"E", path, flags)


def seek(path: bytes, offset: int, *, flags: int = 0) -> bytes:
    return head(b"S", path, flags) + struct.pack("<Q", offset)


def rename(path: bytes, new_path: bytes) -> bytes:
    return head(b"R", path) + struct.pack("<I", len(new_path)) + new_path


def remove(path: bytes) -> bytes:
    return head(b"D", path)


def sparse(path: bytes, runs: Sequence[tuple[int, bytes]], offset: int = 0) -> bytes:
    """A chunk of xbstream: for each run how many bytes to skip, and the data after them."""
    entries = b"".join(struct.pack("<II", skip, len(data)) for skip, data in runs)
    data = b"".join(data for _, data in runs)
    crc = zlib.crc32(entries + data)
    return head(b"S", path) + struct.pack("<IQQI", len(runs), len(data), offset, crc) + entries + data


def file(path: bytes, content: bytes, *, size: int = 10 << 20, flags: int = 0) -> bytes:
    """A whole file: its payloads of at most ``size`` bytes, and its end."""
    return b"".join(pieces(path, content, size=size, flags=flags))


def pieces(path: bytes, content: bytes, *, size: int = 10 << 20, flags: int = 0) -> list[bytes]:
    starts = range(0, len(content), size)
    return [payload(path, content[at : at + size], at, flags=flags) for at in starts] + [end(path)]


def source(stream: bytes, step: int = 1 << 30) -> Callable[[memoryview, Callable[[], bool]], int]:
    """What segments.store reads from: the stream, at most ``step`` bytes at a time."""
    at = 0

    def read(view: memoryview, _: Callable[[], bool]) -> int:
        nonlocal at
        data = stream[at : at + min(step, len(view))]
        view[: len(data)] = data
        at += len(data)
        return len(data)

    return read


def tree(directory: Path) -> dict[bytes, bytes]:
    """Every file below a directory, by its path in the stream; anything else than files and directories fails."""
    found = {}
    for path in sorted(directory.rglob("*")):
        assert not path.is_symlink(), path
        if not path.is_dir():
            assert path.is_file(), path
            found[bytes(path.relative_to(directory))] = path.read_bytes()
    return found


def joined(files: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]], *, size: int = 10 << 20) -> bytes:
    """The files one after the other."""
    return b"".join(file(path, content, size=size) for path, content in dict(files).items())
