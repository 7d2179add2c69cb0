"""The plan of a restore: all reasons against it, before a byte moves, and what would be done otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import layout
from guestagent.errors import (
    ChainBroken,
    ConfigError,
    Corrupt,
    GuestagentError,
    NotFound,
    Refused,
    ToolError,
    UsageError,
)
from guestagent.manifest import Backup
from guestagent.model import Version
from guestagent.operations.plan import SLACK, Plan, RestoreRequest, look_again, make_plan
from tests.fakes.backups import chain, manifest, number, store
from tests.fakes.bench import BEFORE, Bench, new_id, read_tree, write_tree

GIB = 1 << 30


@pytest.fixture
def links(bench: Bench) -> list[Backup]:
    """A chain of three in the store; their objects are no streams."""
    with bench.catalog() as catalog:
        return chain(catalog, 3)


def planned(bench: Bench, source: str, *, start: bool | None = None, replace_it: bool = False, **changes: Any) -> Plan:
    """A plan for the empty directory ``target``, unless the datadir is named; nothing is changed by it."""
    target = changes.pop("datadir", bench.top / "target")
    before = bench.objects(), read_tree(bench.top)
    plan = make_plan(bench.host(**changes), RestoreRequest(source, datadir=target, replace=replace_it, start=start))
    tool_log = str(bench.log.relative_to(bench.top))
    after = bench.objects(), read_tree(bench.top)
    for tree in (before[1], after[1]):
        tree.pop(tool_log, None)
    assert after == before
    return plan


def only_reason(plan: Plan) -> GuestagentError:
    (reason,) = plan.against
    with pytest.raises(type(reason)) as raised:
        plan.check()
    assert raised.value is reason
    return reason


def room(monkeypatch: pytest.MonkeyPatch, free: Callable[[Path], int]) -> None:
    """Make filesystems as free as the test says."""
    whole = os.statvfs

    def statvfs(path: Any) -> os.statvfs_result:
        found = list(whole(path))
        found[1], found[4] = 1, free(Path(path))
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", statvfs)


# What would be done


def test_the_plan_of_a_chain_into_an_empty_place(bench: Bench, links: list[Backup]) -> None:
    plan = planned(bench, links[2].id)
    plan.check()
    assert plan.against == ()
    assert (plan.engine.name, plan.tool_version, plan.start) == ("mariabackup", Version(10, 11, 19), False)
    raw = sum(link.manifest.raw_size for link in links)
    assert (plan.base_space, plan.links_space) == (raw + SLACK, raw - links[0].manifest.raw_size)
    assert plan.needed_space == plan.base_space + plan.links_space
    target = bench.top / "target"
    assert plan.steps() == [
        f"fetch 3 link(s), {plan.chain.stored_size} bytes, into {target}",
        f"prepare base {links[0].id}",
        f"prepare with link {links[1].id}",
        f"prepare with link {links[2].id}",
        f"move the new data into {target}",
        f"give it to user {plan.os_user}",
    ]


def test_the_plan_in_the_place_of_a_running_server(bench: Bench, links: list[Backup]) -> None:
    plan = planned(bench, links[0].location, datadir=bench.datadir, replace_it=True)
    plan.check()
    size = sum(map(len, read_tree(bench.datadir).values()))
    assert plan.steps()[2:] == [
        f"stop the server that runs on {bench.datadir}",
        f"swap the new data for the {size} bytes in {bench.datadir}, which are kept aside",
        f"give it to user {plan.os_user}",
        "start the server, with events and replication off, and ask it",
    ]


def test_what_a_person_reads_of_a_plan(bench: Bench, links: list[Backup]) -> None:
    found = planned(bench, links[1].id, datadir=bench.datadir).properties()
    assert found.pop("space_free") > 0
    assert found.pop("steps")
    assert found == {
        "backup_id": links[1].id,
        "name": "backup 2",
        "instance_id": "guest1",
        "chain": [links[0].id, links[1].id],
        "links": 2,
        "download": links[0].manifest.stored_size + links[1].manifest.stored_size,
        "raw_size": links[0].manifest.raw_size + links[1].manifest.raw_size,
        "objects": 6,
        "objects_whole": True,
        "space_needed": links[0].manifest.raw_size + 2 * links[1].manifest.raw_size + SLACK,
        "datadir": str(bench.datadir),
        "holds_now": sum(map(len, read_tree(bench.datadir).values())),
        "server_running": True,
        "datastore": "mariadb",
        "datastore_version": "10.11.19-MariaDB",
        "engine": "mariabackup 10.11.19",
        "refused": [
            f"a server runs on {bench.datadir}; stop it, or give --replace to have it stopped",
        ],
    }


@pytest.mark.parametrize(
    ("running", "wanted", "start"), [(True, None, True), (False, None, False), (True, False, False)]
)
def test_a_server_is_started_if_one_ran_there_or_if_told_to(
    bench: Bench, links: list[Backup], running: bool, wanted: bool | None, start: bool
) -> None:
    if not running:
        bench.server.halt()
    plan = planned(bench, links[0].id, datadir=bench.datadir, replace_it=True, start=wanted)
    assert (plan.against, plan.start) == ((), start)


# Where not even a plan can be made


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("backup1", UsageError),
        ("file:///srv/backup1", UsageError),
        (number(99), NotFound),
        (f"file:///nowhere/guest1/{number(1)}", NotFound),
        (f"s3://bucket/guest1/{number(1)}", Refused),
    ],
)
def test_a_source_that_is_not_there(
    bench: Bench, links: list[Backup], source: str, error: type[GuestagentError]
) -> None:
    with pytest.raises(error) as raised:
        planned(bench, source)
    assert type(raised.value) is error


def test_a_chain_that_is_broken(bench: Bench, links: list[Backup]) -> None:
    bench.catalog().delete(links[1])
    with pytest.raises(ChainBroken):
        planned(bench, links[2].id)


def test_the_manifest_of_another_backup(bench: Bench, links: list[Backup]) -> None:
    path = bench.object(links[2], "manifest.json")
    path.write_bytes(bench.object(links[1], "manifest.json").read_bytes())
    with pytest.raises(Corrupt, match=f"{links[2].location}/manifest.json is the manifest of guest1/{links[1].id}"):
        planned(bench, links[2].id)


def test_without_a_target(bench: Bench, links: list[Backup]) -> None:
    host = bench.host(datadir=None)
    with pytest.raises(ConfigError, match=r"no datadir to restore into; give --datadir, or set \[database\] datadir"):
        make_plan(host, RestoreRequest(links[0].id))
    assert make_plan(bench.host(), RestoreRequest(links[0].id)).place.path == bench.datadir


def test_a_target_that_can_never_be_one(bench: Bench, links: list[Backup]) -> None:
    with pytest.raises(UsageError, match="is not absolute"):
        planned(bench, links[0].id, datadir=Path("data"))


def test_a_tool_that_is_missing(bench: Bench, links: list[Backup], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolError, match="mariabackup is not installed"):
        planned(bench, links[0].id)


# Reasons against it


def test_a_tool_of_another_series_than_the_backup(bench: Bench, links: list[Backup]) -> None:
    bench.tool(VERSION="11.4.2-MariaDB")
    reason = only_reason(planned(bench, links[2].id))
    assert type(reason) is Refused
    assert str(reason) == ("mariabackup 11.4.2 cannot prepare a backup of server 10.11.19; install mariabackup 10.11")


def test_a_tool_that_is_older_than_the_one_that_made_a_link(bench: Bench) -> None:
    with bench.catalog() as catalog:
        base = store(catalog, manifest(1, tool_version="10.11.21"))
        tip = store(catalog, manifest(2, parent=base, tool_version="10.11.9"))
    reason = only_reason(planned(bench, tip.id))
    assert type(reason) is Refused
    assert str(reason) == (
        "mariabackup 10.11.19 is older than the 10.11.21 that made this backup; install mariabackup 10.11.21 or newer"
    )
    bench.tool(VERSION="10.11.21-MariaDB")
    assert planned(bench, tip.id).against == ()


def test_a_running_server_is_refused_unless_it_may_be_replaced(bench: Bench, links: list[Backup]) -> None:
    reason = only_reason(planned(bench, links[0].id, datadir=bench.datadir))
    assert type(reason) is Refused
    assert reason.what == f"a server runs on {bench.datadir}"
    assert planned(bench, links[0].id, datadir=bench.datadir, replace_it=True).against == ()


def test_a_datadir_that_is_not_empty_is_refused_unless_it_may_be_replaced(bench: Bench, links: list[Backup]) -> None:
    bench.server.halt()
    reason = only_reason(planned(bench, links[0].id, datadir=bench.datadir))
    assert type(reason) is Refused
    assert str(reason).startswith(f"{bench.datadir} is not empty; give --replace")
    assert planned(bench, links[0].id, datadir=bench.datadir, replace_it=True).against == ()


@pytest.mark.parametrize("replace_it", [False, True])
def test_a_target_that_is_no_datadir_is_never_replaced(bench: Bench, links: list[Backup], replace_it: bool) -> None:
    home = bench.top / "home"
    home.mkdir()
    (home / "letters.txt").write_text("dear")
    reason = only_reason(planned(bench, links[0].id, datadir=home, replace_it=replace_it))
    assert type(reason) is Refused
    assert str(reason) == f"{home} holds something that is no datadir; name an empty directory"


def test_too_little_space(bench: Bench, links: list[Backup], monkeypatch: pytest.MonkeyPatch) -> None:
    needed = planned(bench, links[2].id).needed_space
    room(monkeypatch, lambda _: needed)
    assert planned(bench, links[2].id).against == ()
    room(monkeypatch, lambda _: needed - 1)
    reason = only_reason(planned(bench, links[2].id))
    assert type(reason) is Refused
    assert reason.what == f"{bench.top}/target has {needed - 1} bytes free and the restore needs {needed}"


def test_what_a_dead_restore_left_counts_as_free(
    bench: Bench, links: list[Backup], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = planned(bench, links[2].id).needed_space
    left = bench.top / "target" / layout.OURS / layout.BASE / "ibdata1"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(1000))
    room(monkeypatch, lambda _: needed - 1000)
    assert planned(bench, links[2].id).against == ()
    room(monkeypatch, lambda _: needed - 1001)
    assert "bytes free" in only_reason(planned(bench, links[2].id)).what


def test_too_little_space_in_a_work_dir(bench: Bench, links: list[Backup], monkeypatch: pytest.MonkeyPatch) -> None:
    work = bench.top / "work"
    work.mkdir()
    plan = planned(bench, links[2].id, work_dir=work)
    assert (plan.against, plan.needed_space) == ((), plan.base_space)
    room(monkeypatch, lambda path: plan.links_space if path == work else plan.base_space)
    assert planned(bench, links[2].id, work_dir=work).against == ()
    room(monkeypatch, lambda path: plan.links_space - 1 if path == work else plan.base_space)
    reason = only_reason(planned(bench, links[2].id, work_dir=work))
    assert reason.what == f"{work} has {plan.links_space - 1} bytes free and the restore needs {plan.links_space}"


@pytest.mark.parametrize("obstacle", ["missing", "file", "closed"])
def test_a_work_dir_that_cannot_be_written_to(
    bench: Bench, links: list[Backup], monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    work = bench.top / "work"
    if obstacle == "file":
        work.write_text("")
        work.chmod(0o700)
    if obstacle == "closed":
        work.mkdir()
        monkeypatch.setattr(os, "access", lambda path, _: path != work)
    reason = only_reason(planned(bench, links[2].id, work_dir=work))
    assert type(reason) is ConfigError
    assert str(reason) == f"cannot write to work_dir {work}; make it, or set [restore] work_dir"


def test_an_owner_that_this_host_does_not_have(bench: Bench, links: list[Backup]) -> None:
    reason = only_reason(planned(bench, links[0].id, os_user="nobody-at-all"))
    assert type(reason) is ConfigError
    assert str(reason) == "no user nobody-at-all here; install the server, or set [database] os_user"


def test_an_owner_that_is_somebody_else(bench: Bench, links: list[Backup], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    reason = only_reason(planned(bench, links[0].id, os_user="daemon"))
    assert type(reason) is Refused
    assert str(reason) == "the data must belong to daemon; run as root or as daemon"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert planned(bench, links[0].id, os_user="daemon").against == ()


def test_a_server_that_answers_and_does_not_run_on_the_target(bench: Bench, links: list[Backup]) -> None:
    reason = only_reason(planned(bench, links[0].id, start=True))
    assert type(reason) is Refused
    assert reason.what == f"a server answers already, and it does not run on {bench.top}/target"
    assert planned(bench, links[0].id).against == ()
    bench.server.halt()
    assert planned(bench, links[0].id, start=True).against == ()


def test_all_reasons_are_told_and_the_first_is_raised(
    bench: Bench, links: list[Backup], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.tool(VERSION="11.4.2-MariaDB")
    room(monkeypatch, lambda _: 0)
    plan = planned(bench, links[0].id, datadir=bench.datadir, os_user="nobody-at-all")
    told = [str(reason) for reason in plan.against]
    assert [
        words in text for words, text in zip(("cannot prepare", "a server runs", "free", "no user"), told, strict=True)
    ]
    assert plan.properties()["refused"] == told
    with pytest.raises(Refused, match="cannot prepare"):
        plan.check()


def test_an_id_in_upper_case(bench: Bench, links: list[Backup]) -> None:
    with bench.catalog() as catalog:
        made = store(catalog, replace(manifest(1), id=new_id()))
    assert planned(bench, made.id.upper()).chain.tip == made


# What the requester knows, and what no user has put there


def test_a_backup_is_the_one_that_the_requester_knows(bench: Bench, links: list[Backup]) -> None:
    for source in (links[2].id, links[2].location):
        request = RestoreRequest(source, datadir=bench.top / "target", checksum=links[2].checksum.upper())
        assert make_plan(bench.host(), request).chain.tip == links[2]
        with pytest.raises(Corrupt, match=rf"the manifest of {links[2].id} has checksum {links[2].checksum}, and"):
            make_plan(bench.host(), replace(request, checksum=links[1].checksum))


@pytest.mark.parametrize("running", [True, False])
def test_a_new_installation_may_be_replaced_by_who_asks_for_that_alone(
    bench: Bench, links: list[Backup], running: bool
) -> None:
    write_tree(bench.datadir, {name: data for name, data in BEFORE.items() if "/" not in name})
    for name in ("mysql", "performance_schema", "sys", "#innodb_temp"):
        (bench.datadir / name).mkdir()
    if not running:
        bench.server.end()
    request = RestoreRequest(links[2].id, datadir=bench.datadir)
    assert make_plan(bench.host(), request).against != ()
    assert make_plan(bench.host(), replace(request, pristine=True)).against == ()


def test_what_a_user_has_put_there_is_not_replaced_as_a_new_installation(bench: Bench, links: list[Backup]) -> None:
    request = RestoreRequest(links[2].id, datadir=bench.datadir, pristine=True)
    (reason,) = make_plan(bench.host(), request).against
    assert str(reason).startswith(f"a server runs on {bench.datadir}")
    bench.server.end()
    (reason,) = make_plan(bench.host(), request).against
    assert str(reason).startswith(f"{bench.datadir} is not empty; give --replace")
    assert make_plan(bench.host(), replace(request, replace=True)).against == ()


def test_a_database_that_a_user_makes_while_the_data_comes(bench: Bench, links: list[Backup]) -> None:
    write_tree(bench.datadir, {"ibdata1": b"", "mysql/user.frm": b""})
    request = RestoreRequest(links[2].id, datadir=bench.datadir, pristine=True)
    plan = make_plan(bench.host(), request)
    look_again(plan, request)
    (bench.datadir / "shop").mkdir()
    with pytest.raises(Refused, match="is not empty"):
        look_again(plan, request)


def test_something_else_than_a_datadir_is_not_pristine(bench: Bench, links: list[Backup]) -> None:
    target = bench.top / "target"
    write_tree(target, {"letter.txt": b"dear"})
    (reason,) = make_plan(bench.host(), RestoreRequest(links[2].id, datadir=target, pristine=True)).against
    assert "holds something that is no datadir" in str(reason)
