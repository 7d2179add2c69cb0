"""What a store's answers mean to us: S3's error codes as classes of ours, in words, with what to do.

Pure tables and one function; it asks nothing of any store and knows no boto3.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from guestagent.errors import StorageDenied, StorageError

DAMAGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"})
"""Codes for bytes that did not arrive as they were sent."""

MISSING = frozenset({"NoSuchKey", "NoSuchVersion", "NotFound", "404"})
"""Codes for an object that is not there (a HEAD has no body, so its code is the status)."""

UNKNOWN_REQUEST = frozenset({"NotImplemented", "XNotImplemented", "MethodNotAllowed"})
"""Codes for what a store does not know how to do."""


@dataclass(frozen=True)
class _Meaning:
    """What an error code of S3 is to us: the class to raise, what to say, what to do."""

    kind: type[StorageError]
    why: str
    hint: str


_NOT_ALLOWED = _Meaning(
    StorageDenied, "access denied", "let these credentials list the bucket and read, write and delete below that URL"
)
_FORBIDDEN = _Meaning(StorageDenied, "access denied", "look at the credentials, what they allow, and the clock")
_EXPIRED = _Meaning(StorageDenied, "the credentials have expired", "renew them where boto3 finds them")
_CLOCK = _Meaning(StorageError, "this host's clock and the store's differ too much", "set the clock")
_OVERLOAD = _Meaning(StorageError, "the store is overloaded or down", "try later, or raise [s3] max_attempts")
_DOWN = _Meaning(StorageError, "the store is down or does not speak S3", "try later, or correct [s3] endpoint_url")
_REGION = _Meaning(StorageError, "the bucket is in another region", "correct [s3] region_name and endpoint_url")
_CHECKSUM = _Meaning(
    StorageError, "the store does not know this request", "try [s3] request_checksum_calculation = when_required"
)
_MEANINGS = {
    "NoSuchBucket": _Meaning(StorageError, "the bucket does not exist", "create it, or correct [storage] url"),
    "AccessDenied": _NOT_ALLOWED,
    "AllAccessDisabled": _NOT_ALLOWED,
    "InvalidAccessKeyId": _Meaning(
        StorageDenied, "the store does not know this access key", "correct [s3] access_key_id"
    ),
    "SignatureDoesNotMatch": _Meaning(
        StorageDenied, "the signature is wrong", "correct [s3] secret_access_key, or region_name"
    ),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "NotImplemented": _CHECKSUM,
    "XAmzContentSHA256Mismatch": _CHECKSUM,
    "BadDigest": _Meaning(StorageError, "the bytes do not arrive as they were sent", "look at memory and network"),
    "QuotaExceeded": _Meaning(StorageError, "the store is full", "raise the quota, or delete old backups"),
    "SlowDown": _OVERLOAD,
    "ServiceUnavailable": _OVERLOAD,
    "InternalError": _OVERLOAD,
}
_BY_STATUS: dict[int, _Meaning] = {
    HTTPStatus.MOVED_PERMANENTLY: _REGION,
    HTTPStatus.UNAUTHORIZED: _FORBIDDEN,
    HTTPStatus.FORBIDDEN: _FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS: _OVERLOAD,
    HTTPStatus.INTERNAL_SERVER_ERROR: _DOWN,
    HTTPStatus.BAD_GATEWAY: _DOWN,
    HTTPStatus.SERVICE_UNAVAILABLE: _DOWN,
    HTTPStatus.GATEWAY_TIMEOUT: _DOWN,
    HTTPStatus.INSUFFICIENT_STORAGE: _MEANINGS["QuotaExceeded"],
}
_UNTOLD = _Meaning(StorageError, "", "")


def explained(what: str, code: str, told: str, *, status: int = 0) -> StorageError:
    """The error for an answer of the store."""
    meaning = _MEANINGS.get(code) or _BY_STATUS.get(status) or _UNTOLD
    why = meaning.why or " ".join(told.split()).rstrip(".") or "refused"
    return meaning.kind(f"{what}: {why} ({code or status})", hint=meaning.hint)
