"""The object ``key.json`` beside an encrypted backup's manifest: the backup's data key, wrapped by a key of ours.

Pure values and their JSON.  It stands apart from the manifest so that a change of keys rewrites it alone: the
manifest, and with it the checksum that children and control planes know, stays as it is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guestagent.document import parsed
from guestagent.errors import Corrupt, Foreign
from guestagent.model import BackupId, InstanceId

FORMAT = 1
MAX_SIZE = 64 << 10
"""Bytes; one that this code writes has a few hundred."""

_PURPOSE = "guestagent data key 1"


@dataclass(frozen=True)
class WrappedKey:
    """A data key that only a holder of the key with ``key_id`` can open."""

    key_id: str
    wrapped: bytes

    def to_bytes(self) -> bytes:
        """As JSON."""
        document = {"format": FORMAT, "key_id": self.key_id, "wrapped": base64.b64encode(self.wrapped).decode()}
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> WrappedKey:
        """Read what ``to_bytes`` wrote; raises Corrupt."""
        try:
            found = parsed(data, most=MAX_SIZE)
        except ValueError as error:
            raise Corrupt(f"not JSON: {error}") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise _unknown(found)("not a wrapped key of a known format", hint="use a newer guestagent")
        return cls(_text(found, "key_id"), _decoded(_text(found, "wrapped")))


def context(instance: InstanceId, owner: BackupId) -> Mapping[str, str]:
    """What a wrapped key is bound to, so that it opens nothing but its own backup."""
    return {"instance_id": instance, "backup_id": owner, "purpose": _PURPOSE}


def _unknown(found: Any) -> type[Corrupt]:
    """What a document is that is none of this version's: a newer one's, perhaps."""
    stated = found.get("format") if isinstance(found, dict) else None
    return Foreign if isinstance(stated, int) and stated > FORMAT else Corrupt


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not value.isprintable():
        raise Corrupt(f"{key} is not a text")
    return value


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Corrupt("wrapped is not Base64") from error
