"""From a job's record to what it asks for, and plain values back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Corrupt, NotFound, Refused, UsageError
from guestagent.jobs.record import Job, Kind
from guestagent.jobs.story import restore_request, tell
from guestagent.manifest import Backup
from guestagent.operations.plan import RestoreRequest
from guestagent.progress import Watch
from tests.fakes.bench import Bench, data_in, new_id
from tests.unit.jobs_scene import asked


def told(bench: Bench, job: Job) -> dict[str, Any]:
    """The job's result, which must survive its record."""
    outcome = tell(bench.host(), job, Watch())
    assert json.loads(json.dumps(outcome)) == outcome
    return outcome


def stored(bench: Bench, wanted: str) -> Backup:
    found = next(one for one in bench.catalog().backups() if one.id == wanted)
    assert isinstance(found, Backup)
    return found


def test_a_backup_has_its_jobs_id(bench: Bench) -> None:
    job = asked(Kind.BACKUP, request={"name": "nightly", "description": "of an evening"})
    outcome = told(bench, job)
    assert outcome == stored(bench, job.id).properties()
    assert (outcome["id"], outcome["name"], outcome["description"]) == (job.id, "nightly", "of an evening")
    assert outcome["type"] == "full"


@pytest.mark.parametrize("parent", ["latest", "its id"])
def test_a_backup_on_a_parent_that_the_requester_knows(bench: Bench, parent: str) -> None:
    first = bench.backup()
    request = {"parent": first.id if parent == "its id" else parent, "parent_checksum": first.checksum.upper()}
    assert told(bench, asked(Kind.BACKUP, request=request))["parent_id"] == first.id


def test_a_parent_that_is_not_the_one_that_the_requester_knows(bench: Bench) -> None:
    first = bench.backup()
    job = asked(Kind.BACKUP, request={"parent": first.id, "parent_checksum": "0" * 64})
    with pytest.raises(Corrupt, match=rf"the manifest of {first.id} has checksum {first.checksum}, and the request"):
        tell(bench.host(), job, Watch())
    assert [one.id for one in bench.catalog().backups()] == [first.id]


def test_a_command_asks_for_less(bench: Bench) -> None:
    """What a requester cannot say need not be in the record."""
    job = Job(new_id(), Kind.BACKUP, {"name": "x", "description": "", "parent": None}, asked().created, "cli")
    assert told(bench, job)["type"] == "full"


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ({"source": "x"}, RestoreRequest("x")),
        (
            {
                "source": "x",
                "datadir": "/d",
                "replace": True,
                "start": False,
                "checksum": "c",
                "pristine": True,
            },
            RestoreRequest("x", Path("/d"), replace=True, start=False, checksum="c", pristine=True),
        ),
        ({"source": "x", "datadir": None, "replace": False, "start": True}, RestoreRequest("x", start=True)),
    ],
)
def test_the_restore_that_a_record_asks_for(request_: dict[str, Any], wanted: RestoreRequest) -> None:
    assert restore_request(request_) == wanted


def test_a_restore(bench: Bench, tmp_path: Path) -> None:
    (first, tree), target = bench.chain(1)[0], tmp_path / "target"
    request = {"source": first.location, "datadir": str(target), "checksum": first.checksum}
    outcome = told(bench, asked(Kind.RESTORE, request=request))
    assert data_in(target) == tree
    assert (outcome["backup_id"], outcome["datadir"], outcome["links"]) == (first.id, str(target), 1)


def test_a_restore_of_another_backup_than_the_requester_knows(bench: Bench, tmp_path: Path) -> None:
    first, target = bench.backup(), tmp_path / "target"
    job = asked(Kind.RESTORE, request={"source": first.id, "datadir": str(target), "checksum": "0" * 64})
    with pytest.raises(Corrupt, match="somebody has replaced it, or the request means another backup"):
        tell(bench.host(), job, Watch())
    assert not target.exists()


def test_a_verify(bench: Bench) -> None:
    (first, _), (second, _) = bench.chain(2)
    outcome = told(bench, asked(Kind.VERIFY, request={"backup_id": second.id}))
    assert outcome == {
        "links": [
            {
                "id": one.id,
                "name": "test",
                "type": kind,
                "segments": len(one.manifest.segments),
                "stored_size": one.manifest.stored_size,
                "verified": "whole",
            }
            for one, kind in ((first, "full"), (second, "incremental"))
        ]
    }


def test_a_delete(bench: Bench) -> None:
    (first, _), (second, _) = bench.chain(2)
    with pytest.raises(Refused, match="1 backups stand on"):
        tell(bench.host(), asked(Kind.DELETE, request={"backup_id": first.id}), Watch())
    outcome = told(bench, asked(Kind.DELETE, request={"backup_id": first.id, "cascade": True}))
    assert outcome == {"deleted": [second.properties(), first.properties()]}
    assert bench.objects() == {}


def test_a_delete_of_what_is_damaged(bench: Bench) -> None:
    backup = bench.backup()
    bench.object(backup, "manifest.json").write_text("{")
    outcome = told(bench, asked(Kind.DELETE, request={"backup_id": backup.id, "cascade": False, "damaged": True}))
    (shown,) = outcome["deleted"]
    assert (shown["id"], shown["status"]) == (backup.id, "FAILED")
    assert bench.objects() == {}


def test_what_is_not_there(bench: Bench) -> None:
    for kind in (Kind.VERIFY, Kind.DELETE):
        with pytest.raises(NotFound):
            tell(bench.host(), asked(kind), Watch())
        with pytest.raises(UsageError):
            tell(bench.host(), asked(kind, request={"backup_id": "../x"}), Watch())
