"""TLS in words: whose certificate keeps two sides from talking, and which option or file to look at.

It reads certificate files, and looks at who answers at a port; those who trust somebody there verify always whom,
the name included.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from guestagent.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What the options are called that a connection depends on, for hints; ``switch`` is how to have it with TLS."""

    address: str
    switch: str
    ca: str
    certificate: str
    key: str


@dataclass(frozen=True)
class Files:
    """PEM files: the authorities to trust (empty: the system's own), and what we show (empty: nothing).

    The key may lie in the certificate's file.
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True)
class Terms:
    """What we want of a connection; ``context`` is None where it is to be without TLS."""

    options: Options
    files: Files = Files()
    context: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Trouble:
    """What is wrong, and what to do about it."""

    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}"


LOOK = 3.0
"""Seconds for a look at who answers at a port."""
_HANDSHAKE = b"\x16\x03"
"""What an answer to TLS's first words begins with."""

_NOT_YET, _EXPIRED = 9, 10
_OTHER_NAME = (62, 63, 64)
_UNKNOWN = (2, 18, 19, 20, 21, 27)
"""OpenSSL's codes for a certificate that leads to no authority which is trusted."""

_NO_TLS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_OTHER_VERSION = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW")
_WANTED = ("CERTIFICATE_REQUIRED", "ALERT_HANDSHAKE_FAILURE", "ALERT_NO_CERTIFICATE", "ALERT_BAD_CERTIFICATE")
_REFUSED: tuple[str, ...] = (
    "UNKNOWN_CA",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_EXPIRED",
    "UNSUPPORTED_CERTIFICATE",
)
_REFUSED += ("ALERT_BAD_CERTIFICATE", "ALERT_ACCESS_DENIED", "ALERT_DECRYPT_ERROR", "ALERT_CERTIFICATE")


def opened(files: Files, options: Options) -> Terms:
    """Terms that verify the other side and its name, and show who we are; raises ConfigError for unusable files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if files.key and not files.certificate:
        raise ConfigError(f"{options.key} is set and {options.certificate} is not", hint="set both or none")
    for option, path in ((options.ca, files.ca), (options.certificate, files.certificate), (options.key, files.key)):
        _check_readable(option, path)
    if files.ca:
        _trust(context, files.ca, options.ca)
    else:
        context.load_default_certs()
    if files.certificate:
        _show(context, files, options)
    return Terms(options, files, context)


def _check_readable(option: str, path: str) -> None:
    try:
        if path and not Path(path).is_dir():
            Path(path).open("rb").close()
    except OSError as error:
        told = f"no file {path}" if isinstance(error, FileNotFoundError) else f"cannot read {path}: {error.strerror}"
        raise ConfigError(f"{option}: {told}", hint="give a PEM file that the agent's user may read") from error


def _trust(context: ssl.SSLContext, path: str, option: str) -> None:
    try:
        context.load_verify_locations(**{"capath" if Path(path).is_dir() else "cafile": path})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option}: no certificate in {path}", hint="give a file of PEM certificates") from error


def _show(context: ssl.SSLContext, files: Files, options: Options) -> None:
    try:
        # Without a password, OpenSSL asks for one on the terminal.
        context.load_cert_chain(files.certificate, files.key or None, password=lambda: b"")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or ""
        if reason == "KEY_VALUES_MISMATCH":
            hint = "give the key that the certificate was made for"
        else:
            hint = f"give PEM files, the key without a password, in {options.key} or behind the certificate"
        places = " and ".join(dict.fromkeys(path for path in (files.certificate, files.key) if path))
        raise ConfigError(f"{options.certificate}: no certificate with its key in {places}", hint=hint) from error


def trouble(error: BaseException, peer: str, terms: Terms) -> Trouble | None:
    """Why there is no TLS with ``peer``, if ``error``, or one that it came from, says so for certain."""
    for one in _all(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return _of_theirs(one, peer, terms)
        if isinstance(one, ssl.SSLError) and (found := _of_ours(one, peer, terms)):
            return found
    return None


def _all(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it came from or carries: libraries wrap those of TLS in one another."""
    found = [error]
    for one in found:  # grows while it is walked
        yield one
        carried = [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        carried += getattr(one, "kwargs", {}).values()
        found += [more for more in carried if isinstance(more, BaseException) and more not in found]


def _of_theirs(error: ssl.SSLCertVerificationError, peer: str, terms: Terms) -> Trouble:
    """We refused their certificate."""
    files, options = terms.files, terms.options
    code, whose = error.verify_code, f"the certificate of {peer}"
    if code == _EXPIRED:
        return Trouble(f"{whose} has expired", "renew it there, or set this host's clock")
    if code == _NOT_YET:
        return Trouble(f"{whose} is not valid yet", "set this host's clock, or look at the certificate")
    if code in _OTHER_NAME:
        hint = f"give the name in the certificate as host in {options.address}, or renew the certificate for this name"
        return Trouble(f"{whose} is for another name", hint)
    if code in _UNKNOWN:
        known = f"an authority in {files.ca}" if files.ca else "an authority that this system knows"
        return Trouble(f"{whose} is not signed by {known}", f"set {options.ca} to the certificate of its authority")
    return Trouble(f"{whose} is refused: {error.verify_message}", f"look at it, and at {options.ca}")


def _of_ours(error: ssl.SSLError, peer: str, terms: Terms) -> Trouble | None:
    """They refused ours, or do not speak as we do."""
    files, options = terms.files, terms.options
    reason = getattr(error, "reason", None) or ""
    if any(word in reason for word in _NO_TLS):
        return Trouble(f"{peer} does not speak TLS", f"correct the port in {options.address}")
    if any(word in reason for word in _OTHER_VERSION):
        return Trouble(f"{peer} has no version of TLS that is safe", "let it speak TLS 1.2 or newer")
    if not files.certificate and any(word in reason for word in _WANTED):
        hint = f"set {options.certificate} and {options.key} to one that it accepts"
        return Trouble(f"{peer} asks for a client certificate, and there is none", hint)
    if any(word in reason for word in _REFUSED):
        words = reason.partition("ALERT_")[2].replace("_", " ").lower()
        hint = f"renew {options.certificate}, or have it signed by an authority that it knows"
        return Trouble(f"{peer} refuses our certificate {files.certificate}: {words}", hint)
    return None


def look(host: str, port: int, terms: Terms) -> Trouble | None:
    """Why who answers there broke off, found by connecting once more.

    It only listens: what is said in farewell gets lost where one has spoken before.
    """
    peer = f"{host}:{port}"
    if terms.context is None:
        return Trouble(f"{peer} speaks TLS", terms.options.switch) if _is_spoken(host, port) else None
    try:
        with (
            socket.create_connection((host, port), timeout=LOOK) as plain,
            terms.context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.recv(1)
    except OSError as error:
        return trouble(error, peer, terms)
    return None


def _is_spoken(host: str, port: int) -> bool:
    """Whether who answers there speaks TLS; nothing is told to it, and nothing believed."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    speaker = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(theirs, ours, server_hostname=host)
    with suppress(ssl.SSLWantReadError):
        speaker.do_handshake()
    try:
        with socket.create_connection((host, port), timeout=LOOK) as connection:
            connection.sendall(ours.read())
            return connection.recv(len(_HANDSHAKE)) == _HANDSHAKE
    except OSError:
        return False
