"""Trove's optional encryption of messages, as its ``enable_secure_rpc_messaging`` has it.

The form is Trove's, and old: AES-256 in CBC mode under a key that is the hexadecimal MD5 of the configured text, a
random IV before the ciphertext, PKCS #7 padding, all of it in Base64.  It keeps secrets from who reads the queue.  It
proves nothing of who wrote there, and a message can be sent a second time: see docs/rpc.rst.

Each argument is encrypted by itself, and so are the context and a reply; the method's name and the names of the
arguments are not, nor is an error that is answered.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from oslo_serialization import jsonutils

from guestagent.errors import Refused
from guestagent.transport.oslo import messaging

CONTEXT = "context"
"""The key under which an encrypted context travels."""
INSTANCE = "csz-instance-id"
"""The key that tells the conductor whose key to use."""
ENTITY = "entity"

_BLOCK = algorithms.AES.block_size // 8
_HINT = "set instance_rpc_encr_key to the key that Trove has for this instance"


class Box:
    """Values in and out of Trove's form, under one key."""

    def __init__(self, key: str) -> None:
        digest = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
        self._aes = algorithms.AES(digest.encode())

    def seal(self, value: Any) -> str:
        """A value that JSON can hold, encrypted."""
        padder = PKCS7(algorithms.AES.block_size).padder()
        padded = padder.update(jsonutils.dumps(value).encode()) + padder.finalize()
        iv = os.urandom(_BLOCK)
        encryptor = Cipher(self._aes, modes.CBC(iv)).encryptor()
        return base64.b64encode(iv + encryptor.update(padded) + encryptor.finalize()).decode()

    def open(self, sealed: Any) -> Any:
        """The value that was encrypted; raises Refused, which never says how far it came."""
        try:
            return jsonutils.loads(self._decrypted(base64.b64decode(sealed, validate=True)))
        except (ValueError, TypeError, RecursionError) as error:
            raise Refused("a message that does not decrypt", hint=_HINT) from error

    def _decrypted(self, data: bytes) -> bytes:
        decryptor = Cipher(self._aes, modes.CBC(data[:_BLOCK])).decryptor()
        padded = decryptor.update(data[_BLOCK:]) + decryptor.finalize()
        unpadder = PKCS7(algorithms.AES.block_size).unpadder()
        return unpadder.update(padded) + unpadder.finalize()


class GuestSerializer(messaging.Serializer):  # type: ignore[misc]
    """For both sides of an agent's topic: Trove's SecureSerializer.  Plain messages are refused."""

    def __init__(self, key: str) -> None:
        self._box = Box(key)

    def serialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """An argument or a reply on its way out."""
        return self._box.seal(entity)

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """An argument or a reply that came in."""
        return self._box.open(entity)

    def serialize_context(self, ctxt: Any) -> dict[str, Any]:
        """The context on its way out."""
        return {CONTEXT: self._box.seal(ctxt)}

    def deserialize_context(self, ctxt: Any) -> Any:
        """The context that came in."""
        if CONTEXT not in ctxt:
            raise Refused("a message that is not encrypted, and instance_rpc_encr_key is set", hint=_HINT)
        return self._box.open(ctxt[CONTEXT])


class ConductorSerializer(messaging.Serializer):  # type: ignore[misc]
    """For casts to the conductor, which finds the key by the instance's id that travels beside each value."""

    def __init__(self, key: str, *, instance: str) -> None:
        self._box = Box(key)
        self._instance = instance

    def serialize_entity(self, ctxt: Any, entity: Any) -> str:
        """An argument on its way out: JSON in a text, as the conductor expects it."""
        text: str = jsonutils.dumps({ENTITY: self._box.seal(entity), INSTANCE: self._instance})
        return text

    def serialize_context(self, ctxt: Any) -> dict[str, Any]:
        """The context on its way out."""
        return {CONTEXT: self._box.seal(ctxt), INSTANCE: self._instance}

    def deserialize_entity(self, ctxt: Any, entity: Any) -> Any:
        """Nothing is answered to a cast."""
        return entity

    def deserialize_context(self, ctxt: Any) -> Any:
        """Nothing is answered to a cast."""
        return ctxt
