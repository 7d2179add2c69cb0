"""The bytes of a manifest: canonical JSON, its digests, and how documents of two versions lie over each other.

What a manifest's keys are is no business of this module's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from guestagent.errors import Corrupt

SEAL = "digest"
"""The key of a document's own digest."""
MAC = "mac"
"""The key of an encrypted backup's proof."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of characters, as Python reads them from bytes that are not UTF-8; no Unicode text has them."""


def digest(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in lower-case hex, the only digest that manifests use."""
    return hashlib.sha256(data).hexdigest()


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as in ``2026-11-22T14:00:00.125Z``; ``moment`` must be UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def sealed(document: Mapping[str, Any]) -> bytes:
    """A manifest's document as it is stored: canonical, with the SHA-256 of all the rest under ``digest``.

    Nothing else could tell a damaged name or time of the newest link; those below it are proven by
    their children.
    """
    return _canonical({**document, SEAL: seal_of(document)})


def seal_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of what the seal is about: all but itself."""
    return digest(_canonical({key: value for key, value in document.items() if key != SEAL}))


def core_of(document: Mapping[str, Any]) -> str:
    """SHA-256 of what the MAC is about: all but it and the seal over it."""
    return digest(_canonical({key: value for key, value in document.items() if key not in (SEAL, MAC)}))


def _canonical(document: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except RecursionError as error:
        raise Corrupt("manifest: it is nested too deeply") from error
    return SURROGATE.sub("\ufffd", text).encode()


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, object by object, so that unknown keys stay where they were."""
    result = dict(below)
    for key, value in above.items():
        under = below.get(key)
        result[key] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return result


def beyond(found: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What ``found`` has and ``known`` has not, object by object."""
    result = {key: value for key, value in found.items() if key not in known}
    for key in found.keys() & known.keys():
        if isinstance(found[key], dict) and (below := beyond(found[key], known[key])):
            result[key] = below
    return result
