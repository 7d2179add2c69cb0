"""Key files: 32 random bytes in Base64, one line, for the eyes of one user.

A file that others can read, that somebody else could have written, or that holds anything but a whole key is refused;
no error repeats what it holds.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from guestagent.errors import ConfigError, GuestagentError, Refused
from guestagent.keys.envelope import KEY_SIZE, Envelope

MODE = 0o600
OTHERS = 0o077
LONGEST = 200
"""Bytes of a file that are read: more than a key in Base64, with room for blanks."""

_AGAIN = "`guestagent key generate` makes one"


class FileKey:
    """The key in a file, which is read once, now; raises ConfigError for a file that is not fit for it."""

    def __init__(self, path: Path) -> None:
        self._envelope = _opened(path)
        self.id = f"file:{self._envelope.id}"

    def __repr__(self) -> str:
        return f"FileKey({self.id!r})"

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        """The data key, encrypted and bound to ``context``."""
        return self._envelope.wrap(data_key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The data key again; raises Corrupt."""
        return self._envelope.unwrap(wrapped, context)


def generate(path: Path) -> str:
    """Make a new key in a new file, durably; gives the key's id.  Raises Refused if the file is there."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    except FileExistsError as error:
        raise Refused(
            f"{path} is there already", hint="give another name: a key that is lost takes its backups along"
        ) from error
    except OSError as error:
        raise _unwritten(path, error) from error
    try:
        _write(handle, path)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise _unwritten(path, error) from error
    return FileKey(path.absolute()).id


def _write(handle: int, path: Path) -> None:
    with open(handle, "wb") as file:
        os.fchmod(handle, MODE)
        file.write(base64.b64encode(os.urandom(KEY_SIZE)) + b"\n")
        file.flush()
        os.fsync(handle)
    above = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)


def _unwritten(path: Path, error: OSError) -> GuestagentError:
    return GuestagentError(f"cannot write key file {path}: {error.strerror}", hint="name a place that you may write to")


def _opened(path: Path) -> Envelope:
    if not path.is_absolute() or _key_in(os.fsencode(path)):
        # Not repeated: somebody may have put the key itself there.
        raise ConfigError(
            "[encryption] names a key file by something that is not an absolute path",
            hint="give the path of the file, not the key in it",
        )
    key = _key_in(_contents(path))
    if not key:
        raise ConfigError(f"key file {path} does not hold {KEY_SIZE} bytes in Base64, in one line", hint=_AGAIN)
    return Envelope(key)


def _contents(path: Path) -> bytes:
    """What is in the file that was looked at, not in one that has taken its place since."""
    try:
        # Without waiting, should it be a named pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            _check(path, os.fstat(file.fileno()))
            return file.read(LONGEST)
    except OSError as error:
        raise ConfigError(
            f"cannot read key file {path}: {error.strerror}",
            hint="correct the path, or run as the user that owns the file",
        ) from error


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"key file {path} is not a regular file", hint=_AGAIN)
    # Root reads those of the agent's user, too; nobody but the owner could have written them.
    if os.geteuid() not in (0, found.st_uid) and found.st_uid != 0:
        raise ConfigError(f"key file {path} belongs to another user", hint=f"chown it to uid {os.geteuid()}")
    if found.st_mode & OTHERS:
        raise ConfigError(
            f"key file {path} is open to other users (mode {stat.S_IMODE(found.st_mode):04o})",
            hint=f"chmod 600 {path}, and make a new key if somebody may have read it",
        )


def _key_in(text: bytes) -> bytes:
    """The key that the text is, or nothing."""
    try:
        found = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        found = b""
    return found if len(found) == KEY_SIZE else b""
