"""The sweep: what died is found and removed, and nothing that is, or may be, somebody's."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from guestagent.errors import GuestagentError, NotFound, StorageDenied, StorageError
from guestagent.manifest import digest
from guestagent.model import BackupId, InstanceId
from guestagent.operations.sweep import DENIED, sweep_own, unfinished
from guestagent.progress import Watch
from tests.fakes.backups import GUEST, content, manifest, number, store
from tests.fakes.bench import PATIENCE, SECRET, Bench, new_id
from tests.fakes.stores import Acts, Refuses, Through


def half(bench: Bench, wanted: BackupId, *, instance: InstanceId = GUEST, otherwise: Exception | None = None) -> str:
    """Segments without a manifest; gives their location, or fails after it has put them there."""
    with bench.catalog() as catalog:
        for index in range(2):
            body = content(wanted, index)
            catalog.put_segment(instance, wanted, index, body, digest(body))
        if otherwise:
            raise otherwise
        return catalog.location(instance, wanted)


def mark(bench: Bench, name: str, text: str) -> Path:
    path = bench.state / "unfinished" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_mark_is_there_before_the_first_object_and_gone_after_the_manifest(bench: Bench) -> None:
    location = bench.catalog().location(GUEST, number(1))
    with unfinished(bench.host(), location):
        path = bench.state / "unfinished" / number(1)
        assert path.read_text() == location
        assert path.stat().st_mode & 0o777 == 0o600
        store(bench.catalog(), manifest(1))
    assert not path.exists()
    assert len(bench.catalog().backups()) == 1


def test_after_a_failure_the_data_are_gone_and_the_mark_stays_for_what_may_come_late(bench: Bench) -> None:
    with pytest.raises(NotADirectoryError), unfinished(bench.host(), bench.catalog().location(GUEST, number(1))):
        half(bench, number(1), otherwise=NotADirectoryError())
    assert bench.objects() == {}
    half(bench, number(1))
    assert sweep_own(bench.host()) == [number(1)]
    assert bench.objects() == {}
    assert sweep_own(bench.host()) == []


def test_the_failure_is_what_is_raised_although_nothing_can_be_removed(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    location = half(bench, number(1))
    bench.wrap = lambda inner: Refuses(inner, "delete")
    with pytest.raises(ZeroDivisionError), unfinished(bench.host(), location):
        raise ZeroDivisionError
    assert f"data at {location} stays until the next sweep: 503 slow down" in caplog.text
    assert sweep_own(bench.host()) == []
    bench.wrap = lambda inner: inner
    assert sweep_own(bench.host()) == [number(1)]
    assert bench.objects() == {}


def test_what_may_be_read_and_not_deleted_is_reported_once_and_left_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for index in (1, 2):
        mark(bench, number(index), half(bench, number(index)))
    tried: list[str] = []
    no = StorageDenied("no")
    bench.wrap = lambda inner: Acts(Refuses(inner, "delete", error=no), lambda _, key: tried.append(key))
    assert sweep_own(bench.host()) == []
    aside = bench.state / "unfinished" / f"{number(1)}{DENIED}"
    assert f"/{number(1)} is not ours to delete, and not tried again: no; then remove {aside}" in caplog.text
    assert aside.exists()
    assert tried
    tried.clear()
    caplog.clear()
    mark(bench, number(3), half(bench, number(3)))
    assert sweep_own(bench.host()) == []
    assert not [key for key in tried if number(3) not in key]
    assert number(1) not in caplog.text
    bench.wrap = lambda inner: inner
    for path in (bench.state / "unfinished").iterdir():
        path.rename(path.with_suffix(""))
    assert set(sweep_own(bench.host())) == {number(1), number(2), number(3)}
    assert bench.objects() == {}


def test_credentials_that_may_not_even_read_may_be_stale_and_are_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    location = half(bench, number(1))
    bench.wrap = Stale
    with pytest.raises(ZeroDivisionError), unfinished(bench.host(), location):
        raise ZeroDivisionError
    assert f"data at {location} stays until the next sweep: expired" in caplog.text
    bench.wrap = lambda inner: inner
    assert sweep_own(bench.host()) == [number(1)]


class Stale(Through):
    """Denies whatever is asked."""

    def size(self, key: str) -> int:
        raise StorageDenied("expired")


def test_a_mark_whose_backup_has_a_manifest_goes_and_the_backup_stays(bench: Bench) -> None:
    with bench.catalog() as catalog:
        stored = store(catalog, manifest(1))
    path = mark(bench, stored.id, stored.location)
    assert sweep_own(bench.host()) == []
    assert not path.exists()
    assert bench.catalog().backups() == [stored]
    assert len(bench.objects()) == 4


class Late(Through):
    """Fails to put a manifest, as far as anybody knows; ``arrives`` puts it after all."""

    kept: tuple[str, bytes] | None = None

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        type(self).kept = key, bytes(body)
        raise StorageError("the connection was closed")

    @classmethod
    def arrives(cls, bench: Bench) -> None:
        assert cls.kept is not None
        path = bench.store / cls.kept[0]
        path.parent.mkdir(parents=True)
        path.write_bytes(cls.kept[1])


def test_a_manifest_that_comes_after_its_data_were_discarded_goes_too(bench: Bench) -> None:
    wanted = new_id()
    bench.wrap = Late
    with pytest.raises(StorageError, match="the connection was closed"):
        bench.backup(id=wanted)
    assert bench.objects() == {}
    bench.wrap = lambda inner: inner
    Late.arrives(bench)
    assert bench.catalog().backups(), "it looks like a backup"
    assert sweep_own(bench.host()) == [wanted]
    assert bench.objects() == {}
    assert not list((bench.state / "unfinished").iterdir())


def test_it_is_no_parent_of_the_next_backup(bench: Bench) -> None:
    bench.wrap = Late
    with pytest.raises(StorageError):
        bench.backup()
    bench.wrap = lambda inner: inner
    Late.arrives(bench)
    with pytest.raises(NotFound, match="no backup of this server to continue; take a full backup first"):
        bench.backup("latest")
    assert bench.objects() == {}


def test_a_manifest_that_was_cut_goes_with_its_data(bench: Bench) -> None:
    with bench.catalog() as catalog:
        stored = store(catalog, manifest(1))
    mark(bench, stored.id, stored.location)
    path = bench.object(stored, "manifest.json")
    path.write_bytes(path.read_bytes()[:100])
    assert sweep_own(bench.host()) == [stored.id]
    assert bench.objects() == {}


def test_what_has_no_mark_is_somebody_elses(bench: Bench) -> None:
    half(bench, number(1))
    half(bench, number(2), instance=InstanceId("guest2"))
    before = bench.objects()
    assert sweep_own(bench.host()) == []
    assert bench.objects() == before


def test_a_mark_leads_to_where_the_data_were_stored_whatever_is_configured_now(bench: Bench) -> None:
    location = half(bench, number(1))
    mark(bench, number(1), location)
    bench.instance = InstanceId("guest2")
    old, bench.store = bench.store, bench.top / "other"
    assert sweep_own(bench.host()) == [number(1)]
    assert not [path for path in old.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("garbage", "", "not a backup's location"),
        (number(2), "file:///srv/guest1", "not a backup id"),
        (number(2), f"s3://bucket/guest1/{number(2)}", "is another kind of store"),
        (number(2), f"file:///proc/1/mem/guest1/{number(2)}/..", "not a backup id"),
    ],
)
def test_a_mark_that_leads_nowhere_is_reported_and_keeps_no_other_from_being_swept(
    bench: Bench, caplog: pytest.LogCaptureFixture, name: str, text: str, why: str
) -> None:
    path = mark(bench, name, text)
    mark(bench, number(3), half(bench, number(3)))
    assert sweep_own(bench.host()) == [number(3)]
    assert f"cannot sweep what {path} stands for: " in caplog.text
    assert why in caplog.text
    assert path.exists()
    bench.backup()


def test_a_mark_that_is_no_text_or_no_file(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    mark(bench, number(1), "").write_bytes(b"\xff")
    (bench.state / "unfinished" / number(2)).mkdir()
    assert sweep_own(bench.host()) == []
    assert caplog.text.count("cannot sweep what") == 2


def test_a_mark_that_was_never_finished_goes(bench: Bench) -> None:
    path = mark(bench, f"{number(1)}.new", "file:///s")
    assert sweep_own(bench.host()) == []
    assert not path.exists()


def test_a_store_that_does_not_answer_leaves_the_mark(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    path = mark(bench, number(1), half(bench, number(1)))
    bench.wrap = lambda inner: Refuses(inner, "list")
    assert sweep_own(bench.host()) == []
    assert path.exists()
    assert "503 slow down" in caplog.text


def test_a_mark_that_cannot_be_removed_fails_no_backup(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.unlink

    def stuck(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "unfinished":
            raise OSError(30, "read-only file system")
        whole(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stuck)
    taken = bench.backup()
    assert "cannot remove" in caplog.text
    monkeypatch.setattr(Path, "unlink", whole)
    assert sweep_own(bench.host()) == []
    assert bench.catalog().backups() == [taken]


def test_scratch_of_the_dead_goes_with_the_secrets_in_it(bench: Bench) -> None:
    dead = bench.state / "scratch" / "job-dead"
    dead.mkdir(parents=True)
    (dead / "client.cnf").write_text(SECRET)
    sweep_own(bench.host())
    bench.check_scratch()


def test_a_mark_that_cannot_be_written_stops_the_backup(bench: Bench) -> None:
    bench.state.mkdir()
    (bench.state / "unfinished").write_text("in the way")
    with pytest.raises(GuestagentError, match=f"cannot write to state_dir {bench.state}"):
        unfinished(bench.host(), bench.catalog().location(GUEST, number(1))).__enter__()


@pytest.mark.parametrize("suffix", ["00000000", "00000001", "manifest.json"])
def test_a_backup_that_is_killed_is_swept_by_the_next_one(bench: Bench, suffix: str) -> None:
    kept = bench.backup()
    wanted = new_id()
    killed = bench.told_by_another(f"""
bench.wrap = lambda inner: Acts(inner, lambda verb, key: die() if key.endswith({suffix!r}) else None)
bench.backup(id={wanted!r})
""")
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    assert (bench.state / "unfinished" / wanted).exists()
    assert list(bench.state.glob("scratch/*"))
    taken = bench.backup(kept)
    assert {name.split("/")[1] for name in bench.objects()} == {kept.id, taken.id}
    assert not list((bench.state / "unfinished").iterdir())
    bench.check_scratch()
    bench.check_no_child()
    bench.check_no_secret()
    assert len(bench.catalog().chain(taken)) == 2


def test_a_store_that_is_down_is_the_failure(bench: Bench) -> None:
    mark(bench, number(1), half(bench, number(1)))
    bench.wrap = lambda inner: Refuses(inner, "put", error=StorageError("the store is down"))
    with pytest.raises(StorageError, match="the store is down"):
        bench.backup(watch=Watch())
