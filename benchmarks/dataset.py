"""Databases for benchmarks: mixed data of a chosen size, made once and kept for later runs.

One command makes a datadir of sysbench-like tables, articles, JSON documents, files, orders with many indexes, and
hundreds of small tables, or one of nothing but small tables, for curves::

    python -m benchmarks.dataset --directory DIR --gigabytes 4 --small-tables 300
    python -m benchmarks.dataset --directory DIR --tables 20000

A directory that holds what is asked for is left as it is.  From Python::

    with ensure(directory, gigabytes=4).pristine(scratch) as data:      # a copy, running as a host in production would
        with data.session() as session:
            change(session, 0.01, seed=1)
            before = fingerprint(session)
        subprocess.run(["mariabackup", f"--socket={data.socket}", f"--user={data.user}", ...])

How tables are filled lives in benchmarks.dataset_fill, how they are changed in benchmarks.dataset_change.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pymysql
from pymysql.connections import Connection as Session
from pymysql.constants import CLIENT

from benchmarks.dataset_change import change
from benchmarks.dataset_fill import big_tables, fill, fill_scale
from tests.servers import content
from tests.servers.mariadb import MariaDB

__all__ = ["DataSet", "Wanted", "change", "ensure", "ensure_tables", "fingerprint"]

GB = 10**9
PATIENCE = 600
"""Seconds that one statement may take, or the pages of a server to be written."""
FEW_PAGES = 1000
"""Pages that a server writes while it stops."""
RECORD = "dataset.json"
UNFINISHED = "unfinished"
"""A file that says that a directory is ours to empty: what made it has not come to its end."""

PRODUCTION = (
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=1G",
    "--innodb-log-file-size=512M",
    "--binlog-row-image=MINIMAL",
    "--table-open-cache=4000",
)
"""Options of a server as a host in production has it."""
HURRIED = (
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-flush-method=nosync",
    "--innodb-buffer-pool-size=2G",
    "--innodb-log-file-size=2G",
    "--innodb-stats-auto-recalc=0",
    "--sync-frm=0",
    "--skip-log-bin",
    "--max-allowed-packet=256M",
)
"""Options of a server that is being filled, and whose data nobody would miss yet."""


@dataclass(frozen=True)
class Wanted:
    """What a data set is to hold: mixed data of that many gigabytes (10**9 bytes), or ``tables`` small tables."""

    gigabytes: float = 0
    small_tables: int = 0
    seed: int = 0
    tables: int = 0


@dataclass
class DataSet:
    """A datadir and its server, which runs inside a ``with`` or between start and stop."""

    directory: Path
    _stack: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)
    _server: MariaDB | None = field(default=None, repr=False, compare=False)

    user = "root"

    @property
    def datadir(self) -> Path:
        """The server's datadir."""
        return self.directory / "data"

    @property
    def socket(self) -> Path:
        """Where the running server listens."""
        return self._running().socket

    @property
    def pid(self) -> int:
        """The running server's process id."""
        pid = self._running().pid
        if pid is None:
            raise RuntimeError(f"the server of {self.directory} has died:\n{self._running().log_tail()}")
        return pid

    @property
    def record(self) -> dict[str, Any]:
        """What it holds, and what making it took."""
        found: dict[str, Any] = json.loads((self.directory / RECORD).read_text())
        return found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *options: str, usual: Sequence[str] = PRODUCTION) -> None:
        """Start the server, with more options of mariadbd than the ``usual`` ones."""
        if self._server is not None:
            raise RuntimeError(f"the server of {self.directory} runs already")
        server = MariaDB(datadir=self.datadir, options=(*usual, *options))
        self._server = self._stack.enter_context(server)

    def stop(self) -> None:
        """Stop the server in good order; no error if it is down already."""
        if self._server is None:
            return
        if self._server.running:
            settle(self._server)
        self._server.stop()
        self._server = None
        self._stack.close()

    @contextmanager
    def session(self) -> Iterator[Session[Any]]:
        """A connection of root's."""
        with connected(self.socket) as session:
            yield session

    def pristine(self, directory: Path) -> DataSet:
        """A copy of the data set in a new directory; the server of this one must be down."""
        if self._server is not None:
            raise RuntimeError(f"a running server's files cannot be copied: stop that of {self.directory}")
        directory.mkdir(parents=True)
        for part in (self.datadir, self.directory / RECORD):
            subprocess.run(["cp", "-a", "--reflink=auto", str(part), str(directory)], check=True, timeout=PATIENCE)
        return DataSet(directory)

    def _running(self) -> MariaDB:
        if self._server is None:
            raise RuntimeError(f"the server of {self.directory} is down")
        return self._server


def fingerprint(session: Session[Any]) -> dict[str, str]:
    """A checksum of every table of users by its name: equal for two servers if they hold the same rows."""
    return {name: str(checksum) for name, checksum in content.checksums(session.cursor()).items()}


# Making it


def ensure(directory: Path, gigabytes: float, *, small_tables: int = 300, seed: int = 0) -> DataSet:
    """The data set of a directory, made there if there is none; ValueError if there is another one."""
    return _ensure(directory, Wanted(gigabytes, small_tables, seed))


def ensure_tables(directory: Path, tables: int) -> DataSet:
    """As ensure, of that many small InnoDB tables and nothing else."""
    return _ensure(directory, Wanted(tables=tables))


def _ensure(directory: Path, wanted: Wanted) -> DataSet:
    record = directory / RECORD
    if not record.exists():
        _make(directory, wanted)
    found = DataSet(directory).record["wanted"]
    if found != asdict(wanted):
        raise ValueError(f"{directory} holds another data set ({found}): remove it or name another directory")
    return DataSet(directory)


def _make(directory: Path, wanted: Wanted) -> None:
    """Fill a directory that is empty, or holds what an earlier attempt left."""
    began = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()) and not (directory / UNFINISHED).exists():
        raise ValueError(f"{directory} is not empty: name another directory")
    (directory / UNFINISHED).touch()
    for part in ("data", "scratch"):
        shutil.rmtree(directory / part, ignore_errors=True)
    data = DataSet(directory)
    MariaDB(datadir=data.datadir).install()
    _fill(data, wanted)
    with data:  # once as it will be used, so that no later start has files to resize
        pages = _pages(data)
    subprocess.run(["sync", "-f", str(directory)], check=True, timeout=PATIENCE)
    figures = {"seconds": round(time.monotonic() - began, 1), "bytes": _sizes(data.datadir), "index_pages": pages}
    record = directory / f"{RECORD}.new"
    record.write_text(json.dumps({"wanted": asdict(wanted), **figures}, indent=2) + "\n")
    record.rename(directory / RECORD)
    (directory / UNFINISHED).unlink()


def _fill(data: DataSet, wanted: Wanted) -> None:
    scratch = data.directory / "scratch"
    scratch.mkdir()
    data.start(usual=HURRIED)
    if wanted.tables:
        fill_scale(data.session, wanted.tables)
    else:
        size = int(wanted.gigabytes * GB)
        fill(data.session, scratch, size, small_tables=wanted.small_tables, seed=wanted.seed)
        with data.session() as session:
            session.query(f"ANALYZE TABLE {', '.join(big_tables())}")
    data.stop()
    scratch.rmdir()


def _pages(data: DataSet) -> dict[str, int]:
    """Pages of primary keys, and of other indexes, by the server's own statistics."""
    with data.session() as session, session.cursor() as cursor:
        cursor.execute(
            "SELECT IF(index_name = 'PRIMARY', 'primary', 'secondary'), SUM(stat_value)"
            " FROM mysql.innodb_index_stats WHERE stat_name = 'size' AND database_name <> 'mysql' GROUP BY 1"
        )
        return {kind: int(pages) for kind, pages in cursor.fetchall()}


def _sizes(datadir: Path) -> dict[str, int]:
    """Bytes on disk of the tables of each schema of users, whatever their engine; of all .ibd files as ``ibd``."""
    schemas = [path for path in datadir.iterdir() if path.is_dir() and path.name not in content.SYSTEM_SCHEMAS]
    sizes = {path.name: sum(file.stat().st_size for file in path.iterdir()) for path in sorted(schemas)}
    return {**sizes, "ibd": sum(file.stat().st_size for file in datadir.rglob("*.ibd"))}


# Its server


@contextmanager
def connected(socket: Path) -> Iterator[Session[Any]]:
    """A connection of root's to the server that listens there."""
    session = pymysql.connect(
        unix_socket=str(socket),
        user=DataSet.user,
        charset="utf8mb4",
        autocommit=True,
        read_timeout=PATIENCE,
        client_flag=CLIENT.MULTI_STATEMENTS,
    )
    try:
        yield session
    finally:
        session.close()


def settle(server: MariaDB) -> None:
    """Wait until every change is in its page on disk, so that a stop takes no time and a start recovers nothing."""
    server.query(
        "SET GLOBAL innodb_io_capacity_max = 40000, innodb_io_capacity = 20000,"
        " innodb_max_dirty_pages_pct_lwm = 0, innodb_max_dirty_pages_pct = 0"
    )
    limit = time.monotonic() + PATIENCE
    while int(server.query("SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'")[0][1]) > FEW_PAGES:
        if time.monotonic() > limit:
            raise RuntimeError(f"pages are still not on disk after {PATIENCE} s")
        time.sleep(0.1)


def main() -> None:
    """Make the data set, or find it, and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="where it is, or is to be made")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gigabytes", type=float, help="how much mixed data (10**9 bytes)")
    what.add_argument("--tables", type=int, help="how many small tables, and nothing else")
    parser.add_argument("--small-tables", type=int, default=300, help="how many of the mixed data's tables are small")
    parser.add_argument("--seed", type=int, default=0, help="the same number makes the same data")
    given = parser.parse_args()
    try:
        if given.tables:
            data = ensure_tables(given.directory, given.tables)
        else:
            data = ensure(given.directory, given.gigabytes, small_tables=given.small_tables, seed=given.seed)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(data.record, indent=2))


if __name__ == "__main__":
    main()
