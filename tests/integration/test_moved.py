"""A table of Aria that was repaired after many had read: the restored server must not take it for another system's."""

from __future__ import annotations

from tests.integration.running import in_memory
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace

TABLE = """
CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY, v TEXT, b LONGBLOB) ENGINE=Aria;
INSERT INTO shop.t VALUES (1, 'blob', REPEAT(RANDOM_BYTES(1024), 5000));
"""
CHECKSUM = "CHECKSUM TABLE shop.t EXTENDED"
READERS = 300
"""Statements, each of which takes a number, and writes none into Aria's log."""


def test_a_table_that_was_repaired_is_there_after_a_restore() -> None:
    with in_memory(), workplace() as place, MariaDB() as server:
        guest = Guest("guest1", server, place, f"file://{place}/store")
        guest.account()
        server.script(TABLE)
        with server.session() as session, session.cursor() as cursor:
            for _ in range(READERS):
                cursor.execute("SELECT id FROM shop.t")
            cursor.execute("REPAIR TABLE shop.t")
        backup = guest.back_up()
        with MariaDB(datadir=place / "twin", running=False) as twin:
            Guest("guest2", twin, place, guest.url).restore(backup, start=True)
            assert twin.query(CHECKSUM) == server.query(CHECKSUM)
