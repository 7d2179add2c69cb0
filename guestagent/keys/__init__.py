"""The keys that wrap the data keys of backups: files of this host, or keys that never leave AWS KMS.

A key is told by its id, which is no secret; what it wraps, and what backups are, is not known here.  No key shows in a
``repr``, a log or an error.  Nothing is read, asked or imported before a key is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from guestagent.errors import ConfigError


class KeySource(Protocol):
    """One key that wraps data keys; safe to use from several threads."""

    @property
    def id(self) -> str:
        """What names the key in key.json: ``file:`` and 16 hexadecimal digits, or ``kms:`` and the key's ARN."""

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        """The data key, encrypted and bound to ``context``; raises StorageError where the key is elsewhere."""

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The data key again; raises Corrupt unless it was wrapped by this key, with that context, and is whole."""


@dataclass(frozen=True)
class KmsSettings:
    """How AWS KMS, or what speaks its language, is reached; empty strings leave the choice to boto3.

    ``max_attempts`` counts the first try; timeouts are in seconds.
    """

    endpoint_url: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    ca_bundle: str = ""
    max_attempts: int = 5
    connect_timeout: float = 10
    read_timeout: float = 30


@dataclass(frozen=True)
class KeySettings:
    """Where the keys are: one for new backups, in ``key_file`` or at ``kms``, and those of older backups."""

    key_file: Path | None = None
    old_key_files: tuple[Path, ...] = ()
    kms: str = field(default="", repr=False)
    old_kms: tuple[str, ...] = field(default=(), repr=False)
    access: KmsSettings = KmsSettings()


class KeyRing:
    """The keys at hand.  Backups name their key, and a key that is not configured here is never taken on their word."""

    def __init__(self, settings: KeySettings | None = None) -> None:
        self._settings = settings or KeySettings()

    @property
    def current(self) -> KeySource | None:
        """The key of new backups, or None: they are not encrypted then; raises ConfigError."""
        if self._settings.key_file is not None:
            return self._files[0]
        return self._in_kms[0] if self._settings.kms else None

    @property
    def old(self) -> tuple[KeySource, ...]:
        """The keys that only older backups need; raises ConfigError."""
        return self._files[self._settings.key_file is not None :] + self._in_kms[bool(self._settings.kms) :]

    def find(self, key_id: str) -> KeySource | None:
        """The key of that id, or None if it is not here; raises ConfigError for a key that cannot be had."""
        # Files first: KMS is asked for the id behind an alias, and need not be for what a file opens.
        return next((key for key in (*self._files, *self._in_kms) if key.id == key_id), None)

    def named(self, key_id: str) -> KeySource:
        """The key of that id; raises ConfigError if it is not here."""
        found = self.find(key_id)
        if found is None:
            option = "old_keys" if key_id.startswith("kms:") else "old_key_files"
            raise ConfigError(f"no key {key_id} here", hint=f"name it in [encryption] {option}")
        return found

    @cached_property
    def _files(self) -> tuple[KeySource, ...]:
        first = () if self._settings.key_file is None else (self._settings.key_file,)
        return tuple(_from_file(path) for path in (*first, *self._settings.old_key_files))

    @cached_property
    def _in_kms(self) -> tuple[KeySource, ...]:
        first = (self._settings.kms,) if self._settings.kms else ()
        return tuple(_from_kms(url, self._settings.access) for url in (*first, *self._settings.old_kms))


def open_keys(settings: KeySettings) -> KeyRing:
    """The keys of those settings; raises ConfigError if they name two for new backups."""
    if settings.key_file is not None and settings.kms:
        raise ConfigError(
            "[encryption] key_file and key are both set",
            hint="keep the one for new backups, and move the other to old_key_files or old_keys",
        )
    return KeyRing(settings)


def _from_file(path: Path) -> KeySource:
    from guestagent.keys.file import FileKey  # noqa: PLC0415  (cryptography only where there are keys)

    return FileKey(path)


def _from_kms(url: str, access: KmsSettings) -> KeySource:
    from guestagent.keys.kms import KmsKey  # noqa: PLC0415  (boto3 is slow to import)

    return KmsKey(url, access)
