"""The catalog: what counts as a backup, and what does not, however the objects came to lie there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from guestagent import catalog as catalog_module
from guestagent.catalog import Catalog, split_location
from guestagent.errors import (
    ChainBroken,
    Corrupt,
    NotFound,
    ObjectExists,
    Refused,
    StorageDenied,
    StorageError,
    UsageError,
)
from guestagent.manifest import Backup, Manifest, Parent, digest
from guestagent.model import InstanceId, Kind, Lsn
from guestagent.storage import ObjectInfo, S3Settings, Storage, open_storage
from tests.fakes.backups import GUEST, chain, content, manifest, number, store
from tests.fakes.stores import Acts, Confined, Garbles, ListsNothing, LosesAnswers, Refuses, Through
from tests.servers.scripted_s3 import Reply, ScriptedS3

Wrap = Callable[[Storage], Storage]
OTHER = InstanceId("guest2")


class Scene:
    """A store in a directory, and catalogs of it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = top / "store"
        self.url = f"file://{self.root}"
        self.made: list[Catalog] = []
        self.catalog = self.seen()

    def seen(self, wrap: Wrap = lambda inner: inner, *, by: InstanceId | None = GUEST, url: str = "") -> Catalog:
        self.made.append(Catalog(url or self.url, instance=by, open_storage=lambda root: wrap(open_storage(root))))
        return self.made[-1]

    def folder(self, backup: Backup) -> Path:
        return self.root / backup.manifest.instance_id / backup.id

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())

    def overwrite(self, made: Manifest, *, under: Backup | None = None) -> None:
        """A manifest put into its place by force, or into the place of another backup's."""
        folder = self.folder(under) if under else self.root / made.instance_id / made.id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_bytes(made.to_bytes())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    for catalog in scene.made:
        catalog.__exit__()


# Finding


def test_what_is_published_is_found_under_the_layout_of_the_product(scene: Scene) -> None:
    stored = store(scene.catalog, manifest(1))
    where = f"guest1/{number(1)}"
    assert scene.names() == [f"{where}/data/{index:08d}" for index in range(3)] + [f"{where}/manifest.json"]
    assert stored.location == f"{scene.url}/{where}" == scene.catalog.location(GUEST, number(1))
    assert stored.checksum == digest((scene.root / where / "manifest.json").read_bytes())
    assert scene.catalog.get(number(1)) == scene.catalog.at(stored.location) == scene.catalog.at(f"{stored.location}/")
    assert scene.catalog.get(number(1)).manifest.segments == stored.manifest.segments
    assert scene.catalog.exists(stored.location)


def test_a_slash_at_the_end_of_the_url_changes_nothing(scene: Scene) -> None:
    stored = store(scene.seen(url=f"{scene.url}/"), manifest(1))
    assert stored.location == f"{scene.url}/guest1/{number(1)}"


def test_what_has_no_manifest_is_no_backup(scene: Scene) -> None:
    scene.catalog.put_segment(GUEST, number(1), 0, b"data", digest(b"data"))
    location = scene.catalog.location(GUEST, number(1))
    assert not scene.catalog.exists(location)
    assert scene.catalog.backups() == []
    with pytest.raises(NotFound, match=f"no backup {number(1)} below {scene.url}; `guestagent backup list`"):
        scene.catalog.get(number(1))
    with pytest.raises(NotFound, match=f"no backup at {location}"):
        scene.catalog.at(location)


def test_the_own_instance_is_asked_first_and_then_all(scene: Scene) -> None:
    theirs = store(scene.catalog, manifest(1, instance_id=OTHER))
    assert scene.catalog.get(number(1)) == theirs
    mine = store(scene.catalog, manifest(1))
    assert scene.catalog.get(number(1)) == mine
    assert scene.seen(by=OTHER).get(number(1)) == theirs
    assert scene.seen(by=None).get(number(1)) == mine


def test_credentials_that_are_confined_to_their_own_prefix_find_what_lies_there(scene: Scene) -> None:
    own = store(scene.catalog, manifest(1))
    store(scene.catalog, manifest(2, instance_id=OTHER))
    confined = scene.seen(lambda inner: Confined(inner, GUEST))
    assert confined.get(number(1)) == own
    assert confined.backups() == [own]
    with pytest.raises(NotFound, match="no backup"):
        confined.get(number(2))
    with pytest.raises(StorageDenied):
        scene.seen(lambda inner: Confined(inner, GUEST), by=None).backups()


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("", "not a backup's location"),
        ("guest1/00000000-0000-4000-8000-000000000001", "not a backup's location"),
        ("/srv/guest1/00000000-0000-4000-8000-000000000001", "not a backup's location"),
        ("file:///srv/guest1/latest", "not a backup id"),
        ("file:///srv/../00000000-0000-4000-8000-000000000001", "not an instance id"),
        ("file:///srv//00000000-0000-4000-8000-000000000001", "not an instance id"),
    ],
)
def test_a_location_that_cannot_be_one(scene: Scene, location: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        scene.catalog.at(location)


def test_the_parts_of_a_location() -> None:
    assert split_location(f"s3://b/a/c/guest1/{number(1)}/") == ("s3://b/a/c", "guest1", number(1))


def test_a_location_in_another_root_of_the_same_kind_is_read_and_deleted_there(scene: Scene) -> None:
    elsewhere = scene.seen(url=f"file://{scene.top}/elsewhere")
    stored = store(elsewhere, manifest(1))
    assert scene.catalog.at(stored.location) == stored
    assert scene.catalog.fetch(stored, stored.manifest.segments[1]) == content(number(1), 1)
    scene.catalog.delete(stored)
    assert not list((scene.top / "elsewhere").rglob("*.json"))


def test_a_location_in_another_kind_of_store_is_refused(scene: Scene) -> None:
    with pytest.raises(Refused, match=r"s3://b is another kind of store than file://.*; configure storage.url"):
        scene.catalog.at(f"s3://b/guest1/{number(1)}")


def test_stores_are_opened_once_and_closed(scene: Scene) -> None:
    closed: list[str] = []

    class Counting(Through):
        def close(self) -> None:
            closed.append(self.url)

    with scene.seen(Counting) as catalog:
        store(catalog, manifest(1))
        catalog.get(number(1))
        assert closed == []
    assert closed == [scene.url]


# Listing


def test_backups_come_oldest_first_of_one_instance_or_of_all(scene: Scene) -> None:
    late, early = store(scene.catalog, manifest(2)), store(scene.catalog, manifest(1))
    theirs = store(scene.catalog, manifest(3, instance_id=OTHER))
    assert scene.catalog.backups(GUEST) == [early, late]
    assert scene.catalog.backups() == [early, late, theirs]


def test_what_cannot_be_a_backup_is_left_out_and_what_is_corrupt_reported(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    good = store(scene.catalog, manifest(1))
    bad = store(scene.catalog, manifest(2))
    (scene.folder(bad) / "manifest.json").write_text("{")
    for name in ("guest1/README", "guest1/not-an-id/manifest.json", f"guest1/{number(3)}/data/00000000", "-bad/x/y"):
        (scene.root / name).parent.mkdir(parents=True, exist_ok=True)
        (scene.root / name).write_text("{}")
    upper = scene.root / "guest1" / str(number(4)).replace("8000", "ABCD")
    shutil.copytree(scene.folder(good), upper)
    assert scene.catalog.backups() == [good]
    assert [record.getMessage() for record in caplog.records] == [
        f"{bad.location} is left out of the list: {bad.location}/manifest.json: manifest is not JSON: "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    ]


def test_a_census_tells_what_is_there_and_cannot_be_read(scene: Scene) -> None:
    good, bad = store(scene.catalog, manifest(1)), store(scene.catalog, manifest(2))
    (scene.folder(bad) / "manifest.json").write_text("{")
    scene.catalog.put_segment(GUEST, number(3), 0, b"data", digest(b"data"))
    found, (lost,) = scene.catalog.census()
    assert found == [good]
    assert (lost.location, lost.id) == (bad.location, bad.id)
    assert str(lost.error).startswith(f"{bad.location}/manifest.json: manifest is not JSON")


def test_a_manifest_that_is_read_wrong_once_is_read_again(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    base, tip = chain(scene.catalog, 2)

    def catalog(times: int = 1) -> Catalog:
        return scene.seen(lambda inner: Garbles(inner, "manifest.json", range(1, times + 1)))

    assert catalog().get(base.id) == catalog().at(base.location) == base
    assert catalog().census() == ([base, tip], [])
    assert list(catalog().chain(tip)) == [base, tip]
    assert caplog.records == []
    with pytest.raises(Corrupt, match=f"{base.location}/manifest.json: manifest is not JSON"):
        catalog(times=2).get(base.id)


# Chains


def test_a_chain_is_read_base_first(scene: Scene) -> None:
    links = chain(scene.catalog, 4)
    assert list(scene.catalog.chain(links[-1])) == links
    assert list(scene.catalog.chain(links[0])) == links[:1]


def test_a_store_that_was_moved_holds_together(scene: Scene) -> None:
    links = chain(scene.catalog, 3)
    scene.root.rename(scene.top / "moved")
    moved = scene.seen(url=f"file://{scene.top}/moved")
    found = moved.chain(moved.get(links[-1].id))
    assert [link.location for link in found] == [f"file://{scene.top}/moved/guest1/{link.id}" for link in links]
    assert [link.checksum for link in found] == [link.checksum for link in links]


def test_a_parent_in_another_root_is_found_where_the_child_says(scene: Scene) -> None:
    base = store(scene.seen(url=f"file://{scene.top}/old"), manifest(1))
    child = store(scene.catalog, manifest(2, parent=base))
    assert [link.location for link in scene.catalog.chain(child)] == [base.location, child.location]


def test_a_parent_that_is_gone_breaks_the_chain(scene: Scene) -> None:
    links = chain(scene.catalog, 3)
    scene.catalog.delete(links[0])
    with pytest.raises(ChainBroken, match=f"broken at {links[1].id}: its parent {links[0].id} is gone; take a full"):
        scene.catalog.chain(links[-1])


def test_a_parent_that_stayed_in_another_kind_of_store_is_named(scene: Scene) -> None:
    base = store(scene.catalog, manifest(1))
    away = Parent(base.id, f"s3://bucket/guest1/{base.id}", base.checksum)
    child = store(scene.catalog, replace(manifest(2, parent=base), parent=away))
    assert len(scene.catalog.chain(child)) == 2
    scene.catalog.delete(base)
    with pytest.raises(Refused, match="s3://bucket is another kind of store"):
        scene.catalog.chain(child)


def test_a_parent_that_was_replaced_breaks_the_chain(scene: Scene) -> None:
    base, child = chain(scene.catalog, 2)
    scene.overwrite(replace(base.manifest, name="another"))
    with pytest.raises(ChainBroken, match="is not the one that it was taken on"):
        scene.catalog.chain(child)


def test_a_backup_that_is_its_own_parent(scene: Scene) -> None:
    base = store(scene.catalog, manifest(1))
    scene.overwrite(replace(base.manifest, kind=Kind.INCREMENTAL, parent=base.as_parent()))
    with pytest.raises(ChainBroken, match=f"broken at {base.id}: its parent {base.id} is its own descendant"):
        scene.catalog.chain(scene.catalog.get(base.id))


def test_a_loop_of_backups(scene: Scene) -> None:
    base, middle, tip = chain(scene.catalog, 3)
    scene.overwrite(replace(base.manifest, kind=Kind.INCREMENTAL, parent=tip.as_parent()))
    for entry in (base, middle, tip):
        with pytest.raises(ChainBroken, match="is its own descendant"):
            scene.catalog.chain(scene.catalog.get(entry.id))


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("nonsense", "is at not a backup's location: 'nonsense'"),
        (f"file:///srv/guest1/{number(9)}", f"its parent is {number(1)}, and lies at .*{number(9)}"),
    ],
)
def test_a_parents_location_that_leads_elsewhere(scene: Scene, location: str, why: str) -> None:
    base = store(scene.catalog, manifest(1))
    child = store(scene.catalog, manifest(2, parent=base))
    parent = Parent(base.id, location, base.checksum)
    scene.overwrite(replace(child.manifest, parent=parent))
    with pytest.raises(ChainBroken, match=why):
        scene.catalog.chain(scene.catalog.get(child.id))


def test_a_chain_without_end_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    links = chain(scene.catalog, 4)
    monkeypatch.setattr(catalog_module, "MAX_LINKS", 3)
    assert len(scene.catalog.chain(links[2])) == 3
    with pytest.raises(ChainBroken, match=f"chain of {links[3].id} has more than 3 links; take a full"):
        scene.catalog.chain(links[3])


# Manifests that somebody has touched


def test_the_manifest_of_another_backup_or_instance_is_refused_and_named(scene: Scene) -> None:
    first, second = store(scene.catalog, manifest(1)), store(scene.catalog, manifest(2))
    theirs = store(scene.catalog, manifest(1, instance_id=OTHER))
    for stranger in (second, theirs):
        scene.overwrite(stranger.manifest, under=first)
        wanted = f"{first.location}/manifest.json is the manifest of {stranger.manifest.instance_id}/{stranger.id}"
        with pytest.raises(Corrupt, match=wanted):
            scene.catalog.get(first.id)


def test_a_manifest_of_a_newer_format_is_refused(scene: Scene) -> None:
    stored = store(scene.catalog, manifest(1))
    path = scene.folder(stored) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    with pytest.raises(Corrupt, match=f"{stored.location}/manifest.json: .*format 2, .*; use a newer guestagent"):
        scene.catalog.get(stored.id)


def test_any_bit_flipped_in_a_parents_manifest_is_noticed_by_its_child(scene: Scene) -> None:
    base, child = chain(scene.catalog, 2)
    path = scene.folder(base) / "manifest.json"
    whole = path.read_bytes()
    for bit in range(0, len(whole) * 8, 11):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises((Corrupt, ChainBroken), match=f"{base.id}"):
            scene.catalog.chain(child)


def test_a_bit_flipped_in_a_tips_manifest_is_noticed_or_changes_no_byte_that_is_restored(scene: Scene) -> None:
    base, tip = chain(scene.catalog, 2)
    path = scene.folder(tip) / "manifest.json"
    whole = path.read_bytes()
    bits = range(0, len(whole) * 8, 11)
    passed = []
    for bit in bits:
        path.write_bytes(flipped(whole, bit))
        with suppress(Corrupt, ChainBroken):
            passed.append(read_whole(scene, tip))
    for found in passed:
        assert found.parent is not None
        assert (found.parent.id, found.parent.checksum) == (base.id, base.checksum)
        assert (found.segments, found.stream.format) == (tip.manifest.segments, "mbstream")
        assert (found.engine, found.compression, found.lsn.begin) == ("mariabackup", "none", base.manifest.lsn.end)
    assert len(passed) < len(bits) / 2


def read_whole(scene: Scene, tip: Backup) -> Manifest:
    """The tip's manifest as it is now, once its chain was found good and every segment is what it says."""
    found = scene.catalog.chain(scene.catalog.get(tip.id)).tip
    for segment in found.manifest.segments:
        scene.catalog.fetch(found, segment)
    return found.manifest


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


# Publishing


def test_an_id_that_is_taken_is_refused_and_what_is_there_stays(scene: Scene) -> None:
    stored = store(scene.catalog, manifest(1))
    with pytest.raises(Refused, match=f"backup {number(1)} exists already; use another id") as refused:
        scene.catalog.publish(manifest(1, name="another"))
    assert isinstance(refused.value.__cause__, ObjectExists)
    assert scene.catalog.get(number(1)) == stored


def test_a_manifest_that_nobody_could_read_is_not_published(scene: Scene) -> None:
    with pytest.raises(Corrupt, match="LSNs are out of order"):
        scene.catalog.publish(manifest(1, lsn=replace(manifest(1).lsn, last=Lsn(1))))
    assert scene.names() == []


def test_a_manifest_that_the_store_refuses_is_not_published(scene: Scene) -> None:
    with pytest.raises(StorageError, match="503 slow down; wait"):
        scene.seen(lambda inner: Refuses(inner, "put_new")).publish(manifest(1))
    assert scene.names() == []


def test_a_manifest_whose_answer_got_lost_counts_as_published(scene: Scene) -> None:
    stored = scene.seen(LosesAnswers).publish(manifest(1))
    assert scene.catalog.get(number(1)) == stored


class Keeps(Through):
    """Confirms the put of a new object, and keeps what ``instead`` makes of it."""

    instead: Callable[[bytes], bytes | None]

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        kept = type(self).instead(bytes(body))
        if kept is not None:
            super().put_new(key, kept)


class Nothing(Keeps):
    instead = staticmethod(lambda _: None)


class Half(Keeps):
    instead = staticmethod(lambda body: body[: len(body) // 2])


class Another(Keeps):
    instead = staticmethod(lambda body: body.replace(b"backup 1", b"backup 2"))


class Longer(Keeps):
    instead = staticmethod(lambda body: body + b" ")


@pytest.mark.parametrize(
    ("wrap", "why"),
    [
        (Nothing, "manifest.json is missing; the store lost an upload that it had confirmed; try again"),
        (Half, r"manifest.json should have \d+ bytes that were put there, and has \d+ others; the store lost"),
        (Another, r"manifest.json should have \d+ bytes that were put there, and has \d+ others; the store lost"),
        (Longer, r"manifest.json in file://.* is longer than \d+ bytes"),
    ],
)
def test_a_manifest_is_published_once_the_store_gives_it_back(scene: Scene, wrap: Wrap, why: str) -> None:
    with pytest.raises(Corrupt, match=f"{number(1)}/{why}"):
        store(scene.seen(wrap), manifest(1))


class MisreadsOnce(Through):
    """Gives half of the first object that it is asked for."""

    misread = False

    def get(self, key: str, *, limit: int) -> bytes:
        body = super().get(key, limit=limit)
        if self.misread:
            return body
        self.misread = True
        return body[: len(body) // 2]


def test_an_answer_that_is_damaged_fails_no_publishing(scene: Scene) -> None:
    stored = store(scene.seen(MisreadsOnce), manifest(1))
    assert scene.catalog.get(number(1)) == stored


def test_a_manifest_whose_answer_got_lost_with_the_store_is_a_failure(scene: Scene) -> None:
    lost = scene.seen(lambda inner: Refuses(LosesAnswers(inner), "get"))
    with pytest.raises(StorageError, match="connection reset by peer"):
        lost.publish(manifest(1))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), r"00000001 should have \d+ bytes and is missing; the store lost an upload"),
        (lambda path: path.write_bytes(b"short"), r"00000001 should have \d+ bytes and has 5"),
    ],
)
def test_what_is_stored_is_held_against_the_manifest(scene: Scene, damage: Callable[[Path], None], why: str) -> None:
    stored = store(scene.catalog, manifest(1))
    scene.catalog.check_stored(stored.manifest)
    damage(scene.folder(stored) / "data" / "00000001")
    with pytest.raises(Corrupt, match=f"{stored.location}/data/{why}"):
        scene.catalog.check_stored(stored.manifest)


# Reading data


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "is missing; the backup cannot be restored"),
        (lambda path: path.write_bytes(flipped(path.read_bytes(), 77)), "is not what the manifest promises"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is not what the manifest promises"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is longer than"),
        (lambda path: shutil.copy(path.with_name("00000000"), path), "is not what the manifest promises"),
    ],
    ids=["missing", "flipped", "short", "long", "swapped"],
)
def test_a_segment_that_is_not_the_manifests_is_named(scene: Scene, damage: Callable[[Path], None], why: str) -> None:
    stored = store(scene.catalog, manifest(1))
    damage(scene.folder(stored) / "data" / "00000001")
    with pytest.raises(Corrupt, match=f"data/00000001.*{why}") as refused:
        scene.catalog.fetch(stored, stored.manifest.segments[1])
    assert f"{stored.id}" in refused.value.what
    assert scene.catalog.fetch(stored, stored.manifest.segments[2]) == content(stored.id, 2)


def test_a_segment_that_is_read_wrong_once_is_fetched_again(scene: Scene) -> None:
    stored = store(scene.catalog, manifest(1))
    for wrong in (lambda body: flipped(body, 77), lambda body: body[:-1]):
        once = scene.seen(lambda inner, wrong=wrong: Garbles(inner, "00000001", {1}, how=wrong))  # type: ignore[misc]
        assert once.fetch(stored, stored.manifest.segments[1]) == content(stored.id, 1)
        always = scene.seen(lambda inner, wrong=wrong: Garbles(inner, "00000001", how=wrong))  # type: ignore[misc]
        with pytest.raises(Corrupt, match=f"{stored.location}/data/00000001 is not what the manifest promises"):
            always.fetch(stored, stored.manifest.segments[1])


def test_a_get_that_breaks_off_is_retried_and_gives_each_byte_once() -> None:
    made = manifest(1)
    body = content(made.id, 2)
    broken = Reply(body=body, cut_at=len(body) * 6 // 10, reset=True)
    with ScriptedS3(broken, Reply(body=body, cut_at=7), Reply(body=body)) as server:
        settings: S3Settings = server.settings()
        catalog = Catalog("s3://bucket", instance=GUEST, open_storage=lambda root: open_storage(root, s3=settings))
        with catalog:
            found = catalog.fetch(Backup(made, catalog.location(GUEST, made.id), ""), made.segments[2])
    assert found == body
    assert len(server.asked) == 3


# Deleting


def test_a_delete_begins_with_the_manifest_and_leaves_nothing(scene: Scene) -> None:
    stored, other = store(scene.catalog, manifest(1)), store(scene.catalog, manifest(2))
    deleted: list[str] = []
    scene.seen(lambda inner: Acts(inner, lambda _, key: deleted.append(key))).delete(stored)
    assert deleted == [
        f"guest1/{stored.id}/{name}" for name in ("manifest.json", *(f"data/0000000{n}" for n in range(3)))
    ]
    assert scene.catalog.backups() == [other]
    assert len(scene.names()) == 4


def test_a_delete_removes_what_the_manifest_names_whatever_a_listing_shows(scene: Scene) -> None:
    stored, other = store(scene.catalog, manifest(1)), store(scene.catalog, manifest(2))
    stray = scene.folder(stored) / "data" / "00000007"
    stray.write_bytes(b"of no manifest")
    scene.seen(ListsNothing).delete(stored)
    assert [name for name in scene.names() if other.id not in name] == [str(stray.relative_to(scene.root))]
    scene.catalog.delete(stored)
    assert len(scene.names()) == 4


def test_only_what_has_no_manifest_is_discarded(scene: Scene) -> None:
    stored = store(scene.catalog, manifest(1))
    with pytest.raises(Refused, match=f"{stored.location} is whole and no leftover; use `backup delete`"):
        scene.catalog.discard(stored.location)
    assert len(scene.names()) == 4
    (scene.folder(stored) / "manifest.json").unlink()
    theirs = store(scene.catalog, manifest(1, instance_id=OTHER))
    scene.catalog.discard(stored.location)
    assert scene.catalog.backups() == [theirs]
    assert len(scene.names()) == 4


def lost(folder: Path) -> None:
    (folder / "data" / "00000001").unlink()


def all_lost(folder: Path) -> None:
    shutil.rmtree(folder / "data")


def shortened(folder: Path) -> None:
    (folder / "data" / "00000002").write_bytes(b"segment")


def cut(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [lost, all_lost, shortened, cut])
def test_a_manifest_alone_makes_no_backup_that_stands(scene: Scene, damage: Callable[[Path], None]) -> None:
    stored, other = store(scene.catalog, manifest(1)), store(scene.catalog, manifest(2))
    assert scene.catalog.stands(stored.location)
    damage(scene.folder(stored))
    assert not scene.catalog.stands(stored.location)
    done: list[str] = []
    scene.seen(lambda inner: Acts(inner, lambda _, key: done.append(key))).discard(stored.location)
    assert done[0] == f"guest1/{number(1)}/manifest.json"
    assert {name.split("/")[1] for name in scene.names()} == {other.id}
    assert not scene.catalog.stands(stored.location)


def test_a_backup_stands_although_one_answer_says_that_it_does_not(scene: Scene) -> None:
    stored = store(scene.catalog, manifest(1))
    assert scene.seen(MisreadsOnce).stands(stored.location)
    assert scene.seen(Lags).stands(stored.location)


class Lags(Through):
    """Lists nothing yet."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(())


def test_what_nobody_can_ask_is_not_said_to_be_ruined(scene: Scene) -> None:
    stored = store(scene.catalog, manifest(1))
    for method in ("get", "list"):
        refuses = scene.seen(lambda inner, method=method: Refuses(inner, method))  # type: ignore[misc]
        with pytest.raises(StorageError, match="503 slow down"):
            refuses.discard(stored.location)
    assert scene.catalog.get(number(1)) == stored


def test_what_lies_at_a_place_whatever_it_says(scene: Scene) -> None:
    stored, other = store(scene.catalog, manifest(1)), store(scene.catalog, manifest(2))
    (scene.folder(stored) / "manifest.json").unlink()
    found = scene.catalog.remains(stored.location)
    assert (found.instance_id, found.id, found.objects) == (GUEST, stored.id, 3)
    assert found.size == stored.manifest.stored_size
    assert found.modified is not None
    newest = max(path.stat().st_mtime for path in (scene.folder(stored) / "data").iterdir())
    assert found.modified.timestamp() == pytest.approx(newest, abs=0.001)
    assert scene.catalog.remains(other.location).objects == 4
    shutil.rmtree(scene.folder(stored))
    nothing = scene.catalog.remains(stored.location)
    assert (nothing.objects, nothing.size, nothing.modified) == (0, 0, None)


# Asking


def test_a_probe_says_the_url_and_leaves_nothing(scene: Scene) -> None:
    assert scene.catalog.probe(GUEST) == scene.url
    assert scene.names() == []


class Forgets(Through):
    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        super().put(key, b"something else"[: len(body)])


class Hides(Through):
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(())


@pytest.mark.parametrize("wrap", [Forgets, Hides])
def test_a_store_that_does_not_give_back_what_was_put_is_found_out(scene: Scene, wrap: Wrap) -> None:
    with pytest.raises(StorageError, match="does not give back what was put; use a consistent store"):
        scene.seen(wrap).probe(GUEST)
    assert scene.names() == []
