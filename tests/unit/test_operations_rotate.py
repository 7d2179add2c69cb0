"""The rotation story: every backup under the current key, at any time whole, and whatever cannot be is told."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import pytest

from guestagent.errors import Busy, Cancelled, ConfigError, Corrupt, StorageError
from guestagent.keys.file import generate
from guestagent.operations.backup import backup
from guestagent.operations.plan import RestoreRequest
from guestagent.operations.restore import restore
from guestagent.operations.rotate import KeyInUse, Rewrapped, keys_in_use, outdated, rotate
from guestagent.progress import Watch
from tests.fakes.bench import Bench, CancelAt, Told, data_in
from tests.fakes.stores import Acts, Garbles, ListsNothing, Refuses, Through
from tests.unit.rotate_scene import On, host_with, taken


@pytest.fixture
def ids(bench: Bench) -> dict[str, str]:
    """Three keys, by the names of their files."""
    return {name: generate(bench.top / name) for name in ("one", "two", "three")}


@pytest.fixture
def on(bench: Bench, ids: dict[str, str]) -> On:
    """The host with these keys, the first of them for new backups."""
    return partial(host_with, bench)


def apart(objects: dict[str, bytes]) -> dict[str, bytes]:
    """All but the wrapped keys."""
    return {name: data for name, data in objects.items() if not name.endswith("key.json")}


def test_every_backup_comes_under_the_current_key_and_nothing_else_changes(
    bench: Bench, on: On, ids: dict[str, str]
) -> None:
    first = taken(on("one"), 1)
    second = taken(on("two", "one"), 2, parent=first)
    third = taken(on("three", "two", "one"), 3, parent=second)
    plain = taken(on(), 4)
    host, before, told = on("three", "two", "one"), bench.objects(), Told()

    found = rotate(host, Watch(told))

    assert [(one.backup.id, one.key_id, one.error) for one in found] == [
        (first.id, ids["one"], None),
        (second.id, ids["two"], None),
    ]
    assert apart(bench.objects()) == apart(before)
    changed = {name for name, data in bench.objects().items() if before.get(name) != data}
    assert changed == {f"guest1/{backup.id}/key.json" for backup in (first, second)}
    assert told.phases == [(f"rotate {first.id} 1/2", None), (f"rotate {second.id} 2/2", None)]
    assert rotate(host, Watch()) == []

    alone = on("three")
    assert [backup.checksum for backup in alone.catalog.chain(alone.catalog.get(third.id))] == [
        backup.checksum for backup in (first, second, third)
    ]
    assert [backup.data_key for backup in alone.catalog.backups()] == [
        backup.data_key for backup in (first, second, third, plain)
    ]


def test_a_chain_restores_across_rotations(bench: Bench, on: On, ids: dict[str, str]) -> None:
    trees, tip = [], None
    for names in (("one",), ("two", "one"), ("three", "two", "one")):
        trees.append(bench.write(f"under {names[0]}"))
        tip = backup(on(*names), bench.request(tip), Watch())
    assert tip is not None

    restore(on("two", "one", "three"), RestoreRequest(tip.id, datadir=bench.top / "before"), Watch())
    rotate(on("three", "two", "one"), Watch())
    restore(on("three"), RestoreRequest(tip.id, datadir=bench.top / "after"), Watch())

    for place in ("before", "after"):
        assert data_in(bench.top / place) == trees[-1]
    with pytest.raises(ConfigError, match=f"key {ids['three']}"):
        restore(on("one", "two"), RestoreRequest(tip.id, datadir=bench.top / "never"), Watch())


def test_a_rotation_is_only_looked_at(bench: Bench, on: On, ids: dict[str, str]) -> None:
    first = taken(on("one"), 1)
    before = bench.objects()

    assert outdated(on("two", "one")) == [Rewrapped(first, ids["one"])]
    assert bench.objects() == before


def test_a_rotation_that_is_stopped_goes_on_the_next_time(bench: Bench, on: On, ids: dict[str, str]) -> None:
    made = [taken(on("one"), number) for number in (1, 2, 3)]
    stopped = CancelAt(f"rotate {made[1].id}")

    with pytest.raises(Cancelled):
        rotate(on("two", "one"), stopped.watch())

    both = on("two", "one")
    assert [both.catalog.key_id_of(backup) for backup in made] == [ids["two"], ids["two"], ids["one"]]
    assert [backup.data_key for backup in both.catalog.backups()] == [backup.data_key for backup in made]
    assert [one.backup.id for one in rotate(both, Watch())] == [made[2].id]


def test_a_rotation_that_is_killed_goes_on_the_next_time(bench: Bench, on: On, ids: dict[str, str]) -> None:
    made = [taken(on("one"), number) for number in (1, 2)]
    before = bench.objects()

    def act(verb: str, key: str) -> None:
        if made[1].id in key:
            os._exit(7)

    child = os.fork()
    if not child:
        bench.wrap = lambda inner: Acts(inner, act)
        rotate(on("two", "one"), Watch())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    both = on("two", "one")
    assert apart(bench.objects()) == apart(before)
    assert [both.catalog.key_id_of(backup) for backup in made] == [ids["two"], ids["one"]]
    assert [backup.data_key for backup in both.catalog.backups()] == [backup.data_key for backup in made]
    assert [one.backup.id for one in rotate(both, Watch())] == [made[1].id]


def test_a_store_that_fails_stops_the_rotation(bench: Bench, on: On, ids: dict[str, str]) -> None:
    made = [taken(on("one"), number) for number in (1, 2)]
    bench.wrap = lambda inner: Refuses(inner, "put", suffix=f"{made[1].id}/key.json")

    with pytest.raises(StorageError, match="503 slow down"):
        rotate(on("two", "one"), Watch())

    bench.wrap = lambda inner: inner
    assert [one.backup.id for one in rotate(on("two", "one"), Watch())] == [made[1].id]


def test_a_key_that_is_missing_keeps_its_backups_and_no_others(bench: Bench, on: On, ids: dict[str, str]) -> None:
    lost, kept = taken(on("one"), 1), taken(on("two"), 2)
    before = bench.objects()
    host = on("three", "two")

    found = rotate(host, Watch())

    assert [(one.backup.id, one.key_id) for one in found] == [(lost.id, ids["one"]), (kept.id, ids["two"])]
    assert found[1].error is None
    assert isinstance(found[0].error, ConfigError)
    assert str(found[0].error) == (
        f"backup {lost.id} stays under key {ids['one']}, which is not here; name it in [encryption] old_key_files or "
        "old_keys, and rotate again"
    )
    assert bench.objects()[f"guest1/{lost.id}/key.json"] == before[f"guest1/{lost.id}/key.json"]
    assert host.catalog.key_id_of(kept) == ids["three"]


def test_a_backup_that_another_host_rotates_is_left_to_it_and_no_others(
    bench: Bench, on: On, ids: dict[str, str]
) -> None:
    backups = [taken(on("one"), number) for number in (1, 2)]

    class Met(Through):
        def put_new(self, key: str, body: bytes | bytearray) -> None:
            if backups[0].id in key:
                super().put_new(key, bench.object(backups[0], "key.json").read_bytes())
            super().put_new(key, body)

    bench.wrap = Met
    met, done = rotate(on("two", "one"), Watch())
    assert (met.backup.id, met.key_id, done.error) == (backups[0].id, ids["one"], None)
    assert isinstance(met.error, Busy)
    assert str(met.error).startswith(
        f"another rotation of the key of backup {met.backup.id} has just begun; let it end"
    )
    assert {key.id: key.backups for key in keys_in_use(on("two", "one"))} == {ids["two"]: 1, ids["one"]: 1}


def test_a_backup_that_cannot_be_read_keeps_its_key_and_no_others(bench: Bench, on: On, ids: dict[str, str]) -> None:
    lost, kept, done = taken(on("one"), 1), taken(on("one"), 2), taken(on("two"), 3)
    for damaged in (lost, done):
        bench.object(damaged, "manifest.json").write_bytes(b"{")
    host = on("two", "one")

    found = rotate(host, Watch())

    assert [(one.backup.id, one.instance_id, one.key_id) for one in found] == [
        (kept.id, "guest1", ids["one"]),
        (lost.id, "guest1", ids["one"]),
    ]
    assert isinstance(found[1].error, Corrupt)
    assert str(found[1].error).startswith(
        f"backup {lost.id} stays under key {ids['one']}: {lost.location}/manifest.json: manifest is not JSON"
    )
    hint = f"put whole objects back; if it is lost, `guestagent backup delete {lost.id} --damaged`"
    assert found[1].error.hint == f"keep every key, and try again, or {hint}"
    assert keys_in_use(host) == [KeyInUse(ids["two"], 2, "current"), KeyInUse(ids["one"], 1, "old")]


@pytest.mark.parametrize("damage", ["key.json", "both"])
def test_a_key_that_nobody_can_tell_is_an_error(bench: Bench, on: On, ids: dict[str, str], damage: str) -> None:
    lost, kept = taken(on("one"), 1), taken(on("one"), 2)
    bench.object(lost, "key.json").unlink()
    if damage == "both":
        bench.object(lost, "manifest.json").write_bytes(b"{")
    host = on("two", "one")
    why = "manifest.json: manifest is not JSON" if damage == "both" else "key.json is missing"

    told = f"nobody can tell which key backup {lost.id} needs: .*/{lost.id}/{why}.*; keep every key"
    with pytest.raises(Corrupt, match=told):
        keys_in_use(host)
    found = rotate(host, Watch())

    assert [(one.backup.id, one.key_id, one.error is None) for one in found] == [
        (kept.id, ids["one"], True),
        (lost.id, "", False),
    ]
    with pytest.raises(Corrupt, match=told):
        raise found[1].error or AssertionError


@pytest.mark.parametrize("name", ["manifest.json", "key.json"])
def test_a_backup_that_is_read_wrong_once_is_rotated(bench: Bench, on: On, ids: dict[str, str], name: str) -> None:
    made = [taken(on("one"), number) for number in (1, 2)]
    bench.wrap = lambda inner: Garbles(inner, f"{made[0].id}/{name}", {1})
    assert keys_in_use(on("two", "one"))[1] == KeyInUse(ids["one"], 2, "old")
    found = rotate(on("two", "one"), Watch())
    assert [(one.backup.id, one.error) for one in found] == [(one.id, None) for one in made]


def test_a_key_that_can_be_read_no_more_is_an_error(bench: Bench, on: On) -> None:
    made = taken(on("one"), 1)
    bench.wrap = lambda inner: Garbles(inner, "key.json", {2})
    assert [one.error for one in outdated(on("two", "one"))] == [None]
    bench.wrap = lambda inner: Garbles(inner, "key.json", {2, 3})
    (found,) = outdated(on("two", "one"))
    assert f"nobody can tell which key backup {made.id} needs: " in str(found.error)


def test_a_delete_removes_the_key_whatever_a_listing_shows(bench: Bench, on: On) -> None:
    made = taken(on("one"), 1)
    bench.wrap = ListsNothing
    on("one").catalog.delete(made)
    assert bench.objects() == {}


def test_only_this_instance_unless_all_are_asked_for(bench: Bench, on: On, ids: dict[str, str]) -> None:
    mine, theirs = taken(on("one"), 1), taken(on("one"), 2, instance="guest2")
    host = on("two", "one")

    assert [one.backup.id for one in rotate(host, Watch())] == [mine.id]
    assert host.catalog.key_id_of(theirs) == ids["one"]
    assert [one.backup.id for one in rotate(host, Watch(), everything=True)] == [theirs.id]


def test_without_an_instance_only_all(bench: Bench, on: On) -> None:
    taken(on("one"), 1)
    nobody = replace(on("two", "one"), instance=None)

    with pytest.raises(ConfigError, match="guest_id is not set"):
        rotate(nobody, Watch())
    assert len(outdated(nobody, everything=True)) == 1


@pytest.mark.parametrize("names", [(), ("one",)])
def test_without_a_current_key_there_is_nothing_to_rotate_to(bench: Bench, on: On, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"no key for new backups is configured; set \[encryption\] key_file or key"):
        rotate(on(*names, current=False), Watch())


def test_the_keys_in_use(bench: Bench, on: On, ids: dict[str, str]) -> None:
    taken(on(), 1)
    for number, name in ((2, "one"), (3, "one"), (4, "two")):
        taken(on(name), number)
    taken(on("two"), 5, instance="guest2")

    assert keys_in_use(on("two", "three", "two")) == [
        KeyInUse(ids["two"], 1, "current"),
        KeyInUse(ids["three"], 0, "old"),
        KeyInUse("", 1, "none"),
        KeyInUse(ids["one"], 2, "missing"),
    ]
    assert keys_in_use(on("two"), everything=True)[0] == KeyInUse(ids["two"], 2, "current")
    assert [key.state for key in keys_in_use(on("one", "two", current=False))] == ["old", "old", "none"]
    assert [key.state for key in keys_in_use(on())] == ["none", "missing", "missing"]
