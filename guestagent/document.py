"""Small JSON documents, read as if a stranger had written them: bounded in bytes, values, depth and numbers.

What a document means is its reader's business; a manifest, which may be large, is read by ``manifest``.
"""

from __future__ import annotations

import json
import math
from typing import Any

MOST_VALUES = 1 << 19
"""Objects, arrays and what they hold: what a few bytes of each would fill memory with."""
DEEPEST = 64
LONGEST_NUMBER = 24
"""Characters of a whole number; 2**64 has 20."""


def parsed(data: bytes, *, most: int, deepest: int = DEEPEST) -> Any:
    """What ``data`` of at most ``most`` bytes says; raises ValueError, in a few words, for what is no such document."""
    if len(data) > most:
        raise ValueError(f"more than {most} bytes")
    check_size(data, MOST_VALUES)
    try:
        found = json.loads(
            data.decode(), object_pairs_hook=once, parse_constant=no_number, parse_int=_whole, parse_float=finite
        )
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _check_depth(found, deepest)
    return found


def check_size(data: bytes, most: int) -> None:
    """Raise ValueError if ``data`` may hold more than ``most`` values: each but one follows one of these signs."""
    if sum(map(data.count, (b",", b"[", b"{"))) > most:
        raise ValueError(f"more than {most} values")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys differ: of two readers, one would take the first value and one the last."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def no_number(name: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{name} is no number")


def finite(text: str) -> float:
    """A number with a fraction, unless it is too big for one."""
    if not math.isfinite(found := float(text)):
        raise ValueError("a number out of range")
    return found


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _check_depth(value: Any, left: int) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return
    if not left:
        raise ValueError("nested too deeply")
    for one in inner:
        _check_depth(one, left - 1)
