"""Where chains are made: one server and one store, new for each chain, a tool and a store that may go wrong."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from guestagent.catalog import Catalog
from guestagent.errors import StorageError
from guestagent.operations.host import Host
from guestagent.progress import Cancel, Silent, Watch
from guestagent.storage import Storage, open_storage
from tests.fakes.stores import Acts, LosesAnswers, Through
from tests.integration.running import tool_on_path, tools
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace
from tests.torture import matrix_checker as judge
from tests.torture.chains_tables import OPTIONS

KEY = bytes(range(32))

BROKEN_TOOLS = {
    "does nothing": "exit 1",
    "ends halfway": '"$real" "$@" | head -c 2000000; exit 1',
    "completes and exits with 3": '"$real" "$@"; exit 3',
    "does not say that it completed": '{ "$real" "$@" 2>&1 >&3 3>&- | grep -v "completed OK" >&2; } 3>&1; exit 0',
    "is killed": "kill -9 $$",
}
"""What a tool does instead of its work."""


@dataclass(frozen=True)
class Flavour:
    """How a chain's guest is configured."""

    compression: str = "zstd"
    sealed: bool = False
    proven: bool = False
    """Whether what was stored is read back before it counts."""
    aside: bool = False
    """Whether links are fetched into a directory of their own."""

    def settings(self, place: Path) -> str:
        """The rest of a configuration file, from the middle of [storage] on; makes what it names."""
        lines = ["verify = bytes"] * self.proven
        lines.append(f"[stream]\ncompression = {self.compression}\nsegment_size = 1M")
        if self.sealed:
            key = place / "key"
            key.write_text(base64.b64encode(KEY).decode() + "\n")
            key.chmod(0o600)
            lines.append(f"[encryption]\nkey_file = {key}")
        if self.aside:
            (place / "aside").mkdir()
            lines.append(f"[restore]\nwork_dir = {place / 'aside'}")
        return "\n".join([*lines, ""])


class CancelsAt(Silent):
    """Asks for the end of a job as soon as it begins a phase of that name; of the prepares, that of this link."""

    def __init__(self, name: str, link: int = 1) -> None:
        self._name, self._link = name, link
        self.cancel = Cancel()

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        """Look whether this is the one."""
        if name == self._name and (name != "prepare" or link >= min(self._link, links)):
            self.cancel.set("as the test wanted")

    def watch(self) -> Watch:
        """A job's, with it."""
        return Watch(self, cancel=self.cancel)


class FailsGets(Through):
    """Fails from the get of that number on, of segments alone."""

    def __init__(self, inner: Storage, number: int) -> None:
        super().__init__(inner)
        self._left = number

    def get(self, key: str, *, limit: int) -> bytes:
        if "/data/" in key:
            self._left -= 1
            if self._left <= 0:
                raise StorageError("503 slow down", hint="wait")
        return super().get(key, limit=limit)


def fails_puts(inner: Storage, number: int) -> Storage:
    """Fails the put of that number, and all of those after it."""
    left = [number]

    def act(method: str, _: str) -> None:
        left[0] -= method.startswith("put")
        if left[0] <= 0 and method.startswith("put"):
            raise StorageError("503 slow down", hint="wait")

    return Acts(inner, act)


def fails_manifest(inner: Storage) -> Storage:
    """Fails the put of a manifest."""

    def act(method: str, key: str) -> None:
        if method == "put_new" and key.endswith("/manifest.json"):
            raise StorageError("503 slow down", hint="wait")

    return Acts(inner, act)


def loses_answers(inner: Storage) -> Storage:
    """Stores the manifest, and says that it failed."""
    return LosesAnswers(inner)


class Stage:
    """What one process plays its chains on."""

    def __init__(self, place: Path, server: MariaDB) -> None:
        self.server = server
        self._top = place
        self._number = 0
        self.place = place / "none yet"
        self.flavour = Flavour()
        self.guest: Guest

    def begin(self, flavour: Flavour) -> None:
        """A new datadir, an empty store, nothing of the chain before."""
        shutil.rmtree(self.place, ignore_errors=True)
        self._number += 1
        self.place = self._top / f"c{self._number}"
        self.place.mkdir()
        self.place.chmod(0o755)
        self.flavour = flavour
        self.guest = self._guest("guest1", self.server)
        self.wipe()

    def wipe(self) -> None:
        """The server again as its installation made it, with the account for backups."""
        self.server.kill()
        self.server.install()
        self.server.start()
        self.server.query("CREATE DATABASE app")
        self.guest.account()

    def _guest(self, name: str, server: MariaDB) -> Guest:
        place = self.place / name
        place.mkdir()
        return Guest(name, server, place, f"file://{self.place}/store", settings=self.flavour.settings(place))

    @contextmanager
    def host(self, wrapped: Callable[[Storage], Storage] | None = None, guest: Guest | None = None) -> Iterator[Host]:
        """The guest's host, on a store that ``wrapped`` gives."""
        guest = guest or self.guest
        host = guest.host()
        with host.catalog:
            if wrapped is None:
                yield host
                return
            through = wrapped
            catalog = Catalog(
                guest.url,
                instance=host.instance,
                open_storage=lambda url: through(open_storage(url)),
                keys=host.keys,
            )
            with catalog:
                yield replace(host, catalog=catalog)

    @contextmanager
    def tool(self, script: str) -> Iterator[None]:
        """The tool does this instead, as a script, whose ``$real`` may be another such one."""
        before = os.environ["PATH"]
        own = Path(tempfile.mkdtemp(prefix="tool-", dir=self.place))
        with tool_on_path(own, script) as environment:
            os.environ.update(environment)
            try:
                yield
            finally:
                os.environ["PATH"] = before
        own.rmdir()

    def tool_of_version(self, version: str) -> ExitStack:
        """The tool says that it is of this version, and works as ever."""
        stack = ExitStack()
        says = f'"$real" --version 2>&1 | sed -E "s/10[.][0-9]+[.][0-9]+/{version}/g"'
        stack.enter_context(self.tool(f'case "$*" in *--version*) {says};; *) exec "$real" "$@";; esac'))
        return stack

    def broken_tool(self, how: str, *, at: str) -> ExitStack:
        """The tool goes wrong where ``at`` is among its words."""
        stack = ExitStack()
        stack.enter_context(self.tool(f'case "$*" in *{at}*) {BROKEN_TOOLS[how]};; *) exec "$real" "$@";; esac'))
        return stack

    @contextmanager
    def beside(self, datadir: Path) -> Iterator[MariaDB]:
        """Another server, on a directory that was restored; the directory goes with it."""
        try:
            with MariaDB(datadir=datadir, options=OPTIONS) as server:
                yield server
        finally:
            shutil.rmtree(datadir, ignore_errors=True)

    @contextmanager
    def other_guest(self) -> Iterator[Guest]:
        """Another instance with the same store, without any data."""
        datadir = self.place / "guest2-data"
        try:
            with MariaDB(datadir=datadir, options=OPTIONS, running=False) as server:
                yield self._guest("guest2", server)
        finally:
            shutil.rmtree(datadir, ignore_errors=True)
            shutil.rmtree(self.place / "guest2", ignore_errors=True)

    # -- what lies around

    @property
    def objects(self) -> dict[str, int]:
        """What lies in the store: names and sizes."""
        root = self.place / "store"
        return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}

    def phantoms(self) -> list[str]:
        """What an independent reader has against the backups that the store shows."""
        return judge.phantoms(judge.tree(self.place / "store"), KEY if self.flavour.sealed else None)

    def left(self) -> list[str]:
        """Scratch and processes that nobody needs any more."""
        scratch = [str(path) for path in self.guest.state.glob("scratch/*")]
        aside = [str(path) for path in (self.guest.place / "aside").glob("*")]
        processes = [*tools(self.place).values(), *tools(self.server.datadir).values()]
        hidden = [str(path) for path in self.server.datadir.glob("#sql-guestagent/*")]
        return scratch + aside + processes + hidden


@contextmanager
def stage() -> Iterator[Stage]:
    """A stage, with its server; in memory where that can be."""
    with workplace() as place, MariaDB(options=OPTIONS, running=False) as server:
        yield Stage(place, server)
