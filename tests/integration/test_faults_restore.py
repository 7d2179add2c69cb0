"""Restores that go wrong on real servers with the real tool: the old data or the new, never a mix."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pymysql
import pytest

from guestagent.errors import Refused
from guestagent.manifest import Backup
from tests.integration.running import (
    Running,
    filesystem,
    holding,
    in_memory,
    slow_moves,
    step,
    tool_on_path,
    tools,
    wait_for_held,
    wait_until,
)
from tests.integration.serving import Gate, leased
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace

OURS = "#sql-guestagent"
MIB = 1 << 20

FIRST = """
CREATE DATABASE d; USE d;
CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB) ENGINE=InnoDB;
INSERT INTO t (v) SELECT RANDOM_BYTES(1024) FROM seq_1_to_4000;
CREATE TABLE my (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM; INSERT INTO my SELECT seq, 'my' FROM seq_1_to_100;
""" + "".join(
    f"CREATE TABLE n{number} (id INT PRIMARY KEY, v TEXT) ENGINE=InnoDB;"
    f"INSERT INTO n{number} SELECT seq, 'n' FROM seq_1_to_100;"
    for number in range(40)
)
SECOND = "USE d; DELETE FROM t WHERE id % 3 = 0; INSERT INTO my VALUES (1000, 'more');" + "".join(
    f"UPDATE n{number} SET v = REPEAT('changed', 50);" for number in range(40)
)
THIRD = "DROP DATABASE d; CREATE DATABASE e; CREATE TABLE e.t (id INT PRIMARY KEY); INSERT INTO e.t VALUES (3);"
OLD = "CREATE DATABASE old; CREATE TABLE old.t (id INT PRIMARY KEY) ENGINE=InnoDB; INSERT INTO old.t VALUES (7);"

Content = dict[str, int | str]


@dataclass(frozen=True)
class Source:
    """A chain of three links and what the server had at each."""

    guest: Guest
    full: Backup
    tip: Backup
    further: Backup
    at_full: Content
    at_tip: Content
    at_further: Content


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with in_memory():
        yield


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with workplace() as path:
        yield path


@pytest.fixture(scope="module")
def source(place: Path) -> Iterator[Source]:
    """A store with a chain in it; its server is gone when the tests begin."""
    with MariaDB() as server:
        guest = Guest("guest1", server, place, f"file://{place}/store", settings="[stream]\nsegment_size = 1M\n")
        guest.account()
        server.script(FIRST)
        full, at_full = guest.back_up(), server.content()
        server.script(SECOND)
        tip, at_tip = guest.back_up(full), server.content()
        server.script(THIRD)
        further, at_further = guest.back_up(tip), server.content()
        server.stop()
        yield Source(guest, full, tip, further, at_full, at_tip, at_further)


@pytest.fixture(scope="module")
def target(place: Path) -> Iterator[Guest]:
    """A guest that runs a server with old data; tests that change that put it back."""
    with MariaDB() as server:
        server.script(OLD)
        guest = Guest("guest2", server, place, f"file://{place}/store")
        guest.account()
        yield guest


@pytest.fixture
def make_target(place: Path) -> Iterator[Callable[..., Guest]]:
    """Makes guests whose servers do not run yet, on a datadir that the test names."""
    with ExitStack() as stack:

        def make(datadir: Path, *, database: str = "", settings: str = "") -> Guest:
            server = stack.enter_context(MariaDB(datadir=datadir, running=False))
            return Guest("guest3", server, place, f"file://{place}/store", database=database, settings=settings)

        yield make


def assert_old(target: Guest) -> None:
    """The old server answers with the old data, and nothing of a restore is left."""
    if not target.server.running:
        target.server.start()
    assert target.server.value("SELECT GROUP_CONCAT(id) FROM old.t") == "7"
    assert target.server.schemas() == ["old"]
    assert not (target.server.datadir / OURS).exists()
    assert tools(target.place) == {}


# -- space


def test_a_target_that_is_too_small_is_refused_by_the_plan(
    source: Source, place: Path, make_target: Callable[..., Guest]
) -> None:
    target = make_target(place / "small")
    with filesystem(place / "small", "16m"):
        done = target.command("restore", source.tip.id, "--plan", "-f", "json")
        assert done.returncode == 3
        plan = json.loads(done.stdout)
        assert plan["space_free"] <= 16 * MIB < plan["space_needed"]
        assert re.fullmatch(
            rf"guestagent: {place}/small has \d+ bytes free .*needs {plan['space_needed']}; .*\n", done.stderr
        )
        with pytest.raises(Refused, match="bytes free and the restore needs"):
            target.restore(source.tip)
        assert os.listdir(place / "small") == []


def test_a_disk_that_fills_anyway_costs_nothing(source: Source, place: Path, make_target: Callable[..., Guest]) -> None:
    disk = place / "filling"
    with filesystem(disk, "300m"):
        target = make_target(disk / "data")
        target.restore(source.full, start=True)
        first = place / "store" / "guest1" / source.full.id / "data" / "00000000"
        with ExitStack() as stack:
            with leased(first) as asked:
                command = stack.enter_context(Running(target, "restore", source.tip.id, "--replace"))
                wait_until(asked, "its first segment is fetched")
                fill(disk)
            assert command.finish() == 1
        assert re.search("^guestagent: no space left for .*; free space", command.err, re.MULTILINE), command.err
        (disk / "balloon").unlink()
        assert target.server.running
        assert target.server.content() == source.at_full
        assert not (disk / "data" / OURS).exists()
        assert tools(place) == {}
        target.restore(source.tip, replace=True)
        assert target.server.content() == source.at_tip


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with (disk / "balloon").open("wb", buffering=0) as balloon, suppress(OSError):
        while balloon.write(bytes(MIB)):
            pass


# -- targets


def test_a_target_that_is_not_empty_is_refused_without_replace(source: Source, target: Guest, place: Path) -> None:
    files = place / "files"
    files.mkdir()
    (files / "letter").write_text("dear")
    for replace in (False, True):
        with pytest.raises(Refused, match="holds something that is no datadir"):
            target.restore(source.tip, datadir=files, replace=replace)
    assert [path.name for path in files.iterdir()] == ["letter"]
    with pytest.raises(Refused, match=r"a server runs on .*; stop it, or give --replace"):
        target.restore(source.tip)
    assert_old(target)
    target.server.stop()
    with pytest.raises(Refused, match="is not empty; give --replace"):
        target.restore(source.tip)
    assert_old(target)


def test_a_mount_point_is_a_target_and_work_dir_may_be_elsewhere(
    source: Source, place: Path, make_target: Callable[..., Guest]
) -> None:
    mounted, work = place / "mounted", place / "work"
    with filesystem(mounted, "400m"), filesystem(work, "200m"):
        target = make_target(mounted, settings=f"[restore]\nwork_dir = {work}\n")
        first = target.restore(source.tip, start=True)
        assert (first.datadir, first.kept) == (mounted, None)
        assert target.server.content() == source.at_tip
        # A second time over itself: a running server is stopped, replaced and started again.
        done = target.command("restore", source.full.id, "--replace", "-f", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["started"] is True
        assert target.server.content() == source.at_full
        assert not (mounted / OURS).exists()
        assert os.listdir(work) == []
        target.server.stop()
        kept = target.restore(source.tip, replace=True, start=False).kept
        assert kept
        assert (kept / "ibdata1").exists()
        target.server.start()
        assert target.server.content() == source.at_tip


# -- servers that do not come up


def test_a_restored_server_that_cannot_start_gives_way_to_the_old_one(source: Source, target: Guest) -> None:
    server = target.server
    broken = server.home / "broken-start"
    with_bad_option = shlex.join(server.argv("--innodb-page-size=32k"))
    broken.write_text(
        f"#!/bin/sh\n[ -d {server.datadir}/old ] && exec {server.start_script()}\nexec {with_bad_option} $MYSQLD_OPTS\n"
    )
    broken.chmod(0o755)
    sick = Guest("guest2", server, target.place, target.url, database=f"start_command = {broken}\n")
    done = sick.command("restore", source.tip.id, "--replace")
    target.__post_init__()  # write its own configuration again
    assert done.returncode == 9, done.stderr
    assert re.search(
        r"does not answer: .*failed with exit status 1: .*; the old data is back in its place\n", done.stderr
    )
    assert server.running
    assert_old(target)


# -- a damaged store


def test_one_wrong_byte_is_found_before_anything_is_touched(source: Source, target: Guest, place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in target.server.datadir.iterdir() if path.name != "binlog.000001"}
    for link in (source.full, source.tip):
        segment = place / "store" / "guest1" / link.id / "data" / "00000000"
        whole = segment.read_bytes()
        middle = len(whole) // 2
        segment.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        try:
            done = target.command("restore", source.tip.id, "--replace")
        finally:
            segment.write_bytes(whole)
        assert done.returncode == 6, done.stderr
        assert f"{link.location}/data/00000000 is not what the manifest promises" in done.stderr
        assert "stop\n" not in done.stderr
    assert_old(target)
    assert before.keys() <= set(target.server.datadir.iterdir())


# -- the tool dies


@pytest.mark.parametrize("early", [True, False], ids=["at its start", "half way"])
def test_a_prepare_of_an_incremental_that_is_killed(source: Source, target: Guest, *, early: bool) -> None:
    with (
        holding(target.place, "--prepare", "--incremental-dir") as environment,
        Running(target, "restore", source.tip.id, "--replace", environment=environment) as command,
    ):
        tool = wait_for_held(target.place, "--incremental-dir")
        deltas = target.server.datadir / OURS / ".restore" / "link-1" / "d"

        def count() -> int:
            return len(list(deltas.glob("*.delta")))

        all_of_them = count()
        assert all_of_them > 40
        with ExitStack() as stack:
            if not early:
                *_, last = (path for path in deltas.iterdir() if path.suffix == ".delta")
                asked = stack.enter_context(leased(last))
                os.kill(tool, signal.SIGCONT)
                wait_until(asked, "it has applied what comes before the last")
            left = count()
            assert (left == all_of_them) == early
            assert left
            os.kill(tool, signal.SIGKILL)
            assert command.finish() == 1
    assert "guestagent: mariabackup died by SIGKILL" in command.err
    assert_old(target)


def test_a_prepare_that_fails_names_what_it_said(source: Source, target: Guest) -> None:
    script = 'case "$*" in *--incremental-dir*) echo "[ERROR] the moon is full" >&2; exit 3;; esac; exec $real "$@"'
    with tool_on_path(target.place, script) as environment:
        done = target.command("restore", source.tip.id, "--replace", environment=environment)
    assert done.returncode == 1
    assert "guestagent: mariabackup failed with exit status 3: [ERROR] the moon is full\n" in done.stderr
    assert_old(target)


# -- we are killed


Reach = Callable[[Running, Guest], bool]
"""Lets a command run up to some point; gives whether that lies within the swap."""


def at_line(words: str) -> Reach:
    """When stderr tells of a phase."""

    def reach(command: Running, target: Guest) -> bool:
        command.wait_for(f"  {words}")
        return False

    return reach


def in_swap(*phases: str) -> Reach:
    """When the swap's journal is in one of ``phases``, or has just gone; found by steps of a moment each."""

    def reach(command: Running, target: Guest) -> bool:
        command.wait_for("  stop")
        wait_until(lambda: not target.server.running, "the server is down", pause=0.001)
        journal, seen = target.server.datadir / OURS / "journal.json", [""]

        def arrived() -> bool:
            alive = step(command.process.pid, 0.001)
            seen.append(_phase_of(journal))
            return not alive or seen[-1] in phases or (not seen[-1] and any(seen))

        wait_until(arrived, f"the swap is in {phases}", pause=0)
        return seen[-1] in phases

    return reach


def _phase_of(journal: Path) -> str:
    try:
        return str(json.loads(journal.read_bytes())["phase"])
    except (OSError, ValueError):
        return ""


def test_a_kill_at_any_point_leaves_the_old_or_the_new(source: Source, place: Path) -> None:
    """Two backups take turns on one datadir, so that each restore has the other's data to replace."""
    points = [
        (at_line("fetch"), "old"),
        (at_line("prepare link 2"), "old"),
        (at_line("seal"), "old"),
        (at_line("stop"), "old"),
        (in_swap("back"), "old new none"),
        (in_swap("out", "in"), "old new none"),
        (in_swap("last"), "old new none"),
        (at_line("start"), "new"),
    ]
    turns = [(source.further, source.at_further), (source.tip, source.at_tip)]
    hits = []
    with slow_moves(place) as slowly, MariaDB(datadir=place / "turns", running=False) as server:
        stop = Gate(server.home, "stop", server.stop_script())
        database = f"stop_command = {stop.script}\n"
        target = Guest("guest4", server, place, f"file://{place}/store", database=database)
        target.restore(source.tip, start=True)
        for number, (reach, allowed) in enumerate(points):
            (wanted, new), (_, old) = turns if number % 2 == 0 else turns[::-1]
            words = ("restore", wanted.id, "--replace", "--start")
            if allowed == "old":
                stop.close()
            with Running(target, *words, environment=slowly) as command:
                hits.append(reach(command, target))
                command.signal(signal.SIGKILL)
                assert command.finish() == -signal.SIGKILL
            stop.open()
            found = found_after_kill(target)
            states = {"old": old, "new": new, "none": None}
            assert found in [states[name] for name in allowed.split()], f"after kill {number}: {found}"
            target.restore(wanted, replace=True, start=True)
            assert target.server.content() == new
            assert not (server.datadir / OURS).exists()
    assert any(hits)


def test_a_tool_does_not_outlive_us(source: Source, place: Path, target: Guest) -> None:
    words = ("restore", source.tip.id, "--datadir", str(place / "lonely"), "--no-start")
    with (
        holding(target.place, "--prepare") as environment,
        Running(target, *words, environment=environment) as command,
    ):
        wait_for_held(target.place, "--prepare")
        command.signal(signal.SIGKILL)
        command.finish()
        wait_until(lambda: not tools(target.place), "the tool has ended")


def found_after_kill(target: Guest) -> Content | None:
    """What the server has, or None if it does not start."""
    places = (target.server.datadir, target.server.home)
    wait_until(lambda: not any(map(tools, places)) and settled(target), "all is quiet")
    if not target.server.running:
        try:
            target.server.start()
        except RuntimeError:
            return None
    return target.server.content()


def settled(target: Guest) -> bool:
    """Whether the server answers, or is down: neither on its way up nor down."""
    try:
        return bool(target.server.query("SELECT 1"))
    except pymysql.err.OperationalError:
        return not target.server.running
