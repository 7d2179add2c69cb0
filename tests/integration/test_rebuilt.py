"""A table is being rebuilt while a backup is taken, and is done when the next one is: mariabackup brings half of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from guestagent.errors import Refused
from guestagent.manifest import Backup
from tests.integration.running import PATIENCE, Committer, in_memory, wait_until
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace

ROWS = 150
DATA = f"""
CREATE DATABASE d; USE d;
CREATE TABLE orders (id INT PRIMARY KEY, v CHAR(200)) ENGINE=InnoDB;
INSERT INTO orders SELECT seq, 'x' FROM seq_1_to_{ROWS};
"""
REBUILD = "ALTER TABLE d.orders ADD COLUMN w TEXT DEFAULT (MD5(REPEAT(v, 5000000))), ALGORITHM=COPY"
"""Takes 10 ms or so for each row."""
SLEEPY = "extra_args = --log-copy-interval=4500\n"
"""Of the tool, which has most of its locks by then, and waits for its copy of the redo log; for 5 s at most."""
STATE = f"SELECT state FROM information_schema.processlist WHERE info = '{REBUILD}'"


@contextmanager
def rebuilding(server: MariaDB) -> Iterator[None]:
    """The table is being copied, and has been afterwards."""
    alter = threading.Thread(target=server.script, args=(REBUILD,), daemon=True)
    alter.start()
    wait_until(lambda: list((server.datadir / "d").glob("#sql*.ibd")), "the new table is there")
    yield
    alter.join(PATIENCE)
    assert not alter.is_alive()


def taken_beside_a_rebuild(guest: Guest) -> Backup:
    """A full backup that ends when the new table has been filled and may not change places with the old one yet."""
    with Committer(guest.server), rebuilding(guest.server), ThreadPoolExecutor(1) as pool:
        full = pool.submit(guest.back_up)
        wait_until(lambda: guest.server.query(STATE) == (("Waiting for backup lock",),), "the rebuild waits for us")
        guest.server.query("SET GLOBAL innodb_log_checkpoint_now = 1")
        return full.result(PATIENCE)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with in_memory(), workplace() as place, MariaDB() as server:
        server.script(DATA)
        made = Guest("guest1", server, place, f"file://{place}/store", database=SLEEPY)
        made.account()
        yield made


def restored(guest: Guest, backup: Backup, name: str) -> MariaDB:
    """A server on what was restored of a backup, not started."""
    server = MariaDB(datadir=guest.place / name, running=False)
    Guest(name, server, guest.place, guest.url).restore(backup, start=False)
    return server


def test_a_table_that_was_being_rebuilt_when_the_parent_was_taken(guest: Guest) -> None:
    full = taken_beside_a_rebuild(guest)
    assert len(full.manifest.left_out) == 1
    with pytest.raises(Refused, match=r"d/orders among them"):
        guest.back_up(full)
    again = guest.back_up()
    assert again.manifest.left_out == ()
    guest.server.query("INSERT INTO d.orders VALUES (0, 'y', 'z')")
    tip, expected = guest.back_up(again), guest.server.checksums()
    with restored(guest, tip, "twin") as twin:
        twin.start()
        assert twin.checksums() == expected
    with restored(guest, full, "older") as older:
        older.start()
        assert older.query("SELECT COUNT(*), MAX(v) FROM d.orders") == ((ROWS, "x"),)
