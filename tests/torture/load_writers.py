"""The load: clients that write to one server at once, and remember what it told them that it has committed.

``moves`` transfers money, and writes a ledger and a journal; ``loose`` writes to tables of engines that have no
transactions; ``long`` keeps a transaction open nearly all the time; ``alter`` makes, changes and drops other tables.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any, Self

import pymysql
from pymysql.cursors import Cursor

from tests.servers.mariadb import MariaDB
from tests.torture.load_cases import ACCOUNTS, FUNDS, LoadCase

PATIENCE = 120.0
"""Seconds that a writer may take to end."""
LOST = frozenset({1205, 1213})
"""Errors of a transaction that had to give way: it waited too long for a lock, or there was a deadlock."""

TABLES = f"""
CREATE DATABASE bank; CREATE DATABASE beside;
USE bank;
CREATE TABLE accounts (id INT PRIMARY KEY, balance BIGINT NOT NULL) ENGINE=InnoDB;
CREATE TABLE ledger (writer INT, n INT, amount INT NOT NULL, hash CHAR(32) NOT NULL, PRIMARY KEY (writer, n),
  KEY (hash)) ENGINE=InnoDB;
CREATE TABLE journal (id BIGINT AUTO_INCREMENT PRIMARY KEY, writer INT NOT NULL, n INT NOT NULL, UNIQUE (writer, n))
  ENGINE=InnoDB;
CREATE TABLE filler (id INT PRIMARY KEY, writer INT, v VARCHAR(800) NOT NULL, KEY (v(20))) ENGINE=InnoDB;
CREATE TABLE blobs (id INT PRIMARY KEY, v LONGBLOB) ENGINE=InnoDB;
CREATE TABLE pending (txn INT, id INT, v VARCHAR(200), PRIMARY KEY (txn, id)) ENGINE=InnoDB;
CREATE TABLE loose_my (n INT PRIMARY KEY, v VARCHAR(200)) ENGINE=MyISAM;
CREATE TABLE loose_ar (n INT PRIMARY KEY, v VARCHAR(200)) ENGINE=Aria TRANSACTIONAL=1;
INSERT INTO accounts SELECT seq, {FUNDS} FROM seq_1_to_{ACCOUNTS};
INSERT INTO filler SELECT seq, 0, REPEAT(MD5(seq), 16) FROM seq_1_to_1500;
"""


def chained(before: str, writer: int, n: int, amount: int) -> str:
    """The hash of a ledger's row, which holds the one before it."""
    return hashlib.sha256(f"{before}|{writer}|{n}|{amount}".encode()).hexdigest()[:32]


@dataclass
class Told:
    """What the server has told its clients that it did: for each table and key, the number of the transaction."""

    committed: dict[tuple[str, int, int], int] = field(default_factory=dict)
    by_thread: Counter[str] = field(default_factory=Counter)

    def commit(self, cursor: Cursor, table: str, first: int, second: int) -> None:
        """Remember a row that the transaction that has just been committed has written."""
        cursor.execute("SELECT @@last_gtid")
        self.committed[table, first, second] = int(str((cursor.fetchone() or ("",))[0]).rpartition("-")[2])
        self.by_thread[threading.current_thread().name] += 1


class Load:
    """All writers of a case; a context manager that has them run inside, and raises what stopped one of them."""

    def __init__(self, server: MariaDB, case: LoadCase) -> None:
        self.told = Told()
        self._server, self._case = server, case
        self._over = threading.Event()
        self._errors: list[Exception] = []
        self._steady = [*(f"writer {number}" for number in range(case.writers)), "my", "ar"]
        works: list[tuple[str, Callable[[Cursor, Random], None]]] = [
            *((f"writer {number}", self._moves(number)) for number in range(case.writers)),
            ("my", self._loose("loose_my")),
            ("ar", self._loose("loose_ar")),
            ("long", self._long),
            ("alter", self._alter),
        ]
        self._threads = [
            threading.Thread(target=self._write, args=(name, work), name=name, daemon=True) for name, work in works
        ]

    def __enter__(self) -> Self:
        self._server.script(TABLES)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        alive = [thread.name for thread in self._threads if thread.is_alive()]
        if alive and error is None:
            raise AssertionError(f"these go on writing: {alive}")
        if self._errors and error is None:
            raise self._errors[0]

    def wait_for(self, commits: int) -> None:
        """Wait until each of those that write all the time has committed so much more."""
        before, end = Counter(self.told.by_thread), time.monotonic() + PATIENCE
        while any(self.told.by_thread[name] < before[name] + commits for name in self._steady) and not self._errors:
            assert time.monotonic() < end, f"not {commits} commits each in {PATIENCE:g} s"
            time.sleep(0.01)

    def _write(self, name: str, work: Callable[[Cursor, Random], None]) -> None:
        try:
            with self._server.session() as session, session.cursor() as cursor:
                cursor.execute("USE bank")
                work(cursor, self._case.dice(name))
        except Exception as error:
            self._errors.append(error)

    def _rest(self, dice: Random, most: float) -> None:
        self._over.wait(dice.random() * most)

    def _moves(self, writer: int) -> Callable[[Cursor, Random], None]:
        def write(cursor: Cursor, dice: Random) -> None:
            n, before = 0, ""
            while not self._over.is_set():
                amount = dice.randint(1, 100)
                after = chained(before, writer, n + 1, amount)
                if self._committed(cursor, dice, (writer, n + 1, amount, after)):
                    n, before = n + 1, after
                    self.told.commit(cursor, "ledger", writer, n)
                self._rest(dice, self._case.pause)

        return write

    def _committed(self, cursor: Cursor, dice: Random, row: tuple[int, int, int, str]) -> bool:
        """Whether one transaction was committed, and not rolled back by us or by the server."""
        try:
            cursor.execute("BEGIN")
            self._transfer(cursor, dice, row)
            end = "ROLLBACK" if dice.random() < 0.1 else "COMMIT"
            cursor.execute(end)
        except pymysql.err.OperationalError as error:
            if error.args[0] not in LOST:
                raise
            cursor.execute("ROLLBACK")
            return False
        return end == "COMMIT"

    def _transfer(self, cursor: Cursor, dice: Random, row: tuple[int, int, int, str]) -> None:
        writer, n, amount, _ = row
        for _ in range(dice.randint(1, 3)):
            giver, taker = dice.sample(range(1, ACCOUNTS + 1), 2)
            cursor.execute("UPDATE accounts SET balance = balance - %s WHERE id = %s", (amount, giver))
            cursor.execute("UPDATE accounts SET balance = balance + %s WHERE id = %s", (amount, taker))
        cursor.execute("INSERT INTO ledger VALUES (%s, %s, %s, %s)", row)
        cursor.execute("INSERT INTO journal (writer, n) VALUES (%s, %s)", (writer, n))
        if dice.random() < 0.1:  # a part that is undone
            cursor.execute("SAVEPOINT s")
            cursor.execute("UPDATE accounts SET balance = balance - 1 WHERE id = %s", (dice.randint(1, ACCOUNTS),))
            cursor.execute("ROLLBACK TO s")
        if dice.random() < 0.1:
            begin = dice.randint(1, 1400)
            text = dice.randbytes(200).hex()
            change = "UPDATE filler SET writer = %s, v = %s WHERE id BETWEEN %s AND %s"
            cursor.execute(change, (writer, text, begin, begin + dice.randint(1, 60)))
        if dice.random() < 0.06:
            body = dice.randbytes(dice.randint(1, self._case.blob))
            cursor.execute("REPLACE INTO blobs VALUES (%s, %s)", (dice.randint(1, 20), body))

    def _loose(self, table: str) -> Callable[[Cursor, Random], None]:
        def write(cursor: Cursor, dice: Random) -> None:
            n = 0
            while not self._over.is_set():
                n += 1
                cursor.execute(f"INSERT INTO {table} VALUES (%s, %s)", (n, dice.randbytes(dice.randint(1, 90)).hex()))
                self.told.commit(cursor, table, n, 0)
                self._rest(dice, self._case.pause + 0.01)

        return write

    def _long(self, cursor: Cursor, dice: Random) -> None:
        """Transactions that are open when a backup ends, many of them over several backups."""
        txn = 0
        while not self._over.is_set():
            txn += 1
            cursor.execute("BEGIN")
            for number in range(dice.randint(1, 300)):
                cursor.execute("INSERT INTO pending VALUES (%s, %s, %s)", (txn, number, dice.randbytes(50).hex()))
            cursor.execute("UPDATE pending SET v = %s WHERE txn = %s", (f"by {txn}", dice.randint(1, txn)))
            self._rest(dice, dice.choice((0.3, 3, 10)))
            if dice.random() < 0.3 or self._over.is_set():
                cursor.execute("ROLLBACK")
                continue
            cursor.execute("COMMIT")
            self.told.commit(cursor, "pending", txn, 0)

    def _alter(self, cursor: Cursor, dice: Random) -> None:
        """Other tables, made, filled, renamed, altered, emptied and dropped."""
        made, live = 0, list[str]()
        while not self._over.is_set():
            if len(live) < 3 or (len(live) < 10 and dice.random() < 0.4):
                made, engine = made + 1, dice.choice(self._case.engines)
                live.append(f"beside.t{made}")
                cursor.execute(f"CREATE TABLE {live[-1]} (id INT PRIMARY KEY, v TEXT) ENGINE={engine}")
                cursor.execute(f"INSERT INTO {live[-1]} SELECT seq, MD5(seq) FROM seq_1_to_{dice.randint(1, 400)}")
            else:
                change(cursor, dice, live, made)
            self._rest(dice, 0.2)


def change(cursor: Cursor, dice: Random, live: list[str], made: int) -> None:
    """Change one of the tables, at random."""
    table = live.pop(dice.randrange(len(live)))
    column = f"c{dice.randrange(1 << 32)}"
    statements: dict[str, Any] = {
        "drop": f"DROP TABLE {table}",
        "rename": f"RENAME TABLE {table} TO {table}_{made}",
        "truncate": f"TRUNCATE TABLE {table}",
        "optimize": f"OPTIMIZE TABLE {table}",
        "add": f"ALTER TABLE {table} ADD COLUMN {column} INT DEFAULT {dice.randrange(99)}",
        "copy": f"ALTER TABLE {table} ADD COLUMN {column} INT, ALGORITHM=COPY",
        "key": f"ALTER TABLE {table} ADD KEY {column} (v(10))",
        "fill": f"UPDATE {table} SET v = CONCAT(MD5(id), '{column}')",
    }
    what = dice.choice(list(statements))
    cursor.execute(statements[what])
    cursor.fetchall()
    if what != "drop":
        live.append(f"{table}_{made}" if what == "rename" else table)
