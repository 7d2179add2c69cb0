"""The commands on a real server: what they print, what they keep to themselves, and how they end when they must."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from guestagent.manifest import Backup
from tests.integration.running import (
    Running,
    Writer,
    assert_nothing_left,
    held,
    holding,
    in_memory,
    objects,
    tools,
    wait_for_held,
    wait_for_lock,
    wait_until,
)
from tests.servers.guest import PASSWORD, Guest
from tests.servers.mariadb import MariaDB, workplace

SOON = 60.0
"""Seconds within which a command must end that was asked to."""

NO_TIMEOUT = "lock_wait_timeout = 0\n"
LOCK = "LOCK TABLES d.my WRITE"
SETTINGS = "[stream]\nsegment_size = 1M\n"
DATA = """
CREATE DATABASE d; USE d;
CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB) ENGINE=InnoDB;
INSERT INTO t (v) SELECT RANDOM_BYTES(1024) FROM seq_1_to_20000;
CREATE TABLE my (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM;
INSERT INTO my SELECT seq, 'my' FROM seq_1_to_100;
"""
OTHER = (
    "CREATE DATABASE other; CREATE TABLE other.t (id INT PRIMARY KEY) ENGINE=InnoDB; INSERT INTO other.t VALUES (7);"
)

Words = tuple[str, ...]


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with in_memory():
        yield


@pytest.fixture(scope="module")
def guests() -> Iterator[tuple[Guest, Guest, Backup]]:
    """A guest with a backup and an incremental on it, and a second one with data of its own; and the newest backup."""
    with workplace() as place, ExitStack() as stack:
        one, two = (
            Guest(
                name,
                stack.enter_context(MariaDB()),
                place,
                f"file://{place}/store",
                settings=SETTINGS,
                database=NO_TIMEOUT,
            )
            for name in ("guest1", "guest2")
        )
        for guest, script in ((one, DATA), (two, OTHER)):
            guest.server.script(script)
            guest.account()
        full = one.back_up()
        one.server.script("INSERT INTO d.t (v) SELECT RANDOM_BYTES(1024) FROM d.t LIMIT 5000;")
        yield one, two, one.back_up(full)


@pytest.fixture
def guest(guests: tuple[Guest, Guest, Backup]) -> Guest:
    return guests[0]


@pytest.fixture
def target(guests: tuple[Guest, Guest, Backup]) -> Guest:
    return guests[1]


@pytest.fixture
def tip(guests: tuple[Guest, Guest, Backup]) -> Backup:
    return guests[2]


def stop_now(command: Running, number: signal.Signals, *, group: bool = True) -> None:
    """Signal a command, and see it end as a cancelled one."""
    begun = time.monotonic()
    if group:
        command.signal(number)
    else:
        os.kill(command.process.pid, number)
    assert command.finish() == 10, command.err
    assert time.monotonic() - begun < SOON
    told = rf"^guestagent: stopped by {number.name}(; the old data is back in its place)?\n\Z"
    assert re.search(told, command.err, re.MULTILINE), command.err
    assert "Traceback" not in command.err
    assert command.out == ""


# -- a backup that is stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_backup_that_is_stopped_leaves_nothing(guest: Guest, number: signal.Signals) -> None:
    before = objects(guest)
    with Writer(guest.server), Running(guest, "backup", "create") as command:
        wait_for_lock(guest.server)
        stop_now(command, number, group=number is signal.SIGINT)
    assert_nothing_left(guest, but=before)
    assert guest.command("backup", "list").returncode == 0


def test_a_backup_is_stopped_while_it_waits_for_its_first_lock(guest: Guest) -> None:
    before = objects(guest)
    with held(guest.server, LOCK), Running(guest, "backup", "create") as command:
        wait_for_lock(guest.server)
        stop_now(command, signal.SIGINT)
    assert_nothing_left(guest, but=before)


def test_a_storm_of_signals_is_one_request(guest: Guest) -> None:
    before = objects(guest)
    with Writer(guest.server), Running(guest, "backup", "create") as command:
        wait_for_lock(guest.server)
        for _ in range(20):
            command.signal(signal.SIGTERM)
            command.signal(signal.SIGINT)
        assert command.finish() == 10
    assert re.search(r"^guestagent: stopped by SIG(TERM|INT)\n\Z", command.err, re.MULTILINE)
    assert_nothing_left(guest, but=before)


def test_a_hangup_that_is_ignored_stays_ignored(guest: Guest) -> None:
    words = ("backup", "create", "-f", "json")
    with Writer(guest.server) as writer, Running(guest, *words, before=["env", "--ignore-signal=HUP"]) as command:
        wait_for_lock(guest.server)
        command.signal(signal.SIGHUP)
        writer.end()
        assert command.finish() == 0, command.err
    made = json.loads(command.out)
    assert guest.command("backup", "delete", made["id"]).returncode == 0


# -- a restore that is stopped


def assert_untouched(target: Guest, content: object) -> None:
    """The old server runs and answers with the old data, and nothing of the restore is left."""
    assert target.server.running
    assert target.server.content() == content
    assert not (target.server.datadir / "#sql-guestagent").exists()
    assert tools(target.place) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["fetch", "prepare", "prepare link 2 of 2", "seal", "start"])
def test_a_restore_that_is_stopped_leaves_the_old_data(
    target: Guest, tip: Backup, number: signal.Signals, moment: str
) -> None:
    before = target.server.content()
    held, reached = held_at_start(target)
    try:
        with Running(held, "restore", tip.id, "--replace") as command:
            command.wait_for(f"  {moment}")
            if moment == "start":
                wait_until(reached.exists, "the new server runs")
            stop_now(command, number)
    finally:
        reached.unlink(missing_ok=True)
        target.__post_init__()  # write the configuration anew
    assert_untouched(target, before)


def held_at_start(target: Guest) -> tuple[Guest, Path]:
    """The same guest, but its start command does not come back when it has started a server on other data.

    The file is there as soon as it has.
    """
    script = target.place / "held-start"
    reached = Path(f"{script}.reached")
    script.write_text(
        f"#!/bin/sh\n{target.server.start_script()} || exit 1\n"
        f"[ -d {target.server.datadir}/other ] && exit 0\ntouch {reached}\nexec sleep 600\n"
    )
    script.chmod(0o755)
    database = f"start_command = {script}\n"
    return Guest("guest2", target.server, target.place, target.url, settings=SETTINGS, database=database), reached


def test_a_prepare_that_does_not_listen_is_killed(target: Guest, tip: Backup) -> None:
    before = target.server.content()
    with (
        holding(target.place, "--prepare") as environment,
        Running(target, "restore", tip.id, "--replace", environment=environment) as command,
    ):
        wait_for_held(target.place, "--prepare")
        busy = target.command("restore", tip.id)
        assert busy.returncode == 7
        assert re.search(rf"busy with restore {tip.id} \(job [-0-9a-f]+\) \(pid {command.process.pid}\)", busy.stderr)
        stop_now(command, signal.SIGINT)
    assert_untouched(target, before)


@pytest.mark.parametrize("stopped", ["before", "after"])
def test_a_restore_is_stopped_while_it_stops_the_server(target: Guest, tip: Backup, stopped: str) -> None:
    before = target.server.content()
    slow = target.place / "slow-stop"
    stop = str(target.server.stop_script())
    slow.write_text(f"#!/bin/sh\n{'' if stopped == 'before' else stop}\ntouch {slow}.reached\nexec sleep 600\n")
    slow.chmod(0o755)
    other = Guest(
        "guest2", target.server, target.place, target.url, settings=SETTINGS, database=f"stop_command = {slow}\n"
    )
    try:
        with Running(other, "restore", tip.id, "--replace") as command:
            reached = Path(f"{slow}.reached")
            wait_until(reached.exists, "the server is about to be stopped")
            reached.unlink()
            stop_now(command, signal.SIGTERM, group=False)
    finally:
        target.__post_init__()  # write the configuration anew
    assert_untouched(target, before)


# -- what is printed, and what is not


def test_json_alone_is_on_stdout_and_no_password_anywhere(guest: Guest, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ("-vv", "--debug", "--log-file", str(log))
    create = ("backup", "create", "talkative", "-f", "json")
    seen = []
    with Writer(guest.server) as writer, Running(guest, *words, *create) as command:
        wait_for_lock(guest.server)
        for pid in (command.process.pid, *tools(guest.place)):
            seen += [Path(f"/proc/{pid}/{what}").read_bytes() for what in ("cmdline", "environ")]
        writer.end()
        assert command.finish() == 0, command.err
    made = json.loads(command.out)
    assert (made["name"], made["status"]) == ("talkative", "COMPLETED")
    assert "mariabackup: " in command.err
    assert "dump" in command.err
    for text in (command.err, log.read_text(), *(piece.decode(errors="replace") for piece in seen)):
        for form in (PASSWORD, PASSWORD.replace("\\", "\\\\"), repr(PASSWORD)):
            assert form not in text
    manifest = (guest.place / "store" / "guest1" / made["id"] / "manifest.json").read_text()
    assert PASSWORD not in manifest
    assert guest.command("backup", "delete", made["id"]).returncode == 0


def test_the_doctor_finds_a_healthy_guest_healthy(guest: Guest) -> None:
    done = guest.command("doctor", "-f", "json")
    findings = json.loads(done.stdout)
    assert [finding["check"] for finding in findings if finding["ok"] != "yes"] == []
    assert (done.returncode, done.stderr) == (0, "")
    checks = {finding["check"] for finding in findings}
    assert checks >= {"instance", "state", "lock", "server", "engine", "grants", "tool", "datadir", "store", "disk"}
    (disk,) = (finding["detail"] for finding in findings if finding["check"] == "disk")
    assert re.search(r"; a restore of the newest backup, [0-9a-f-]{36}, needs \d+$", disk)


def test_the_doctor_names_the_remedy(guest: Guest, tmp_path: Path) -> None:
    sick = Guest("guest1", guest.server, tmp_path, guest.url, database="user = poor\n")
    guest.server.backup_account("poor", PASSWORD, grants=["RELOAD"])
    done = sick.command("doctor", "-f", "json", environment={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert re.fullmatch(r"guestagent: not all is well: grants, tool; .*\n", done.stderr)
    remedies = {finding["check"]: finding["remedy"] for finding in json.loads(done.stdout) if finding["ok"] == "no"}
    assert remedies["grants"] == "GRANT PROCESS, BINLOG MONITOR ON *.* TO 'poor'@'localhost'"
    assert "install the package" in remedies["tool"]


def test_a_restore_tells_what_it_does(target: Guest, tip: Backup) -> None:
    datadir = target.place / "elsewhere"
    done = target.command("restore", tip.id, "--datadir", str(datadir), "--no-start", "-f", "json")
    assert done.returncode == 0, done.stderr
    restored = json.loads(done.stdout)
    assert restored == {
        "backup_id": tip.id,
        "name": tip.manifest.name,
        "links": 2,
        "datadir": str(datadir),
        "started": False,
        "server_version": None,
        "old_data": None,
    }
    phases = re.findall(r"^ +\d+\.\d s  (.*?)(?: \(\d+ bytes\))?$", done.stderr, re.MULTILINE)
    assert phases == ["plan", "fetch", "prepare link 1 of 2", "prepare link 2 of 2", "seal"]
    plan = target.json("restore", tip.id, "--datadir", str(target.place / "another"), "--plan")
    assert (plan["objects_whole"], plan["keys_needed"], plan["refused"]) == (True, [], [])
    assert re.fullmatch(r"\d+ restores? on this host", plan["expected_from"])
    assert 0 < plan["expected_seconds"] < 600
