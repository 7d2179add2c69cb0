"""The error tree: everything that this package raises on purpose.

Each class has a ``code`` (a word for machines), an ``exit_status`` for the
command line and room for a hint that says what to do about it::

    GuestagentError            failed        1   our bug or the world's
      ToolError                tool          1   a child process failed or said something else than success
        BadLuck                tool          1   it may well succeed at once
      Stalled                  stalled       1   nothing moved for longer than a limit allows
      UsageError               usage         2   a request that cannot be understood
        ConfigError            config        2   an option that is missing or wrong
      Refused                  refused       3   understood, possible, and not safe
      NotFound                 not-found     4   no such backup, job or file
      ChainBroken              chain-broken  5   the links do not continue each other
      Corrupt                  corrupt       6   bytes that are not what the manifest promised
        Foreign                corrupt       6   whole bytes, and not for this reader: they are not damaged
      Busy                     busy          7   another job runs on this host
      StorageError             storage       8   the object store failed
        ObjectMissing          storage       8   the store has no such object
        ObjectExists           storage       8   the store has that object already
        StorageDenied          storage       8   the credentials do not allow it
      DatabaseError            database      9   the server failed, refused us or is down
      Cancelled                cancelled    10   somebody asked us to stop

Messages are lower case, name the thing and end without a dot; the hint is an
order that a person can follow.  Library code raises these and neither logs
nor exits; the doors (command line, RPC, job worker) log and translate them.
"""

from __future__ import annotations

import re
from typing import ClassVar

LONGEST = 2000
"""Characters of a message: what a stranger wrote may be quoted in it."""
_CUT = "..."
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls of terminals and of the direction of text, ends of lines, halves of characters."""


def printable(text: str) -> str:
    """A text as it may stand in a log or on a terminal, with blanks for what would do more there than be read."""
    return _UNPRINTABLE.sub(" ", text)


def one_line(text: str) -> str:
    """As printable, and of bounded length: a message, whatever is quoted in it."""
    flat = printable(text[: LONGEST + 1])
    return flat if len(flat) <= LONGEST else flat[: LONGEST - len(_CUT)] + _CUT


class GuestagentError(Exception):
    """Any failure that is ours to explain; ``str()`` gives what, then the hint."""

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, hint: str = "") -> None:
        self.what = one_line(what)
        self.hint = one_line(hint)
        super().__init__(self.what)

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what

    @property
    def kwargs(self) -> dict[str, str]:
        """What oslo.messaging takes along, beside ``args``, to make the error anew on the other side of a call."""
        return {"hint": self.hint}


class ToolError(GuestagentError):
    """A child process failed; ``tail`` holds the last lines that it wrote to stderr."""

    code = "tool"

    def __init__(self, what: str, *, hint: str = "", tail: tuple[str, ...] = ()) -> None:
        super().__init__(what, hint=hint)
        self.tail = tail


class BadLuck(ToolError):
    """A child process met what others did at that very moment: the same may well succeed at once."""


class Stalled(GuestagentError):
    """Nothing moved for longer than a limit allows: no byte, no answer, no lock was had."""

    code = "stalled"


class UsageError(GuestagentError):
    """A request that cannot be understood."""

    code = "usage"
    exit_status = 2


class ConfigError(UsageError):
    """An option that is missing or wrong."""

    code = "config"


class Refused(GuestagentError):
    """A request that is understood and possible, and that would not end well."""

    code = "refused"
    exit_status = 3


class NotFound(GuestagentError):
    """No such backup, job or file."""

    code = "not-found"
    exit_status = 4


class ChainBroken(GuestagentError):
    """The links of a chain do not continue each other."""

    code = "chain-broken"
    exit_status = 5


class Corrupt(GuestagentError):
    """Bytes that are not what the manifest, or the format, promised."""

    code = "corrupt"
    exit_status = 6


class Foreign(Corrupt):
    """Bytes that are whole, and not for this reader: of a newer format, or another backup's."""


class Busy(GuestagentError):
    """Another job runs on this host."""

    code = "busy"
    exit_status = 7


class StorageError(GuestagentError):
    """The object store failed, after the retries that are configured."""

    code = "storage"
    exit_status = 8


class ObjectMissing(StorageError):
    """The store has no such object."""


class ObjectExists(StorageError):
    """The store has that object already, and was told not to replace it."""


class StorageDenied(StorageError):
    """The store knows who we are, or not, and does not allow it."""


class DatabaseError(GuestagentError):
    """The database server failed, refused us or is down."""

    code = "database"
    exit_status = 9


class Cancelled(GuestagentError):
    """Somebody asked us to stop."""

    code = "cancelled"
    exit_status = 10
