"""Object stores: one protocol, and a driver for each URL scheme.

Nothing here knows what a backup is.  A driver maps every failure of its
library to StorageError and its kin, so that callers see one family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from guestagent.errors import ConfigError, UsageError

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CREDENTIALS = re.compile(r"//.*@")
_URL_HINT = "use s3://bucket/prefix or file:///directory"


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing: its key below the store's URL, size in bytes, and when it was written (UTC)."""

    key: str
    size: int
    modified: datetime


class Storage(Protocol):
    """A place for immutable objects under keys such as ``guest1/2f.../data/00000000``.

    Safe to use from several threads.  Every method raises StorageError (or a kind of it)
    when the store fails for good; retries happen inside.
    """

    @property
    def url(self) -> str:
        """The URL that this store was opened with, without a slash at the end."""

    @property
    def sent_again(self) -> bool:
        """Whether any put was sent again: an earlier try of it may still arrive, and replace what is there then."""

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        """Store ``body``; when it returns, the object is durable and whole.

        ``sha256`` (hex) is the digest of ``body`` where the caller has it already: a driver
        hands it to a store that can check it.  An object of the same key is replaced.
        """

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        """As put, but raises ObjectExists if the key is taken; atomic where the store has a conditional put."""

    def get(self, key: str, *, limit: int) -> bytes:
        """The whole object; raises ObjectMissing, and Corrupt if it is longer than ``limit`` bytes."""

    def size(self, key: str) -> int:
        """The object's size in bytes; raises ObjectMissing."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key begins with ``prefix``, ordered by key."""

    def folders(self, prefix: str = "") -> Iterator[str]:
        """The names one level below ``prefix`` (empty, or with a slash at the end) that have objects below them."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects; those that are not there are no error."""

    def has_conditional_put(self, key: str) -> bool:
        """Whether the store itself refuses to overwrite an object: tried with ``key``, which must be free and stays."""

    def clock_ahead(self, prefix: str) -> timedelta | None:
        """How far the store's clock is ahead of ours, by its answer to a question about ``prefix``, refused or not.

        None for a store that does not tell the time.
        """

    def close(self) -> None:
        """Release connections; the store must not be used afterwards."""


@dataclass(frozen=True)
class S3Settings:
    """How the S3 driver reaches its endpoint; empty strings leave the choice to boto3.

    ``max_attempts`` counts the first try, for each request and for each body that breaks off; timeouts are in
    seconds.  It stands here, not beside the driver, so that whoever fills it in need not import boto3.
    """

    endpoint_url: str = ""
    region_name: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    addressing_style: str = "auto"
    ca_bundle: str = ""
    client_cert: str = ""
    client_key: str = ""
    request_checksum_calculation: str = "when_supported"
    max_attempts: int = 10
    connect_timeout: float = 10
    read_timeout: float = 60
    max_pool_connections: int = 32


def open_storage(url: str, *, s3: S3Settings | None = None) -> Storage:
    """The store at ``url``: ``s3://bucket/prefix`` or ``file:///directory``; loads the driver that the scheme names.

    Nothing is asked of the store yet.  A ``file://`` path may hold %-escapes; an S3 prefix is taken as it stands.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return _open_file(url, rest.rstrip("/"))
    if scheme == "s3":
        return _open_s3(url, rest.rstrip("/"), s3 or S3Settings())
    raise ConfigError(f"no driver for the store {_masked(url)!r}", hint=_URL_HINT)


def _open_file(url: str, path: str) -> Storage:
    from guestagent.storage.file import FileStorage  # noqa: PLC0415  (only the driver that is asked for)

    if not path.startswith("/") or _CONTROL.search(unquote(path)):
        raise ConfigError(f"not a directory's URL: {_masked(url)!r}", hint="three slashes: file:///srv/backups")
    return FileStorage(Path(unquote(path)), url=f"file://{path}")


def _open_s3(url: str, rest: str, settings: S3Settings) -> Storage:
    from guestagent.storage.s3 import S3Storage  # noqa: PLC0415  (boto3 is slow to import)

    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or (prefix and not is_key(prefix)):
        raise ConfigError(f"not a bucket's URL: {_masked(url)!r}", hint=_URL_HINT)
    return S3Storage(bucket, prefix=prefix, settings=settings)


def _masked(url: str) -> str:
    """The URL without what stands before an @: somebody may have put credentials there."""
    return _CREDENTIALS.sub("//***@", url)


def is_key(text: str) -> bool:
    """Whether every driver can store an object under ``text``: a relative path, without ``.``, ``..`` or controls."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not _CONTROL.search(text) and not any(part in ("", ".", "..") for part in text.split("/"))


def checked_key(key: str) -> str:
    """``key``, if it can be one; raises UsageError."""
    if not is_key(key):
        raise UsageError(f"not an object's key: {key!r}", hint="give a relative path without . and .. in it")
    return key


def checked_prefix(prefix: str) -> str:
    """``prefix``, if a key can begin with it; raises UsageError."""
    checked_key(prefix + "x")
    return prefix


def checked_folder(prefix: str) -> str:
    """``prefix``, if it is empty or names a folder by a slash at its end; raises UsageError."""
    if prefix and not prefix.endswith("/"):
        raise UsageError(f"not a folder: {prefix!r}", hint="end it with a slash")
    return checked_prefix(prefix)
