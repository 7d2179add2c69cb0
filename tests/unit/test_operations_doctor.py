"""The doctor: every check that can be made is made, and what is wrong comes with its remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import incarnation
from guestagent.jobs.lock import holder, only_job
from guestagent.keys import KeyRing, KeySettings
from guestagent.keys.file import generate
from guestagent.model import InstanceId
from guestagent.operations.doctor import LEAST_STATE, Finding, doctor
from guestagent.operations.plan import SLACK
from tests.fakes.bench import INSTANCE, SECRET, Bench
from tests.fakes.stores import Refuses

HERE = ["instance", "state", "lock", "server"]
SERVED = ["engine", "grants", "tool", "datadir", "files", "lineage", "disk"]
BEYOND = ["store", "conditional-put", "key"]


def findings(bench: Bench) -> dict[str, Finding]:
    before = bench.objects(), list(bench.state.glob("*/*"))
    found = doctor(bench.host(), holder)
    assert (bench.objects(), list(bench.state.glob("*/*"))) == before
    assert SECRET not in str(found)
    return {finding.check: finding for finding in found}


def wrong(bench: Bench) -> dict[str, str]:
    return {name: f"{finding.detail}; {finding.remedy}" for name, finding in findings(bench).items() if not finding.ok}


def full(monkeypatch: pytest.MonkeyPatch, free: Callable[[Path], int]) -> None:
    """Make filesystems as free as the test says."""
    whole = os.statvfs

    def statvfs(path: Any) -> os.statvfs_result:
        fields = list(whole(path))
        fields[1], fields[4] = 1, free(Path(path))
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", statvfs)


def test_a_host_on_which_all_is_well(bench: Bench) -> None:
    found = findings(bench)
    assert list(found) == [*HERE, *SERVED, *BEYOND]
    assert all(finding.ok and not finding.remedy for finding in found.values())
    details = {name: finding.detail for name, finding in found.items()}
    assert re.fullmatch(r"a backup holds up to \d+ files open, .* and may hold \d+", details.pop("files"))
    assert details.pop("disk").endswith(" bytes free where the datadir is")
    assert re.fullmatch(rf"{bench.state} is writable, \d+ bytes free", details.pop("state"))
    assert details == {
        "instance": "guest_id is guest1",
        "lock": "free: no job runs",
        "server": f"mariadb 10.11.19-MariaDB-log on {bench.datadir}",
        "engine": "mariabackup",
        "grants": "'backup'@'localhost' may take backups",
        "tool": "mariabackup 10.11.19",
        "datadir": f"{bench.datadir} is readable",
        "lineage": "no backup of this server yet: the next one must be a full",
        "store": f"file://{bench.store}: put, get, list and delete work",
        "conditional-put": "the store itself keeps a manifest from being overwritten",
        "key": "none is configured: new backups are not encrypted",
    }


def test_the_lineage_of_a_server_that_was_restored(bench: Bench) -> None:
    full = bench.backup()
    own = incarnation.read(bench.datadir)
    assert own is not None
    assert findings(bench)["lineage"].detail == f"incarnation {own.id}, 1 backups on its history"
    bench.restore(full, replace=True)
    assert f", restored from {full.id}, 1 backups" in findings(bench)["lineage"].detail


def test_a_server_that_is_down_keeps_no_other_check_from_being_made(bench: Bench) -> None:
    bench.server.halt()
    assert list(findings(bench)) == [*HERE, *BEYOND]
    assert wrong(bench) == {"server": "cannot reach the server; "}


def test_an_engine_that_does_not_fit_the_server(mysql: Bench) -> None:
    found = {finding.check: finding for finding in doctor(mysql.host(engine="mariabackup"), holder)}
    assert not found["engine"].ok
    assert found["engine"].remedy == "set engine = auto"
    assert list(found) == [*HERE, "engine", *BEYOND]


def no_grants(bench: Bench) -> None:
    bench.server.grants = frozenset()


def no_state(bench: Bench) -> None:
    bench.state.write_text("in the way")


def other_tool(bench: Bench) -> None:
    bench.tool(VERSION="10.6.1-MariaDB")


def damaged(bench: Bench) -> None:
    (bench.datadir / incarnation.FILE).write_text("?")


def copied(bench: Bench) -> None:
    incarnation.write(bench.datadir, incarnation.fresh(InstanceId("guest9")))


def store_down(bench: Bench) -> None:
    bench.wrap = lambda inner: Refuses(inner, "put")


def far_away(bench: Bench) -> None:
    bench.server.always_answers = True
    bench.server.datadir = Path("/nowhere/data")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            no_grants,
            {"grants": "lacks RELOAD, PROCESS, BINLOG MONITOR; GRANT RELOAD, PROCESS, BINLOG"},
        ),
        (no_state, {"state": "cannot write to state_dir", "lock": "cannot see what holds"}),
        (other_tool, {"tool": "is of another series than the server's 10.11.19; install mariabackup 10.11"}),
        (damaged, {"lineage": "is damaged"}),
        (copied, {}),
        (store_down, {"store": "503 slow down; wait"}),
        (
            far_away,
            {
                "datadir": "datadir /nowhere/data is not ours to read",
                "files": "cannot look at /nowhere/data",
                "disk": "cannot look at /nowhere/data",
            },
        ),
    ],
)
def test_what_is_wrong_comes_with_its_remedy(
    bench: Bench, spoil: Callable[[Bench], None], expected: dict[str, str]
) -> None:
    spoil(bench)
    found = wrong(bench)
    assert found.keys() == expected.keys()
    assert all(text in found[name] for name, text in expected.items())


def test_a_host_without_an_id(bench: Bench) -> None:
    bench.instance = None
    found = wrong(bench)
    assert set(found) == {"instance", "store"}
    assert "conditional-put" not in findings(bench)
    assert found["instance"] == "guest_id is not set; set it under [DEFAULT] to the id of this instance"
    bench.instance = INSTANCE
    assert wrong(bench) == {}


# Room


def test_the_room_that_a_restore_of_the_newest_backup_needs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tip = bench.chain(2)[-1][0]
    with bench.catalog() as catalog:
        chain = catalog.chain(tip)
    needed = chain.raw_size + SLACK + tip.manifest.raw_size
    full(monkeypatch, lambda _: needed)
    found = findings(bench)["disk"]
    assert found.detail == (
        f"{needed} bytes free where the datadir is; a restore of the newest backup, {tip.id}, needs {needed}"
    )
    assert (found.ok, found.remedy) == (True, "")
    full(monkeypatch, lambda _: needed - 1)
    found = findings(bench)["disk"]
    assert (found.ok, found.remedy) == (True, "make room, or restore to another disk or host")
    work = {one.check: one for one in doctor(bench.host(work_dir=bench.top), holder)}["disk"]
    assert work.detail.endswith(f"needs {needed - tip.manifest.raw_size}")
    assert work.remedy == ""


def test_a_chain_that_is_broken_is_told_with_the_room(bench: Bench) -> None:
    base, tip = (made for made, _ in bench.chain(2))
    bench.catalog().delete(base)
    found = findings(bench)["disk"]
    assert (found.ok, found.remedy) == (True, "take a full backup")
    assert f"what a restore needs is not known: chain broken at {tip.id}: its parent {base.id} is gone" in found.detail


def test_a_key_that_is_missing_is_told_with_the_room(bench: Bench) -> None:
    key = bench.top / "lost.key"
    identity = generate(key)
    bench.keys = KeyRing(KeySettings(key_file=key))
    made = bench.backup()
    bench.keys = None
    found = findings(bench)["disk"]
    assert f"backup {made.id} is encrypted with key {identity}, which is not here" in found.detail
    assert found.remedy == "name its file in [encryption] key_file or old_key_files"


def test_a_store_that_is_down_is_asked_for_no_backup(bench: Bench) -> None:
    made = bench.backup()
    bench.wrap = lambda inner: Refuses(inner, "put", "get")
    found = findings(bench)
    assert [name for name in found if not found[name].ok] == ["store"]
    assert found["disk"].detail.endswith(" bytes free where the datadir is")
    bench.wrap = lambda inner: inner
    assert made.id in findings(bench)["disk"].detail


def test_the_backups_of_another_instance_do_not_count(bench: Bench) -> None:
    bench.backup()
    copied(bench)
    assert findings(bench)["disk"].detail.endswith(" bytes free where the datadir is")


def test_a_state_dir_without_room_for_records(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    full(monkeypatch, lambda path: LEAST_STATE - path.is_relative_to(bench.state))
    assert wrong(bench) == {
        "state": f"state_dir {bench.state} has {LEAST_STATE - 1} bytes free, and needs {LEAST_STATE}; make room there"
    }
    full(monkeypatch, lambda _: LEAST_STATE)
    assert wrong(bench) == {}


# The lock


def test_a_lock_that_is_held_is_told_and_is_no_fault(bench: Bench) -> None:
    with only_job(bench.state, "restore 3a"):
        found = findings(bench)["lock"]
    assert found.ok
    assert found.detail.startswith(f"held by restore 3a (pid {os.getpid()}): other jobs wait")
    assert findings(bench)["lock"].detail == "free: no job runs"


# Keys


class Forgetful:
    """A key that opens something, but not what it wrapped."""

    id = "file:0"

    def wrap(self, data_key: bytes, context: object) -> bytes:
        return data_key

    def unwrap(self, wrapped: bytes, context: object) -> bytes:
        return bytes(len(wrapped))


class Ring(KeyRing):
    current = Forgetful()


def test_keys_are_tried(bench: Bench) -> None:
    new, old = bench.top / "new.key", bench.top / "old.key"
    identity = generate(new)
    generate(old)
    found = {one.check: one for one in doctor(bench.host(keys=KeyRing(KeySettings(key_file=new))), holder)}["key"]
    assert (found.ok, found.detail) == (True, f"new backups are encrypted with {identity}")
    settings = KeySettings(key_file=new, old_key_files=(old,))
    found = {one.check: one for one in doctor(bench.host(keys=KeyRing(settings)), holder)}["key"]
    assert found.detail.endswith(f"{identity}, 1 old keys are at hand")
    new.chmod(0o644)
    found = {one.check: one for one in doctor(bench.host(keys=KeyRing(settings)), holder)}["key"]
    assert not found.ok
    assert found.remedy.startswith(f"chmod 600 {new}")


def test_a_key_that_does_not_open_what_it_wraps(bench: Bench) -> None:
    found = {one.check: one for one in doctor(bench.host(keys=Ring()), holder)}["key"]
    assert (found.ok, found.detail) == (False, "key file:0 does not give back what it wrapped")
