"""Streams and segments as a stranger would make them: an error of ours in one line, soon, and nothing outside."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.errors import Corrupt, Refused
from guestagent.streams import chunks, extract, split
from guestagent.streams.codec import MAX_WINDOW, ZSTD, Buffer, decode
from tests import wire
from tests.hostile import RAW, READERS, cheap, judged

STREAMS = {name: reader for name, reader in READERS.items() if "stream" in name}

PATHS = [
    b"a", b"d/t.ibd", b"/etc/passwd", b"../../x", b"d/../../x", b"d/./x", b"", b".", b"..", b"\0", b"a\0b", b"a\nb",
    b"\x1b[2J", b"\xff\xfe", "\u202egnp.exe".encode(), b"\xed\xa0\x80", b"x" * 255, b"x" * 256,
    b"/".join([b"d"] * 17), b"/".join([b"d"] * 18), b"/".join([b"d"] * 2000), b"x" * 4097, b"a/", b"//a", b"./a",
]  # fmt: skip
NUMBERS = [0, 1, 4095, 4096, 2**31, 2**32 - 1, 2**32, 2**56, 2**56 + 1, 2**63 - 1, 2**63, 2**64 - 1]

U32, U64 = st.sampled_from(NUMBERS).map(lambda n: n % 2**32), st.sampled_from(NUMBERS)
PATH = st.sampled_from(PATHS) | st.binary(max_size=12)
DATA = st.binary(max_size=40)


def _payload(path: bytes, data: bytes, offset: int, length: int | None, crc: int | None) -> bytes:
    """A payload whose numbers may lie."""
    numbers = struct.pack(
        "<QQI", len(data) if length is None else length, offset, zlib.crc32(data) if crc is None else crc
    )
    return wire.head(b"P", path) + numbers + data


def _sparse(path: bytes, runs: list[tuple[int, int]], offset: int, data: bytes, entries: int | None) -> bytes:
    """A sparse chunk whose map may lie."""
    mapped = b"".join(struct.pack("<II", *run) for run in runs)
    count = len(runs) if entries is None else entries
    return (
        wire.head(b"S", path)
        + struct.pack("<IQQI", count, len(data), offset, zlib.crc32(mapped + data))
        + mapped
        + data
    )


CHUNK = st.one_of(
    st.builds(_payload, PATH, DATA, st.just(0) | U64, st.none() | U64, st.none() | U32),
    st.builds(_sparse, PATH, st.lists(st.tuples(U32, U32), max_size=4), st.just(0) | U64, DATA, st.none() | U32),
    st.builds(wire.end, PATH),
    st.builds(wire.seek, PATH, U64),
    st.builds(wire.rename, PATH, PATH),
    st.builds(wire.remove, PATH),
    st.builds(wire.head, st.binary(min_size=1, max_size=1), PATH, st.integers(0, 255)),
    st.binary(max_size=40),
)


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(CHUNK, max_size=5))
def test_any_chunks(pieces: list[bytes]) -> None:
    for reader in STREAMS.values():
        judged(reader, b"".join(pieces))


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_a_stream_cut_or_flipped_anywhere(name: str) -> None:
    dice = random.Random(1)
    whole = wire.file(b"d/t.ibd", b"content" * 10) + wire.payload(b"a", b"x") + wire.end(b"a")
    for at in range(len(whole)):
        judged(STREAMS[name], whole[:at])
        flipped = bytearray(whole)
        flipped[at] ^= 1 << dice.randrange(8)
        judged(STREAMS[name], bytes(flipped))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_stays_inside(path: bytes) -> None:
    for build in (wire.end, lambda one: wire.file(one, b"x"), lambda one: wire.end(b"a") + wire.rename(b"a", one)):
        for reader in STREAMS.values():
            judged(reader, build(path))


@pytest.mark.parametrize(
    "data",
    [
        wire.payload(b"a", b"") * 4_000,
        b"".join(wire.end(b"%d" % number) for number in range(600)),
        _sparse(b"a", [(0, 0)] * chunks.MAX_SPARSE_MAP, 0, b"", None) * 2,
        _sparse(b"a", [(2**32 - 1, 0)] * chunks.MAX_SPARSE_MAP, 0, b"x", None),
        _payload(b"a", b"x", 2**56 - 1, None, None) + wire.end(b"a"),
        wire.seek(b"a", 2**56) + wire.payload(b"a", b"x", 2**50) + wire.end(b"a"),
        _payload(b"a", b"", 0, chunks.MAX_PAYLOAD, None),
    ],
    ids=lambda data: repr(data[8:24]) + str(len(data)),
)
def test_a_stream_costs_no_more_than_its_bytes_are_worth(data: bytes) -> None:
    for reader in STREAMS.values():
        with cheap(mebibytes=24, seconds=20):
            judged(reader, data)


def test_a_stream_has_only_so_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "MAX_FILES", 3)
    monkeypatch.setattr(split, "MAX_FILES", 3)
    files = b"".join(wire.file(b"%d" % number, b"x") for number in range(4))
    with extract.Extraction(tmp_path, dialect="mbstream") as target, pytest.raises(Corrupt, match="more than 3 files"):
        target.apply(memoryview(files), Buffer(1 << 20))
    assert len(list(tmp_path.iterdir())) == 3
    assert isinstance(judged(STREAMS["mbstream, split"], files), Refused)


# Compressed segments


def _frame(*, size: int | None, window: int | None, block: bytes) -> bytes:
    """A frame of zstd: its header claims what it likes, and its one block is the last."""
    descriptor = (3 << 6 if size is not None else 0) | ((window is None) << 5)
    head = struct.pack("<IB", 0xFD2FB528, descriptor)
    if window is not None:
        head += bytes([window])
    return head + (struct.pack("<Q", size) if size is not None else b"") + block


_EMPTY = (1).to_bytes(3, "little")
"""The last block, raw, of no bytes."""


def _repeated(count: int) -> bytes:
    """The last block: one byte, so many times."""
    return (1 | 1 << 1 | count << 3).to_bytes(3, "little") + b"x"


def _bomb(size: int) -> bytes:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    piece = bytes(1 << 20)
    return b"".join(compressor.compress(piece) for _ in range(size >> 20)) + compressor.flush()


BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: _bomb(256 << 20),
    "one that begins well": lambda: zstandard.compress(bytes(RAW)) + _bomb(64 << 20),
    "a claim of 4 EiB": lambda: _frame(size=2**62, window=0, block=_EMPTY),
    "a claim of 4 EiB in one piece": lambda: _frame(size=2**62, window=None, block=_EMPTY),
    "a claim that is too small": lambda: _frame(size=1, window=0, block=_repeated(RAW)),
    "a huge window": lambda: _frame(size=None, window=0xFF, block=_repeated(RAW)),
    "a window of 16 MiB": lambda: _frame(size=None, window=14 << 3, block=_repeated(RAW)),
    "empty frames": lambda: _frame(size=0, window=None, block=_EMPTY) * 200_000,
    "a frame to skip": lambda: struct.pack("<II", 0x184D2A50, 2**32 - 1) + bytes(1000),
    "frames to skip": lambda: struct.pack("<II", 0x184D2A50, 0) * 200_000,
    "a block that is too long": lambda: _frame(size=None, window=0, block=_repeated(2**21 - 1)),
    "a reserved block": lambda: _frame(size=None, window=0, block=(1 | 3 << 1).to_bytes(3, "little")),
    "no frame": lambda: bytes(1000),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_a_segment_decompresses_to_what_was_promised_or_not_at_all(bomb: str) -> None:
    stored = BOMBS[bomb]()
    with cheap(mebibytes=4, seconds=20):
        assert isinstance(judged(READERS["zstd"], stored), Corrupt)


def test_a_decompressor_takes_little_memory_of_its_own() -> None:
    """Which tracemalloc does not see: measured in a process of its own, for every bomb."""
    code = (
        "import resource; from tests.unit.test_fuzz_streams import BOMBS, READERS, judged\n"
        "stored = [make() for make in BOMBS.values()]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for one in stored: judged(READERS['zstd'], one)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) << 10 <= MAX_WINDOW + (8 << 20)


@settings(max_examples=300, deadline=None)
@given(junk=st.binary(max_size=30), spot=st.integers(min_value=0), width=st.integers(0, 8))
def test_any_damage_to_a_segment(junk: bytes, spot: int, width: int) -> None:
    good = zstandard.compress(bytes(range(256)) * (RAW // 256))
    at = spot % (len(good) + 1)
    judged(READERS["zstd"], good[:at] + junk + good[at + width :])
    judged(READERS["sealed segment"], junk)


def test_a_segment_of_no_bytes() -> None:
    decode(_frame(size=0, window=None, block=_EMPTY), ZSTD, memoryview(bytearray()))
    with pytest.raises(Corrupt):
        decode(zstandard.compress(b"x"), ZSTD, memoryview(bytearray()))


# What the tools write, and a stream brings


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.characters(), max_size=200) | st.sampled_from(["= \n" * 5, "from_lsn = " + "9" * 30, "a = b\n" * 3])
)
def test_any_facts_and_options(text: str) -> None:
    for name in ("facts", "option file"):
        judged(READERS[name], text.encode("utf-8", "surrogatepass"))


def test_long_facts_are_read_in_time() -> None:
    with cheap(mebibytes=256, seconds=20):
        judged(READERS["facts"], b"gtid = x\n" + b"y\n" * 30_000)


@pytest.mark.parametrize(
    "text",
    [
        "!include /tmp/x", "  !includedir .", "plugin_dir=.", "[mysqld]\nplugin-dir = /srv/base/lib", "plugin_di=lib",
        'PLUGIN_DIR="/srv/base"', "loose-plugin-dir=/srv/other/../base/x", "plugin_dir", "plugin_dir=",
    ],
)  # fmt: skip
def test_options_that_would_load_what_came_with_the_backup_are_refused(text: str) -> None:
    assert isinstance(judged(READERS["option file"], text.encode()), Corrupt)


@pytest.mark.parametrize(
    "text", ["", "[mysqld]\ninnodb_page_size=16384\n", "plugin_dir=/usr/lib/mysql/plugin/\n", "# !x"]
)
def test_options_of_the_tools_own_are_none_of_these(text: str) -> None:
    assert judged(READERS["option file"], text.encode()) is None
