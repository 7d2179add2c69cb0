"""Segments, raw to stored and back: zstd frames one after the other, or plain bytes.

Frames in a row are what the zstd tool writes and reads too, so ``cat data/* | zstd -d``
gives the stream back.
"""

from __future__ import annotations

import io
import mmap
import threading
from collections.abc import Callable

import zstandard

from guestagent.errors import Corrupt

FRAME = 32 << 20
"""Raw bytes of one zstd frame at the most, so that a segment is one unless segments were made larger: compressed in one
call, which is the cheapest there is, and handed on as it is, without a second copy."""

ZSTD = "zstd"
NONE = "none"

MAX_WINDOW = 8 << 20
"""Bytes of memory that a frame may ask for; levels up to 19 never need more than that."""

_LOCAL = threading.local()


class Buffer:
    """Page-aligned memory of a fixed capacity, used again and again; untouched pages cost nothing."""

    def __init__(self, capacity: int) -> None:
        self._memory = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._memory)

    def __len__(self) -> int:
        return len(self._memory)


def encoder(compression: str, level: int) -> Callable[[memoryview], bytes]:
    """A function from a raw segment to its stored bytes, safe in several threads."""
    return bytes if compression == NONE else lambda raw: _compress(raw, level)


def decode(stored: bytes | memoryview, compression: str, into: memoryview) -> None:
    """Fill ``into`` exactly with the raw bytes of ``stored``; raises Corrupt if they do not fit."""
    if compression == NONE:
        _copy(stored, into)
        return
    try:
        _decompress(stored, into)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a segment does not decompress: {error}") from error


def _compress(raw: memoryview, level: int) -> bytes:
    if len(raw) <= FRAME:
        return _compressor(level).compress(raw)
    stored = io.BytesIO()  # which, unlike a list that is joined, never holds the bytes twice
    for start in range(0, len(raw), FRAME):
        stored.write(_compressor(level).compress(raw[start : start + FRAME]))
    return stored.getvalue()


def _copy(stored: bytes | memoryview, into: memoryview) -> None:
    if len(stored) != len(into):
        raise Corrupt(f"a segment of {len(stored)} bytes where {len(into)} were promised")
    into[:] = stored


def _decompress(stored: bytes | memoryview, into: memoryview) -> None:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    with decompressor.stream_reader(stored, read_across_frames=True) as reader:
        filled = 0
        while filled < len(into) and (count := reader.readinto(into[filled:])):
            filled += count
        if filled != len(into) or reader.read(1):
            raise Corrupt(f"a segment decompresses to another size than the promised {len(into)} bytes")


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """This thread's compressor: making one costs more than a small frame."""
    found: dict[int, zstandard.ZstdCompressor] = _LOCAL.__dict__.setdefault("compressors", {})
    if level not in found:
        found[level] = _fast() if level == 1 else zstandard.ZstdCompressor(level=level)
    return found[level]


def _fast() -> zstandard.ZstdCompressor:
    """Level 1 with a table of matches that fits into a core's first cache: a tenth faster for few more bytes.

    Measured on the pages of mixed tables; see the benchmarks.
    """
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, hash_log=13, write_content_size=True)
    )
