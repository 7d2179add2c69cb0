"""Stores that misbehave: each passes everything on to a real one, but for what its name says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import timedelta

from guestagent.errors import StorageDenied, StorageError
from guestagent.storage import ObjectInfo, Storage

HANGING = 30
"""Seconds after which a put that hangs gives up, should nobody release it."""


class Through:
    """Passes everything on."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def sent_again(self) -> bool:
        return self.inner.sent_again

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        self.inner.put(key, body, sha256=sha256)

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        self.inner.put_new(key, body)

    def get(self, key: str, *, limit: int) -> bytes:
        return self.inner.get(key, limit=limit)

    def size(self, key: str) -> int:
        return self.inner.size(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def folders(self, prefix: str = "") -> Iterator[str]:
        return self.inner.folders(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        self.inner.delete(keys)

    def has_conditional_put(self, key: str) -> bool:
        return self.inner.has_conditional_put(key)

    def clock_ahead(self, prefix: str) -> timedelta | None:
        return self.inner.clock_ahead(prefix)

    def close(self) -> None:
        self.inner.close()


class Lies(Through):
    """Reports every put of a key that ends with ``suffix`` as done, and stores what ``instead`` makes of the body."""

    def __init__(self, inner: Storage, suffix: str, instead: Callable[[bytes], bytes | None]) -> None:
        super().__init__(inner)
        self._suffix = suffix
        self._instead = instead

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        stored = self._kept(key, body)
        if stored is not None:
            self.inner.put(key, stored)

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        stored = self._kept(key, body)
        if stored is not None:
            self.inner.put_new(key, stored)

    def _kept(self, key: str, body: bytes | bytearray) -> bytes | bytearray | None:
        return self._instead(bytes(body)) if key.endswith(self._suffix) else body


class Refuses(Through):
    """Fails the named methods, for keys (or prefixes) that end with ``suffix``."""

    def __init__(self, inner: Storage, *methods: str, suffix: str = "", error: StorageError | None = None) -> None:
        super().__init__(inner)
        self._methods = methods
        self._suffix = suffix
        self._error = error or StorageError("503 slow down", hint="wait")

    def _check(self, method: str, key: str) -> None:
        if method in self._methods and key.endswith(self._suffix):
            raise self._error

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        self._check("put", key)
        super().put(key, body, sha256=sha256)

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        self._check("put_new", key)
        super().put_new(key, body)

    def get(self, key: str, *, limit: int) -> bytes:
        self._check("get", key)
        return super().get(key, limit=limit)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._check("list", prefix)
        return super().list(prefix)

    def folders(self, prefix: str = "") -> Iterator[str]:
        self._check("folders", prefix)
        return super().folders(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._check("delete", key)
            super().delete([key])


class LosesAnswers(Through):
    """Stores new objects, and then fails as if the connection had broken before the answer."""

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        super().put_new(key, body)
        raise StorageError("connection reset by peer")


class Hangs(Through):
    """A put of anything but the first segment hangs until it is released, and is stored then."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.release = threading.Event()
        self.hanging = threading.Event()
        self.stored = threading.Event()

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        if not key.endswith("00000000"):
            self.hanging.set()
            self.release.wait(HANGING)
        super().put(key, body, sha256=sha256)
        if self.release.is_set():
            self.stored.set()


class HangsOnGet(Through):
    """A get of the segment whose key ends with ``suffix`` hangs until it is released."""

    def __init__(self, inner: Storage, suffix: str) -> None:
        super().__init__(inner)
        self._suffix = suffix
        self.release = threading.Event()

    def get(self, key: str, *, limit: int) -> bytes:
        if key.endswith(self._suffix):
            self.release.wait(HANGING)
        return super().get(key, limit=limit)


class Confined(Through):
    """Lets the credentials list nothing but what lies below one instance."""

    def __init__(self, inner: Storage, instance: str) -> None:
        super().__init__(inner)
        self._instance = instance

    def folders(self, prefix: str = "") -> Iterator[str]:
        if not prefix.startswith(f"{self._instance}/"):
            raise StorageDenied("access denied")
        return super().folders(prefix)


class Acts(Through):
    """Calls ``act`` with the method's name and the key before every put, put_new and delete."""

    def __init__(self, inner: Storage, act: Callable[[str, str], None]) -> None:
        super().__init__(inner)
        self._act = act

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        self._act("put", key)
        super().put(key, body, sha256=sha256)

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        self._act("put_new", key)
        super().put_new(key, body)

    def delete(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            self._act("delete", key)
            super().delete([key])


def half(body: bytes) -> bytes:
    """What a careless proxy passes on."""
    return body[: len(body) // 2]


class Garbles(Through):
    """Answers gets of keys that end with ``suffix`` (these ``numbers``, or all) by what ``how`` makes of them."""

    def __init__(
        self, inner: Storage, suffix: str, numbers: Collection[int] = (), *, how: Callable[[bytes], bytes] = half
    ) -> None:
        super().__init__(inner)
        self._suffix = suffix
        self._numbers = numbers
        self._how = how
        self._asked = 0

    def get(self, key: str, *, limit: int) -> bytes:
        body = super().get(key, limit=limit)
        if not key.endswith(self._suffix):
            return body
        self._asked += 1
        return self._how(body) if not self._numbers or self._asked in self._numbers else body


class ListsNothing(Through):
    """A listing that lags behind: it shows no object."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(())
