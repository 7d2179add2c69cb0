"""What a store is asked before it is trusted with a backup: an object of ours goes in, comes out, and goes.

The object lies below the instance's prefix, under a name that is no backup's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from guestagent.errors import StorageError
from guestagent.manifest import digest
from guestagent.model import InstanceId
from guestagent.storage import Storage


def there_and_back(store: Storage, instance: InstanceId) -> None:
    """Put, get, list and delete an object; raises if any of it fails."""
    key, body = _key(instance), os.urandom(32)
    store.put(key, body, sha256=digest(body))
    with _gone(store, key):
        if store.get(key, limit=len(body)) != body or key not in {found.key for found in store.list(key)}:
            raise StorageError(f"{store.url} does not give back what was put", hint="use a consistent store")


def conditional_put(store: Storage, instance: InstanceId) -> bool:
    """Whether the store itself refuses to overwrite an object."""
    key = _key(instance)
    with _gone(store, key):
        return store.has_conditional_put(key)


def _key(instance: InstanceId) -> str:
    return f"{instance}/.probe-{os.urandom(8).hex()}"


@contextmanager
def _gone(store: Storage, key: str) -> Iterator[None]:
    """The object is gone afterwards."""
    try:
        yield
    finally:
        store.delete([key])
