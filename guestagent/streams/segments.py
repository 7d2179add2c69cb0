"""Segments, many at a time: a dump to stored objects, and stored objects back to files.

Both ways are one crew each: whoever is free takes the next segment.  What a
segment is called, and where it lies, only the functions know that are handed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from guestagent.errors import Corrupt
from guestagent.manifest import Segment, StreamFacts, digest
from guestagent.progress import Watch
from guestagent.streams.chunks import END, Chunk, whole_chunks
from guestagent.streams.codec import Buffer, decode
from guestagent.streams.crew import LOOK, Crew, Team
from guestagent.streams.extract import BOUNCE
from guestagent.streams.split import RawSegment, Splitter

Put = Callable[[int, bytes, str], None]
"""Stores a segment's bytes under its index, given their SHA-256."""

Close = Callable[[int, bool, bytes], bytes]
"""Encrypts a segment's bytes, given its index and whether it is the last one."""

Open = Callable[[int, bool, bytes, memoryview], "bytes | memoryview"]
"""Decrypts a segment's bytes, given its index, whether it is the last one, and memory that may hold the result."""

Source = Callable[[memoryview, Callable[[], bool]], int]
"""As split.Read, and told by its second argument when to give up waiting."""


Look = Callable[[memoryview, Chunk], None]
"""Looks at a chunk, whole in the memory that it was read from; called from several threads, in any order."""


def plain(index: int, last: bool, data: bytes) -> bytes:
    """What closes a segment that is not to be encrypted."""
    return data


def no_look(view: memoryview, chunk: Chunk) -> None:
    """What looks at nothing."""


def plainly(index: int, last: bool, data: bytes, into: memoryview) -> bytes:
    """What opens a segment that is not encrypted."""
    return data


@dataclass(frozen=True)
class Stored:
    """A stream that lies in the store: its segments by index, and how to read them."""

    segments: tuple[Segment, ...]
    stream: StreamFacts


@dataclass(frozen=True)
class Outgoing:
    """What becomes of a dump's stream: ``dialect``, and raw bytes in a segment, about.

    ``encode`` compresses a segment, ``close`` encrypts it, and ``look`` sees its chunks before.
    """

    dialect: str
    segment_size: int
    encode: Callable[[memoryview], bytes]
    close: Close = plain
    look: Look = no_look


def store(source: Source, form: Outgoing, *, put: Put, team: Team, watch: Watch) -> Stored:
    """Cut, check, encode, encrypt and put a dump's stream; returns once every segment is stored.

    Raises the first failure: the dump's, a worker's or the watch's.
    """
    segments: list[Segment] = []

    def read(view: memoryview) -> int:
        count = source(view, crew.stopped)
        watch.advance(count)
        return count

    def work(_: Buffer, raw: RawSegment) -> None:
        for chunk in whole_chunks(raw.view, dialect=form.dialect):  # checks their CRCs, here where it runs in parallel
            form.look(raw.view, chunk)
        stored = form.close(raw.index, raw.last, form.encode(raw.view))
        sha256 = digest(stored)
        put(raw.index, stored, sha256)
        segments.append(Segment(raw.index, len(raw.view), len(stored), sha256))

    tells_last = form.close is not plain
    splitter = Splitter(read, dialect=form.dialect, segment_size=form.segment_size, tells_last=tells_last)
    crew = Crew(team, workspace=splitter.buffer, take=splitter.take, work=work)
    with crew:
        crew.wait(watch)
    facts = StreamFacts(format=form.dialect, files=splitter.files, ordered_from=splitter.ordered_from)
    return Stored(tuple(sorted(segments, key=lambda segment: segment.index)), facts)


class Sink(Protocol):
    """Where raw segments go: see extract.Extraction."""

    def apply(self, view: memoryview, bounce: Buffer, *, ordered: bool = False) -> None:
        """Take the chunks of one raw segment; raises Corrupt."""

    def check_complete(self, files: int) -> None:
        """Raise Corrupt unless all files are there."""


class Proof:
    """A sink that keeps nothing: it proves that the chunks are whole and counts the files that end."""

    def __init__(self, *, dialect: str) -> None:
        self._dialect = dialect
        self._lock = threading.Lock()
        self._ended = 0

    def apply(self, view: memoryview, bounce: Buffer, *, ordered: bool = False) -> None:
        """Walk the chunks."""
        ended = sum(chunk.kind == END for chunk in whole_chunks(view, dialect=self._dialect))
        with self._lock:
            self._ended += ended

    def check_complete(self, files: int) -> None:
        """Raise Corrupt unless ``files`` files have ended."""
        if self._ended != files:
            raise Corrupt(f"the segments end {self._ended} files and the manifest has {files}")


@dataclass
class Incoming:
    """One link's stream on its way into ``sink``.

    ``fetch`` gives a segment's stored bytes, proven to be the manifest's; ``open`` decrypts them;
    ``label`` names the link in errors.
    """

    stored: Stored
    compression: str
    fetch: Callable[[Segment], bytes]
    sink: Sink
    label: str
    open: Open = plainly
    _left: int = field(init=False)

    def __post_init__(self) -> None:
        self._left = len(self.stored.segments)

    @property
    def arrived(self) -> bool:
        """Whether every segment has been applied."""
        return self._left == 0

    def batches(self) -> Iterator[tuple[Segment, ...]]:
        """The segments in the pieces that one worker does: one by one, and what needs order as one piece."""
        first = self.stored.stream.ordered_from
        yield from ((segment,) for segment in self.stored.segments[:first])
        if first is not None:
            yield self.stored.segments[first:]

    def is_ordered(self, segment: Segment) -> bool:
        """Whether the segment must come after all earlier ones."""
        first = self.stored.stream.ordered_from
        return first is not None and segment.index >= first


@dataclass(frozen=True)
class _Space:
    """A worker's own memory on the way back."""

    raw: Buffer
    opened: Buffer
    bounce: Buffer


class Arrivals:
    """All links of a chain on their way in, the base first where they compete; a context manager.

    Fetches and applies in the team's threads while the caller does something else; ``wait_for``
    a link, then its files are whole.
    """

    def __init__(self, links: Sequence[Incoming], *, team: Team, watch: Watch) -> None:
        self._links = links
        self._watch = watch
        self._batches = ((link, batch) for link in links for batch in link.batches())
        segments = [segment for link in links for segment in link.stored.segments]
        self._largest = max(segment.raw_size for segment in segments)
        self._largest_stored = max(segment.stored_size for segment in segments)
        self._lock = threading.Lock()
        self._crew = Crew(team, workspace=self._space, take=self._take, work=self._work)

    def __enter__(self) -> Arrivals:
        self._crew.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crew.__exit__(kind, error, trace)

    def wait_for(self, number: int) -> None:
        """Wait until link ``number`` (base: 0) is whole; raises the first failure of any link."""
        link = self._links[number]
        self._crew.wait(self._watch, lambda: link.arrived)
        try:
            link.sink.check_complete(link.stored.stream.files)
        except Corrupt as error:
            raise Corrupt(f"{link.label}: {error.what}", hint=error.hint) from error

    def _space(self) -> _Space:
        return _Space(Buffer(max(1, self._largest)), opened=Buffer(max(1, self._largest_stored)), bounce=Buffer(BOUNCE))

    def _take(self, _: _Space) -> tuple[Incoming, tuple[Segment, ...]] | None:
        return next(self._batches, None)

    def _work(self, space: _Space, task: tuple[Incoming, tuple[Segment, ...]]) -> None:
        link, batch = task
        if link.is_ordered(batch[0]) and not self._alone(link, len(batch)):
            return
        for segment in batch:
            stored = link.fetch(segment)
            if self._crew.stopped():  # the target may be closed by now
                return
            self._apply(link, segment, stored, space)
            with self._lock:
                link._left -= 1
            self._watch.advance(segment.stored_size)
            self._crew.tell()

    def _alone(self, link: Incoming, own: int) -> bool:
        """Wait until nothing of the link is missing but ``own`` segments; False if the work is to end."""
        while link._left > own:
            if self._crew.stopped():
                return False
            self._crew.nap(LOOK)
        return True

    def _apply(self, link: Incoming, segment: Segment, stored: bytes, space: _Space) -> None:
        view = space.raw.view[: segment.raw_size]
        try:
            last = segment.index == len(link.stored.segments) - 1
            decode(link.open(segment.index, last, stored, space.opened.view), link.compression, view)
            link.sink.apply(view, space.bounce, ordered=link.is_ordered(segment))
        except Corrupt as error:
            raise Corrupt(f"segment {segment.index} of {link.label}: {error.what}", hint=error.hint) from error
