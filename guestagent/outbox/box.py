"""The box: messages on disk, one file for each subject, durable before ``put`` returns."""

from __future__ import annotations

import json
import logging
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from guestagent import document
from guestagent.datadir import durable
from guestagent.errors import Corrupt, GuestagentError, UsageError

LOG = logging.getLogger(__name__)

LIMIT = 1000
"""Subjects with a message that waits; beyond that the oldest is given up."""
LARGEST = 1 << 20
"""Bytes of a message; a broker may refuse a bigger one for ever."""
FIRST_PUT_OFF, LONGEST_PUT_OFF = 30.0, 600.0
"""Seconds for which a message makes room for the others after an error that nobody foresaw; doubled each time."""
LONGEST_AGAIN = 86400.0
"""Seconds after which a message may be sent anew, at most."""
ASIDE = ".aside"
"""What the name of a file ends with that is not a message of ours."""

_FORMAT = 1
_SUFFIX = ".json"
_MODE = 0o600
T = TypeVar("T")


@dataclass(frozen=True)
class Letter:
    """A message: the newest on its subject.  ``again`` is after how many seconds it is to be sent anew, each time."""

    number: int
    subject: str
    method: str
    arguments: Mapping[str, Any]
    again: tuple[float, ...] = ()


@dataclass
class _Waiting:
    """A letter and what became of it so far."""

    letter: Letter
    not_before: float = 0.0
    put_off: int = 0
    sent: int = 0


class Outbox:
    """Messages in the order in which they came, each until it was sent.

    A message takes the place of an older one on the same subject, and its turn is that of a new one.  One process at
    a time may use a directory; its threads share an outbox.
    """

    def __init__(self, directory: Path, *, limit: int = LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._hurried = False
        with durable.explained(f"open the outbox {durable.shown(directory)}"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = sorted(_letters(directory), key=lambda letter: letter.number)
        self._waiting = {letter.subject: _Waiting(letter) for letter in found}
        self._number = max((letter.number for letter in found), default=0)

    # For whoever has something to say

    def put(self, subject: str, method: str, arguments: Mapping[str, Any], *, again: tuple[float, ...] = ()) -> None:
        """Write a message down; when this returns it outlives a power cut.

        It is sent anew so many seconds after each time as ``again`` says: whoever took it may have died with it.
        Raises UsageError for what is not JSON or is too big, and GuestagentError if the disk does not take it.
        """
        with self._lock:
            letter = _plain(Letter(self._number + 1, subject, method, arguments, again))
            self._write(letter)
            self._number = letter.number
            self._waiting.pop(subject, None)
            self._waiting[subject] = _Waiting(letter)
            self._keep_limit()
        self.ring()

    def hurry(self) -> None:
        """Have the next heartbeat sent now: what it says has changed."""
        self._hurried = True
        self.ring()

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting)

    # For the postman

    def due(self) -> Letter | None:
        """The oldest message that may be sent now."""
        now = self._clock()
        with self._lock:
            return next((one.letter for one in self._waiting.values() if one.not_before <= now), None)

    def left(self) -> float | None:
        """Seconds until a message may be sent; None if there is none."""
        now = self._clock()
        with self._lock:
            times = [one.not_before for one in self._waiting.values()]
        return max(0.0, min(times) - now) if times else None

    def done(self, letter: Letter) -> None:
        """Forget a message that was taken, unless a newer one has its place, or it is to be sent again."""
        with self._lock:
            waiting = self._waiting_of(letter)
            if waiting is None:
                return
            if waiting.sent < len(letter.again):
                waiting.not_before = self._clock() + letter.again[waiting.sent]
                waiting.sent += 1
                return
            del self._waiting[letter.subject]
            self._unlink(letter)

    def put_off(self, letter: Letter) -> None:
        """Let the others go first for a while, a longer one each time."""
        with self._lock:
            waiting = self._waiting_of(letter)
            if waiting is not None:
                pause = min(LONGEST_PUT_OFF, FIRST_PUT_OFF * 2.0**waiting.put_off)
                waiting.put_off += 1
                waiting.not_before = self._clock() + pause

    def wait(self, timeout: float | None) -> None:
        """Sleep until something is put in, or for so many seconds."""
        self._bell.wait(timeout)
        self._bell.clear()

    def ring(self) -> None:
        """Wake up whoever waits."""
        self._bell.set()

    def hurried(self) -> bool:
        """Whether somebody hurried since this was asked last."""
        hurried, self._hurried = self._hurried, False
        return hurried

    def _waiting_of(self, letter: Letter) -> _Waiting | None:
        waiting = self._waiting.get(letter.subject)
        return waiting if waiting is not None and waiting.letter.number == letter.number else None

    def _keep_limit(self) -> None:
        while len(self._waiting) > self._limit:
            oldest = self._waiting.pop(next(iter(self._waiting))).letter
            LOG.error("more than %d messages wait: giving up %s on %s", self._limit, oldest.method, oldest.subject)
            self._unlink(oldest)

    def _write(self, letter: Letter) -> None:
        path = self._path(letter)
        try:
            with durable.explained(f"write down {letter.method} on {letter.subject}"):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                durable.write(path, _to_bytes(letter), mode=_MODE, like=self._directory)
        except GuestagentError:
            with suppress(OSError):
                path.with_name(path.name + durable.FRESH).unlink()
            raise

    def _unlink(self, letter: Letter) -> None:
        try:
            self._path(letter).unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("cannot forget %s on %s, which will be sent again: %s", letter.method, letter.subject, error)

    def _path(self, letter: Letter) -> Path:
        return self._directory / _name(letter.subject)


def _name(subject: str) -> str:
    """The file's name: always short, whatever the subject is."""
    return sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()[:32] + _SUFFIX


def _plain(letter: Letter) -> Letter:
    """The letter as it will be read again after a restart; raises UsageError."""
    data = _to_bytes(letter)
    if len(data) > LARGEST:
        raise UsageError(f"{letter.method} on {letter.subject} has {len(data)} bytes", hint=f"at most {LARGEST}")
    return _from_bytes(data)


def _to_bytes(letter: Letter) -> bytes:
    try:
        document = {"format": _FORMAT, **asdict(letter), "arguments": dict(letter.arguments)}
        return json.dumps(document, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{letter.method} on {letter.subject} cannot be sent: {error}") from error


def _from_bytes(data: bytes) -> Letter:
    """Read a letter; raises Corrupt."""
    try:
        found = document.parsed(data, most=LARGEST)
        if found["format"] != _FORMAT:
            raise Corrupt(f"a message of format {found['format']}")
        return Letter(
            number=_of(int, found["number"]),
            subject=_of(str, found["subject"]),
            method=_of(str, found["method"]),
            arguments=_of(dict, found["arguments"]),
            again=tuple(map(_pause, _of(list, found["again"]))),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"not a message: {error!r}") from error


def _of(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__}, not {kind.__name__}")
    return value


def _pause(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= LONGEST_AGAIN:
        raise ValueError("a pause out of range")
    return float(value)


def _letters(directory: Path) -> Iterator[Letter]:
    """The messages in a directory; what else is there is told and put aside."""
    for path in sorted(directory.iterdir()):
        if path.name.endswith(ASIDE):
            continue
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise Corrupt("not a file")
            if path.name.endswith(_SUFFIX + durable.FRESH):
                # It was being written when its writer died, so nobody was promised anything.
                path.unlink()
                continue
            yield _read(path)
        except (OSError, Corrupt) as error:
            _put_aside(path, error)


def _read(path: Path) -> Letter:
    letter = _from_bytes(durable.read_small(path, most=LARGEST))
    if path.name != _name(letter.subject):
        raise Corrupt(f"a message on {letter.subject} under another name")
    return letter


def _put_aside(path: Path, why: Exception) -> None:
    LOG.error("%s in the outbox is put aside: %s", durable.shown(path.name), why)
    try:
        path.rename(path.with_name(path.name + ASIDE))
    except OSError as error:
        LOG.error("it stays where it is: %s", error)
