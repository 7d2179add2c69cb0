"""The S3 driver: any endpoint that speaks the S3 API, through boto3.

A request is retried by botocore, a body that breaks off by this driver: a get returns the whole object, once,
or raises.  Every failure of boto3 becomes a StorageError that names the object and says what to do.  What an
object means is not known here.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    TokenRetrievalError,
)
from urllib3.exceptions import HTTPError

from guestagent.errors import Corrupt, ObjectExists, ObjectMissing, StorageDenied, StorageError
from guestagent.storage import ObjectInfo, S3Settings, checked_folder, checked_key, checked_prefix, is_key
from guestagent.storage.s3_answers import DAMAGED, MISSING, UNKNOWN_REQUEST, explained
from guestagent.storage.s3_client import Untrusted, connected

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ErrorTypeDef, GetObjectOutputTypeDef, ListObjectsV2OutputTypeDef

__all__ = ["S3Settings", "S3Storage"]

LOG = logging.getLogger(__name__)
T = TypeVar("T")

_BATCH = 1000
"""Keys in one DeleteObjects request: the API's limit."""

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 20.0
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)
_NONSENSE = (ValueError, RecursionError)
"""What botocore raises for answers that it cannot read, the last for a store that redirects for ever."""

_FAILED = (BotoCoreError, HTTPError, *_NONSENSE)
"""HTTPError is urllib3's: botocore wraps it, but for the body of an error in answer to a get."""

_UNREACHED = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError)


class _Broken(Exception):
    """Bytes that broke off or came damaged: the same request may well work when made again."""


class S3Storage:
    """The objects of one bucket below ``prefix``."""

    def __init__(self, bucket: str, *, prefix: str, settings: S3Settings) -> None:
        self._bucket = bucket
        self._base = f"{prefix}/" if prefix else ""
        self._url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._settings = settings
        self._checksums = settings.request_checksum_calculation == "when_supported"
        self._conditional_put = True
        self._batch_delete = True
        self._sent_again = False
        self._client = connected(settings)

    @property
    def url(self) -> str:
        """The URL that this store was opened with."""
        return self._url

    @property
    def sent_again(self) -> bool:
        """Whether botocore tried a put more than once; what the store has refused as damaged will not arrive."""
        return self._sent_again

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        """Put the object in one request, with ``sha256`` for the store to check."""
        with self._told("write", key):
            self._send(key, body, sha256)

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        """Put the object if the key is free: the store is asked, and told to put it on that condition.

        Atomic where the store's condition is; AWS keeps it, Swift lets several writers of one moment pass.
        """
        digest = hashlib.sha256(body).hexdigest()
        # Asked in any case: a store that does not know the condition may ignore it instead of saying so.
        if self._is_taken(key):
            raise ObjectExists(f"{self._url} has {key} already")
        with self._told("write", key):
            if not (self._conditional_put and self._sent_if_free(key, body, digest)):
                self._send(key, body, digest)

    def get(self, key: str, *, limit: int) -> bytes:
        """Get the whole object, with a new request if the body breaks off."""
        with self._missing_if_unlisted(key), self._told("read", key, missing=True):
            return self._again(f"read {key}", lambda: self._fetched(key, limit))

    def size(self, key: str) -> int:
        """Ask for the object's size."""
        with self._missing_if_unlisted(key), self._told("read", key, missing=True):
            return self._client.head_object(Bucket=self._bucket, Key=self._full(key))["ContentLength"]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List the objects page by page; what others stored under keys that are none of ours is left out."""
        for page in self._pages(checked_prefix(prefix)):
            for found in page.get("Contents", ()):
                key = found["Key"][len(self._base) :]
                if is_key(key):
                    yield ObjectInfo(key, found["Size"], found["LastModified"].astimezone(UTC))

    def folders(self, prefix: str = "") -> Iterator[str]:
        """List the common prefixes below ``prefix``."""
        for page in self._pages(checked_folder(prefix), Delimiter="/"):
            for found in page.get("CommonPrefixes", ()):
                name = found["Prefix"][len(self._base + prefix) : -1]
                if is_key(name):
                    yield name

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects, a thousand at a time where the store knows how."""
        remaining = iter(keys)
        while batch := tuple(islice(remaining, _BATCH)):
            full = [self._full(key) for key in batch]
            if not (self._batch_delete and self._deleted_at_once(batch[0], full)):
                for key, name in zip(batch, full, strict=True):
                    with suppress(ObjectMissing), self._told("delete", key, missing=True):
                        self._client.delete_object(Bucket=self._bucket, Key=name)

    def has_conditional_put(self, key: str) -> bool:
        """Put it on condition twice; the second has other bytes, and so is never taken for the first, tried again."""
        with self._told("write", key):
            if self._sent_if_free(key, b"first", hashlib.sha256(b"first").hexdigest()):
                try:
                    self._sent_if_free(key, b"second", hashlib.sha256(b"second").hexdigest())
                except ObjectExists:
                    return True
        return False

    def clock_ahead(self, prefix: str) -> timedelta | None:
        """List one object; an answer that refuses to, since our clock is wrong or anything else, has the time, too."""
        with self._told("list", prefix):
            try:
                answer = self._client.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._base + checked_prefix(prefix), MaxKeys=1
                )
                headers = answer["ResponseMetadata"]["HTTPHeaders"]
            except ClientError as error:
                if _status(error) >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                headers = error.response["ResponseMetadata"].get("HTTPHeaders", {})
        return _ahead(headers.get("date", ""))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _full(self, key: str) -> str:
        return self._base + checked_key(key)

    def _send(self, key: str, body: bytes | bytearray, sha256: str, **extra: Any) -> None:
        """One put; raises ClientError if the store refuses it, and tries again if the bytes came damaged."""
        expected = base64.b64encode(bytes.fromhex(sha256)).decode() if self._checksums else ""
        if expected:
            # The algorithm's name beside it is what a bucket with object lock insists on.
            extra |= {"ChecksumSHA256": expected, "ChecksumAlgorithm": "SHA256"}

        def sent() -> str:
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._full(key),
                    Body=body,  # type: ignore[arg-type]  # boto3 takes a bytearray, its stubs do not
                    **extra,
                )
            except ClientError as error:
                if _code(error) in DAMAGED:
                    raise _Broken(f"the bytes did not arrive as they were sent ({_code(error)})") from error
                raise
            self._sent_again |= bool(answer["ResponseMetadata"].get("RetryAttempts"))
            return answer.get("ChecksumSHA256", "")

        stored = self._again(f"write {key}", sent)
        if stored and expected and stored != expected:
            raise StorageError(f"{self._url} stored {key} with other bytes than were sent", hint="distrust that store")

    def _sent_if_free(self, key: str, body: bytes | bytearray, sha256: str) -> bool:
        """A put on condition that the key is free; False if the store does not know conditions."""
        try:
            self._send(key, body, sha256, IfNoneMatch="*")
        except ClientError as error:
            if _status(error) in (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT):
                if not self._is_own_retry(error, key, body):
                    raise ObjectExists(f"{self._url} has {key} already") from error
            elif _is_unknown_request(error):
                LOG.warning("%s has no conditional put: whether a key is free is asked before the put", self._url)
                self._conditional_put = False
                return False
            else:
                raise
        return True

    def _is_own_retry(self, error: ClientError, key: str, body: bytes | bytearray) -> bool:
        """Whether the object in the way is ours: stored by a try whose answer got lost."""
        if not error.response["ResponseMetadata"].get("RetryAttempts"):
            return False
        with suppress(ObjectMissing, Corrupt):
            return self.get(key, limit=len(body)) == body
        return False

    def _is_taken(self, key: str) -> bool:
        # Who may not list is told "denied" of a missing key; the put then says what is so.
        with suppress(ObjectMissing, StorageDenied):
            self.size(key)
            return True
        return False

    def _fetched(self, key: str, limit: int) -> bytes:
        answer = self._opened(key)
        # A proxy may send a body in chunks, which has no length in front.
        stated = answer.get("ContentLength", 0)
        with closing(answer["Body"]) as stream:
            if stated > limit:
                raise self._too_long(key, limit)
            try:
                body = stream.read() if stated else stream.read(limit + 1)
            except (BotoCoreError, HTTPError, OSError) as error:
                raise _Broken(f"the body broke off: {error}") from error
        if len(body) > limit:
            raise self._too_long(key, limit)
        return body

    def _opened(self, key: str) -> GetObjectOutputTypeDef:
        """The answer to a get, with its body still to come; an error's body comes with it, and may break off."""
        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._full(key))
        except HTTPError as error:
            raise _Broken(f"the answer broke off: {error}") from error

    def _too_long(self, key: str, limit: int) -> Corrupt:
        return Corrupt(f"{key} in {self._url} is longer than {limit} bytes")

    def _again(self, doing: str, call: Callable[[], T]) -> T:
        """The result of ``call``, made again after a growing pause while its bytes break."""
        attempt = 1
        while True:
            try:
                return call()
            except _Broken as error:
                if attempt >= self._settings.max_attempts:
                    raise StorageError(f"cannot {doing} in {self._url}: {error}", hint="look at the network") from error
                LOG.info("%s in %s, try %d: %s", doing, self._url, attempt, error)
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)))
            attempt += 1

    def _pages(self, prefix: str, **extra: Any) -> Iterator[ListObjectsV2OutputTypeDef]:
        paginator = self._client.get_paginator("list_objects_v2")
        pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=self._base + prefix, **extra))
        while True:
            with self._told("list", prefix or "objects"):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def _deleted_at_once(self, first: str, names: Sequence[str]) -> bool:
        """One request for all; False if the store does not know it."""
        with self._told("delete", first):
            try:
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": name} for name in names], "Quiet": True}
                )
            except ClientError as error:
                if not _is_unknown_request(error):
                    raise
                LOG.warning("%s cannot delete many objects at once: they go one by one", self._url)
                self._batch_delete = False
                return False
        errors = [error for error in answer.get("Errors", ()) if error.get("Code") not in MISSING]
        if errors:
            raise self._undeleted(errors[0], len(errors))
        return True

    def _undeleted(self, error: ErrorTypeDef, count: int) -> StorageError:
        key = error.get("Key", "")[len(self._base) :]
        more = f" and {count - 1} more" if count > 1 else ""
        return explained(f"cannot delete {key}{more} in {self._url}", error.get("Code", ""), error.get("Message", ""))

    @contextmanager
    def _missing_if_unlisted(self, key: str) -> Iterator[None]:
        """Who may list its own prefix and not the whole bucket is told "denied" of a key that is not there."""
        try:
            yield
        except StorageDenied as error:
            if self._is_unlisted(key):
                raise ObjectMissing(f"cannot read {key} in {self._url}: no such object") from error
            raise

    def _is_unlisted(self, key: str) -> bool:
        """Whether a listing that is allowed does without the key, which would come first in it."""
        try:
            found = next(self.list(key), None)
        except StorageError:
            return False
        return found is None or found.key != key

    @contextmanager
    def _told(self, doing: str, key: str, *, missing: bool = False) -> Iterator[None]:
        """Turn boto3's errors into the one that names the key; ``missing``: not found means no such object."""
        what = f"cannot {doing} {key} in {self._url}"
        try:
            yield
        except ClientError as error:
            if missing and _code(error) in MISSING:
                raise ObjectMissing(f"{what}: no such object") from error
            told = error.response.get("Error", {}).get("Message", "")
            raise explained(what, _code(error), told, status=_status(error)) from error
        except _FAILED as error:
            raise _unreached(what, error) from error


def _ahead(date: str) -> timedelta | None:
    """How far an answer's date is ahead of our clock; None for one that nobody can read."""
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        return None
    return theirs.replace(tzinfo=theirs.tzinfo or UTC) - datetime.now(UTC)


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _is_unknown_request(error: ClientError) -> bool:
    return _code(error) in UNKNOWN_REQUEST or _status(error) == HTTPStatus.NOT_IMPLEMENTED


def _unreached(what: str, error: Exception) -> StorageError:
    """The error for a request that got no answer, or one that nobody can read."""
    if isinstance(error, _CREDENTIALS):
        hint = "set [s3] access_key_id and secret_access_key, or what boto3 looks for"
        return StorageDenied(f"{what}: no usable credentials ({type(error).__name__})", hint=hint)
    hint = "look at the store and the network"
    if isinstance(error, Untrusted):
        hint = error.kwargs["hint"]
    elif isinstance(error, _UNREACHED):
        hint = "correct [s3] endpoint_url, or look at the network"
    elif isinstance(error, ReadTimeoutError):
        hint = "the store takes requests and does not answer; try later"
    elif isinstance(error, _NONSENSE):
        hint = "correct [s3] endpoint_url: what answers there does not speak S3"
    return StorageError(f"{what}: {' '.join(str(error).split())}", hint=hint)
