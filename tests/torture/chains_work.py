"""Random work on a server: rows, blobs, and all DDL that tables, views, programs, accounts and partitions know.

A deed is a kind and a number; what it does is decided by these two and by what is there, so that a chain replays.
Many deeds make no sense where they fall, and the server says so: that is no failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pymysql

from tests.servers.content import quoted
from tests.servers.mariadb import MariaDB
from tests.torture.chains_content import Table, tables
from tests.torture.chains_tables import ALTERS, BLOBBED, NAMES, PARTED, PARTITIONS, SCHEMAS, TEMPLATES

_LOST = (2006, 2013, 2014)
"""What a client says when the server has gone."""
_BLOBS = (100, 300, 1000, 1000, 2000, 5000, 12_000, 18_000)
"""KiB."""
_PIECES = (1, 10, 100, 400, 2000)
"""Rows."""
_CHARSETS = ("latin1", "utf8mb3", "utf8mb4")
_WITHOUT_KEYS = "SET SESSION foreign_key_checks = 0"
"""A drop of a schema that fails for a foreign key has removed its character set, which shows after a restart alone."""


@dataclass
class Place:
    """Where a deed falls: what is there, and the dice that choose."""

    dice: random.Random
    tables: list[Table]
    schemas: list[str]

    def schema(self) -> str:
        """One of the schemas that may be written to."""
        return self.dice.choice(self.schemas)

    def table(self, *engines: str, option: str = "", other_than: str = "") -> str:
        """Any table, or one of these engines or options."""
        fit = [
            table.sql
            for table in self.tables
            if (not engines or table.engine in engines) and option in table.options and table.kind != "SEQUENCE"
        ]
        return self.dice.choice([name for name in fit if name != other_than] or ["`nowhere`.`nothing`"])

    def new(self, schema: str | None = None) -> str:
        """A name for a table, which may be taken."""
        name = self.dice.choice(NAMES) if self.dice.random() < 1 / 3 else f"t{self.dice.randrange(12)}"
        return f"{quoted(schema or self.schema())}.{quoted(name)}"

    def number(self, most: int = 3000) -> int:
        """Any number below."""
        return self.dice.randrange(most)


Deed = Callable[[Place], Iterable[str]]


def _create(at: Place) -> Iterator[str]:
    name, other = at.new(), at.new()
    for statement in at.dice.choice(TEMPLATES).split(";"):
        yield statement.strip().format(t=name, u=other)
    yield _filled(at, name)


def _filled(at: Place, name: str) -> str:
    rows = at.dice.choice(_PIECES)
    text = at.dice.choice(("MD5(seq)", "REPEAT(MD5(seq), 6)", "'ä,\"b\\\\'", "CONCAT('the quick fox no', seq)"))
    return f"INSERT IGNORE INTO {name} (id, v) SELECT seq + {at.number()}, {text} FROM seq_1_to_{rows}"


def _insert(at: Place) -> Iterator[str]:
    yield _filled(at, at.table())


def _update(at: Place) -> Iterator[str]:
    yield f"UPDATE IGNORE {at.table()} SET v = CONCAT('u', {at.number()}, id) WHERE id % {at.dice.randint(1, 5)} = 0"


def _delete(at: Place) -> Iterator[str]:
    yield f"DELETE FROM {at.table()} WHERE id % {at.dice.randint(1, 5)} = 0"


def _blob(at: Place) -> Iterator[str]:
    kib = at.dice.choice(_BLOBS)
    table = f"app.b{at.number(5)}"
    yield at.dice.choice(BLOBBED).format(t=table).replace("TABLE", "TABLE IF NOT EXISTS")
    yield f"INSERT INTO {table} (id, v, b) VALUES ({at.number()}, 'blob', REPEAT(RANDOM_BYTES(1024), {kib}))"


def _transaction(at: Place) -> Iterator[str]:
    table, other = at.table("InnoDB"), at.table()
    yield "BEGIN"
    yield _filled(at, table)
    yield f"UPDATE IGNORE {other} SET v = 'both' WHERE id < {at.number()}"
    yield f"DELETE FROM {table} WHERE id > {at.number()}"
    yield at.dice.choice(("COMMIT", "ROLLBACK"))


def _drop(at: Place) -> Iterator[str]:
    yield f"SET SESSION foreign_key_checks = {at.dice.randrange(2)}"
    yield f"DROP TABLE {at.table()}"


def _truncate(at: Place) -> Iterator[str]:
    yield f"TRUNCATE TABLE {at.table()}"


def _rename(at: Place) -> Iterator[str]:
    yield f"RENAME TABLE {at.table()} TO {at.new()}"


def _swap_names(at: Place) -> Iterator[str]:
    one, between = at.table(), at.new()
    other = at.table(other_than=one)
    yield f"RENAME TABLE {one} TO {between}, {other} TO {one}, {between} TO {other}"


def _again(at: Place) -> Iterator[str]:
    """A table of another kind under the name of one that goes."""
    name = at.table()
    yield f"DROP TABLE {name}"
    yield at.dice.choice(TEMPLATES).partition(";")[0].format(t=name, u=name)
    yield _filled(at, name)


def _copy(at: Place) -> Iterator[str]:
    new, old = at.new(), at.table()
    engine = at.dice.choice(("InnoDB", "Aria", "MyISAM"))
    yield at.dice.choice(
        (
            f"CREATE TABLE {new} LIKE {old}",
            f"CREATE OR REPLACE TABLE {new} LIKE {old}",
            f"CREATE OR REPLACE TABLE {new} ENGINE={engine} SELECT * FROM {old}",
        )
    )


def _new_schema(at: Place) -> Iterator[str]:
    name = quoted(at.dice.choice(SCHEMAS))
    yield _WITHOUT_KEYS
    yield f"CREATE OR REPLACE DATABASE {name} CHARACTER SET {at.dice.choice(_CHARSETS)}"
    yield from (line for line in _create(Place(at.dice, at.tables, [name[1:-1].replace("``", "`")])))


def _drop_schema(at: Place) -> Iterator[str]:
    yield _WITHOUT_KEYS
    yield f"DROP DATABASE {quoted(at.dice.choice(at.schemas[1:] or SCHEMAS))}"


def _alter(at: Place) -> Iterator[str]:
    yield f"ALTER TABLE {at.table()} {at.dice.choice(ALTERS).format(n=at.number(4))}"


def _alter_innodb(at: Place) -> Iterator[str]:
    table = at.table("InnoDB")
    for how in at.dice.sample(ALTERS[:13], 2):
        yield f"ALTER TABLE {table} {how.format(n=at.number(4))}"
    yield f"UPDATE IGNORE {table} SET v = 'altered' WHERE id % 3 = 0"


def _partition(at: Place) -> Iterator[str]:
    new = at.new()
    yield f"ALTER TABLE {at.table(option='partitioned')} {at.dice.choice(PARTITIONS).format(n=at.number(9), new=new)}"


def _part(at: Place) -> Iterator[str]:
    yield f"ALTER TABLE {at.table()} {at.dice.choice(PARTED)}"


def _exchange(at: Place) -> Iterator[str]:
    old, new = at.table(option="partitioned"), at.new()
    yield f"CREATE TABLE {new} LIKE {old}"
    yield f"ALTER TABLE {new} REMOVE PARTITIONING"
    yield f"INSERT IGNORE INTO {new} (id, v) VALUES (1, 'exchanged')"
    yield f"ALTER TABLE {old} EXCHANGE PARTITION {at.dice.choice(('p0', 'p1', 'pm'))} WITH TABLE {new}"


def _optimize(at: Place) -> Iterator[str]:
    yield f"{at.dice.choice(('OPTIMIZE', 'ANALYZE', 'REPAIR'))} TABLE {at.table()}"
    yield f"ANALYZE TABLE {at.table()} PERSISTENT FOR ALL"


def _view(at: Place) -> Iterator[str]:
    what = at.dice.choice(("SELECT id, v FROM {}", "SELECT COUNT(*) AS `c ü` FROM {}")).format(at.table())
    yield at.dice.choice((f"CREATE OR REPLACE VIEW app.w{at.number(3)} AS {what}", f"DROP VIEW app.w{at.number(3)}"))


def _trigger(at: Place) -> Iterator[str]:
    table = at.table()
    when, name = at.dice.choice(("BEFORE INSERT", "AFTER UPDATE", "BEFORE DELETE")), f"g{at.number(3)}"
    schema = table.partition("`.`")[0] + "`"
    yield at.dice.choice(
        (
            f"CREATE OR REPLACE TRIGGER {schema}.{name} {when} ON {table} FOR EACH ROW SET @seen = 'ü'",
            f"DROP TRIGGER {schema}.{name}",
        )
    )


def _routine(at: Place) -> Iterator[str]:
    n = at.number(3)
    yield at.dice.choice(
        (
            f"CREATE OR REPLACE PROCEDURE app.`p {n}`() SELECT COUNT(*) FROM {at.table()}",
            f"CREATE OR REPLACE FUNCTION app.f{n}(n INT) RETURNS INT DETERMINISTIC RETURN n * {n}",
            f"DROP PROCEDURE app.`p {n}`",
            f"DROP FUNCTION app.f{n}",
        )
    )


def _event(at: Place) -> Iterator[str]:
    n = at.number(3)
    yield at.dice.choice(
        (
            f"CREATE OR REPLACE EVENT app.e{n} ON SCHEDULE EVERY 1 SECOND DO DELETE FROM {at.table()}",
            f"CREATE OR REPLACE EVENT app.e{n} ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01' DISABLE DO DO 1",
            f"ALTER EVENT app.e{n} COMMENT 'ü'",
            f"DROP EVENT app.e{n}",
        )
    )


def _account(at: Place) -> Iterator[str]:
    n = at.number(3)
    yield at.dice.choice(
        (
            f"CREATE OR REPLACE USER u{n}@'%' IDENTIFIED BY 'x{at.number()}' WITH MAX_USER_CONNECTIONS 3",
            f"CREATE OR REPLACE USER u{n}@'%' IDENTIFIED VIA mysql_native_password USING PASSWORD('x') OR unix_socket",
            f"CREATE OR REPLACE ROLE r{n}",
            f"GRANT r{n} TO u{n}@'%'",
            f"GRANT SELECT (id), INSERT ON {at.table()} TO u{n}@'%'",
            f"GRANT ALL ON app.* TO u{n}@'%' WITH GRANT OPTION",
            f"DROP USER u{n}@'%'",
            f"DROP ROLE r{n}",
            f"ALTER USER u{n}@'%' ACCOUNT LOCK",
        )
    )


def _sequence(at: Place) -> Iterator[str]:
    name = f"app.n{at.number(3)}"
    yield at.dice.choice(
        (
            f"CREATE OR REPLACE SEQUENCE {name} START WITH {at.number()} INCREMENT BY 3 NOCACHE",
            f"CREATE OR REPLACE SEQUENCE {name} CACHE 10 ENGINE=Aria",
            f"SELECT NEXTVAL({name}), NEXTVAL({name})",
            f"ALTER SEQUENCE {name} RESTART {at.number()}",
            f"DROP SEQUENCE {name}",
        )
    )


def _keys(at: Place) -> Iterator[str]:
    """A foreign key between tables that are there."""
    one = at.table("InnoDB")
    yield f"SET SESSION foreign_key_checks = {at.dice.randrange(2)}"
    yield f"ALTER TABLE {one} ADD FOREIGN KEY (id) REFERENCES {at.table('InnoDB')} (id) ON DELETE CASCADE"


def _server(at: Place) -> Iterator[str]:
    yield at.dice.choice(
        (
            "SET GLOBAL innodb_log_checkpoint_now = 1",
            "SET GLOBAL innodb_fast_shutdown = 0",
            "SET GLOBAL innodb_max_dirty_pages_pct_lwm = 0, GLOBAL innodb_max_dirty_pages_pct = 0",
            "SET GLOBAL innodb_file_per_table = 0",
            "SET GLOBAL innodb_file_per_table = 1",
            "FLUSH BINARY LOGS",
            "FLUSH TABLES",
        )
    )


def _discard(at: Place) -> Iterator[str]:
    """A tablespace that is taken away and stays away: the table cannot be read, and so goes."""
    table = at.table("InnoDB")
    yield f"ALTER TABLE {table} DISCARD TABLESPACE"
    yield f"DROP TABLE {table}"


_WEIGHED: tuple[tuple[Deed, int], ...] = (
    (_create, 8),
    (_insert, 8),
    (_update, 6),
    (_delete, 4),
    (_blob, 3),
    (_transaction, 3),
    (_drop, 2),
    (_truncate, 2),
    (_rename, 3),
    (_swap_names, 2),
    (_again, 3),
    (_copy, 2),
    (_new_schema, 2),
    (_drop_schema, 1),
    (_alter, 8),
    (_alter_innodb, 4),
    (_part, 2),
    (_partition, 3),
    (_exchange, 2),
    (_optimize, 2),
    (_view, 1),
    (_trigger, 1),
    (_routine, 1),
    (_event, 1),
    (_account, 2),
    (_sequence, 2),
    (_keys, 1),
    (_server, 3),
    (_discard, 1),
)
DEEDS = {deed.__name__.strip("_"): deed for deed, weight in _WEIGHED}
KINDS = [deed.__name__.strip("_") for deed, weight in _WEIGHED for _ in range(weight)]
"""Each as often as it should come."""


def do(server: MariaDB, kind: str, number: int) -> list[tuple[str, str]]:
    """Do one deed; gives its statements, each with what the server had against it, if anything."""
    told = []
    with server.session() as session, session.cursor() as cursor:
        cursor.execute("USE app")
        cursor.execute("SELECT schema_name FROM information_schema.schemata ORDER BY 1")
        schemas = [name for (name,) in cursor.fetchall() if name in SCHEMAS]
        there = [table for table in tables(cursor) if table.schema in ("app", *schemas)]
        at = Place(random.Random(f"{kind} {number}"), there, ["app", *schemas])
        for statement in DEEDS[kind](at):
            told.append((statement, _said(session.cursor(), statement)))
    return told


def _said(cursor: pymysql.cursors.Cursor, statement: str) -> str:
    """What the server has against a statement."""
    try:
        cursor.execute(statement)
    except pymysql.MySQLError as error:
        if error.args[0] in _LOST:
            raise
        return f"{error.args[0]} {error.args[-1]}"
    finally:
        cursor.close()
    return ""
