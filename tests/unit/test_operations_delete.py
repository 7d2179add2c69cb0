"""The delete story: never a parent without its children, never half, never beside another job."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from guestagent.errors import Busy, Cancelled, NotFound, Refused, StorageError
from guestagent.jobs.lock import only_job
from guestagent.manifest import Backup
from guestagent.model import InstanceId, Kind
from guestagent.operations.delete import delete, doomed
from guestagent.operations.sweep import sweep_own
from guestagent.progress import Watch
from tests.fakes.backups import chain, manifest, store
from tests.fakes.bench import PATIENCE, Bench, CancelAt, Told, new_id
from tests.fakes.stores import Confined, Garbles, Refuses


@pytest.fixture
def links(bench: Bench) -> list[Backup]:
    """A chain of three."""
    with bench.catalog() as catalog:
        return chain(catalog, 3)


def ids(backups: list[Backup]) -> list[str]:
    return [backup.id for backup in backups]


def test_a_backup_that_nothing_stands_on_goes_alone(bench: Bench, links: list[Backup]) -> None:
    told = Told()
    assert ids(delete(bench.host(), links[2].id, Watch(told))) == [links[2].id]
    assert ids(bench.catalog().backups()) == ids(links[:2])
    assert {name.split("/")[1] for name in bench.objects()} == {*ids(links[:2])}
    assert told.phases == [("delete", links[2].manifest.stored_size)]
    assert told.moved == {"delete": links[2].manifest.stored_size}
    assert not list((bench.state / "unfinished").iterdir())


def test_a_parent_with_children_is_refused(bench: Bench, links: list[Backup]) -> None:
    before = bench.objects()
    with pytest.raises(Refused, match=f"2 backups stand on {links[0].id}, {links[1].id} among them; .*--cascade"):
        delete(bench.host(), links[0].id, Watch())
    with pytest.raises(Refused, match="1 backups stand on"):
        doomed(bench.host(), links[1].id, cascade=False)
    assert bench.objects() == before


@pytest.mark.parametrize("cascade", [False, True])
def test_what_cannot_be_read_may_be_a_child_and_refuses_the_delete(
    bench: Bench, links: list[Backup], cascade: bool
) -> None:
    bench.object(links[2], "manifest.json").write_bytes(b"{")
    before = bench.objects()
    lost = links[2]
    told = f"backup {lost.id} cannot be read and may stand on {links[1].id}: .* not JSON.*remove {lost.location}"
    with pytest.raises(Refused, match=told):
        delete(bench.host(), links[1].id, Watch(), cascade=cascade)
    assert bench.objects() == before


def test_a_child_that_is_read_wrong_once_is_a_child(bench: Bench, links: list[Backup]) -> None:
    bench.wrap = lambda inner: Garbles(inner, f"{links[2].id}/manifest.json", {1})
    with pytest.raises(Refused, match=f"1 backups stand on {links[1].id}, {links[2].id} among them"):
        doomed(bench.host(), links[1].id, cascade=False)


def test_a_cascade_takes_children_before_their_parents(bench: Bench, links: list[Backup]) -> None:
    with bench.catalog() as catalog:
        branch = store(catalog, manifest(4, parent=links[0]))
        theirs = store(catalog, manifest(5, parent=links[1], instance_id=InstanceId("guest2")))
        apart = store(catalog, manifest(6))
    victims = doomed(bench.host(), links[0].id, cascade=True)
    assert set(ids(victims)) == {*ids(links), branch.id, theirs.id}
    for victim in victims:
        parent = victim.manifest.parent
        assert parent is None or ids(victims).index(parent.id) > ids(victims).index(victim.id)
    assert ids(delete(bench.host(), links[0].id, Watch(), cascade=True)) == ids(victims)
    assert bench.catalog().backups() == [apart]


def test_a_loop_of_manifests_ends(bench: Bench, links: list[Backup]) -> None:
    looped = replace(links[0].manifest, kind=Kind.INCREMENTAL, parent=links[2].as_parent())
    bench.object(links[0], "manifest.json").write_bytes(looped.to_bytes())
    with pytest.raises(Refused, match="2 backups stand on"):
        doomed(bench.host(), links[0].id, cascade=False)
    delete(bench.host(), links[0].id, Watch(), cascade=True)
    assert bench.objects() == {}


def test_a_backup_that_is_its_own_parent_can_be_deleted(bench: Bench, links: list[Backup]) -> None:
    with bench.catalog() as catalog:
        alone = store(catalog, manifest(9))
    itself = replace(alone.manifest, kind=Kind.INCREMENTAL, parent=alone.as_parent())
    bench.object(alone, "manifest.json").write_bytes(itself.to_bytes())
    assert ids(delete(bench.host(), alone.id, Watch())) == [alone.id]
    assert ids(bench.catalog().backups()) == ids(links)


def test_credentials_that_are_confined_to_their_own_prefix_may_delete_there(bench: Bench, links: list[Backup]) -> None:
    bench.wrap = lambda inner: Confined(inner, "guest1")
    delete(bench.host(), links[2].id, Watch())
    assert ids(bench.catalog().backups()) == ids(links[:2])


def test_a_backup_that_is_not_there(bench: Bench) -> None:
    with pytest.raises(NotFound):
        delete(bench.host(), new_id(), Watch())


def test_a_cancel_between_two_backups_leaves_whole_ones(bench: Bench, links: list[Backup]) -> None:
    with pytest.raises(Cancelled):
        delete(bench.host(), links[0].id, CancelAt("delete", at_byte=True).watch(), cascade=True)
    assert ids(bench.catalog().backups()) == ids(links[:2])
    assert len(bench.catalog().chain(links[1])) == 2
    assert {name.split("/")[1] for name in bench.objects()} == {*ids(links[:2])}


def test_a_store_that_fails_after_the_manifest_was_deleted(bench: Bench, links: list[Backup]) -> None:
    bench.wrap = lambda inner: Refuses(inner, "delete", suffix="00000001")
    with pytest.raises(StorageError, match="503 slow down"):
        delete(bench.host(), links[2].id, Watch())
    bench.wrap = lambda inner: inner
    assert ids(bench.catalog().backups()) == ids(links[:2])
    assert sweep_own(bench.host()) == [links[2].id]
    assert {name.split("/")[1] for name in bench.objects()} == {*ids(links[:2])}


def test_a_store_that_does_not_delete_the_manifest(
    bench: Bench, links: list[Backup], caplog: pytest.LogCaptureFixture
) -> None:
    before = bench.objects()
    bench.wrap = lambda inner: Refuses(inner, "delete", suffix="manifest.json")
    with pytest.raises(StorageError, match="503 slow down"):
        delete(bench.host(), links[2].id, Watch())
    bench.wrap = lambda inner: inner
    assert not [line for line in caplog.messages if "stays until" in line]
    assert sweep_own(bench.host()) == []
    assert bench.objects() == before
    assert not list((bench.state / "unfinished").iterdir())


def test_a_delete_that_is_killed_is_ended_by_the_next_one(bench: Bench, links: list[Backup]) -> None:
    killed = bench.told_by_another(f"""
from guestagent.operations.delete import delete
bench.wrap = lambda inner: Acts(inner, lambda verb, key: die() if key.endswith("00000001") else None)
delete(bench.host(), {links[2].id!r}, Watch())
""")
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    assert ids(bench.catalog().backups()) == ids(links[:2])
    assert [name for name in bench.objects() if links[2].id in name]
    delete(bench.host(), links[1].id, Watch())
    assert {name.split("/")[1] for name in bench.objects()} == {links[0].id}


def test_a_delete_while_a_job_holds_the_lock_is_told_which(bench: Bench, links: list[Backup]) -> None:
    holder = bench.told_by_another("""
with only_job(bench.state, "restore 3a"):
    print("held", flush=True)
    import time; time.sleep(60)
""")
    try:
        while not (bench.state / "lock").exists() or not (bench.state / "lock").read_text():
            assert holder.poll() is None
        with pytest.raises(Busy, match=rf"busy with restore 3a \(pid {holder.pid}\)"), only_job(bench.state, "delete"):
            delete(bench.host(), links[2].id, Watch())
        assert len(bench.catalog().backups()) == 3
    finally:
        holder.kill()
        holder.wait(PATIENCE)
    with only_job(bench.state, "delete"):
        delete(bench.host(), links[2].id, Watch())
