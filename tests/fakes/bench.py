"""A workbench for stories: the fake tools on PATH, a fake server, a store in a directory, and proofs of cleanliness.

The tool streams what stands in ``source``; the server's own datadir stands apart, since a real tool would not copy
what the agent keeps in it.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guestagent.catalog import Catalog
from guestagent.datadir import incarnation
from guestagent.engines import Connection
from guestagent.keys import KeyRing
from guestagent.manifest import Backup
from guestagent.model import BackupId, InstanceId, backup_id
from guestagent.operations import checkpoint, doctor, plan, preflight, service, sockets
from guestagent.operations.backup import BackupRequest, backup
from guestagent.operations.host import DatabaseSettings, Host, RestoreSettings, StreamSettings
from guestagent.operations.plan import RestoreRequest
from guestagent.operations.restore import Restored, restore
from guestagent.progress import Cancel, Watch
from guestagent.storage import Storage, open_storage
from guestagent.storage.file import TEMPORARY
from tests.fakes.server import Server

FAKES = Path(__file__).parent
SECRET = "correct horse battery staple"
INSTANCE = InstanceId("guest1")
USER = pwd.getpwuid(os.geteuid()).pw_name
SEGMENT = 16_000
CHUNK = 16384
BLOCK = 4096
PATIENCE = 50.0
"""Seconds within which whatever must end has to end: many, since the machine may be busy, and few beside a hang."""

_ANOTHER = """
import os, signal, sys
from pathlib import Path
import pytest
from guestagent.jobs.lock import only_job
from tests.fakes.bench import *
from tests.fakes.stores import *
bench = Bench(Path(sys.argv[1]), pytest.MonkeyPatch(), existing=True)
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""

Tree = dict[str, bytes]

BEFORE: Tree = {"ibdata1": b"what was there before", "aria_log_control": b"aria", "shop/old.ibd": b"old rows"}
"""What a running server's datadir holds."""
_OURS = ("backup-my.cnf", "ib_logfile0", "xtrabackup_", "mariadb_backup_", ".guestagent-incarnation", "#sql-guestagent")


def write_tree(top: Path, tree: Tree) -> None:
    """Make ``top`` hold exactly ``tree``."""
    for path in sorted(top.rglob("*"), reverse=True) if top.exists() else ():
        path.rmdir() if path.is_dir() else path.unlink()
    for name, data in tree.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)


def read_tree(top: Path) -> Tree:
    """Every file below ``top``."""
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def data_in(top: Path) -> Tree:
    """Every file below ``top`` that is data: nothing of the tool's, nor of ours."""
    return {name: data for name, data in read_tree(top).items() if not name.startswith(_OURS)}


def living(groups: Iterable[int]) -> set[int]:
    """Those of some process groups that have a member; the dead that nobody has reaped do not count."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, group = stat.rpartition(")")[2].split()[:3]
        if state != "Z":
            found.add(int(group))
    return found.intersection(groups)


class CancelAt:
    """A progress that asks for a stop as the ``number``th phase of that name begins, or at its first byte."""

    def __init__(self, phase: str, *, number: int = 1, at_byte: bool = False) -> None:
        self.cancel = Cancel()
        self.seen: list[str] = []
        self._left = number
        self._wanted = phase
        self._at_byte = at_byte

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        self.seen.append(name)
        self._left -= name == self._wanted
        if not self._at_byte:
            self._act()

    def advance(self, count: int) -> None:
        if self._at_byte and count:
            self._act()

    def _act(self) -> None:
        if self.seen[-1] == self._wanted and self._left == 0:
            self.cancel.set("the test says so")

    def watch(self) -> Watch:
        return Watch(self, cancel=self.cancel)


class Told:
    """A progress that remembers the phases, and how many bytes each moved."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None]] = []
        self.moved: dict[str, int] = {}

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        self.phases.append((name if links == 1 else f"{name} {link}/{links}", total))

    def advance(self, count: int) -> None:
        name = self.phases[-1][0]
        self.moved[name] = self.moved.get(name, 0) + count


class Bench:
    """Everything that a story needs, below ``top``; ``close`` it.  ``existing``: another process has set the scene."""

    def __init__(
        self, top: Path, patch: pytest.MonkeyPatch, *, datastore: str = "mariadb", existing: bool = False
    ) -> None:
        self.top = top
        self._patch = patch
        self.source = top / "source"
        self.store = top / "store"
        self.state = top / "state"
        self.log = top / "tool.log"
        self.datadir = top / "datadir"
        self.server = Server(top / "server", self.datadir, datastore=datastore)
        self.wrap: Callable[[Storage], Storage] = lambda inner: inner
        self.instance: InstanceId | None = INSTANCE
        self.keys: KeyRing | None = None
        self._hosts: list[Host] = []
        patch.setenv("PATH", os.pathsep.join([str(FAKES), os.path.dirname(sys.executable), os.environ["PATH"]]))
        patch.setattr(os, "fsync", lambda _: None)  # whether we sync has tests of its own
        self.tool(DATADIR=str(self.source), LOG=str(self.log), CHUNK=str(CHUNK))
        for module in (preflight, doctor, service, checkpoint):
            patch.setattr(module, "connect", self.server.connect)
        patch.setattr(sockets, "BOOTED", top / "no-systemd")
        for name in ("LEAVES", "TURNS_UP"):  # how long a server is waited for has tests of its own
            patch.setattr(service, name, 0.0)
        for module in (plan, service):
            patch.setattr(module, "answers", self.server.answers)
        if not existing:
            write_tree(self.datadir, BEFORE)
            self.write("first")
            self.server.run()

    # Setting the scene

    def tool(self, **knobs: str) -> None:
        """Set FAKE_TOOL_* variables."""
        for name, value in knobs.items():
            self._patch.setenv(f"FAKE_TOOL_{name}", value)

    def write(self, words: str) -> Tree:
        """Write to the database, so to say: the source's content is another one then."""
        tree = {
            "ibdata1": f"system {words} ".encode() * 500,
            "aria_log_control": words.encode(),
            "mysql/user.MYD": words.encode() * 10,
            "shop/orders.ibd": f"{words} row".encode() * 3000,
            "shop/sparse.ibd": words.encode().ljust(BLOCK) + bytes(3 * BLOCK) + b"y" * BLOCK + bytes(BLOCK) + b"end",
            f"shop/{words}.ibd": b"a table of its own",
            "shop/naïve name@0024.frm": b"frm",
        }
        write_tree(self.source, tree)
        return tree

    def host(self, **changes: Any) -> Host:
        """The host; keywords go to Host, or to its settings where they know the name."""
        host = Host(
            instance=self.instance,
            catalog=self.catalog(),
            state_dir=self.state,
            database=DatabaseSettings(
                connection=Connection(socket="/nowhere", user="backup", password=SECRET),
                datadir=self.datadir,
                os_user=USER,
                start_command=self.server.command("start"),
                stop_command=self.server.command("stop"),
                start_timeout=PATIENCE,
            ),
            stream=StreamSettings(segment_size=SEGMENT, workers=2),
            restore=RestoreSettings(use_memory=1 << 20, download_workers=2),
        )
        for name, value in changes.items():
            part = next((part for part in ("database", "stream", "restore") if hasattr(getattr(host, part), name)), "")
            host = replace(host, **({part: replace(getattr(host, part), **{name: value})} if part else {name: value}))
        self._hosts.append(host)
        return host

    def catalog(self, *, instance: InstanceId | None = None) -> Catalog:
        """A catalog of the store, through whatever wraps it at the time."""
        return Catalog(
            f"file://{self.store}",
            instance=instance or self.instance,
            open_storage=lambda root: self.wrap(open_storage(root)),
            keys=self.keys,
        )

    def close(self) -> None:
        """End the server and close the stores."""
        self.server.end()
        for host in self._hosts:
            host.catalog.__exit__()

    # Telling stories

    def request(self, parent: Backup | str | None = None, **fields: Any) -> BackupRequest:
        """A request for a new backup."""
        on = parent.id if isinstance(parent, Backup) else parent
        return BackupRequest(**({"id": new_id(), "name": "test", "parent": on} | fields))

    def backup(self, parent: Backup | str | None = None, *, watch: Watch | None = None, **changes: Any) -> Backup:
        """Take a backup; ``id`` is the request's, other keywords are as in ``host``."""
        wanted = changes.pop("id", new_id())
        return backup(self.host(**changes), self.request(parent, id=wanted), watch or Watch())

    def chain(self, links: int) -> list[tuple[Backup, Tree]]:
        """A chain of that many backups, with writes before each, and what each must restore to."""
        found: list[tuple[Backup, Tree]] = []
        for number in range(links):
            tree = self.write(f"write {number}")
            found.append((self.backup(found[-1][0] if found else None), tree))
        return found

    def restore(self, source: Backup | str, *, watch: Watch | None = None, **options: Any) -> Restored:
        """Restore; ``datadir``, ``replace`` and ``start`` are the request's, other keywords are as in ``host``."""
        wanted = source.id if isinstance(source, Backup) else source
        known = ("datadir", "replace", "start", "checksum", "accept_unencrypted")
        mine = {name: options.pop(name) for name in known if name in options}
        return restore(self.host(**options), RestoreRequest(wanted, **mine), watch or Watch())

    def told_by_another(self, story: str) -> subprocess.Popen[bytes]:
        """Another process on the same bench, that runs some lines of Python; it is the caller's to end."""
        return subprocess.Popen([sys.executable, "-c", _ANOTHER + story, str(self.top)], cwd=FAKES.parents[1])

    # Looking

    def objects(self) -> dict[str, bytes]:
        """Every object in the store; not what a killed put left, which the driver hides and removes in time."""
        return {name: data for name, data in read_tree(self.store).items() if TEMPORARY not in name}

    def object(self, backup: Backup, name: str) -> Path:
        """The file of one of a backup's objects, such as ``manifest.json``."""
        return self.store / backup.manifest.instance_id / backup.id / name

    def runs(self, verb: str = "") -> list[dict[str, Any]]:
        """Every run of a tool so far: pid, argv, option_file, option_mode; of those with ``verb`` in their argv."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [run for run in map(json.loads, lines) if not verb or f"--{verb}" in run["argv"]]

    def check_no_child(self) -> None:
        """No process that a story started lives."""
        limit = time.monotonic() + PATIENCE
        while living(run["pid"] for run in self.runs()):
            assert time.monotonic() < limit, "a tool is still alive"
            time.sleep(0.02)

    def check_no_secret(self, *texts: str) -> None:
        """The password is in none of the texts, in no argv, no object and no file that stayed."""
        assert not [text for text in texts if SECRET in text]
        assert not [run for run in self.runs() if SECRET in " ".join(run["argv"])]
        for tree in (self.store, self.state):
            assert not [
                name for name, data in (read_tree(tree) if tree.exists() else {}).items() if SECRET.encode() in data
            ]

    def check_scratch(self) -> None:
        """No scratch directory stayed."""
        assert not list(self.state.glob("scratch/*"))


def when(condition: Callable[[], bool], act: Callable[[], object]) -> None:
    """Do something as soon as something is true, while the story goes on."""

    def wait() -> None:
        limit = time.monotonic() + PATIENCE
        while not condition() and time.monotonic() < limit:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def settled() -> None:
    """Wait until the threads of every crew have come back."""
    limit = time.monotonic() + PATIENCE
    while any(thread.name.startswith("crew-") for thread in threading.enumerate()):
        assert time.monotonic() < limit
        time.sleep(0.02)


def new_id() -> BackupId:
    """An id that nobody has."""
    return backup_id(str(uuid.uuid4()))


def staying(bench: Bench, caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
    """Look now; the function that comes back fails unless all is as it was: store, datadir, and no trace elsewhere.

    The datadir's incarnation may have learned of a backup that was not published: no harm.
    """
    objects, datadir = bench.objects(), _apart(read_tree(bench.datadir))
    running = bench.server.running

    def check() -> None:
        assert bench.objects() == objects
        assert _apart(read_tree(bench.datadir)) == datadir
        assert bench.server.running == running
        bench.check_no_child()
        bench.check_scratch()
        bench.check_no_secret(caplog.text)

    return check


def _apart(tree: Tree) -> Tree:
    return {name: data for name, data in tree.items() if name != incarnation.FILE}
