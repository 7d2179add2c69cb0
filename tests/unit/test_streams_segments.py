"""Segments, many at a time: to the store, and back to files, whatever goes wrong on the way."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestagent.errors import Cancelled, Corrupt, Stalled, StorageError, ToolError
from guestagent.manifest import Segment, StreamFacts, digest
from guestagent.progress import Watch
from guestagent.streams import crew
from guestagent.streams.chunks import MBSTREAM, XBSTREAM
from guestagent.streams.codec import NONE, ZSTD, Buffer, encoder
from guestagent.streams.crew import Team
from guestagent.streams.extract import Extraction
from guestagent.streams.process import Child
from guestagent.streams.segments import Arrivals, Incoming, Outgoing, Proof, Sink, Source, Stored, store
from tests import wire
from tests.processes import SOON, eventually
from tests.unit.test_streams_split import NESTED


class Memory:
    """A store in memory."""

    def __init__(self) -> None:
        self.objects: dict[int, bytes] = {}
        self.digests: dict[int, str] = {}

    def put(self, index: int, body: bytes, sha256: str) -> None:
        assert index not in self.objects
        self.objects[index] = body
        self.digests[index] = sha256

    def fetch(self, segment: Segment) -> bytes:
        return self.objects[segment.index]

    def joined(self) -> bytes:
        return b"".join(self.objects[index] for index in sorted(self.objects))


def dump(
    source: Source | bytes,
    put: Callable[[int, bytes, str], None] | None = None,
    *,
    size: int = 1,
    workers: int = 2,
    watch: Watch | None = None,
    dialect: str = MBSTREAM,
    compression: str = NONE,
) -> Stored:
    return store(
        wire.source(source) if isinstance(source, bytes) else source,
        Outgoing(dialect=dialect, segment_size=size, encode=encoder(compression, 1)),
        put=put or Memory().put,
        team=Team(workers),
        watch=watch or Watch(),
    )


def incoming(
    stored: Stored, fetch: Callable[[Segment], bytes], sink: Sink, *, label: str = "backup b7", compression: str = NONE
) -> Incoming:
    return Incoming(stored=stored, compression=compression, fetch=fetch, sink=sink, label=label)


def bring(*links: Incoming, workers: int = 2, watch: Watch | None = None) -> None:
    """All links, the way that a restore does it."""
    with Arrivals(links, team=Team(workers), watch=watch or Watch()) as arrivals:
        for number in range(len(links)):
            arrivals.wait_for(number)


class Noted:
    """A sink that writes down what it gets, in the order in which it comes."""

    def __init__(self) -> None:
        self.views: list[bytes] = []
        self.ordered: list[bool] = []

    def apply(self, view: memoryview, bounce: Buffer, *, ordered: bool = False) -> None:
        self.views.append(bytes(view))
        self.ordered.append(ordered)

    def check_complete(self, files: int) -> None:
        """Whatever came is enough."""


# There


@pytest.mark.parametrize("size", [1, 60, 1 << 20])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_what_is_stored_is_the_stream(size: int, workers: int) -> None:
    memory = Memory()
    stream = NESTED + wire.joined({b"c": b"x" * 500, b"d": b""}, size=50)
    stored = dump(stream, memory.put, size=size, workers=workers)

    assert memory.joined() == stream
    assert [segment.index for segment in stored.segments] == list(range(len(memory.objects)))
    assert stored.stream == StreamFacts(format=MBSTREAM, files=4, ordered_from=None)


def test_a_segment_has_its_sizes_and_its_digest() -> None:
    memory = Memory()
    content = bytes(100_000)
    stored = dump(wire.file(b"a", content), memory.put, size=1 << 20, compression=ZSTD)

    assert stored.segments == (
        Segment(0, len(wire.file(b"a", content)), len(memory.objects[0]), digest(memory.objects[0])),
    )
    assert memory.digests == {0: digest(memory.objects[0])}
    assert len(memory.objects[0]) < 1000


def test_segments_are_sorted_whichever_is_stored_first() -> None:
    memory, order = Memory(), []
    first = threading.Event()

    def put(index: int, body: bytes, sha256: str) -> None:
        if index == 0:
            first.wait(SOON)
        order.append(index)
        if len(order) == 4:
            first.set()
        memory.put(index, body, sha256)

    stored = dump(NESTED, put)

    assert order == [1, 2, 3, 4, 0]
    assert [segment.index for segment in stored.segments] == [0, 1, 2, 3, 4]
    assert memory.joined() == NESTED


def test_every_byte_is_counted() -> None:
    counted: list[int] = []

    class Count:
        def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
            """Not asked for."""

        def advance(self, count: int) -> None:
            counted.append(count)

    dump(NESTED, watch=Watch(Count()))

    assert sum(counted) == len(NESTED)


@pytest.mark.skipif(not shutil.which("zstd"), reason="needs the zstd tool")
@pytest.mark.skipif(not shutil.which("mbstream"), reason="needs mbstream")
def test_a_hand_restore_needs_standard_tools_alone(tmp_path: Path) -> None:
    files = {b"ibdata1": random.Random(1).randbytes(300_000), b"db/t1.ibd": bytes(200_000), b"db/empty.frm": b""}
    memory = Memory()
    dump(wire.joined(files, size=70_000), memory.put, size=100_000, compression=ZSTD)
    raw = subprocess.run(["zstd", "-d"], input=memory.joined(), stdout=subprocess.PIPE, check=True, timeout=60).stdout
    subprocess.run(["mbstream", "-x", "-C", str(tmp_path)], input=raw, check=True, timeout=60)

    assert len(memory.objects) > 3
    assert wire.tree(tmp_path) == files


@pytest.mark.skipif(not shutil.which("mbstream"), reason="needs mbstream")
def test_the_stream_of_the_real_tool_is_understood(tmp_path: Path) -> None:
    content = {b"a": random.Random(1).randbytes(25 << 20), b"b": b"", b"c": b"x" * 4097}
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    for path, data in content.items():
        (tmp_path / "from" / path.decode()).write_bytes(data)
    memory = Memory()
    argv = ["sh", "-c", f"cd {tmp_path}/from && exec mbstream -c a b c"]
    with Child(argv, stream=True) as child:
        stored = dump(lambda view, stopped: child.read_into(view, stopped=stopped), memory.put, size=4 << 20)
        child.finish(Watch())
    with Extraction(tmp_path / "to", dialect=MBSTREAM) as extraction:
        bring(incoming(stored, memory.fetch, extraction))

    assert stored.stream.files == 3
    assert wire.tree(tmp_path / "to") == content


# A dump that is damaged


@pytest.mark.parametrize("length", range(len(NESTED)))
def test_a_stream_cut_at_any_byte_is_refused(length: int) -> None:
    with pytest.raises(Corrupt):
        dump(NESTED[:length], size=30)


def flags_of(stream: bytes) -> set[int]:
    return {at + 8 for at in range(len(stream)) if stream.startswith(b"XBSTCK01", at)}


@pytest.mark.parametrize("position", range(len(NESTED)))
def test_any_one_bit_flipped_is_refused_but_in_flags_that_do_not_matter(position: int) -> None:
    for bit in range(8):
        stream = bytearray(NESTED)
        stream[position] ^= 1 << bit
        memory = Memory()
        try:
            stored = dump(bytes(stream), memory.put, workers=1)
        except Corrupt:
            continue
        assert position in flags_of(NESTED)
        with tempfile.TemporaryDirectory() as directory, Extraction(Path(directory), dialect=MBSTREAM) as extraction:
            bring(incoming(stored, memory.fetch, extraction), workers=1)
            assert wire.tree(Path(directory)) == {b"a": b"firstsecond", b"b": b"inner"}


def test_a_wrong_checksum_is_noticed_before_the_segment_is_stored() -> None:
    memory = Memory()
    with pytest.raises(Corrupt, match="a chunk of a at offset 5 has a wrong checksum"):
        dump(NESTED.replace(b"second", b"Second"), memory.put, workers=1)

    assert sorted(memory.objects) == [0, 1, 2]


# What goes wrong on the way there


def test_what_put_raises_comes_out_and_ends_the_reading() -> None:
    def put(index: int, body: bytes, sha256: str) -> None:
        raise StorageError("no such bucket", hint="create it")

    def read(view: memoryview, stopped: Callable[[], bool]) -> int:
        if first := next(chunk, b""):
            view[: len(first)] = first
            return len(first)
        while not stopped():  # a silent tool
            time.sleep(0.01)
        return 0

    chunk = iter([wire.payload(b"a", b"x")])
    with pytest.raises(StorageError, match="no such bucket; create it"):
        dump(read, put)


def test_what_the_source_raises_comes_out_and_not_the_cut_that_follows() -> None:
    source = wire.source(NESTED[:-3])

    def read(view: memoryview, stopped: Callable[[], bool]) -> int:
        count = source(view, stopped)
        if not count:
            raise ToolError("mariabackup failed with exit status 1: no space left on device")
        return count

    with pytest.raises(ToolError, match="no space left"):
        dump(read)


def test_a_tool_that_fails_halfway_is_the_cause_that_is_told() -> None:
    script = f"import sys; sys.stdout.buffer.write({NESTED[:-3]!r}); sys.exit('the server has gone away')"
    with Child([sys.executable, "-c", script], stream=True) as child:

        def read(view: memoryview, stopped: Callable[[], bool]) -> int:
            count = child.read_into(view, stopped=stopped)
            if not count and not stopped():
                child.finish(Watch())
            return count

        with pytest.raises(ToolError, match=r"failed with exit status 1: the server has gone away"):
            dump(read)


class Hang:
    """A store that never answers, until the test is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def put(self, index: int, body: bytes, sha256: str) -> None:
        self.over.wait(SOON)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    monkeypatch.setattr(crew, "PATIENCE", 0.3)
    hang = Hang()
    yield hang
    hang.over.set()
    assert eventually(lambda: not any(thread.name.startswith("crew-") for thread in threading.enumerate()))


def test_a_store_that_hangs_does_not_keep_a_cancel(hang: Hang) -> None:
    watch = Watch()
    threading.Timer(0.2, watch.cancel.set, ["stopped by SIGINT"]).start()
    begin = time.monotonic()
    with pytest.raises(Cancelled, match="SIGINT"):
        dump(NESTED, hang.put, watch=watch)

    assert time.monotonic() - begin < SOON / 2


def test_a_store_that_hangs_is_stalled_in_the_end(hang: Hang) -> None:
    watch = Watch(limit=0.3)
    watch.phase("dump")
    with pytest.raises(Stalled, match="phase dump"):
        dump(NESTED, hang.put, watch=watch)


# And back


@pytest.mark.parametrize("compression", [NONE, ZSTD])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_links_come_back_side_by_side(tmp_path: Path, compression: str, workers: int) -> None:
    links, trees = [], []
    for number in range(3):
        files = {b"d/%d" % file: random.Random(number * 7 + file).randbytes(30_000) for file in range(4)}
        memory, target = Memory(), tmp_path / str(number)
        target.mkdir()
        stored = dump(wire.joined(files, size=9000), memory.put, size=10_000, compression=compression)
        links.append(incoming(stored, memory.fetch, Extraction(target, dialect=MBSTREAM), compression=compression))
        trees.append((target, files))
    bring(*links, workers=workers)

    assert all(link.arrived for link in links)
    assert [wire.tree(target) for target, _ in trees] == [files for _, files in trees]
    for link in links:
        assert isinstance(link.sink, Extraction)
        link.sink.__exit__()


names = st.lists(
    st.binary(min_size=1, max_size=3).filter(lambda name: not set(name) & set(b"./\0")),
    unique=True,
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_files_in_any_chunks_in_any_segments_in_any_order_come_back(data: st.DataObject) -> None:
    paths = [data.draw(st.sampled_from([b"", b"d/", b"d/e/"])) + b"f" + name for name in data.draw(names)]
    files = {path: data.draw(st.binary(max_size=400)) for path in paths}
    rest = [wire.pieces(path, content, size=data.draw(st.integers(1, 500))) for path, content in files.items()]
    stream = b""
    while rest:
        turn = data.draw(st.integers(0, len(rest) - 1))
        stream += rest[turn].pop(0)
        rest = [pieces for pieces in rest if pieces]
    compression = data.draw(st.sampled_from([NONE, ZSTD]))
    memory = Memory()
    stored = dump(stream, memory.put, size=data.draw(st.integers(1, 1000)), compression=compression)
    shuffled = replace(stored, segments=tuple(data.draw(st.permutations(stored.segments))))

    assert sum(segment.raw_size for segment in stored.segments) == len(stream)
    assert stored.stream.files == len(files)
    with tempfile.TemporaryDirectory() as directory:
        with Extraction(Path(directory), dialect=MBSTREAM) as extraction:
            bring(incoming(shuffled, memory.fetch, extraction, compression=compression))
        assert wire.tree(Path(directory)) == files


def test_sparse_files_come_back(tmp_path: Path) -> None:
    stream = (
        wire.sparse(b"a", [(0, b"ab"), (9000, b"cd"), (998, b"")])
        + wire.file(b"b", b"x" * 50, size=7)
        + wire.payload(b"a", b"more", 10_000 + 2)
        + wire.end(b"a")
    )
    memory = Memory()
    stored = dump(stream, memory.put, dialect=XBSTREAM)
    with Extraction(tmp_path, dialect=XBSTREAM) as extraction:
        bring(incoming(stored, memory.fetch, extraction))

    assert wire.tree(tmp_path) == {b"a": b"ab" + bytes(9000) + b"cd" + bytes(998) + b"more", b"b": b"x" * 50}


# The order


DISTURBED = (
    wire.joined({b"f%d" % number: b"x" for number in range(6)})
    + wire.rename(b"f0", b"g")
    + wire.file(b"f0", b"again")
    + wire.remove(b"f1")
)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_ordered_tail_waits_for_all_others_and_keeps_its_order(workers: int) -> None:
    memory, sink = Memory(), Noted()
    stored = dump(DISTURBED, memory.put)
    first = stored.stream.ordered_from
    assert first is not None

    def fetch(segment: Segment) -> bytes:
        if segment.index < first:
            time.sleep(random.Random(segment.index).uniform(0, 0.05))
        return memory.fetch(segment)

    bring(incoming(stored, fetch, sink), workers=workers)

    assert sink.ordered == [False] * first + [True] * (len(stored.segments) - first)
    assert sink.views[first:] == [memory.objects[index] for index in range(first, len(stored.segments))]
    assert sorted(sink.views[:first]) == sorted(memory.objects[index] for index in range(first))


def test_a_disturbed_stream_comes_back(tmp_path: Path) -> None:
    memory = Memory()
    stored = dump(DISTURBED, memory.put)
    with Extraction(tmp_path, dialect=MBSTREAM) as extraction:
        bring(incoming(stored, memory.fetch, extraction), workers=4)

    assert wire.tree(tmp_path) == {b"g": b"x", b"f0": b"again"} | {b"f%d" % number: b"x" for number in range(2, 6)}


def test_a_stream_may_need_its_order_from_its_first_segment() -> None:
    memory, sink = Memory(), Noted()
    stored = dump(wire.remove(b"z") + NESTED, memory.put)
    bring(incoming(stored, memory.fetch, sink))

    assert stored.stream.ordered_from == 0
    assert b"".join(sink.views) == wire.remove(b"z") + NESTED


def test_the_ordered_tail_does_not_wait_for_what_has_failed() -> None:
    memory = Memory()
    stored = dump(DISTURBED, memory.put)
    first = stored.stream.ordered_from
    assert first is not None
    others = iter(range(first - 1))

    def fetch(segment: Segment) -> bytes:
        if next(others, None) is None:
            time.sleep(0.3)  # the tail has long been taken
            raise StorageError("connection reset")
        return memory.fetch(segment)

    begin = time.monotonic()
    with pytest.raises(StorageError, match="connection reset"):
        bring(incoming(stored, fetch, Noted()))

    assert time.monotonic() - begin < SOON / 2


def test_segments_come_one_by_one_but_for_the_ordered_tail() -> None:
    segments = tuple(Segment(index, 1, 1, "") for index in range(4))
    facts = StreamFacts(format=MBSTREAM, files=1, ordered_from=2)
    free = incoming(Stored(segments, replace(facts, ordered_from=None)), Memory().fetch, Noted())
    tailed = incoming(Stored(segments, facts), Memory().fetch, Noted())

    assert list(free.batches()) == [segments[0:1], segments[1:2], segments[2:3], segments[3:4]]
    assert list(tailed.batches()) == [segments[0:1], segments[1:2], segments[2:4]]
    assert [tailed.is_ordered(segment) for segment in segments] == [False, False, True, True]
    assert not any(free.is_ordered(segment) for segment in segments)


# Waiting for links


class Gate:
    """A fetch that waits until it is let through."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.reached, self.open = threading.Event(), threading.Event()
        self.thread = threading.current_thread()

    def __call__(self, segment: Segment) -> bytes:
        self.thread = threading.current_thread()
        self.reached.set()
        assert self.open.wait(SOON)
        return self._memory.fetch(segment)


def test_a_link_is_whole_though_later_ones_are_not() -> None:
    memory = Memory()
    stored = dump(NESTED, memory.put)
    gate, sinks = Gate(memory), [Noted(), Noted()]
    links = [incoming(stored, memory.fetch, sinks[0]), incoming(stored, gate, sinks[1])]
    with Arrivals(links, team=Team(2), watch=Watch()) as arrivals:
        arrivals.wait_for(0)
        assert (links[0].arrived, links[1].arrived) == (True, False)
        assert (len(sinks[0].views), len(sinks[1].views)) == (5, 0)
        gate.open.set()
        arrivals.wait_for(1)

    assert len(sinks[1].views) == 5


def test_the_base_comes_first_where_links_compete() -> None:
    memory, order = Memory(), []
    stored = dump(NESTED, memory.put)

    def fetch(number: int, segment: Segment) -> bytes:
        order.append((number, segment.index))
        return memory.fetch(segment)

    bring(*(incoming(stored, partial(fetch, number), Noted()) for number in range(3)), workers=1)

    assert order == list(itertools.product(range(3), range(5)))


def test_waiting_for_a_link_raises_the_failure_of_a_later_one() -> None:
    memory = Memory()
    stored = dump(NESTED, memory.put)
    gate, failed = Gate(memory), threading.Event()

    def fetch(segment: Segment) -> bytes:
        failed.set()
        raise Corrupt("s3://bucket/data/00000003 is missing")

    links = [incoming(stored, gate, Noted()), incoming(stored, fetch, Noted())]
    with Arrivals(links, team=Team(8), watch=Watch()) as arrivals:
        assert failed.wait(SOON)
        with pytest.raises(Corrupt, match="00000003 is missing"):
            arrivals.wait_for(0)
        gate.open.set()


def test_bytes_are_counted_as_they_are_stored() -> None:
    counted: list[int] = []

    class Count:
        def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
            """Not asked for."""

        def advance(self, count: int) -> None:
            counted.append(count)

    memory = Memory()
    stored = dump(NESTED, memory.put, compression=ZSTD)
    bring(incoming(stored, memory.fetch, Noted(), compression=ZSTD), watch=Watch(Count()))

    assert sorted(counted) == sorted(segment.stored_size for segment in stored.segments)


# What goes wrong on the way back


def test_what_fetch_raises_comes_out() -> None:
    memory = Memory()
    stored = dump(NESTED, memory.put)

    def fetch(segment: Segment) -> bytes:
        raise StorageError("access denied")

    with pytest.raises(StorageError, match="access denied"):
        bring(incoming(stored, fetch, Noted()))


def test_a_cancel_ends_the_wait() -> None:
    memory, watch = Memory(), Watch()
    gate = Gate(memory)
    stored = dump(NESTED, memory.put)
    threading.Timer(0.1, watch.cancel.set, ["stopped by SIGINT"]).start()
    threading.Timer(0.3, gate.open.set).start()
    with pytest.raises(Cancelled):
        bring(incoming(stored, gate, Noted()), watch=watch)


def test_a_store_that_hangs_is_stalled(hang: Hang) -> None:
    stored = dump(NESTED)

    def fetch(segment: Segment) -> bytes:
        hang.over.wait(SOON)
        return b""

    with pytest.raises(Stalled):
        bring(incoming(stored, fetch, Noted()), watch=Watch(limit=0.2))


def test_who_comes_back_too_late_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE", 0.1)
    memory, sink = Memory(), Noted()
    stored = dump(NESTED, memory.put, size=1 << 20)
    gate = Gate(memory)
    with Arrivals([incoming(stored, gate, sink)], team=Team(1), watch=Watch()):
        assert gate.reached.wait(SOON)
    assert gate.thread.is_alive()
    gate.open.set()
    gate.thread.join(SOON)

    assert not gate.thread.is_alive()
    assert sink.views == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda body: body[:-1], "segment 0 of backup b7: a segment of 1"),
        (lambda body: body.replace(b"inner", b"INNER"), "segment 0 of backup b7: a chunk of b at offset 0 has a wrong"),
    ],
)
def test_a_segment_that_is_wrong_is_named(change: Callable[[bytes], bytes], wrong: str) -> None:
    memory = Memory()
    stored = dump(NESTED, memory.put, size=1 << 20)
    memory.objects[0] = change(memory.objects[0])

    with pytest.raises(Corrupt) as caught:
        bring(incoming(stored, memory.fetch, Proof(dialect=MBSTREAM)))
    assert caught.value.what.startswith(wrong)


def test_the_hint_of_what_is_wrong_is_kept() -> None:
    class Picky(Noted):
        def apply(self, view: memoryview, bounce: Buffer, *, ordered: bool = False) -> None:
            raise Corrupt("wrong", hint="use another")

    memory = Memory()
    stored = dump(NESTED, memory.put)
    with pytest.raises(Corrupt, match="of backup b7: wrong; use another"):
        bring(incoming(stored, memory.fetch, Picky()))


def test_a_link_that_is_not_whole_is_named(tmp_path: Path) -> None:
    memory = Memory()
    stored = dump(NESTED, memory.put)
    more = replace(stored, stream=replace(stored.stream, files=3))

    with pytest.raises(Corrupt, match=r"^backup b7: the segments end 2 files and the manifest has 3$"):
        bring(incoming(more, memory.fetch, Proof(dialect=MBSTREAM)))
    with (
        Extraction(tmp_path, dialect=MBSTREAM) as extraction,
        pytest.raises(Corrupt, match=r"^backup b7: the segments end 2 files and the manifest has 3$"),
    ):
        bring(incoming(more, memory.fetch, extraction))


@pytest.mark.parametrize("without", [0, 2, 4])
def test_a_stream_without_one_of_its_segments_is_not_whole(tmp_path: Path, without: int) -> None:
    """But for the last payload of a file, whose end does not say how long it is: the manifest does, by its numbers."""
    memory = Memory()
    stored = dump(NESTED, memory.put)
    rest = tuple(segment for segment in stored.segments if segment.index != without)
    with Extraction(tmp_path, dialect=MBSTREAM) as extraction, pytest.raises(Corrupt):
        bring(incoming(replace(stored, segments=rest), memory.fetch, extraction))


# Proof


def test_a_proof_walks_everything_and_keeps_nothing() -> None:
    memory = Memory()
    stored = dump(DISTURBED, memory.put, compression=ZSTD)
    bring(incoming(stored, memory.fetch, Proof(dialect=MBSTREAM), compression=ZSTD), workers=4)


def test_a_proof_notices_what_is_cut() -> None:
    with pytest.raises(Corrupt, match="ends inside"):
        Proof(dialect=MBSTREAM).apply(memoryview(NESTED[:-1]), Buffer(1))
