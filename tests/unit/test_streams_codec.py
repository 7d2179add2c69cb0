"""Segments, raw to stored and back: what standard tools read, and what is refused."""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from guestagent.errors import Corrupt
from guestagent.streams import codec
from guestagent.streams.codec import FRAME, NONE, ZSTD, Buffer, decode, encoder

RAW = random.Random(7).randbytes(2 << 20) + bytes(FRAME) + random.Random(8).randbytes(FRAME)
"""More than two frames, the last one short."""


def stored(raw: bytes, compression: str = ZSTD, level: int = 1) -> bytes:
    return encoder(compression, level)(memoryview(raw))


def decoded(data: bytes, size: int, compression: str = ZSTD) -> bytes:
    into = bytearray(size)
    decode(data, compression, memoryview(into))
    return bytes(into)


def refusal(data: bytes, size: int, compression: str = ZSTD) -> str:
    with pytest.raises(Corrupt) as caught:
        decoded(data, size, compression)
    return caught.value.what


@pytest.mark.parametrize("compression", [ZSTD, NONE])
@pytest.mark.parametrize("size", [0, 1, 1000, FRAME - 1, FRAME, FRAME + 1, len(RAW)])
def test_a_segment_comes_back_as_it_was(compression: str, size: int) -> None:
    assert decoded(stored(RAW[:size], compression), size, compression) == RAW[:size]


@given(raw=st.binary(max_size=3000), level=st.integers(1, 19))
def test_any_bytes_at_any_level_come_back(raw: bytes, level: int) -> None:
    assert decoded(stored(raw, level=level), len(raw)) == raw


def test_without_compression_the_stored_bytes_are_the_raw_ones() -> None:
    assert stored(b"abc", NONE) == b"abc"


def test_a_higher_level_is_used() -> None:
    words = " ".join(random.Random(5).choices(["datadir", "segment", "manifest", "chain", "link"], k=50_000)).encode()

    assert len(stored(words, level=12)) < len(stored(words, level=1))


@pytest.mark.skipif(not shutil.which("zstd"), reason="needs the zstd tool")
def test_the_zstd_tool_reads_segments_one_after_the_other() -> None:
    both = stored(RAW) + stored(b"second")
    done = subprocess.run(["zstd", "-d", "-c"], input=both, stdout=subprocess.PIPE, check=True, timeout=60)

    assert done.stdout == RAW + b"second"


@pytest.mark.skipif(not shutil.which("zstd"), reason="needs the zstd tool")
def test_what_the_zstd_tool_writes_can_be_read() -> None:
    done = subprocess.run(["zstd", "-3", "-c"], input=RAW, stdout=subprocess.PIPE, check=True, timeout=60)

    assert decoded(done.stdout, len(RAW)) == RAW


@pytest.mark.parametrize("level", [1, 19])
def test_frames_know_their_size_and_need_no_more_memory_than_is_allowed(level: int) -> None:
    data = stored(bytes(FRAME + 1), level=level)
    first = zstandard.get_frame_parameters(data)

    assert first.content_size == FRAME
    assert first.window_size <= codec.MAX_WINDOW


def test_an_ordinary_segment_is_one_frame() -> None:
    assert zstandard.get_frame_parameters(stored(RAW[: 20 << 20])).content_size == 20 << 20


def test_one_encoder_serves_several_threads() -> None:
    encode = encoder(ZSTD, 3)
    raws = [random.Random(seed).randbytes(100_000) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(encode, map(memoryview, raws * 4)))

    assert [decoded(data, 100_000) for data in results] == raws * 4


def test_a_thread_makes_a_compressor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = zstandard.ZstdCompressor

    def count(*, level: int) -> zstandard.ZstdCompressor:
        made.append(level)
        return make(level=level)

    monkeypatch.setattr(zstandard, "ZstdCompressor", count)
    encode, other = encoder(ZSTD, 17), encoder(ZSTD, 18)
    with ThreadPoolExecutor(1) as pool:
        for future in [pool.submit(encode, memoryview(b"abc")) for _ in range(5)] + [
            pool.submit(other, memoryview(b""))
        ]:
            future.result()
        pool.submit(other, memoryview(b"abc")).result()

    assert made == [17, 18]


# What is refused


@pytest.mark.parametrize("length", range(len(stored(b"some bytes" * 20))))
def test_a_segment_cut_at_any_byte_is_refused(length: int) -> None:
    assert refusal(stored(b"some bytes" * 20)[:length], 200)


def test_a_segment_without_its_last_frame_is_too_short() -> None:
    assert refusal(stored(RAW[:FRAME]), FRAME + 1) == (
        f"a segment decompresses to another size than the promised {FRAME + 1} bytes"
    )


def test_a_segment_with_a_frame_too_many_is_too_long() -> None:
    assert "another size" in refusal(stored(b"abc") + stored(b"d"), 3)
    assert "another size" in refusal(stored(b"abcd"), 3)


def test_plain_bytes_have_the_promised_size() -> None:
    assert refusal(b"abc", 2, NONE) == "a segment of 3 bytes where 2 were promised"
    assert refusal(b"abc", 4, NONE) == "a segment of 3 bytes where 4 were promised"


@pytest.mark.parametrize("data", [b"", b"x", b"nonsense that is no frame", bytes(100)])
def test_garbage_is_refused(data: bytes) -> None:
    assert re.match("a segment (decompresses to another size|does not decompress)", refusal(data, 3))


def test_garbage_after_the_last_frame_is_refused() -> None:
    assert refusal(stored(b"abc") + b"nonsense", 3).startswith("a segment does not decompress: ")


def test_a_damaged_frame_is_refused_or_not_what_it_was() -> None:
    """The digest of the stored bytes is what proves them; here nothing but Corrupt may come out."""
    whole = stored(b"some bytes" * 20)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        try:
            assert len(decoded(bytes(damaged), 200)) == 200
        except Corrupt:
            continue


GROWTH = """
import resource, sys
from guestagent.errors import Corrupt
from guestagent.streams.codec import decode

data, into = sys.stdin.buffer.read(), bytearray(int(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(data, "zstd", memoryview(into))
except Corrupt as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.parametrize(
    "bomb",
    [zstandard.ZstdCompressor(level=1).compress(bytes(1 << 29)), stored(bytes(FRAME)) * 100],
    ids=["one frame", "many frames"],
)
def test_a_bomb_is_refused_in_bounded_memory(bomb: bytes) -> None:
    assert len(bomb) < 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(FRAME)], input=bomb, stdout=subprocess.PIPE, check=True, timeout=60
    )
    growth, wrong = done.stdout.decode().split(" ", 1)

    assert "another size" in wrong
    assert int(growth) < 3 * FRAME >> 10  # in KiB


def test_a_frame_may_not_ask_for_a_large_window() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24, compression_level=1)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = stream.compress(b"abc") + stream.flush()

    assert zstandard.get_frame_parameters(data).window_size == 1 << 24
    assert refusal(data, 3).startswith("a segment does not decompress: ")


# Buffers


def test_a_buffer_is_aligned_for_direct_writes() -> None:
    buffer = Buffer(10_000)

    assert ctypes.addressof(ctypes.c_char.from_buffer(buffer.view)) % 4096 == 0
    assert (len(buffer), len(buffer.view)) == (10_000, 10_000)


def test_a_buffer_can_be_written_and_read() -> None:
    buffer = Buffer(3)
    buffer.view[:] = b"abc"

    assert bytes(buffer.view) == b"abc"
