"""The tests that a page of the documentation names, and which of them are not there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"

Named = list[tuple[str, str]]


def named(text: str) -> Named:
    """Every file that a text names, and each test that follows it (or none)."""
    found: Named = []
    file = ""
    for word in re.findall(r"(?:unit/|integration/|torture/)?test_\w+(?:\.py)?", text):
        if word.endswith(".py"):
            file = word
            found.append((file, ""))
        else:
            found.append((file, word))
    return found


def missing(found: Named) -> Named:
    """Those that are not there."""
    return [(file, test) for file, test in found if not _is_there(TESTS / file, test)]


def _is_there(path: Path, test: str) -> bool:
    return path.is_file() and f"def {test}" in path.read_text(encoding="utf-8")
