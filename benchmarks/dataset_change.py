"""How a benchmark's data set changes as on an ordinary day: in runs of neighbouring rows, here and there in each table.

The unit is the page, since that is what an incremental backup carries: ``share`` is the part of the pages of the whole
data set that differ afterwards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pymysql.connections import Connection as Session
from pymysql.cursors import Cursor

RUN_PAGES = 32
"""Pages of a run, at most."""
FEWEST_RUNS = 4
TENTH = 10
DELETES, INSERTS = 3, 7
"""Which ones of ten runs lose rows, too, and which ones are added instead of updated."""
DELETE_PAGES = 8
"""One row of so many pages is deleted: more would change every page of an index in another order."""
AT_ONCE = 500


@dataclass(frozen=True)
class Changed:
    """How a table changes.

    ``update`` is set in ``rows`` rows of each page of a run; an added row copies ``columns`` as ``added``; each
    of ``scattered`` is an index in whose order neighbours are far apart, and what moves a row in it.
    """

    name: str
    update: str
    rows: int
    columns: str
    added: str
    scattered: tuple[tuple[str, str], ...] = ()


_SYSBENCH = tuple(
    Changed(
        name=f"sbtest.sbtest{number}",
        update="c = REVERSE(c)",
        rows=4,
        columns="k, c, pad",
        added="500000 + id % 7, c, REVERSE(pad)",
        scattered=((f"k_{number}", "k = 1 + (k * 31 + id) % 1000000"),),
    )
    for number in range(1, 9)
)
_ROTATED = "CONCAT(SUBSTR(data, 1001), LEFT(data, 1000))"
CHANGED = (
    *_SYSBENCH,
    Changed(
        name="shop.orders",
        update="status = IF(status = 'paid', 'sent', 'done'), total = total + 1",
        rows=8,
        columns="customer, product, placed, status, total, reference",
        added="7, 1 + id % 3, '2034-01-01' + INTERVAL id SECOND, 'paid', total, CONCAT('NEW', LPAD(id, 9, '0'))",
        scattered=(
            ("customer", "customer = 1 + (customer * 31 + id) % 200000"),
            ("product", "product = 1 + (product * 31 + id) % 20000"),
            ("reference", "reference = REVERSE(reference)"),
        ),
    ),
    Changed(
        name="press.articles",
        update="views = views + 1",
        rows=4,
        columns="title, author, published, views, body",
        added="title, author, published + INTERVAL 9 YEAR, 0, body",
    ),
    Changed(
        name="press.profiles",
        update="seen = seen + INTERVAL 1 DAY,"
        " document = IF(id % 10, document, JSON_SET(document, '$.revision', YEAR(seen), '$.settings.theme', 'dark'))",
        rows=4,
        columns="owner, seen, document",
        added="CONCAT('new', LPAD(id, 9, '0')), seen, document",
        scattered=(("owner", "owner = REVERSE(owner)"),),
    ),
    Changed("media.images", f"data = {_ROTATED}", 1, "name, data", f"name, {_ROTATED}"),
    Changed("media.attachments", f"data = {_ROTATED}", 1, "name, data", f"name, {_ROTATED}"),
)


@dataclass(frozen=True)
class Extent:
    """Where a table's rows are: the ids in use, and the pages of each index."""

    first: int
    last: int
    pages: dict[str, int]

    @property
    def rows(self) -> float:
        """Rows of a page of the primary key."""
        return (self.last - self.first + 1) / self.pages["PRIMARY"]


def change(session: Session[Any], share: float, *, seed: int = 0) -> None:
    """Change about that share of the pages (0.01, 0.1); another ``seed`` changes other ones."""
    noise = random.Random(seed)
    with session.cursor() as cursor:
        tables = _tables(cursor)
        for table in CHANGED:
            if table.name in tables:
                _change(cursor, table, share, noise)
        small = sorted(name for name in tables if name.startswith("many."))
        for name in noise.sample(small, math.ceil(share * len(small))):
            cursor.execute(f"UPDATE {name} SET value = value + 1, name = REVERSE(name)")


def _change(cursor: Cursor, table: Changed, share: float, noise: random.Random) -> None:
    extent = _extent(cursor, table.name)
    for number, (first, last) in enumerate(_runs(extent, share, noise)):
        for statement in _run(table, extent, number % TENTH, f"id BETWEEN {first} AND {last}"):
            cursor.execute(statement)
    for index, move in table.scattered:
        # A row that moves touches two pages, and some pages are touched twice.
        moves = round(-math.log(1 - share) * extent.pages[index] / 2)
        ids = [noise.randint(extent.first, extent.last) for _ in range(moves)]
        for start in range(0, len(ids), AT_ONCE):
            some = ", ".join(map(str, ids[start : start + AT_ONCE]))
            cursor.execute(f"UPDATE {table.name} SET {move} WHERE id IN ({some})")


def _run(table: Changed, extent: Extent, number: int, where: str) -> Iterator[str]:
    """What happens to a run of rows."""
    if number == INSERTS:
        yield f"INSERT INTO {table.name} ({table.columns}) SELECT {table.added} FROM {table.name} WHERE {where}"
        return
    yield f"UPDATE {table.name} SET {table.update} WHERE {where} AND id % {max(1, int(extent.rows / table.rows))} = 0"
    if number == DELETES:
        yield f"DELETE FROM {table.name} WHERE {where} AND id % {max(2, int(extent.rows * DELETE_PAGES))} = 0"


def _runs(extent: Extent, share: float, noise: random.Random) -> Iterator[tuple[int, int]]:
    """The first and the last id of each run: one at a random place in each of equal parts of the table."""
    pages = share * extent.pages["PRIMARY"]
    length = max(1, min(RUN_PAGES, int(pages / FEWEST_RUNS)))
    runs = max(1, round(pages / length))
    part = (extent.last - extent.first + 1) / runs
    ids = length * extent.rows
    for number in range(runs):
        first = int(extent.first + number * part + noise.random() * max(0.0, part - ids))
        yield first, int(first + ids)


def _extent(cursor: Cursor, name: str) -> Extent:
    cursor.execute(f"SELECT MIN(id), MAX(id) FROM {name}")
    first, last = cursor.fetchone() or (0, 0)
    cursor.execute(
        "SELECT index_name, stat_value FROM mysql.innodb_index_stats"
        " WHERE stat_name = 'size' AND CONCAT(database_name, '.', table_name) = %s",
        (name,),
    )
    return Extent(int(first), int(last), {index: int(pages) for index, pages in cursor.fetchall()})


def _tables(cursor: Cursor) -> set[str]:
    """The InnoDB tables, by the schema's and their own name."""
    cursor.execute(
        "SELECT CONCAT(table_schema, '.', table_name) FROM information_schema.tables WHERE engine = 'InnoDB'"
    )
    return {name for (name,) in cursor.fetchall()}
