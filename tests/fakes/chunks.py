"""The streams that the fake tools write: xbstream with chunks of type P, S and E, mbstream with P and E."""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping

from tests.fakes.manners import MARIABACKUP, go_wrong_halfway, halts, knob, say

MAGIC = b"XBSTCK01"
BLOCK = 4096


class Chunk:
    """A piece of a file; an empty one stands for the file's end."""

    def __init__(self, path: str, offset: int, data: bytes, *, end: bool) -> None:
        self.path, self.offset, self.data, self.end = path, offset, data, end


def is_innodb(name: str) -> bool:
    return name.endswith((".ibd", ".ibu")) or os.path.basename(name).startswith(("ibdata", "undo"))


def send(files: Mapping[str, bytes], *, parallel: int, wrong: set[str]) -> None:
    chunks = list(interleaved(files, parallel))
    if "unended" in wrong:
        chunks.pop()
    middle = next(index for index, chunk in enumerate(chunks) if index >= len(chunks) // 2 and chunk.data)
    for index, chunk in enumerate(chunks):
        encoded = encode(chunk)
        if index == middle and "flip" in wrong:
            encoded = encoded[:-1] + bytes([encoded[-1] ^ 1])
        if index == middle and halts(wrong):
            put(encoded[: len(encoded) // 2])
            go_wrong_halfway(wrong)
            return
        put(encoded)
        if chunk.end:
            say(f"Streaming {chunk.path} to <STDOUT>")


def put(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def interleaved(files: Mapping[str, bytes], parallel: int) -> Iterator[Chunk]:
    """The chunks of every file; those of ``parallel`` files at a time take turns."""
    waiting = [pieces(name, data) for name, data in files.items()]
    for first in range(0, len(waiting), max(1, parallel)):
        group = waiting[first : first + max(1, parallel)]
        for turn in itertools.zip_longest(*group):
            yield from (chunk for chunk in turn if chunk is not None)


def pieces(path: str, data: bytes) -> Iterator[Chunk]:
    size = int(knob("CHUNK", str(10 << 20)))
    for offset in range(0, len(data), size):
        yield Chunk(path, offset, data[offset : offset + size], end=False)
    yield Chunk(path, len(data), b"", end=True)


def encode(chunk: Chunk) -> bytes:
    name = chunk.path.encode()
    head = MAGIC + b"\0%c" + struct.pack("<I", len(name)) + name
    if chunk.end:
        return head.replace(b"%c", b"E", 1)
    runs = list(data_runs(chunk.data)) if not MARIABACKUP and is_innodb(chunk.path) else []
    if len(runs) > 1:
        return head.replace(b"%c", b"S", 1) + sparse(chunk, runs)
    numbers = struct.pack("<QQI", len(chunk.data), chunk.offset, zlib.crc32(chunk.data))
    return head.replace(b"%c", b"P", 1) + numbers + chunk.data


def data_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Where ``data`` has something else than blocks of zeros, as (start, end); its very end always counts."""
    blocks = range(0, len(data), BLOCK)
    full = [offset for offset in blocks if data[offset : offset + BLOCK].strip(b"\0") or offset == blocks[-1]]
    for _, run in itertools.groupby(enumerate(full), lambda item: item[1] - item[0] * BLOCK):
        offsets = [offset for _, offset in run]
        yield offsets[0], min(offsets[-1] + BLOCK, len(data))


def sparse(chunk: Chunk, runs: Iterable[tuple[int, int]]) -> bytes:
    mapped, payload, position = b"", b"", 0
    for start, end in runs:
        mapped += struct.pack("<II", start - position, end - start)
        payload += chunk.data[start:end]
        position = end
    crc = zlib.crc32(mapped + payload)
    return struct.pack("<IQQI", len(mapped) // 8, len(payload), chunk.offset, crc) + mapped + payload
