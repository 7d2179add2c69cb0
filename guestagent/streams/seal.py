"""Encryption of one backup under its data key: segments, the manifest's words, and the manifest's MAC.

The data key is 32 random bytes that are made anew for every attempt; who may have it is the business of
``keys``.  From it come, by HKDF-SHA256 (RFC 5869), one key for each purpose.  docs/format.rst has the form.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
from dataclasses import replace
from typing import Any

from guestagent.errors import Corrupt
from guestagent.manifest import Encryption, Manifest
from guestagent.model import BackupId, Binlog

CIPHER = "AES-256-GCM"
KEY_SIZE = 32
TAG_SIZE = 16
NONCE_SIZE = 12
"""Bytes, as NIST SP 800-38D recommends for GCM."""

HIDDEN = "(sealed)"
"""What stands for a name that cannot be read without the key."""

_SEGMENTS, _WORDS, _MAC = b"guestagent segments 1", b"guestagent words 1", b"guestagent manifest 1"


def new_data_key() -> bytes:
    """A data key for one attempt to take a backup."""
    return os.urandom(KEY_SIZE)


class Seal:
    """What is done with one backup's data key; may be used from several threads."""

    def __init__(self, data_key: bytes, backup: BackupId) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  (only where keys are in use)

        self._backup = backup
        self._segments = AESGCM(_derived(data_key, _SEGMENTS))
        self._words = AESGCM(_derived(data_key, _WORDS))
        self._mac = _derived(data_key, _MAC)

    def close(self, index: int, last: bool, plain: bytes) -> bytes:
        """A segment's bytes as they are stored: ciphertext and tag.  Each index once: the nonce is made of it."""
        return self._segments.encrypt(_nonce(index), plain, self._place(index, last))

    def open(self, index: int, last: bool, stored: bytes, into: memoryview) -> memoryview:
        """A segment's bytes as they were, at the begin of ``into``, which has room for as many as are stored.

        Raises Corrupt for any other bytes than those that were stored in that place.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        opened = into[: max(0, len(stored) - TAG_SIZE)]
        try:
            self._segments.decrypt_into(_nonce(index), stored, self._place(index, last), opened)
            return opened
        except (InvalidTag, ValueError) as error:
            raise Corrupt("a segment does not open under the backup's key: it was not made for this place") from error

    def lock(self, manifest: Manifest) -> Manifest:
        """The manifest with what is for people put under the key, and a MAC over all of it."""
        words = {
            "name": manifest.name,
            "description": manifest.description,
            "binlog": None if manifest.binlog is None else vars(manifest.binlog),
        }
        nonce = os.urandom(NONCE_SIZE)
        closed = nonce + self._words.encrypt(nonce, json.dumps(words).encode(), self._backup.encode())
        hidden = replace(
            manifest,
            name="",
            description="",
            binlog=None,
            encryption=Encryption(CIPHER, base64.b64encode(closed).decode()),
        )
        return replace(hidden, mac=self._mac_of(hidden.core()))

    def unlock(self, manifest: Manifest) -> Manifest:
        """The manifest with its words, once its MAC has proven that whoever wrote it had the key; raises Corrupt."""
        if manifest.encryption is None or not hmac.compare_digest(manifest.mac or "", self._mac_of(manifest.as_read)):
            raise Corrupt("manifest: its MAC does not fit: it was not written by a holder of the key")
        words = self._opened(manifest.encryption.sealed)
        try:
            binlog = words["binlog"]
            return replace(
                manifest,
                name=str(words["name"]),
                description=str(words["description"]),
                binlog=Binlog(**binlog) if binlog is not None else None,
            )
        except (KeyError, TypeError) as error:
            raise Corrupt("manifest: its sealed part is not what this version writes") from error

    def _opened(self, sealed: str) -> Any:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        try:
            closed = base64.b64decode(sealed, validate=True)
            plain = self._words.decrypt(closed[:NONCE_SIZE], closed[NONCE_SIZE:], self._backup.encode())
            return json.loads(plain)
        except (InvalidTag, ValueError) as error:
            raise Corrupt("manifest: its sealed part does not open") from error

    def _mac_of(self, core: str) -> str:
        return hmac.new(self._mac, core.encode(), "sha256").hexdigest()

    def _place(self, index: int, last: bool) -> bytes:
        """What a segment is bound to: this backup, this index, and whether it is the last one."""
        place = {"backup_id": self._backup, "index": index, "last": last}
        return json.dumps(place, sort_keys=True, separators=(",", ":")).encode()


def _nonce(index: int) -> bytes:
    return index.to_bytes(NONCE_SIZE, "big")


def _derived(key: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=None, info=purpose).derive(key)
