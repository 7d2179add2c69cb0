"""Engines: what to ask of a backup tool, and what its answers mean.

An engine starts no process and opens no file: requests become argv, texts
become facts.  ``streams`` runs the tools, ``operations`` opens the directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from guestagent.errors import ConfigError, NotFound
from guestagent.model import Binlog, Checkpoints, Lsn, ServerFacts


@dataclass(frozen=True)
class Connection:
    """How a tool and our own client reach the server; either ``socket`` or ``host`` and ``port``.

    ``defaults_file`` is an option file of the operator's that is read first; empty strings mean "not set".
    """

    socket: str = ""
    host: str = ""
    port: int = 3306
    user: str = ""
    password: str = field(default="", repr=False)
    defaults_file: str = ""


@dataclass(frozen=True)
class DumpRequest:
    """One run of the tool's backup.

    ``since`` is None for a full, and the parent's to_lsn for an incremental.  ``option_file`` is
    the 0600 file with the connection; ``target_dir`` is an empty scratch directory, ``facts_dir``
    the one for --extra-lsndir.  ``lock_wait_timeout`` is in seconds (0: wait without end), for tools that need to be
    told: of others, ``stage`` knows when they wait.
    """

    option_file: Path
    target_dir: Path
    facts_dir: Path
    since: Lsn | None
    parallel: int = 1
    lock_wait_timeout: int = 0
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrepareRequest:
    """One run of the tool's prepare of ``base``, with ``incremental`` applied to it if given.

    ``last`` says that no other link follows; ``use_memory`` is in bytes.
    """

    base: Path
    incremental: Path | None
    last: bool
    use_memory: int


@dataclass(frozen=True)
class DumpFacts:
    """What the tool wrote about the backup that it has just taken."""

    checkpoints: Checkpoints
    tool_version: str
    server_version: str
    binlog: Binlog | None


class Flaw(Enum):
    """What a tool gets wrong without saying what it is, so that others look out for it."""

    BACKTICKS = "a backtick in the name of a table that is not InnoDB's ends every dump"
    MOVED = "a prepared base may have tables of Aria that a server takes for those of another system"
    REBUILT = "an incremental lacks most of a table of InnoDB whose rebuild began before its parent ended"
    REMADE = "tables of Aria and MyISAM that are made anew during a dump may be missing from it, or be older"
    RENAMED = "a prepare fails of a tablespace that a link brings whole and under another name"


class Stage(Enum):
    """What a dump means to those who use the server meanwhile."""

    COPYING = "nobody waits for it"
    WAITING = "it waits for a lock, and others queue up behind it"
    BLOCKING = "the server's commits wait for it"


class Engine(Protocol):
    """A backup tool's language."""

    @property
    def name(self) -> str:
        """The name in manifests and in ``[database] engine``."""

    @property
    def tool(self) -> str:
        """The program's name, looked for on PATH."""

    @property
    def datastore(self) -> str:
        """The family of servers that it backs up: mariadb or mysql."""

    @property
    def stream_format(self) -> str:
        """mbstream or xbstream."""

    @property
    def flaws(self) -> Set[Flaw]:
        """What is to be looked out for with this tool."""

    def version_argv(self) -> list[str]:
        """The command that prints the tool's version, on stdout or on stderr."""

    def missing_grants(self, server: ServerFacts) -> tuple[str, ...]:
        """The privileges that the account lacks for a backup, by name, in a stable order."""

    def option_file(self, connection: Connection) -> str:
        """The text of the option file that carries the connection (and the password, never in argv)."""

    def dump_argv(self, request: DumpRequest) -> list[str]:
        """The command whose stdout is the stream."""

    def prepare_argv(self, request: PrepareRequest) -> list[str]:
        """The command that prepares a base, or applies one link to it."""

    def facts(self, files: Mapping[str, str]) -> DumpFacts:
        """What the files of ``facts_dir`` (name -> text) say; raises ToolError if they do not."""

    def prepared_to(self, files: Mapping[str, str]) -> Lsn:
        """The to_lsn that a prepared directory's checkpoints file (name -> text) has reached; raises ToolError."""

    def stage(self, line: str) -> Stage | None:
        """The stage that a dump enters with this line of its stderr; None: it stays in the one that it is in."""

    def confirmed(self, tail: Sequence[str]) -> bool:
        """Whether the last lines of stderr say that the run went well."""

    def unlucky(self, tail: Sequence[str]) -> bool:
        """Whether a dump that failed with these last lines may well succeed at once."""


def engine_named(name: str) -> Engine:
    """The engine of that name, such as a manifest has it; raises NotFound for one that this version does not know."""
    for engine in _engines():
        if engine.name == name:
            return engine
    raise NotFound(f"no engine {name!r}", hint=f"there are {', '.join(engine.name for engine in _engines())}")


def engine_for(server: ServerFacts) -> Engine:
    """The engine that backs up ``server``; raises ConfigError if there is none for it."""
    for engine in _engines():
        if engine.datastore == server.datastore:
            return engine
    raise ConfigError(f"no engine for a server of {server.datastore!r}", hint="use MariaDB, MySQL or Percona Server")


def _engines() -> tuple[Engine, ...]:
    from guestagent.engines.mariabackup import Mariabackup  # noqa: PLC0415  (they import this module's protocol)
    from guestagent.engines.xtrabackup import Xtrabackup  # noqa: PLC0415

    return Mariabackup(), Xtrabackup()
