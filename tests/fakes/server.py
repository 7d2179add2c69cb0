"""A server that the stories start, stop and ask: fake-server is its process, and this its face.

``Server`` stands in for guestagent.database where operations call ``connect`` and ``answers``: facts come from
fields that a test sets, and it answers only while its process runs on the datadir.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from guestagent.datadir.place import server_running
from guestagent.engines import Connection
from guestagent.errors import DatabaseError
from guestagent.model import Lsn, ServerFacts, Version

PROGRAM = str(Path(__file__).with_name("fake-server"))
VERSIONS = {"mariadb": "10.11.19-MariaDB-log", "mysql": "8.0.35"}
A_WHILE = 0.02
"""Seconds that a fruitless attempt to reach the server takes."""


@dataclass
class Server:
    """One server on one datadir.

    ``mute_on``: it does not answer while ibdata1 holds these bytes.  ``loud``: what runs in it by itself, and
    ``stubborn`` says that it goes on when told to stop.  ``checkpoints`` tells of those that were asked for;
    ``at_checkpoint`` is what happens then.
    """

    place: Path
    datadir: Path
    datastore: str = "mariadb"
    version_text: str = ""
    lsn: int = 10**9
    grants: frozenset[str] = frozenset({"ALL PRIVILEGES"})
    mute_on: bytes | None = None
    always_answers: bool = False
    denied: bool = False
    loud: list[str] = field(default_factory=list)
    stubborn: bool = False
    checkpoints: list[str] = field(default_factory=list)
    makes_checkpoints: bool = True
    at_checkpoint: Callable[[], object] = int

    def __post_init__(self) -> None:
        self.place.mkdir(exist_ok=True)
        self.version_text = self.version_text or VERSIONS[self.datastore]

    # The process

    def command(self, verb: str) -> tuple[str, ...]:
        """The words of [database] start_command or stop_command."""
        return PROGRAM, verb, str(self.place), str(self.datadir)

    def knob(self, name: str, value: str = "") -> None:
        """Turn a knob of fake-server."""
        (self.place / name).write_text(value)

    def calls(self) -> list[str]:
        """The commands that were given so far."""
        path = self.place / "calls"
        return path.read_text().split() if path.exists() else []

    def options(self) -> str:
        """What the process was started with in MYSQLD_OPTS."""
        return (self.place / "options").read_text()

    @property
    def up(self) -> bool:
        """Whether its start has come to an end."""
        return (self.place / "pid").exists()

    @property
    def running(self) -> bool:
        """Whether the process holds the datadir's files."""
        return server_running(self.datadir)

    def run(self) -> None:
        """Start it as an operator would, before the story begins."""
        assert os.spawnv(os.P_WAIT, PROGRAM, self.command("start")) == 0
        (self.place / "calls").unlink()

    def halt(self) -> None:
        """Stop it as an operator would, before the story begins."""
        assert os.spawnv(os.P_WAIT, PROGRAM, self.command("stop")) == 0
        (self.place / "calls").unlink()

    def end(self) -> None:
        """Kill it, if it runs."""
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.place / "pid").read_text()), signal.SIGKILL)

    # What the stories call in guestagent.database

    def answers(self, _: Connection, *, timeout: float) -> str:
        """As database.answers, without its patience."""
        if not self._answering:
            time.sleep(min(timeout, A_WHILE))
            raise DatabaseError(f"no answer within {timeout:g} s: nobody is there", hint="look at the log")
        return self.version_text

    @contextmanager
    def connect(self, _: Connection, *, timeout: float) -> Iterator[Server]:
        """As database.connect."""
        if self.denied or not self._answering:
            raise DatabaseError("access denied for backup" if self.denied else "cannot reach the server")
        yield self

    def facts(self) -> ServerFacts:
        """As Database.facts."""
        return ServerFacts(
            datastore=self.datastore,
            version=Version.parse(self.version_text),
            version_text=self.version_text,
            datadir=self.datadir,
            lsn=Lsn(self.lsn),
            grants=self.grants,
            account="'backup'@'localhost'",
        )

    def quiet(self) -> list[str]:
        """As Database.quiet."""
        return self.loud

    def set_quiet(self) -> list[str]:
        """As Database.set_quiet."""
        self.loud = self.loud if self.stubborn else []
        return self.loud

    def knows_checkpoint(self) -> bool:
        """As Database.knows_checkpoint."""
        return self.makes_checkpoints

    def checkpoint(self) -> None:
        """As Database.checkpoint."""
        self.checkpoints.append("made")
        self.at_checkpoint()

    @property
    def _answering(self) -> bool:
        if self.always_answers:
            return True
        return self.running and (self.mute_on is None or self.mute_on not in (self.datadir / "ibdata1").read_bytes())
