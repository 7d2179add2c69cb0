"""Cutting a dump into segments: only between chunks, and never a dump that is not whole."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.errors import Corrupt, Refused, ToolError
from guestagent.streams import chunks, split
from guestagent.streams.chunks import MBSTREAM, XBSTREAM, whole_chunks
from guestagent.streams.split import Splitter
from tests import wire

# Until its last byte, some file of it is unfinished: so no cut can be taken for an end.
NESTED = (
    wire.payload(b"a", b"first")
    + wire.payload(b"b", b"inner")
    + wire.end(b"b")
    + wire.payload(b"a", b"second", 5)
    + wire.end(b"a")
)


class Cut:
    """A stream, cut."""

    def __init__(
        self,
        stream: bytes,
        *,
        dialect: str = MBSTREAM,
        size: int = 1 << 20,
        step: int = 1 << 30,
        tells_last: bool = False,
    ) -> None:
        self.reads = 0
        self._source = wire.source(stream, step)
        self._splitter = Splitter(self._read, dialect=dialect, segment_size=size, tells_last=tells_last)
        self.segments = list(self._all())
        self.files = self._splitter.files
        self.ordered_from = self._splitter.ordered_from

    def _read(self, view: memoryview) -> int:
        assert len(view) > 0
        self.reads += 1
        return self._source(view, lambda: False)

    def _all(self) -> list[bytes]:
        found: list[bytes] = []
        buffer = self._splitter.buffer()
        while segment := self._splitter.take(buffer):
            assert segment.index == len(found)
            found.append(bytes(segment.view))
        assert self._splitter.take(buffer) is None
        return found


def refusal(stream: bytes, dialect: str = MBSTREAM) -> str:
    with pytest.raises(Corrupt) as caught:
        Cut(stream, dialect=dialect)
    return caught.value.what


def kinds(segment: bytes) -> list[str]:
    return [chunk.kind for chunk in whole_chunks(memoryview(segment), dialect=MBSTREAM)]


# Cutting


def test_a_small_stream_is_one_segment() -> None:
    cut = Cut(NESTED)

    assert (cut.segments, cut.files, cut.ordered_from) == ([NESTED], 2, None)


@pytest.mark.parametrize("size", [1, 20, 40, 100, 150, 10_000])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_segments_joined_are_the_stream_and_each_holds_whole_chunks(size: int, step: int) -> None:
    stream = NESTED + wire.joined({b"c": b"x" * 300, b"d": b"", b"e": b"y" * 5}, size=100)
    cut = Cut(stream, size=size, step=step)

    assert b"".join(cut.segments) == stream
    assert all(kinds(segment) for segment in cut.segments)
    assert all(len(segment) >= size for segment in cut.segments[:-1])
    assert (cut.files, cut.ordered_from) == (5, None)


def test_every_chunk_is_a_segment_if_segments_are_tiny() -> None:
    assert [kinds(segment) for segment in Cut(NESTED, size=1).segments] == [
        ["payload"],
        ["payload"],
        ["end"],
        ["payload"],
        ["end"],
    ]


def test_a_segment_that_is_just_full_is_cut() -> None:
    first = len(wire.payload(b"a", b"first"))

    assert [kinds(segment) for segment in Cut(NESTED, size=first).segments][:2] == [["payload"], ["payload"]]
    assert kinds(Cut(NESTED, size=first + 1).segments[0]) == ["payload", "payload"]


@pytest.mark.parametrize("cut", range(1, len(wire.payload(b"a", b"hello")) + 1))
def test_nothing_is_waited_for_that_a_segment_does_not_need(cut: int) -> None:
    chunk = wire.payload(b"a", b"hello")
    parts = iter([part for part in (chunk[:cut], chunk[cut:]) if part])

    def read(view: memoryview) -> int:
        data = next(parts)  # one read more would be waiting for a tool that is still at work
        view[: len(data)] = data
        return len(data)

    splitter = Splitter(read, dialect=MBSTREAM, segment_size=1)
    segment = splitter.take(splitter.buffer())

    assert segment is not None
    assert segment.view == chunk


def test_the_largest_chunk_fits_behind_an_almost_full_segment() -> None:
    path = b"/".join([b"x" * 240] * 17)
    stream = wire.end(b"a") + wire.file(path, bytes(chunks.MAX_PAYLOAD), size=chunks.MAX_PAYLOAD)
    cut = Cut(stream, size=len(wire.end(b"a")) + 1)

    assert b"".join(cut.segments) == stream
    assert [kinds(segment) for segment in cut.segments] == [["end", "payload"], ["end"]]


def test_small_chunks_do_not_cost_a_read_each() -> None:
    stream = wire.joined({b"%d" % number: b"x" for number in range(1000)})

    assert Cut(stream).reads < 10


@given(
    names=st.lists(
        st.binary(min_size=1, max_size=3).filter(lambda name: not set(name) & set(b"./\0")), unique=True, min_size=1
    ),
    content=st.binary(max_size=50),
    chunk=st.integers(1, 60),
    size=st.integers(1, 200),
    step=st.integers(1, 300),
)
def test_any_stream_is_cut_between_chunks(names: list[bytes], content: bytes, chunk: int, size: int, step: int) -> None:
    stream = wire.joined(dict.fromkeys(names, content), size=chunk)
    cut = Cut(stream, size=size, step=step)

    assert b"".join(cut.segments) == stream
    assert all(kinds(segment) for segment in cut.segments)
    assert cut.files == len(names)


# Dumps that are not whole


@pytest.mark.parametrize("length", range(len(NESTED)))
@pytest.mark.parametrize("step", [1 << 20, 1])
def test_a_stream_cut_at_any_byte_is_refused(length: int, step: int) -> None:
    with pytest.raises(Corrupt, match=r"the stream (ends inside a chunk|ends before|is empty)"):
        Cut(NESTED[:length], step=step)


def test_each_cut_says_what_is_missing() -> None:
    first = len(wire.payload(b"a", b"first"))

    assert refusal(b"") == "the stream is empty"
    assert refusal(NESTED[:5]) == "the stream ends inside a chunk"
    assert refusal(NESTED[: first - 1]) == "the stream ends inside a chunk"
    assert refusal(NESTED[:first]) == "the stream ends before a does (1 files are unfinished)"


def test_a_stream_of_removals_alone_is_empty() -> None:
    assert refusal(wire.remove(b"a")) == "the stream is empty"


@pytest.mark.parametrize("offset", [0, 4, 6, 4096])
def test_a_file_grows_without_jumps(offset: int) -> None:
    stream = wire.payload(b"db/a", b"first") + wire.payload(b"db/a", b"x", offset) + wire.end(b"db/a")

    assert refusal(stream) == f"the stream jumps from 5 to {offset} in db/a"


def test_a_file_begins_at_its_begin() -> None:
    assert refusal(wire.payload(b"a", b"x", 1) + wire.end(b"a")) == "the stream jumps from 0 to 1 in a"


@pytest.mark.parametrize(
    "again", [wire.end(b"a"), wire.payload(b"a", b""), wire.file(b"./a", b"x"), wire.seek(b"a", 1)]
)
def test_a_file_comes_once(again: bytes) -> None:
    assert refusal(wire.file(b"a", b"x") + again) == "the stream has a twice"


def test_garbage_is_refused() -> None:
    assert refusal(b"\x1f\x8b" + bytes(100)) == "the stream has no chunk where one must begin"
    assert refusal(NESTED + b"mariabackup: error: something else on stdout") == (
        "the stream has no chunk where one must begin"
    )


def test_what_the_source_raises_comes_out() -> None:
    def read(view: memoryview) -> int:
        raise ToolError("mariabackup died by SIGKILL")

    splitter = Splitter(read, dialect=MBSTREAM, segment_size=100)
    with pytest.raises(ToolError, match="SIGKILL"):
        splitter.take(splitter.buffer())


def test_there_are_not_more_segments_than_a_manifest_may_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "MAX_SEGMENTS", 5)
    assert len(Cut(NESTED, size=1).segments) == 5

    monkeypatch.setattr(split, "MAX_SEGMENTS", 4)
    with pytest.raises(Refused, match="more than 4 segments") as caught:
        Cut(NESTED, size=1)
    assert caught.value.hint == "make segments larger"


# Sparse files of xbstream


def test_a_sparse_file_goes_on_after_its_hole() -> None:
    stream = (
        wire.sparse(b"a", [(0, b"ab"), (10, b"cd"), (6, b"")])
        + wire.payload(b"a", b"more", 20)
        + wire.sparse(b"a", [(4, b"x")], offset=24)
        + wire.end(b"a")
    )

    assert Cut(stream, dialect=XBSTREAM).files == 1


def test_a_sparse_file_grows_without_jumps_too() -> None:
    stream = wire.sparse(b"a", [(0, b"ab"), (10, b"cd")]) + wire.payload(b"a", b"more", 15) + wire.end(b"a")

    assert refusal(stream, XBSTREAM) == "the stream jumps from 14 to 15 in a"
    assert refusal(wire.sparse(b"a", [], offset=1), XBSTREAM) == "the stream jumps from 0 to 1 in a"


@pytest.mark.parametrize("length", range(len(wire.sparse(b"a", [(1, b"ab")])) + len(wire.end(b"a"))))
def test_a_sparse_stream_cut_at_any_byte_is_refused(length: int) -> None:
    stream = wire.sparse(b"a", [(1, b"ab")]) + wire.end(b"a")
    with pytest.raises(Corrupt):
        Cut(stream[:length], dialect=XBSTREAM)


# Streams in which the order matters


@pytest.mark.parametrize(
    "disturbing",
    [
        wire.rename(b"a", b"z"),
        wire.remove(b"a"),
        wire.seek(b"open", 5),
        wire.file(b"a", b"anew", flags=wire.REWRITE),
        wire.end(b"a", flags=wire.REWRITE),
        wire.rename(b"unknown", b"z"),
        wire.remove(b"unknown"),
    ],
)
def test_the_order_matters_from_the_first_chunk_that_disturbs(disturbing: bytes) -> None:
    before = wire.file(b"a", b"x") + wire.payload(b"open", b"hello")
    after = wire.payload(b"open", b"world", 5) + wire.end(b"open")
    cut = Cut(before + disturbing + after)

    assert cut.segments == [before, disturbing + after]
    assert cut.ordered_from == 1


def test_a_stream_may_disturb_from_its_first_chunk() -> None:
    stream = wire.remove(b"a") + wire.file(b"b", b"x")
    cut = Cut(stream)

    assert (cut.segments, cut.ordered_from) == ([stream], 0)


def test_only_the_first_disturbance_cuts() -> None:
    stream = wire.file(b"a", b"x") + wire.remove(b"a") + wire.file(b"b", b"x") + wire.remove(b"b")
    cut = Cut(stream, size=1 << 20)

    assert len(cut.segments) == 2
    assert cut.ordered_from == 1


def test_later_segments_are_cut_by_size_again() -> None:
    stream = wire.file(b"a", b"x") + wire.remove(b"a") + wire.file(b"b", b"x")
    cut = Cut(stream, size=1)

    assert [kinds(segment) for segment in cut.segments] == [["payload"], ["end"], ["remove"], ["payload"], ["end"]]
    assert cut.ordered_from == 2


def test_a_file_that_begins_anew_may_do_so_again_and_in_several_pieces() -> None:
    anew = wire.file(b"a", b"longer than before", size=5, flags=wire.REWRITE)
    cut = Cut(wire.file(b"a", b"x") + anew + anew)

    assert (cut.files, cut.ordered_from) == (3, 1)


def test_the_flag_alone_does_not_disturb() -> None:
    assert Cut(wire.file(b"a", b"some bytes", size=3, flags=wire.REWRITE)).ordered_from is None


@pytest.mark.parametrize("gone", [wire.remove(b"a"), wire.rename(b"a", b"z")])
def test_a_file_that_is_gone_may_come_again(gone: bytes) -> None:
    cut = Cut(wire.file(b"a", b"x") + gone + wire.file(b"a", b"y"))

    assert (cut.files, cut.ordered_from) == (2, 1)


def test_a_new_name_is_taken() -> None:
    stream = wire.file(b"a", b"x") + wire.rename(b"a", b"b")

    assert refusal(stream + wire.file(b"b", b"y")) == "the stream has b twice"
    assert Cut(stream + wire.rename(b"b", b"c") + wire.file(b"b", b"y")).files == 2


def test_the_name_of_an_unknown_file_is_not_taken_by_a_rename() -> None:
    assert Cut(wire.rename(b"unknown", b"b") + wire.file(b"b", b"y")).files == 1


def test_after_a_seek_the_file_goes_on_there() -> None:
    begin = wire.payload(b"a", b"hello") + wire.seek(b"a", 100)

    assert Cut(begin + wire.payload(b"a", b"x", 100) + wire.end(b"a")).ordered_from == 1
    assert Cut(begin + wire.end(b"a")).files == 1
    assert Cut(wire.seek(b"a", 7) + wire.payload(b"a", b"x", 7) + wire.end(b"a")).ordered_from == 0
    assert refusal(begin + wire.payload(b"a", b"x", 5)) == "the stream jumps from 100 to 5 in a"
    assert refusal(begin) == "the stream ends before a does (1 files are unfinished)"


@pytest.mark.parametrize(
    ("move", "wrong"),
    [
        (wire.rename(b"open", b"z"), "the stream has a rename of open before it ends"),
        (wire.rename(b"a", b"open"), "the stream has a rename of open before it ends"),
        (wire.remove(b"open"), "the stream has a remove of open before it ends"),
    ],
)
def test_an_open_file_stays_where_it_is(move: bytes, wrong: str) -> None:
    assert refusal(wire.file(b"a", b"x") + wire.payload(b"open", b"x") + move) == wrong


@pytest.mark.parametrize("position", range(len(NESTED)))
@pytest.mark.parametrize(
    "chunk", [NESTED, wire.rename(b"a", b"b"), wire.seek(b"a", 3)], ids=["nested", "rename", "seek"]
)
def test_garbled_bytes_are_taken_or_refused_but_nothing_else(chunk: bytes, position: int) -> None:
    stream = bytearray(chunk + NESTED)
    stream[position] ^= 0xFF
    with contextlib.suppress(Corrupt):
        Cut(bytes(stream))


# Chunks that are too large for a segment


LARGE = random.Random(3).randbytes(1 << 20) * (2 * split.PIECE // (1 << 20)) + b"and some more" * 1000
"""The payload of a chunk that becomes three: of changed pages, mariabackup writes 64 MiB into one."""


def restored(segments: list[bytes]) -> dict[bytes, bytes]:
    files: dict[bytes, bytearray] = {}
    for segment in segments:
        view = memoryview(segment)
        for chunk in whole_chunks(view, dialect=MBSTREAM):
            if chunk.kind == chunks.PAYLOAD:
                found = files.setdefault(chunk.path, bytearray())
                assert chunk.offset == len(found)
                found += view[chunk.payload : chunk.end]
    return {path: bytes(content) for path, content in files.items()}


@pytest.mark.parametrize("size", [1, 5 << 20, split.PIECE + 1000, 64 << 20])
@pytest.mark.parametrize("step", [10_007, 1 << 30])
@pytest.mark.parametrize("tells_last", [False, True])
def test_a_large_chunk_is_divided_into_pieces_that_mean_the_same(size: int, step: int, tells_last: bool) -> None:
    delta = LARGE[: -split.PIECE] if step < len(LARGE) else LARGE
    delta += bytes(max(0, chunks.MAX_PAYLOAD + 1 - len(delta)))
    stream = (
        wire.file(b"a", b"before") + wire.file(b"./t.ibd.delta", delta, size=len(delta)) + wire.file(b"z", b"after")
    )
    cut = Cut(stream, size=size, step=step, tells_last=tells_last)

    assert restored(cut.segments) == {b"a": b"before", b"t.ibd.delta": delta, b"z": b"after"}
    assert (cut.files, cut.ordered_from) == (3, None)
    assert all(len(segment) < size + chunks.MAX_PAYLOAD for segment in cut.segments)


def test_a_large_chunk_may_begin_a_file_anew_and_only_its_first_piece_does() -> None:
    again = wire.payload(b"a", LARGE, flags=wire.REWRITE) + wire.end(b"a")
    cut = Cut(wire.file(b"a", b"first") + again, size=split.PIECE)
    flags = [segment[8] for segment in cut.segments]

    assert cut.ordered_from == 1
    assert flags[:3] == [0, wire.REWRITE, 0]
    assert restored(cut.segments[1:]) == {b"a": LARGE}


@pytest.mark.parametrize("place", [0, split.PIECE + 5, len(LARGE) - 1])
def test_a_large_chunk_with_a_flipped_byte_is_refused(place: int) -> None:
    flipped = bytearray(wire.payload(b"a", LARGE))
    flipped[place - len(LARGE)] ^= 1
    assert refusal(bytes(flipped) + wire.end(b"a")) == "a chunk of a at offset 0 has a wrong checksum"


@pytest.mark.parametrize("lost", [1, len(LARGE) - split.PIECE, len(LARGE) - 1, len(LARGE)])
def test_a_large_chunk_that_is_cut_short_is_refused(lost: int) -> None:
    assert refusal(wire.payload(b"a", LARGE)[:-lost]) == "the stream ends inside a chunk"


def test_there_is_a_limit_to_what_is_divided() -> None:
    head = wire.head(b"P", b"a") + struct.pack("<QQI", chunks.MAX_DUMPED_PAYLOAD + 1, 0, 0)
    assert refusal(head + b"x") == f"the stream has a chunk of {chunks.MAX_DUMPED_PAYLOAD + 1} bytes at offset 0 for a"
