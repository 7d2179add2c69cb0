"""docs/failures.rst has a test for each failure, and each of them is there."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.unit.named_tests import DOCS, missing, named

TEXT = (DOCS / "failures.rst").read_text(encoding="utf-8")
LINES = {"A": 10, "B": 7, "C": 6, "D": 7, "E": 5, "F": 5, "G": 3}
"""How many failures of each kind the catalogue has."""

ROWS = re.findall(
    r"^   \* - ([A-G]\d+)\n     - (.+?)\n     - (.+?)(?=\n   \* -|\n\n|\Z)", TEXT, re.MULTILINE | re.DOTALL
)


def test_every_test_that_is_named_is_there() -> None:
    assert missing(named(TEXT)) == []


def test_every_failure_of_the_catalogue_is_there() -> None:
    assert Counter(number[0] for number, _, _ in ROWS) == LINES
    assert [number for number, _, _ in ROWS] == [
        f"{kind}{n}" for kind, most in LINES.items() for n in range(1, most + 1)
    ]


@pytest.mark.parametrize(("number", "tests"), [(number, tests) for number, _, tests in ROWS])
def test_every_failure_has_tests_that_are_there(number: str, tests: str) -> None:
    found = [(file, test) for file, test in named(tests) if test]
    assert found, number
    assert missing(found) == []
