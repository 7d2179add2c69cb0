"""The preflight: what would make a backup worthless is refused before a byte moves, with the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import incarnation
from guestagent.errors import (
    ChainBroken,
    Corrupt,
    DatabaseError,
    GuestagentError,
    NotFound,
    Refused,
    ToolError,
    UsageError,
)
from guestagent.manifest import Backup
from guestagent.model import InstanceId, Version
from guestagent.operations.preflight import Preflight, check_known, preflight
from tests.fakes.backups import manifest, number, store
from tests.fakes.bench import INSTANCE, Bench, new_id
from tests.fakes.stores import Confined

Fields = dict[str, Any]


def checked(bench: Bench, parent: str | None = None, **changes: Any) -> Preflight:
    return preflight(bench.host(**changes), instance=INSTANCE, wanted=new_id(), parent=parent)


def refused(bench: Bench, parent: str | None = None, **changes: Any) -> GuestagentError:
    """Why a backup is refused; no dump was begun and nothing was written."""
    before = bench.objects(), sorted(bench.datadir.iterdir())
    with pytest.raises(GuestagentError) as why:
        checked(bench, parent, **changes)
    assert not bench.runs("backup")
    assert (bench.objects(), sorted(bench.datadir.iterdir())) == before
    return why.value


def stored(bench: Bench, count: int, *, parent: Backup | None = None, on_history: bool = True, **fields: Any) -> Backup:
    """A backup in the store, which this datadir has passed through, or not."""
    with bench.catalog() as catalog:
        made = store(catalog, manifest(count, parent=parent, **fields))
    if on_history:
        own = incarnation.read(bench.datadir) or incarnation.fresh(INSTANCE)
        incarnation.write(bench.datadir, own.with_backup(made.id))
    return made


def test_a_full_needs_no_history(bench: Bench) -> None:
    found = checked(bench)
    assert (found.parent, found.engine.name, found.tool_version) == (None, "mariabackup", Version(10, 11, 19))
    assert (found.server.datastore, found.server.datadir) == ("mariadb", bench.datadir)
    assert (found.incarnation.instance_id, found.incarnation.history) == (INSTANCE, ())


def test_a_life_of_this_instance_goes_on(bench: Bench) -> None:
    stored(bench, 1)
    assert checked(bench).incarnation == incarnation.read(bench.datadir)


def test_a_life_of_another_instance_does_not(bench: Bench) -> None:
    incarnation.write(bench.datadir, incarnation.fresh(InstanceId("guest9"), chain=[number(1)]))
    found = checked(bench)
    assert (found.incarnation.instance_id, found.incarnation.history) == (INSTANCE, ())


# The server and the tool


def test_a_server_that_is_down(bench: Bench) -> None:
    bench.server.halt()
    assert type(refused(bench)) is DatabaseError


def test_an_account_that_is_refused(bench: Bench) -> None:
    bench.server.denied = True
    assert refused(bench).what == "access denied for backup"


def test_every_missing_grant_is_named_with_the_statement_to_type(bench: Bench) -> None:
    bench.server.grants = frozenset({"PROCESS"})
    why = refused(bench)
    assert type(why) is DatabaseError
    assert why.what == "'backup'@'localhost' lacks RELOAD, BINLOG MONITOR"
    assert why.hint == "GRANT RELOAD, BINLOG MONITOR ON *.* TO 'backup'@'localhost'"
    bench.server.grants |= {"RELOAD", "BINLOG MONITOR"}
    checked(bench)


def test_a_tool_of_another_series_than_the_server(bench: Bench) -> None:
    bench.tool(VERSION="10.6.1-MariaDB")
    why = refused(bench)
    assert type(why) is Refused
    assert str(why) == ("mariabackup 10.6.1 is of another series than the server's 10.11.19; install mariabackup 10.11")
    bench.tool(VERSION="10.11.2-MariaDB")
    assert checked(bench).tool_version == Version(10, 11, 2)


def test_a_tool_that_is_missing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert str(refused(bench)).startswith("mariabackup is not installed; install the package")


def test_a_tool_that_fails_when_it_is_asked_its_version(bench: Bench) -> None:
    bench.tool(FAULT="exit-3", PHASE="version")
    assert type(refused(bench)) is ToolError


def test_a_tool_that_does_not_say_its_version(bench: Bench) -> None:
    bench.tool(VERSION="unknown")
    assert type(refused(bench)) is Corrupt


def test_the_engine_is_the_servers_or_the_configured_one(bench: Bench) -> None:
    assert checked(bench, engine="mariabackup").engine.name == "mariabackup"
    why = refused(bench, engine="xtrabackup")
    assert type(why) is Refused
    assert str(why) == "engine xtrabackup does not back up mariadb servers; set engine = auto"


def test_a_mysql_server_is_backed_up_by_its_own_tool(mysql: Bench) -> None:
    found = checked(mysql)
    assert (found.engine.name, found.tool_version) == ("xtrabackup", Version(8, 0, 35))


@pytest.mark.parametrize("what", ["datadir", "file"])
def test_a_datadir_that_is_not_ours_to_read(bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    closed = bench.datadir if what == "datadir" else bench.datadir / "ibdata1"
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != closed)
    why = refused(bench)
    assert type(why) is Refused
    assert str(why) == f"datadir {bench.datadir} is not ours to read; run as root or as the server's user"


def test_a_datadir_without_a_system_tablespace_is_the_tools_business(bench: Bench) -> None:
    bench.server.always_answers = True
    (bench.datadir / "ibdata1").unlink()
    checked(bench)


def test_tables_outside_the_datadir_would_not_come_back_as_they_were(bench: Bench, tmp_path: Path) -> None:
    (bench.datadir / "shop").mkdir(exist_ok=True)
    (bench.datadir / "shop" / "far.isl").write_bytes(b"/elsewhere/shop/far.ibd")
    (bench.datadir / "shop" / "aria.MAI").symlink_to(tmp_path / "aria.MAI")
    why = refused(bench)
    assert type(why) is Refused
    assert str(why) == "2 tables lie outside the datadir, shop/aria among them; make them anew without DATA DIRECTORY"


def test_tables_that_the_tool_cannot_lock_are_named(bench: Bench) -> None:
    for name in ("shop/a@0060b.ibd", "shop/a@0060b.frm", "shop/b@0060.MYD", "x@0060y/aria.MAD", "x@0060y/t.ibd"):
        (bench.datadir / name).parent.mkdir(exist_ok=True)
        (bench.datadir / name).touch()
    why = refused(bench)
    assert type(why) is Refused
    assert str(why) == (
        "2 tables have a backtick in their name, and the tool cannot lock them: shop/b@0060.MYD is of one;"
        " rename them, or make them InnoDB's"
    )


def test_links_that_the_tool_follows_are_no_hindrance(bench: Bench, tmp_path: Path) -> None:
    (bench.datadir / "shop").mkdir(exist_ok=True)
    (bench.datadir / "shop" / "my.MYD").symlink_to(tmp_path / "my.MYD")
    (bench.datadir / "shop" / "here.MAI").write_bytes(b"aria")
    checked(bench)


def test_an_id_that_is_taken(bench: Bench) -> None:
    stored(bench, 1)
    with pytest.raises(Refused, match="exists already"):
        preflight(bench.host(), instance=INSTANCE, wanted=number(1), parent=None)


# The parent: which


def test_the_latest_is_the_newest_of_this_datadirs_own_past(bench: Bench) -> None:
    first = stored(bench, 1)
    second = stored(bench, 2, parent=first)
    stored(bench, 3, on_history=False)
    assert checked(bench, "latest").parent == second
    with bench.catalog() as catalog:
        catalog.delete(second)
    assert checked(bench, "latest").parent == first


def test_the_latest_of_a_datadir_without_a_past(bench: Bench) -> None:
    stored(bench, 1, on_history=False)
    why = refused(bench, "latest")
    assert type(why) is NotFound
    assert str(why) == "no backup of this server to continue; take a full backup first"


def test_the_latest_with_credentials_that_are_confined_to_their_own_prefix(bench: Bench) -> None:
    first = stored(bench, 1)
    second = stored(bench, 2, parent=first)
    with bench.catalog() as catalog:
        catalog.delete(second)
    bench.wrap = lambda inner: Confined(inner, INSTANCE)
    assert checked(bench, "latest").parent == first


@pytest.mark.parametrize("name", ["", "latest ", "../guest2/x", "backup1", "/etc/passwd"])
def test_a_parent_that_is_no_id(bench: Bench, name: str) -> None:
    assert type(refused(bench, name)) is UsageError


def test_a_parents_id_in_upper_case(bench: Bench) -> None:
    first = stored(bench, 0xABCDEF)
    assert checked(bench, first.id.upper()).parent == first


# The parent: whether


def test_a_parent_whose_own_chain_is_broken(bench: Bench) -> None:
    first = stored(bench, 1)
    second = stored(bench, 2, parent=first)
    with bench.catalog() as catalog:
        catalog.delete(first)
    assert type(refused(bench, second.id)) is ChainBroken


def test_a_parent_whose_manifest_is_corrupt(bench: Bench) -> None:
    first = stored(bench, 1)
    bench.object(first, "manifest.json").write_text("{")
    assert type(refused(bench, first.id)) is Corrupt


@pytest.mark.parametrize("link", [0, 1], ids=["its base", "itself"])
@pytest.mark.parametrize("parent", ["latest", "named"])
def test_a_parent_that_could_not_be_restored(bench: Bench, parent: str, link: int) -> None:
    first = stored(bench, 1)
    second = stored(bench, 2, parent=first)
    victim = (first, second)[link]
    bench.object(victim, "data/00000001").unlink()
    refusal = refused(bench, second.id if parent == "named" else parent)
    assert type(refusal) is Corrupt
    assert refusal.what == f"{victim.location}/data/00000001 is missing"
    assert refusal.hint == "take a full backup"
    assert checked(bench).parent is None


def wiped(bench: Bench) -> None:
    (bench.datadir / incarnation.FILE).unlink()


def copied(bench: Bench) -> None:
    own = incarnation.read(bench.datadir)
    assert own is not None
    incarnation.write(bench.datadir, replace(own, instance_id=InstanceId("guest9")))


def created_anew(bench: Bench) -> None:
    incarnation.write(bench.datadir, incarnation.fresh(INSTANCE))


def restored_from_older(bench: Bench) -> None:
    incarnation.write(bench.datadir, incarnation.fresh(INSTANCE, chain=[number(1)]))


def damaged(bench: Bench) -> None:
    (bench.datadir / incarnation.FILE).write_text("{}")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (wiped, "the datadir does not know its past"),
        (copied, "the datadir was copied from instance guest9"),
        (created_anew, "has not passed through it: it was created anew, or rolled back, since"),
        (restored_from_older, f"has not passed through it: it was restored from {number(1)}, or rolled back, since"),
        (damaged, "is damaged"),
    ],
)
def test_a_parent_that_is_not_on_this_datadirs_own_past(
    bench: Bench, change: Callable[[Bench], None], why: str
) -> None:
    first = stored(bench, 1)
    second = stored(bench, 2, parent=first)
    change(bench)
    refusal = refused(bench, second.id)
    assert type(refusal) is Refused
    assert why in refusal.what
    assert "take a full backup" in refusal.hint


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"engine": "xtrabackup"},
            "was taken by xtrabackup, and this server is backed up by mariabackup; take a full backup",
        ),
        (
            {"server_version": "10.6.12-MariaDB"},
            "is of server 10.6.12, and the server is now 10.11.19; take a full backup",
        ),
    ],
)
def test_a_parent_from_before_an_upgrade(bench: Bench, fields: Fields, why: str) -> None:
    first = stored(bench, 1, **fields)
    refusal = refused(bench, first.id)
    assert type(refusal) is Refused
    assert str(refusal) == f"backup {first.id} {why}"


def test_a_patch_release_is_no_upgrade(bench: Bench) -> None:
    first = stored(bench, 1, server_version="10.11.2-MariaDB", tool_version="10.11.2")
    assert checked(bench, first.id).parent == first


def test_a_server_that_is_behind_the_parent(bench: Bench) -> None:
    first = stored(bench, 1)
    bench.server.lsn = first.manifest.lsn.last - 1
    refusal = refused(bench, first.id)
    assert type(refusal) is Refused
    assert str(refusal) == (
        f"backup {first.id} ends at LSN {first.manifest.lsn.last}, and the server is only at {bench.server.lsn}; "
        "take a full backup"
    )
    bench.server.lsn += 1
    assert checked(bench, first.id).parent == first


# What the requester knows of it


def test_the_manifest_that_is_known_is_the_one(bench: Bench) -> None:
    made = stored(bench, 1)
    for known in (None, "", made.checksum, made.checksum.upper()):
        assert check_known(made, known) is made


def test_another_manifest_than_the_one_that_is_known(bench: Bench) -> None:
    made = stored(bench, 1)
    with pytest.raises(
        Corrupt, match=rf"the manifest of {made.id} has checksum {made.checksum}, and the request says 00; somebody has"
    ):
        check_known(made, "00")


@pytest.mark.parametrize("parent", ["its id", "latest"])
def test_a_parent_is_the_one_that_the_requester_knows(bench: Bench, parent: str) -> None:
    made = stored(bench, 1)
    wanted = made.id if parent == "its id" else parent

    def ask(checksum: str) -> Preflight:
        return preflight(bench.host(), instance=INSTANCE, wanted=new_id(), parent=wanted, parent_checksum=checksum)

    assert ask(made.checksum).parent == made
    with pytest.raises(Corrupt, match="the request means another backup"):
        ask("0" * 64)


def test_a_checksum_without_a_parent_means_nothing(bench: Bench) -> None:
    found = preflight(bench.host(), instance=INSTANCE, wanted=new_id(), parent=None, parent_checksum="0" * 64)
    assert found.parent is None
