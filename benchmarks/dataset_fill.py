"""How the tables of a benchmark's data set are made and filled, over several connections at once.

Rows of digits are made by the server itself, from its sequence engine; words and files come from
benchmarks.dataset_content, through files that the server reads.  Every table has a seed of its own, so that its content
does not depend on which connection comes to it first.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymysql.connections import Connection as Session

from benchmarks.dataset_content import Lines, articles, attachments, images, profiles

CONNECTIONS = 2
SYSBENCH_TABLES = 8
MANY = "many"
"""The schema of the small tables."""
SCHEMAS = ("sbtest", "shop", "press", "media", MANY)
SMALL_BYTES = 64 << 10
"""The smallest file of a table."""
SLACK = 5 << 20
"""Bytes that the file of a big table has in reserve."""
SCALE_ROWS = 10
ENGINES = ("InnoDB",) * 8 + ("Aria", "MyISAM")
"""Of the small tables, in turn."""

_ROWS_AT_ONCE = 50_000
_TABLES_AT_ONCE = 100
_BYTES_AT_ONCE = 8 << 20
_AS_IS = "FIELDS ESCAPED BY ''"

Sessions = Callable[[], "AbstractContextManager[Session[Any]]"]
Task = Callable[["Session[Any]"], None]


@dataclass(frozen=True)
class Generated:
    """A table whose rows the server makes: ``row`` is selected from the numbers of the rows, ``seq``."""

    name: str
    share: float
    columns: str
    row: str
    indexes: str
    row_bytes: float
    """What a row takes on disk, with its part of every index."""


@dataclass(frozen=True)
class Told:
    """A table whose rows come from here, as lines for LOAD DATA or as files for a column of BLOBs."""

    name: str
    share: float
    columns: str
    content: Lines
    overhead: float
    """Bytes on disk for each byte that is told."""


def _digits(groups: int) -> str:
    group = "LPAD(FLOOR(RAND() * 1e11), 11, '0')"
    return f"CONCAT_WS('-', {', '.join([group] * groups)})"


def _sysbench(number: int) -> Generated:
    return Generated(
        name=f"sbtest.sbtest{number}",
        share=0.50 / SYSBENCH_TABLES,
        columns="id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, k INT NOT NULL DEFAULT 0,"
        " c CHAR(120) NOT NULL DEFAULT '', pad CHAR(60) NOT NULL DEFAULT ''",
        row=f"seq, 1 + FLOOR(RAND() * 1000000), {_digits(10)}, {_digits(5)}",
        indexes=f"ADD INDEX k_{number} (k)",
        row_bytes=241,
    )


ORDERS = Generated(
    name="shop.orders",
    share=0.15,
    columns="id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, customer INT NOT NULL, product INT NOT NULL,"
    " placed DATETIME NOT NULL, status VARCHAR(10) NOT NULL, total DECIMAL(10, 2) NOT NULL,"
    " reference CHAR(12) CHARACTER SET ascii NOT NULL",
    row="seq, 1 + FLOOR(RAND() * 200000), 1 + FLOOR(RAND() * RAND() * 20000), '2024-01-01' + INTERVAL 7 * seq SECOND,"
    " ELT(1 + FLOOR(RAND() * 4), 'paid', 'sent', 'done', 'returned'), ROUND(RAND() * 500, 2),"
    " LPAD(CONV(FLOOR(RAND() * 4e18), 10, 36), 12, '0')",
    indexes="ADD INDEX customer (customer), ADD INDEX product (product, placed), ADD INDEX status (status, placed),"
    " ADD INDEX reference (reference), ADD INDEX placed (placed, customer)",
    row_bytes=213,
)
GENERATED = (ORDERS, *(_sysbench(number + 1) for number in range(SYSBENCH_TABLES)))
LINES = (
    Told(
        name="press.articles",
        share=0.10,
        columns="id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, title VARCHAR(300) NOT NULL, author VARCHAR(80) NOT NULL,"
        " published DATETIME NOT NULL, views INT NOT NULL, body MEDIUMTEXT NOT NULL, INDEX published (published)",
        content=articles,
        overhead=1.23,
    ),
    Told(
        name="press.profiles",
        share=0.10,
        columns="id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, owner CHAR(24) CHARACTER SET ascii NOT NULL,"
        " seen DATETIME NOT NULL, document JSON NOT NULL, INDEX owner (owner)",
        content=profiles,
        overhead=1.20,
    ),
)
_FILE_COLUMNS = "id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARCHAR(60) NOT NULL, data LONGBLOB NOT NULL"
FILES = (
    Told(name="media.images", share=0.075, columns=_FILE_COLUMNS, content=images, overhead=1.15),
    Told(name="media.attachments", share=0.075, columns=_FILE_COLUMNS, content=attachments, overhead=1.15),
)


# Everything


def fill(sessions: Sessions, scratch: Path, size: int, *, small_tables: int, seed: int) -> None:
    """Make a data set of ``size`` bytes; ``scratch`` is a directory that the server may read."""
    big = size - small_tables * SMALL_BYTES
    if big < 0:
        raise ValueError(f"{small_tables} small tables take more than {size} bytes: ask for fewer")
    with sessions() as session:
        _run(session, (f"CREATE DATABASE {schema} CHARACTER SET utf8mb4" for schema in SCHEMAS))
    _together(sessions, [*_big(scratch, big, seed), *_small(small_tables)])


def fill_scale(sessions: Sessions, tables: int) -> None:
    """Make that many small InnoDB tables, and nothing else."""
    with sessions() as session:
        _run(session, [f"CREATE DATABASE {MANY} CHARACTER SET utf8mb4"])
    _together(sessions, [_statements(_scale_table(number) for number in part) for part in _parts(tables)])


def big_tables() -> list[str]:
    """The names of the tables that hold nearly everything."""
    return [*(table.name for table in GENERATED), *(table.name for table in (*LINES, *FILES))]


def _together(sessions: Sessions, tasks: Sequence[Task]) -> None:
    """Do the tasks, as many at a time as there are connections; the first error is raised when all have ended."""

    def work() -> None:
        with sessions() as session:
            session.query("SET SESSION unique_checks = 0, foreign_key_checks = 0")
            for task in waiting:
                task(session)

    waiting = _Shared(tasks)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done in [pool.submit(work) for _ in range(CONNECTIONS)]:
            done.result()


class _Shared:
    """Tasks that several threads iterate over, each getting others."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = list(reversed(list(tasks)))

    def __iter__(self) -> Iterator[Task]:
        while self._tasks:
            yield self._tasks.pop()


# Big tables


def _big(scratch: Path, size: int, seed: int) -> list[Task]:
    generated = [_generated(table, _used(size * table.share), seed) for table in GENERATED]
    lines = [_lines(table, _used(size * table.share), seed, scratch) for table in LINES]
    files = [_files(table, _used(size * table.share), seed, scratch) for table in FILES]
    return [*lines, generated[0], *files, *generated[1:]]


def _used(size: float) -> int:
    """Bytes of a file of that size that are in use; a file of very few is larger than it should be."""
    return int(max(size / 4, size - SLACK))


def _generated(table: Generated, size: int, seed: int) -> Task:
    rows = max(1, int(size / table.row_bytes))

    def task(session: Session[Any]) -> None:
        _run(session, [f"CREATE TABLE {table.name} ({table.columns}) ENGINE=InnoDB"])
        for first in range(1, rows + 1, _ROWS_AT_ONCE):
            numbers = f"seq_{first}_to_{min(rows, first + _ROWS_AT_ONCE - 1)}"
            one, two = (_seed(table.name, seed, first, word) for word in "ab")
            _run(
                session,
                [
                    f"SET SESSION rand_seed1 = {one}, rand_seed2 = {two}",
                    f"INSERT INTO {table.name} SELECT {table.row} FROM {MANY}.{numbers}",
                ],
            )
        _run(session, [f"ALTER TABLE {table.name} {table.indexes}"])

    return task


def _lines(table: Told, size: int, seed: int, scratch: Path) -> Task:
    def task(session: Session[Any]) -> None:
        _run(session, [f"CREATE TABLE {table.name} ({table.columns}) ENGINE=InnoDB"])
        noise = random.Random(_seed(table.name, seed))
        for lines in _batches(table.content(noise), int(size / table.overhead), _BYTES_AT_ONCE):
            file = scratch / table.name
            file.write_bytes(b"".join(lines))
            _run(session, [f"LOAD DATA INFILE '{file}' INTO TABLE {table.name} CHARACTER SET utf8mb4 {_AS_IS}"])
            file.unlink()

    return task


def _files(table: Told, size: int, seed: int, scratch: Path) -> Task:
    def task(session: Session[Any]) -> None:
        _run(session, [f"CREATE TABLE {table.name} ({table.columns}) ENGINE=InnoDB"])
        noise = random.Random(_seed(table.name, seed))
        numbers = itertools.count(1)
        for batch in _batches(table.content(noise), int(size / table.overhead), _BYTES_AT_ONCE):
            files = [scratch / f"{table.name}-{next(numbers)}" for _ in batch]
            for file, data in zip(files, batch, strict=True):
                file.write_bytes(data)
            values = ", ".join(f"('{file.name}', LOAD_FILE('{file}'))" for file in files)
            _run(session, [f"INSERT INTO {table.name} (name, data) VALUES {values}"])
            for file in files:
                file.unlink()

    return task


def _batches(content: Iterator[bytes], total: int, at_once: int) -> Iterator[list[bytes]]:
    """What comes, until there are ``total`` bytes of it, in lists of about ``at_once`` bytes."""
    batch: list[bytes] = []
    length = 0
    while total > 0:
        item = next(content)
        batch.append(item)
        length += len(item)
        total -= len(item)
        if length >= at_once or total <= 0:
            yield batch
            batch, length = [], 0


def _seed(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())


# Small tables


def _small(tables: int) -> list[Task]:
    return [_statements(_small_table(number) for number in part) for part in _parts(tables)]


def _parts(tables: int) -> list[range]:
    return [range(first, min(tables, first + _TABLES_AT_ONCE)) for first in range(0, tables, _TABLES_AT_ONCE)]


def _statements(statements: Iterable[str]) -> Task:
    sql = list(statements)
    return lambda session: _run(session, sql)


def _small_table(number: int) -> str:
    """A table of a few rows, now of this engine and now of that."""
    return _table(number, engine=ENGINES[number % len(ENGINES)], rows=1 + number % 9)


def _scale_table(number: int) -> str:
    return _table(number, engine="InnoDB", rows=SCALE_ROWS)


def _table(number: int, *, engine: str, rows: int) -> str:
    name = f"{MANY}.small{number:05}"
    values = ", ".join(f"({row}, 'row {row} of {number}', {row * number % 97})" for row in range(1, 1 + rows))
    return (
        f"CREATE TABLE {name} (id INT NOT NULL PRIMARY KEY, name VARCHAR(80), value INT) ENGINE={engine};"
        f"INSERT INTO {name} VALUES {values}"
    )


def _run(session: Session[Any], statements: Iterable[str]) -> None:
    """Run statements in one go, and see each of them through."""
    with session.cursor() as cursor:
        cursor.execute(";".join(statements))
        while cursor.nextset():
            pass
