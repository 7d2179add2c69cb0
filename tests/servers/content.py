"""What a server holds, as values that two servers can be compared by: checksums of tables, definitions of the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pymysql.cursors import Cursor

SYSTEM_SCHEMAS = ("information_schema", "mysql", "performance_schema", "sys")

_NAMES = (
    "SELECT IF(table_type = 'VIEW', 'VIEW', 'TABLE'), table_schema, table_name FROM information_schema.tables",
    "SELECT 'TRIGGER', trigger_schema, trigger_name FROM information_schema.triggers",
    "SELECT routine_type, routine_schema, routine_name FROM information_schema.routines",
    "SELECT 'EVENT', event_schema, event_name FROM information_schema.events",
)


_COUNTER = re.compile(r" AUTO_INCREMENT=\d+")
_FOREIGN = re.compile(r"  CONSTRAINT `(.*)_ibfk_[0-9]+` (FOREIGN KEY .*?),?")


def quoted(name: str) -> str:
    """An identifier as SQL takes it."""
    return "`" + name.replace("`", "``") + "`"


def schemas(cursor: Cursor) -> list[str]:
    """The schemas that are not the server's own."""
    cursor.execute("SELECT schema_name FROM information_schema.schemata ORDER BY 1")
    return [name for (name,) in cursor.fetchall() if name not in SYSTEM_SCHEMAS]


def checksums(cursor: Cursor) -> dict[str, int]:
    """CHECKSUM TABLE ... EXTENDED of every table of users; raises RuntimeError if one cannot be read."""
    found: dict[str, int] = {}
    for schema, table in _tables(cursor):
        cursor.execute(f"CHECKSUM TABLE {quoted(schema)}.{quoted(table)} EXTENDED")
        name, checksum = cursor.fetchone() or ("", None)
        if checksum is None:
            cursor.execute("SHOW WARNINGS")
            raise RuntimeError(f"no checksum of {schema}.{table}: {cursor.fetchall()}")
        found[name] = int(checksum)
    return found


def definitions(cursor: Cursor) -> dict[str, str]:
    """Every schema, table, view, trigger, routine and event of users, by kind and name, as SHOW CREATE has it."""
    found: dict[str, str] = {}
    for kind, name in _things(cursor):
        cursor.execute(f"SHOW CREATE {kind} {name}")
        row = cursor.fetchone() or ()
        headings = [column[0] for column in cursor.description]
        found[f"{kind.lower()} {name}"] = _definition(dict(zip(headings, row, strict=True)))
    return found


def _tables(cursor: Cursor) -> list[tuple[str, str]]:
    cursor.execute(
        "SELECT table_schema, table_name FROM information_schema.tables"
        " WHERE table_type NOT IN ('VIEW', 'SYSTEM VIEW') ORDER BY 1, 2"
    )
    return [(schema, table) for schema, table in cursor.fetchall() if schema not in SYSTEM_SCHEMAS]


def _things(cursor: Cursor) -> Iterator[tuple[str, str]]:
    for schema in schemas(cursor):
        yield "DATABASE", quoted(schema)
    for names in _NAMES:
        cursor.execute(names)
        for kind, schema, name in sorted(cursor.fetchall()):
            if schema not in SYSTEM_SCHEMAS:
                yield kind, f"{quoted(schema)}.{quoted(name)}"


def _definition(row: Mapping[str, Any]) -> str:
    text = next(str(value) for heading, value in row.items() if heading.startswith(("Create ", "SQL Original")))
    # A server counts ahead in memory, and keeps old names of foreign keys there; it forgets both at any restart.
    return _COUNTER.sub("", "\n".join(_without_old_names(text.split("\n"))))


def _without_old_names(lines: Sequence[str]) -> Iterator[str]:
    """All but foreign keys named after what their table was called before, where the same stands by its new name."""
    named = [(line, _FOREIGN.fullmatch(line)) for line in lines]
    new = {found[2] for _, found in named if found and f"`{found[1]}`" in lines[0]}
    for line, found in named:
        if not found or f"`{found[1]}`" in lines[0] or found[2] not in new:
            yield line
