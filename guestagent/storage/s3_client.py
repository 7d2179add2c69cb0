"""boto3's client, set up from our settings: credentials, addresses, retries, TLS.

It asks nothing of any endpoint; what is asked, and what an answer means, is the driver's.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ConnectionClosedError, SSLError

from guestagent import tls
from guestagent.errors import ConfigError
from guestagent.storage import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TLS = tls.Options(
    address="[s3] endpoint_url",
    switch="begin [s3] endpoint_url with https://",
    ca="[s3] ca_bundle",
    certificate="[s3] client_cert",
    key="[s3] client_key",
)
PORTS = {"http": 80, "https": 443}
_BROKE_OFF = (ConnectionClosedError, SSLError)
_SIGNATURE = "guestagent-s3v4"
"""The name under which botocore finds our variant of its ``s3v4``."""


class _SignedOnce(S3SigV4Auth):
    """The signature of S3, which takes the SHA-256 of a body from the checksum header that it signs, if there is one.

    Without TLS the signature covers the body.  To hash it once more costs as much as half of its compression.
    """

    def payload(self, request: AWSRequest) -> str:
        """The hexadecimal SHA-256 of the body, or whatever else the signature has in its place."""
        known = request.headers.get("x-amz-checksum-sha256")
        return base64.b64decode(known).hex() if known else super().payload(request)


AUTH_TYPE_MAPS[_SIGNATURE] = _SignedOnce


class Untrusted(BotoCoreError):
    """TLS will not come about, however often it is tried; ``kwargs`` has the hint."""

    fmt = "{what}"


def connected(settings: S3Settings) -> S3Client:
    """A client in a session of its own; asks nothing of the endpoint yet."""
    terms = _checked(settings)
    try:
        session = boto3.session.Session(
            aws_access_key_id=settings.access_key_id or None,
            aws_secret_access_key=settings.secret_access_key or None,
            region_name=settings.region_name or None,
        )
        client = session.client(
            "s3",
            endpoint_url=settings.endpoint_url or None,
            verify=settings.ca_bundle or None,
            config=_config(settings),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"cannot set up s3: {error}", hint="correct the options of [s3]") from error
    client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
    if not _has_tls(settings):
        client.meta.events.register("choose-signer.s3.PutObject", _sign_once)
    client.meta.events.register_first("needs-retry.s3", _give_up(settings, terms))
    return client


def _sign_once(signature_version: object, **_: Any) -> Any:
    """Our signature instead of botocore's, where that is the usual one."""
    return _SIGNATURE if signature_version in ("v4", "s3v4") else None


def _give_up(settings: S3Settings, terms: tls.Terms) -> Callable[..., None]:
    """What ends the tries, each after a longer pause, where the other side will be as little trusted at the last."""
    place = urlsplit(settings.endpoint_url)
    peer = place.netloc or "the store"

    def give_up(caught_exception: Exception | None = None, **_: Any) -> None:
        if caught_exception is None:
            return
        found = tls.trouble(caught_exception, peer, terms)
        if found is None and isinstance(caught_exception, _BROKE_OFF) and place.hostname:
            found = tls.look(place.hostname, place.port or PORTS[place.scheme], terms)
        if found is not None:
            raise Untrusted(what=found.what, hint=found.hint) from caught_exception

    return give_up


def _checked(settings: S3Settings) -> tls.Terms:
    """What is wanted of TLS; raises ConfigError for what boto3 would take, or tell late."""
    if not (settings.access_key_id + settings.secret_access_key).isprintable():
        raise ConfigError("[s3] access_key_id or secret_access_key has an unprintable character", hint="correct it")
    if bool(settings.access_key_id) != bool(settings.secret_access_key):
        raise ConfigError("[s3] access_key_id and secret_access_key go together", hint="set both or none")
    if "@" in settings.endpoint_url:
        raise ConfigError("[s3] endpoint_url holds credentials", hint="move them to access_key_id, secret_access_key")
    terms = tls.opened(tls.Files(settings.ca_bundle, settings.client_cert, settings.client_key), TLS)
    return terms if _has_tls(settings) else tls.Terms(TLS)


def _has_tls(settings: S3Settings) -> bool:
    return not settings.endpoint_url.startswith("http:")


def _config(settings: S3Settings) -> Config:
    s3: dict[str, Any] = {"addressing_style": settings.addressing_style}
    if settings.request_checksum_calculation == "when_supported" and _has_tls(settings):
        # TLS and the signed checksum header protect the body: spare the signature's own SHA-256 over it.
        s3["payload_signing_enabled"] = False
    options: dict[str, Any] = {
        "s3": s3,
        "retries": {"mode": "standard", "total_max_attempts": settings.max_attempts},
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.read_timeout,
        "max_pool_connections": settings.max_pool_connections,
        "request_checksum_calculation": settings.request_checksum_calculation,
        "response_checksum_validation": "when_required",
        "tcp_keepalive": True,
    }
    if settings.client_cert:
        options["client_cert"] = (settings.client_cert, settings.client_key or None)
    return Config(**options)


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Old stores refuse DeleteObjects without Content-MD5, new ones take it beside botocore's checksum."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
