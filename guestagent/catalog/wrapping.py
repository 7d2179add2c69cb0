"""Which keys a backup needs, and how its data key is wrapped anew: the only good copy of it is never overwritten.

While ``key.json`` is replaced, ``key.next.json``, its spare, holds the same data key.  Hosts that do so at once share
that name.  Whoever finds no spare claims it by a conditional put, and of two that do so one leaves the backup to the
other.  A spare that is there may be one of the dead, and is taken over; should it have been of the living, it is gone
when that one ends.  So whoever has put key.json, or deleted the spare, looks at key.json once more, and makes a spare
where it is of no use.  What another rotation has put in its place is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from guestagent.catalog.layout import key_key, spare_key, split_location
from guestagent.catalog.objects import check_held
from guestagent.catalog.reading import Reader, twice
from guestagent.errors import Busy, Corrupt, ObjectExists, StorageDenied
from guestagent.keys import KeySource
from guestagent.manifest import Backup, digest
from guestagent.storage import Storage
from guestagent.wrapped import WrappedKey, context

LOG = logging.getLogger(__name__)
T = TypeVar("T")
_Look = Callable[[str], WrappedKey | None]
"""Reads a wrapped key of the backup at a location; raises Corrupt."""


@dataclass(frozen=True)
class Wrapping:
    """The ids of the keys that a backup's key.json and its spare name, in that order, each once.

    It is not ``finished`` where a rotation that was stopped has left a spare, or key.json cannot be read.
    """

    key_ids: tuple[str, ...] = ()
    finished: bool = True


def look(reader: Reader, location: str) -> Wrapping:
    """What wraps an encrypted backup's data key; raises Corrupt where neither object tells."""
    key, spare = _told(lambda: reader.wrapped(location)), _told(lambda: reader.spare(location))
    named = [one.key_id for one in (key, spare) if isinstance(one, WrappedKey)]
    if isinstance(key, Corrupt) and not named:
        raise key
    return Wrapping(tuple(dict.fromkeys(named)), finished=isinstance(key, WrappedKey) and spare is None)


def _told(read: Callable[[], T]) -> T | Corrupt:
    try:
        return twice(read)
    except Corrupt as error:
        return error


def rewrap(store: Storage, reader: Reader, backup: Backup, new: KeySource) -> None:
    """Replace key.json; a spare stands beside it until the store gives the new one back.

    A spare that is there and good stays as it is: it may be the only good copy.  Stopped anywhere, this leaves one
    that a key opens, and a next time finishes it.  Raises Busy where another rotation does the same.
    """
    change = _Change(store, reader, backup, new, _wrapped_anew(backup, new))
    if not reader.has_good_spare(backup):
        _put_spare(change)
    before = _told(lambda: reader.wrapped(backup.location))
    try:
        change.put(change.key, reader.wrapped, before=before)
        _remove(store, change.spare, change.body)
        change.check(change.key, reader.wrapped, before=before)
    except Corrupt:
        _stand_in(change)
        raise


@dataclass(frozen=True)
class _Change:
    """A backup's data key and how it is wrapped from now on: ``body``, by the key ``new``."""

    store: Storage
    reader: Reader
    backup: Backup
    new: KeySource
    body: bytes

    @property
    def key(self) -> str:
        """The key of key.json."""
        return key_key(*split_location(self.backup.location)[1:])

    @property
    def spare(self) -> str:
        """The key of the spare."""
        return spare_key(*split_location(self.backup.location)[1:])

    def put(self, key: str, look: _Look, *, before: WrappedKey | Corrupt | None) -> None:
        """Put the body, once more if the store does not give it back; a key that was free ``before`` is claimed.

        ``look`` reads what lies there.  Raises as ``check``.
        """

        def replace() -> None:
            self.store.put(key, self.body, sha256=digest(self.body))
            self.check(key, look, before=before)

        def claim() -> None:
            self._claim(key, look)
            self.check(key, look, before=before)

        twice(claim if before is None else replace, again=replace)

    def _claim(self, key: str, look: _Look) -> None:
        try:
            self.store.put_new(key, self.body)
        except ObjectExists as error:  # ours, perhaps: a request may arrive twice
            found = _told(lambda: look(self.backup.location))
            if found != WrappedKey.from_bytes(self.body):
                raise self._busy("has just begun") from error

    def check(self, key: str, look: _Look, *, before: WrappedKey | Corrupt | None) -> None:
        """Raise Corrupt unless the store gives back what was put, or what another has wrapped by the same key.

        Busy, where another has wrapped it by a key of its own: it is neither ours nor what lay there ``before``.
        """
        try:
            check_held(self.store, key, self.body)
        except Corrupt as error:
            found = _told(lambda: look(self.backup.location))
            if not isinstance(found, WrappedKey) or found == before:
                raise
            if found.key_id != self.new.id:
                raise self._busy(f"has just wrapped it with key {found.key_id}") from error
            _check_opens(self.backup, self.new, found.wrapped)

    def _busy(self, does: str) -> Busy:
        return Busy(
            f"another rotation of the key of backup {self.backup.id} {does}",
            hint="let it end, see by `guestagent key list` which keys are in use, and rotate again",
        )


def _stand_in(change: _Change) -> None:
    """Have a good spare, as another rotation may have deleted the one that was there; raises Corrupt."""
    if change.reader.has_good_spare(change.backup):
        return
    LOG.warning("%s/%s is put once more: key.json may be of no use", change.store.url, change.spare)
    put_held(change.store, change.spare, change.body)


def put_held(store: Storage, key: str, body: bytes) -> None:
    """Put a wrapped key, once more if the store does not give it back; raises Corrupt if it does not then, too."""

    def put() -> None:
        store.put(key, body, sha256=digest(body))
        check_held(store, key, body)

    twice(put)


def _put_spare(change: _Change) -> None:
    before = _told(lambda: change.reader.spare(change.backup.location))
    try:
        change.put(change.spare, change.reader.spare, before=before)
    except Corrupt:
        change.store.delete([change.spare])
        raise


def _remove(store: Storage, key: str, body: bytes) -> None:
    """Delete the spare; where that is not allowed, it must at least not need another key than key.json."""
    try:
        store.delete([key])
    except StorageDenied as error:
        put_held(store, key, body)
        LOG.warning("%s/%s is not needed, and stays: %s", store.url, key, error)


def _wrapped_anew(backup: Backup, new: KeySource) -> bytes:
    """The data key under another key, which has been seen to open it."""
    wrapped = new.wrap(backup.data_key, _bound(backup))
    _check_opens(backup, new, wrapped)
    return WrappedKey(new.id, wrapped).to_bytes()


def _check_opens(backup: Backup, key: KeySource, wrapped: bytes) -> None:
    if key.unwrap(wrapped, _bound(backup)) != backup.data_key:
        raise Corrupt(f"key {key.id} does not give back what it has wrapped", hint="keep the old key, and use another")


def _bound(backup: Backup) -> Mapping[str, str]:
    _, instance, wanted = split_location(backup.location)
    return context(instance, wanted)
