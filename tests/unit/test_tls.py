"""What the errors of TLS come to in words, and files that cannot be used."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from guestagent.errors import ConfigError
from guestagent.tls import Files, Options, Terms, look, opened, trouble
from tests.servers.authority import Authority, Pair, encrypted, server_context
from tests.servers.tls_front import TlsFront

OPTIONS = Options(address="ADDRESS", switch="SWITCH", ca="CA", certificate="CERT", key="KEY")
PEER = "broker:5671"
BARE, SHOWING = Terms(OPTIONS, Files(ca="/ca.pem")), Terms(OPTIONS, Files(ca="/ca.pem", certificate="/own.pem"))


def of_theirs(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "something new"
    return error


def of_ours(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "terms", "what", "hint"),
    [
        (of_theirs(10), BARE, f"the certificate of {PEER} has expired", "renew it there"),
        (of_theirs(9), BARE, f"the certificate of {PEER} is not valid yet", "clock"),
        (of_theirs(62), BARE, f"the certificate of {PEER} is for another name", "ADDRESS"),
        (of_theirs(64), BARE, f"the certificate of {PEER} is for another name", "ADDRESS"),
        (of_theirs(19), BARE, f"the certificate of {PEER} is not signed by an authority in /ca.pem", "set CA to"),
        (of_theirs(20), Terms(OPTIONS), "is not signed by an authority that this system knows", "set CA to"),
        (of_theirs(99), BARE, f"the certificate of {PEER} is refused: something new", "CA"),
        (of_ours("WRONG_VERSION_NUMBER"), BARE, f"{PEER} does not speak TLS", "the port in ADDRESS"),
        (of_ours("TLSV1_ALERT_PROTOCOL_VERSION"), BARE, "has no version of TLS that is safe", "1.2"),
        (of_ours("TLSV13_ALERT_CERTIFICATE_REQUIRED"), BARE, f"{PEER} asks for a client certificate", "CERT and KEY"),
        (of_ours("SSLV3_ALERT_HANDSHAKE_FAILURE"), BARE, f"{PEER} asks for a client certificate", "CERT and KEY"),
        (of_ours("SSLV3_ALERT_CERTIFICATE_EXPIRED"), SHOWING, "our certificate /own.pem: certificate expired", "CERT"),
        (of_ours("TLSV1_ALERT_UNKNOWN_CA"), SHOWING, "our certificate /own.pem: unknown ca", "renew CERT"),
        (of_ours("SSLV3_ALERT_BAD_CERTIFICATE"), SHOWING, "our certificate /own.pem: bad certificate", "renew CERT"),
    ],
)
def test_an_error_in_words(error: ssl.SSLError, terms: Terms, what: str, hint: str) -> None:
    found = trouble(error, PEER, terms)
    assert found is not None
    assert what in found.what
    assert hint in found.hint
    assert str(found) == f"{found.what}; {found.hint}"


@pytest.mark.parametrize(
    "error",
    [
        OSError(104, "reset"),
        ssl.SSLEOFError(8, "EOF"),
        of_ours("SSLV3_ALERT_HANDSHAKE_FAILURE"),
        of_ours("INTERNAL_ERROR"),
        ssl.SSLError(1, "no reason at all"),
    ],
)
def test_what_is_not_certain_is_not_said(error: OSError) -> None:
    assert trouble(error, PEER, SHOWING) is None


def test_it_is_found_however_it_is_wrapped() -> None:
    class Carrying(Exception):
        def __init__(self, **kwargs: object) -> None:
            self.kwargs = kwargs

    class Reasoned(Exception):
        reason = of_theirs(10)

    by_cause = ValueError("outer")
    by_cause.__cause__ = of_theirs(10)
    loop = ValueError("loop")
    loop.__context__ = loop
    for error in (Carrying(error=of_theirs(10)), Reasoned(), by_cause, ValueError(loop, of_theirs(10))):
        assert trouble(error, PEER, BARE) is not None
    assert trouble(loop, PEER, BARE) is None


# -- files


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def pair(ours: Authority) -> Pair:
    return ours.server("127.0.0.1")


def test_terms_verify_the_certificate_and_its_name(ours: Authority, pair: Pair) -> None:
    for files in (
        Files(),
        Files(str(ours.certificate), str(pair.certificate), str(pair.key)),
        Files("", str(pair.both)),
    ):
        context = opened(files, OPTIONS).context
        assert context is not None
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_directory_of_authorities(ours: Authority) -> None:
    assert opened(Files(ca=str(ours.certificate.parent)), OPTIONS).context


def test_unusable_files(ours: Authority, pair: Pair, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_text("-----BEGIN NOISE-----\n")
    own, key, other = str(pair.certificate), str(pair.key), str(ours.server("b").key)
    for files, words in (
        (Files(ca=str(tmp_path / "none")), "CA: no file"),
        (Files(ca=f"{noise}/below"), "CA: cannot read"),
        (Files(ca=str(noise)), "CA: no certificate in"),
        (Files(key=key), "KEY is set and CERT is not"),
        (Files(certificate=own, key=str(tmp_path / "none")), "KEY: no file"),
        (Files(certificate=own), f"CERT: no certificate with its key in {own}"),
        (Files(certificate=own, key=other), "give the key that the certificate was made for"),
        (Files(certificate=own, key=str(encrypted(pair.key, b"secret"))), "the key without a password"),
        (Files(certificate=str(tmp_path), key=key), "CERT: no certificate with its key in"),
    ):
        with pytest.raises(ConfigError) as told:
            opened(files, OPTIONS)
        assert words in str(told.value)


# -- a second look


@pytest.fixture
def echo() -> Iterator[int]:
    """Somebody who speaks no TLS, and answers every first word."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def answer() -> None:
            while True:
                try:
                    one, _ = listener.accept()
                except OSError:
                    return
                with one:
                    one.recv(1 << 16)
                    one.sendall(b"AMQP\x00\x00\x09\x01")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_look_at_who_speaks_tls_and_who_does_not(ours: Authority, pair: Pair, echo: int) -> None:
    plain, secure = Terms(OPTIONS), opened(Files(ca=str(ours.certificate)), OPTIONS)
    with TlsFront(echo, server_context(pair)) as front:
        found = look("127.0.0.1", front.port, plain)
        assert found is not None
        assert (found.what, found.hint) == (f"127.0.0.1:{front.port} speaks TLS", "SWITCH")
        assert front.taken == 0
        assert "is for another name" in str(look("localhost", front.port, secure))
    assert look("127.0.0.1", echo, plain) is None
    assert "does not speak TLS" in str(look("127.0.0.1", echo, secure))
    assert look("127.0.0.1", 1, plain) is None
    assert look("127.0.0.1", 1, secure) is None


def test_a_farewell_is_heard(ours: Authority, pair: Pair, echo: int, tmp_path: Path) -> None:
    theirs = Authority(tmp_path / "theirs").client("me")
    files = Files(str(ours.certificate), str(theirs.certificate), str(theirs.key))
    with TlsFront(echo, server_context(pair, clients=ours.certificate)) as front:
        assert "unknown ca" in str(look("127.0.0.1", front.port, opened(files, OPTIONS)))
