"""The guards of the code: for each the text that is it, what stands there without it, and the tests that should notice.

They are listed in the ``*.toml`` files beside this one; nothing here runs a test.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


class Rotten(Exception):
    """The list does not fit the code any more."""


@dataclass(frozen=True)
class Guard:
    """One guard: ``text`` of ``file`` is it, and ``becomes`` is what the code says without it.

    ``tests`` are files below tests/, or single tests in them (``FILE::NAME``): who should notice, quickest first.
    """

    topic: str
    name: str
    file: str
    text: str
    becomes: str
    tests: tuple[str, ...]

    def without(self, source: str) -> str:
        """The file's source without the guard; raises Rotten if that guard is not to be found in it."""
        if source.count(self.text) != 1:
            raise Rotten(f"{self.name}: {self.file} has its text {source.count(self.text)} times: {self.text!r}")
        removed = source.replace(self.text, self.becomes)
        compile(removed, self.file, "exec")
        return removed


def guards() -> list[Guard]:
    """All of them, in the order of the list; raises Rotten for a list that makes no sense."""
    found = [guard for path in sorted(HERE.glob("*.toml")) for guard in _read(path)]
    names = [guard.name for guard in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise Rotten(f"two guards have the same name: {', '.join(sorted(twice))}")
    return found


def _read(path: Path) -> list[Guard]:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    return [_guard(path, document["topic"], entry) for entry in document["guard"]]


def _guard(path: Path, topic: str, entry: dict[str, object]) -> Guard:
    wanted = {field.name for field in fields(Guard)} - {"topic"}
    if set(entry) != wanted:
        raise Rotten(f"{path.name}: {entry.get('name')} must have {', '.join(sorted(wanted))}")
    tests = entry["tests"]
    if not isinstance(tests, list) or not tests:
        raise Rotten(f"{path.name}: {entry['name']} has no tests")
    name, file, text, becomes = (str(entry[key]) for key in ("name", "file", "text", "becomes"))
    return Guard(topic=topic, name=name, file=file, text=text, becomes=becomes, tests=tuple(map(str, tests)))
