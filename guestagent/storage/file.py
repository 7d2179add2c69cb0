"""The file driver: objects are files below one directory, written whole or not at all.

A put writes a temporary file beside its target, syncs it, renames it, and syncs the directory.  Temporary
files never show in a listing; those that killed puts left behind go with a later delete below the same first
folder, once they are a day old.  A symbolic link is no object, and none is followed out of the root.  What
an object means is not known here.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from guestagent.errors import Corrupt, ObjectExists, ObjectMissing, StorageDenied, StorageError, UsageError
from guestagent.storage import ObjectInfo, checked_folder, checked_key, checked_prefix, is_key

TEMPORARY = ".guestagent-put-"
"""How the name of a put's temporary file begins; no key may have a component like it."""

STALE_AFTER = 24 * 3600
"""Age in seconds from which a temporary file counts as left behind by a killed put."""

_TRIES = 100
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_DENIED = {errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class FileStorage:
    """Objects in files below ``root``, which the first put makes if need be."""

    def __init__(self, root: Path, *, url: str = "") -> None:
        self._root = root
        self._url = url or f"file://{root}"
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The URL that this store was opened with."""
        return self._url

    @property
    def sent_again(self) -> bool:
        """Never: a write is over when it ends."""
        return False

    def put(self, key: str, body: bytes | bytearray, *, sha256: str = "") -> None:
        """Write the object; an older one of the same key stays until the new one is whole."""
        target = self._path(key)
        with self._told("write", key):
            temporary = self._written(target, body)
            with _discarded_on_failure(temporary):
                temporary.replace(target)
            self._settle(target.parent)

    def put_new(self, key: str, body: bytes | bytearray) -> None:
        """Write the object unless the key is taken; of several at once, one wins."""
        target = self._path(key)
        with self._told("write", key):
            temporary = self._written(target, body)
            try:
                os.link(temporary, target)
            except FileExistsError as error:
                raise ObjectExists(f"{self._url} has {key} already") from error
            finally:
                temporary.unlink(missing_ok=True)
            self._settle(target.parent)

    def get(self, key: str, *, limit: int) -> bytes:
        """Read the whole object."""
        path = self._path(key)
        with self._told("read", key, missing=True), path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise Corrupt(f"{key} in {self._url} is longer than {limit} bytes")
            return file.readall()

    def size(self, key: str) -> int:
        """Ask for the object's size."""
        path = self._path(key)
        with self._told("read", key, missing=True), path.open("rb") as file:
            return os.fstat(file.fileno()).st_size

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Walk the objects in the order of their keys; a root that is not there yet has none."""
        folder, slash, name = checked_prefix(prefix).rpartition("/")
        yield from self._walk(self._inside(folder + slash), name)

    def folders(self, prefix: str = "") -> Iterator[str]:
        """The folders below ``prefix`` that hold objects."""
        for entry in self._entries(self._inside(checked_folder(prefix))):
            if entry.is_dir(follow_symlinks=False) and next(self._walk(f"{prefix}{entry.name}/"), None):
                yield entry.name

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects, the folders that this empties, and what killed puts left beside them long ago."""
        touched = set()
        for key in keys:
            path = self._path(key)
            with self._told("delete", key), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
            touched.add(path.parent)
        with self._told("tidy", "folders"):
            for top in {self._top(folder) for folder in touched - {self._root}}:
                _tidy(top)
            if self._root.is_dir():
                _drop_stale(self._root, os.listdir(self._root))
            for folder in touched:
                _sync_surviving(folder)

    def has_conditional_put(self, key: str) -> bool:
        """Put it twice: a filesystem without hard links fails at once, and one that overwrites is found out."""
        self.put_new(key, b"first")
        try:
            self.put_new(key, b"second")
        except ObjectExists:
            return True
        return False

    def clock_ahead(self, prefix: str) -> timedelta | None:
        """Files have our own clock."""
        return None

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, key: str) -> Path:
        if any(part.startswith(TEMPORARY) for part in checked_key(key).split("/")):
            raise UsageError(f"not an object's key: {key!r}", hint=f"{TEMPORARY}* is for temporary files")
        return self._root / self._inside(key)

    def _inside(self, name: str) -> str:
        """``name``, if what it names lies below the root in truth too; raises UsageError."""
        place = os.path.realpath(self._root / name)
        root = os.path.realpath(self._root)
        if place != root and not place.startswith(f"{root}/"):
            raise UsageError(f"{name} leaves {self._url}", hint="remove the symbolic link")
        return name

    def _top(self, folder: Path) -> Path:
        return self._root / folder.relative_to(self._root).parts[0]

    def _written(self, target: Path, body: bytes | bytearray) -> Path:
        """A synced temporary file beside ``target`` that holds ``body``."""
        descriptor, temporary = self._temporary(target.parent)
        with _discarded_on_failure(temporary), os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(descriptor)
        return temporary

    def _temporary(self, folder: Path) -> tuple[int, Path]:
        for _ in range(_TRIES):
            # A delete elsewhere may take the folder away while it is still empty; mkdir calls that FileExistsError
            # if it happens while it looks.  What really stands in the way is told by mkstemp.
            with suppress(FileNotFoundError):
                self._make_root()
                with suppress(FileExistsError):
                    folder.mkdir(parents=True, exist_ok=True)
                descriptor, name = tempfile.mkstemp(prefix=TEMPORARY, dir=folder)
                return descriptor, Path(name)
        raise StorageError(f"{folder} vanishes as often as it is made", hint="look for who deletes there")

    def _make_root(self) -> None:
        with self._lock:
            missing = [path for path in (self._root, *self._root.parents) if not path.exists()]
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                _sync(path.parent)

    def _settle(self, folder: Path) -> None:
        """Make the entries of ``folder`` durable, and its own entry above, up to the root."""
        _sync(folder)
        while folder != self._root:
            folder = folder.parent
            _sync(folder)

    def _walk(self, folder: str, name: str = "") -> Iterator[ObjectInfo]:
        """The objects below ``folder``, from those of its entries that begin with ``name``."""
        for entry in self._entries(folder):
            if not entry.name.startswith(name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(f"{folder}{entry.name}/")
            elif info := self._info(folder + entry.name, entry):
                yield info

    def _info(self, key: str, entry: os.DirEntry[str]) -> ObjectInfo | None:
        with self._told("read", key), suppress(FileNotFoundError):
            found = entry.stat(follow_symlinks=False)
            return ObjectInfo(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
        return None

    def _entries(self, folder: str) -> Iterable[os.DirEntry[str]]:
        """Files and folders of ``folder`` in the order of the keys, for which a folder's name ends with a slash."""
        gone = suppress(FileNotFoundError, NotADirectoryError)
        with self._told("list", folder or "objects"), gone, os.scandir(self._root / folder) as entries:
            return sorted(filter(_is_ours, entries), key=_place)
        return ()

    @contextmanager
    def _told(self, doing: str, key: str, *, missing: bool = False) -> Iterator[None]:
        """Turn an OSError into the error that names the key; ``missing``: no such file means no such object."""
        try:
            yield
        except OSError as error:
            raise _translated(error, f"cannot {doing} {key} in {self._url}", missing=missing) from error


def _translated(error: OSError, what: str, *, missing: bool) -> StorageError:
    if missing and error.errno in _MISSING:
        return ObjectMissing(f"{what}: no such object")
    if error.errno in _DENIED:
        return StorageDenied(f"{what}: {error.strerror}", hint="let the agent's user read and write there")
    if error.errno == errno.EROFS:  # which passes, unlike a right that was never given
        return StorageError(f"{what}: {error.strerror}", hint="let the agent's user read and write there")
    if error.errno in _FULL:
        return StorageError(f"{what}: the store is full", hint="make room, or delete old backups")
    return StorageError(f"{what}: {error.strerror or error}")


def _is_ours(entry: os.DirEntry[str]) -> bool:
    plain = entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
    return plain and is_key(entry.name) and not entry.name.startswith(TEMPORARY)


def _place(entry: os.DirEntry[str]) -> str:
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


def _tidy(top: Path) -> None:
    """Remove stale temporary files and empty folders, from below up to ``top`` itself."""
    for folder, _, names in os.walk(top, topdown=False):
        _drop_stale(Path(folder), names)
        # Not empty, not ours to remove, or gone already: a folder that stays does no harm.
        with suppress(OSError):
            os.rmdir(folder)


def _drop_stale(folder: Path, names: Iterable[str]) -> None:
    before = time.time() - STALE_AFTER
    for path in (folder / name for name in names if name.startswith(TEMPORARY)):
        # As with folders: one that stays is invisible, and the next delete tries again.
        with suppress(OSError):
            if path.lstat().st_mtime < before:
                path.unlink()


def _sync_surviving(folder: Path) -> None:
    """Sync ``folder``, or the nearest one above that is still there."""
    try:
        _sync(folder)
    except (FileNotFoundError, NotADirectoryError):
        _sync_surviving(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _discarded_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
