"""What options are made of: a type of values, and the mark of those that a reload changes."""

from __future__ import annotations

import re
from typing import Any

from oslo_config import cfg, types

KIB = 1 << 10
MIB = 1 << 20
_UNITS = {"": 1, "K": KIB, "M": MIB, "G": 1 << 30}
_SIZE = re.compile(r"(\d{1,18})\s*([KMG]?)", re.IGNORECASE)


class Size(types.ConfigType):
    """A number of bytes such as ``16M`` (K, M, G: powers of 1024).

    The word ``auto``, where allowed, reads as 0; ``off`` says that a plain 0 is allowed below the least.
    """

    def __init__(self, *, least: int, most: int | None = None, auto: bool = False, off: bool = False) -> None:
        limits = f"{_shown(least)} or more" if most is None else f"{_shown(least)} to {_shown(most)}"
        other = ", or the word auto" if auto else ", or 0" if off else ""
        super().__init__(type_name=f"size such as 16M, {limits}{other}")
        self._least = least
        self._most = most
        self._auto = auto
        self._off = off

    def __call__(self, value: Any) -> int:
        """The number of bytes that ``value`` means; raises ValueError."""
        if self._auto and value == "auto":
            return 0
        found = _SIZE.fullmatch(str(value).strip())
        size = int(found[1]) * _UNITS[found[2].upper()] if found else -1
        if self._off and size == 0:
            return 0
        if size < self._least or (self._most is not None and size > self._most):
            raise ValueError(f"{value!r} is not a {self.type_name}")
        return size

    def __repr__(self) -> str:
        return f"Size(least={self._least}, most={self._most}, auto={self._auto}, off={self._off})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def _formatter(self, value: Any) -> str:
        return str(value)


def _shown(size: int) -> str:
    return f"{size // KIB}K" if size % MIB else f"{size // MIB}M"


def reloaded(*options: cfg.Opt) -> tuple[cfg.Opt, ...]:
    """Options that a running agent takes anew at a reload, for its next job; the others take a restart."""
    for option in options:
        option.mutable = True
    return options
