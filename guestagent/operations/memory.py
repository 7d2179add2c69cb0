"""How much memory a tool may have here: by the host, and by the control groups that it would run in."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = (("memory.max", "memory.current", "inactive_file"), ("memory.high", "memory.current", "inactive_file"))
_KIB = 1024


def available() -> int:
    """Bytes that a new process could use before anything is swapped out, or killed for it.

    The host's are what the kernel calls available.  A group's are its limit less its use, of which the page cache that
    nobody looked at lately does not count, since it makes room; each group above ours may have the lowest limit.
    """
    return max(0, min([_host(), *_groups()]))


def _host() -> int:
    lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
    return next(int(words[1]) * _KIB for words in lines if words[0] == "MemAvailable:")


def _groups() -> Iterator[int]:
    for line in (PROC / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _left(GROUPS, path, _V2)
        elif "memory" in controllers.split(","):
            yield from _left(GROUPS / "memory", path, (_V1,))


def _left(mount: Path, path: str, kinds: tuple[tuple[str, str, str], ...]) -> Iterator[int]:
    """What is left in the group and in those above it; in a container the path may lead to nothing, as its host's."""
    group = mount / path.lstrip("/")
    for place in takewhile(lambda place: place.is_relative_to(mount), (group, *group.parents)):
        for limit, use, cache in kinds:
            allowed = _number(place / limit)
            if allowed is not None:
                yield allowed - (_number(place / use) or 0) + _stat(place / "memory.stat", cache)


def _number(file: Path) -> int | None:
    """What the file says, or None for ``max``, and for a file that is not there."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _stat(file: Path, name: str) -> int:
    try:
        found = dict(line.split() for line in file.read_text().splitlines())
    except OSError:
        return 0
    return int(found.get(name, 0))
