"""docs/security.rst names a test for each promise, and each of them is there."""

from __future__ import annotations

import re

from tests.unit.named_tests import DOCS, missing, named

TEXT = (DOCS / "security.rst").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there() -> None:
    assert len(named(TEXT)) > 20
    assert missing(named(TEXT)) == []


def test_every_promise_names_a_test() -> None:
    chapters = re.split(r"\n(?=[A-Z][^\n]*\n={4,}\n)", TEXT)
    promising = [chapter for chapter in chapters if not chapter.startswith(("=", "Security", "Not promised"))]
    assert len(promising) >= 6
    assert [chapter.splitlines()[0] for chapter in promising if "test_" not in chapter] == []
