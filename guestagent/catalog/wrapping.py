"""Which keys a backup needs, and how its data key is wrapped anew: the only good copy of it is never overwritten.

While ``key.json`` is replaced, ``key.next.json``, its spare, holds the same data key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from guestagent.catalog.layout import key_key, spare_key, split_location
from guestagent.catalog.objects import check_held
from guestagent.catalog.reading import Reader, twice
from guestagent.errors import Corrupt, StorageDenied
from guestagent.keys import KeySource
from guestagent.manifest import Backup, digest
from guestagent.storage import Storage
from guestagent.wrapped import WrappedKey, context

LOG = logging.getLogger(__name__)
T = TypeVar("T")


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
    that a key opens, and a next time finishes it.
    """
    _, instance, wanted = split_location(backup.location)
    body = _wrapped_anew(backup, new)
    spare = spare_key(instance, wanted)
    if not reader.has_good_spare(backup):
        _put_spare(store, spare, body)
    put_held(store, key_key(instance, wanted), body)
    _remove(store, spare, body)


def put_held(store: Storage, key: str, body: bytes) -> None:
    """Put a wrapped key, once more if the store does not give it back; raises Corrupt if it does not then, too."""

    def put() -> None:
        store.put(key, body, sha256=digest(body))
        check_held(store, key, body)

    twice(put)


def _put_spare(store: Storage, key: str, body: bytes) -> None:
    try:
        put_held(store, key, body)
    except Corrupt:
        store.delete([key])
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
    _, instance, wanted = split_location(backup.location)
    bound = context(instance, wanted)
    wrapped = new.wrap(backup.data_key, bound)
    if new.unwrap(wrapped, bound) != backup.data_key:
        raise Corrupt(f"key {new.id} does not give back what it has wrapped", hint="keep the old key, and use another")
    return WrappedKey(new.id, wrapped).to_bytes()
