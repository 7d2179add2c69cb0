"""The restore story: exactly the data of that backup or a clear error, and never the loss of what was there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import incarnation, layout, staging, swap
from guestagent.datadir.staging import half_swapped
from guestagent.errors import (
    Cancelled,
    ChainBroken,
    Corrupt,
    DatabaseError,
    Foreign,
    GuestagentError,
    Refused,
    Stalled,
    ToolError,
)
from guestagent.manifest import Backup
from guestagent.model import BackupId
from guestagent.operations import memory, service
from guestagent.operations import restore as story
from guestagent.operations.plan import RestoreRequest
from guestagent.operations.restore import LEAST_MEMORY, MOST_MEMORY, sweep_restores
from guestagent.progress import Cancel, Watch
from guestagent.storage import Storage
from guestagent.streams import crew, process
from tests.fakes.bench import (
    BEFORE,
    FAKES,
    INSTANCE,
    PATIENCE,
    USER,
    Bench,
    CancelAt,
    Told,
    Tree,
    data_in,
    new_id,
    read_tree,
    settled,
    when,
    write_tree,
)
from tests.fakes.chunks import Chunk, encode
from tests.fakes.stores import HangsOnGet

Unchanged = Callable[[], Callable[[], None]]
FIFTY = 50
SLOW = 40.0
"""Seconds within which a cancelled restore has ended, the old server's start included."""


@dataclass(frozen=True)
class Made:
    """A chain that was made once, and what each of its links must restore to."""

    store: Path
    links: list[tuple[BackupId, Tree]]

    def laid(self, bench: Bench) -> Made:
        """The chain in the bench's own store."""
        shutil.copytree(self.store, bench.store)
        return self

    @property
    def ids(self) -> list[BackupId]:
        return [wanted for wanted, _ in self.links]

    @property
    def tip(self) -> BackupId:
        return self.links[-1][0]

    @property
    def data(self) -> Tree:
        return self.links[-1][1]


def made(top: Path, datastore: str) -> Made:
    with pytest.MonkeyPatch.context() as patch:
        bench = Bench(top, patch, datastore=datastore)
        try:
            links = bench.chain(3)
        finally:
            bench.close()
    return Made(bench.store, [(link.id, tree) for link, tree in links])


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("mariadb"), "mariadb")


@pytest.fixture
def chain(made_once: Made, bench: Bench) -> Made:
    """A chain of three links, made elsewhere; the bench's server has data of its own."""
    return made_once.laid(bench)


def get(bench: Bench, wanted: BackupId) -> Backup:
    return bench.catalog().get(wanted)


def failing(bench: Bench, unchanged: Unchanged, source: str, **options: Any) -> GuestagentError:
    """The error of a restore that fails: the old data are there, the old server runs if it ran, nothing else stays."""
    check = unchanged()
    with pytest.raises(GuestagentError) as failed:
        bench.restore(source, **{"replace": True, **options})
    check()
    return failed.value


class At:
    """A progress that does something as the ``number``th phase of that name begins."""

    def __init__(self, phase: str, act: Callable[[], object], *, number: int = 1) -> None:
        self._phase = phase
        self._act = act
        self._left = number

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        self._left -= name == self._phase
        if name == self._phase and self._left == 0:
            self._act()

    def advance(self, count: int) -> None:
        """Only phases matter."""


# What becomes of it


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_link_restores_to_its_own_data(bench: Bench, chain: Made, number: int) -> None:
    bench.server.halt()
    wanted, data = chain.links[number]
    target = bench.top / "target"
    told = Told()
    done = bench.restore(wanted, datadir=target, watch=Watch(told))
    assert data_in(target) == data
    assert (done.backup.id, list(done.links)) == (wanted, chain.ids[: number + 1])
    assert (done.datadir, done.kept, done.server) == (target, None, None)
    phases = [name for name, _ in told.phases]
    assert [name.partition(" ")[0] for name in phases] == ["plan", "fetch", *["prepare"] * (number + 1), "seal"]
    assert told.phases[1][1] == sum(told.moved.values())
    assert set(read_tree(bench.datadir)) == set(BEFORE)
    assert not (target / layout.OURS).exists()


def test_a_restore_in_the_place_of_a_running_server(
    bench: Bench, chain: Made, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    told = Told()
    done = bench.restore(chain.tip, replace=True, watch=Watch(told))
    assert data_in(bench.datadir) == chain.data
    assert bench.server.running
    assert bench.server.calls() == ["stop", "start"]
    assert bench.server.options() == "--event-scheduler=OFF --skip-slave-start"
    assert [name for name, _ in told.phases][-3:] == ["seal", "stop", "start"]
    assert (done.kept, done.server) == (None, bench.server.version_text)
    assert not (bench.datadir / layout.OURS).exists()
    with bench.catalog() as catalog:
        assert done.raw_size == catalog.chain(catalog.get(chain.tip)).raw_size
    assert done.properties() == {
        "backup_id": chain.tip,
        "name": "test",
        "links": 3,
        "raw_size": done.raw_size,
        "datadir": str(bench.datadir),
        "started": True,
        "server_version": "10.11.19-MariaDB-log",
        "old_data": None,
    }
    bench.check_no_child()
    bench.check_scratch()
    bench.check_no_secret(caplog.text)


def test_old_data_are_kept_until_a_restored_server_has_answered(bench: Bench, chain: Made) -> None:
    done = bench.restore(chain.ids[0], replace=True, start=False)
    assert done.kept is not None
    assert read_tree(done.kept) == BEFORE
    assert done.properties()["old_data"] == str(done.kept)
    assert not bench.server.running
    assert data_in(bench.datadir) == chain.links[0][1]
    done = bench.restore(chain.tip, replace=True, start=True)
    assert done.kept is None
    assert swap.kept(bench.datadir) == []
    assert data_in(bench.datadir) == chain.data


def test_a_restored_server_has_a_new_life_with_the_chain_as_its_past(bench: Bench, chain: Made) -> None:
    bench.restore(chain.tip, replace=True)
    first = incarnation.read(bench.datadir)
    assert first is not None
    assert (first.instance_id, first.restored_from, list(first.history)) == (INSTANCE, chain.tip, chain.ids)
    bench.restore(chain.ids[0], replace=True)
    second = incarnation.read(bench.datadir)
    assert second is not None
    assert second.id != first.id
    assert list(second.history) == chain.ids[:1]
    with pytest.raises(Refused, match=f"restored from {chain.ids[0]}, or rolled back, since"):
        bench.backup(chain.tip)
    assert bench.backup(chain.ids[0]).manifest.incarnation == second.id


def test_a_bare_host_restores_from_a_location_into_the_backups_instance(bench: Bench, chain: Made) -> None:
    bench.server.halt()
    bench.instance = None
    location = get(bench, chain.tip).location
    target = bench.top / "new" / "data"
    bench.restore(location, datadir=target)
    assert data_in(target) == chain.data
    own = incarnation.read(target)
    assert own is not None
    assert own.instance_id == INSTANCE


def test_modes_and_owner_of_a_fresh_target(bench: Bench, chain: Made) -> None:
    bench.server.halt()
    user = "daemon" if os.geteuid() == 0 else USER
    target = bench.top / "new" / "data"
    bench.restore(chain.tip, datadir=target, os_user=user)
    assert {path.owner() for path in (target, *target.rglob("*"))} == {user}
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    modes = {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*") if path.name[0] != "."}
    assert modes == {True: 0o700, False: 0o660}
    assert stat.S_IMODE((bench.top / "new").stat().st_mode) == 0o755


def test_a_fresh_target_is_started_if_told_to(bench: Bench, chain: Made) -> None:
    bench.server.halt()
    write_tree(bench.datadir, {})
    done = bench.restore(chain.tip, start=True)
    assert (done.server, bench.server.running) == (bench.server.version_text, True)
    assert data_in(bench.datadir) == chain.data
    assert not (bench.datadir / layout.OURS).exists()


def test_a_chain_of_fifty_links(bench: Bench) -> None:
    full = bench.backup()
    bench.tool(LSN=str(full.manifest.lsn.end))  # an idle server: of such a link any number may follow each other
    tree = bench.write("once")
    links = [full, bench.backup(full)]
    while len(links) < FIFTY:
        links.append(again(bench, links[1], on=links[-1]))
    bench.restore(links[-1], replace=True)
    assert data_in(bench.datadir) == tree
    applied = [run["argv"][-1].rpartition("-")[2] for run in bench.runs("prepare")][1:]
    assert applied == [str(number) for number in range(1, FIFTY)]


def again(bench: Bench, link: Backup, *, on: Backup) -> Backup:
    """The same incremental once more, on another parent."""
    copy = replace(link.manifest, id=new_id(), parent=on.as_parent())
    shutil.copytree(bench.object(link, "data"), bench.store / copy.instance_id / copy.id / "data")
    return bench.catalog().publish(copy)


def test_links_to_tablespaces_elsewhere_are_not_restored(bench: Bench) -> None:
    expected = bench.write("far")
    (bench.source / "shop" / "far.isl").write_bytes(b"/elsewhere/shop/far.ibd")
    bench.restore(bench.backup(), replace=True)
    assert data_in(bench.datadir) == expected


def test_a_restore_after_a_restore_goes_on_with_its_own_branch(bench: Bench) -> None:
    (full, _), (_, _) = bench.chain(2)
    bench.restore(full, replace=True)
    expected = bench.write("the other branch")
    child = bench.backup("latest")
    assert child.manifest.parent == full.as_parent()
    bench.restore(child, replace=True)
    assert data_in(bench.datadir) == expected


# The other engine


def test_a_chain_of_xtrabackup_end_to_end(mysql: Bench) -> None:
    links = mysql.chain(3)
    assert set(kinds(mysql, links[0][0])) == {b"P", b"E", b"S"}
    done = mysql.restore(links[-1][0], replace=True)
    assert data_in(mysql.datadir) == links[-1][1]
    assert (done.server, mysql.server.running) == ("8.0.35", True)
    assert mysql.server.options() == "--event-scheduler=OFF --skip-replica-start"
    argvs = [run["argv"] for run in mysql.runs("prepare")]
    assert ["--apply-log-only" in argv for argv in argvs] == [True, True, False]
    assert [any(word.startswith("--incremental-dir=") for word in argv) for argv in argvs] == [False, True, True]
    assert (mysql.datadir / "shop/sparse.ibd").stat().st_size == len(links[-1][1]["shop/sparse.ibd"])
    mysql.restore(links[1][0], replace=True)
    assert data_in(mysql.datadir) == links[1][1]


def kinds(bench: Bench, backup: Backup) -> Iterator[bytes]:
    """The types of the chunks of a backup, found by their magic."""
    from guestagent.streams.codec import decode  # noqa: PLC0415

    for segment in backup.manifest.segments:
        raw = bytearray(segment.raw_size)
        decode(bench.object(backup, f"data/{segment.index:08d}").read_bytes(), "zstd", memoryview(raw))
        yield from re.findall(rb"XBSTCK01.(.)", bytes(raw), re.DOTALL)


# Streams in which order matters


def test_a_stream_that_renames_and_rewrites_what_came_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = bench.top / "extra"
    extra.write_bytes(
        renamed("shop/orders.ibd", "shop/moved.ibd")
        + anew(encode(Chunk("aria_log_control", 0, b"written again", end=False)))
        + anew(encode(Chunk("aria_log_control", 13, b"", end=True)))
    )
    program = bench.top / "bin" / "mariabackup"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--backup*) {FAKES}/mariabackup "$@" && cat {extra} ;;\n'
        f'*) exec {FAKES}/mariabackup "$@" ;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    expected = bench.write("ordered")
    expected["shop/moved.ibd"] = expected.pop("shop/orders.ibd")
    expected["aria_log_control"] = b"written again"
    taken = bench.backup()
    assert taken.manifest.stream.ordered_from == len(taken.manifest.segments) - 1
    bench.restore(taken, replace=True)
    assert data_in(bench.datadir) == expected


def anew(chunk: bytes) -> bytes:
    """The chunk with the flag that lets a file begin a second time."""
    return chunk[:8] + b"\2" + chunk[9:]


def renamed(old: str, new: str) -> bytes:
    paths = [len(name).to_bytes(4, "little") + name.encode() for name in (old, new)]
    return b"XBSTCK01\0R" + paths[0] + paths[1]


# A4: prepare


@pytest.mark.parametrize(
    ("fault", "why", "number"),
    [
        ("start-exit-1", "mariabackup failed with exit status 1: .*gone away", 1),
        ("half", "mariabackup failed with exit status 1: .*no space left", 1),
        ("half", "mariabackup failed with exit status 1: .*no space left", 3),
        ("killed", "mariabackup died by SIGKILL", 1),
        ("killed", "mariabackup died by SIGKILL", 3),
        ("unconfirmed", "mariabackup exited with 0, not saying that it completed", 1),
        ("unconfirmed", "mariabackup exited with 0, not saying that it completed", 3),
        ("words-after", "mariabackup exited with 0, not saying that it completed; it said: .*something went wrong", 1),
        ("exit-3", "mariabackup failed with exit status 3", 1),
    ],
)
def test_a_prepare_that_fails_or_lies(
    bench: Bench, chain: Made, unchanged: Unchanged, fault: str, why: str, number: int
) -> None:
    bench.tool(PHASE="prepare")
    watch = Watch(At("prepare", lambda: bench.tool(FAULT=fault), number=number))
    failed = failing(bench, unchanged, chain.tip, watch=watch)
    assert type(failed) is ToolError
    assert re.search(why, failed.what)
    assert len(bench.runs("prepare")) == number
    bench.tool(FAULT="")
    if fault == "killed":
        bench.restore(chain.tip, replace=True)
        assert data_in(bench.datadir) == chain.data
        assert len(bench.runs("prepare")) == number + 3


def test_a_prepare_that_reached_another_lsn(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    bench.tool(PHASE="prepare")
    watch = Watch(At("prepare", lambda: bench.tool(FAULT="unmoved"), number=2))
    failed = failing(bench, unchanged, chain.tip, watch=watch)
    assert type(failed) is ToolError
    assert failed.what == f"mariabackup prepared {chain.ids[1]} to LSN 16000000, not 16005000"


def test_a_prepare_that_goes_silent(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    bench.tool(PHASE="prepare", FAULT="hang")
    failed = failing(bench, unchanged, chain.tip, watch=Watch(limit=4))
    assert type(failed) is Stalled
    assert "no progress for 4 s in phase prepare" in failed.what


def test_a_get_that_hangs(bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE", 0.2)
    stores: list[HangsOnGet] = []

    def hanging(inner: Storage) -> Storage:
        stores.append(HangsOnGet(inner, "data/00000001"))
        return stores[-1]

    bench.wrap = hanging
    check = unchanged()
    with pytest.raises(Stalled, match=r"no progress for 4 s in phase fetch"):
        bench.restore(chain.tip, replace=True, watch=Watch(limit=4))
    check()
    stores[0].release.set()  # what comes too late is written nowhere
    settled()
    check()


def test_a_noisy_prepare_disturbs_nothing(bench: Bench, chain: Made) -> None:
    bench.tool(PHASE="prepare", FAULT="loud,long-line,binary")
    bench.restore(chain.ids[0], replace=True)
    assert data_in(bench.datadir) == chain.links[0][1]


# A7, A8: objects that somebody has touched


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_bit_in_any_segment_is_refused_and_named(
    bench: Bench, chain: Made, unchanged: Unchanged, number: int
) -> None:
    link = get(bench, chain.ids[number])
    name = f"data/{number:08d}"
    flip(bench.object(link, name))
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) is Corrupt
    assert f"{link.location}/{name} is not what the manifest promises" in failed.what
    assert bench.server.calls() == []


@pytest.mark.parametrize("number", [0, 1])
def test_one_bit_in_the_manifest_of_a_link_is_refused_and_named(
    bench: Bench, chain: Made, unchanged: Unchanged, number: int
) -> None:
    flip(bench.object(get(bench, chain.ids[number]), "manifest.json"))
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) in (Corrupt, ChainBroken)
    assert chain.ids[number] in failed.what
    assert not bench.runs("prepare")


@pytest.mark.parametrize("shape", ["sizes", "segments", "parent"])
def test_one_bit_in_what_the_tips_manifest_says_of_its_data_is_refused(
    bench: Bench, chain: Made, unchanged: Unchanged, shape: str
) -> None:
    tip = get(bench, chain.tip)
    path = bench.object(tip, "manifest.json")
    data = bytearray(path.read_bytes())
    place = {
        "sizes": data.index(b'"raw":') + 6,
        "segments": data.index(b'"sha256":"') + 12,
        "parent": data.index(b'"checksum":"') + 12,
    }[shape]
    data[place] ^= 1
    path.write_bytes(data)
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) in (Corrupt, ChainBroken)
    assert tip.id in failed.what
    assert bench.server.calls() == []


def test_two_segments_swapped(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    link = get(bench, chain.ids[1])
    first, second = (bench.object(link, f"data/0000000{index}") for index in (0, 1))
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) is Corrupt
    assert re.search(f"{link.location}/data/0000000[01] ", failed.what)


def test_a_segment_of_another_backup(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    base, link = get(bench, chain.ids[0]), get(bench, chain.ids[1])
    shutil.copy(bench.object(base, "data/00000001"), bench.object(link, "data/00000001"))
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) is Corrupt
    assert f"{link.location}/data/00000001 " in failed.what


def test_a_segment_that_is_missing(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    base = get(bench, chain.ids[0])
    bench.object(base, "data/00000002").unlink()
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) is Corrupt
    assert f"{base.location}/data/00000002 is missing" in failed.what


def test_the_manifest_of_another_backup(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    base, link = get(bench, chain.ids[0]), get(bench, chain.ids[1])
    shutil.copy(bench.object(base, "manifest.json"), bench.object(link, "manifest.json"))
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) is Foreign
    assert f"{link.location}/manifest.json is the manifest of {INSTANCE}/{base.id}" in failed.what


# D3: cancels


@pytest.mark.parametrize(
    ("phase", "number", "at_byte"),
    [
        ("plan", 1, False),
        ("fetch", 1, False),
        ("fetch", 1, True),
        ("prepare", 1, False),
        ("prepare", 2, False),
        ("prepare", 3, False),
        ("seal", 1, False),
        ("stop", 1, False),
        ("start", 1, False),
    ],
)
def test_a_cancel_in_every_phase(
    bench: Bench, chain: Made, unchanged: Unchanged, phase: str, number: int, at_byte: bool
) -> None:
    door = CancelAt(phase, number=number, at_byte=at_byte)
    begun = time.monotonic()
    failed = failing(bench, unchanged, chain.tip, watch=door.watch())
    assert time.monotonic() - begun < SLOW
    assert type(failed) is Cancelled
    assert failed.what == "the test says so"
    assert door.seen.count(phase) == number
    assert bench.server.running
    assert bench.server.calls() == (["stop", "stop", "start"] if phase == "start" else [])


def test_a_cancel_while_the_data_are_made_durable_comes_before_the_swap(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.server.halt()
    cancel = Cancel()
    monkeypatch.setattr(story, "make_durable", lambda _: cancel.set("enough"))
    assert type(failing(bench, unchanged, chain.tip, watch=Watch(cancel=cancel))) is Cancelled


@pytest.mark.parametrize("deaf", [False, True])
def test_a_cancel_in_the_middle_of_a_prepare(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.4)
    bench.tool(PHASE="prepare", FAULT="hang,deaf" if deaf else "hang")
    cancel = Cancel()
    watch = Watch(At("prepare", lambda: threading.Timer(0.4, cancel.set, ["enough"]).start()), cancel=cancel)
    assert type(failing(bench, unchanged, chain.tip, watch=watch)) is Cancelled


def test_a_cancel_while_the_old_server_is_being_stopped(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    bench.server.knob("linger", "60")
    cancel = Cancel()
    when(lambda: not bench.server.running, lambda: cancel.set("enough"))
    begun = time.monotonic()
    assert type(failing(bench, unchanged, chain.tip, watch=Watch(cancel=cancel))) is Cancelled
    assert time.monotonic() - begun < SLOW
    assert bench.server.calls() == ["stop", "start"]


def test_a_cancel_while_a_restored_server_is_awaited(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PATIENCE", 0.05)
    bench.server.mute_on = chain.data["ibdata1"][:20]
    cancel = Cancel()
    awaited = At("start", lambda: when(lambda: bench.server.up, lambda: cancel.set("enough")))
    failed = failing(bench, unchanged, chain.tip, watch=Watch(awaited, cancel=cancel), start_timeout=600)
    assert type(failed) is Cancelled
    assert str(failed) == "enough; the old data is back in its place"


def test_a_cancel_as_a_fresh_server_starts_leaves_the_data_and_says_so(bench: Bench, chain: Made) -> None:
    bench.server.halt()
    write_tree(bench.datadir, {})
    with pytest.raises(Cancelled, match=f"the test says so; the restored data stays in {bench.datadir}"):
        bench.restore(chain.tip, start=True, watch=CancelAt("start").watch())
    assert data_in(bench.datadir) == chain.data
    assert not bench.server.running


def test_a_cancel_in_a_fresh_place_leaves_nothing(bench: Bench, chain: Made) -> None:
    bench.server.halt()
    for phase in ("plan", "fetch", "prepare", "seal"):
        with pytest.raises(Cancelled):
            bench.restore(chain.tip, datadir=bench.top / "new" / "data", watch=CancelAt(phase).watch())
        assert not (bench.top / "new").exists()


# F1: space


def test_too_little_space_is_refused_before_anything_is_touched(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.statvfs

    def statvfs(path: Any) -> os.statvfs_result:
        found = list(whole(path))
        found[4] = 1
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) is Refused
    assert "bytes free and the restore needs" in failed.what
    assert not bench.runs("prepare")


def test_a_disk_that_fills_is_no_broken_backup(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, left = os.pwrite, [30_000]

    def pwrite(handle: int, data: Any, place: int) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        return whole(handle, data, place)

    check = unchanged()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(GuestagentError, match=r"no space left for .*; free space, or name another") as failed:
            bench.restore(chain.tip, replace=True)
    assert type(failed.value) is GuestagentError
    check()
    bench.restore(chain.tip, replace=True)
    assert data_in(bench.datadir) == chain.data


# F2: the target


def test_a_running_server_is_refused_unless_it_may_be_replaced(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    failed = failing(bench, unchanged, chain.tip, replace=False)
    assert type(failed) is Refused
    assert f"a server runs on {bench.datadir}" in failed.what
    assert bench.server.calls() == []


def test_a_target_that_is_not_empty(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    bench.server.halt()
    failed = failing(bench, unchanged, chain.tip, replace=False)
    assert type(failed) is Refused
    assert f"{bench.datadir} is not empty" in failed.what


def test_a_target_that_is_no_datadir(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    home = bench.top / "home"
    write_tree(home, {"letters/a.txt": b"dear"})
    failed = failing(bench, unchanged, chain.tip, datadir=home)
    assert type(failed) is Refused
    assert read_tree(home) == {"letters/a.txt": b"dear"}


def test_a_target_that_nobody_may_look_at(bench: Bench, chain: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Any, **_: Any) -> Any:
        raise PermissionError(errno.EACCES, "permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", closed)
        story.recover(bench.host(), RestoreRequest(chain.tip, datadir=Path("/closed/data")))


@pytest.mark.parametrize("what", ["data", "server"])
def test_what_turns_up_at_the_target_while_the_data_come_is_not_replaced_unasked(
    bench: Bench, chain: Made, what: str
) -> None:
    bench.server.halt()
    write_tree(bench.datadir, {})

    def turn_up() -> None:
        write_tree(bench.datadir / "mysql", {"somebody.ibd": b"elses"})
        if what == "server":
            (bench.datadir / "ibdata1").write_bytes(b"elses")
            bench.server.run()

    with pytest.raises(Refused, match="is not empty" if what == "data" else "a server runs on"):
        bench.restore(chain.tip, watch=Watch(At("seal", turn_up)))
    assert read_tree(bench.datadir)["mysql/somebody.ibd"] == b"elses"
    assert bench.server.running is (what == "server")
    assert not (bench.datadir / layout.OURS).exists()


@pytest.mark.parametrize("knob", ["refuse-stop", "ignore-stop"])
def test_a_server_that_does_not_stop(bench: Bench, chain: Made, unchanged: Unchanged, knob: str) -> None:
    bench.server.knob(knob)
    failed = failing(bench, unchanged, chain.tip)
    assert type(failed) is (ToolError if knob == "refuse-stop" else DatabaseError)
    assert bench.server.calls() == ["stop", "start"]


# F3: failures at each step


@pytest.mark.parametrize("step", ["open_staging", "own", "make_durable", "remove_tree", "Arrivals"])
def test_a_step_that_fails(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise GuestagentError("the disk is gone")

    monkeypatch.setattr(story, step, fails)
    assert failing(bench, unchanged, chain.tip).what == "the disk is gone"
    assert bench.server.calls() == []


def test_an_incarnation_that_cannot_be_written(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise Refused("may not write")

    monkeypatch.setattr(incarnation, "write", fails)
    assert failing(bench, unchanged, chain.tip).what == "may not write"


@pytest.mark.parametrize("running", [True, False])
def test_a_swap_that_fails_before_anything_new_is_in(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    if not running:
        bench.server.halt()

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "link", fails)
    failed = failing(bench, unchanged, chain.tip)
    assert "cannot swap the data" in failed.what
    assert bench.server.calls() == (["stop", "start"] if running else [])


def test_a_swap_that_fails_half_way_is_ended_by_the_next_restore(
    bench: Bench, chain: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = os.rename

    def fails(source: Any, target: Any, **options: Any) -> None:
        if Path(target) == bench.datadir / "mysql":
            raise OSError(errno.EIO, "input/output error")
        whole(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        with pytest.raises(GuestagentError, match="cannot swap the data"):
            bench.restore(chain.tip, replace=True)
    assert half_swapped(bench.datadir)
    assert not bench.server.running
    assert bench.server.calls() == ["stop"]
    assert f"the swap in {bench.datadir} is half done and its server stays down; restore again to end it" in caplog.text
    with pytest.raises(Refused, match="is not empty"):
        bench.restore(chain.ids[0])
    assert "an earlier restore had died in its swap: finished a swap" in caplog.text
    assert data_in(bench.datadir) == chain.data
    (kept,) = swap.kept(bench.datadir)
    assert read_tree(kept) == BEFORE
    bench.restore(chain.ids[0], replace=True, start=True)
    assert data_in(bench.datadir) == chain.links[0][1]


@pytest.mark.parametrize("running", [True, False])
def test_a_restored_server_that_does_not_answer(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    if not running:
        bench.server.halt()
    monkeypatch.setattr(service, "PATIENCE", 0.05)
    bench.server.mute_on = chain.data["ibdata1"][:20]
    failed = failing(bench, unchanged, chain.tip, start=True, start_timeout=0.3)
    assert type(failed) is DatabaseError
    assert failed.what.startswith("the restored server does not answer: no answer within 0.3 s")
    assert failed.hint == "the old data is back in its place"
    assert bench.server.calls() == [*(["stop"] if running else []), "start", "stop", *(["start"] if running else [])]
    assert not (bench.datadir / layout.OURS).exists()


def test_a_fresh_server_that_does_not_answer_keeps_its_data(
    bench: Bench, chain: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.server.halt()
    write_tree(bench.datadir, {})
    bench.server.knob("refuse-start")
    with pytest.raises(DatabaseError, match=r"the restored server does not answer: .*exit status 1.*stays where it is"):
        bench.restore(chain.tip, start=True)
    assert data_in(bench.datadir) == chain.data
    assert not (bench.datadir / layout.OURS).exists()


def test_old_data_that_cannot_be_put_back_are_named(
    bench: Bench, chain: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise GuestagentError("the disk is gone")

    monkeypatch.setattr(service, "PATIENCE", 0.05)
    monkeypatch.setattr(swap, "put_back", fails)
    bench.server.mute_on = chain.data["ibdata1"][:20]
    with pytest.raises(DatabaseError, match="the old data could not be put back and is in ") as failed:
        bench.restore(chain.tip, replace=True, start_timeout=0.3)
    (kept,) = swap.kept(bench.datadir)
    assert read_tree(kept) == BEFORE
    assert failed.value.hint.endswith(str(kept))
    assert "cannot put the old data back: the disk is gone" in caplog.text
    assert not bench.server.running


def test_an_old_server_that_does_not_start_again_is_reported(
    bench: Bench, chain: Made, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil() -> None:
        bench.server.knob("refuse-start")

    with pytest.raises(DatabaseError, match="the old data is back in its place"):
        bench.restore(chain.tip, replace=True, watch=Watch(At("start", spoil)))
    assert read_tree(bench.datadir) == BEFORE
    assert "cannot start the old server again: " in caplog.text


def test_old_data_that_cannot_be_deleted_fail_no_restore(
    bench: Bench, chain: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise GuestagentError("the disk is gone")

    monkeypatch.setattr(swap, "forget", fails)
    done = bench.restore(chain.tip, replace=True)
    assert done.server
    assert done.kept is not None
    assert read_tree(done.kept) == BEFORE
    assert f"cannot delete {done.kept}: the disk is gone" in caplog.text


def test_a_staging_that_cannot_be_cleared_hides_no_failure(
    bench: Bench, chain: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: staging.Staging) -> None:
        raise GuestagentError("the disk is gone")

    bench.tool(PHASE="prepare", FAULT="half")
    with monkeypatch.context() as patch:
        patch.setattr(staging.Staging, "discard", fails)
        with pytest.raises(ToolError, match="no space left"):
            bench.restore(chain.tip, replace=True)
    assert "cannot clear the staging: the disk is gone" in caplog.text
    assert data_in(bench.datadir) == BEFORE
    bench.tool(FAULT="")
    bench.restore(chain.tip, replace=True)
    assert data_in(bench.datadir) == chain.data
    assert not (bench.datadir / layout.OURS).exists()


# F4: restores that died


@pytest.mark.parametrize("work_dir", [False, True])
def test_a_restore_that_is_killed_leaves_nothing_that_the_next_one_uses(
    bench: Bench, chain: Made, work_dir: bool
) -> None:
    work = bench.top / "work"
    work.mkdir()
    options: dict[str, Any] = {"work_dir": work} if work_dir else {}
    where = f"work_dir=Path({str(work)!r})" if work_dir else ""
    killed = bench.told_by_another(f"""
class Dies(Told):
    def phase(self, name, **rest):
        super().phase(name, **rest)
        if name == "prepare" and len(self.phases) == 5:
            die()
bench.restore({chain.tip!r}, replace=True, watch=Watch(Dies()), {where})
""")
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    assert data_in(bench.datadir) == BEFORE
    assert bench.server.running
    left = work / f"guestagent-{INSTANCE}" if work_dir else bench.datadir / layout.OURS / layout.STAGING
    (directory,) = left.glob("link-*")
    (directory / "shop").mkdir(exist_ok=True)
    (directory / "shop" / "of the dead.ibd.delta").write_bytes(b"must not be applied")
    for wanted, data in (chain.links[2], chain.links[1]):
        bench.restore(wanted, replace=True, **options)
        assert data_in(bench.datadir) == data
        assert not left.exists()
    assert len(bench.runs("prepare")) == 2 + 3 + 2


def test_what_a_dead_restore_fetched_is_swept(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    work = bench.top / "work"
    (work / f"guestagent-{INSTANCE}" / "link-1").mkdir(parents=True)
    (work / "of others").mkdir()
    base = staging.open_staging(bench.datadir).base
    (base / "ibdata1").touch()
    sweep_restores(bench.host(), bench.datadir)
    assert f"removed what a dead restore had fetched into {bench.datadir}" in caplog.text
    assert not (bench.datadir / layout.OURS).exists()
    assert sorted(os.listdir(work)) == [f"guestagent-{INSTANCE}", "of others"], "whose work_dir that is, nobody says"
    caplog.clear()
    sweep_restores(bench.host(work_dir=work), bench.datadir)
    assert os.listdir(work) == ["of others"]
    assert not caplog.records
    assert data_in(bench.datadir) == BEFORE


def test_a_restore_that_is_killed_in_its_swap_is_ended_by_the_next_one(
    bench: Bench, chain: Made, caplog: pytest.LogCaptureFixture
) -> None:
    killed = bench.told_by_another(f"""
rename = os.rename
def dies(source, target, **options):
    if Path(target) == bench.datadir / "shop":
        die()
    rename(source, target, **options)
os.rename = dies
bench.restore({chain.tip!r}, replace=True)
""")
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    assert half_swapped(bench.datadir)
    bench.restore(chain.ids[1], replace=True, start=True)
    assert "an earlier restore had died in its swap" in caplog.text
    assert data_in(bench.datadir) == chain.links[1][1]
    assert swap.kept(bench.datadir) == []
    assert bench.server.running


# Where the incrementals wait


def test_links_in_a_work_dir(bench: Bench, chain: Made) -> None:
    work = bench.top / "work"
    work.mkdir()
    (work / "of others").mkdir()
    bench.restore(chain.tip, replace=True, work_dir=work)
    assert data_in(bench.datadir) == chain.data
    links = [run["argv"][-1] for run in bench.runs("prepare")][1:]
    assert links == [f"--incremental-dir={work}/guestagent-{INSTANCE}/link-{number}" for number in (1, 2)]
    assert os.listdir(work) == ["of others"]


def test_a_work_dir_is_empty_after_a_failure(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    work = bench.top / "work"
    work.mkdir()
    bench.tool(PHASE="prepare")
    watch = Watch(At("prepare", lambda: bench.tool(FAULT="half"), number=2))
    assert type(failing(bench, unchanged, chain.tip, watch=watch, work_dir=work)) is ToolError
    assert os.listdir(work) == []


def test_a_work_dir_that_is_not_there(bench: Bench, chain: Made, unchanged: Unchanged) -> None:
    failed = failing(bench, unchanged, chain.tip, work_dir=bench.top / "work")
    assert "cannot write to work_dir" in failed.what


def test_a_work_dir_with_something_in_the_way(
    bench: Bench, chain: Made, unchanged: Unchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = bench.top / "work"
    work.mkdir()
    whole = Path.mkdir

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        if work in path.parents:
            raise OSError(errno.ENOSPC, "no space left on device")
        whole(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    failed = failing(bench, unchanged, chain.tip, work_dir=work)
    assert failed.what.startswith(f"cannot make room in {work}: no space left on device")


# Memory


def test_memory_as_configured_or_from_what_is_free(bench: Bench, chain: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.restore(chain.ids[0], replace=True, use_memory=77 << 20)
    bench.restore(chain.ids[0], replace=True, use_memory=0)
    asked = [word for run in bench.runs("prepare") for word in run["argv"] if word.startswith("--use-memory")]
    assert asked == [f"--use-memory={77 << 20}", f"--use-memory={LEAST_MEMORY}"]


@pytest.mark.parametrize(
    ("free", "data", "expected"),
    [
        (64 << 30, 1 << 20, LEAST_MEMORY),
        (64 << 30, 1 << 30, 1 << 30),
        (64 << 30, 1 << 40, MOST_MEMORY),
        (4 << 30, 1 << 40, 2 << 30),
        (1 << 20, 1 << 40, LEAST_MEMORY),
    ],
)
def test_half_of_what_is_free_and_no_more_than_the_data(
    monkeypatch: pytest.MonkeyPatch, free: int, data: int, expected: int
) -> None:
    monkeypatch.setattr(memory, "available", lambda: free)
    assert story._memory(data) == expected


def test_the_tools_are_run_without_a_shell(bench: Bench, chain: Made) -> None:
    target = bench.top / "a b;$(touch x)'\""
    bench.server.halt()
    bench.restore(chain.tip, datadir=target)
    assert data_in(target) == chain.data
    assert subprocess.run(["ls", "-a", bench.top], capture_output=True, text=True, check=True).stdout.count("x\n") == 0
