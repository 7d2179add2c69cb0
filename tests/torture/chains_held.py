"""A session that holds what no backup may contain: temporary tables, and a transaction that does not end."""

from __future__ import annotations

from contextlib import ExitStack

from tests.servers.mariadb import MariaDB

_ENGINES = ("InnoDB", "Aria", "MyISAM", "MEMORY")


class Held:
    """At most one such session with a server."""

    def __init__(self, server: MariaDB) -> None:
        self._server = server
        self._stack = ExitStack()

    def begin(self, number: int) -> None:
        """Another one, instead of the one before."""
        self.release()
        self._server.query("CREATE DATABASE IF NOT EXISTS held")
        self._server.query("CREATE TABLE IF NOT EXISTS held.t (id INT PRIMARY KEY, v TEXT, KEY (v(9))) ENGINE=InnoDB")
        self._server.query(f"INSERT IGNORE INTO held.t SELECT seq, 'kept' FROM held.seq_1_to_{number * 10 + 1}")
        session = self._stack.enter_context(self._server.session())
        with session.cursor() as cursor:
            for engine in _ENGINES:
                cursor.execute(f"CREATE TEMPORARY TABLE held.`temporary {engine}` (id INT) ENGINE={engine}")
                cursor.execute(f"INSERT INTO held.`temporary {engine}` SELECT seq FROM held.seq_1_to_500")
            cursor.execute("BEGIN")
            cursor.execute(f"UPDATE held.t SET v = REPEAT('never', 50) WHERE id % {number % 5 + 1} = 0")
            cursor.execute("INSERT INTO held.t SELECT seq, 'never' FROM held.seq_100000_to_101000")
            cursor.execute(f"DELETE FROM held.t WHERE id < {number}")

    def release(self) -> None:
        """End it, and nothing of it remains."""
        self._stack.close()
