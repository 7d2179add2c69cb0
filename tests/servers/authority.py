"""A certificate authority made in the test: it signs whatever a test wants to see accepted or refused.

    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    good = ours.server("127.0.0.1", "localhost")
    old = ours.server("127.0.0.1", expired=True)
    agent = ours.client("guest1")

Keys and certificates are PEM files; ``both`` of a pair is one file with the certificate first and its key behind it.
"""

from __future__ import annotations

import ipaddress
import itertools
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM, _PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
_DAY = timedelta(days=1)
_Usage = x509.ObjectIdentifier


@dataclass(frozen=True)
class Pair:
    """A certificate, its private key, and the file that holds both."""

    certificate: Path
    key: Path
    both: Path


class Authority:
    """One that signs; its own certificate is what the other side is to trust."""

    def __init__(self, place: Path, name: str = "test authority") -> None:
        self._place = place
        self._numbers = itertools.count(1)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = place / "ca.pem"
        place.mkdir(mode=0o755, exist_ok=True)
        own = self._begun(self._name, self._key, _DAY)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        own = own.add_extension(_ca_usage(), critical=True)
        self.certificate.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(_PEM))

    def server(self, *hosts: str, expired: bool = False) -> Pair:
        """What a server shows that goes by these names or addresses."""
        names = x509.SubjectAlternativeName([_named(host) for host in hosts])
        return self._signed(hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, -_DAY if expired else _DAY)

    def client(self, name: str, *, expired: bool = False) -> Pair:
        """What a client shows that is asked for a certificate."""
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        return self._signed(name, names, ExtendedKeyUsageOID.CLIENT_AUTH, -_DAY if expired else _DAY)

    def _signed(self, name: str, names: x509.SubjectAlternativeName, usage: _Usage, valid: timedelta) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, valid)
        made = made.add_extension(names, critical=False)
        made = made.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        return self._written(made.sign(self._key, hashes.SHA256()), key)

    def _begun(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, valid: timedelta) -> x509.CertificateBuilder:
        """A certificate that is valid until ``valid`` from now, and has been for a while."""
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * _DAY)
            .not_valid_after(now + valid)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def _written(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
        stem = self._place / f"signed{next(self._numbers)}"
        pair = Pair(stem.with_suffix(".pem"), stem.with_suffix(".key"), stem.with_suffix(".both"))
        shown = certificate.public_bytes(_PEM)
        secret = key.private_bytes(_PEM, _PKCS8, serialization.NoEncryption())
        for path, content in ((pair.certificate, shown), (pair.key, secret), (pair.both, shown + secret)):
            path.write_bytes(content)
            path.chmod(0o600)
        return pair


def encrypted(key: Path, password: bytes) -> Path:
    """The same key in a file that takes a password to open."""
    path = key.with_suffix(".locked")
    found = serialization.load_pem_private_key(key.read_bytes(), password=None)
    path.write_bytes(found.private_bytes(_PEM, _PKCS8, serialization.BestAvailableEncryption(password)))
    path.chmod(0o600)
    return path


def server_context(pair: Pair, *, clients: Path | None = None) -> ssl.SSLContext:
    """For a server that shows ``pair``; with ``clients`` it lets in whoever has a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


def _named(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
