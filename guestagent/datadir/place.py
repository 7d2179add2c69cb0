"""What stands at a restore's target, and whose it is; looks, and changes nothing but owners and modes."""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import stat
import struct
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from guestagent.datadir import layout
from guestagent.datadir.durable import explained, opened, shown
from guestagent.errors import ConfigError, Refused, UsageError

SERVER_FILES = ("ibdata1", "aria_log_control")
"""The files that a running server holds locked: InnoDB's system tablespace and Aria's control file."""

DIRECTORY_MODE = 0o700
FILE_MODE = 0o660

_DATADIR_SIGNS = frozenset({*SERVER_FILES, "ib_logfile0", "mysql", "mysql.ibd"})
_SYSTEM_DATABASES = frozenset({"mysql", "performance_schema", "sys", "lost+found"})
"""Directories that an installation makes; any other one is a database of a user's, even an empty one."""
_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT_POINT_FIELD = 4
_FLUSHERS = 8
"""Threads that wait for the disk; a second one halves the time for many small files, more than these win nothing."""
_MOST_UNDER_WAY = 64
"""Files that are open at a time."""
_OCTAL = re.compile(rb"\\([0-7]{3})")
_FLOCK = "hhqqi0q"
"""struct flock: type, whence, start, length, pid."""


@dataclass(frozen=True)
class Place:
    """What stands at a target.

    ``entries`` are names, without lost+found and our own directory, and ``size`` is their bytes;
    ``leftover`` are the bytes that a dead restore left and the next one frees; ``uid`` and ``gid``
    are the owner of the directory, or of the nearest parent that exists.
    """

    path: Path
    exists: bool
    is_mount: bool
    entries: frozenset[str]
    size: int
    leftover: int
    free: int
    uid: int
    gid: int
    server_running: bool

    @property
    def looks_like_datadir(self) -> bool:
        """Whether a database server has lived here; anything else ought not to be replaced."""
        return not self.entries.isdisjoint(_DATADIR_SIGNS)

    @property
    def pristine(self) -> bool:
        """Whether what stands there is as a server's installation leaves it: no database of a user's."""
        return all(
            name in _SYSTEM_DATABASES or name.startswith("#") or _is_plain(self.path / name) for name in self.entries
        )


def _is_plain(path: Path) -> bool:
    """Whether it is neither a directory nor a link, which may lead to one, or to where a disk is not mounted now."""
    return not path.is_dir() and not path.is_symlink()


def look(datadir: Path) -> Place:
    """Look at a target; raises UsageError for what can never be one, Refused for what may not be now."""
    path = _resolved(datadir)
    with explained(f"look at {shown(path)}"):
        exists = path.is_dir()
        ground = _nearest(path)
        owner, space = os.stat(ground), os.statvfs(ground)
        names = layout.entries(path) if exists else frozenset()
        _refuse_mounts_below(path)
        return Place(
            path=path,
            exists=exists,
            is_mount=os.path.ismount(path),
            entries=names,
            size=sum(tree_size(path / name) for name in names),
            leftover=_leftover(path),
            free=space.f_bavail * space.f_frsize,
            uid=owner.st_uid,
            gid=owner.st_gid,
            server_running=server_running(path),
        )


def _resolved(datadir: Path) -> Path:
    if not datadir.is_absolute():
        raise UsageError(f"datadir {shown(datadir)} is not absolute", hint="give its full path")
    try:
        path = Path(os.path.realpath(datadir, strict=True))
    except FileNotFoundError:
        return Path(os.path.realpath(datadir))
    except PermissionError as error:
        raise Refused(f"may not look at {shown(datadir)}", hint="run as root or as the server's user") from error
    except OSError as error:
        raise UsageError(f"no datadir can be at {shown(datadir)}: {(error.strerror or '').lower()}") from error
    if not path.is_dir() or path == Path("/"):
        raise UsageError(f"{shown(path)} cannot be a datadir", hint="name a directory of its own")
    return path


def _nearest(path: Path) -> Path:
    """``path``, or its nearest parent that exists."""
    return next(place for place in (path, *path.parents) if place.is_dir())


def _refuse_mounts_below(path: Path) -> None:
    """A mount point cannot be renamed, so a directory with one in it cannot be set aside."""
    below = sorted(mount for mount in _mounts() if path in mount.parents)
    if below:
        raise Refused(
            f"{shown(below[0])} is mounted inside {shown(path)}", hint="unmount it, or restore into another directory"
        )


def _mounts() -> list[Path]:
    lines = _MOUNTS.read_bytes().splitlines() if _MOUNTS.exists() else []
    return [Path(os.fsdecode(_unescaped(line.split(b" ")[_MOUNT_POINT_FIELD]))) for line in lines]


def _unescaped(field: bytes) -> bytes:
    return _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), field)


def _leftover(path: Path) -> int:
    return sum(map(tree_size, layout.named(path, layout.STAGING) + layout.named(path, layout.TRASH)))


def tree_size(path: Path) -> int:
    """Bytes of all files at and below ``path``; what is gone while we look counts nothing."""
    with explained(f"measure {shown(path)}"), suppress(FileNotFoundError):
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size
        return sum(tree_size(path / name) for name in os.listdir(path))
    return 0


def server_running(datadir: Path) -> bool:
    """Whether a server has ``datadir`` open: it locks its files."""
    return any(locked(datadir / name) for name in SERVER_FILES)


def locked(path: Path) -> bool:
    """Whether another process holds a lock on the file ``path``; only asks, so it disturbs nobody."""
    with explained(f"see whether a server uses {shown(path)}"), suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = struct.unpack(_FLOCK, fcntl.fcntl(handle, fcntl.F_GETLK, question))
        finally:
            os.close(handle)
        return bool(answer[0] != fcntl.F_UNLCK)
    return False


def own(tree: Path, *, user: str) -> None:
    """Give ``tree`` to ``user`` and its primary group, with the modes that a server makes.

    Who is not root may do so only for itself, and the groups stay as they are.
    """
    account = _account(user)
    with explained(f"give {shown(tree)} to {user}"):
        for handle in opened(tree):
            _own_one(handle, account)


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError as error:
        raise ConfigError(f"this host has no user {user!r}", hint="set os_user in [database]") from error


def _own_one(handle: int, account: pwd.struct_passwd) -> None:
    status = os.fstat(handle)
    owner = (account.pw_uid, account.pw_gid if os.geteuid() == 0 else status.st_gid)
    if owner != (status.st_uid, status.st_gid):
        os.fchown(handle, *owner)
    mode = DIRECTORY_MODE if stat.S_ISDIR(status.st_mode) else FILE_MODE
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(handle, mode)


def make_durable(tree: Path) -> None:
    """Bring every file and directory of ``tree`` to the disk, several at once: they share commits of the journal."""
    with explained(f"make {shown(tree)} durable"), ThreadPoolExecutor(_FLUSHERS) as pool:
        under_way: deque[Future[None]] = deque()
        for handle in opened(tree):
            under_way.append(pool.submit(_flush, os.dup(handle)))
            if len(under_way) > _MOST_UNDER_WAY:
                under_way.popleft().result()
        for flushed in under_way:
            flushed.result()


def _flush(handle: int) -> None:
    """Bring a file to the disk, and close it in any case."""
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
