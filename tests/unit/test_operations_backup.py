"""The backup story: COMPLETED means restorable, and whatever else happens is named and leaves nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import incarnation
from guestagent.errors import (
    Cancelled,
    ChainBroken,
    ConfigError,
    Corrupt,
    GuestagentError,
    NotFound,
    Refused,
    Stalled,
    StorageError,
    ToolError,
)
from guestagent.manifest import Backup, digest
from guestagent.model import InstanceId, Kind
from guestagent.operations import backup as story
from guestagent.operations.verify import verify
from guestagent.progress import Cancel, Watch
from guestagent.storage import Storage
from guestagent.streams import crew, process
from tests.fakes.bench import BEFORE, INSTANCE, PATIENCE, SECRET, Bench, CancelAt, Told, new_id, settled
from tests.fakes.stores import Acts, Hangs, Lies, LosesAnswers, Refuses, Through

Unchanged = Callable[[], Callable[[], None]]
SLOW = 40.0
"""Seconds that a story may take to end once it was told to: processes and threads on a busy machine."""


def failing(bench: Bench, unchanged: Unchanged, **options: Any) -> GuestagentError:
    """The error of a backup that fails; nothing of it is left, and the datadir does not know it."""
    check, wanted = unchanged(), new_id()
    with pytest.raises(GuestagentError) as failed:
        bench.backup(id=wanted, **options)
    check()
    assert not bench.catalog().exists(bench.catalog().location(INSTANCE, wanted))
    return failed.value


def size_of(*names: str) -> int:
    """Bytes of files that the server had from the beginning."""
    return sum(len(BEFORE[name]) for name in names)


# What becomes of it


def test_a_full_backup_is_what_its_manifest_says(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    watch = Told()
    taken = bench.backup(watch=Watch(watch), compression="none")
    made = taken.manifest
    assert (made.kind, made.parent, made.instance_id, made.name) == (Kind.FULL, None, INSTANCE, "test")
    assert (made.engine, made.tool_version, made.datastore) == ("mariabackup", "10.11.19", "mariadb")
    assert made.server_version == "10.11.19-MariaDB-log"
    assert (made.lsn.begin, made.lsn.end, made.lsn.last) == (0, 16_000_000, 16_000_300)
    assert made.binlog is not None
    assert (made.binlog.file, made.binlog.position, made.binlog.gtid) == ("binlog.000002", 157, "0-1-5")
    assert made.stream.format == "mbstream"
    assert len(made.segments) == 3
    assert taken.checksum == digest(bench.object(taken, "manifest.json").read_bytes())
    assert bench.catalog().get(taken.id) == taken
    assert bench.object(taken, "data/00000000").read_bytes().startswith(b"XBSTCK01")
    assert watch.phases == [("preflight", None), ("dump", size_of("ibdata1", "shop/old.ibd")), ("publish", None)]
    assert watch.moved == {"dump": made.raw_size}
    assert not list((bench.state / "unfinished").iterdir())
    bench.check_scratch()
    bench.check_no_secret(caplog.text, repr(bench.host()), str(taken))


class Backwards(datetime):
    """A clock that is set back whenever somebody has looked at it."""

    looks = 0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Backwards:
        cls.looks += 1
        return super().now(tz) - timedelta(hours=cls.looks)


def test_a_clock_that_steps_does_not_change_how_long_a_backup_took(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "datetime", Backwards)
    made = bench.backup().manifest
    assert timedelta() <= made.finished - made.started < timedelta(hours=1)


def test_the_password_reaches_the_tool_in_a_private_file(bench: Bench) -> None:
    bench.backup()
    (run,) = bench.runs("backup")
    assert SECRET in run["option_file"]
    assert run["option_mode"] == "0o600"


@pytest.mark.parametrize("changes", [{}, {"parallel": 3, "lock_wait_timeout": 0, "extra_args": ("--throttle=7",)}])
def test_the_settings_reach_the_tool(bench: Bench, changes: dict[str, Any]) -> None:
    bench.backup(**changes)
    argv = bench.runs("backup")[0]["argv"]
    cores = min(len(os.sched_getaffinity(0)), 3)
    assert f"--parallel={changes.get('parallel', cores)}" in argv
    assert not [word for word in argv if "timeout" in word], "any statement that runs on would end the backup"
    assert ("--throttle=7" in argv) is bool(changes)


def test_an_incremental_begins_where_its_parent_ended(bench: Bench) -> None:
    told = Told()
    full = bench.backup()
    first = bench.backup(full, watch=Watch(told))
    second = bench.backup("latest")
    for run, parent in zip(bench.runs("backup")[1:], (full, first), strict=True):
        assert f"--incremental-lsn={parent.manifest.lsn.end}" in run["argv"]
    assert (first.manifest.kind, first.manifest.parent) == (Kind.INCREMENTAL, full.as_parent())
    assert second.manifest.parent == first.as_parent()
    assert list(bench.catalog().chain(second)) == [full, first, second]
    assert told.phases[1] == ("dump", None)
    known = incarnation.read(bench.datadir)
    assert known is not None
    assert known.history == (full.id, first.id, second.id)
    assert {one.manifest.incarnation for one in (full, first, second)} == {known.id}


def test_an_idle_servers_incremental_has_equal_lsns(bench: Bench) -> None:
    full = bench.backup()
    bench.tool(LSN=str(full.manifest.lsn.end))
    child = bench.backup(full)
    assert child.manifest.lsn.begin == child.manifest.lsn.end == full.manifest.lsn.end
    assert len(bench.catalog().chain(bench.backup(child))) == 3


def test_a_backup_of_mysql(mysql: Bench) -> None:
    full = mysql.backup()
    taken = mysql.backup(full)
    made = taken.manifest
    assert (made.engine, made.datastore, made.stream.format) == ("xtrabackup", "mysql", "xbstream")
    assert made.binlog is not None
    assert made.binlog.gtid.count(":") == 2
    assert len(verify(mysql.host(), taken.id, Watch())) == 2


def test_an_estimate_of_a_datadir_that_changes_meanwhile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shop/t.ibd", "shop/t.frm", "undo001", "mysql/x.MYD", "shop/notes.txt"):
        (bench.datadir / name).parent.mkdir(exist_ok=True)
        (bench.datadir / name).write_bytes(bytes(100))
    gone = str(bench.datadir / "shop" / "t.ibd")
    whole = os.stat

    def vanishing(path: Any, **options: Any) -> os.stat_result:
        if str(path) == gone:
            raise FileNotFoundError
        return whole(path, **options)

    told = Told()
    monkeypatch.setattr(os, "stat", vanishing)
    bench.backup(watch=Watch(told))
    assert told.phases[1] == ("dump", size_of("ibdata1", "shop/old.ibd") + 300)


# A1, A2: the tool


@pytest.mark.parametrize(
    ("fault", "error", "why"),
    [
        ("start-exit-1", ToolError, "mariabackup failed with exit status 1: .*the server has gone away"),
        ("half", ToolError, "mariabackup failed with exit status 1: .*no space left on device"),
        ("killed", ToolError, "mariabackup died by SIGKILL"),
        ("unconfirmed", ToolError, "exited with 0, not saying that it completed; it said: .*Redo log"),
        ("words-after", ToolError, "exited with 0, not saying that it completed; it said: .*something went wrong"),
        ("exit-3", ToolError, "failed with exit status 3: .*completed OK!"),
        ("cut", Corrupt, "the stream ends inside a chunk"),
        ("unended", Corrupt, "the stream ends before .* does"),
        ("empty", Corrupt, "the stream is empty"),
        ("flip", Corrupt, "has a wrong checksum"),
        ("no-checkpoints", ToolError, "neither mariadb_backup_checkpoints nor xtrabackup_checkpoints was written"),
        ("bad-checkpoints", ToolError, "xtrabackup_checkpoints line 1: backup_type is 'full-back', not one of"),
        ("behind", ToolError, "xtrabackup_checkpoints: .*to_lsn|to_lsn is"),
    ],
)
def test_a_tool_that_fails_or_lies(
    bench: Bench, unchanged: Unchanged, fault: str, error: type[GuestagentError], why: str
) -> None:
    bench.tool(FAULT=fault)
    failed = failing(bench, unchanged)
    assert type(failed) is error
    assert re.search(why, failed.what)
    assert bench.objects() == {}


def test_the_last_lines_of_the_tool_ride_in_the_error(bench: Bench, unchanged: Unchanged) -> None:
    bench.tool(FAULT="half")
    failed = failing(bench, unchanged)
    assert isinstance(failed, ToolError)
    assert "no space left on device" in failed.tail[-1]


def test_an_incremental_that_does_not_begin_where_it_was_asked_to(bench: Bench, unchanged: Unchanged) -> None:
    full = bench.backup()
    bench.tool(FAULT="wrong-from")
    failed = failing(bench, unchanged, parent=full)
    assert type(failed) is ToolError
    assert failed.what == "mariabackup dumped from LSN 16000007, and was asked to from 16000000"
    assert bench.catalog().backups() == [full]


def test_a_full_that_does_not_begin_at_zero(
    bench: Bench, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tool(FAULT="wrong-from")
    assert "from_lsn" in failing(bench, unchanged).what


def test_a_tool_that_dumped_another_server(bench: Bench, unchanged: Unchanged) -> None:
    bench.tool(SERVER="10.6.1-MariaDB")
    failed = failing(bench, unchanged)
    assert type(failed) is ToolError
    assert "dumped server 10.6.1-MariaDB, and we asked 10.11.19" in failed.what
    assert "socket, host and port" in failed.hint


def test_what_a_tool_says_when_it_says_nothing() -> None:
    with process.Child(["/bin/true"]) as child:
        child.finish(Watch())
        with pytest.raises(ToolError, match="it said: nothing"):
            story.check_confirmed(False, child)
        story.check_confirmed(True, child)


# A3, A10: stages that die


def test_a_worker_that_dies_is_the_cause(bench: Bench, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_: memoryview) -> bytes:
        raise MemoryError("no memory for a frame")

    bench.tool(SIZE=str(4 << 20))
    check = unchanged()
    monkeypatch.setattr(story, "encoder", lambda *_: dies)
    with pytest.raises(MemoryError, match="no memory for a frame"):
        bench.backup()
    check()


@pytest.mark.parametrize("suffix", ["00000000", "00000002"], ids=["first", "last"])
def test_a_store_that_refuses_a_segment(bench: Bench, unchanged: Unchanged, suffix: str) -> None:
    bench.wrap = lambda inner: Refuses(inner, "put", suffix=suffix)
    failed = failing(bench, unchanged)
    assert type(failed) is StorageError
    assert str(failed) == "503 slow down; wait"


def test_a_store_that_refuses_the_manifest(bench: Bench, unchanged: Unchanged) -> None:
    bench.wrap = lambda inner: Refuses(inner, "put_new")
    assert str(failing(bench, unchanged)) == "503 slow down; wait"


def test_a_manifest_whose_answer_got_lost_counts_as_published(bench: Bench) -> None:
    bench.wrap = LosesAnswers
    taken = bench.backup()
    assert bench.catalog().backups() == [taken]
    assert len(verify(bench.host(), taken.id, Watch())) == 1
    assert not list((bench.state / "unfinished").iterdir())


def test_a_backup_that_was_published_although_we_never_learned_it_is_not_swept(bench: Bench) -> None:
    wanted = new_id()
    bench.wrap = lambda inner: Refuses(LosesAnswers(inner), "get")
    with pytest.raises(StorageError, match="connection reset by peer"):
        bench.backup(id=wanted)
    bench.wrap = lambda inner: inner
    other = bench.backup()
    assert {found.id for found in bench.catalog().backups()} == {wanted, other.id}
    assert len(verify(bench.host(), wanted, Watch())) == 1


# A5: a store that lies


@pytest.mark.parametrize(
    ("instead", "proof", "why"),
    [
        (lambda _: None, "sizes", r"00000001 should have \d+ bytes and is missing"),
        (lambda body: body[:-1], "sizes", r"00000001 should have \d+ bytes and has \d+"),
        (lambda body: body[:-1] + bytes([body[-1] ^ 1]), "bytes", "00000001 is not what the manifest promises"),
        (lambda body: b"x" * len(body), "bytes", "00000001 is not what the manifest promises"),
    ],
    ids=["missing", "short", "flipped", "different"],
)
def test_a_put_that_was_reported_as_done_and_was_not(
    bench: Bench, unchanged: Unchanged, instead: Callable[[bytes], bytes | None], proof: str, why: str
) -> None:
    bench.wrap = lambda inner: Lies(inner, "00000001", instead)
    failed = failing(bench, unchanged, verify_uploads=proof)
    assert type(failed) is Corrupt
    assert re.search(f"/data/{why}", failed.what)


def test_uploads_that_are_read_back(bench: Bench) -> None:
    told = Told()
    taken = bench.backup(watch=Watch(told), verify_uploads="bytes")
    assert told.phases[-1] == ("publish", taken.manifest.stored_size)
    assert told.moved["publish"] == taken.manifest.stored_size


# B1: the parent


def test_a_parent_that_is_not_there(bench: Bench, unchanged: Unchanged) -> None:
    failed = failing(bench, unchanged, parent=new_id())
    assert type(failed) is NotFound
    assert not bench.runs("backup")


def test_a_parent_that_failed(bench: Bench, unchanged: Unchanged) -> None:
    wanted = new_id()
    bench.tool(FAULT="half")
    with pytest.raises(ToolError):
        bench.backup(id=wanted)
    bench.tool(FAULT="")
    assert type(failing(bench, unchanged, parent=wanted)) is NotFound


def test_a_parent_that_was_deleted_before(bench: Bench, unchanged: Unchanged) -> None:
    full = bench.backup()
    bench.catalog().delete(full)
    assert type(failing(bench, unchanged, parent=full)) is NotFound
    failed = failing(bench, unchanged, parent="latest")
    assert type(failed) is NotFound
    assert "no backup of this server to continue; take a full backup first" in str(failed)


class AtFirstSegment(Through):
    """Does something as soon as the first segment of a backup is stored."""

    def __init__(self, inner: Storage, act: Callable[[], None]) -> None:
        super().__init__(inner)
        self._act = act

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        super().put(key, body, sha256=sha256)
        if key.endswith("00000000"):
            self._act()


def test_a_parent_that_is_deleted_meanwhile(bench: Bench, unchanged: Unchanged) -> None:
    full = bench.backup()
    check = unchanged()
    kept = dict(bench.objects())
    bench.wrap = lambda inner: AtFirstSegment(inner, lambda: shutil.rmtree(bench.object(full, "")))
    with pytest.raises(ChainBroken, match=f"the parent {full.id} was deleted during the backup; take a full"):
        bench.backup(full)
    assert bench.objects() == {}
    for name, body in kept.items():
        (bench.store / name).parent.mkdir(parents=True, exist_ok=True)
        (bench.store / name).write_bytes(body)
    check()


def test_a_parent_that_is_replaced_meanwhile(bench: Bench, unchanged: Unchanged) -> None:
    full = bench.backup()
    path = bench.object(full, "manifest.json")
    whole = path.read_bytes()

    def replace_it() -> None:
        path.write_bytes(replace(full.manifest, name="another").to_bytes())

    check = unchanged()
    bench.wrap = lambda inner: AtFirstSegment(inner, replace_it)
    with pytest.raises(ChainBroken, match=f"the parent {full.id} was replaced during the backup; take a full"):
        bench.backup(full)
    path.write_bytes(whole)
    check()


def test_a_parent_of_another_instance_that_this_server_was_not_restored_from(
    bench: Bench, unchanged: Unchanged
) -> None:
    bench.backup()
    theirs = of_another_instance(bench)
    failed = failing(bench, unchanged, parent=theirs)
    assert type(failed) is Refused
    assert f"no incremental on {theirs.id}: this datadir has not passed through it" in failed.what
    assert failed.hint == "take a full backup"
    assert len(bench.runs("backup")) == 2


def test_a_parent_of_another_instance_that_this_server_was_restored_from(bench: Bench) -> None:
    theirs = of_another_instance(bench)
    bench.restore(theirs, replace=True)
    child = bench.backup(theirs)
    assert (child.manifest.instance_id, child.manifest.parent) == (INSTANCE, theirs.as_parent())
    assert bench.backup("latest").manifest.parent == child.as_parent()
    assert list(bench.catalog().chain(child)) == [theirs, child]


def of_another_instance(bench: Bench) -> Backup:
    """A full that another guest took of a server of its own."""
    own = incarnation.read(bench.datadir)
    bench.instance = InstanceId("guest2")
    theirs = bench.backup()
    bench.instance = INSTANCE
    if own:
        incarnation.write(bench.datadir, own)
    else:
        (bench.datadir / incarnation.FILE).unlink()
    return theirs


# B2 in the story: what a datadir has passed through


def test_the_datadir_learns_of_a_backup_after_its_dump_and_before_its_manifest(bench: Bench) -> None:
    wanted = new_id()
    known: list[tuple[str, bool]] = []

    def look(_: str, key: str) -> None:
        own = incarnation.read(bench.datadir)
        known.append((key.rpartition("/")[2], own is not None and own.passed_through(wanted)))

    bench.wrap = lambda inner: Acts(inner, look)
    bench.backup(id=wanted)
    assert known[-1] == ("manifest.json", True)
    assert {passed for _, passed in known[:-1]} == {False}


def test_an_incarnation_that_was_copied_from_another_instance_is_not_kept(bench: Bench) -> None:
    full = bench.backup()
    bench.instance = InstanceId("guest2")
    with pytest.raises(Refused, match="the datadir was copied from instance guest1; take a full"):
        bench.backup(full)
    mine = bench.backup()
    own = incarnation.read(bench.datadir)
    assert own is not None
    assert (own.instance_id, own.history) == ("guest2", (mine.id,))


# D1: hangs


@pytest.mark.parametrize("fault", ["hang", "hang-start"])
def test_a_tool_that_goes_silent(bench: Bench, unchanged: Unchanged, fault: str) -> None:
    bench.tool(FAULT=fault)
    failed = failing(bench, unchanged, watch=Watch(limit=4))
    assert type(failed) is Stalled
    assert str(failed).startswith("no progress for 4 s in phase dump; look for locks")


def test_a_put_that_hangs(bench: Bench, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE", 0.2)
    stores: list[Hangs] = []

    def hanging(inner: Storage) -> Storage:
        stores.append(Hangs(inner))
        return stores[-1]

    bench.tool(SIZE=str(8 << 20))
    bench.wrap = hanging
    failed = failing(bench, unchanged, watch=Watch(limit=4))
    assert type(failed) is Stalled
    # The store finishes after all what nobody waits for any more: the next sweep finds it.
    assert stores[0].hanging.is_set()
    stores[0].release.set()
    assert stores[0].stored.wait(PATIENCE)
    settled()
    assert bench.objects()
    bench.wrap = lambda inner: inner
    bench.tool(SIZE="0")
    taken = bench.backup()
    assert {name.split("/")[1] for name in bench.objects()} == {taken.id}
    assert not list((bench.state / "unfinished").iterdir())


# D2: noise


def test_a_noisy_tool_disturbs_nothing(bench: Bench) -> None:
    bench.tool(FAULT="loud,long-line,binary")
    taken = bench.backup()
    assert len(verify(bench.host(), taken.id, Watch())) == 1


def test_a_noisy_tool_that_fails_is_quoted_by_its_last_words(bench: Bench, unchanged: Unchanged) -> None:
    bench.tool(FAULT="long-line,binary,half")
    failed = failing(bench, unchanged)
    assert isinstance(failed, ToolError)
    assert "no space left on device" in failed.what
    assert max(map(len, failed.tail)) <= process.LINE_LIMIT


# D3: cancels


@pytest.mark.parametrize(
    ("phase", "at_byte", "proof"),
    [
        ("preflight", False, "sizes"),
        ("dump", False, "sizes"),
        ("dump", True, "sizes"),
        ("publish", False, "sizes"),
        ("publish", False, "bytes"),
        ("publish", True, "bytes"),
    ],
)
def test_a_cancel_in_every_phase(bench: Bench, unchanged: Unchanged, phase: str, at_byte: bool, proof: str) -> None:
    bench.tool(SIZE=str(2 << 20))
    door = CancelAt(phase, at_byte=at_byte)
    begun = time.monotonic()
    failed = failing(bench, unchanged, watch=door.watch(), verify_uploads=proof)
    assert type(failed) is Cancelled
    assert str(failed) == "the test says so"
    assert door.seen[-1] == ("dump" if phase == "preflight" else phase)
    assert time.monotonic() - begun < SLOW


def test_a_cancel_while_the_tool_is_silent_and_deaf(
    bench: Bench, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.3)
    bench.tool(FAULT="hang,deaf")
    cancel = Cancel()
    threading.Timer(0.5, cancel.set, ["stopped by SIGINT"]).start()
    begun = time.monotonic()
    failed = failing(bench, unchanged, watch=Watch(cancel=cancel))
    assert type(failed) is Cancelled
    assert time.monotonic() - begun < SLOW


# Refused before anything begins


def test_without_an_instance_there_is_no_backup(bench: Bench, unchanged: Unchanged) -> None:
    bench.instance = None
    check = unchanged()
    with pytest.raises(ConfigError, match=r"guest_id is not set; set it under \[DEFAULT\]"):
        bench.backup()
    check()


def test_an_id_that_is_taken_is_refused_and_what_is_there_stays(bench: Bench, unchanged: Unchanged) -> None:
    taken = bench.backup()
    check = unchanged()
    with pytest.raises(Refused, match=f"backup {taken.id} exists already; use another id"):
        bench.backup(id=taken.id)
    check()
    assert len(bench.runs("backup")) == 1


@pytest.mark.parametrize("obstacle", [".", "scratch", "unfinished"])
def test_a_state_directory_that_cannot_be_written_to(bench: Bench, unchanged: Unchanged, obstacle: str) -> None:
    check = unchanged()
    (bench.state / obstacle).parent.mkdir(parents=True, exist_ok=True)
    (bench.state / obstacle).write_text("in the way")
    with pytest.raises(GuestagentError, match=f"cannot write to state_dir {bench.state}: .*; run as a user that may"):
        bench.backup()
    (bench.state / obstacle).unlink()
    check()
    assert not bench.runs("backup")


def test_a_scratch_that_is_full(bench: Bench, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch) -> None:
    check = unchanged()

    def full(path: str, flags: int) -> int:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(story, "_private", full)
    with pytest.raises(GuestagentError, match=r"cannot write to state_dir .*: no space left on device"):
        bench.backup()
    check()


def test_a_password_that_no_option_file_can_hold(bench: Bench, unchanged: Unchanged) -> None:
    check = unchanged()
    host = bench.host()
    database = replace(host.database, connection=replace(host.database.connection, password="line\nbreak"))
    with pytest.raises(ConfigError, match="password holds a line break"):
        story.backup(replace(host, database=database), bench.request(), Watch())
    check()


# What does not belong here


def test_only_the_facts_of_the_tool_are_read(tmp_path: Path) -> None:
    (tmp_path / "xtrabackup_info").write_bytes(b"name = \xff\n")
    (tmp_path / "mariadb_backup_checkpoints").write_text("x")
    (tmp_path / "backup-my.cnf").write_text("x")
    (tmp_path / "x_info").mkdir()
    assert story.read_texts(tmp_path) == {"xtrabackup_info": "name = \ufffd\n", "mariadb_backup_checkpoints": "x"}


def test_a_hand_restore_gives_the_stream(bench: Bench) -> None:
    taken = bench.backup()
    segments = [bench.object(taken, f"data/{index:08d}") for index in range(len(taken.manifest.segments))]
    joined = b"".join(path.read_bytes() for path in segments)
    if shutil.which("zstd"):
        raw = subprocess.run(["zstd", "-dc"], input=joined, capture_output=True, check=True, timeout=PATIENCE).stdout
        assert len(raw) == taken.manifest.raw_size
        assert raw.startswith(b"XBSTCK01")
