"""The delete story: never a parent without its children, never half, never beside another job."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest

from guestagent.errors import Busy, Cancelled, Corrupt, NotFound, Refused, StorageDenied, StorageError
from guestagent.jobs.lock import only_job
from guestagent.manifest import Backup, sealed
from guestagent.model import InstanceId, Kind
from guestagent.operations.delete import delete, delete_damaged, doomed, ruined
from guestagent.operations.sweep import sweep_own
from guestagent.progress import Watch
from tests.fakes.backups import chain, manifest, store
from tests.fakes.bench import PATIENCE, Bench, CancelAt, Told, new_id
from tests.fakes.stores import Acts, Confined, Garbles, ListsNothing, Refuses


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
    told = (
        f"backup {lost.id} cannot be read and may stand on {links[1].id}: .* not JSON.*; try again, .*; if it is lost, "
        f"`guestagent backup delete {lost.id} --damaged`"
    )
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


# What is damaged


def damage(bench: Bench, one: Backup) -> None:
    bench.object(one, "manifest.json").write_bytes(b"{")


def test_a_damaged_backup_goes_by_its_own_name_and_nothing_else_does(
    bench: Bench, links: list[Backup], caplog: pytest.LogCaptureFixture
) -> None:
    damage(bench, links[2])
    told = Told()
    gone = delete_damaged(bench.host(), links[2].id, Watch(told))
    assert {name.split("/")[1] for name in bench.objects()} == {*ids(links[:2])}
    size = links[2].manifest.stored_size + 1
    assert (told.phases, told.moved) == ([("delete", size)], {"delete": size})
    assert gone.id == links[2].id
    shown = gone.properties()
    assert (
        shown.items()
        >= {
            "id": links[2].id,
            "instance_id": "guest1",
            "locationRef": links[2].location,
            "name": None,
            "stored_size": size,
            "status": "FAILED",
        }.items()
    )
    assert shown["note"].startswith(f"{links[2].location}/manifest.json: manifest is not JSON")
    assert shown["updated"].endswith("Z")
    assert f"{size} bytes of a damaged backup are lost for good: {shown['note']}" in caplog.messages
    assert not list((bench.state / "unfinished").iterdir())
    assert ids(delete(bench.host(), links[1].id, Watch())) == [links[1].id], "nothing stands in its way any more"


def test_what_can_be_read_is_not_deleted_as_damaged(bench: Bench, links: list[Backup]) -> None:
    before = bench.objects()
    with pytest.raises(Refused, match=f"backup {links[2].id} can be read and is not damaged; leave out --damaged"):
        delete_damaged(bench.host(), links[2].id, Watch())
    with pytest.raises(NotFound):
        delete_damaged(bench.host(), new_id(), Watch())
    assert bench.objects() == before


def test_a_manifest_that_is_read_wrong_once_is_not_damaged(bench: Bench, links: list[Backup]) -> None:
    before = bench.objects()
    bench.wrap = lambda inner: Garbles(inner, f"{links[2].id}/manifest.json", {1})
    with pytest.raises(Refused, match="can be read"):
        delete_damaged(bench.host(), links[2].id, Watch())
    assert bench.objects() == before


def test_a_manifest_that_is_read_right_at_last_is_not_damaged(bench: Bench, links: list[Backup]) -> None:
    before = bench.objects()
    bench.wrap = lambda inner: Garbles(inner, f"{links[2].id}/manifest.json", {1, 2})
    with pytest.raises(Refused, match="whole and no leftover"):
        delete_damaged(bench.host(), links[2].id, Watch())
    assert bench.objects() == before


@pytest.mark.parametrize("error", [StorageError("503 slow down"), StorageDenied("access denied")])
def test_what_nobody_can_reach_is_not_damaged(bench: Bench, links: list[Backup], error: StorageError) -> None:
    damage(bench, links[2])
    before = bench.objects()
    for method, suffix in (("get", f"{links[2].id}/manifest.json"), ("get", f"{links[0].id}/manifest.json")):
        bench.wrap = lambda inner, method=method, suffix=suffix: Refuses(  # type: ignore[misc]
            inner, method, suffix=suffix, error=error
        )
        with pytest.raises(type(error), match=str(error)):
            delete_damaged(bench.host(), links[2].id, Watch())
    assert bench.objects() == before


def test_what_a_newer_version_wrote_is_not_damaged(bench: Bench, links: list[Backup]) -> None:
    path = bench.object(links[2], "manifest.json")
    path.write_bytes(sealed(json.loads(path.read_bytes()) | {"format": 2}))
    before = bench.objects()
    with pytest.raises(Refused, match=r"is not damaged: .*manifest of format 2, .*; use a newer guestagent"):
        delete_damaged(bench.host(), links[2].id, Watch())
    with pytest.raises(Refused, match=f"{links[2].id} cannot be read and may stand on .*; use a newer guestagent"):
        delete(bench.host(), links[1].id, Watch())
    with pytest.raises(Corrupt, match=r"manifest of format 2, .*; use a newer guestagent"):
        delete(bench.host(), links[2].id, Watch())
    assert bench.objects() == before


def test_what_lies_in_the_place_of_another_is_not_damaged(bench: Bench, links: list[Backup]) -> None:
    other = new_id()
    (bench.store / "guest1" / links[2].id).rename(bench.store / "guest1" / other)
    before = bench.objects()
    with pytest.raises(Refused, match=f"is not damaged: .* of guest1/{links[2].id}; move it back to its own place"):
        delete_damaged(bench.host(), other, Watch())
    assert bench.objects() == before


def test_what_others_stand_on_goes_after_them(bench: Bench, links: list[Backup]) -> None:
    damage(bench, links[0])
    before = bench.objects()
    with pytest.raises(Refused, match=f"1 backups stand on {links[0].id}, {links[1].id} among them; put its whole"):
        delete_damaged(bench.host(), links[0].id, Watch())
    assert bench.objects() == before
    assert ids(delete(bench.host(), links[1].id, Watch(), cascade=True)) == [links[2].id, links[1].id]
    delete_damaged(bench.host(), links[0].id, Watch())
    assert bench.objects() == {}


def test_a_damaged_link_between_others(bench: Bench, links: list[Backup]) -> None:
    damage(bench, links[1])
    with pytest.raises(Refused, match=f"{links[1].id} cannot be read and may stand on {links[0].id}"):
        delete(bench.host(), links[0].id, Watch())
    delete(bench.host(), links[2].id, Watch())
    delete_damaged(bench.host(), links[1].id, Watch())
    delete(bench.host(), links[0].id, Watch())
    assert bench.objects() == {}


def test_a_damaged_backup_without_its_option_is_told_of_it(bench: Bench, links: list[Backup]) -> None:
    damage(bench, links[2])
    with pytest.raises(Corrupt, match=f"not JSON.*; if it is lost, `guestagent backup delete {links[2].id} --damaged`"):
        delete(bench.host(), links[2].id, Watch())


def test_a_damaged_backup_goes_manifest_first_even_if_no_listing_shows_it(bench: Bench, links: list[Backup]) -> None:
    damage(bench, links[2])
    bench.wrap = ListsNothing
    assert (ruined(bench.host(), links[2].id).properties())["updated"] is None
    order: list[str] = []
    bench.wrap = lambda inner: Acts(inner, lambda verb, key: order.append(key) if verb == "delete" else None)
    delete_damaged(bench.host(), links[2].id, Watch())
    assert order[0].endswith(f"{links[2].id}/manifest.json")


def test_a_damaged_backup_that_cannot_be_deleted_at_once_is_swept(bench: Bench, links: list[Backup]) -> None:
    damage(bench, links[2])
    bench.wrap = lambda inner: Refuses(inner, "delete", suffix="00000001")
    with pytest.raises(StorageError, match="503 slow down"):
        delete_damaged(bench.host(), links[2].id, Watch())
    assert [name for name in bench.objects() if links[2].id in name]
    bench.wrap = lambda inner: inner
    assert sweep_own(bench.host()) == [links[2].id]
    assert {name.split("/")[1] for name in bench.objects()} == {*ids(links[:2])}


def test_a_cancelled_delete_of_a_damaged_backup_leaves_it(bench: Bench, links: list[Backup]) -> None:
    damage(bench, links[2])
    before = bench.objects()
    with pytest.raises(Cancelled):
        delete_damaged(bench.host(), links[2].id, CancelAt("delete").watch())
    assert bench.objects() == before
