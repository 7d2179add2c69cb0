"""The policy of docs/permissions.rst: enough for every story, nothing outside the prefix, and what delete lacks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from guestagent.errors import ObjectMissing, StorageDenied
from guestagent.operations.sweep import DENIED
from guestagent.storage import S3Settings, Storage, open_storage
from tests.integration.conftest import MakeGuest
from tests.integration.serving import SMALL_DATA
from tests.servers.guest import Guest
from tests.servers.moto_s3 import ACCESS_KEY, SECRET_KEY, make_bucket, moto_s3
from tests.servers.s3_gate import S3Gate, policy_of

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "permissions.rst"
PREFIX = "fleet/a"
NOT_FOUND, STORE = 4, 8
"""Exit statuses."""
NO_MANIFEST = {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::*/manifest.json"}

ANYTHING = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}

_number = itertools.count(1)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_s3() as url:
        yield url


@pytest.fixture
def bucket(moto: str) -> str:
    name = f"bucket{next(_number)}"
    make_bucket(moto, name)
    return name


@pytest.fixture
def gate(moto: str, bucket: str) -> Iterator[S3Gate]:
    """Keeps the page's policy."""
    policy = policy_of(PAGE.read_text(), bucket=bucket, prefix=PREFIX, instance="guest1")
    with S3Gate(int(moto.rpartition(":")[2]), policy) as kept:
        yield kept


def without_delete(gate: S3Gate, *more: dict[str, Any]) -> None:
    """As the page says: leave out one statement."""
    policy = copy.deepcopy(gate.policy)
    policy["Statement"] = [one for one in policy["Statement"] if one.get("Sid") != "DeleteOwn"] + list(more)
    gate.policy = policy


def settings(url: str) -> str:
    return f"[s3]\nendpoint_url = {url}\naccess_key_id = {ACCESS_KEY}\nsecret_access_key = {SECRET_KEY}\n"


@pytest.fixture
def guest(make_guest: MakeGuest, bucket: str, gate: S3Gate) -> Guest:
    made = make_guest(url=f"s3://{bucket}/{PREFIX}", settings=settings(gate.url))
    made.server.script(SMALL_DATA)
    return made


def stories(guest: Guest, place: Path) -> list[str]:
    """Backup, list, verify and restore; gives the ids of a chain."""
    ids = [str(guest.json("backup", "create", "full")["id"])]
    ids.append(str(guest.json("backup", "create", "incremental", "--parent", "latest")["id"]))
    assert [row["id"] for row in guest.json("backup", "list")] == ids
    assert guest.command("backup", "verify", ids[1]).returncode == 0
    target = place / "restored"
    done = guest.command("restore", ids[1], "--datadir", str(target), "--no-start")
    assert done.returncode == 0, done.stderr
    assert (target / "ibdata1").exists()
    return ids


def test_with_delete(guest: Guest, gate: S3Gate, place: Path) -> None:
    ids = stories(guest, place)
    assert gate.allowed == {"s3:ListBucket", "s3:GetObject", "s3:PutObject"}
    found = {row["check"]: row for row in guest.json("doctor")}
    assert [found[name]["ok"] for name in ("store", "clock", "conditional-put")] == ["yes"] * 3
    assert guest.command("backup", "delete", ids[0], "--cascade").returncode == 0
    assert guest.json("backup", "list") == []
    everything = {action for one in gate.policy["Statement"] for action in _listed(one["Action"])}
    assert gate.allowed == everything


def _listed(actions: str | list[str]) -> list[str]:
    return [actions] if isinstance(actions, str) else actions


def test_without_delete(guest: Guest, gate: S3Gate, place: Path) -> None:
    without_delete(gate)
    ids = stories(guest, place)
    done = guest.command("backup", "delete", ids[1])
    assert done.returncode == STORE
    assert f"cannot delete guest1/{ids[1]}/manifest.json" in done.stderr
    assert "access denied" in done.stderr
    assert "stays until the next sweep" not in done.stderr
    assert guest.command("backup", "verify", ids[1]).returncode == 0
    assert [row["id"] for row in guest.json("backup", "list")] == ids
    again = guest.command("backup", "delete", ids[1])
    assert again.returncode == STORE
    assert [path.name for path in (guest.state / "unfinished").iterdir()] == [ids[1]]
    assert guest.command("backup", "create", "another").returncode == 0
    assert list((guest.state / "unfinished").iterdir()) == []


def test_what_cannot_be_removed_is_reported_once_and_the_sweep_goes_on(guest: Guest, gate: S3Gate) -> None:
    kept = copy.deepcopy(gate.policy)
    without_delete(gate, NO_MANIFEST)
    failed = guest.command("backup", "create", "never")
    assert failed.returncode == STORE
    told = "is not ours to delete, and not tried again"
    assert failed.stderr.count(told) == 1
    (aside,) = (guest.state / "unfinished").iterdir()
    assert aside.suffix == DENIED
    assert str(aside) in failed.stderr
    tried = len(gate.denied)

    gate.policy = kept
    without_delete(gate)
    for name in ("first", "second"):
        done = guest.command("backup", "create", name)
        assert done.returncode == 0, done.stderr
        assert told not in done.stderr
    assert all(wish.action != "s3:DeleteObject" for wish in gate.denied[tried:])

    gate.policy = kept
    aside.rename(aside.with_suffix(""))
    assert guest.command("backup", "create", "third").returncode == 0
    assert list((guest.state / "unfinished").iterdir()) == []
    with closing(store(guest.url, gate)) as below:
        assert set(below.folders("guest1/")) == {row["id"] for row in guest.json("backup", "list")}


def store(url: str, gate: S3Gate) -> Storage:
    """A store as the guest's credentials have it."""
    access = S3Settings(endpoint_url=gate.url, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)
    return open_storage(url, s3=access)


def test_nothing_outside_the_prefix(moto: str, bucket: str, gate: S3Gate) -> None:
    with closing(store(f"s3://{bucket}/{PREFIX}", gate)) as own, S3Gate(gate.behind, ANYTHING) as door:
        with closing(store(f"s3://{bucket}/{PREFIX}", door)) as theirs:
            theirs.put("guest2/a", b"x")
            theirs.put("guest11/a", b"x")
        for attempt in (
            lambda: own.get("guest2/a", limit=1),
            lambda: own.size("guest2/a"),
            lambda: own.put("guest2/b", b"y"),
            lambda: own.put_new("guest2/b", b"y"),
            lambda: own.delete(["guest2/a"]),
            lambda: list(own.list("guest2/")),
            lambda: list(own.list("guest1")),
            lambda: list(own.folders()),
            lambda: own.get("guest11/a", limit=1),
            lambda: own.get("guest2/not-there", limit=1),
        ):
            with pytest.raises(StorageDenied):
                attempt()
        with pytest.raises(ObjectMissing):
            own.get("guest1/not-there", limit=1)
        with pytest.raises(ObjectMissing):
            own.size("guest1/not-there")


@pytest.mark.parametrize("locked", [False, True], ids=["versioned", "locked"])
def test_a_bucket_that_keeps_versions(guest: Guest, gate: S3Gate, moto: str, bucket: str, locked: bool) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=moto,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    if locked:
        rule: Any = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}}
        client.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=rule)
    wanted = str(guest.json("backup", "create", "kept")["id"])
    manifest = f"{PREFIX}/guest1/{wanted}/manifest.json"
    assert guest.command("backup", "delete", wanted).returncode == 0
    assert guest.json("backup", "list") == []
    assert guest.command("backup", "delete", wanted).returncode == NOT_FOUND
    assert list((guest.state / "unfinished").iterdir()) == []
    (version,) = client.list_object_versions(Bucket=bucket, Prefix=manifest)["Versions"]
    if locked:
        with pytest.raises(ClientError, match="AccessDenied"):
            client.delete_object(Bucket=bucket, Key=manifest, VersionId=version["VersionId"])

    for marker in client.list_object_versions(Bucket=bucket, Prefix=f"{PREFIX}/guest1/{wanted}")["DeleteMarkers"]:
        client.delete_object(Bucket=bucket, Key=marker["Key"], VersionId=marker["VersionId"])
    client.close()
    assert guest.command("backup", "verify", wanted).returncode == 0
