"""How the S3 driver reaches an endpoint: credentials, settings, connections and TLS."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from guestagent.errors import ConfigError, StorageDenied, StorageError
from guestagent.storage import S3Settings
from guestagent.storage.s3 import S3Storage
from tests.servers.ports import free_ports
from tests.servers.scripted_s3 import SECRET, Reply, ScriptedS3

BODY = b"0123456789" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
SHA256_BASE64 = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
WHOLE = Reply(body=BODY)
NOTHING = Reply()


def test_nobody_listens() -> None:
    (port,) = free_ports(1)
    settings = S3Settings(
        endpoint_url=f"http://127.0.0.1:{port}", access_key_id="a", secret_access_key=SECRET, max_attempts=1
    )
    with pytest.raises(StorageError, match=r"cannot read key in s3://bucket: .*correct .* endpoint_url"):
        S3Storage("bucket", prefix="", settings=settings).get("key", limit=1)


def test_an_endpoint_that_never_answers_times_out() -> None:
    # The server states more than it sends; the listing is read whole, so that is no answer at all.
    silent = Reply(body=b"<x>", headers={"Content-Length": "10"})
    began = time.monotonic()
    with ScriptedS3(silent) as server, pytest.raises(StorageError, match="does not answer"):
        list(server.open(max_attempts=1, read_timeout=0.2).list())
    assert time.monotonic() - began < 20


def test_a_connection_that_breaks_before_the_answer_is_told() -> None:
    broken = Reply(body=b"<x>", headers={"Content-Length": "10"}, cut_at=0, reset=True)
    with ScriptedS3(broken) as server, pytest.raises(StorageError, match="look at the store and the network"):
        list(server.open(max_attempts=1).list())


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with ScriptedS3(WHOLE) as server:
        store = server.open(access_key_id="", secret_access_key="")
        with pytest.raises(StorageDenied, match=r"no usable credentials .*set .*access_key_id"):
            store.get("key", limit=1)
        assert server.asked == []


def test_credentials_come_from_where_boto3_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with ScriptedS3(WHOLE) as server:
        server.open(access_key_id="", secret_access_key="").get("key", limit=len(BODY))
        assert "Credential=FROMENV/" in server.asked[0].headers["authorization"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"addressing_style": "diagonal"}, "cannot set up s3"),
        ({"request_checksum_calculation": "never"}, "cannot set up s3"),
        ({"endpoint_url": "nonsense"}, "cannot set up s3"),
        ({"max_attempts": 0}, "cannot set up s3"),
        ({"secret_access_key": ""}, "go together"),
        ({"secret_access_key": f"{SECRET}\n"}, "unprintable"),
        ({"endpoint_url": f"https://me:{SECRET}@store"}, "holds credentials"),
        ({"ca_bundle": "/no/such/file"}, "no file /no/such/file"),
    ],
)
def test_wrong_settings_are_told_at_once(changes: dict[str, Any], words: str) -> None:
    with ScriptedS3(WHOLE) as server, pytest.raises(ConfigError, match=words) as told:
        server.open(**changes)
    assert SECRET not in repr(told.value)
    assert SECRET not in str(told.value)


def test_settings_show_no_secret() -> None:
    assert SECRET not in repr(S3Settings(access_key_id="a", secret_access_key=SECRET))


@pytest.mark.parametrize(("style", "host"), [("virtual", "bucket.localhost"), ("path", "localhost")])
def test_the_addressing_style_is_obeyed(style: str, host: str) -> None:
    with ScriptedS3(WHOLE) as server:
        endpoint_url = server.endpoint_url.replace("127.0.0.1", "localhost")
        store = server.open(addressing_style=style, endpoint_url=endpoint_url)
        url = store._client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
    assert url.startswith(f"http://{host}:")


# ---- TLS ----


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its self-signed certificate for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + signed.public_bytes(encoding)
    )
    return path


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with ScriptedS3(WHOLE, certificate=certificate) as server:
        with pytest.raises(StorageError, match="ca_bundle"):
            server.open(max_attempts=1).get("key", limit=len(BODY))
        assert server.asked == []


def test_an_own_authority_is_trusted_and_the_body_is_hashed_once(certificate: Path) -> None:
    with ScriptedS3(NOTHING, certificate=certificate) as server:
        server.open(ca_bundle=str(certificate)).put("key", BODY, sha256=SHA256)
        server.open(ca_bundle=str(certificate), request_checksum_calculation="when_required").put("key", BODY)
        new, old = server.asked
    assert new.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert new.headers["x-amz-checksum-sha256"] == SHA256_BASE64
    assert old.headers["x-amz-content-sha256"] == SHA256
