"""Chunks to files: every byte in its place, in any order, and never a byte outside the target."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import struct
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Corrupt, GuestagentError
from guestagent.streams.chunks import MBSTREAM, XBSTREAM
from guestagent.streams.codec import Buffer
from guestagent.streams.extract import ALIGNMENT, BOUNCE, DIRECT_FROM, Extraction
from guestagent.streams.split import Splitter
from tests import wire
from tests.processes import eventually
from tests.servers.workplace import DISK

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """On a disk: in memory only Linux 6.6 and later write past the page cache."""
    with tempfile.TemporaryDirectory(dir=DISK) as place:
        yield Path(place)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty directory, with a neighbour that must stay as it is."""
    (tmp_path / "neighbour").mkdir()
    (tmp_path / "neighbour/file").write_bytes(b"untouched")
    target = tmp_path / "target"
    target.mkdir()
    return target


@pytest.fixture(autouse=True)
def neighbours(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Whatever a test does, nothing outside the target changes, and no descriptor is left open."""
    descriptors = set(os.listdir("/proc/self/fd"))
    yield
    assert eventually(lambda: set(os.listdir("/proc/self/fd")) <= descriptors)
    if "target" in request.fixturenames:
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["neighbour", "target"]
        assert wire.tree(tmp_path / "neighbour") == {b"file": b"untouched"}


def extracted(
    target: Path, *segments: bytes, dialect: str = MBSTREAM, ordered: bool = False, files: int | None = None
) -> dict[bytes, bytes]:
    """The tree that the segments give, applied one by one; complete, unless ``files`` is None."""
    with Extraction(target, dialect=dialect) as extraction:
        for segment in segments:
            extraction.apply(memoryview(segment), Buffer(BOUNCE), ordered=ordered)
        if files is not None:
            extraction.check_complete(files)
    return wire.tree(target)


def refusal(target: Path, *segments: bytes, dialect: str = MBSTREAM, ordered: bool = False, files: int = 1) -> str:
    with pytest.raises(Corrupt) as caught:
        extracted(target, *segments, dialect=dialect, ordered=ordered, files=files)
    return caught.value.what


def failure(target: Path, *segments: bytes) -> GuestagentError:
    with pytest.raises(GuestagentError) as caught:
        extracted(target, *segments)
    return caught.value


# Every byte in its place


def test_files_and_directories_are_made(target: Path) -> None:
    files = {b"ibdata1": b"x" * 5000, b"db one/t#P#p0.ibd": b"y", b"a/b/c/d": b"", b"caf\xe9/\xff": b"z"}

    assert extracted(target, wire.joined(files), files=4) == files


def test_what_is_made_is_for_its_owner_alone(target: Path) -> None:
    extracted(target, wire.file(b"db/t1.ibd", b"x"))

    assert stat.S_IMODE((target / "db").stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "db/t1.ibd").stat().st_mode) == 0o600


def test_a_path_may_begin_with_a_dot_and_names_the_same_file(target: Path) -> None:
    segments = [wire.payload(b"./db/a", b"one"), wire.payload(b"db/a", b"two", 3), wire.end(b"./db/a")]

    assert extracted(target, *segments, files=1) == {b"db/a": b"onetwo"}


def test_the_order_of_segments_does_not_matter(target: Path) -> None:
    content = random.Random(1).randbytes(100_000)
    segments = wire.pieces(b"a", content, size=7000) + wire.pieces(b"d/b", content[::-1], size=9000)
    random.Random(2).shuffle(segments)

    assert extracted(target, *segments, files=2) == {b"a": content, b"d/b": content[::-1]}


def test_many_workers_may_write_at_once(target: Path) -> None:
    files = {b"d%d/f%d" % (number % 3, number): random.Random(number).randbytes(200_000) for number in range(20)}
    segments = [piece for path, content in files.items() for piece in wire.pieces(path, content, size=9000)]
    random.Random(3).shuffle(segments)
    with Extraction(target, dialect=MBSTREAM) as extraction, ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(extraction.apply, memoryview(data), Buffer(BOUNCE)) for data in segments]:
            future.result()
        extraction.check_complete(len(files))

    assert wire.tree(target) == files


def test_a_directory_that_another_worker_makes_meanwhile_is_taken(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def late(name: bytes, mode: int, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        make(name, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", late)

    assert extracted(target, wire.file(b"db/a", b"x"), files=1) == {b"db/a": b"x"}


# Past the page cache


class Opened:
    """Which files were opened past the page cache; and what happens to those that are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.direct: list[bytes] = []
        self.error = 0
        self._open: Callable[..., int] = os.open
        monkeypatch.setattr(os, "open", self)

    def __call__(self, path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            self.direct.append(path)
            if self.error:
                raise OSError(self.error, os.strerror(self.error))
        return self._open(path, flags, *arguments, **named)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


LARGE = random.Random(4).randbytes(3 * BOUNCE + 5 * ALIGNMENT)


@pytest.mark.parametrize(
    ("length", "offset", "direct"),
    [
        (len(LARGE), 0, True),
        (len(LARGE) - 1, 0, True),
        (DIRECT_FROM, ALIGNMENT, True),
        (DIRECT_FROM + 1, 3 * ALIGNMENT, True),
        (BOUNCE, 0, True),
        (BOUNCE + 1, 0, True),
        (DIRECT_FROM - 1, 0, False),
        (len(LARGE), 1, False),
        (len(LARGE), ALIGNMENT - 1, False),
        (len(LARGE), 512, False),
    ],
)
def test_large_aligned_payloads_go_past_the_page_cache(
    target: Path, opened: Opened, length: int, offset: int, direct: bool
) -> None:
    content = b"b" * offset + LARGE[:length]
    stream = b"".join(
        wire.payload(path, content[:offset]) + wire.payload(path, content[offset:], offset) + wire.end(path)
        for path in (b"a", b"b")
    )

    assert extracted(target, stream, files=2) == {b"a": content, b"b": content}
    assert opened.direct == ([b"a", b"b"] if direct else [])


def test_a_payload_that_is_not_aligned_in_memory_is_copied(target: Path) -> None:
    """The payloads of a segment stand behind headers of odd lengths, so none of them is aligned."""
    stream = b"".join(wire.file(b"f" * length, LARGE) for length in range(1, 9))

    assert extracted(target, stream, files=8) == {b"f" * length: LARGE for length in range(1, 9)}


@pytest.mark.parametrize("refuses", ["open", "write"])
def test_a_filesystem_that_refuses_direct_writes_gets_ordinary_ones(
    target: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    write = os.pwrite

    def refuse_odd_length(descriptor: int, data: memoryview, place: int) -> int:
        if len(data) == BOUNCE:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, data, place)

    if refuses == "open":
        opened.error = errno.EINVAL
    else:
        monkeypatch.setattr(os, "pwrite", refuse_odd_length)

    assert extracted(target, wire.file(b"a", LARGE), wire.file(b"b", LARGE), files=2) == {b"a": LARGE, b"b": LARGE}
    assert opened.direct == [b"a"]  # and never tried again


@pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="needs a filesystem in memory")
def test_a_filesystem_in_memory_serves() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        assert extracted(Path(directory), wire.file(b"d/a", LARGE), files=1) == {b"d/a": LARGE}


def test_another_refusal_to_open_is_a_failure(target: Path, opened: Opened) -> None:
    opened.error = errno.EACCES

    assert str(failure(target, wire.file(b"a", LARGE))) == f"cannot write {target}/a: Permission denied"


# Writes that go wrong


def test_short_writes_are_carried_on(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, place: write(descriptor, data[: 16 * ALIGNMENT], place))
    content = LARGE + b"tail"

    assert extracted(target, wire.file(b"a", content) + wire.file(b"b", content[:-ALIGNMENT]), files=2) == {
        b"a": content,
        b"b": content[:-ALIGNMENT],
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("content", [b"small", LARGE], ids=["ordinary", "direct"])
def test_a_full_disk_is_told(target: Path, monkeypatch: pytest.MonkeyPatch, number: int, content: bytes) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", full)
    error = failure(target, wire.file(b"db/a", content))

    assert not isinstance(error, Corrupt)
    assert str(error) == f"no space left for {target}/db/a; free space, or name another target"


def test_any_other_failure_is_told(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", broken)
    error = failure(target, wire.file(b"caf\xe9", b"x"))

    assert not isinstance(error, Corrupt)
    assert str(error) == f"cannot write {target}/caf\\xe9: Input/output error"


# Never outside the target


@pytest.mark.parametrize(
    "path",
    [b"../neighbour/file", b"../new", b"/etc/guestagent-new", b"d/../../new", b"d//x", b"..", b"d/..", b"d/.", b"x\0y"],
)
@pytest.mark.parametrize("build", [lambda path: wire.file(path, b"evil"), lambda path: wire.rename(b"a", path)])
def test_a_path_that_leaves_the_target_is_corrupt(target: Path, path: bytes, build: Callable[[bytes], bytes]) -> None:
    extracted(target, wire.file(b"d/ok", b"x"))

    assert "a file outside the target directory" in refusal(target, build(path), ordered=True)
    assert wire.tree(target) == {b"d/ok": b"x"}


@pytest.mark.parametrize("where", ["neighbour/file", "neighbour/new"])
def test_a_link_where_a_file_must_be_is_not_followed(target: Path, where: str) -> None:
    (target / "a").symlink_to(target.parent / where)

    assert str(failure(target, wire.file(b"a", b"evil"))) == f"cannot write {target}/a: File exists"
    assert (target / "a").is_symlink()


@pytest.mark.parametrize("content", [b"evil", LARGE], ids=["ordinary", "direct"])
def test_a_link_that_takes_the_place_of_a_file_is_not_followed(target: Path, content: bytes) -> None:
    with Extraction(target, dialect=MBSTREAM) as extraction:
        extraction.apply(memoryview(wire.payload(b"a", b"")), Buffer(BOUNCE))
        (target / "a").unlink()
        (target / "a").symlink_to(target.parent / "neighbour/file")

        with pytest.raises(Corrupt, match="leads through something that is not a directory"):
            extraction.apply(memoryview(wire.payload(b"a", content)), Buffer(BOUNCE))


@pytest.mark.parametrize("path", [b"db/file", b"db/new", b"db/deep/new"])
def test_a_link_where_a_directory_must_be_is_not_followed(target: Path, path: bytes) -> None:
    (target / "db").symlink_to(target.parent / "neighbour")

    assert refusal(target, wire.file(path, b"evil")) == (
        f"the stream's {target}/{path.decode()} leads through something that is not a directory"
    )


def test_a_rename_does_not_follow_a_link(target: Path) -> None:
    (target / "db").symlink_to(target.parent / "neighbour")

    assert "leads through" in refusal(target, wire.file(b"a", b"x") + wire.rename(b"a", b"db/file"), ordered=True)


def test_a_file_where_a_directory_must_be_is_corrupt(target: Path) -> None:
    wrong = f"the stream's {target}/a/b leads through something that is not a directory"

    assert refusal(target, wire.file(b"a", b"x") + wire.file(b"a/b", b"y")) == wrong


def test_a_directory_where_a_file_must_be_is_told(target: Path) -> None:
    stream = wire.file(b"a/b", b"x") + wire.file(b"a", b"y")

    assert str(failure(target, stream)) == f"cannot write {target}/a: File exists"


def test_what_is_there_already_is_not_overwritten(target: Path) -> None:
    (target / "a").write_bytes(b"older")

    assert str(failure(target, wire.file(b"a", b"x"))) == f"cannot write {target}/a: File exists"
    assert (target / "a").read_bytes() == b"older"


def test_a_pipe_in_the_place_of_a_file_does_not_hang_us(target: Path) -> None:
    os.mkfifo(target / "a")

    assert "File exists" in str(failure(target, wire.file(b"a", b"x")))
    (target / "a").unlink()


def test_a_pipe_in_the_place_of_a_directory_does_not_hang_us(target: Path) -> None:
    os.mkfifo(target / "a")

    assert "leads through something that is not a directory" in refusal(target, wire.file(b"a/b", b"x"))
    (target / "a").unlink()


def test_after_its_end_an_extraction_writes_nowhere(target: Path) -> None:
    """A worker that was left alone may come back when its descriptor's number belongs to another directory."""
    with Extraction(target, dialect=MBSTREAM) as extraction:
        pass
    other = os.open(target.parent / "neighbour", os.O_RDONLY)
    try:
        with pytest.raises(GuestagentError, match="Bad file descriptor"):
            extraction.apply(memoryview(wire.file(b"file", b"evil")), Buffer(BOUNCE))
    finally:
        os.close(other)


# Everything, and everything once


WHOLE = wire.pieces(b"db/a", b"0123456789" * 3, size=10)


@pytest.mark.parametrize("missing", range(2))
def test_a_missing_piece_is_noticed(target: Path, missing: int) -> None:
    """Not so the last one, since an end has no size: that no segment is missing, the manifest proves."""
    rest = [piece for number, piece in enumerate(WHOLE) if number != missing]

    assert refusal(target, *rest) == "the segments do not hold all of db/a"


def test_a_missing_end_is_noticed(target: Path) -> None:
    assert refusal(target, *WHOLE[:-1], files=0) == "the segments do not hold all of db/a"


@pytest.mark.parametrize("twice", range(3))
def test_a_piece_twice_is_noticed(target: Path, twice: int) -> None:
    assert refusal(target, WHOLE[twice], *WHOLE) == "the segments do not hold all of db/a"


@pytest.mark.parametrize(
    "numbers", [(0, 0, 1), (0, 0, 2), (1, 1, 2), (0, 1, 1), (0, 0, 0), (1, 1, 1), (0, 0, 0, 1, 2)], ids=str
)
def test_a_piece_twice_does_not_make_up_for_a_missing_one(target: Path, numbers: Sequence[int]) -> None:
    assert refusal(target, *(WHOLE[number] for number in numbers), WHOLE[-1]) == "the segments do not hold all of db/a"


def test_pieces_that_overlap_are_noticed(target: Path) -> None:
    pieces = [wire.payload(b"a", b"01234"), wire.payload(b"a", b"345", 3), wire.end(b"a")]

    assert refusal(target, *pieces) == "the segments do not hold all of a"


def test_an_end_twice_is_noticed(target: Path) -> None:
    assert refusal(target, *WHOLE, WHOLE[-1]) == "the segments end db/a twice"
    shutil.rmtree(target / "db")
    assert refusal(target, *WHOLE, WHOLE[-1], ordered=True) == "the segments end db/a twice"


@pytest.mark.parametrize("files", [0, 2])
def test_a_wrong_number_of_files_is_noticed(target: Path, files: int) -> None:
    assert refusal(target, *WHOLE, files=files) == f"the segments end 1 files and the manifest has {files}"


def test_empty_payloads_count_for_nothing(target: Path) -> None:
    stream = wire.payload(b"a", b"") + wire.payload(b"a", b"x") + wire.payload(b"a", b"", 1) + wire.end(b"a")

    assert extracted(target, stream, files=1) == {b"a": b"x"}


def test_a_damaged_segment_is_refused(target: Path) -> None:
    assert "wrong checksum" in refusal(target, wire.file(b"a", b"x").replace(b"x", b"y", 1))
    assert refusal(target, WHOLE[0][:-1]).startswith("a segment ends inside")


# Sparse files of xbstream


def test_holes_of_a_sparse_file_are_holes(target: Path) -> None:
    block = b"d" * 65536
    stream = wire.sparse(b"a", [(0, block), (1 << 24, block), (1 << 24, b"")]) + wire.end(b"a")
    found = extracted(target, stream, dialect=XBSTREAM, files=1)

    assert found[b"a"] == block + bytes(1 << 24) + block + bytes(1 << 24)
    assert (target / "a").stat().st_blocks * 512 < 1 << 20


def test_the_pieces_of_a_sparse_file_may_come_in_any_order(target: Path) -> None:
    pieces = [
        wire.sparse(b"a", [(0, b"ab"), (10, b"cd"), (6, b"")]),
        wire.payload(b"a", b"more", 20),
        wire.sparse(b"a", [(8000, b"")], offset=24),
        wire.sparse(b"a", [(4, b"x"), (0, b"")], offset=8024),
        wire.end(b"a"),
    ]
    whole = b"ab" + bytes(10) + b"cd" + bytes(6) + b"more" + bytes(8000) + bytes(4) + b"x"
    for seed in range(10):
        random.Random(seed).shuffle(pieces)

        assert extracted(target, *pieces, dialect=XBSTREAM, files=1) == {b"a": whole}
        (target / "a").unlink()


def test_a_missing_piece_of_a_sparse_file_is_noticed(target: Path) -> None:
    first, second = wire.sparse(b"a", [(5, b"ab"), (3, b"")]), wire.sparse(b"a", [(5, b"ab")], offset=10)

    assert refusal(target, second, wire.end(b"a"), dialect=XBSTREAM) == "the segments do not hold all of a"
    (target / "a").unlink()
    assert (
        refusal(target, first, first, second, wire.end(b"a"), dialect=XBSTREAM) == "the segments do not hold all of a"
    )


def test_a_sparse_file_of_one_hole_has_its_size(target: Path) -> None:
    stream = wire.sparse(b"a", [(100_000, b"")]) + wire.end(b"a")

    assert extracted(target, stream, dialect=XBSTREAM, files=1) == {b"a": bytes(100_000)}


def test_a_sparse_map_that_does_not_fit_writes_nothing(target: Path) -> None:
    entry = struct.pack("<II", 0, 200)
    numbers = struct.pack("<IQQI", 1, 2, 0, zlib.crc32(entry + b"ab"))

    assert "does not fit" in refusal(target, wire.head(b"S", b"a") + numbers + entry + b"ab", dialect=XBSTREAM)
    assert wire.tree(target) == {b"a": b""}


# Where the order matters


@pytest.mark.parametrize("change", [wire.rename(b"a", b"b"), wire.remove(b"a"), wire.seek(b"a", 1)])
def test_out_of_order_nothing_is_moved(target: Path, change: bytes) -> None:
    assert refusal(target, wire.file(b"a", b"x") + change).endswith("of a where the manifest has none")
    assert wire.tree(target) == {b"a": b"x"}


def test_out_of_order_nothing_is_rewritten(target: Path) -> None:
    anew = wire.file(b"a", b"longer", flags=wire.REWRITE)

    assert refusal(target, wire.file(b"a", b"x"), anew) == "the segments end a twice"


FIRST = wire.file(b"a", b"hello") + wire.file(b"db/b", b"old")
DISTURBING: dict[str, tuple[bytes, dict[bytes, bytes]]] = {
    "rename": (wire.rename(b"a", b"c"), {b"c": b"hello", b"db/b": b"old"}),
    "rename to another directory": (wire.rename(b"a", b"db/c"), {b"db/c": b"hello", b"db/b": b"old"}),
    "rename onto another": (wire.rename(b"a", b"db/b"), {b"db/b": b"hello"}),
    "rename onto itself": (wire.rename(b"a", b"a"), {b"a": b"hello", b"db/b": b"old"}),
    "rename, and the name again": (
        wire.rename(b"a", b"c") + wire.file(b"a", b"new"),
        {b"a": b"new", b"c": b"hello", b"db/b": b"old"},
    ),
    "rename twice": (wire.rename(b"a", b"c") + wire.rename(b"c", b"d"), {b"d": b"hello", b"db/b": b"old"}),
    "rename of nothing": (wire.rename(b"z", b"c"), {b"a": b"hello", b"db/b": b"old"}),
    "remove": (wire.remove(b"a"), {b"db/b": b"old"}),
    "remove, and again": (wire.remove(b"a") + wire.file(b"a", b"n"), {b"a": b"n", b"db/b": b"old"}),
    "remove of nothing": (wire.remove(b"z") + wire.file(b"c", b"x"), {b"a": b"hello", b"db/b": b"old", b"c": b"x"}),
    "anew, shorter": (wire.file(b"a", b"XY", flags=2), {b"a": b"XY", b"db/b": b"old"}),
    "anew, longer, in pieces": (
        wire.file(b"a", b"0123456789", size=4, flags=2),
        {b"a": b"0123456789", b"db/b": b"old"},
    ),
    "anew, empty": (wire.end(b"a", flags=2), {b"a": b"", b"db/b": b"old"}),
    "anew, twice": (
        wire.file(b"a", b"once", flags=2) + wire.file(b"a", b"twice", flags=2),
        {b"a": b"twice", b"db/b": b"old"},
    ),
    "anew, then moved": (
        wire.file(b"a", b"new", flags=2) + wire.rename(b"a", b"c"),
        {b"c": b"new", b"db/b": b"old"},
    ),
    "seek back": (
        wire.payload(b"c", b"hello") + wire.seek(b"c", 1) + wire.payload(b"c", b"XY", 1) + wire.end(b"c"),
        {b"a": b"hello", b"db/b": b"old", b"c": b"hXYlo"},
    ),
    "seek ahead": (
        wire.payload(b"c", b"hello") + wire.seek(b"c", 10) + wire.payload(b"c", b"XY", 10) + wire.end(b"c"),
        {b"a": b"hello", b"db/b": b"old", b"c": b"hello\0\0\0\0\0XY"},
    ),
    "seek at first": (
        wire.seek(b"c", 3) + wire.payload(b"c", b"XY", 3) + wire.end(b"c"),
        {b"a": b"hello", b"db/b": b"old", b"c": b"\0\0\0XY"},
    ),
    "seek, and nothing": (
        wire.payload(b"c", b"hello") + wire.seek(b"c", 10) + wire.end(b"c"),
        {b"a": b"hello", b"db/b": b"old", b"c": b"hello"},
    ),
    "anew, with a seek": (
        wire.payload(b"a", b"XY", flags=2) + wire.seek(b"a", 3) + wire.payload(b"a", b"Z", 3, flags=2) + wire.end(b"a"),
        {b"a": b"XY\0Z", b"db/b": b"old"},
    ),
}


def cut(stream: bytes, size: int) -> tuple[list[bytes], int, int]:
    """A stream's segments, from which on their order matters, and how many files they end."""
    read = wire.source(stream)
    splitter = Splitter(lambda view: read(view, lambda: False), dialect=MBSTREAM, segment_size=size)
    buffer, segments = splitter.buffer(), []
    while segment := splitter.take(buffer):
        segments.append(bytes(segment.view))
    assert splitter.ordered_from is not None
    return segments, splitter.ordered_from, splitter.files


@pytest.mark.parametrize("name", DISTURBING)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_in_order_everything_ends_where_the_stream_says(target: Path, name: str, size: int) -> None:
    disturbing, expected = DISTURBING[name]
    segments, first, files = cut(FIRST + disturbing, size)
    free = segments[:first]
    random.Random(name).shuffle(free)
    with Extraction(target, dialect=MBSTREAM) as extraction:
        for segment in free:
            extraction.apply(memoryview(segment), Buffer(BOUNCE))
        for segment in segments[first:]:
            extraction.apply(memoryview(segment), Buffer(BOUNCE), ordered=True)
        extraction.check_complete(files)

    assert wire.tree(target) == expected


@pytest.mark.skipif(not shutil.which("mbstream"), reason="needs mbstream")
@pytest.mark.parametrize("name", DISTURBING)
def test_mbstream_gives_the_same_tree(target: Path, name: str) -> None:
    disturbing, expected = DISTURBING[name]
    subprocess.run(["mbstream", "-x", "-C", str(target)], input=FIRST + disturbing, check=True, timeout=60)

    assert wire.tree(target) == expected


def test_a_rename_may_need_a_directory_that_mbstream_would_not_make(target: Path) -> None:
    stream = wire.file(b"a", b"hello") + wire.rename(b"a", b"new/dir/b")

    assert extracted(target, stream, ordered=True, files=1) == {b"new/dir/b": b"hello"}


def test_a_removed_file_need_not_be_whole_any_more(target: Path) -> None:
    stream = wire.payload(b"a", b"x", 5) + wire.end(b"a") + wire.remove(b"a")

    assert extracted(target, stream, ordered=True, files=1) == {}


def test_a_file_that_begins_anew_is_judged_anew(target: Path) -> None:
    stream = wire.file(b"a", b"hello") + wire.payload(b"a", b"XY", 3, flags=2) + wire.end(b"a")

    assert refusal(target, stream, ordered=True, files=2) == "the segments do not hold all of a"


def test_two_threads_do_not_make_the_same_file_twice(target: Path) -> None:
    pieces = wire.pieces(b"d/a", b"x" * 64, size=1)
    barrier = threading.Barrier(len(pieces), timeout=10)
    with Extraction(target, dialect=MBSTREAM) as extraction, ThreadPoolExecutor(len(pieces)) as pool:

        def apply(piece: bytes) -> None:
            barrier.wait()
            extraction.apply(memoryview(piece), Buffer(ALIGNMENT))

        list(pool.map(apply, pieces))
        extraction.check_complete(1)

    assert wire.tree(target) == {b"d/a": b"x" * 64}
