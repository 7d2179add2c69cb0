"""xtrabackup: Percona's tool for MySQL and Percona Server, 8.0 and 8.4."""

from __future__ import annotations

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
from guestagent.model import Lsn, ServerFacts

_NEEDED = ("BACKUP_ADMIN", "RELOAD", "PROCESS", "LOCK TABLES", "REPLICATION CLIENT")

_STAGES = (
    told(r"Executing (FLUSH TABLES WITH READ LOCK|LOCK BINLOG FOR BACKUP)\.\.\.", Stage.BLOCKING),
    told("All tables unlocked|Executing UNLOCK BINLOG", Stage.COPYING),
)
"""The words of storage/innobase/xtrabackup/src/backup_mysql.cc, around what keeps transactions from being committed."""


class Xtrabackup:
    """Speaks Percona XtraBackup; has no state."""

    name = "xtrabackup"
    tool = "xtrabackup"
    datastore = "mysql"
    stream_format = "xbstream"
    flaws: frozenset[Flaw] = frozenset()

    def version_argv(self) -> list[str]:
        """As in the protocol."""
        return [self.tool, "--no-defaults", "--version"]

    def missing_grants(self, server: ServerFacts) -> tuple[str, ...]:
        """As in the protocol.

        The tool also needs SELECT on three tables of performance_schema, which ``SHOW GRANTS`` lists apart from
        ``*.*`` and which are not checked here: log_status (always), keyring_component_status (where a keyring
        component is loaded) and replication_group_members (where the server is in a group).
        """
        if "ALL PRIVILEGES" in server.grants:
            return ()
        return tuple(grant for grant in _NEEDED if grant not in server.grants)

    def option_file(self, connection: Connection) -> str:
        """As in the protocol."""
        return optionfile.rendered(connection, self.tool)

    def dump_argv(self, request: DumpRequest) -> list[str]:
        """As in the protocol.

        Three timeouts bound three locks: the backup lock against DDL, metadata locks, and FLUSH TABLES WITH READ
        LOCK.  The version check is off because it tells a server of Percona's about this one.
        """
        argv = [*argv_for.dump(self.tool, self.stream_format, request), "--no-version-check"]
        if request.lock_wait_timeout:
            locks = ("lock-ddl", "backup-lock", "ftwrl-wait")
            argv.extend(f"--{lock}-timeout={request.lock_wait_timeout}" for lock in locks)
        return [*argv, *request.extra_args]

    def prepare_argv(self, request: PrepareRequest) -> list[str]:
        """As in the protocol; all steps but the last must leave open transactions as they are."""
        argv = argv_for.prepare(self.tool, request)
        return argv if request.last else [*argv, "--apply-log-only"]

    def facts(self, files: Mapping[str, str]) -> DumpFacts:
        """As in the protocol."""
        return facts.dump_facts(files)

    def prepared_to(self, files: Mapping[str, str]) -> Lsn:
        """As in the protocol."""
        return facts.prepared_to(files)

    def stage(self, line: str) -> Stage | None:
        """As in the protocol; for how long it waits for a lock, the tool has been told."""
        return stage_told(line, _STAGES)

    def confirmed(self, tail: Sequence[str]) -> bool:
        """As in the protocol."""
        return facts.confirmed(tail)

    def unlucky(self, tail: Sequence[str]) -> bool:
        """As in the protocol: no such words of this tool are known."""
        return False
