"""Clients that keep a server busy: short transactions of point selects and an update on the sysbench-like tables."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from benchmarks.dataset import connected

TABLES = 8
SELECTS = 4
"""Of a transaction; one update follows."""
CLIENTS = 2
PATIENCE = 60.0


class Done(NamedTuple):
    """A transaction: when it ended (seconds since the epoch), and seconds that it took."""

    at: float
    took: float


class Clients:
    """Processes that run inside the context; ``done`` is known after it."""

    def __init__(self, socket: Path, *, pause: float, seed: int, count: int = CLIENTS) -> None:
        self.done: list[Done] = []
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            self._ends.append(ours)
            words = (theirs, str(socket), pause, seed * count + number)
            self._processes.append(context.Process(target=work, args=words, daemon=True))

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        for end in self._ends:
            _answer(end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self._ends:
            end.send(None)
        for end in self._ends:
            self.done += (Done(*one) for one in _answer(end))
        for process in self._processes:
            process.join(PATIENCE)


def _answer(end: Connection) -> Any:
    if not end.poll(PATIENCE):
        raise RuntimeError("a client of the database does not answer")
    return end.recv()


def work(end: Connection, socket: str, pause: float, seed: int) -> None:
    """One client: works until it is told to stop, then tells what it did."""
    noise = random.Random(seed)
    done: list[tuple[float, float]] = []
    with connected(Path(socket)) as session, session.cursor() as cursor:
        last = _last(cursor)
        end.send("ready")
        while not end.poll():
            began = time.perf_counter()
            _transaction(cursor, noise, last)
            done.append((time.time(), time.perf_counter() - began))
            time.sleep(pause)
    end.recv()
    end.send(done)


def _transaction(cursor: Any, noise: random.Random, last: int) -> None:
    table = f"sbtest.sbtest{noise.randint(1, TABLES)}"
    with _committed(cursor):
        for _ in range(SELECTS):
            cursor.execute(f"SELECT c FROM {table} WHERE id = {noise.randint(1, last)}")
            cursor.fetchall()
        cursor.execute(f"UPDATE {table} SET k = k + 1 WHERE id = {noise.randint(1, last)}")


@contextmanager
def _committed(cursor: Any) -> Iterator[None]:
    cursor.execute("BEGIN")
    yield
    cursor.execute("COMMIT")


def _last(cursor: Any) -> int:
    cursor.execute("SELECT MAX(id) FROM sbtest.sbtest1")
    return int(cursor.fetchone()[0])
