"""A directory in which system calls fail as a script says: what a file store meets on a bad disk.

The calls of this process are struck where Python makes them, by an audit hook that raises what the kernel would
have: so it is the driver's own code that meets the error, with half of its work done.  A disk that is full for real
is a small filesystem's matter.

    with disk(store, Script.parse("put-manifest@1*1:lost-ack")) as play:
        ...

As a program, ``python -m tests.servers.faults.disk ROOT SCRIPT WORD...`` is the command ``guestagent WORD...`` in
such a directory.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.faults.script import Kind, Play, Script, What

TEMPORARY = ".guestagent-put-"
STALL = 1.5
_ERRORS = {
    What.FULL: errno.ENOSPC,
    What.IO_ERROR: errno.EIO,
    What.DENIED: errno.EACCES,
    What.READ_ONLY: errno.EROFS,
    What.LOST_ACK: errno.EIO,
}
_PUTS = {"manifest.json": Kind.PUT_MANIFEST, "key.json": Kind.PUT_KEY, "key.next.json": Kind.PUT_KEY}


class _Disk:
    """One directory and what happens in it."""

    def __init__(self, root: Path, script: Script, stall: float) -> None:
        self.root = f"{root}/"
        self.play = Play(script)
        self._stall = stall
        self._sour = threading.local()
        self._rotten: dict[str, tuple[bytes, bytes]] = {}
        self._rot = threading.Lock()

    def sees(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at a call, and raise what the script has for it."""
        if event not in _CALLS or not isinstance(arguments[0], str | os.PathLike) or getattr(self._sour, "busy", False):
            return
        path = os.fspath(arguments[0])
        if isinstance(path, str) and f"{path}/".startswith(self.root):
            _CALLS[event](self, path, arguments)

    def _opens(self, path: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] or 0
        if flags & os.O_DIRECTORY:
            self._settles(path)
        elif TEMPORARY in path:
            if flags & os.O_CREAT and Path(path).parent.name == "data":
                self._strike(Kind.PUT_SEGMENT, path)
        elif not flags & (os.O_WRONLY | os.O_RDWR):
            self.heal(path)
            self._strike(Kind.GET, path)

    def _settles(self, path: str) -> None:
        """The sync of a directory, which is the last step of a put."""
        if getattr(self._sour, "after", False):
            self._sour.after = False
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def _moves(self, path: str, arguments: tuple[Any, ...]) -> None:
        target = os.fspath(arguments[1])
        kind = _PUTS.get(Path(target).name)
        if kind is not None:
            self._strike(kind, target)
        if getattr(self._sour, "cut", False):
            self._sour.cut = False
            os.truncate(path, os.path.getsize(path) // 2)

    def _lists(self, path: str, _: tuple[Any, ...]) -> None:
        self._strike(Kind.LIST, path)

    def _removes(self, path: str, _: tuple[Any, ...]) -> None:
        if TEMPORARY not in path:
            self._strike(Kind.DELETE, path)

    def _strike(self, kind: Kind, path: str) -> None:
        fault = self.play.meet(kind, path.removeprefix(self.root))
        what = fault.what if fault else None
        if what is What.STALL:
            time.sleep(self._stall)
        elif what in _ROTS:
            self._spoil(path, _ROTS[what])
        elif what is What.CUT:
            self._sour.cut = True
        elif what is What.LOST_ACK:
            self._sour.after = True
        elif what is not None:
            raise OSError(_ERRORS[what], os.strerror(_ERRORS[what]), path)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """What this thread does itself is neither counted nor struck; one thread at a time."""
        with self._rot:
            self._sour.busy = True
            try:
                yield
            finally:
                self._sour.busy = False

    def _spoil(self, path: str, rot: Callable[[bytes], bytes]) -> None:
        """Have whoever reads the file next find something else."""
        with self._unseen():
            if os.path.isfile(path):
                whole = Path(path).read_bytes()
                self._rotten[path] = whole, rot(whole)
                _exchange(Path(path), self._rotten[path][1])

    def heal(self, path: str) -> None:
        """Undo that, unless the file has become another one."""
        if path not in self._rotten:
            return
        with self._unseen():
            whole, rotten = self._rotten.pop(path, (b"", b""))
            if os.path.isfile(path) and Path(path).read_bytes() == rotten:
                _exchange(Path(path), whole)

    def end(self) -> None:
        """Undo it all."""
        for path in list(self._rotten):
            self.heal(path)


def _exchange(path: Path, body: bytes) -> None:
    """Give a file another content at once; whoever reads it already goes on with what he has."""
    fresh = path.with_name(f"{TEMPORARY}{path.name}")
    fresh.write_bytes(body)
    fresh.replace(path)


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body


_ROTS: Mapping[What | None, Callable[[bytes], bytes]] = {
    What.LESS: lambda body: body[: len(body) // 2],
    What.FLIP: _flipped,
}
_CALLS: Mapping[str, Any] = {
    "open": _Disk._opens,
    "os.rename": _Disk._moves,
    "os.link": _Disk._moves,
    "os.scandir": _Disk._lists,
    "os.remove": _Disk._removes,
}
_bad: list[_Disk] = []
_hooked = threading.Event()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _bad:
        _bad[-1].sees(event, arguments)


@contextmanager
def disk(root: Path, script: Script, *, stall: float = STALL) -> Iterator[Play]:
    """Have calls below ``root`` fail as the script says, for as long; one directory at a time."""
    if not _hooked.is_set():  # for good, since hooks cannot be taken away
        _hooked.set()
        sys.addaudithook(_hook)
    made = _Disk(root, script, stall)
    _bad.append(made)
    try:
        yield made.play
    finally:
        _bad.remove(made)
        made.end()


def main(root: str, line: str, *words: str) -> int:
    """A command in a directory that goes wrong; says last on stderr what was struck."""
    from guestagent.cli import main as command  # noqa: PLC0415  (the rest needs none of it)

    with disk(Path(root), Script.parse(line)) as play:
        status = command(list(words))
    print(f"struck: {'; '.join(map(str, play.hits)) or 'nothing'}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
