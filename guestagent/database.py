"""The running server, asked by SQL: what it is, what our account may do, what runs in it by itself.

SQL alone lives here.  How a tool reaches the server, and which privileges it wants, is the engines' business.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from guestagent.engines import Connection
from guestagent.engines.optionfile import client_options, completed
from guestagent.errors import ConfigError, DatabaseError
from guestagent.model import Lsn, ServerFacts, Version

if TYPE_CHECKING:
    import pymysql
    from pymysql.cursors import DictCursor

DEFAULT_SOCKETS = (Path("/run/mysqld/mysqld.sock"), Path("/var/lib/mysql/mysql.sock"))
"""Where servers listen when nobody says it: Debian's place and its kin, then Red Hat's and its kin."""

DEEPEST_INCLUDE = 10
PAUSE = 0.2
"""Seconds between two attempts to reach a server that is starting."""

# Numbers of the protocol; not pymysql's names for them, since an agent without work does without its 9 MB.
_ACCESS_DENIED, _HOST_NOT_PRIVILEGED = 1045, 1130
_NO_PASSWORD_LOGIN, _PASSWORD_EXPIRED, _ACCOUNT_LOCKED, _ACCOUNT_BLOCKED = 1698, 1862, 3118, 4151
_TABLE_DENIED, _PRIVILEGE_DENIED = 1142, 1227
_NO_CONNECTION, _GONE, _LOST = 2003, 2006, 2013
_DENIED_CODES = frozenset(
    {
        _ACCESS_DENIED,
        _HOST_NOT_PRIVILEGED,
        _NO_PASSWORD_LOGIN,
        _PASSWORD_EXPIRED,
        _ACCOUNT_LOCKED,
        _ACCOUNT_BLOCKED,
    }
)
"""How a server that is up says that it does not let us in."""
_NOT_ALLOWED_CODES = frozenset({_PRIVILEGE_DENIED, _TABLE_DENIED})
_GONE_CODES = frozenset({_GONE, _LOST})
_LOG_HINT = "look at the server's error log"

_GLOBAL_GRANT = re.compile(r"GRANT ([A-Za-z_ ,]+) ON \*\.\* TO .*", re.DOTALL)
_MONITOR_LSN = re.compile(r"^Log sequence number\s+([0-9]+)\s*$", re.MULTILINE)
_REPLICA_SINCE = Version(8, 0, 22)
_CHECKPOINT = "innodb_log_checkpoint_now"

_REPLICATION_THREADS = (
    "SELECT id FROM information_schema.processlist WHERE user = 'system user'"
    " AND command IN ('Slave_IO', 'Slave_SQL', 'Slave_worker', 'Connect')"
)
"""What PROCESS lets an account see of replication, by the names of MariaDB and of MySQL."""

Row = Mapping[str, Any]


class _Unreachable(DatabaseError):
    """Nobody listens there."""


class _Denied(DatabaseError):
    """A server answered, and does not let us in."""


class _NotAllowed(DatabaseError):
    """The account lacks a privilege for one statement."""


class Session(Protocol):
    """The part of a client's connection that is used here."""

    def cursor(self) -> Any:
        """A context manager whose value executes statements and fetches rows as mappings."""

    def close(self) -> None:
        """Say goodbye."""


class Database:
    """A session with the server; a context manager that ends it.  ``connect`` makes it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def facts(self) -> ServerFacts:
        """What a preflight must know."""
        found = self._server
        text = str(found["version"])
        return ServerFacts(
            datastore=self._datastore,
            version=Version.parse(text),
            version_text=text,
            datadir=Path(str(found["datadir"])).resolve(),
            lsn=self._lsn(),
            grants=grants_in(str(text) for row in self._rows("SHOW GRANTS") for text in row.values()),
            account=quoted_account(str(found["account"])),
        )

    def quiet(self) -> list[str]:
        """What runs in the server by itself, in words (event scheduler, replication); empty for a quiet server."""
        return [*self._events(), *self._replication()]

    def set_quiet(self) -> list[str]:
        """Stop what runs by itself, where the account may; what runs on, as ``quiet`` has it."""
        if self._events():
            self._attempt("SET GLOBAL event_scheduler = OFF")
        if self._replication():
            self._attempt("STOP ALL SLAVES" if self._datastore == "mariadb" else f"STOP {self._replica}")
        return self.quiet()

    def knows_checkpoint(self) -> bool:
        """Whether ``checkpoint`` is something that the server can do."""
        return bool(self._rows(f"SHOW GLOBAL VARIABLES WHERE Variable_name = '{_CHECKPOINT}'"))

    def checkpoint(self) -> None:
        """Have the server write its changed pages, and move the beginning of its redo log; returns when it has."""
        self._rows(f"SET GLOBAL {_CHECKPOINT} = 1")

    @cached_property
    def _server(self) -> Row:
        return self._rows(
            "SELECT @@version AS version, @@version_comment AS comment, @@datadir AS datadir, CURRENT_USER() AS account"
        )[0]

    @property
    def _datastore(self) -> str:
        words = f"{self._server['version']} {self._server['comment']}".lower()
        return "mariadb" if "mariadb" in words else "mysql"

    @property
    def _replica(self) -> str:
        """MySQL's word for it: 8.0.22 has the new one as well, 8.4 has the old one no more."""
        return "REPLICA" if Version.parse(str(self._server["version"])) >= _REPLICA_SINCE else "SLAVE"

    def _lsn(self) -> Lsn:
        """Where the redo log ends.

        The status variables ask for no privilege.  MySQL before 8.0.30 has none; there the monitor's text wants
        PROCESS, as every backup does.  performance_schema.log_status wants more, and holds commits up.
        """
        names = "'Innodb_lsn_current', 'Innodb_redo_log_current_lsn'"
        rows = self._rows(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({names})")
        if rows:
            return Lsn(int(rows[0]["Value"]))
        found = _MONITOR_LSN.search(str(self._rows("SHOW ENGINE INNODB STATUS")[0]["Status"]))
        if not found:
            raise DatabaseError("the server does not tell its LSN", hint="look at SHOW ENGINE INNODB STATUS")
        return Lsn(int(found[1]))

    def _events(self) -> list[str]:
        running = self._rows("SELECT @@event_scheduler AS state")[0]["state"] == "ON"
        return ["the event scheduler"] if running else []

    def _replication(self) -> list[str]:
        statement = "SHOW ALL SLAVES STATUS" if self._datastore == "mariadb" else f"SHOW {self._replica} STATUS"
        try:
            return [replication_of(row) for row in self._rows(statement) if is_running(row)]
        except _NotAllowed:
            return ["replication"] if self._rows(_REPLICATION_THREADS) else []

    def _attempt(self, statement: str) -> None:
        """Run ``statement`` if the account may; what it leaves undone, ``quiet`` tells."""
        try:
            self._rows(statement)
        except _NotAllowed:
            return

    def _rows(self, statement: str) -> list[Row]:
        with _mapped(statement), self._session.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())


def connect(connection: Connection, *, timeout: float) -> Database:
    """A session with the server; raises DatabaseError, and ConfigError for a defaults_file that cannot be read.

    ``timeout`` is in seconds, for the connection and for every answer.
    """
    place = with_defaults(connection)
    session = _session(place, timeout)
    _open(session, place)
    return Database(session)


def answers(connection: Connection, *, timeout: float) -> str:
    """The server's version as soon as it answers; raises DatabaseError if it does not within ``timeout`` seconds.

    A server that does not let us in has answered, too: after a restore its accounts are those of the backup.
    The version is empty where the server shuts the door without a greeting.
    """
    place = with_defaults(connection)
    limit = time.monotonic() + timeout
    while True:
        try:
            return _greeting(place, max(limit - time.monotonic(), PAUSE))
        except DatabaseError as error:
            if time.monotonic() + PAUSE > limit:
                raise DatabaseError(f"no answer within {timeout:g} s: {error.what}", hint=_LOG_HINT) from error
        time.sleep(PAUSE)


def with_defaults(connection: Connection) -> Connection:
    """``connection``, with what it leaves open from its defaults_file, and then from what is usual."""
    options = dict(_options_in(Path(connection.defaults_file), 0)) if connection.defaults_file else {}
    found = completed(connection, options)
    if found.socket or found.host:
        return found
    usual = next((path for path in DEFAULT_SOCKETS if path.exists()), DEFAULT_SOCKETS[0])
    return replace(found, socket=str(usual))


def _options_in(path: Path, depth: int) -> Iterator[tuple[str, str]]:
    if depth > DEEPEST_INCLUDE:
        raise ConfigError(f"option file {path} is included too deeply", hint="does it include itself?")
    try:
        options = list(client_options(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    for name, value in options:
        if name == "!include":
            yield from _options_in(Path(value), depth + 1)
        elif name == "!includedir":
            for file in _option_files(Path(value)):
                yield from _options_in(file, depth + 1)
        else:
            yield name, value


def _option_files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == ".cnf")
    except OSError as error:
        raise _unreadable(directory, error) from error


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> ConfigError:
    why = error.strerror if isinstance(error, OSError) else error.reason
    return ConfigError(f"cannot read {path}: {why}", hint="check [database] defaults_file, and what it includes")


def _session(place: Connection, timeout: float) -> pymysql.Connection[DictCursor]:
    """A session that is not open yet."""
    import pymysql  # noqa: PLC0415  (see above)
    from pymysql.cursors import DictCursor  # noqa: PLC0415

    try:
        # Bytes, since pymysql would take a string for Latin-1.
        password = place.password.encode()
    except UnicodeEncodeError:
        # Not chained: that error carries the password.
        raise ConfigError("password holds half a character", hint="write it in UTF-8") from None
    return pymysql.connect(
        unix_socket=place.socket or None,
        host=place.host or None,
        port=place.port,
        user=place.user or None,
        password=password,
        charset="utf8mb4",
        autocommit=True,
        cursorclass=DictCursor,
        connect_timeout=timeout,
        read_timeout=timeout,
        write_timeout=timeout,
        ssl_disabled=bool(place.socket),
        defer_connect=True,
    )


def _open(session: pymysql.Connection[DictCursor], place: Connection) -> None:
    address = place.socket or f"{place.host}:{place.port}"
    try:
        with _mapped("connecting"):
            session.connect()
    except _Unreachable as error:
        raise _Unreachable(f"cannot reach the server at {address}: {error.what}", hint=error.hint) from error
    except _Denied as error:
        who = place.user or "the user of this process"
        raise _Denied(f"access denied for {who} at {address}", hint=error.hint) from error


def _greeting(place: Connection, timeout: float) -> str:
    """The version that the server greets us with, whether or not it lets us in."""
    session = _session(place, timeout)
    with suppress(_Denied):
        _open(session, place)
        session.close()
    return str(getattr(session, "server_version", "")).removeprefix("5.5.5-")


@contextmanager
def _mapped(doing: str) -> Iterator[None]:
    """Turn whatever the client raises into a DatabaseError."""
    import pymysql  # noqa: PLC0415

    try:
        yield
    except pymysql.MySQLError as error:
        raise _translated(error, doing) from error


def _translated(error: pymysql.MySQLError, doing: str) -> DatabaseError:
    code, text = (error.args[0], str(error.args[-1])) if error.args else (0, type(error).__name__)
    if code == _NO_CONNECTION:
        cause = getattr(error, "original_exception", error)
        why = getattr(cause, "strerror", None) or str(cause)
        return _Unreachable(why.lower(), hint="is it running? check socket, host and port in [database]")
    if code in _DENIED_CODES:
        return _Denied(text, hint="check user and password in [database], or in its defaults_file")
    if code in _NOT_ALLOWED_CODES:
        return _NotAllowed(f"{doing} is not allowed: {text}", hint="grant that to the account in [database]")
    if code in _GONE_CODES:
        return DatabaseError(f"the server went away while {doing}", hint=_LOG_HINT)
    return DatabaseError(f"the server refused {doing}: {text}", hint=_LOG_HINT)


def grants_in(statements: Iterable[str]) -> frozenset[str]:
    """The privileges on ``*.*`` in what SHOW GRANTS prints: those of the account, and of its active roles."""
    found = (_GLOBAL_GRANT.fullmatch(statement) for statement in statements)
    names = {name.strip().upper() for match in found if match for name in match[1].split(",")}
    return frozenset("ALL PRIVILEGES" if name == "ALL" else name for name in names - {"USAGE"})


def quoted_account(account: str) -> str:
    """``user@host``, as CURRENT_USER() has it, in the form that GRANT takes."""
    user, _, host = account.rpartition("@")
    return "@".join("'" + part.replace("\\", "\\\\").replace("'", "\\'") + "'" for part in (user, host))


def is_running(row: Row) -> bool:
    """Whether a row of SHOW REPLICA STATUS, or of one of its elder names, is about a channel that runs."""
    threads = (f"{word}_{thread}_Running" for word in ("Slave", "Replica") for thread in ("IO", "SQL"))
    return any(row.get(thread, "No") != "No" for thread in threads)


def replication_of(row: Row) -> str:
    """Which replication such a row is about."""
    channel = row.get("Connection_name") or row.get("Channel_Name")
    return f"replication {channel}" if channel else "replication"
