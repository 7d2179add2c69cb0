"""What is made of a server's answers: rows as MySQL 8.0 and 8.4 and MariaDB give them, and the errors of a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pymysql
import pytest
from pymysql.err import InternalError, OperationalError

from guestagent.database import Database, grants_in, is_running, quoted_account, replication_of
from guestagent.errors import DatabaseError, GuestagentError
from guestagent.model import Lsn, ServerFacts, Version

Rows = Sequence[Mapping[str, Any]]

SERVER = "SELECT @@version AS version"
LSN = "SHOW GLOBAL STATUS"
EVENTS = "SELECT @@event_scheduler"
GRANTS = "SHOW GRANTS"
PROCESSES = "SELECT id FROM information_schema.processlist"

MYSQL_84 = {
    "version": "8.4.3",
    "comment": "MySQL Community Server - GPL",
    "datadir": "/var/lib/mysql/",
    "account": "backup@localhost",
}
PERCONA_80 = {**MYSQL_84, "version": "8.0.28-19", "comment": "Percona Server (GPL), Release 19, Revision 31e88966cd3"}
MYSQL_8020 = {**MYSQL_84, "version": "8.0.20"}
MARIADB = {**MYSQL_84, "version": "10.11.19-MariaDB-0+deb12u1-log", "comment": "Debian 12"}
MARIADB_BY_COMMENT = {**MYSQL_84, "version": "11.8.2", "comment": "MariaDB Server"}

MYSQL_GRANTS = [
    {
        "Grants for backup@localhost": "GRANT RELOAD, PROCESS, LOCK TABLES, REPLICATION CLIENT"
        " ON *.* TO `backup`@`localhost`"
    },
    {"Grants for backup@localhost": "GRANT BACKUP_ADMIN ON *.* TO `backup`@`localhost`"},
    {
        "Grants for backup@localhost": "GRANT SELECT ON `performance_schema`.`log_status` TO `backup`@`localhost`",
    },
    {"Grants for backup@localhost": "GRANT `dumper`@`%` TO `backup`@`localhost`"},
]
MONITOR = """
---
LOG
---
Log sequence number          19607762
Log buffer assigned up to    19607762
Log flushed up to            19607000
"""
NOT_ALLOWED = OperationalError(1227, "Access denied; you need (at least one of) the SUPER privilege(s)")

RUNNING_MYSQL = {"Replica_IO_Running": "Connecting", "Replica_SQL_Running": "Yes", "Channel_Name": ""}
STOPPED_MYSQL = {"Replica_IO_Running": "No", "Replica_SQL_Running": "No", "Channel_Name": "second"}
RUNNING_MARIADB = {"Connection_name": "from_b", "Slave_IO_Running": "No", "Slave_SQL_Running": "Yes"}


class Recorded:
    """A session that answers statements by how they begin, and keeps what it was asked.

    An answer is rows, an error to raise, or a list of those that take turns, the last one staying.
    """

    def __init__(self, **unused: object) -> None:
        self.answers: dict[str, list[Rows | Exception]] = {}
        self.asked: list[str] = []
        self.closed = False
        self._rows: Rows = ()

    def on(self, statement: str, *answers: Rows | Exception) -> Self:
        self.answers[statement] = list(answers)
        return self

    def cursor(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def execute(self, statement: str) -> None:
        self.asked.append(statement)
        turns = next(turns for begin, turns in self.answers.items() if statement.startswith(begin))
        answer = turns.pop(0) if len(turns) > 1 else turns[0]
        if isinstance(answer, Exception):
            raise answer
        self._rows = answer

    def fetchall(self) -> Rows:
        return self._rows

    def close(self) -> None:
        self.closed = True


def server(facts: Mapping[str, Any]) -> Recorded:
    return Recorded().on(SERVER, [facts]).on(EVENTS, [{"state": "OFF"}]).on(GRANTS, MYSQL_GRANTS)


def test_facts_of_mysql() -> None:
    session = server(MYSQL_84).on(LSN, [{"Variable_name": "Innodb_redo_log_current_lsn", "Value": "19607762"}])
    with Database(session) as database:
        assert database.facts() == ServerFacts(
            datastore="mysql",
            version=Version(8, 4, 3),
            version_text="8.4.3",
            datadir=Path("/var/lib/mysql"),
            lsn=Lsn(19607762),
            grants=frozenset({"RELOAD", "PROCESS", "LOCK TABLES", "REPLICATION CLIENT", "BACKUP_ADMIN"}),
            account="'backup'@'localhost'",
        )
        assert not session.closed
    assert session.closed


@pytest.mark.parametrize(
    ("facts", "datastore"),
    [(MYSQL_84, "mysql"), (PERCONA_80, "mysql"), (MARIADB, "mariadb"), (MARIADB_BY_COMMENT, "mariadb")],
)
def test_the_family_of_a_server(facts: Mapping[str, Any], datastore: str) -> None:
    session = server(facts).on(LSN, [{"Value": "1"}])
    assert Database(session).facts().datastore == datastore


def test_the_lsn_of_a_mysql_without_the_status_variable() -> None:
    session = server(PERCONA_80).on(LSN, []).on("SHOW ENGINE INNODB STATUS", [{"Status": MONITOR}])
    assert Database(session).facts().lsn == 19607762


def test_a_server_that_does_not_tell_its_lsn() -> None:
    session = server(PERCONA_80).on(LSN, []).on("SHOW ENGINE INNODB STATUS", [{"Status": "Log sequence number"}])
    with pytest.raises(DatabaseError, match="does not tell its LSN"):
        Database(session).facts()


@pytest.mark.parametrize(
    ("statement", "grants"),
    [
        ("GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION", {"ALL PRIVILEGES"}),
        ("GRANT ALL ON *.* TO 'root'@'localhost'", {"ALL PRIVILEGES"}),
        ("GRANT USAGE ON *.* TO `u`@`%` IDENTIFIED BY PASSWORD '*14E6'", set()),
        ("GRANT Reload, Binlog Monitor ON *.* TO `u`@`%`", {"RELOAD", "BINLOG MONITOR"}),
        ("GRANT PROCESS ON *.* TO `a_role`", {"PROCESS"}),
        ("GRANT PROXY ON ''@'%' TO 'root'@'localhost' WITH GRANT OPTION", set()),
        ("GRANT ALL PRIVILEGES ON `shop`.* TO `u`@`%`", set()),
        ("GRANT LOCK TABLES, SELECT ON `odd ON *.* TO name`.* TO `u`@`%`", set()),
        ("REVOKE SELECT ON `mysql`.* FROM `u`@`%`", set()),
        ("SET DEFAULT ROLE `r` FOR `u`@`%`", set()),
    ],
)
def test_grants(statement: str, grants: set[str]) -> None:
    assert grants_in([statement]) == grants


@pytest.mark.parametrize(
    ("account", "quoted"),
    [
        ("backup@localhost", "'backup'@'localhost'"),
        ("a@b@%", "'a@b'@'%'"),
        ("o'brien\\@%", "'o\\'brien\\\\'@'%'"),
        ("@localhost", "''@'localhost'"),
    ],
)
def test_accounts_as_grant_takes_them(account: str, quoted: str) -> None:
    assert quoted_account(account) == quoted


@pytest.mark.parametrize(
    ("row", "running", "name"),
    [
        (RUNNING_MYSQL, True, "replication"),
        (STOPPED_MYSQL, False, "replication second"),
        (RUNNING_MARIADB, True, "replication from_b"),
        ({"Slave_IO_Running": "Preparing", "Slave_SQL_Running": "No"}, True, "replication"),
        ({}, False, "replication"),
    ],
)
def test_replication(row: Mapping[str, Any], running: bool, name: str) -> None:
    assert is_running(row) is running
    assert replication_of(row) == name


@pytest.mark.parametrize(
    ("facts", "statement"),
    [(MYSQL_84, "SHOW REPLICA STATUS"), (MYSQL_8020, "SHOW SLAVE STATUS"), (MARIADB, "SHOW ALL SLAVES STATUS")],
)
def test_each_server_is_asked_in_its_own_words(facts: Mapping[str, Any], statement: str) -> None:
    session = server(facts).on(statement, [RUNNING_MYSQL, STOPPED_MYSQL])
    assert Database(session).quiet() == ["replication"]


def test_a_server_with_everything_running() -> None:
    session = server(MARIADB).on(EVENTS, [{"state": "ON"}]).on("SHOW ALL SLAVES STATUS", [RUNNING_MARIADB])
    assert Database(session).quiet() == ["the event scheduler", "replication from_b"]


@pytest.mark.parametrize("state", ["OFF", "DISABLED"])
def test_a_quiet_server_is_left_alone(state: str) -> None:
    session = server(MYSQL_84).on(EVENTS, [{"state": state}]).on("SHOW REPLICA STATUS", [])
    assert Database(session).set_quiet() == []
    assert not [statement for statement in session.asked if statement.startswith(("SET", "STOP"))]


@pytest.mark.parametrize(
    ("facts", "word", "stop"),
    [
        (MYSQL_84, "REPLICA", "STOP REPLICA"),
        (MYSQL_8020, "SLAVE", "STOP SLAVE"),
        (MARIADB, "ALL SLAVES", "STOP ALL SLAVES"),
    ],
)
def test_a_server_is_made_quiet(facts: Mapping[str, Any], word: str, stop: str) -> None:
    session = server(facts).on(EVENTS, [{"state": "ON"}], [{"state": "OFF"}])
    session.on(f"SHOW {word} STATUS", [RUNNING_MYSQL], []).on("SET GLOBAL event_scheduler = OFF", []).on(stop, [])
    assert Database(session).set_quiet() == []
    assert "SET GLOBAL event_scheduler = OFF" in session.asked
    assert stop in session.asked


@pytest.mark.parametrize(("rows", "knows"), [([{"Value": "OFF"}], True), ([], False)])
def test_whether_a_server_makes_checkpoints_on_demand(rows: Rows, knows: bool) -> None:
    session = server(MARIADB).on("SHOW GLOBAL VARIABLES WHERE Variable_name = 'innodb_log_checkpoint_now'", rows)
    assert Database(session).knows_checkpoint() is knows


def test_a_checkpoint() -> None:
    session = server(MARIADB).on("SET GLOBAL innodb_log_checkpoint_now = 1", [])
    Database(session).checkpoint()
    assert session.asked == ["SET GLOBAL innodb_log_checkpoint_now = 1"]
    with pytest.raises(DatabaseError, match="is not allowed"):
        Database(server(MARIADB).on("SET GLOBAL", NOT_ALLOWED)).checkpoint()


def test_what_the_account_may_not_stop_is_told() -> None:
    session = server(MYSQL_84).on(EVENTS, [{"state": "ON"}]).on("SHOW REPLICA STATUS", NOT_ALLOWED)
    session.on("SET GLOBAL", NOT_ALLOWED).on("STOP REPLICA", NOT_ALLOWED).on(PROCESSES, [{"id": 5}])
    assert Database(session).set_quiet() == ["the event scheduler", "replication"]


def test_an_account_that_may_not_look_finds_replication_among_the_processes() -> None:
    session = server(MARIADB).on(EVENTS, [{"state": "OFF"}]).on("SHOW ALL SLAVES STATUS", NOT_ALLOWED)
    assert Database(session.on(PROCESSES, [])).quiet() == []


def test_other_failures_to_stop_are_raised() -> None:
    session = server(MYSQL_84).on(EVENTS, [{"state": "ON"}]).on("SET GLOBAL", OperationalError(1290, "read only"))
    with pytest.raises(DatabaseError, match="refused SET GLOBAL event_scheduler = OFF: read only"):
        Database(session).set_quiet()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OperationalError(2013, "Lost connection"), "the server went away while SHOW GRANTS; look at the server's"),
        (OperationalError(2006, "gone"), "the server went away while SHOW GRANTS"),
        (NOT_ALLOWED, "SHOW GRANTS is not allowed: Access denied; you need (at least one of) the SUPER"),
        (OperationalError(1205, "Lock wait timeout"), "the server refused SHOW GRANTS: Lock wait timeout"),
        (InternalError("Packet sequence number wrong"), "the server refused SHOW GRANTS: Packet sequence number"),
        (pymysql.MySQLError(), "the server refused SHOW GRANTS: MySQLError"),
    ],
)
def test_errors_of_the_client(error: Exception, message: str) -> None:
    session = server(MYSQL_84).on(LSN, [{"Value": "1"}]).on(GRANTS, error)
    with pytest.raises(DatabaseError) as caught:
        Database(session).facts()
    assert isinstance(caught.value, GuestagentError)
    assert str(caught.value).startswith(message)
    assert caught.value.__cause__ is error
