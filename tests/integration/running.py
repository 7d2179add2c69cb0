"""Commands under way, for the tests of faults: started, watched, signalled, and what they may not leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pymysql
import pytest

from guestagent.storage.file import TEMPORARY
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, Row, give_to_server

PATIENCE = 120.0
"""Seconds that anything may take that a test waits for."""

ENOUGH = 2 << 30
"""Bytes of memory that servers and stores may fill."""


def wait_until(happened: Callable[[], Any], what: str, *, pause: float = 0.01, limit: float = PATIENCE) -> None:
    """Look again and again, until it has happened."""
    end = time.monotonic() + limit
    while not happened():
        if time.monotonic() > end:
            raise AssertionError(f"it took more than {limit:g} s until {what}")
        time.sleep(pause)


class Running:
    """A command that runs as a process, as from a terminal: in a group of its own, with no signal ignored.

    ``before`` are the words of another command that runs it.
    """

    def __init__(
        self, guest: Guest, *words: str, environment: dict[str, str] | None = None, before: Sequence[str] = ()
    ) -> None:
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT,TERM,HUP", *before, *guest.argv(*words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | (environment or {}),
        )
        self.out = ""
        self._lines: list[str] = []
        self._listeners = [threading.Thread(target=listen, daemon=True) for listen in (self._hear, self._collect)]
        for listener in self._listeners:
            listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.finish()

    @property
    def err(self) -> str:
        """What it has said on stderr so far."""
        return "".join(self._lines)

    def wait_for(self, words: str) -> None:
        """Wait until stderr has said ``words``."""
        wait_until(lambda: words in self.err or self._over(), f"{words!r} was said", pause=0.001)
        assert words in self.err, f"it ended with {self.process.returncode} instead: {self.err}"

    def signal(self, number: signal.Signals) -> None:
        """Signal its group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def finish(self) -> int:
        """Wait for its end; gives the exit status."""
        status = self.process.wait(PATIENCE)
        for listener in self._listeners:
            listener.join(PATIENCE)
        return status

    def _over(self) -> bool:
        return self.process.poll() is not None and not any(listener.is_alive() for listener in self._listeners)

    def _hear(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self._lines.extend(iter(stream.readline, ""))

    def _collect(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            self.out = stream.read()


@contextmanager
def held(server: MariaDB, *statements: str) -> Iterator[None]:
    """A session that holds what ``statements`` took."""
    with server.session() as session, session.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        yield


class Writer:
    """A statement that writes to ``d.my``, which has no redo log, until it is told to end.

    The tool copies InnoDB's files, and then waits for it.
    """

    STATEMENT = "INSERT INTO d.my SELECT 1000000 + SLEEP(600), 'never'"

    def __init__(self, server: MariaDB) -> None:
        self._server = server
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(self._statements, "the statement runs")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Have it end, if it still runs."""
        for (number,) in self._statements() if self._server.running else ():
            self._server.query("KILL %s", number)
        self._thread.join(PATIENCE)

    def _statements(self) -> tuple[Row, ...]:
        return self._server.query("SELECT id FROM information_schema.processlist WHERE info = %s", self.STATEMENT)

    def _write(self) -> None:
        with suppress(pymysql.MySQLError), self._server.session() as session, session.cursor() as cursor:
            cursor.execute(self.STATEMENT)


class Committer:
    """Commits small transactions, one after another; ``last`` is when the last one was, by time.monotonic()."""

    def __init__(self, server: MariaDB) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._commit, daemon=True)
        self.last = 0.0
        self.longest = 0.0

    def __enter__(self) -> Self:
        self._server.query("CREATE TABLE IF NOT EXISTS d.committed (id INT PRIMARY KEY AUTO_INCREMENT)")
        self._thread.start()
        wait_until(lambda: self.last, "the first transaction")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def _commit(self) -> None:
        with self._server.session() as session, session.cursor() as cursor:
            while not self._over.wait(0.01):
                began = time.monotonic()
                cursor.execute("INSERT INTO d.committed VALUES ()")
                session.commit()
                self.last = time.monotonic()
                self.longest = max(self.longest, self.last - began)


def wait_for_lock(server: MariaDB) -> None:
    """Wait until the tool waits for a lock."""
    waiting = (
        "SELECT COUNT(*) FROM information_schema.processlist"
        " WHERE info LIKE 'BACKUP STAGE%' AND state = 'Waiting for backup lock'"
    )
    wait_until(lambda: server.value(waiting), "the tool waits for a lock")


def tools(place: Path) -> dict[int, str]:
    """The living processes, other than servers and ours, whose command names something below ``place``."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(place) in command and "mariadbd" not in command and _state(int(process.name)) != "Z":
                    found[int(process.name)] = command
    return found


def tool_of(place: Path, word: str) -> int | None:
    """The process id of the tool that runs below ``place`` with ``word`` in its command."""
    return next((pid for pid, command in tools(place).items() if f" {word}" in command), None)


@contextmanager
def holding(place: Path, *words: str) -> Iterator[dict[str, str]]:
    """The tool stops before it begins what ``words`` are part of the command for; gives the environment."""
    pattern = "".join(f"*{word}" for word in words)
    with tool_on_path(place, f'case "$*" in {pattern}*) kill -STOP $$;; esac; exec $real "$@"') as environment:
        yield environment


_SLOWLY = """
import os, time
move = os.rename
def slowly(source, target, **options):
    if "#sql-guestagent" in f"{source} {target}":
        time.sleep(0.01)
    move(source, target, **options)
os.rename = slowly
"""


@contextmanager
def slow_moves(place: Path) -> Iterator[dict[str, str]]:
    """Whoever has the environment that this gives takes his time for each move of a swap: one can find him in it."""
    directory = place / "slowly"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(_SLOWLY)
    try:
        yield {"PYTHONPATH": os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH", "")]))}
    finally:
        shutil.rmtree(directory)


def wait_for_held(place: Path, word: str) -> int:
    """Wait until a tool is held; gives its process id."""
    wait_until(lambda: (pid := tool_of(place, word)) and _state(pid) == "T", f"the tool is held at {word}")
    pid = tool_of(place, word)
    assert pid
    return pid


def step(pid: int, seconds: float) -> bool:
    """Let a held process run on for a moment; gives whether it still lives."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
        time.sleep(seconds)
        os.kill(pid, signal.SIGSTOP)
    return _state(pid) not in ("", "Z")


def _state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def objects(guest: Guest) -> set[str]:
    """What lies in the guest's store, by name; no half of an object may be among it."""
    root = Path(guest.url.removeprefix("file://"))
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def drop_halves(guest: Guest) -> None:
    """Remove what a killed put left: the store hides it, and would remove it a day later."""
    for path in Path(guest.url.removeprefix("file://")).rglob(f"{TEMPORARY}*"):
        path.unlink()


def assert_nothing_left(guest: Guest, *, but: AbstractSet[str] = frozenset()) -> None:
    """No child alive, no object beside ``but`` these, no scratch."""
    assert tools(guest.place) == {}
    assert objects(guest) == but
    assert list((guest.place / f"{guest.name}-state" / "scratch").glob("*")) == []


@contextmanager
def in_memory() -> Iterator[None]:
    """Servers and stores in memory, where there is enough of it: many times faster to sync."""
    fast = Path("/dev/shm")
    enough = fast.is_dir() and shutil.disk_usage(fast).free > ENOUGH
    with _temporaries(str(fast) if enough else tempfile.tempdir):
        yield


@contextmanager
def _temporaries(top: str | None) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, top
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def filesystem(place: Path, size: str) -> Iterator[None]:
    """A filesystem of its own at ``place``, of ``size`` (as mount takes it)."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    try:
        give_to_server(place)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def tool_on_path(place: Path, script: str) -> Iterator[dict[str, str]]:
    """A mariabackup of the test's own in front of the real one, which ``$real`` names; gives the environment."""
    directory = place / "tool"
    directory.mkdir(exist_ok=True)
    tool = directory / "mariabackup"
    tool.write_text(f"#!/bin/sh\nreal={shutil.which('mariabackup')}\n{script}\n")
    tool.chmod(0o755)
    try:
        yield {"PATH": f"{directory}:{os.environ['PATH']}"}
    finally:
        for pid in tools(directory):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory)
