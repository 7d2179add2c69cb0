"""What a caller sent, looked at argument by argument: every error names the argument, in one line.

Nothing here knows what an argument is for.  What was sent is shown in an error only where it is an id, a time or the
like, and then cut short: an argument may be huge, and it may be secret.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from guestagent.errors import UsageError

NAME_LIMIT = 255
"""Characters of a backup's name, as in Trove."""
DESCRIPTION_LIMIT = 4096
LOCATION_LIMIT = 1500
PATH_LIMIT = 4095
ID_LENGTH = 36

_SHOWN = 60
_MANY = 3
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")
_SHA256 = re.compile(r"[0-9a-f]{32,64}")
"""At least half of one: 128 bits still tell any two manifests apart, and older tables have room for no more."""


class _Missing:
    """The default of an argument that must be there."""


MISSING: Final = _Missing()


class Arguments:
    """The arguments of one call; what nobody has asked for when it comes to ``end`` is refused."""

    def __init__(self, method: str, given: Mapping[str, Any], *, above: str = "") -> None:
        self._method = method
        self._given = given
        self._above = above
        self._known: set[str] = set()

    def text(self, name: str, *, limit: int, default: str | _Missing = MISSING, folded: bool = False) -> str:
        """A text of one line; ``folded`` makes one of several lines, which people write into forms."""
        value = self._take(name, default)
        if not isinstance(value, str):
            raise self._mistyped(name, "text", value)
        if len(value) > limit:
            raise self.wrong(name, f"has {len(value)} characters, where at most {limit} are allowed")
        if folded:
            value = " ".join(value.split())
        if _UNPRINTABLE.search(value):
            raise self.wrong(name, "holds a line break, a control character or half a character")
        return value

    def maybe_text(self, name: str, *, limit: int, folded: bool = False) -> str | None:
        """A text, or None, which an empty one counts as."""
        if self._take(name, None) is None:
            return None
        return self.text(name, limit=limit, folded=folded) or None

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise self._mistyped(name, "true or false", value)
        return value

    def maybe_flag(self, name: str) -> bool | None:
        """True, false or None."""
        return None if self._take(name, None) is None else self.flag(name, default=False)

    def number(self, name: str, *, least: int, most: int, default: int) -> int:
        """A whole number within bounds."""
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._mistyped(name, "a whole number", value)
        if not least <= value <= most:
            raise self.wrong(name, f"must be {least} to {most}")
        return value

    def id(self, name: str) -> str:
        """A UUID in its canonical form."""
        value = self._take(name, MISSING)
        if not isinstance(value, str):
            raise self._mistyped(name, "a UUID", value)
        if not is_id(value):
            raise self.wrong(name, f"must be a UUID in lower case with dashes, not {shown(value)}")
        return value

    def maybe_id(self, name: str, *, or_word: str | None = None) -> str | None:
        """A UUID, or None; or that word in its place."""
        value = self._take(name, None)
        if value is None or value == or_word:
            return or_word if value is not None else None
        return self.id(name)

    def moment(self, name: str) -> datetime | None:
        """A time in UTC such as ``2026-11-22T18:00:00Z``, or None."""
        value = self._take(name, None)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._mistyped(name, "a time such as 2026-11-22T18:00:00Z", value)
        try:
            return datetime.fromisoformat(value if _MOMENT.fullmatch(value) else "")
        except ValueError as error:
            raise self.wrong(name, f"must be a time such as 2026-11-22T18:00:00Z, not {shown(value)}") from error

    def digest(self, name: str) -> str | None:
        """A SHA-256 in lower-case hex, or its first half or more, or None, which an empty text counts as."""
        value = self.maybe_text(name, limit=LOCATION_LIMIT)
        if value is not None and not _SHA256.fullmatch(value):
            raise self.wrong(name, f"must be the SHA-256 of a manifest, not {shown(value)}")
        return value

    def inner(self, name: str) -> Arguments:
        """What a table holds."""
        value = self._take(name, MISSING)
        if not isinstance(value, dict):
            raise self._mistyped(name, "a table", value)
        return Arguments(self._method, value, above=f"{self._above}{name}.")

    def maybe_inner(self, name: str) -> Arguments | None:
        """What a table holds, or None, which an empty one counts as."""
        return self.inner(name) if self._take(name, None) not in (None, {}) else None

    def holds(self, name: str) -> bool:
        """Whether an argument is there and not empty, whatever it is."""
        return bool(self._given.get(name))

    def others(self, *, but: str) -> list[str]:
        """The names that nobody has asked for and that hold something, in order, fit to be logged."""
        self._known.add(but)
        return [shown(name) for name in sorted(self._given) if name not in self._known and self._given[name]]

    def end(self) -> None:
        """Refuse what nobody has asked for."""
        strangers = [name for name in self._given if name not in self._known]
        if strangers:
            names = ", ".join(shown(name) for name in sorted(strangers)[:_MANY])
            more = f" and {len(strangers) - _MANY} more" if len(strangers) > _MANY else ""
            takes = ", ".join(sorted(self._known)) or "none"
            raise UsageError(f"{self._method} knows no argument {names}{more}", hint=f"it takes {takes}")

    def wrong(self, name: str, why: str, *, hint: str = "") -> UsageError:
        """The error that says what is wrong with an argument."""
        return UsageError(f"{self._method}: {self._above}{name} {why}", hint=hint)

    def _mistyped(self, name: str, wanted: str, value: Any) -> UsageError:
        kind = "null" if value is None else type(value).__name__
        return self.wrong(name, f"must be {wanted}, not {kind}")

    def _take(self, name: str, default: Any) -> Any:
        self._known.add(name)
        value = self._given.get(name, default)
        if value is MISSING:
            raise self.wrong(name, "is missing")
        return value


def is_id(text: str) -> bool:
    """Whether it is a UUID in its canonical form, and so a harmless name of a file, too."""
    if len(text) != ID_LENGTH:
        return False
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def shown(value: str) -> str:
    """A caller's text as it may stand in a message: quoted, escaped and cut."""
    return ascii(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!a}..."
