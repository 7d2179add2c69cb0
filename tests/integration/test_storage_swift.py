"""What only a real store shows: it refuses wrong signatures and wrong bytes, and keeps conditions and objects.

The contract itself runs over Swift in tests/test_storage_contract.py.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.exceptions import ClientError

from guestagent.errors import ObjectExists, ObjectMissing, StorageDenied, StorageError
from guestagent.storage import Storage, open_storage, s3
from tests.servers.swift import ACCESS_KEY, SECRET_KEY, Swift, shared_swift
from tests.servers.workplace import DISK

pytestmark = pytest.mark.integration

BODY = b"0123456789abcdef" * 4096
_number = itertools.count(1)


@pytest.fixture(scope="module")
def swift() -> Swift:
    return shared_swift()


@pytest.fixture
def bucket(swift: Swift) -> str:
    name = f"real{next(_number)}"
    swift.make_bucket(name)
    return name


@pytest.fixture
def store(swift: Swift, bucket: str) -> Storage:
    return open_storage(f"s3://{bucket}", s3=swift.settings())


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def refusals(store: Storage) -> list[str]:
    """What each kind of request is told, all of which must be denied."""
    told = []
    for ask in (
        lambda: store.put("key", BODY, sha256=digest(BODY)),
        lambda: store.put_new("new", BODY),
        lambda: store.get("key", limit=10**6),
        lambda: store.size("key"),
        lambda: list(store.list()),
        lambda: list(store.folders()),
        lambda: store.delete(["key"]),
    ):
        with pytest.raises(StorageDenied) as denied:
            ask()
        told.append(str(denied.value))
    return told


def test_a_wrong_secret_is_refused_for_every_request(swift: Swift, bucket: str, store: Storage) -> None:
    store.put("key", BODY)
    thief = open_storage(f"s3://{bucket}", s3=swift.settings(secret_access_key="a-wrong-secret"))
    told = refusals(thief)
    assert sum("secret_access_key" in text for text in told) == len(told) - 1  # a HEAD has no body to say why
    assert "a-wrong-secret" not in "".join(told)
    assert [info.key for info in store.list()] == ["key"]


def test_an_unknown_access_key_is_refused_for_every_request(swift: Swift, bucket: str, store: Storage) -> None:
    store.put("key", BODY)
    refusals(open_storage(f"s3://{bucket}", s3=swift.settings(access_key_id="test:nobody")))
    assert store.get("key", limit=10**6) == BODY


def test_a_wrong_digest_is_refused_and_nothing_is_stored(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_LONGEST_PAUSE", 0.01)
    store.put("kept", b"old")
    for key in ("kept", "key"):
        with pytest.raises(StorageError, match="XAmzContentSHA256Mismatch"):
            store.put(key, BODY, sha256=digest(b"other bytes"))
    assert store.get("kept", limit=10) == b"old"
    with pytest.raises(ObjectMissing):
        store.size("key")


def test_the_signature_covers_the_body(swift: Swift, bucket: str, store: Storage) -> None:
    """Without any checksum header the signature alone still refuses other bytes."""
    session = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1")
    config = Config(request_checksum_calculation="when_required")
    client = session.client("s3", endpoint_url=swift.endpoint_url, config=config)

    def corrupt(request: AWSPreparedRequest, **_: object) -> None:
        assert not [name for name in request.headers if "checksum" in name.lower()]
        request.body = b"X" + BODY[1:]

    client.meta.events.register("before-send.s3.PutObject", corrupt)
    with pytest.raises(ClientError, match="XAmzContentSHA256Mismatch"):
        client.put_object(Bucket=bucket, Key="key", Body=BODY)
    client.close()
    assert list(store.list()) == []


def test_an_old_stores_settings_work_too(swift: Swift, bucket: str) -> None:
    store = open_storage(f"s3://{bucket}/old", s3=swift.settings(request_checksum_calculation="when_required"))
    store.put("key", BODY, sha256=digest(b"not even looked at"))
    store.put_new("new", BODY)
    assert store.get("key", limit=len(BODY)) == BODY
    store.delete(["key", "new"])
    assert list(store.list()) == []


def test_the_store_itself_keeps_the_condition_of_put_new(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blind to what is there, so that only the store can refuse.
    monkeypatch.setattr(s3.S3Storage, "_is_taken", lambda _self, _key: False)
    store.put_new("key", b"first")
    with pytest.raises(ObjectExists):
        store.put_new("key", b"second")
    assert store.get("key", limit=10) == b"first"


def test_of_eight_that_put_new_at_once_at_least_one_wins_and_its_bytes_are_whole(store: Storage) -> None:
    # Not "exactly one": Swift looks and then writes, so that writers of one moment all pass (seen: 1 to 7 of 8).
    start = threading.Barrier(8)
    bodies = [bytes([worker]) * 1000 for worker in range(8)]

    def work(worker: int) -> bool:
        start.wait(timeout=30)
        try:
            store.put_new("key", bodies[worker])
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [worker for worker, wins in enumerate(pool.map(work, range(8))) if wins]
    assert store.get("key", limit=1000) in [bodies[worker] for worker in won]


def test_a_bucket_that_does_not_exist_is_named(swift: Swift) -> None:
    store = open_storage("s3://no-such-bucket/prefix", s3=swift.settings())
    for ask in (
        lambda: store.put("key", b"1"),
        lambda: store.get("key", limit=1),
        lambda: list(store.list()),
        lambda: store.delete(["key"]),
    ):
        with pytest.raises(StorageError, match="bucket does not exist"):
            ask()


def test_objects_survive_a_restart_of_the_store() -> None:
    with tempfile.TemporaryDirectory(dir=DISK) as place, Swift(Path(place)) as swift:
        swift.make_bucket("bucket")
        store = open_storage("s3://bucket", s3=swift.settings())
        store.put("key", BODY, sha256=digest(BODY))
        swift.stop()
        with pytest.raises(StorageError, match="endpoint_url"):
            open_storage("s3://bucket", s3=swift.settings(max_attempts=1)).get("key", limit=1)
        swift.start()
        assert store.get("key", limit=len(BODY)) == BODY
