"""A manifest's JSON, read as if a stranger had written it: bounded first, then key by key, each of one type and range.

What the keys mean stands with the values that are made of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from guestagent.document import check_size, finite, no_number, once
from guestagent.errors import Corrupt, UsageError
from guestagent.manifest.canonical import SURROGATE
from guestagent.model import MAX_LSN

MAX_MANIFEST = 256 << 20
MAX_SEGMENTS = 1_000_000
MAX_FILES = 4_000_000
MAX_TEXT = 1 << 20
"""Characters of one text."""
MAX_SEGMENT_SIZE = 256 << 20

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ABSENT = object()
_MOST_VALUES = 6 * MAX_SEGMENTS
"""As document.check_size counts them: five a segment, and some more."""
T = TypeVar("T")


class Reader:
    """Reads one JSON object of a manifest, key by key, with errors that name the key."""

    def __init__(self, value: Any, where: str = "manifest") -> None:
        if not isinstance(value, dict):
            raise Corrupt(f"{where} is not a JSON object")
        self._value = value
        self._where = where

    def take(self, key: str, kind: type[T]) -> T:
        """The value of ``key``, which must be exactly of type ``kind``."""
        value = self._value.get(key, _ABSENT)
        if type(value) is not kind:
            wrong = "missing" if value is _ABSENT else f"of type {type(value).__name__}, not {kind.__name__}"
            raise Corrupt(f"{self._where}: {key} is {wrong}")
        return value

    def text(self, key: str) -> str:
        """A text that can be shown and written again."""
        value = self.take(key, str)
        if len(value) > MAX_TEXT:
            raise Corrupt(f"{self._where}: {key} has more than {MAX_TEXT} characters")
        if SURROGATE.search(value):
            raise Corrupt(f"{self._where}: {key} is not Unicode text")
        return value

    def number(self, key: str, *, most: int = MAX_LSN) -> int:
        """A whole number from 0 to ``most``."""
        value = self.take(key, int)
        if not 0 <= value <= most:
            raise Corrupt(f"{self._where}: {key} is out of range: {value}")
        return value

    def numbers(self, key: str, *, most: int) -> list[int]:
        """A list of whole numbers from 0 to ``most``; empty where there is none."""
        found = self.take(key, list) if key in self._value else []
        if not all(type(value) is int and 0 <= value <= most for value in found):
            raise Corrupt(f"{self._where}: {key} has what is no whole number from 0 to {most}")
        return found

    def one_of(self, key: str, *choices: str) -> str:
        """A word out of ``choices``."""
        value = self.text(key)
        if value not in choices:
            raise Corrupt(f"{self._where}: {key} is {value[:80]!r}, not one of {', '.join(choices)}")
        return value

    def moment(self, key: str) -> datetime:
        """A UTC time in the form that ``timestamp`` writes."""
        try:
            return datetime.strptime(self.text(key), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        except ValueError as error:
            raise Corrupt(f"{self._where}: {key} is not a time: {error}") from error

    def checked(self, key: str, check: Callable[[str], T]) -> T:
        """A text that ``check`` accepts."""
        text = self.text(key)
        try:
            return check(text)
        except (UsageError, Corrupt) as error:
            raise Corrupt(f"{self._where}: {key}: {error.what}") from error

    def sha256(self, key: str) -> str:
        """A digest in lower-case hex."""
        value = self.text(key)
        if not _DIGEST.fullmatch(value):
            raise Corrupt(f"{self._where}: {key} is not a sha256")
        return value

    def below(self, key: str) -> Reader:
        """The object under ``key``."""
        return Reader(self.take(key, dict), f"{self._where}: {key}")

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """What ``read`` makes of ``key``, or None where it is null."""
        return None if self._value.get(key, _ABSENT) is None else read(key)


def load(data: bytes) -> Any:
    """What the bytes say, whatever it is; raises Corrupt for more than any manifest holds, and for what is no JSON."""
    if len(data) > MAX_MANIFEST:
        raise Corrupt(f"manifest of {len(data)} bytes is larger than any that this version writes")
    try:
        check_size(data, _MOST_VALUES)
        return json.loads(
            data.decode(),
            object_pairs_hook=once,
            parse_constant=no_number,
            parse_float=finite,
        )
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"manifest is not JSON: {error}") from error
