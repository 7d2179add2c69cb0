"""The spare of a key: wherever a rotation ends, and whatever a store loses of it, a key at hand opens every backup."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest

from guestagent.errors import ConfigError, Corrupt, Refused, StorageDenied, StorageError
from guestagent.keys.file import generate
from guestagent.manifest import Backup
from guestagent.operations.delete import delete_damaged
from guestagent.operations.host import Host
from guestagent.operations.rotate import KeyInUse, Rewrapped, keys_in_use, outdated, rotate
from guestagent.progress import Watch
from guestagent.storage import Storage
from tests.fakes.bench import Bench
from tests.fakes.stores import Garbles, Lies, ListsNothing, Refuses, Through, half
from tests.unit.rotate_scene import Died, Dies, On, host_with, taken

KEY, SPARE = "key.json", "key.next.json"


@pytest.fixture
def ids(bench: Bench) -> dict[str, str]:
    """Three keys, by the names of their files."""
    return {name: generate(bench.top / name) for name in ("one", "two", "three")}


@pytest.fixture
def on(bench: Bench, ids: dict[str, str]) -> On:
    """The host with these keys, the first of them for new backups."""
    return partial(host_with, bench)


@pytest.fixture
def made(on: On) -> Backup:
    """A backup under the first key."""
    return taken(on("one"), 1)


@pytest.fixture
def lost(bench: Bench, on: On, made: Backup) -> Backup:
    """The same after a rotation to the second key that has lost its key.json: only the spare opens it."""
    with pytest.raises(Died):
        rotating(bench, on("two", "one"), lambda inner: Dies(inner, 2, "half"))
    return made


def rotating(bench: Bench, host: Host, wrap: Callable[[Storage], Storage]) -> None:
    """Rotate over a store that misbehaves, and no longer than that."""
    before, bench.wrap = bench.wrap, wrap
    try:
        rotate(host, Watch())
    finally:
        bench.wrap = before


def names(bench: Bench) -> set[str]:
    """What lies there of the backup."""
    return {key.rpartition("/")[2] for key in bench.objects()}


def opens(on: On, backup: Backup, *keys: str) -> bool:
    """Whether those keys open the backup."""
    return on(*keys).catalog.get(backup.id).data_key == backup.data_key


def rotates(bench: Bench, on: On, backup: Backup, *keys: str) -> None:
    """Another rotation does the rest: nothing but the first key is needed, and no spare is left."""
    assert [one.error for one in rotate(on(*keys), Watch())] == [None]
    assert names(bench) == {KEY, "manifest.json"}
    assert opens(on, backup, keys[0])
    assert rotate(on(*keys), Watch()) == []
    assert [key.backups for key in keys_in_use(on(*keys))] == [1] + [0] * (len(keys) - 1)


@pytest.mark.parametrize(
    ("number", "when", "under"),
    [
        (1, "before", {"one"}),
        (1, "half", {"one"}),
        (1, "after", {"one", "two"}),
        (2, "before", {"one", "two"}),
        (2, "half", {"two"}),
        (2, "after", {"two"}),
        (3, "before", {"two"}),
    ],
)
def test_a_rotation_that_dies_anywhere_loses_no_backup(
    bench: Bench, on: On, ids: Mapping[str, str], made: Backup, number: int, when: str, under: set[str]
) -> None:
    with pytest.raises(Died):
        rotating(bench, on("two", "one"), lambda inner: Dies(inner, number, when))

    for key in under:
        assert opens(on, made, key)
    for key in {"one", "two"} - under:
        assert on(key).catalog.get(made.id).locked_by in {ids[name] for name in under}
    counted = {key.id: key.backups for key in keys_in_use(on("two", "one"))}
    assert counted == {ids[name]: int(name in under) for name in ("one", "two")}
    rotates(bench, on, made, "two", "one")


@pytest.mark.parametrize("keeps", [half, lambda _: None, lambda _: b""], ids=["half", "nothing", "empty"])
def test_a_spare_that_the_store_does_not_keep_stops_the_rotation_before_it_harms(
    bench: Bench, on: On, made: Backup, keeps: Callable[[bytes], bytes | None]
) -> None:
    before = bench.objects()
    with pytest.raises(Corrupt, match=f"{made.id}/key.next.json .*; the store lost an upload that it had confirmed"):
        rotating(bench, on("two", "one"), lambda inner: Lies(inner, SPARE, keeps))
    assert bench.objects() == before
    rotates(bench, on, made, "two", "one")


@pytest.mark.parametrize("keeps", [half, lambda _: b""], ids=["half", "empty"])
def test_a_key_that_the_store_does_not_keep_has_a_spare(
    bench: Bench, on: On, ids: Mapping[str, str], made: Backup, keeps: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(Corrupt, match=f"{made.id}/key.json should have .*; the store lost an upload"):
        rotating(bench, on("two", "one"), lambda inner: Lies(inner, f"/{KEY}", keeps))
    assert names(bench) == {KEY, SPARE, "manifest.json"}
    assert opens(on, made, "two")
    assert on("one").catalog.get(made.id).locked_by == ids["two"]
    assert outdated(on("two", "one")) == [Rewrapped(on("two").catalog.get(made.id), ids["two"])]
    rotates(bench, on, made, "two", "one")


def test_a_spare_that_is_the_only_good_copy_is_never_overwritten(bench: Bench, on: On, lost: Backup) -> None:
    spare = bench.object(lost, SPARE).read_bytes()
    with pytest.raises(Corrupt):
        rotating(bench, on("three", "two"), lambda inner: Lies(inner, ".json", half))
    assert bench.object(lost, SPARE).read_bytes() == spare
    assert opens(on, lost, "two")
    rotates(bench, on, lost, "three", "two")


def test_a_spare_that_does_not_open_is_replaced(bench: Bench, on: On, lost: Backup) -> None:
    bench.object(lost, KEY).write_bytes(bench.object(lost, SPARE).read_bytes())
    bench.object(lost, SPARE).write_bytes(b"{")
    rotates(bench, on, lost, "three", "two")


def test_what_a_damaged_key_says_does_not_hide_its_spare(bench: Bench, on: On, lost: Backup) -> None:
    good = json.loads(bench.object(lost, SPARE).read_bytes())
    for damage in ({"wrapped": good["wrapped"][::-1]}, {"key_id": "file:0000000000000000"}, {"format": "1"}):
        bench.object(lost, KEY).write_text(json.dumps(good | damage))
        assert opens(on, lost, "two"), damage
    bench.object(lost, KEY).unlink()
    rotates(bench, on, lost, "two")


def test_a_backup_whose_spare_needs_a_key_that_is_not_here_is_not_damaged(
    bench: Bench, on: On, ids: Mapping[str, str], lost: Backup
) -> None:
    host = on("one")
    with pytest.raises(Refused, match="can be read and is not damaged"):
        delete_damaged(host, lost.id, Watch())
    (found,) = rotate(on("three", "one"), Watch())
    assert isinstance(found.error, ConfigError)
    assert f"stays under key {ids['two']}, which is not here" in str(found.error)
    assert keys_in_use(host)[-1] == KeyInUse(ids["two"], 1, "missing")


def test_keys_that_are_both_not_here_are_told(bench: Bench, on: On, ids: Mapping[str, str], made: Backup) -> None:
    with pytest.raises(Died):
        rotating(bench, on("two", "one"), lambda inner: Dies(inner, 1, "after"))
    assert on("three").catalog.get(made.id).locked_by == ids["one"]
    assert on("three").catalog.key_id_of(made) == ids["one"]
    assert [(key.id, key.backups) for key in keys_in_use(on("three"))[1:]] == sorted(
        (ids[n], 1) for n in ("one", "two")
    )


def test_a_spare_is_believed_damaged_when_a_second_answer_says_so(bench: Bench, on: On, lost: Backup) -> None:
    bench.wrap = lambda inner: Garbles(inner, SPARE, {1})
    assert opens(on, lost, "two")
    assert on("two").catalog.key_id_of(lost)
    bench.wrap = lambda inner: Garbles(inner, SPARE, {3})
    assert outdated(on("two"))[0].error is None
    bench.wrap = lambda inner: Garbles(inner, SPARE)
    with pytest.raises(Corrupt, match=f"{lost.id}/key.json: not JSON"):
        on("two").catalog.get(lost.id)
    with pytest.raises(Corrupt, match=f"nobody can tell which key backup {lost.id} needs: .*/key.json: not JSON"):
        keys_in_use(on("two"))


def test_a_key_that_is_read_wrong_once_needs_no_spare(bench: Bench, on: On, made: Backup) -> None:
    bench.object(made, SPARE).write_bytes(b"{")
    bench.wrap = lambda inner: Refuses(Garbles(inner, f"/{KEY}", {1}), "get", suffix=SPARE)
    assert opens(on, made, "one")


def test_a_spare_of_another_attempt_opens_nothing(bench: Bench, on: On, made: Backup) -> None:
    host = on("one")
    host.catalog.new_data_key(made.manifest.instance_id, made.id)  # as the first key of another attempt would
    bench.object(made, KEY).rename(bench.object(made, SPARE))
    bench.object(made, KEY).write_bytes(b"{")
    with pytest.raises(Corrupt, match=f"{made.id}/key.json: not JSON"):
        on("one").catalog.get(made.id)


def test_a_spare_counts_where_the_manifest_cannot_be_read(
    bench: Bench, on: On, ids: Mapping[str, str], lost: Backup
) -> None:
    bench.object(lost, "manifest.json").write_bytes(b"{")
    assert [(key.id, key.backups) for key in keys_in_use(on("one"))][-1] == (ids["two"], 1)
    assert rotate(on("two"), Watch()) == []
    (found,) = rotate(on("three", "two"), Watch())
    assert str(found.error).startswith(f"backup {lost.id} stays under key {ids['two']}: ")


def test_a_rotation_where_nothing_may_be_deleted_leaves_spares_of_the_current_key(
    bench: Bench, on: On, ids: Mapping[str, str], lost: Backup, caplog: pytest.LogCaptureFixture
) -> None:
    denied = StorageDenied("access denied", hint="grant s3:DeleteObject")
    rotating(bench, on("three", "two"), lambda inner: Refuses(inner, "delete", error=denied))
    assert f"{lost.id}/key.next.json is not needed, and stays: access denied" in caplog.text
    assert [(key.id, key.backups) for key in keys_in_use(on("three", "two"))] == [(ids["three"], 1), (ids["two"], 0)]
    rotates(bench, on, lost, "three")


def test_a_spare_whose_put_arrives_twice_is_no_other_rotations(bench: Bench, on: On, made: Backup) -> None:
    class Twice(Through):
        def put_new(self, key: str, body: bytes | bytearray) -> None:
            super().put_new(key, body)
            super().put_new(key, body)

    rotating(bench, on("two", "one"), Twice)
    assert names(bench) == {KEY, "manifest.json"}
    assert opens(on, made, "two")


def test_a_spare_that_cannot_be_deleted_now_goes_the_next_time(bench: Bench, on: On, made: Backup) -> None:
    with pytest.raises(StorageError, match="503 slow down"):
        rotating(bench, on("two", "one"), lambda inner: Refuses(inner, "delete"))
    rotates(bench, on, made, "two", "one")


def test_a_key_that_does_not_open_what_it_wraps_is_not_used(bench: Bench, on: On, made: Backup) -> None:
    class Careless:
        id = "kms:careless"

        def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
            return data_key[::-1]

        def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
            return wrapped

    before = bench.objects()
    with pytest.raises(Corrupt, match="key kms:careless does not give back what it has wrapped; keep the old key"):
        on("one").catalog.rewrap(made, Careless())
    assert bench.objects() == before


@pytest.mark.parametrize("how", ["delete", "discard"])
def test_a_delete_takes_the_spare_along(bench: Bench, on: On, lost: Backup, how: str) -> None:
    catalog = on("two").catalog
    if how == "delete":
        bench.wrap = ListsNothing
        catalog.delete(on("two").catalog.get(lost.id))
    else:
        bench.object(lost, "manifest.json").unlink()
        assert catalog.remains(lost.location).objects == 2
        catalog.discard(lost.location)
    assert bench.objects() == {}


def test_the_spare_stays_where_only_the_mac_tells_that_it_is_needed(bench: Bench, on: On, lost: Backup) -> None:
    """A key.json that opens, and to another data key, is as good as none."""
    other = replace(lost, data_key=bytes(32))
    bench.object(lost, SPARE).rename(bench.top / SPARE)
    current = on("one").keys.current
    assert current is not None
    on("one").catalog.rewrap(other, current)
    (bench.top / SPARE).rename(bench.object(lost, SPARE))
    assert opens(on, lost, "one", "two")
    rotates(bench, on, lost, "two", "one")
