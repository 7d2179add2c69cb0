"""A private, real OpenStack Swift with its S3 API: an object store that checks signatures and checksums.

Swift gets a virtual environment of its own (its dependencies are none of ours), built once in a cache
directory: ``$GUESTAGENT_TEST_CACHE``, or ``.cache`` in the checkout.  Proxy, account, container and object
server run as child processes on free ports of 127.0.0.1, with one-replica rings and all state below one
directory.  Every wait is bounded, and an error carries the ends of the servers' logs.

    with Swift(tmp_path) as swift:
        swift.make_bucket("backups")
        open_storage("s3://backups", s3=swift.settings())
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from guestagent.storage import S3Settings
from tests.servers.moto_s3 import make_bucket
from tests.servers.ports import free_ports, listens
from tests.servers.workplace import DISK

SWIFT = "swift==2.38.0"
ACCESS_KEY = "test:tester"
SECRET_KEY = "only-for-tests"
PATIENCE = 60.0
BUILD_PATIENCE = 600.0
LISTING_PAGE = 25
"""Keys in one page of a listing: small, so that a few objects already need several pages."""

_LEASH = ("setpriv", "--pdeathsig", "KILL")
"""A test run that is killed takes its servers along."""

_SERVERS = ("account", "container", "object", "proxy")

_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(("account", "container", "object"), sys.argv[2:]):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1,
                     "replication_ip": "127.0.0.1", "replication_port": int(port)})
    builder.rebalance()
    builder.get_ring().save(sys.argv[1] + "/" + name + ".ring.gz")
"""

_COMMON = """
[DEFAULT]
swift_dir = {place}
devices = {place}
mount_check = false
disable_fallocate = true
user = {user}
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
log_level = WARNING
conn_timeout = 10
node_timeout = 60
container_update_timeout = 60
"""

_BACKEND = """
[pipeline:main]
pipeline = {name}-server

[app:{name}-server]
use = egg:swift#{name}
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors proxy-logging cache listing_formats bulk tempurl s3api tempauth slo dlo versioned_writes \
symlink proxy-logging proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 10
node_timeout = 60

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:proxy-logging]
use = egg:swift#proxy_logging

[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:bulk]
use = egg:swift#bulk

[filter:tempurl]
use = egg:swift#tempurl

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
auth_pipeline_check = false
max_bucket_listing = {page}

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo

[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true

[filter:symlink]
use = egg:swift#symlink
"""


class Swift:
    """One store with its four servers; a context manager.  ``place`` is an empty directory of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.bin = venv() / "bin"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = dict(zip(_SERVERS, free_ports(len(_SERVERS)), strict=True))

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['proxy']}"

    def settings(self, **changes: Any) -> S3Settings:
        settings = S3Settings(
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            max_attempts=2,
        )
        return replace(settings, **changes)

    def make_bucket(self, name: str) -> None:
        make_bucket(self.endpoint_url, name, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._write_state()
            self.start()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the four servers and wait until each listens."""
        for name in _SERVERS:
            with (self.place / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    [*_LEASH, str(self.bin / f"swift-{name}-server"), str(self.place / f"{name}.conf"), "--verbose"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.place,
                    env={**os.environ, "PYTHONWARNINGS": "ignore"},
                )
        deadline = time.monotonic() + PATIENCE
        while not all(listens(port) for port in self._ports.values()):
            self._check_alive(deadline)
            time.sleep(0.05)

    def stop(self) -> None:
        """End the servers that this object started, by their process ids."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()
            process.wait(timeout=5)
        self._processes.clear()

    def log(self) -> str:
        """The ends of all four logs."""
        logs = ((name, self.place / f"{name}.log") for name in _SERVERS)
        return "\n".join(f"--- {name}\n{path.read_text(errors='replace')[-2000:]}" for name, path in logs)

    def _check_alive(self, deadline: float) -> None:
        gone = [name for name, process in self._processes.items() if process.poll() is not None]
        if gone or time.monotonic() > deadline:
            raise RuntimeError(f"swift does not start ({', '.join(gone) or 'too slow'}):\n{self.log()}")

    def _write_state(self) -> None:
        (self.place / "d1").mkdir(parents=True)
        (self.place / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = guestagent\n")
        for name, port in self._ports.items():
            common = _COMMON.format(place=self.place, user=getpass.getuser(), port=port)
            own = _BACKEND.format(name=name) if name != "proxy" else _PROXY.format(secret=SECRET_KEY, page=LISTING_PAGE)
            (self.place / f"{name}.conf").write_text(common + own)
        ports = [str(self._ports[name]) for name in _SERVERS[:3]]
        run([str(self.bin / "python"), "-c", _RINGS, str(self.place), *ports], patience=PATIENCE)


@functools.cache
def shared_swift() -> Swift:
    """One running store for the whole test run, ended with it; each test makes buckets of its own."""
    place = Path(tempfile.mkdtemp(prefix="ga-swift-", dir=DISK))  # in memory no attributes, before Linux 6.6
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    swift = Swift(place)
    atexit.register(swift.stop)
    return swift.__enter__()


def venv() -> Path:
    """The directory of Swift's virtual environment, built if it is not there yet (one builder at a time)."""
    cache = Path(os.environ.get("GUESTAGENT_TEST_CACHE") or Path(__file__).resolve().parents[2] / ".cache")
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / "swift-venv"
    stamp = place / "built"
    wanted = f"{SWIFT} {sys.version_info[:2]} {place}"
    with locked(cache / "swift-venv.lock"):
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(place, ignore_errors=True)
            run([sys.executable, "-m", "venv", str(place)], patience=BUILD_PATIENCE)
            run([str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", SWIFT], patience=BUILD_PATIENCE)
            stamp.write_text(wanted)
    return place


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file, waiting as long as a build may take."""
    deadline = time.monotonic() + BUILD_PATIENCE
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield


def run(argv: list[str], *, patience: float) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=patience, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv[:4]} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
