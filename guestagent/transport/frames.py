"""Frames: a version byte, a length, and that many bytes of JSON; and what a server says in one.

Nothing here reads or writes a socket.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Any

from oslo_serialization import jsonutils

from guestagent import document
from guestagent.errors import Corrupt, Refused, UsageError

VERSION = 1
LARGEST = 16 << 20
"""Bytes of JSON in one frame."""
PIECE = 256 << 10
"""Bytes to read from a socket at a time."""

_HEAD = struct.Struct("!BI")

Body = dict[str, Any]


class Word(StrEnum):
    """The ``kind`` of what a server says."""

    TAKEN = "taken"
    """A thread has the request."""
    ALIVE = "alive"
    """The call is worked on."""
    REPLY = "reply"
    FAILURE = "failure"
    UNKNOWN = "unknown"
    """There is no server of that name here."""


def pack(body: Body) -> bytes:
    """The frame that carries ``body``; raises UsageError if it is no JSON, and Refused if it is too big."""
    try:
        text = jsonutils.dump_as_bytes(body)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a message that is no JSON: {error}") from error
    if len(text) > LARGEST:
        raise Refused(f"a message of {len(text)} bytes is too big", hint=f"local:// carries at most {LARGEST} bytes")
    return _HEAD.pack(VERSION, len(text)) + text


class Assembler:
    """Puts frames together from pieces, however they are cut."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def empty(self) -> bool:
        """Whether no frame has begun."""
        return not self._bytes

    def feed(self, piece: bytes) -> None:
        """Add what has arrived."""
        self._bytes += piece

    def take(self) -> Body | None:
        """The next message, or None while it is not whole; raises Corrupt for what is no frame of ours."""
        if len(self._bytes) < _HEAD.size:
            return None
        end = _HEAD.size + self._length()
        if len(self._bytes) < end:
            return None
        text = bytes(self._bytes[_HEAD.size : end])
        del self._bytes[:end]
        return _unpacked(text)

    def _length(self) -> int:
        version, length = _HEAD.unpack_from(self._bytes)
        if version != VERSION:
            raise Corrupt(f"a frame of version {version}", hint=f"this side speaks version {VERSION}")
        if length > LARGEST:
            raise Corrupt(f"a frame of {length} bytes, where at most {LARGEST} are allowed")
        return int(length)


def _unpacked(text: bytes) -> Body:
    try:
        body = document.parsed(text, most=LARGEST)
    except ValueError as error:
        raise Corrupt(f"a frame that is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise Corrupt(f"a frame that holds no object but {type(body).__name__}")
    return body
