"""What a real server does to a backup that runs beside it: statements of all kinds in a loop, and redo written over."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from guestagent.errors import ToolError
from guestagent.manifest import Backup
from guestagent.progress import Watch
from tests.fakes.bench import Told
from tests.integration.running import PATIENCE, assert_nothing_left, in_memory, objects, tool_of, wait_until
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB

MakeGuest = Callable[..., Guest]
Story = Callable[[threading.Event], None]

SMALL_SEGMENTS = "[stream]\nsegment_size = 1M\nlevel = 1\nno_progress_limit = 60\n"
DATA = """
CREATE DATABASE d; USE d;
CREATE TABLE ledger (id INT PRIMARY KEY AUTO_INCREMENT, v CHAR(200)) ENGINE=InnoDB;
CREATE TABLE bulk (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB) ENGINE=InnoDB;
INSERT INTO bulk (v) SELECT RANDOM_BYTES(1024) FROM seq_1_to_20000;
"""
ROUND = """CREATE TABLE a{n} (id INT PRIMARY KEY, v TEXT) ENGINE=InnoDB SELECT seq AS id, 'x' AS v FROM seq_1_to_200
ALTER TABLE a{n} ADD COLUMN w INT DEFAULT 7, ALGORITHM=INPLACE
ALTER TABLE a{n} ADD INDEX (w), ENGINE=InnoDB
RENAME TABLE a{n} TO b{n}
OPTIMIZE TABLE b{n}
TRUNCATE TABLE b{n}
INSERT INTO b{n} (id, v) SELECT seq, 'y' FROM seq_1_to_100
CREATE TABLE m{n} (id INT) ENGINE=MyISAM
DROP TABLE m{n}
DROP TABLE IF EXISTS `b{before}`"""
ATTEMPTS = 20
LINKS = 4
KEPT = 3
"""Tables of the loop that are there at a time."""
REDO = "INSERT INTO bulk (v) SELECT REPEAT(RANDOM_BYTES(1024), 4) FROM seq_1_to_2000"
ROUNDS_OF_REDO = 8
"""Rounds of some 9 MB: many times the 8 MiB that the log has."""


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with in_memory():
        yield


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    made = make_guest(settings=SMALL_SEGMENTS, database="lock_wait_timeout = 0\n")
    made.server.script(DATA)
    return made


@contextmanager
def running(*stories: Story) -> Iterator[None]:
    """The stories in threads of their own, until they are told to end; raises what one of them raised."""
    stop, failures = threading.Event(), list[BaseException]()

    def tell(story: Story) -> None:
        try:
            story(stop)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=tell, args=(story,), daemon=True) for story in stories]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert failures == []


def statements(server: MariaDB) -> Story:
    """Tables come, change in every way, and go."""

    def story(stop: threading.Event) -> None:
        with server.session() as session, session.cursor() as cursor:
            cursor.execute("USE d")
            number = 0
            while not stop.is_set():
                number += 1
                for statement in ROUND.format(n=number, before=number - KEPT).splitlines():
                    cursor.execute(statement)

    return story


def writes(server: MariaDB) -> Story:
    """A ledger grows, line by line."""

    def story(stop: threading.Event) -> None:
        with server.session() as session, session.cursor() as cursor:
            while not stop.is_set():
                cursor.execute("INSERT INTO d.ledger (v) VALUES (REPEAT('z', 200))")
                session.commit()

    return story


def restored(make_guest: MakeGuest, backup: Backup, name: str) -> MariaDB:
    other = make_guest(name, empty=True)
    other.restore(backup, start=True)
    return other.server


def check(server: MariaDB) -> None:
    """No table is damaged, and the ledger has every line up to its last one."""
    for (table,) in server.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'd'"):
        *_, (_, _, kind, text) = server.query(f"CHECK TABLE d.{table} EXTENDED")
        assert (kind, text) == ("status", "OK"), table
    count, last = server.query("SELECT COUNT(*), MAX(id) FROM d.ledger")[0]
    assert count == last > 0


def attempted(guest: Guest, parent: Backup | None = None) -> Backup:
    """A backup, at the first attempt at which the tool copes; what it does not cope with must leave nothing."""
    for _ in range(ATTEMPTS):
        before = objects(guest)
        with suppress(ToolError):
            return guest.back_up(parent)
        assert_nothing_left(guest, but=before)
    raise AssertionError(f"the tool did not cope {ATTEMPTS} times")


@pytest.mark.parametrize("stories", [(writes,), (statements, writes)], ids=["rows", "tables and rows"])
def test_what_is_written_meanwhile_may_cost_an_attempt_and_never_a_backup(
    guest: Guest, make_guest: MakeGuest, stories: tuple[Callable[[MariaDB], Story], ...]
) -> None:
    with running(*(story(guest.server) for story in stories)):
        wait_until(lambda: guest.server.value("SELECT COUNT(*) FROM d.ledger"), "the ledger grows")
        chain = [attempted(guest)]
        while len(chain) < LINKS:
            chain.append(attempted(guest, chain[-1]))
    for number, backup in enumerate((chain[0], chain[-1])):
        check(restored(make_guest, backup, f"other{number}"))


class AtFirstByte(Told):
    """Stops the tool at its first byte, and has it go on after so much was written that its redo is gone."""

    def __init__(self, guest: Guest) -> None:
        super().__init__()
        self._guest = guest
        self._done = False

    def advance(self, count: int) -> None:
        super().advance(count)
        if self._done or not count:
            return
        self._done = True
        tool = tool_of(self._guest.place, "--backup")
        assert tool
        os.kill(tool, signal.SIGSTOP)
        try:
            with self._guest.server.session() as session, session.cursor() as cursor:
                cursor.execute("USE d")
                for _ in range(ROUNDS_OF_REDO):
                    cursor.execute(REDO)
                    session.commit()
        finally:
            os.kill(tool, signal.SIGCONT)


def test_redo_that_was_overwritten_before_it_was_copied_is_a_failure(guest: Guest) -> None:
    with pytest.raises(ToolError, match="mariabackup failed with exit status 1") as failed:
        guest.back_up(watch=Watch(AtFirstByte(guest)))
    assert any("log" in line for line in failed.value.tail)
    assert_nothing_left(guest)
    guest.back_up()
