"""docs/security.rst names a test for each promise, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "security.rst"


def named() -> list[tuple[str, str]]:
    """Every file that the document names, and each test that follows it (or none)."""
    found: list[tuple[str, str]] = []
    file = ""
    for word in re.findall(r"(?:unit/|integration/)?test_\w+(?:\.py)?", DOCUMENT.read_text(encoding="utf-8")):
        if word.endswith(".py"):
            file = word
            found.append((file, ""))
        else:
            found.append((file, word))
    return found


def test_every_test_that_is_named_is_there() -> None:
    assert len(named()) > 20
    missing = [
        (file, test)
        for file, test in named()
        if not (TESTS / file).is_file() or f"def {test}" not in (TESTS / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_promise_names_a_test() -> None:
    chapters = re.split(r"\n(?=[A-Z][^\n]*\n={4,}\n)", DOCUMENT.read_text(encoding="utf-8"))
    promising = [chapter for chapter in chapters if not chapter.startswith(("=", "Security", "Not promised"))]
    assert len(promising) >= 6
    assert [chapter.splitlines()[0] for chapter in promising if "test_" not in chapter] == []
