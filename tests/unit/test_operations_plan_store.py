"""A plan looks whether all that it needs is there, objects and keys, and learns from the past how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import ConfigError, Corrupt, GuestagentError, StorageDenied
from guestagent.jobs.history import restores
from guestagent.jobs.record import Job, Kind, State
from guestagent.keys import KeyRing, KeySettings
from guestagent.keys.file import generate
from guestagent.manifest import Backup, Manifest
from guestagent.operations.outlook import NEWEST, Run, outlook
from guestagent.operations.plan import Plan, RestoreRequest, make_plan
from guestagent.storage import ObjectInfo
from tests.fakes.backups import chain, manifest, number, store
from tests.fakes.bench import BEFORE, Bench, data_in
from tests.fakes.stores import Refuses, Through

BEGUN = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


@pytest.fixture
def links(bench: Bench) -> list[Backup]:
    """A chain of three, of three objects each; they are no streams."""
    with bench.catalog() as catalog:
        return chain(catalog, 3)


def planned(bench: Bench, source: str) -> Plan:
    return make_plan(bench.host(), RestoreRequest(source, datadir=bench.top / "target"))


# Objects


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove, "is missing"),
        (shorten, "is not what the manifest promises: {less} bytes instead of {size}"),
        (lengthen, "is not what the manifest promises: {more} bytes instead of {size}"),
    ],
)
@pytest.mark.parametrize("link", [0, 1, 2])
def test_an_object_that_is_not_whole_is_named(
    bench: Bench, links: list[Backup], damage: Callable[[Path], None], words: str, link: int
) -> None:
    damage(bench.object(links[link], "data/00000001"))
    plan = planned(bench, links[2].id)
    (reason,) = plan.against
    size = links[link].manifest.segments[1].stored_size
    told = words.format(size=size, less=size - 1, more=size + 1)
    assert type(reason) is Corrupt
    assert reason.what == f"{links[link].location}/data/00000001 {told}"
    assert reason.hint == "the backup cannot be restored; use another"
    assert plan.properties()["objects_whole"] is False
    assert plan.properties()["refused"] == [str(reason)]


def test_of_several_objects_the_first_is_named_and_the_others_counted(bench: Bench, links: list[Backup]) -> None:
    for name in ("data/00000000", "data/00000001", "data/00000002"):
        remove(bench.object(links[0], name))
    shorten(bench.object(links[2], "data/00000002"))
    first, second = planned(bench, links[2].id).against
    assert first.what == f"{links[0].location}/data/00000000 is missing, and so are 2 more of that backup"
    assert second.what.startswith(f"{links[2].location}/data/00000002 is not what the manifest promises")


def test_backups_below_it_do_not_count(bench: Bench, links: list[Backup]) -> None:
    remove(bench.object(links[2], "data/00000001"))
    assert planned(bench, links[1].id).against == ()


class Lags(Through):
    """A listing that does not yet show the newest objects, and others of yesterday's size."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for found in self.inner.list(prefix):
            if not found.key.endswith("2"):
                yield replace(found, size=1) if found.key.endswith("1") else found


def test_a_listing_that_lags_is_not_believed(bench: Bench, links: list[Backup]) -> None:
    bench.wrap = Lags
    plan = planned(bench, links[2].id)
    assert (plan.against, plan.whole) == ((), True)
    remove(bench.object(links[1], "data/00000002"))
    (reason,) = planned(bench, links[2].id).against
    assert reason.what == f"{links[1].location}/data/00000002 is missing"


def test_a_store_that_lets_nobody_list(bench: Bench, links: list[Backup]) -> None:
    denied = StorageDenied("access denied")
    bench.wrap = lambda inner: Refuses(inner, "list", error=denied)
    plan = planned(bench, links[2].id)
    assert (plan.against, plan.properties()["objects_whole"]) == ((), None)
    bench.wrap = lambda inner: Refuses(inner, "list", suffix=f"{links[1].id}/data/", error=denied)
    remove(bench.object(links[0], "data/00000002"))
    plan = planned(bench, links[2].id)
    assert (len(plan.against), plan.whole) == (1, False)


class Listens(Through):
    """Remembers what was read."""

    seen: list[str]

    def get(self, key: str, *, limit: int) -> bytes:
        self.seen.append(key)
        return super().get(key, limit=limit)


@pytest.mark.parametrize("damage", [remove, shorten])
def test_a_restore_of_what_is_not_whole_ends_before_a_byte_of_it_moves(
    bench: Bench, damage: Callable[[Path], None]
) -> None:
    made = [backup for backup, _ in bench.chain(2)]
    damage(bench.object(made[1], "data/00000000"))
    Listens.seen = []
    bench.wrap = Listens
    before, calls = bench.runs("prepare"), bench.server.calls()
    with pytest.raises(Corrupt, match=f"{made[1].location}/data/00000000 is"):
        bench.restore(made[1], replace=True)
    assert not [key for key in Listens.seen if "/data/" in key]
    assert (bench.runs("prepare"), bench.server.calls()) == (before, calls)
    assert data_in(bench.datadir) == BEFORE


# Keys


def keys(bench: Bench, current: str, *old: str) -> KeyRing:
    for name in (current, *old):
        if not (bench.top / name).exists():
            generate(bench.top / name)
    return KeyRing(KeySettings(key_file=bench.top / current, old_key_files=tuple(bench.top / name for name in old)))


def seen(
    bench: Bench, source: Backup, past: tuple[Run, ...] = ()
) -> tuple[dict[str, Any], tuple[GuestagentError, ...]]:
    host = bench.host()
    plan = make_plan(host, RestoreRequest(source.id, datadir=bench.top / "target"))
    return outlook(host, plan.chain, past), plan.against


def test_the_keys_of_a_chain_and_whether_they_are_here(bench: Bench) -> None:
    bench.keys = keys(bench, "one.key")
    base = bench.backup()
    bench.keys = keys(bench, "two.key", "one.key")
    tip = bench.backup(base)
    one, two = (keys(bench, name).current for name in ("one.key", "two.key"))
    assert one is not None
    assert two is not None
    found, against = seen(bench, tip)
    assert (found["keys_needed"], found["keys_missing"], against) == (sorted([one.id, two.id]), [], ())

    bench.keys = keys(bench, "two.key")
    found, against = seen(bench, tip)
    assert (found["keys_needed"], found["keys_missing"]) == (sorted([one.id, two.id]), [one.id])
    (reason,) = against
    assert type(reason) is ConfigError
    assert str(reason) == (
        f"backup {base.id} is encrypted with key {one.id}, which is not here; "
        "name its file in [encryption] key_file or old_key_files"
    )
    with pytest.raises(ConfigError, match=f"encrypted with key {one.id}, which is not here"):
        bench.restore(tip, replace=True)
    assert data_in(bench.datadir) == BEFORE

    bench.keys = None
    found, against = seen(bench, tip)
    assert (len(found["keys_missing"]), len(against)) == (2, 2)


def test_a_chain_that_is_not_encrypted_needs_no_key(bench: Bench, links: list[Backup]) -> None:
    found, _ = seen(bench, links[2])
    assert (found["keys_needed"], found["keys_missing"]) == ([], [])


# Time


def test_restores_of_this_host_tell_how_long_it_takes(bench: Bench, links: list[Backup]) -> None:
    raw = sum(link.manifest.raw_size for link in links)
    found, _ = seen(bench, links[2], (Run(raw, 10.0),))
    assert (found["expected_seconds"], found["expected_from"]) == (10.0, "1 restore on this host")
    found, _ = seen(bench, links[2], (Run(raw, 10.0), Run(0, 99.0), Run(3 * raw, 18.0)))
    assert (found["expected_seconds"], found["expected_from"]) == (7.0, "2 restores on this host")


def test_only_the_newest_restores_count(bench: Bench, links: list[Backup]) -> None:
    raw = sum(link.manifest.raw_size for link in links)
    found, _ = seen(bench, links[2], (Run(raw, 9999.0), *[Run(raw, 3.0)] * NEWEST))
    assert (found["expected_seconds"], found["expected_from"]) == (3.0, f"{NEWEST} restores on this host")


def test_without_restores_the_backup_itself_tells(bench: Bench, links: list[Backup]) -> None:
    base = links[0].manifest
    assert (base.finished - base.started).total_seconds() == 30
    expected = round(30 * sum(link.manifest.raw_size for link in links) / base.raw_size, 1)
    found, _ = seen(bench, links[2])
    assert (found["expected_seconds"], found["expected_from"]) == (expected, "how long its full backup took")


def at_once(made: Manifest) -> Manifest:
    return replace(made, started=made.finished)


def of_nothing(made: Manifest) -> Manifest:
    return replace(made, segments=tuple(replace(segment, raw_size=0) for segment in made.segments))


@pytest.mark.parametrize("taken", [at_once, of_nothing])
def test_where_nothing_is_known_nothing_is_said(bench: Bench, taken: Callable[[Manifest], Manifest]) -> None:
    with bench.catalog() as catalog:
        made = store(catalog, taken(manifest(1)))
    found, _ = seen(bench, made)
    assert (found["expected_seconds"], found["expected_from"]) == (None, "nothing")


def job(kind: Kind, state: State, **result: Any) -> Job:
    return Job(
        number(1),
        kind,
        {},
        created=BEGUN,
        origin="cli",
        state=state,
        started=BEGUN,
        finished=BEGUN + timedelta(seconds=12.5),
        result=result,
    )


def test_what_the_jobs_of_the_past_tell() -> None:
    done = job(Kind.RESTORE, State.COMPLETED, raw_size=1000)
    others = [
        job(Kind.RESTORE, State.COMPLETED),
        job(Kind.RESTORE, State.COMPLETED, raw_size="1000"),
        job(Kind.RESTORE, State.FAILED, raw_size=1000),
        job(Kind.BACKUP, State.COMPLETED, raw_size=1000),
        replace(done, started=None),
        replace(done, finished=None),
    ]
    assert list(restores([done, *others, replace(done, result={"raw_size": 7})])) == [Run(1000, 12.5), Run(7, 12.5)]
