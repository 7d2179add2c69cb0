"""A private, real MariaDB server for tests: installed, started, questioned, killed and removed.

Everything that it makes lies in a workplace of its own.  It reads no option file of the machine and listens on its
UNIX socket alone unless a port is asked for.  Every wait is bounded,
and an error carries the end of the server's log.

    with MariaDB() as server:
        server.query("CREATE DATABASE shop")
        tool = subprocess.run(["mariabackup", ..., f"--socket={server.socket}", "--user=root"])
        before = server.checksums()
    with MariaDB(datadir=restored) as copy:          # a server on a directory that something else made
        assert copy.checksums() == before
"""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pymysql
from pymysql.connections import Connection as Session
from pymysql.constants import CLIENT

from guestagent.engines import Connection
from tests.servers import content
from tests.servers.ports import free_ports
from tests.servers.workplace import give_to_server, make_workplace, server_user, workplace

__all__ = ["BACKUP_GRANTS", "MariaDB", "give_to_server", "make_workplace", "server_user", "workplace"]

PATIENCE = 60.0
"""Seconds that a server may take to start or to stop."""

BACKUP_GRANTS = ("RELOAD", "PROCESS", "BINLOG MONITOR")

_SMALL = (
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-buffer-pool-dump-at-shutdown=0",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=8M",
    "--skip-name-resolve",
    "--character-set-server=utf8mb4",
    "--server-id=1",
    "--log-bin=binlog",
    "--log-bin-trust-function-creators=1",
)

Row = tuple[Any, ...]


@functools.cache
def _template() -> Path:
    """A freshly installed datadir, made once a session and copied from then on."""
    place = make_workplace()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    tmpdir = place / "tmp"  # not one that another server may use, as in MariaDB
    tmpdir.mkdir()
    give_to_server(tmpdir)
    done = subprocess.run(
        [
            "mariadb-install-db",
            "--no-defaults",
            f"--user={server_user()}",
            f"--datadir={place / 'data'}",
            f"--tmpdir={tmpdir}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=8M",
        ],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=4 * PATIENCE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"mariadb-install-db ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return place / "data"


class MariaDB:
    """One server; a context manager that has it running inside and nothing left afterwards.

    ``datadir`` is a directory that exists already (a restored one); without it the server gets a new one of its
    own at ``home / "data"``.  ``options`` are options of mariadbd that hold for every start.  ``networking`` makes
    it listen on a free port of 127.0.0.1, too.  ``running=False`` leaves the first start to the test.
    """

    def __init__(
        self,
        *,
        datadir: Path | None = None,
        options: Sequence[str] = (),
        networking: bool = False,
        running: bool = True,
    ) -> None:
        self.home = make_workplace()
        self.datadir = datadir or self.home / "data"
        self.socket = self.home / "s"
        self.log = self.home / "log"
        self.port = free_ports(1)[0] if networking else 0
        self._fresh = datadir is None
        self._options = tuple(options)
        self._running = running
        self._pid_file = self.home / "pid"
        # A server that starts deletes every #sql file in its tmpdir, also those that another one is using.
        self._tmpdir = self.home / "tmp"
        self._tmpdir.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        atexit.register(self._remove)
        try:
            give_to_server(self.home)
            if self._fresh:
                self.install()
            if self._running:
                self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        atexit.unregister(self._remove)

    # -- its life

    def install(self) -> None:
        """Put an empty, installed datadir where the server looks for it (a second time: a server wiped)."""
        shutil.rmtree(self.datadir, ignore_errors=True)
        copy = ["cp", "-a", "--reflink=auto", str(_template()), str(self.datadir)]
        subprocess.run(copy, check=True, timeout=PATIENCE)

    def start(self, *options: str) -> None:
        """Start it, with more options of mariadbd for this time only, and wait until it answers."""
        if self.running:
            raise RuntimeError("the server runs already")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._wait_for(self._answers, "start")

    def stop(self) -> None:
        """Stop it in good order and wait for its end; no error if it is down already."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would, as far as a process can tell."""
        self._end(signal.SIGKILL)

    def restart(self, *options: str) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start(*options)

    @property
    def running(self) -> bool:
        """Whether the process lives, whoever started it."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """The process id, also of a server that ``start_script`` started; None when it is down."""
        if self._process is not None:
            if self._process.poll() is None:
                return self._process.pid
            self._process = None
        with suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text())
            if _is_server(pid):
                return pid
        return None

    def argv(self, *options: str) -> list[str]:
        """The command that runs the server in the foreground."""
        listen = ["--bind-address=127.0.0.1", f"--port={self.port}"] if self.port else ["--skip-networking"]
        return [
            shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/libexec") or "mariadbd",
            "--no-defaults",
            f"--user={server_user()}",
            f"--datadir={self.datadir}",
            f"--socket={self.socket}",
            f"--pid-file={self._pid_file}",
            f"--tmpdir={self._tmpdir}",
            *_SMALL,
            *listen,
            *self._options,
            *options,
        ]

    def start_script(self, *options: str) -> Path:
        """An executable that starts the server as its unit would, with $MYSQLD_OPTS, and returns when it answers."""
        ping = f"mariadb-admin --no-defaults --socket={self.socket} --user=root ping"
        return self._executable(
            "start",
            f"setsid {shlex.join(self.argv(*options))} $MYSQLD_OPTS >>{self.log} 2>&1 </dev/null &",
            f"for n in $(seq {int(PATIENCE * 10)}); do {ping} >/dev/null 2>&1 && exit 0; sleep 0.1; done",
            f"tail -n 20 {self.log} >&2; exit 1",
        )

    def stop_script(self) -> Path:
        """An executable that stops the server and returns when it is down (for stop_command); harmless if it is."""
        return self._executable(
            "stop",
            f"test -e {self._pid_file} || exit 0",
            f"kill $(cat {self._pid_file}) || exit 0",
            f"for n in $(seq {int(PATIENCE * 10)}); do test -e {self._pid_file} || exit 0; sleep 0.1; done",
            "exit 1",
        )

    # -- what one asks it

    @property
    def connection(self) -> Connection:
        """How root reaches it."""
        return Connection(socket=str(self.socket), user="root")

    def backup_account(
        self, user: str = "backup", password: str = "secret", *, grants: Sequence[str] = BACKUP_GRANTS
    ) -> Connection:
        """Make an account with ``grants`` on ``*.*`` and nothing else; how it reaches the server."""
        self.query("CREATE OR REPLACE USER %s@localhost IDENTIFIED BY %s", user, password)
        if grants:
            self.query(f"GRANT {', '.join(grants)} ON *.* TO %s@localhost", user)
        return Connection(socket=str(self.socket), user=user, password=password)

    @contextmanager
    def session(self) -> Iterator[Session[Any]]:
        """A connection of root's, for what spans several statements (locks, transactions)."""
        session = pymysql.connect(
            unix_socket=str(self.socket),
            user="root",
            charset="utf8mb4",
            autocommit=True,
            connect_timeout=int(PATIENCE),
            read_timeout=4 * PATIENCE,
            client_flag=CLIENT.MULTI_STATEMENTS,
        )
        try:
            yield session
        finally:
            session.close()

    def query(self, sql: str, *arguments: object) -> tuple[Row, ...]:
        """The rows of one statement, as root; ``%s`` stands for an argument if there are any."""
        with self.session() as session, session.cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return tuple(cursor.fetchall())

    def value(self, sql: str, *arguments: object) -> Any:
        """The first column of the first row."""
        return self.query(sql, *arguments)[0][0]

    def script(self, text: str) -> str:
        """Run a script through the real client (DELIMITER and all); what it printed."""
        done = subprocess.run(
            ["mariadb", "--no-defaults", f"--socket={self.socket}", "--user=root", "--default-character-set=utf8mb4"],
            input=text,
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"script failed: {done.stderr.strip()}")
        return done.stdout

    def schemas(self) -> list[str]:
        """The schemas that are not the server's own."""
        with self.session() as session:
            return content.schemas(session.cursor())

    def checksums(self) -> dict[str, int]:
        """CHECKSUM TABLE ... EXTENDED of every table in every schema of users; raises if one cannot be read."""
        with self.session() as session:
            return content.checksums(session.cursor())

    def definitions(self) -> dict[str, str]:
        """Every schema, table, view, trigger, routine and event of users, by kind and name, as SHOW CREATE has it."""
        with self.session() as session:
            return content.definitions(session.cursor())

    def content(self) -> dict[str, int | str]:
        """Checksums and definitions together: equal for two servers exactly if they hold the same."""
        return {**self.definitions(), **self.checksums()}

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the server's error log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # -- inside

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"the server ended while it started:\n{self.log_tail()}")
        try:
            with self.session():
                return True
        except pymysql.err.OperationalError as error:
            # A restored server may know another root than ours: it answers all the same.
            return error.args[0] in (1045, 1698)

    def _end(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, number)
        self._wait_for(lambda: self.pid != pid and not _is_server(pid), f"end after {number.name}")
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    def _wait_for(self, happened: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > limit:
                raise RuntimeError(f"the server did not {what} within {PATIENCE:g} s:\n{self.log_tail()}")
            time.sleep(0.02)

    def _executable(self, name: str, *lines: str) -> Path:
        path = self.home / name
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return path

    def _remove(self) -> None:
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def _is_server(pid: int) -> bool:
    """Whether ``pid`` is a mariadbd that is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    name, _, rest = stat.partition("(")[2].rpartition(")")
    return name == "mariadbd" and rest.split()[0] != "Z"
