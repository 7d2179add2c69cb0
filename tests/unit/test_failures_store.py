"""Failures of docs/failures.rst that no room's own tests have: what happens to a store while a story is told."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from guestagent.catalog import Catalog
from guestagent.chain import Chain
from guestagent.datadir import incarnation
from guestagent.errors import Corrupt, Refused, StorageDenied
from guestagent.manifest import Manifest, Segment, digest
from guestagent.model import Lsn
from guestagent.operations.verify import verify
from guestagent.progress import Watch
from guestagent.storage import ObjectInfo, S3Settings, Storage, open_storage
from guestagent.storage.s3 import S3Storage
from guestagent.streams.extract import Extraction
from tests.fakes.bench import Bench, data_in
from tests.fakes.stores import Through
from tests.manifests import STARTED, a_manifest

Unchanged = Callable[[], Callable[[], None]]

ROOT = Path(__file__).parents[2]
MANY = 100_000
MIB = 1 << 20


# A3


def test_an_extraction_that_dies_is_the_cause(
    bench: Bench, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise MemoryError("no memory for a piece")

    full, _ = bench.chain(1)[0]
    check = unchanged()
    monkeypatch.setattr(Extraction, "apply", dies)
    with pytest.raises(MemoryError, match="no memory for a piece"):
        bench.restore(full, replace=True)
    check()
    assert not bench.runs("prepare")


# B2


def test_a_server_far_ahead_of_a_parent_that_it_does_not_know_is_refused(bench: Bench, unchanged: Unchanged) -> None:
    full = bench.backup()
    (bench.datadir / incarnation.FILE).unlink()  # as where a server was created anew, and has written more since
    bench.server.lsn = Lsn(10**15)
    check = unchanged()
    with pytest.raises(Refused, match=f"no incremental on {full.id}: .*created anew.*; take a full backup"):
        bench.backup(full)
    check()
    assert len(bench.runs("backup")) == 1


# B6


class Gone(Through):
    """As soon as a segment of the last link is asked for, somebody elsewhere deletes the backup."""

    def __init__(self, inner: Storage, suffix: str, act: Callable[[], None]) -> None:
        super().__init__(inner)
        self._suffix = suffix
        self._act = act

    def get(self, key: str, *, limit: int) -> bytes:
        if key.endswith(self._suffix):
            self._act()
        return super().get(key, limit=limit)


def test_a_backup_that_is_deleted_while_it_is_restored_costs_nothing(bench: Bench) -> None:
    tip, _ = bench.chain(2)[-1]
    before = data_in(bench.datadir)
    elsewhere = bench.catalog()
    bench.wrap = lambda inner: Gone(inner, f"{tip.id}/data/00000001", lambda: elsewhere.delete(tip))
    with pytest.raises(Corrupt, match=rf"{tip.id}/data/0000000\d is missing; the backup cannot be restored"):
        bench.restore(tip, replace=True)
    assert (data_in(bench.datadir), bench.server.running) == (before, True)
    bench.check_no_child()
    bench.check_scratch()


# C1


class _Breaks(BaseHTTPRequestHandler):
    """Resets the connection at 60 % of the first body that it is sent, and takes the second one."""

    protocol_version = "HTTP/1.1"
    bodies: list[bytes]

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        first = not self.bodies
        self.bodies.append(self.rfile.read(size * 6 // 10 if first else size))
        self.close_connection = True
        if first:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            return
        self.send_response_only(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at the bodies instead."""


class _Quiet(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that was reset is what the test is about."""


@pytest.fixture
def breaking() -> Iterator[tuple[S3Storage, list[bytes]]]:
    bodies: list[bytes] = []
    with _Quiet(("127.0.0.1", 0), type("Handler", (_Breaks,), {"bodies": bodies})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        settings = S3Settings(
            endpoint_url=f"http://127.0.0.1:{server.server_address[1]}",
            region_name="us-east-1",
            access_key_id="AKIDTEST",
            secret_access_key="never-to-be-seen",
            max_attempts=3,
            connect_timeout=5,
            read_timeout=5,
        )
        store = S3Storage("bucket", prefix="", settings=settings)
        yield store, bodies
        store.close()
        server.shutdown()
        thread.join(timeout=5)


def test_a_connection_that_breaks_inside_a_put_is_made_anew(breaking: tuple[S3Storage, list[bytes]]) -> None:
    store, bodies = breaking
    body = os.urandom(MIB) * 8
    store.put("key", body, sha256=digest(body))
    assert [len(sent) for sent in bodies] == [len(body) * 6 // 10, len(body)]
    assert bodies[1] == body


# C2


class Expires(Through):
    """Its credentials last for so many puts, and nothing at all is allowed afterwards."""

    def __init__(self, inner: Storage, puts: int) -> None:
        super().__init__(inner)
        self._left = puts

    def _check(self) -> None:
        if self._left <= 0:
            raise StorageDenied("the credentials have expired", hint="renew them")

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        self._check()
        self._left -= 1
        super().put(key, body, sha256=sha256)

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        self._check()
        super().put_new(key, body)

    def size(self, key: str) -> int:
        self._check()
        return super().size(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._check()
        return super().list(prefix)


@pytest.mark.parametrize("puts", [1, 3], ids=["amid the segments", "before the manifest"])
def test_credentials_that_expire_in_the_middle_of_a_backup(bench: Bench, puts: int) -> None:
    assert len(bench.backup().manifest.segments) == 3
    bench.wrap = lambda inner: Expires(inner, puts)
    with pytest.raises(StorageDenied, match="the credentials have expired; renew them"):
        bench.backup()
    bench.wrap = lambda inner: inner
    (known,) = bench.catalog().backups()
    assert {name.split("/")[1] for name in bench.objects()} > {known.id}  # which nobody was allowed to remove
    bench.check_no_child()
    taken = bench.backup(known)  # renewed: what was left is found, and swept
    assert {name.split("/")[1] for name in bench.objects()} == {known.id, taken.id}
    assert len(verify(bench.host(), taken.id, Watch())) == 2


# C4


class Listing(Through):
    """Lists the segments of a manifest as if they were stored."""

    def __init__(self, inner: Storage, manifest: Manifest) -> None:
        super().__init__(inner)
        self._manifest = manifest

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for segment in self._manifest.segments:
            yield ObjectInfo(f"{prefix}{segment.index:08d}", segment.stored_size, STARTED)


def test_a_backup_of_a_hundred_thousand_segments_is_published_and_found(tmp_path: Path) -> None:
    sha256 = digest(b"0")
    made = a_manifest(segments=tuple(Segment(number, 4000, 1000, sha256) for number in range(MANY)))
    lying = replace(made, segments=(*made.segments[:-1], replace(made.segments[-1], stored_size=999)))
    with Catalog(
        f"file://{tmp_path}",
        instance=made.instance_id,
        open_storage=lambda root: Listing(open_storage(root), made),
    ) as catalog:
        catalog.check_stored(made)
        with pytest.raises(Corrupt, match="data/00099999 should have 999 bytes and has 1000"):
            catalog.check_stored(lying)
        published = catalog.publish(made)
        found = catalog.get(made.id)
        assert (found, found.manifest.raw_size) == (published, MANY * 4000)
        assert catalog.chain(found) == Chain((found,))


# C6

_STORES = """
import itertools, sys
from pathlib import Path
from guestagent.progress import Watch
from guestagent.streams.codec import encoder
from guestagent.streams.crew import Team
from guestagent.streams.segments import Outgoing, store
from tests import wire

def stream(mebibytes):
    data = bytes(range(256)) * 4096
    for number in range(mebibytes):
        yield wire.payload(b"t.ibd", data, number << 20)
    yield wire.end(b"t.ibd")

waiting, rest = stream(int(sys.argv[1])), b""
def read(view, stopped):
    global rest
    rest = rest or next(waiting, b"")
    count = min(len(view), len(rest))
    view[:count], rest = rest[:count], rest[count:]
    return count

stored = store(
    read, Outgoing(dialect="mbstream", segment_size=1 << 20, encode=encoder("none", 1)),
    put=lambda index, body, sha256: None, team=Team(2), watch=Watch(),
)
assert sum(segment.raw_size for segment in stored.segments) > int(sys.argv[1]) << 20
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


def test_memory_does_not_grow_with_the_backup() -> None:
    def peak(mebibytes: int) -> int:
        words = [sys.executable, "-c", _STORES, str(mebibytes)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout) << 10

    assert peak(128) < peak(16) + 16 * MIB
