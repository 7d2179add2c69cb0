"""The directory of ``local://``: which socket belongs to a topic, who may listen on it, and how to connect.

A socket's name depends on exchange and topic alone, so a topic has one server.  Sockets are reached through the
directory's descriptor: a long path does no harm then (the kernel takes 107 bytes), and what is used is what was
checked.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from guestagent.errors import Busy, ConfigError, GuestagentError, NotFound, Refused, Stalled

LOG = logging.getLogger(__name__)

LONGEST_NAME = 72
"""Characters: with ``/proc/self/fd/`` and any number before it, a path that the kernel takes."""
BACKLOG = 128
LOCK_PATIENCE = 5.0
"""Seconds to wait for another agent that starts in the same directory at this moment."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_CREDENTIALS = struct.Struct("3i")
_TIMEVAL = struct.Struct("@ll")


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    directory: Path
    name: str

    def __str__(self) -> str:
        return f"{self.directory}/{self.name}"


def place_of(directory: Path, *, exchange: str, topic: str) -> Place:
    """The place of a topic; a name that is too long for a socket becomes a digest of itself."""
    name = f"{quote(exchange, safe='')}:{quote(topic, safe='')}"
    if len(name) > LONGEST_NAME:
        name = hashlib.sha256(name.encode()).hexdigest()
    return Place(directory, name)


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel noted it when the connection was made."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


class Claim:
    """A listening socket, and with it the right to be the only server at a place."""

    def __init__(self, place: Place, *, listening: socket.socket, directory: int) -> None:
        self.place = place
        self.socket = listening
        self._directory = directory
        self._inode = os.stat(place.name, dir_fd=directory).st_ino

    def withdraw(self) -> None:
        """Remove the socket; clients hear at once that nobody listens.  A second time does nothing."""
        if self.socket.fileno() < 0:
            return
        # Removed while it still listens: as long as it does, nobody else takes the place.
        try:
            if os.stat(self.place.name, dir_fd=self._directory).st_ino == self._inode:
                os.unlink(self.place.name, dir_fd=self._directory)
        except OSError as error:
            LOG.warning("cannot remove %s: %s", self.place, error.strerror)
        self.socket.close()
        os.close(self._directory)


def claim(place: Place) -> Claim:
    """Listen at a place, where a dead server's socket may lie; raises Refused if another one is alive there.

    The directory is made if need be; raises ConfigError if it is not ours alone to write to.
    """
    with ExitStack() as undo:
        directory = _open_own(place.directory)
        undo.callback(os.close, directory)
        listening = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            with _locked(directory, place):
                _refuse_if_taken(directory, place)
                _listen(listening, directory, place.name)
            listening.setblocking(False)
            claimed = Claim(place, listening=listening, directory=directory)
        except OSError as error:
            raise GuestagentError(f"cannot listen at {place}: {error.strerror or error}") from error
        undo.pop_all()
    return claimed


def dial(place: Place, *, patience: float | None) -> socket.socket:
    """A connection to the server at a place; ``patience`` in seconds is for a server that has no room for it yet.

    Raises NotFound if nobody listens there, and Refused if we may not talk to who does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if patience is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(patience))
        _connect(connection, place)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(connection: socket.socket, place: Place) -> None:
    try:
        with _opened(place.directory) as directory:
            if os.geteuid() != 0:
                _check_owner(directory, place.directory, allowed={0, os.geteuid()}, hint="be root or its owner")
            _check_closed(directory, place.directory)
            connection.connect(_address(directory, place.name))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotFound(f"no agent is listening at {place}", hint="start it, or look at the id") from error
    except PermissionError as error:
        raise Refused(f"not allowed to talk to the agent at {place}", hint="be root or the agent's user") from error
    except BlockingIOError as error:
        raise Stalled(f"the agent at {place} takes no more connections", hint="try again later") from error
    except OSError as error:
        raise GuestagentError(f"cannot reach the agent at {place}: {error.strerror or error}") from error


def _open_own(path: Path) -> int:
    with ExitStack() as undo:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"cannot use directory {path}: {error.strerror}", hint="make it, and give it to the agent's user"
            ) from error
        undo.callback(os.close, directory)
        _check_owner(directory, path, allowed={os.geteuid()}, hint=f"give it to user {os.geteuid()}")
        _check_closed(directory, path)
        undo.pop_all()
    return directory


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


def _check_owner(directory: int, path: Path, *, allowed: set[int], hint: str) -> None:
    """Refuse a directory whose owner could lay a socket of its own there."""
    owner = os.fstat(directory).st_uid
    if owner not in allowed:
        raise ConfigError(f"directory {path} belongs to user {owner}", hint=hint)


def _check_closed(directory: int, path: Path) -> None:
    """Refuse a directory where anybody could lay a socket."""
    if os.fstat(directory).st_mode & _OTHERS_WRITE:
        raise ConfigError(f"others may write to directory {path}", hint=f"chmod go-w {path}")


@contextmanager
def _locked(directory: int, place: Place) -> Iterator[None]:
    """Hold the directory while looking whether a place is free and taking it."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise Busy(f"directory {place.directory} is locked", hint="end who holds it: fuser names it") from error
            time.sleep(0.02)
    try:
        yield
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)


def _refuse_if_taken(directory: int, place: Place) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(place.name, dir_fd=directory).st_mode):
            raise Refused(f"{place} is no socket", hint="move it away")
        if _is_alive(directory, place.name):
            raise Refused(
                f"another agent listens at {place}", hint="stop it, or give this one another guest_id or directory"
            )


def _is_alive(directory: int, name: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_address(directory, name))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True
    return True


def _listen(listening: socket.socket, directory: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    listening.bind(_address(directory, name))
    # Nobody connects before this: a socket that does not listen yet refuses everybody.
    os.chmod(name, 0o600, dir_fd=directory)
    listening.listen(BACKLOG)


def _address(directory: int, name: str) -> str:
    return f"/proc/self/fd/{directory}/{name}"


def _timeval(seconds: float) -> bytes:
    whole, part = divmod(max(seconds, 0.001), 1)
    return _TIMEVAL.pack(int(whole), int(part * 1_000_000))
