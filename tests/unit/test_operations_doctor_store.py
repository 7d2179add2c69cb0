"""What the doctor learns from a store's answers: whose clock is wrong, and whether it keeps its conditions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from urllib.parse import urlsplit

import pytest

from guestagent.catalog import Catalog
from guestagent.errors import StorageDenied
from guestagent.jobs.lock import holder
from guestagent.operations.doctor import Finding, doctor
from guestagent.storage import S3Settings, Storage, open_storage
from tests.fakes.bench import Bench
from tests.fakes.stores import Through
from tests.servers.moto_s3 import ACCESS_KEY, SECRET_KEY, make_bucket, moto_s3
from tests.servers.s3_gate import EVERYTHING, S3Gate

_number = count(1)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_s3() as endpoint:
        yield endpoint


class Guarded:
    """A bench whose store is a bucket behind a gate."""

    def __init__(self, bench: Bench, gate: S3Gate, bucket: str) -> None:
        self.bench = bench
        self.gate = gate
        self.bucket = bucket

    def open(self, url: str) -> Storage:
        return open_storage(
            url,
            s3=S3Settings(
                endpoint_url=self.gate.url, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, max_attempts=1
            ),
        )

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/below"

    def findings(self) -> dict[str, Finding]:
        with Catalog(self.url, instance=None, open_storage=self.open) as catalog:
            return {finding.check: finding for finding in doctor(self.bench.host(catalog=catalog), holder)}

    def names(self) -> list[str]:
        store = self.open(self.url)
        try:
            return [found.key for found in store.list()]
        finally:
            store.close()


@pytest.fixture
def guarded(bench: Bench, moto: str) -> Iterator[Guarded]:
    bucket = f"doctored{next(_number)}"
    make_bucket(moto, bucket)
    with S3Gate(urlsplit(moto).port or 0, EVERYTHING) as gate:
        yield Guarded(bench, gate, bucket)


def test_a_store_that_is_well(guarded: Guarded) -> None:
    found = guarded.findings()
    assert list(found)[-4:] == ["store", "clock", "conditional-put", "key"]
    assert all(finding.ok and not finding.remedy for finding in found.values())
    assert found["clock"].detail == "within 60 s of the store's"
    assert found["store"].detail == f"s3://{guarded.bucket}/below: put, get, list and delete work"
    assert found["conditional-put"].detail == "the store itself keeps a manifest from being overwritten"
    assert guarded.names() == []


@pytest.mark.parametrize(("ahead", "side"), [(300, "behind"), (-300, "ahead of")])
def test_a_clock_that_is_somewhat_wrong_is_a_warning(guarded: Guarded, ahead: int, side: str) -> None:
    guarded.gate.ahead = timedelta(seconds=ahead)
    found = guarded.findings()["clock"]
    assert found.ok
    words = found.detail.split()
    assert abs(int(words[4]) - abs(ahead)) <= 2
    assert f" s {side} the store's" in found.detail
    assert found.remedy == "synchronise it, such as with chrony, before the store refuses requests"


def test_a_clock_so_wrong_that_the_store_refuses_us_is_told_with_the_refusal(guarded: Guarded) -> None:
    guarded.gate.ahead = timedelta(hours=1)
    found = guarded.findings()
    assert {name for name, finding in found.items() if not finding.ok} == {"store", "clock"}
    assert "this host's clock and the store's differ too much (RequestTimeTooSkewed)" in found["store"].detail
    assert " s behind the store's, too far for S3 to take requests" in found["clock"].detail
    assert found["clock"].remedy == "synchronise it, such as with chrony"
    assert "conditional-put" not in found


def test_a_store_that_ignores_conditions_is_told_and_works(guarded: Guarded) -> None:
    guarded.gate.knows_conditions = False
    found = guarded.findings()
    assert all(finding.ok for finding in found.values())
    assert found["conditional-put"].detail.startswith("the store has none: of two that publish")
    assert found["conditional-put"].remedy.startswith("give every host a guest_id of its own")
    assert guarded.names() == []


def test_credentials_that_may_not_delete_still_tell_what_a_restore_needs(guarded: Guarded) -> None:
    guarded.gate.policy = {
        "Statement": [{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject", "s3:PutObject"], "Resource": "*"}]
    }
    with Catalog(guarded.url, instance=None, open_storage=guarded.open) as catalog:
        made = guarded.bench.backup(catalog=catalog)
    found = guarded.findings()
    assert {name for name, finding in found.items() if not finding.ok} == {"store"}
    assert "cannot delete guest1/.probe-" in found["store"].detail
    assert f"a restore of the newest backup, {made.id}, needs" in found["disk"].detail


def test_a_store_that_is_not_there_is_told_once(guarded: Guarded) -> None:
    guarded.gate.behind = 1
    found = guarded.findings()
    assert {name for name, finding in found.items() if not finding.ok} == {"store"}
    assert not {"clock", "conditional-put"} & set(found)


def test_a_conditional_put_that_fails_is_told(bench: Bench) -> None:
    bench.wrap = Unlinked
    found = {finding.check: finding for finding in doctor(bench.host(), holder)}
    assert {name for name, finding in found.items() if not finding.ok} == {"conditional-put"}
    assert "cannot write" in found["conditional-put"].detail
    assert bench.objects() == {}


class Unlinked(Through):
    """A filesystem without hard links."""

    def has_conditional_put(self, key: str) -> bool:
        raise StorageDenied(f"cannot write {key}: operation not permitted")
