"""The chunk format: each type read, each limit kept, and nothing else taken for a chunk."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest

from guestagent.errors import Corrupt
from guestagent.streams import chunks
from guestagent.streams.chunks import MBSTREAM, XBSTREAM, Chunk, Incomplete, file_end, read_chunk, whole_chunks
from tests import wire

BOTH = [MBSTREAM, XBSTREAM]


def read(data: bytes, dialect: str = MBSTREAM) -> Chunk:
    return read_chunk(memoryview(data), 0, len(data), dialect=dialect)


def walk(data: bytes, dialect: str = MBSTREAM) -> list[Chunk]:
    return list(whole_chunks(memoryview(data), dialect=dialect))


def refusal(data: bytes, dialect: str = MBSTREAM) -> str:
    with pytest.raises(Corrupt) as caught:
        walk(data, dialect)
    return caught.value.what


@pytest.mark.parametrize("dialect", BOTH)
def test_a_payload_is_found_in_the_buffer(dialect: str) -> None:
    data = wire.payload(b"db/t1.ibd", b"hello", 4096)
    chunk = read(data, dialect)

    assert (chunk.kind, chunk.path, chunk.offset, chunk.rewrite) == ("payload", b"db/t1.ibd", 4096, False)
    assert data[chunk.payload : chunk.end] == b"hello"
    assert (chunk.end, chunk.crc) == (len(data), zlib.crc32(b"hello"))
    assert file_end(memoryview(data), chunk) == 4101


@pytest.mark.parametrize("dialect", BOTH)
def test_the_end_of_a_file_has_nothing_after_its_path(dialect: str) -> None:
    data = wire.end(b"a")

    assert read(data, dialect) == Chunk(kind="end", path=b"a", body=len(data), end=len(data))


def test_mbstream_seeks_renames_and_removes() -> None:
    assert (read(wire.seek(b"a", 7)).kind, read(wire.seek(b"a", 7)).offset) == ("seek", 7)
    assert (read(wire.rename(b"a", b"b/c")).kind, read(wire.rename(b"a", b"b/c")).new_path) == ("rename", b"b/c")
    assert read(wire.remove(b"a")).kind == "remove"
    assert all(
        read(data + b"more").end == len(data)
        for data in (wire.seek(b"a", 7), wire.rename(b"a", b"b/c"), wire.remove(b"a"))
    )


@pytest.mark.parametrize(
    "data", [wire.rename(b"a", b"b"), wire.remove(b"a"), wire.head(b"X", b"a"), wire.head(b"\0", b"a")]
)
def test_xbstream_has_no_other_types(data: bytes) -> None:
    assert "unknown type" in refusal(data, XBSTREAM)


@pytest.mark.parametrize("kind", [bytes([number]) for number in range(256) if number not in b"PESRD"])
@pytest.mark.parametrize("flags", [0, 1])
def test_mbstream_has_no_other_types_not_even_ones_that_may_be_ignored(kind: bytes, flags: int) -> None:
    wrong = refusal(wire.head(kind, b"db/t1.ibd", flags) + bytes(20))

    assert wrong == f"the stream has a chunk of unknown type {kind!r} for db/t1.ibd"


def test_only_mbstream_knows_the_flag_of_a_file_that_begins_anew() -> None:
    data = wire.payload(b"a", b"x", flags=2)

    assert read(data, MBSTREAM).rewrite
    assert not read(data, XBSTREAM).rewrite
    assert not any(read(wire.payload(b"a", b"x", flags=flags)).rewrite for flags in (0, 1, 3, 4, 128))


def test_chunks_follow_each_other() -> None:
    data = wire.payload(b"a", b"xy") + wire.end(b"a") + wire.seek(b"b", 1) + wire.rename(b"c", b"d") + wire.remove(b"e")

    assert [(chunk.kind, chunk.path) for chunk in walk(data)] == [
        ("payload", b"a"),
        ("end", b"a"),
        ("seek", b"b"),
        ("rename", b"c"),
        ("remove", b"e"),
    ]


def test_a_chunk_is_read_where_it_stands() -> None:
    first, second = wire.end(b"first"), wire.payload(b"second", b"data")
    data = first + second
    chunk = read_chunk(memoryview(data), len(first), len(data), dialect=MBSTREAM)

    assert (chunk.path, data[chunk.payload : chunk.end]) == (b"second", b"data")


# What is not there yet


@pytest.mark.parametrize(
    ("data", "dialect"),
    [
        (wire.payload(b"a/b", b""), MBSTREAM),
        (wire.end(b"a/b"), MBSTREAM),
        (wire.seek(b"a/b", 1), MBSTREAM),
        (wire.rename(b"a/b", b"c/d"), MBSTREAM),
        (wire.remove(b"a/b"), MBSTREAM),
        (wire.sparse(b"a/b", []), XBSTREAM),
    ],
)
def test_a_header_that_goes_on_says_how_much_it_needs(data: bytes, dialect: str) -> None:
    shift = 5
    for there in range(len(data)):
        garbage = b"\xff" * len(data)
        view = memoryview(bytes(shift) + data[:there] + garbage)
        with pytest.raises(Incomplete) as caught:
            read_chunk(view, shift, shift + there, dialect=dialect)
        assert there < caught.value.need <= len(data)
    whole = memoryview(bytes(shift) + data)
    assert read_chunk(whole, shift, len(whole), dialect=dialect).end == len(whole)


def test_a_payload_need_not_be_there_to_read_its_header() -> None:
    data = wire.payload(b"a", b"hello")

    assert read(data[:-5]).end == len(data)


@pytest.mark.parametrize("cut", range(1, len(wire.payload(b"a", b"hello"))))
def test_a_segment_ends_with_a_chunk(cut: int) -> None:
    data = wire.end(b"z") + wire.payload(b"a", b"hello")

    assert refusal(data[:-cut]).startswith("a segment ends inside a chunk")


def test_an_empty_segment_has_no_chunks() -> None:
    assert walk(b"") == []


# What must be refused


def test_chunks_begin_with_their_magic() -> None:
    assert refusal(b"XBSTCK02" + wire.end(b"a")[8:]) == "the stream has no chunk where one must begin"
    assert refusal(wire.end(b"a") + b"x" * 20) == "the stream has no chunk where one must begin"


@pytest.mark.parametrize("position", range(-5, 0))
def test_a_payload_has_its_checksum(position: int) -> None:
    data = bytearray(wire.payload(b"db/t1.ibd", b"hello", 7))
    data[position] ^= 1

    assert refusal(bytes(data)) == "a chunk of db/t1.ibd at offset 7 has a wrong checksum"


def test_a_sparse_map_has_its_checksum() -> None:
    data = bytearray(wire.sparse(b"a", [(1, b"x"), (2, b"y")]))
    data[-4 - 2] ^= 1

    assert "wrong checksum" in refusal(bytes(data), XBSTREAM)


@pytest.mark.parametrize("length", [0, chunks.MAX_PATH + 1, 2**32 - 1])
def test_a_path_has_a_length(length: int) -> None:
    data = b"XBSTCK01\0E" + struct.pack("<I", length) + b"a" * 20

    assert refusal(data) == f"the stream has a path of {length} bytes"


def test_the_longest_path_is_one() -> None:
    path = b"/".join([b"x" * 240] * 17)

    assert read(wire.end(path)).path == path


@pytest.mark.parametrize(
    "path",
    [
        b"/etc/passwd",
        b"../x",
        b"a/../../x",
        b"..",
        b".",
        b"./",
        b"a//b",
        b"a/",
        b"a/./b",
        b"a\0b",
        b"//x",
        b".//x",
        b"././x",
    ],
)
@pytest.mark.parametrize(
    "build", [wire.end, lambda path: wire.payload(path, b"x"), lambda path: wire.rename(b"a", path)]
)
def test_a_path_never_leaves_the_directory(path: bytes, build: Callable[[bytes], bytes]) -> None:
    shown = path.decode().replace("\0", " ")
    assert refusal(build(path)) == f"the stream has a file outside the target directory: {shown}"


def test_a_path_has_one_form() -> None:
    assert read(wire.end(b"./db/t1.ibd")).path == b"db/t1.ibd"
    assert read(wire.rename(b"./a", b"./b")).new_path == b"b"


@pytest.mark.parametrize("path", [b"...", b"..a", b"a..", b".a", b"db/..."])
def test_dots_in_names_are_harmless(path: bytes) -> None:
    assert read(wire.end(path)).path == path


def test_a_path_that_is_not_utf8_can_be_shown() -> None:
    assert chunks.shown(b"caf\xe9") == "caf\\xe9"
    assert "caf\\xe9" in refusal(wire.head(b"X", b"caf\xe9"))


@pytest.mark.parametrize(
    ("length", "offset"),
    [(chunks.MAX_PAYLOAD + 1, 0), (2**64 - 1, 0), (0, chunks.MAX_FILE + 1), (1, chunks.MAX_FILE), (0, 2**64 - 1)],
)
def test_a_payload_has_limits(length: int, offset: int) -> None:
    numbers = struct.pack("<QQI", length, offset, 0)
    wrong = f"the stream has a chunk of {length} bytes at offset {offset} for a"

    assert refusal(wire.head(b"P", b"a") + numbers) == wrong
    assert refusal(wire.head(b"S", b"a") + struct.pack("<I", 0) + numbers, XBSTREAM) == wrong


def test_a_seek_has_a_limit() -> None:
    assert read(wire.seek(b"a", chunks.MAX_FILE)).offset == chunks.MAX_FILE
    assert "at offset" in refusal(wire.seek(b"a", chunks.MAX_FILE + 1))


def test_the_largest_payload_is_one() -> None:
    numbers = struct.pack("<QQI", chunks.MAX_PAYLOAD, chunks.MAX_FILE - chunks.MAX_PAYLOAD, 0)
    chunk = read(wire.head(b"P", b"a") + numbers)

    assert chunk.end - chunk.payload == chunks.MAX_PAYLOAD


def test_no_chunk_is_longer_than_the_longest() -> None:
    path, entries = b"/".join([b"x" * 240] * 17), chunks.MAX_SPARSE_MAP
    data = wire.head(b"S", path) + struct.pack("<IQQI", entries, chunks.MAX_PAYLOAD, 0, 0)

    assert read(data, XBSTREAM).end <= chunks.LONGEST_CHUNK


# Sparse chunks


def test_a_sparse_chunk_says_where_its_runs_go() -> None:
    data = wire.sparse(b"a", [(0, b"ab"), (10, b"cde"), (5, b"")], offset=100)
    (chunk,) = walk(data, XBSTREAM)
    runs = list(chunks.sparse_runs(memoryview(data), chunk))

    assert [(place, data[at : at + length]) for place, at, length in runs] == [(100, b"ab"), (112, b"cde"), (120, b"")]
    assert file_end(memoryview(data), chunk) == 120


def test_a_sparse_chunk_ends_behind_its_last_run() -> None:
    data = wire.sparse(b"a", [(0, b"ab"), (10, b"cde")], offset=100)
    (chunk,) = walk(data, XBSTREAM)

    assert file_end(memoryview(data), chunk) == 115


def test_a_sparse_chunk_may_have_no_runs() -> None:
    data = wire.sparse(b"a", [], offset=100)
    (chunk,) = walk(data, XBSTREAM)

    assert file_end(memoryview(data), chunk) == 100


@pytest.mark.parametrize("lengths", [(1, 1), (3, 3), (0, 0), (2**32 - 1, 4)])
def test_a_sparse_map_fits_its_payload(lengths: tuple[int, int]) -> None:
    entries = b"".join(struct.pack("<II", 0, length) for length in lengths)
    numbers = struct.pack("<IQQI", 2, 4, 0, zlib.crc32(entries + b"data"))
    data = wire.head(b"S", b"db/t1.ibd") + numbers + entries + b"data"
    (chunk,) = walk(data, XBSTREAM)

    with pytest.raises(Corrupt, match=r"the sparse map of db/t1\.ibd does not fit its payload"):
        file_end(memoryview(data), chunk)


def test_a_sparse_map_has_a_limit() -> None:
    many = chunks.MAX_SPARSE_MAP + 1
    data = wire.head(b"S", b"a") + struct.pack("<IQQI", many, 0, 0, 0)

    assert refusal(data, XBSTREAM) == f"the stream has a sparse map of {many} entries for a"


def test_no_sum_of_offsets_reaches_what_the_system_cannot_count() -> None:
    farthest = chunks.MAX_FILE + chunks.MAX_SPARSE_MAP * 2 * (2**32 - 1)

    assert farthest < 2**63


def test_a_name_that_no_filesystem_takes_is_refused() -> None:
    longest = b"d/" + b"n" * 255
    assert next(whole_chunks(memoryview(wire.end(longest)), dialect=MBSTREAM)).path == longest
    with pytest.raises(Corrupt, match=r"file name that is too long: n+; rename the table"):
        next(whole_chunks(memoryview(wire.end(longest + b"n")), dialect=MBSTREAM))
