"""How much memory and time a large backup and its restore take.

A child process makes a stream of the wanted size, such as mariabackup would write: files of mixed sizes, two at a
time, in chunks of 10 MiB, half of it compressible, and the same bytes at every run.  One process backs it up into a
``file://`` store, a second one restores it, a third one compares the restored tree with what was generated.  Each is
a process of its own, so that their peaks are separate::

    python benchmarks/memory.py --scratch /var/tmp --gigabytes 10

``--scratch`` needs room for the stored and the restored bytes: about 1.6 times the size.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from guestagent.catalog import Catalog
from guestagent.manifest import Backup, Manifest
from guestagent.model import BackupId, Checkpoints, InstanceId, Kind, Lsn
from guestagent.progress import Watch
from guestagent.storage import open_storage
from guestagent.streams.chunks import MBSTREAM
from guestagent.streams.codec import encoder
from guestagent.streams.crew import Team
from guestagent.streams.extract import Extraction
from guestagent.streams.process import Child
from guestagent.streams.segments import Arrivals, Incoming, Outgoing, Stored, store

CHUNK = 10 << 20
PAGE = 16 << 10
TWO = 2
SIZES = (0, 1000, 96 << 10, 112 << 20, 7 << 20, (48 << 20) + 4096, 16 << 10, 1 << 30, 33, 80 << 20)
"""Bytes of one file after the other, again and again."""

INSTANCE = InstanceId("benchmark")
BACKUP = BackupId(str(uuid.UUID(int=1)))


# The stream


@dataclass(frozen=True)
class File:
    """A file of the stream: its number says what it holds."""

    number: int
    size: int

    @property
    def path(self) -> str:
        """Its path in the stream."""
        return f"db{self.number % 7}/table{self.number}.ibd"


def files(total: int) -> Iterator[File]:
    """Files of ``total`` bytes together."""
    for number, size in enumerate(itertools.cycle(SIZES)):
        yield File(number, min(size, total))
        total -= min(size, total)
        if not total:
            return


class Content:
    """What the files hold: pages that do not compress and, unless ``incompressible``, as many that do."""

    def __init__(self, *, incompressible: bool) -> None:
        noise = random.Random(0)
        pages = (
            noise.randbytes(PAGE) if incompressible or number % TWO else self._rows(number)
            for number in itertools.count()
        )
        self._pages = memoryview(b"".join(itertools.islice(pages, TWO * CHUNK // PAGE)))

    def chunks(self, file: File) -> Iterator[tuple[int, bytes | memoryview]]:
        """The offset and the bytes of each chunk of a file."""
        for offset in range(0, file.size, CHUNK):
            length = min(CHUNK, file.size - offset)
            start = (file.number * 131 + offset // CHUNK * 17) % (CHUNK // PAGE) * PAGE
            yield offset, self._pages[start : start + length]

    @staticmethod
    def _rows(number: int) -> bytes:
        rows = (b"%08d row of a table with a name and a value;" % (number * 1000 + row) for row in range(400))
        return b"".join(rows)[:PAGE].ljust(PAGE, b"\0")


def head(kind: bytes, file: File) -> bytes:
    """What every chunk begins with."""
    path = file.path.encode()
    return b"XBSTCK01\0" + kind + struct.pack("<I", len(path)) + path


def encoded(file: File, content: Content) -> Iterator[list[bytes | memoryview]]:
    """The chunks of a file, each as the pieces to write."""
    for offset, data in content.chunks(file):
        yield [head(b"P", file) + struct.pack("<QQI", len(data), offset, zlib.crc32(data)), data]
    yield [head(b"E", file)]


def generate(settings: Settings) -> None:
    """Write the stream to stdout, two files at a time."""
    content = settings.content()
    waiting = files(settings.total)
    for pair in iter(lambda: list(itertools.islice(waiting, TWO)), []):
        for turn in itertools.zip_longest(*(encoded(file, content) for file in pair)):
            write(piece for chunk in turn if chunk is not None for piece in chunk)


def write(pieces: Iterable[bytes | memoryview]) -> None:
    """All pieces to stdout."""
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(1, rest) :]


# The phases, each in a process of its own


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    total: int
    scratch: Path
    workers: int
    compression: str
    level: int
    segment_size: int
    incompressible: bool

    def content(self) -> Content:
        """What the files hold."""
        return Content(incompressible=self.incompressible)

    def catalog(self) -> Catalog:
        """The store."""
        return Catalog(f"file://{self.scratch}/store", instance=INSTANCE, open_storage=open_storage)

    def arguments(self) -> list[str]:
        """The same settings for a process of its own."""
        named = {
            "--gigabytes": self.total / 10**9,
            "--scratch": self.scratch,
            "--workers": self.workers,
            "--compression": self.compression,
            "--level": self.level,
            "--segment-size": self.segment_size,
        }
        flags = ["--incompressible"] if self.incompressible else []
        return [str(word) for pair in named.items() for word in pair] + flags


@dataclass(frozen=True)
class Figures:
    """What one phase took; memory in bytes."""

    raw: int
    stored: int
    seconds: float
    cpu: float
    max_rss: int
    high_water: int


@contextmanager
def measured(phase: str) -> Iterator[Callable[[Manifest], None]]:
    """Time what happens inside; the function that is handed in notes whose bytes moved, and prints the figures."""
    began, used = time.monotonic(), time.process_time()

    def done(manifest: Manifest) -> None:
        figures = Figures(
            raw=manifest.raw_size,
            stored=manifest.stored_size,
            seconds=time.monotonic() - began,
            cpu=time.process_time() - used,
            max_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            high_water=high_water(),
        )
        print(json.dumps({phase: vars(figures)}))

    yield done


def high_water() -> int:
    """VmHWM of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def backup(settings: Settings) -> None:
    """Back the stream up, and publish it."""
    watch = Watch()
    argv = [sys.executable, __file__, "generate", *settings.arguments()]
    with measured("backup") as done, settings.catalog() as catalog, Child(argv, stream=True) as child:

        def read(view: memoryview, stopped: Callable[[], bool]) -> int:
            count = child.read_into(view, stopped=stopped)
            if not count and not stopped():
                child.finish(watch)
            return count

        stored = store(
            read,
            Outgoing(MBSTREAM, settings.segment_size, encoder(settings.compression, settings.level)),
            put=lambda index, body, sha256: catalog.put_segment(INSTANCE, BACKUP, index, body, sha256),
            team=Team(settings.workers),
            watch=watch,
        )
        manifest = manifest_of(stored, settings)
        catalog.check_stored(manifest)
        done(catalog.publish(manifest).manifest)


def manifest_of(stored: Stored, settings: Settings) -> Manifest:
    """A manifest that says as much as a restore of the files needs."""
    now = datetime.now(tz=UTC)
    return Manifest(
        id=BACKUP,
        name="benchmark",
        description="",
        instance_id=INSTANCE,
        kind=Kind.FULL,
        parent=None,
        incarnation=str(uuid.UUID(int=0)),
        engine="mariabackup",
        tool_version="0.0.0",
        datastore="mariadb",
        server_version="0.0.0",
        lsn=Checkpoints(begin=Lsn(0), end=Lsn(0), last=Lsn(0)),
        binlog=None,
        compression=settings.compression,
        encryption=None,
        stream=stored.stream,
        started=now,
        finished=now,
        segments=stored.segments,
    )


def restore(settings: Settings) -> None:
    """Bring the files back."""
    target = settings.scratch / "restored"
    target.mkdir()
    with measured("restore") as done, settings.catalog() as catalog:
        link = catalog.get(BACKUP)
        with Extraction(target, dialect=MBSTREAM) as extraction:
            incoming = incoming_of(catalog, link, extraction)
            with Arrivals([incoming], team=Team(settings.workers), watch=Watch()) as arrivals:
                arrivals.wait_for(0)
        done(link.manifest)


def incoming_of(catalog: Catalog, link: Backup, extraction: Extraction) -> Incoming:
    """The way of the backup from the store to the files."""
    return Incoming(
        stored=Stored(link.manifest.segments, link.manifest.stream),
        compression=link.manifest.compression,
        fetch=lambda segment: catalog.fetch(link, segment),
        sink=extraction,
        label=f"backup {link.id}",
    )


def compare(settings: Settings) -> None:
    """Exit with 1 unless the restored tree is what was generated."""
    content, target = settings.content(), settings.scratch / "restored"
    expected = {file.path: digest_of(data for _, data in content.chunks(file)) for file in files(settings.total)}
    found = {str(path.relative_to(target)): digest_of(pieces_of(path)) for path in target.rglob("*.ibd")}
    if found != expected:
        sys.exit("the restored tree is not what was generated")
    print(json.dumps({"files": len(found)}))


def pieces_of(path: Path) -> Iterator[bytes]:
    """What a file holds."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def digest_of(pieces: Iterable[bytes | memoryview]) -> str:
    """SHA-256 over all pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


PHASES: dict[str, Callable[[Settings], None]] = {
    "backup": backup,
    "restore": restore,
    "compare": compare,
    "generate": generate,
}


# The table


def run(settings: Settings) -> None:
    """Run each phase in a process of its own and print what it took."""
    results: dict[str, dict[str, float]] = {}
    for phase in ("backup", "restore", "compare"):
        argv = [sys.executable, __file__, phase, *settings.arguments()]
        results |= json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    rows = [row(phase, results[phase]) for phase in ("backup", "restore")]
    print("phase       raw MB  stored MB  seconds    MB/s   CPU s  ru_maxrss MiB  VmHWM MiB")
    print("\n".join(rows))
    print(f"{results['files']} files, and each of them as it was generated")


def row(phase: str, took: dict[str, float]) -> str:
    """One line of the table."""
    raw, stored, seconds = took["raw"] / 1e6, took["stored"] / 1e6, took["seconds"]
    memory = f"{took['max_rss'] / 2**20:13.0f}  {took['high_water'] / 2**20:9.0f}"
    return f"{phase:8}  {raw:8.0f}  {stored:9.0f}  {seconds:7.1f}  {raw / seconds:6.0f}  {took['cpu']:6.1f}  {memory}"


def parse(words: list[str] | None = None) -> tuple[str, Settings]:
    """The phase and the settings of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", nargs="?", default="run", choices=["run", *PHASES], help="run does all but generate")
    parser.add_argument("--gigabytes", type=float, default=10, help="size of the stream's files, in 10^9 bytes")
    parser.add_argument("--scratch", type=Path, required=True, help="a directory for store and files; left as it was")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)) + 1)
    parser.add_argument("--compression", default="zstd", choices=["zstd", "none"])
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--segment-size", type=int, default=16 << 20, help="in bytes")
    parser.add_argument("--incompressible", action="store_true", help="no page compresses, as with encrypted tables")
    found = parser.parse_args(words)
    return found.phase, Settings(
        total=round(found.gigabytes * 10**9),
        scratch=found.scratch.resolve(),
        workers=found.workers,
        compression=found.compression,
        level=found.level,
        segment_size=found.segment_size,
        incompressible=found.incompressible,
    )


def main() -> None:
    """Run the phase that was asked for, or all of them in a scratch directory of their own."""
    phase, settings = parse()
    if phase in PHASES:
        PHASES[phase](settings)
        return
    with tempfile.TemporaryDirectory(prefix="guestagent-benchmark-", dir=settings.scratch) as scratch:
        run(Settings(**(vars(settings) | {"scratch": Path(scratch)})))


if __name__ == "__main__":
    main()
