"""How one key wraps another: AES-256-GCM under a key made for that by HKDF-SHA256, bound to a context.

docs/format.rst has the form.  Where keys come from is not known here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from guestagent.errors import Corrupt

KEY_SIZE = 32
NONCE_SIZE = 12
ID_DIGITS = 16

_ID, _WRAP = b"guestagent key id 1", b"guestagent wrap 1"


class Envelope:
    """What can be done with a key of 32 bytes; keeps none that Python could show."""

    def __init__(self, key: bytes) -> None:
        self.id = _derived(key, _ID).hex()[:ID_DIGITS]
        self._cipher = AESGCM(_derived(key, _WRAP))

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        """A random nonce, the ciphertext and its tag."""
        nonce = os.urandom(NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, data_key, _bound(context))

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """What was wrapped; raises Corrupt."""
        try:
            return self._cipher.decrypt(wrapped[:NONCE_SIZE], wrapped[NONCE_SIZE:], _bound(context))
        except (InvalidTag, ValueError) as error:
            raise Corrupt(
                f"a wrapped data key does not open under key file:{self.id}",
                hint="it was changed, or belongs to another backup",
            ) from error


def _bound(context: Mapping[str, str]) -> bytes:
    return json.dumps(dict(context), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=None, info=purpose).derive(key)
