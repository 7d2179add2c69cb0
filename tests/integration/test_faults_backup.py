"""Backups that go wrong on a real server with the real tool: told why, and nothing is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.connections import Connection as Session

from guestagent.errors import Busy, DatabaseError, Stalled, StorageError
from guestagent.jobs.lock import only_job
from guestagent.progress import Watch
from tests.integration.running import (
    PATIENCE,
    Committer,
    Running,
    Writer,
    assert_nothing_left,
    drop_halves,
    filesystem,
    held,
    in_memory,
    objects,
    tool_of,
    tool_on_path,
    tools,
    wait_for_lock,
    wait_until,
)
from tests.servers.guest import PASSWORD, Guest
from tests.servers.mariadb import BACKUP_GRANTS, MariaDB, workplace

MakeGuest = Callable[..., Guest]

SMALL_SEGMENTS = "[stream]\nsegment_size = 1M\nlevel = 1\nno_progress_limit = 60\n"
DATA = """
CREATE DATABASE d; USE d;
CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB) ENGINE=InnoDB;
INSERT INTO t (v) SELECT RANDOM_BYTES(1024) FROM seq_1_to_40000;
CREATE TABLE my (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM;
INSERT INTO my SELECT seq, 'my' FROM seq_1_to_100;
"""
LOCK = "LOCK TABLES d.my WRITE"
"""What the tool waits for, at its start and again before it copies the tables that have no redo log."""


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with in_memory():
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    """One server with some 40 MiB for all tests of this file; those that end it start it again."""
    with MariaDB() as made:
        made.script(DATA)
        made.backup_account("backup", PASSWORD)
        yield made


@pytest.fixture
def make_guest(server: MariaDB) -> Iterator[MakeGuest]:
    """Makes guests on that server, with a new store and a new state."""
    with workplace() as place:

        def make(*, url: str = "", **more: str) -> Guest:
            return Guest("guest1", server, place, url or f"file://{place}/store", **more)

        yield make


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    """A guest that stores small segments and waits for locks."""
    return make_guest(settings=SMALL_SEGMENTS, database="lock_wait_timeout = 0\n")


def assert_works_again(guest: Guest) -> None:
    """The next backup succeeds, and the store then holds it alone."""
    backup = guest.back_up()
    assert {name.split("/")[1] for name in objects(guest)} == {backup.id}
    assert_nothing_left(guest, but=objects(guest))


# -- what a preflight finds


def test_a_wrong_password_is_told_and_not_shown(make_guest: MakeGuest) -> None:
    guest = make_guest(database="password = wr0ng\n")
    done = guest.command("-v", "backup", "create")
    assert done.returncode == 9
    assert f"access denied for backup at {guest.server.socket}" in done.stderr
    assert "wr0ng" not in done.stderr
    assert_nothing_left(guest)


@pytest.mark.parametrize("missing", [*([grant] for grant in BACKUP_GRANTS), list(BACKUP_GRANTS)])
def test_every_missing_grant_is_named_with_what_to_type(make_guest: MakeGuest, missing: list[str]) -> None:
    guest = make_guest(database="user = poor\n")
    guest.server.backup_account("poor", PASSWORD, grants=[grant for grant in BACKUP_GRANTS if grant not in missing])
    with tool_on_path(guest.place, 'case "$*" in *--backup*) touch "$0.ran";; esac; exec $real "$@"') as environment:
        done = guest.command("backup", "create", environment=environment)
        assert not (guest.place / "tool" / "mariabackup.ran").exists()
    assert done.returncode == 9
    assert f"'poor'@'localhost' lacks {', '.join(missing)}; " in done.stderr
    assert_nothing_left(guest)
    typed = re.search(r"GRANT .*", done.stderr)
    assert typed
    guest.server.script(typed[0] + ";")
    guest.back_up()


def test_a_server_that_is_down(make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.server.stop()
    try:
        with pytest.raises(DatabaseError, match=r"cannot reach the server at .*; is it running"):
            guest.back_up()
        assert_nothing_left(guest)
    finally:
        guest.server.start()


def test_a_datadir_that_is_not_ours_to_read(make_guest: MakeGuest) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    guest = make_guest()
    for path in (guest.config, guest.place):
        shutil.chown(path, "nobody")
    # Python itself may lie where nobody may look, so all modules are loaded before.
    program = (
        "import _strptime, os, pwd, sys; from guestagent.cli import main;"
        "import guestagent.cli.create, guestagent.storage.file, pymysql;"
        "out = os.dup(1); os.dup2(os.open(os.devnull, 1), 1); main([*sys.argv[1:], 'backup', 'list']); os.dup2(out, 1);"
        "nobody = pwd.getpwnam('nobody'); os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid);"
        "sys.exit(main([*sys.argv[1:], 'backup', 'create']))"
    )
    argv = [sys.executable, "-c", program, "--config-file", str(guest.config)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 3, done.stderr
    assert f"datadir {guest.server.datadir} is not ours to read; run as root or as the server's user" in done.stderr
    assert_nothing_left(guest)


def test_a_tool_that_is_not_there(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = make_guest()
    done = guest.command("backup", "create", environment={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "mariabackup is not installed; install the package that has mariabackup" in done.stderr
    assert_nothing_left(guest)


def test_a_tool_of_another_series(make_guest: MakeGuest) -> None:
    guest = make_guest()
    version = "mariabackup based on MariaDB server 11.8.2-MariaDB debian-linux-gnu (x86_64)"
    with tool_on_path(guest.place, f'echo "{version}" >&2') as environment:
        done = guest.command("backup", "create", environment=environment)
    assert done.returncode == 3
    series = guest.server.value("SELECT SUBSTRING_INDEX(VERSION(), '.', 2)")
    assert re.search(rf"mariabackup 11\.8\.2 is of another series .*; install mariabackup {series}\n", done.stderr)
    assert_nothing_left(guest)


# -- locks


@pytest.mark.parametrize(
    "statements",
    [[LOCK], ["LOCK TABLES d.t WRITE"], ["BACKUP STAGE START", "BACKUP STAGE BLOCK_COMMIT"]],
    ids=["myisam", "innodb", "another-backup"],
)
def test_a_lock_is_waited_for_no_longer_than_told(make_guest: MakeGuest, statements: list[str]) -> None:
    guest = make_guest(database="lock_wait_timeout = 2\n")
    begun = time.monotonic()
    with held(guest.server, *statements), pytest.raises(Stalled, match=r"has waited [23] s for a lock that a session"):
        guest.back_up()
    assert time.monotonic() - begun < PATIENCE / 2
    assert_nothing_left(guest)


def test_a_lock_without_end_meets_the_no_progress_limit(make_guest: MakeGuest) -> None:
    guest = make_guest(database="lock_wait_timeout = 0\n")
    with held(guest.server, LOCK), pytest.raises(Stalled, match=r"no progress for 8 s in phase dump; .*locks"):
        guest.back_up(watch=Watch(limit=8))
    assert_nothing_left(guest)
    assert_works_again(guest)


def test_a_lock_that_is_taken_meanwhile_is_waited_for_no_longer(make_guest: MakeGuest) -> None:
    guest = make_guest(database="lock_wait_timeout = 3\n", settings=SMALL_SEGMENTS)
    with Writer(guest.server), Running(guest, "backup", "create") as command:
        assert command.finish() == 1
    assert re.search(r"^guestagent: mariabackup has waited [34] s for a lock .*; end that session ", command.err, re.M)
    assert_nothing_left(guest)
    assert_works_again(guest)


def test_commits_that_wait_for_the_tool_do_not_wait_for_long(make_guest: MakeGuest) -> None:
    """The tool stops all commits, and then waits for its own thread that copies the redo log, which sleeps."""
    sleepy = "block_commit_limit = 1\nextra_args = --log-copy-interval=4000\n"  # before that, it waits 5 s at most
    guest = make_guest(database=sleepy, settings=SMALL_SEGMENTS)
    server = guest.server
    with Committer(server) as committer, Running(guest, "-vv", "backup", "create") as command:
        command.wait_for("Acquired locks for BACKUP STAGE BLOCK_COMMIT")
        assert command.finish() == 1
        ended = time.monotonic()
        wait_until(lambda: committer.last > ended, "transactions are committed again")
    assert "no progress for 1 s while the server's commits wait for the backup; look for a small " in command.err
    assert 1 < committer.longest < PATIENCE / 4
    assert_nothing_left(guest)
    assert_works_again(make_guest())


def test_a_lock_that_is_let_go_in_time_does_no_harm(guest: Guest) -> None:
    with Running(guest, "backup", "create") as command:
        with held(guest.server, LOCK):
            wait_for_lock(guest.server)
        assert command.finish() == 0, command.err


# -- something dies


def test_the_server_is_killed_meanwhile(guest: Guest) -> None:
    with Writer(guest.server), Running(guest, "backup", "create") as command:
        wait_for_lock(guest.server)
        try:
            guest.server.kill()
            assert command.finish() == 1
        finally:
            guest.server.start()
    assert re.search(r"^guestagent: mariabackup failed with exit status 1: .+\n\Z", command.err, re.MULTILINE)
    assert command.out == ""
    assert_nothing_left(guest)


def test_the_tool_is_killed_meanwhile(guest: Guest) -> None:
    with Writer(guest.server), Running(guest, "backup", "create") as command:
        wait_for_lock(guest.server)
        tool = tool_of(guest.place, "--backup")
        assert tool
        os.kill(tool, signal.SIGKILL)
        assert command.finish() == 1
    assert "guestagent: mariabackup died by SIGKILL" in command.err
    assert_nothing_left(guest)


def test_we_are_killed_meanwhile_and_the_next_backup_sweeps(guest: Guest) -> None:
    with Writer(guest.server), Running(guest, "backup", "create") as command:
        wait_for_lock(guest.server)
        command.signal(signal.SIGKILL)
        assert command.finish() == -signal.SIGKILL
        wait_until(lambda: not tools(guest.place), "the tool has ended")
    drop_halves(guest)
    assert not any(name.endswith("manifest.json") for name in objects(guest))
    left = {name.split("/")[1] for name in objects(guest)}
    assert len(left) == 1
    assert guest.json("backup", "list") == []
    assert_works_again(guest)
    assert not left & {name.split("/")[1] for name in objects(guest)}


# -- two at once


def test_a_second_backup_is_told_of_the_first(guest: Guest) -> None:
    wanted = "0a0b0c0d-0000-4000-8000-000000000001"
    with Writer(guest.server) as writer, Running(guest, "backup", "create", "--id", wanted) as command:
        wait_for_lock(guest.server)
        second = guest.command("backup", "create")
        assert second.returncode == 7
        assert f"busy with backup {wanted} (pid {command.process.pid})" in second.stderr
        with pytest.raises(Busy), only_job(guest.place / "guest1-state", "another"):
            pass
        assert guest.json("backup", "list") == []
        writer.end()
        assert command.finish() == 0, command.err
    assert [row["id"] for row in guest.json("backup", "list")] == [wanted]
    third = guest.command("backup", "create", "--id", wanted)
    assert third.returncode == 3
    assert f"backup {wanted} exists already" in third.stderr
    assert len(guest.json("backup", "list")) == 1


# -- the store goes wrong


def test_a_store_that_fills(make_guest: MakeGuest) -> None:
    guest = make_guest(settings=SMALL_SEGMENTS)
    with filesystem(guest.place / "store", "8m"):
        with pytest.raises(StorageError, match="the store is full; make room"):
            guest.back_up()
        assert_nothing_left(guest)
        subprocess.run(["mount", "-o", "remount,size=200m", str(guest.place / "store")], check=True)
        assert_works_again(guest)


def test_a_store_that_turns_read_only(guest: Guest) -> None:
    store = guest.place / "store"

    def turn(mode: str) -> bool:
        return not subprocess.run(
            ["mount", "-o", f"remount,{mode}", str(store)], capture_output=True, check=False
        ).returncode

    with filesystem(store, "200m"):
        with Writer(guest.server) as writer, Running(guest, "backup", "create") as command:
            wait_for_lock(guest.server)
            wait_until(lambda: turn("ro"), "no segment is on its way")
            writer.end()
            assert command.finish() == 8
        assert "Read-only file system; let the agent's user" in command.err
        assert "stays until the next sweep" in command.err
        assert not any(name.endswith("manifest.json") for name in objects(guest))
        assert tools(guest.place) == {}
        assert turn("rw")
        assert_works_again(guest)


def test_a_store_that_loses_what_it_had_confirmed(guest: Guest) -> None:
    with Writer(guest.server) as writer, Running(guest, "backup", "create") as command:
        wait_for_lock(guest.server)
        next((guest.place / "store").rglob("data/00000000")).unlink()
        writer.end()
        assert command.finish() == 6
    assert re.search(r"data/00000000 should have \d+ bytes and is missing; ", command.err)
    assert_nothing_left(guest)
    assert_works_again(guest)


def test_a_store_that_cannot_be_made(make_guest: MakeGuest) -> None:
    guest = make_guest()
    (guest.place / "file").touch()
    guest = make_guest(url=f"file://{guest.place}/file/store")
    with pytest.raises(StorageError, match="Not a directory"):
        guest.back_up()
    assert tools(guest.place) == {}


# -- statements that run on


def test_a_statement_that_runs_on_does_not_end_a_backup(make_guest: MakeGuest) -> None:
    guest = make_guest(database="lock_wait_timeout = 2\n")
    with guest.server.session() as session:
        report = threading.Thread(target=lambda: _suffer(session, "SELECT SLEEP(600)"))
        report.start()
        running = "SELECT id FROM information_schema.processlist WHERE info = 'SELECT SLEEP(600)'"
        wait_until(lambda: guest.server.query(running), "the statement runs")
        try:
            guest.back_up()
        finally:
            guest.server.query("KILL %s", guest.server.value(running))
            report.join(PATIENCE)


def _suffer(session: Session[Any], statement: str) -> None:
    with suppress(pymysql.MySQLError), session.cursor() as cursor:
        cursor.execute(statement)
