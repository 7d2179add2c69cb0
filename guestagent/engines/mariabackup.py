"""mariabackup: MariaDB's own tool, 10.x and 11.x."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from guestagent.engines import (
    Connection,
    DumpFacts,
    DumpRequest,
    Flaw,
    PrepareRequest,
    Stage,
    argv_for,
    facts,
    optionfile,
)
from guestagent.engines.words import stage_told, told
from guestagent.errors import BadLuck
from guestagent.model import Lsn, ServerFacts, Version

_BINLOG = frozenset({"BINLOG MONITOR", "REPLICATION CLIENT", "SUPER"})
"""Any of these lets an account see where the binary log stands; 10.5 gave REPLICATION CLIENT its new name."""
_BINLOG_MONITOR_SINCE = Version(10, 5, 2)
_GONE = re.compile(r"FATAL ERROR: .*Failed to validate first page of the file ")
_WANTED_BEYOND = 16
"""Bytes of redo beyond to_lsn without which an incremental is not prepared, although nothing is missing.

A prepare makes a new log that begins 16 bytes, one record, before the LSN that it has reached, and then compares that
beginning with the incremental's to_lsn; of a full, it has not read the to_lsn yet.
"""
_STAGES = (
    told(r"Acquiring BACKUP LOCKS\.\.\.|Start(ing|ed) BACKUP STAGE (START|FLUSH|BLOCK_[A-Z]+)", Stage.WAITING),
    told("Acquired locks for BACKUP STAGE BLOCK_COMMIT", Stage.BLOCKING),
    told("Acquired locks for BACKUP STAGE (START|FLUSH|BLOCK_DDL)|All tables unlocked", Stage.COPYING),
)
"""The words of extra/mariabackup: the tool tells each lock that it wants, each that it has, and when it has none."""
_LOG_COPY_INTERVAL = 100
"""Milliseconds between two looks at the redo log; with the tool's own 1000, a small log is soon written over unread."""


class Mariabackup:
    """Speaks mariabackup; has no state."""

    name = "mariabackup"
    tool = "mariabackup"
    datastore = "mariadb"
    stream_format = "mbstream"
    flaws = frozenset(Flaw)

    def version_argv(self) -> list[str]:
        """As in the protocol."""
        return [self.tool, "--no-defaults", "--version"]

    def missing_grants(self, server: ServerFacts) -> tuple[str, ...]:
        """As in the protocol: RELOAD for BACKUP STAGE, PROCESS for InnoDB's status, and a view of the binary log.

        LOCK TABLES is not needed, and SUPER does not stand in for RELOAD.
        """
        if "ALL PRIVILEGES" in server.grants:
            return ()
        missing = [grant for grant in ("RELOAD", "PROCESS") if grant not in server.grants]
        if not _BINLOG & server.grants:
            missing.append("BINLOG MONITOR" if server.version >= _BINLOG_MONITOR_SINCE else "REPLICATION CLIENT")
        return tuple(missing)

    def option_file(self, connection: Connection) -> str:
        """As in the protocol."""
        return optionfile.rendered(connection, self.tool)

    def dump_argv(self, request: DumpRequest) -> list[str]:
        """As in the protocol.

        No --ftwrl-wait-timeout: any statement that runs longer ends the dump then, also one that is in nobody's way.
        """
        argv = argv_for.dump(self.tool, self.stream_format, request)
        argv.append(f"--log-copy-interval={_LOG_COPY_INTERVAL}")  # extra_args come later, and the last one counts
        return [*argv, *request.extra_args]

    def prepare_argv(self, request: PrepareRequest) -> list[str]:
        """As in the protocol; every step is a plain prepare: since 10.2 there is no --apply-log-only."""
        return argv_for.prepare(self.tool, request)

    def facts(self, files: Mapping[str, str]) -> DumpFacts:
        """As in the protocol; and no incremental that its own prepare refuses, a full it takes in any case."""
        found = facts.dump_facts(files)
        beyond = found.checkpoints.last - found.checkpoints.end
        if found.checkpoints.begin and beyond < _WANTED_BEYOND:
            raise BadLuck(
                f"{self.tool} ended its copy of the redo log {beyond} bytes beyond the checkpoint,"
                f" LSN {found.checkpoints.end}",
                hint=f"a prepare refuses an incremental with fewer than {_WANTED_BEYOND}: take the backup again",
            )
        return found

    def prepared_to(self, files: Mapping[str, str]) -> Lsn:
        """As in the protocol."""
        return facts.prepared_to(files)

    def stage(self, line: str) -> Stage | None:
        """As in the protocol."""
        return stage_told(line, _STAGES)

    def confirmed(self, tail: Sequence[str]) -> bool:
        """As in the protocol."""
        return facts.confirmed(tail)

    def unlucky(self, tail: Sequence[str]) -> bool:
        """As in the protocol: a table may go while the tool lists them all, which 10.11 takes for the end."""
        return any(_GONE.search(line) for line in tail)
