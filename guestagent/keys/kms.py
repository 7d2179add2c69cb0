"""Keys that never leave AWS KMS: it wraps and unwraps data keys for whom it trusts, and writes down that it did.

Data keys pass through boto3 in the clear, and its own log of requests and answers would show them: it is hushed
meanwhile, at every level.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from guestagent.errors import ConfigError, Corrupt, GuestagentError, StorageDenied, StorageError
from guestagent.keys import KmsSettings

LONGEST = 6144
"""Bytes that KMS takes to unwrap."""

_URL = re.compile(r"kms://([A-Za-z0-9][A-Za-z0-9/_:-]{0,2047})(?:\?region=([a-z0-9-]{1,64}))?")
_ARN = re.compile(r"arn:[a-z0-9-]+:kms:([a-z0-9-]+):\d+:(key|alias)/.+")
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)
_UNREACHED = (ConnectionError, HTTPClientError)


@dataclass(frozen=True)
class _Meaning:
    """What an error code of KMS is to us: the class to raise, what to say, what to do."""

    kind: type[GuestagentError]
    why: str
    hint: str


_FOREIGN = _Meaning(
    Corrupt, "the wrapped data key does not open under it", "it was changed, or belongs to another backup or key"
)
_DENIED = _Meaning(
    StorageDenied, "access denied", "let these credentials use kms:Encrypt, kms:Decrypt and kms:DescribeKey of that key"
)
_UNKNOWN = _Meaning(
    StorageDenied,
    "KMS does not know these credentials",
    "correct [encryption] kms_access_key_id and kms_secret_access_key, or what boto3 finds",
)
_EXPIRED = _Meaning(StorageDenied, "the credentials have expired", "renew them where boto3 finds them")
_BUSY = _Meaning(StorageError, "KMS is overloaded or down", "try later")
_MEANINGS = {
    "InvalidCiphertextException": _FOREIGN,
    "IncorrectKeyException": _FOREIGN,
    "AccessDeniedException": _DENIED,
    "UnrecognizedClientException": _UNKNOWN,
    "InvalidClientTokenId": _UNKNOWN,
    "InvalidSignatureException": _UNKNOWN,
    "IncompleteSignatureException": _UNKNOWN,
    "ExpiredTokenException": _EXPIRED,
    "NotFoundException": _Meaning(
        StorageError, "KMS has no such key", "correct [encryption] key; one that was deleted is gone for good"
    ),
    "DisabledException": _Meaning(StorageError, "the key is disabled", "enable it in KMS"),
    "KMSInvalidStateException": _Meaning(
        StorageError, "the key cannot be used now", "look at it in KMS: a planned deletion can still be cancelled"
    ),
    "InvalidKeyUsageException": _Meaning(
        StorageError, "the key is not one that encrypts", "use a symmetric key for ENCRYPT_DECRYPT"
    ),
    "ThrottlingException": _BUSY,
    "KeyUnavailableException": _BUSY,
    "DependencyTimeoutException": _BUSY,
    "KMSInternalException": _BUSY,
}


class _Client(Protocol):
    """What we use of boto3's client."""

    def describe_key(self, *, KeyId: str) -> Mapping[str, Any]: ...

    def encrypt(self, *, KeyId: str, Plaintext: bytes, EncryptionContext: Mapping[str, str]) -> Mapping[str, Any]: ...

    def decrypt(
        self, *, KeyId: str, CiphertextBlob: bytes, EncryptionContext: Mapping[str, str]
    ) -> Mapping[str, Any]: ...


class KmsKey:
    """One symmetric key in KMS, at ``kms://KEY?region=REGION``: an id, an ARN or an alias; raises ConfigError."""

    def __init__(self, url: str, settings: KmsSettings) -> None:
        found = _URL.fullmatch(url)
        if not found:
            # Not repeated: somebody may have put the key itself there.
            raise ConfigError(
                "[encryption] names a key by something that is not a kms:// URL", hint="use kms://KEY?region=REGION"
            )
        self._name = found[1]
        arn = _ARN.fullmatch(found[1])
        self._arn = found[1] if arn and arn[2] == "key" else ""
        self._client = _connected(settings, found[2] or (arn[1] if arn else ""))

    def __repr__(self) -> str:
        return f"KmsKey({self._name!r})"

    @cached_property
    def id(self) -> str:
        """The key's ARN; KMS is asked for that of an alias, once."""
        if self._arn:
            return f"kms:{self._arn}"
        with self._told("find"):
            return f"kms:{self._client.describe_key(KeyId=self._name)['KeyMetadata']['Arn']}"

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        """The data key, encrypted by KMS and bound to ``context``, which its records show."""
        with self._told("wrap a data key with"):
            answer = self._client.encrypt(KeyId=self._own, Plaintext=data_key, EncryptionContext=dict(context))
            return cast(bytes, answer["CiphertextBlob"])

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The data key again; by this key alone, whichever the wrapped bytes name."""
        if not 0 < len(wrapped) <= LONGEST:
            raise Corrupt(f"what KMS key {self._name} has to unwrap is {len(wrapped)} bytes long", hint=_FOREIGN.hint)
        with self._told("unwrap a data key with"):
            answer = self._client.decrypt(KeyId=self._own, CiphertextBlob=wrapped, EncryptionContext=dict(context))
            return cast(bytes, answer["Plaintext"])

    @property
    def _own(self) -> str:
        return self.id.removeprefix("kms:")

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn boto3's errors into ours, and keep it from logging."""
        what = f"cannot {doing} KMS key {self._name}"
        try:
            with _hushed():
                yield
        except ClientError as error:
            raise _refusal(what, error) from error
        except _UNREACHED as error:
            raise StorageError(
                f"{what}: {' '.join(str(error).split())}", hint="look at the network, or correct [encryption] key"
            ) from error
        except _CREDENTIALS as error:
            raise StorageDenied(
                f"{what}: no usable credentials ({type(error).__name__})",
                hint="set [encryption] kms_access_key_id and kms_secret_access_key, or what boto3 looks for",
            ) from error
        except GuestagentError:
            raise
        except Exception as error:
            # Whatever botocore stumbles over.  Neither its words nor itself: a data key may stand in them.
            raise StorageError(
                f"{what}: an answer that nobody can read ({type(error).__name__})",
                hint="correct [encryption] kms_endpoint_url: what answers there does not speak KMS",
            ) from None


def _refusal(what: str, error: ClientError) -> GuestagentError:
    told = error.response.get("Error", {})
    code = told.get("Code", "")
    meaning = _MEANINGS.get(code) or _Meaning(StorageError, " ".join(told.get("Message", "").split()) or "refused", "")
    return meaning.kind(f"{what}: {meaning.why} ({code})", hint=meaning.hint)


def _connected(settings: KmsSettings, region: str) -> _Client:
    """A client in a session of its own; asks nothing of KMS yet."""
    _check(settings)
    options: Any = {"mode": "standard", "total_max_attempts": settings.max_attempts}
    try:
        session = boto3.session.Session(
            aws_access_key_id=settings.access_key_id or None,
            aws_secret_access_key=settings.secret_access_key or None,
            region_name=region or None,
        )
        client: Any = session.client(
            "kms",
            endpoint_url=settings.endpoint_url or None,
            verify=settings.ca_bundle or None,
            config=Config(
                retries=options, connect_timeout=settings.connect_timeout, read_timeout=settings.read_timeout
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"cannot set up KMS: {error}", hint="name the region in [encryption] key: kms://KEY?region=REGION"
        ) from error
    return cast(_Client, client)


def _check(settings: KmsSettings) -> None:
    if not (settings.access_key_id + settings.secret_access_key).isprintable():
        raise ConfigError("[encryption] kms_access_key_id or kms_secret_access_key has an unprintable character")
    if bool(settings.access_key_id) != bool(settings.secret_access_key):
        raise ConfigError(
            "[encryption] kms_access_key_id and kms_secret_access_key go together", hint="set both or none"
        )
    if "@" in settings.endpoint_url:
        raise ConfigError("[encryption] kms_endpoint_url holds credentials", hint="move them to kms_access_key_id")
    if settings.ca_bundle and not Path(settings.ca_bundle).exists():
        raise ConfigError(
            f"[encryption] kms_ca_bundle: no file {settings.ca_bundle}", hint="give a file of PEM certificates"
        )


_HUSHED: ContextVar[bool] = ContextVar("_HUSHED", default=False)


def _let_through(_: logging.LogRecord) -> bool:
    return not _HUSHED.get()


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing that botocore logs in this thread is seen by anybody."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "botocore":
            # A filter counts for its own logger, not for those below.  The same one is added only once.
            logging.getLogger(name).addFilter(_let_through)
    before = _HUSHED.set(True)
    try:
        yield
    finally:
        _HUSHED.reset(before)
