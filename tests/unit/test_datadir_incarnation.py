"""The agent's id in a datadir: the pure rule of lineage, and the file that carries it."""

from __future__ import annotations

import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import durable, incarnation
from guestagent.datadir.incarnation import FILE, MOST, Incarnation
from guestagent.errors import GuestagentError, Refused
from guestagent.model import BackupId, InstanceId

GUEST = InstanceId("guest1")
ELSEWHERE = InstanceId("guest2")
A, B, C = (BackupId(str(uuid.UUID(int=number))) for number in (1, 2, 3))


def many(count: int) -> list[BackupId]:
    return [BackupId(str(uuid.UUID(int=number))) for number in range(count)]


def test_a_fresh_life_has_an_id_of_its_own_and_no_past() -> None:
    one, other = incarnation.fresh(GUEST), incarnation.fresh(GUEST)
    assert uuid.UUID(one.id).version == 4
    assert one.id != other.id
    assert (one.instance_id, one.restored_from, one.history) == (GUEST, None, ())


def test_a_restored_life_has_passed_through_every_link_of_its_chain() -> None:
    life = incarnation.fresh(GUEST, chain=[A, B])
    assert life.restored_from == B
    assert life.passed_through(A)
    assert life.passed_through(B)
    assert not life.passed_through(C)


def test_a_backup_joins_the_past_once_and_the_id_stays() -> None:
    life = incarnation.fresh(GUEST, chain=[A])
    later = life.with_backup(B).with_backup(A)
    assert later.history == (B, A)
    assert (later.id, later.restored_from) == (life.id, A)
    assert life.history == (A,)


def test_only_the_newest_ids_are_kept() -> None:
    ids = many(MOST + 2)
    life = incarnation.fresh(GUEST, chain=ids[:-1])
    assert life.history == tuple(ids[1:-1])
    assert life.with_backup(ids[-1]).history == tuple(ids[2:])
    stored = Incarnation(life.id, GUEST, None, tuple(ids))
    assert Incarnation.from_bytes(stored.to_bytes()).history == tuple(ids[2:])


def test_a_parent_in_the_past_is_accepted() -> None:
    incarnation.check_parent(incarnation.fresh(GUEST, chain=[A, B]), A, instance_id=GUEST)
    incarnation.check_parent(incarnation.fresh(GUEST).with_backup(C), C, instance_id=GUEST)


@pytest.mark.parametrize(
    ("life", "reason"),
    [
        (None, "does not know its past"),
        (incarnation.fresh(ELSEWHERE, chain=[A]), f"copied from instance {ELSEWHERE}"),
        (incarnation.fresh(GUEST, chain=[B, C]), f"it was restored from {C}, or rolled back"),
        (incarnation.fresh(GUEST).with_backup(B), "it was created anew, or rolled back"),
    ],
)
def test_any_other_parent_is_refused_with_the_reason(life: Incarnation | None, reason: str) -> None:
    with pytest.raises(Refused, match=reason) as caught:
        incarnation.check_parent(life, A, instance_id=GUEST)
    assert f"no incremental on {A}" in caught.value.what
    assert caught.value.hint == "take a full backup"


def test_a_snapshot_that_was_rolled_back_does_not_know_the_backups_taken_after_it(tmp_path: Path) -> None:
    incarnation.write(tmp_path, incarnation.fresh(GUEST).with_backup(A))
    snapshot = (tmp_path / FILE).read_bytes()
    incarnation.write(tmp_path, incarnation.fresh(GUEST).with_backup(A).with_backup(B))
    (tmp_path / FILE).write_bytes(snapshot)
    rolled_back = incarnation.read(tmp_path)
    incarnation.check_parent(rolled_back, A, instance_id=GUEST)
    with pytest.raises(Refused):
        incarnation.check_parent(rolled_back, B, instance_id=GUEST)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert incarnation.read(tmp_path) is None
    for life in (incarnation.fresh(GUEST), incarnation.fresh(GUEST, chain=[A, B]).with_backup(C)):
        incarnation.write(tmp_path, life)
        assert incarnation.read(tmp_path) == life
    assert os.listdir(tmp_path) == [FILE]


def test_the_file_is_json_of_a_known_shape(tmp_path: Path) -> None:
    life = incarnation.fresh(GUEST, chain=[A])
    incarnation.write(tmp_path, life)
    assert json.loads((tmp_path / FILE).read_bytes()) == {
        "format": 1,
        "id": life.id,
        "instance_id": GUEST,
        "restored_from": A,
        "history": [A],
    }


@pytest.mark.parametrize("mask", [0, 0o077])
def test_the_file_is_for_its_owner_and_group_whatever_the_umask_and_leftovers(tmp_path: Path, mask: int) -> None:
    (tmp_path / (FILE + durable.FRESH)).write_text("left by a crash")
    before = os.umask(mask)
    try:
        incarnation.write(tmp_path, incarnation.fresh(GUEST))
    finally:
        os.umask(before)
    status = (tmp_path / FILE).stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_uid, status.st_gid) == (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
    assert os.listdir(tmp_path) == [FILE]


def test_a_datadir_that_is_not_there_has_no_incarnation_and_takes_none(tmp_path: Path) -> None:
    assert incarnation.read(tmp_path / "none") is None
    with pytest.raises(GuestagentError, match="cannot write"):
        incarnation.write(tmp_path / "none", incarnation.fresh(GUEST))


def document(**changes: Any) -> bytes:
    good = {"format": 1, "id": str(uuid.uuid4()), "instance_id": "guest1", "restored_from": None, "history": [A]}
    return json.dumps({**good, **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"{}",
        b"[" * 100_000,
        document(format=2),
        document(id="nonsense"),
        document(id=5),
        document(instance_id="../x"),
        document(instance_id=None),
        document(restored_from="x"),
        document(restored_from=7),
        document(history=A),
        document(history=["x"]),
        document(history=[None]),
    ],
)
def test_garbage_is_refused_and_never_taken_for_no_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(Refused, match="is damaged") as caught:
        incarnation.read(tmp_path)
    assert "take a full backup" in caught.value.hint


def test_a_link_or_a_directory_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(document())
    (tmp_path / FILE).symlink_to("elsewhere")
    with pytest.raises(GuestagentError, match="cannot read"):
        incarnation.read(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(GuestagentError, match="cannot read"):
        incarnation.read(tmp_path)
