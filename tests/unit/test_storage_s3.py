"""The S3 driver against an endpoint that misbehaves as each test tells it to."""

from __future__ import annotations

import base64
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest
from botocore.exceptions import ReadTimeoutError
from urllib3.exceptions import ProtocolError

from guestagent.errors import Corrupt, ObjectExists, ObjectMissing, StorageDenied, StorageError
from guestagent.storage import s3
from guestagent.storage.s3 import S3Storage
from tests.servers.scripted_s3 import SECRET, Reply, ScriptedS3, refusal

BODY = bytes(range(256)) * 400
SHA256 = hashlib.sha256(BODY).hexdigest()
SHA256_BASE64 = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
WHOLE = Reply(body=BODY)
NOTHING = Reply()
FREE = Reply(status=404)

LISTING = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><KeyCount>3</KeyCount>
<IsTruncated>false</IsTruncated>{}</ListBucketResult>"""
ENTRY = "<Contents><Key>{}</Key><LastModified>2026-11-22T14:00:00.000Z</LastModified><Size>3</Size></Contents>"
FOLDER = "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>"
DELETED = '<?xml version="1.0"?><DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}</DeleteResult>'
UNDELETED = "<Error><Key>{}</Key><Code>{}</Code><Message>No.</Message></Error>"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_LONGEST_PAUSE", 0.01)


@pytest.fixture(autouse=True)
def _no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, logger="guestagent")
    yield
    assert SECRET not in " ".join(
        record.getMessage() for record in caplog.get_records("call")
    )  # the text is gone by now


def cut(at: int, *, reset: bool = False, stated: int = len(BODY)) -> Reply:
    return Reply(body=BODY, headers={"Content-Length": str(stated)}, cut_at=at, reset=reset)


# ---- bodies that break ----


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "short"])
def test_a_body_that_breaks_off_is_fetched_again_and_returned_once(
    reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    at = len(BODY) * 6 // 10
    with ScriptedS3(cut(at, reset=reset), cut(0, reset=reset), WHOLE) as server:
        assert server.open().get("a/key", limit=len(BODY)) == BODY
        assert [asked.method for asked in server.asked] == ["GET"] * 3
    assert "read a/key in s3://bucket, try 1" in caplog.text


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "short"])
def test_a_body_that_always_breaks_off_fails_in_the_end(reset: bool) -> None:
    with ScriptedS3(cut(1000, reset=reset)) as server:
        with pytest.raises(StorageError, match="cannot read a/key in s3://bucket: the body broke off"):
            server.open().get("a/key", limit=len(BODY))
        assert len(server.asked) == 3


def test_an_error_whose_body_breaks_off_is_asked_for_again() -> None:
    missing = refusal(404, "NoSuchKey")
    broken = replace(missing, cut_at=10, reset=True, headers={"Content-Length": str(len(missing.body))})
    with ScriptedS3(broken, missing) as server:
        with pytest.raises(ObjectMissing):
            server.open().get("key", limit=1)
        assert len(server.asked) == 2
    with ScriptedS3(broken) as server:
        with pytest.raises(StorageError, match="cannot read key in s3://bucket: the answer broke off: "):
            server.open().get("key", limit=1)
        assert len(server.asked) == 3


def test_an_error_whose_body_stalls_is_asked_for_again() -> None:
    missing = refusal(404, "NoSuchKey")
    stalled = replace(missing, headers={"Content-Length": str(len(missing.body) + 1)})
    with ScriptedS3(stalled, WHOLE) as server:
        assert server.open(read_timeout=0.3).get("key", limit=len(BODY)) == BODY


def test_what_botocore_has_tried_again_is_not_tried_again_by_us() -> None:
    asked = []

    def hang(**_: object) -> None:
        asked.append(1)
        raise ReadTimeoutError(endpoint_url="http://x")

    with ScriptedS3(WHOLE) as server:
        store = server.open()
        store._client.meta.events.register("before-send.s3", hang)
        with pytest.raises(
            StorageError, match=r"cannot read key in s3://bucket: .*; the store takes requests and does"
        ):
            store.get("key", limit=1)
    assert len(asked) == 3


@pytest.mark.parametrize("ask", [lambda store: store.size("key"), lambda store: list(store.list())])
def test_no_error_of_urllib3_gets_out(ask: Callable[[S3Storage], object]) -> None:
    def fail(**_: object) -> None:
        raise ProtocolError("Connection broken")

    with ScriptedS3(WHOLE) as server:
        store = server.open()
        store._client.meta.events.register("before-send.s3", fail)
        with pytest.raises(StorageError, match="in s3://bucket: Connection broken; look at the store and the network"):
            ask(store)


def test_a_body_that_stalls_times_out_and_is_fetched_again() -> None:
    # The server states one byte more than it sends and keeps the connection open.
    stalled = Reply(body=BODY, headers={"Content-Length": str(len(BODY) + 1)})
    began = time.monotonic()
    with ScriptedS3(stalled, WHOLE) as server:
        assert server.open(read_timeout=0.3).get("key", limit=2 * len(BODY)) == BODY
    assert time.monotonic() - began < 40


def test_a_body_longer_than_the_limit_is_not_read() -> None:
    # The server would break off: who reads the body sees that instead of the length.
    with ScriptedS3(cut(10, stated=10**12)) as server:
        with pytest.raises(Corrupt, match="key in s3://bucket is longer than 100 bytes"):
            server.open().get("key", limit=100)
        assert len(server.asked) == 1


def test_a_body_without_a_stated_length_is_read_up_to_the_limit() -> None:
    with ScriptedS3(Reply(body=BODY, chunked=True)) as server:
        store = server.open()
        assert store.get("key", limit=len(BODY)) == BODY
        with pytest.raises(Corrupt):
            store.get("key", limit=len(BODY) - 1)
    # The server breaks off beyond the limit: who reads on sees that.
    with ScriptedS3(Reply(body=BODY, chunked=True, cut_at=len(BODY) // 2)) as server, pytest.raises(Corrupt):
        server.open().get("key", limit=100)


# ---- overload ----


def test_slow_down_twice_then_well() -> None:
    with ScriptedS3(refusal(503, "SlowDown"), refusal(503, "SlowDown"), WHOLE) as server:
        assert server.open().get("key", limit=len(BODY)) == BODY
        assert len(server.asked) == 3


@pytest.mark.parametrize("answer", [refusal(503, "SlowDown"), refusal(500, "InternalError"), Reply(status=502)])
def test_endless_overload_ends_in_bounded_time(answer: Reply) -> None:
    with ScriptedS3(answer) as server:
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"cannot write a/key in s3://bucket: .* down") as told:
            server.open(max_attempts=2).put("a/key", BODY, sha256=SHA256)
        assert time.monotonic() - began < 30
        assert type(told.value) is StorageError
        assert [asked.body for asked in server.asked] == [BODY, BODY]


# ---- refusals ----


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "AccessDenied", StorageDenied, "access denied .*let these credentials"),
        (403, "InvalidAccessKeyId", StorageDenied, "does not know this access key .*access_key_id"),
        (403, "SignatureDoesNotMatch", StorageDenied, "signature is wrong .*secret_access_key"),
        (400, "ExpiredToken", StorageDenied, "expired .*renew"),
        (403, "SomethingOfTheirOwn", StorageDenied, "access denied .*look at the credentials"),
        (403, "RequestTimeTooSkewed", StorageError, "clock.*set the clock"),
        (404, "NoSuchBucket", StorageError, "bucket does not exist .*create it"),
        (400, "AuthorizationHeaderMalformed", StorageError, "another region .*region_name"),
        (503, "SlowDown", StorageError, "overloaded .*max_attempts"),
        (507, "XStorageFull", StorageError, "the store is full"),
        (400, "InvalidArgument", StorageError, r"As the test wants it \(InvalidArgument\)"),
    ],
)
def test_a_refusal_says_what_and_what_to_do(status: int, code: str, kind: type[StorageError], words: str) -> None:
    with ScriptedS3(refusal(status, code)) as server:
        store = server.open(max_attempts=1)
        for ask in (
            lambda: store.put("a/key", b"1"),
            lambda: store.get("a/key", limit=1),
            lambda: list(store.list("a/key")),
            lambda: store.delete(["a/key"]),
        ):
            with pytest.raises(StorageError, match=f"a/key in s3://bucket: .*{words}") as told:
                ask()
            assert type(told.value) is kind
            assert SECRET not in repr(told.value)


def test_a_refusal_without_words_still_says_something() -> None:
    with (
        ScriptedS3(Reply(status=418)) as server,
        pytest.raises(StorageError, match=r"cannot read key in s3://bucket: .*418"),
    ):
        server.open().get("key", limit=1)


def test_not_found_is_a_missing_object_only_for_who_reads() -> None:
    with ScriptedS3(Reply(status=404)) as server:
        store = server.open()
        with pytest.raises(ObjectMissing):
            store.size("key")
        with pytest.raises(StorageError) as told:
            store.put("key", b"1")
        assert type(told.value) is StorageError


# ---- puts and their checksums ----


def test_a_put_carries_the_digest_that_the_caller_has() -> None:
    with ScriptedS3(Reply(headers={"x-amz-checksum-sha256": SHA256_BASE64})) as server:
        server.open("deep/prefix").put("a b", bytearray(BODY), sha256=SHA256)
        (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("PUT", "/bucket/deep/prefix/a%20b", BODY)
    assert asked.headers["x-amz-checksum-sha256"] == SHA256_BASE64
    assert asked.headers["x-amz-content-sha256"] == SHA256


def test_a_body_whose_digest_is_known_is_not_hashed_for_the_signature() -> None:
    claimed = "ab" * 32
    with ScriptedS3(NOTHING) as server:
        server.open().put("key", BODY, sha256=claimed)
        (asked,) = server.asked
    assert asked.headers["x-amz-content-sha256"] == claimed
    assert "x-amz-checksum-sha256" in asked.headers["authorization"]


def test_an_old_store_sees_no_checksum_but_the_signatures_own() -> None:
    with ScriptedS3(NOTHING) as server:
        server.open(request_checksum_calculation="when_required").put("key", BODY, sha256=SHA256)
        (asked,) = server.asked
    assert not [name for name in asked.headers if "checksum" in name or "trailer" in name]
    assert asked.headers["x-amz-content-sha256"] == SHA256


def test_a_store_that_stored_other_bytes_is_noticed() -> None:
    other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with ScriptedS3(Reply(headers={"x-amz-checksum-sha256": other})) as server:
        with pytest.raises(StorageError, match="stored a/key with other bytes"):
            server.open().put("a/key", BODY, sha256=SHA256)
        server.open().put("a/key", BODY)


@pytest.mark.parametrize("code", ["BadDigest", "XAmzContentSHA256Mismatch"])
def test_bytes_damaged_on_the_way_are_sent_again(code: str) -> None:
    with ScriptedS3(refusal(400, code), NOTHING) as server:
        server.open().put("key", BODY, sha256=SHA256)
        assert [asked.body for asked in server.asked] == [BODY, BODY]
    with ScriptedS3(refusal(400, code)) as server:
        with pytest.raises(StorageError, match=f"cannot write key in s3://bucket: .*{code}"):
            server.open().put("key", BODY, sha256=SHA256)
        assert len(server.asked) == 3


def test_a_put_that_was_sent_again_may_still_arrive() -> None:
    with ScriptedS3(NOTHING, refusal(400, "BadDigest"), NOTHING, refusal(503, "SlowDown"), NOTHING, NOTHING) as server:
        store = server.open()
        told = []
        for number in range(4):
            store.put(f"key{number}", BODY)
            told.append(store.sent_again)
        assert (told, len(server.asked)) == ([False, False, True, True], 6)


# ---- put_new ----


def test_put_new_asks_for_a_free_key() -> None:
    with ScriptedS3(FREE, NOTHING) as server:
        server.open().put_new("key", BODY)
        head, put = server.asked
    assert (head.method, put.method) == ("HEAD", "PUT")
    assert put.headers["if-none-match"] == "*"
    assert put.headers["x-amz-checksum-sha256"] == SHA256_BASE64


@pytest.mark.parametrize(
    "answer", [refusal(412, "PreconditionFailed"), refusal(409, "ConditionalRequestConflict")], ids=["412", "409"]
)
def test_put_new_yields_to_who_was_first(answer: Reply) -> None:
    with ScriptedS3(FREE, answer) as server, pytest.raises(ObjectExists, match="s3://bucket has key already"):
        server.open().put_new("key", BODY)


def test_put_new_notices_a_taken_key_where_the_condition_is_ignored() -> None:
    with ScriptedS3(Reply(headers={"Content-Length": "3"})) as server:
        with pytest.raises(ObjectExists):
            server.open().put_new("key", BODY)
        assert [asked.method for asked in server.asked] == ["HEAD"]


@pytest.mark.parametrize("answer", [refusal(501, "NotImplemented"), refusal(400, "NotImplemented"), Reply(status=501)])
def test_a_store_without_conditional_put_is_asked_first(answer: Reply, caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedS3(FREE, answer, NOTHING, FREE, NOTHING) as server:
        store = server.open()
        store.put_new("one", BODY)
        store.put_new("two", BODY)
        asked = [(asked.method, asked.path, "if-none-match" in asked.headers) for asked in server.asked]
    assert asked == [
        ("HEAD", "/bucket/one", False),
        ("PUT", "/bucket/one", True),
        ("PUT", "/bucket/one", False),
        ("HEAD", "/bucket/two", False),
        ("PUT", "/bucket/two", False),
    ]
    assert caplog.text.count("no conditional put") == 1


def test_put_new_does_not_mistake_its_own_retry_for_somebody_else() -> None:
    # The first try is stored, but its answer gets lost; the second finds the key taken.
    lost = refusal(503, "SlowDown")
    with ScriptedS3(FREE, lost, refusal(412, "PreconditionFailed"), WHOLE) as server:
        server.open().put_new("key", bytearray(BODY))
        assert [asked.method for asked in server.asked] == ["HEAD", "PUT", "PUT", "GET"]


@pytest.mark.parametrize("there", [Reply(body=b"x" * len(BODY)), Reply(body=BODY + b"x"), refusal(404, "NoSuchKey")])
def test_put_new_after_a_retry_still_yields_to_other_bytes(there: Reply) -> None:
    with (
        ScriptedS3(FREE, refusal(503, "SlowDown"), refusal(412, "PreconditionFailed"), there) as server,
        pytest.raises(ObjectExists),
    ):
        server.open().put_new("key", BODY)


def test_put_new_needs_no_right_to_see_that_a_key_is_free() -> None:
    with ScriptedS3(Reply(status=403), NOTHING) as server:
        server.open().put_new("key", BODY)
        assert server.asked[-1].headers["if-none-match"] == "*"


def test_put_new_passes_other_refusals_on() -> None:
    with ScriptedS3(FREE, refusal(403, "AccessDenied")) as server, pytest.raises(StorageDenied):
        server.open().put_new("key", BODY)


@pytest.mark.parametrize(
    ("listed", "kind"),
    [
        (Reply(body=LISTING.format("").encode()), ObjectMissing),
        (Reply(body=LISTING.format(ENTRY.format("base/key.other")).encode()), ObjectMissing),
        (Reply(body=LISTING.format(ENTRY.format("base/key")).encode()), StorageDenied),
        (refusal(403, "AccessDenied"), StorageDenied),
        (refusal(500, "InternalError"), StorageDenied),
    ],
    ids=["none", "another", "itself", "denied", "failed"],
)
def test_a_key_that_is_not_there_is_denied_to_who_may_not_list_all(listed: Reply, kind: type[StorageError]) -> None:
    for ask in (partial(S3Storage.get, limit=1), S3Storage.size):
        with ScriptedS3(Reply(status=403), listed) as server, pytest.raises(StorageError) as told:
            ask(server.open("base", max_attempts=1), "key")
        assert type(told.value) is kind
        assert "cannot read key in s3://bucket/base" in str(told.value)


# ---- listings ----


def test_a_listing_leaves_out_what_is_none_of_ours() -> None:
    entries = "".join(ENTRY.format(f"base/{key}") for key in ("", "a/b", "a//c", "folder/", "../x"))
    with ScriptedS3(Reply(body=LISTING.format(entries).encode())) as server:
        (found,) = server.open("base").list()
        assert "prefix=base%2F" in server.asked[0].path
    assert (found.key, found.size, found.modified) == ("a/b", 3, datetime(2026, 11, 22, 14, tzinfo=UTC))
    assert found.modified.tzinfo is UTC


def test_folders_leave_out_what_is_none_of_ours() -> None:
    folders = "".join(FOLDER.format(f"base/a/{name}/") for name in ("b", "", ".."))
    with ScriptedS3(Reply(body=LISTING.format(folders).encode())) as server:
        assert list(server.open("base").folders("a/")) == ["b"]


@pytest.mark.parametrize(
    "answer",
    [
        Reply(body=b"<html>Welcome</p>"),
        Reply(body=LISTING.format(ENTRY.replace("2026", "soon").format("key")).encode()),
        Reply(body=LISTING.format(ENTRY.replace("3<", "three<").format("key")).encode()),
        Reply(status=301, headers={"Location": "/elsewhere"}),
    ],
    ids=["html", "time", "size", "redirect"],
)
def test_an_endpoint_that_does_not_speak_s3_is_named(answer: Reply) -> None:
    with ScriptedS3(answer) as server, pytest.raises(StorageError, match=r"correct \[s3\] endpoint_url"):
        list(server.open(max_attempts=1).list())


# ---- deletes ----


def test_many_are_deleted_a_thousand_at_a_time_with_the_digest_that_old_stores_want() -> None:
    with ScriptedS3(Reply(body=DELETED.format("").encode())) as server:
        server.open().delete(f"key{number}" for number in range(1001))
        assert [asked.body.count(b"<Key>") for asked in server.asked] == [1000, 1]
        for asked in server.asked:
            expected = base64.b64encode(hashlib.md5(asked.body, usedforsecurity=False).digest()).decode()
            assert asked.headers["content-md5"] == expected


def test_a_key_that_could_not_be_deleted_is_named() -> None:
    errors = UNDELETED.format("base/gone", "NoSuchKey") + UNDELETED.format("base/kept", "AccessDenied")
    told = "cannot delete kept in s3://bucket/base: access denied"
    with ScriptedS3(Reply(body=DELETED.format(errors).encode())) as server, pytest.raises(StorageDenied, match=told):
        server.open("base").delete(["gone", "kept"])


def test_of_many_keys_that_could_not_be_deleted_one_is_named() -> None:
    errors = UNDELETED.format("one", "TheirOwn") + UNDELETED.format("two", "TheirOwn")
    told = r"cannot delete one and 1 more in s3://bucket: No \(TheirOwn\)"
    with ScriptedS3(Reply(body=DELETED.format(errors).encode())) as server, pytest.raises(StorageError, match=told):
        server.open().delete(["one", "two"])


def test_keys_that_were_gone_already_are_no_error() -> None:
    with ScriptedS3(Reply(body=DELETED.format(UNDELETED.format("gone", "NoSuchKey")).encode())) as server:
        server.open().delete(["gone"])


@pytest.mark.parametrize("answer", [refusal(501, "NotImplemented"), refusal(405, "MethodNotAllowed")])
def test_a_store_that_deletes_one_by_one(answer: Reply, caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedS3(answer, Reply(status=204), refusal(404, "NoSuchKey"), Reply(status=204)) as server:
        store = server.open()
        store.delete(["one", "gone"])
        store.delete(["two"])
        asked = [(asked.method, asked.path) for asked in server.asked[1:]]
    assert asked == [("DELETE", "/bucket/one"), ("DELETE", "/bucket/gone"), ("DELETE", "/bucket/two")]
    assert caplog.text.count("cannot delete many objects at once") == 1


def test_a_single_delete_that_is_refused_is_told() -> None:
    with (
        ScriptedS3(refusal(501, "NotImplemented"), refusal(403, "AccessDenied")) as server,
        pytest.raises(StorageDenied, match="cannot delete one in"),
    ):
        server.open().delete(["one"])
