"""Files and trees that outlive a power cut, and failures of the filesystem in our own words.

Nothing here knows what a datadir is.  No symbolic link is ever followed below a given path.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from guestagent.errors import GuestagentError, Refused

FOR_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FOR_CREATING = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FRESH = ".new"
"""What the name of a file ends with while it is written."""

_HINTS = {
    errno.ENOSPC: "make room on that filesystem",
    errno.EDQUOT: "make room within the quota",
    errno.EROFS: "the filesystem is mounted read-only",
    errno.EBUSY: "a mount point cannot be moved: unmount it first",
    errno.EIO: "look for a failing disk in the kernel's log",
}


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Map a failure of the filesystem while we ``action`` to Refused (not permitted) or GuestagentError."""
    try:
        yield
    except PermissionError as error:
        raise Refused(_what(action, error), hint="run as root or as the server's user") from error
    except OSError as error:
        raise GuestagentError(_what(action, error), hint=_HINTS.get(error.errno or 0, "")) from error


def _what(action: str, error: OSError) -> str:
    where = f" ({shown(error.filename)})" if isinstance(error.filename, str | bytes | Path) else ""
    return f"cannot {action}: {(error.strerror or str(error)).lower()}{where}"


def shown(path: Path | str | bytes) -> str:
    """A path fit for a message, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def sync_directory(path: Path) -> None:
    """Make the names in ``path`` durable."""
    handle = os.open(path, FOR_READING | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_small(path: Path, *, most: int) -> bytes:
    """The bytes of a file, or its first ``most`` and one more; raises OSError, for anything but a regular file too."""
    handle = os.open(path, FOR_READING)
    try:
        return os.read(handle, min(os.fstat(handle).st_size, most) + 1)
    finally:
        os.close(handle)


def write(path: Path, data: bytes, *, mode: int, like: Path) -> None:
    """Create or replace the file ``path``, wholly or not at all, durably, with the owner of ``like``."""
    fresh = path.with_name(path.name + FRESH)
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    handle = os.open(fresh, FOR_CREATING, mode)
    with open(handle, "wb") as file:
        os.fchmod(handle, mode)
        give(handle, like)
        file.write(data)
        file.flush()
        os.fsync(handle)
    os.rename(fresh, path)
    sync_directory(path.parent)


def make_private(path: Path, *, like: Path) -> None:
    """Make the directory ``path`` below ``like``, and ``like`` if need be, durably, for the owner of ``like`` alone.

    Root may come first, with a command; the agent, whose directory it is, must get in later all the same.
    """
    if not path.is_dir():
        like.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        give(path, like)
        sync_directory(path.parent)


def give(target: int | Path, like: Path) -> None:
    """Give ``target`` (a path or a descriptor) the owner and the group of ``like``, if we may: only root may."""
    if os.geteuid() != 0:
        return
    owner = os.stat(like)
    if isinstance(target, int):
        os.fchown(target, owner.st_uid, owner.st_gid)
    else:
        os.lchown(target, owner.st_uid, owner.st_gid)


def opened(tree: Path) -> Iterator[int]:
    """A descriptor of every directory and regular file of ``tree``, each once; links and devices are passed by."""
    for _, _, names, directory in os.fwalk(tree, onerror=_fail):
        yield directory
        for name in names:
            if stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                yield from _one(name, directory)


def _one(name: str, directory: int) -> Iterator[int]:
    handle = os.open(name, FOR_READING, dir_fd=directory)
    try:
        yield handle
    finally:
        os.close(handle)


def _fail(error: OSError) -> None:
    raise error


def remove_tree(path: Path) -> None:
    """Delete ``path`` and all below it; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
