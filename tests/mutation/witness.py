"""A plugin of pytest's: the tests of a mutant must meet the mutant, and not the package that is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import guestagent

TREE = "GUESTAGENT_TEST_TREE"
"""The variable that names the copy."""


def pytest_configure(config: pytest.Config) -> None:
    """End the run unless what would be tested lies in the copy."""
    found = Path(guestagent.__file__).resolve()
    if not found.is_relative_to(os.environ[TREE]):
        raise pytest.UsageError(f"guestagent comes from {found}, and not from {os.environ[TREE]}")
