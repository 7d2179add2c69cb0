"""All that a server holds for its users, as values that tell which thing differs: definitions, rows, accounts."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pymysql.cursors import Cursor

from tests.servers.content import SYSTEM_SCHEMAS, definitions, quoted
from tests.servers.mariadb import MariaDB

Content = Mapping[str, str]
"""By kind and name; equal for two servers exactly if they hold the same."""

VOLATILE = ("MEMORY", "BLACKHOLE")
"""Engines whose rows no restart brings back."""

_TABLES = (
    "SELECT table_schema, table_name, IFNULL(engine, ''), table_type, IFNULL(create_options, '')"
    " FROM information_schema.tables WHERE table_type IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE') ORDER BY 1, 2"
)
_COLUMNS = (
    "SELECT table_schema, table_name, column_name FROM information_schema.columns ORDER BY 1, 2, ordinal_position"
)
_ACCOUNTS = (
    "global_priv",
    "db",
    "tables_priv",
    "columns_priv",
    "procs_priv",
    "roles_mapping",
    "proxies_priv",
    "servers",
)
_UNCHECKED = ("The storage engine for the table doesn't support check",)


@dataclass(frozen=True)
class Table:
    """One table of users, or a sequence."""

    schema: str
    name: str
    engine: str
    kind: str
    options: str

    @property
    def sql(self) -> str:
        """Its name as SQL takes it."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"


def tables(cursor: Cursor) -> list[Table]:
    """Every table of users, in a fixed order."""
    cursor.execute(_TABLES)
    return [Table(*row) for row in sorted(cursor.fetchall()) if row[0] not in SYSTEM_SCHEMAS]


def content_of(server: MariaDB) -> Content:
    """What the server holds; raises if any of it cannot be read."""
    with server.session() as session, session.cursor() as cursor:
        return dict(_things(cursor))


def _things(cursor: Cursor) -> Iterator[tuple[str, str]]:
    yield from definitions(cursor).items()
    columns = _columns(cursor)
    for table in tables(cursor):
        if table.engine not in VOLATILE:
            yield f"rows {table.sql}", _rows(cursor, table, columns[table.schema, table.name])
    for table_name in _ACCOUNTS:
        cursor.execute(f"SELECT * FROM mysql.{table_name}")
        yield f"mysql.{table_name}", repr(sorted(map(repr, cursor.fetchall())))


def _columns(cursor: Cursor) -> dict[tuple[str, str], list[str]]:
    found = defaultdict(list)
    cursor.execute(_COLUMNS)
    for schema, table, column in cursor.fetchall():
        found[schema, table].append(quoted(column))
    return found


def _rows(cursor: Cursor, table: Table, columns: list[str]) -> str:
    """How many rows, and a digest of them that does not depend on their order."""
    versioned = table.kind == "SYSTEM VERSIONED"
    names = [*columns, *(("row_start", "row_end") if versioned else ())]
    row = ", ".join(f"IFNULL(SHA1({name}), '-')" for name in names)
    history = " FOR SYSTEM_TIME ALL" if versioned else ""
    cursor.execute(f"SELECT CONCAT_WS(',', {row}) FROM {table.sql}{history}")
    rows = sorted(str(digests) for (digests,) in cursor.fetchall())
    return f"{len(rows)} rows {hashlib.sha1(' '.join(rows).encode()).hexdigest()}"


def differences(expected: Content, found: Content) -> list[str]:
    """What is missing, new or changed, a line each."""
    told = []
    for name in sorted({*expected, *found}):
        before, after = expected.get(name, "nothing"), found.get(name, "nothing")
        if before != after:
            told.append(f"{name}: {before} became {after}")
    return told


def flaws(server: MariaDB) -> list[str]:
    """What CHECK TABLE says against the tables of users, such as an index that does not fit its rows."""
    with server.session() as session, session.cursor() as cursor:
        names = [table.sql for table in tables(cursor) if table.kind != "SEQUENCE"]
        if not names:
            return []
        cursor.execute(f"CHECK TABLE {', '.join(names)} EXTENDED")
        return [
            f"{name}: {text}"
            for name, _, kind, text in cursor.fetchall()
            if not (kind == "status" and text == "OK") and text not in _UNCHECKED
        ]
