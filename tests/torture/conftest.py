"""The records of the torture's parts: each told as it ends, written where that is asked for, and a line at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.soak import Record, seed

_KEPT = pytest.StashKey[list[Record]]()


@pytest.fixture
def keep(pytestconfig: pytest.Config) -> Callable[[Record], None]:
    """Takes a part's record; called before anything is asserted of it."""

    def kept(record: Record) -> None:
        pytestconfig.stash.setdefault(_KEPT, []).append(record)
        if directory := os.environ.get("GUESTAGENT_TEST_RECORDS"):
            record.write(Path(directory))

    return kept


def pytest_report_header() -> str:
    return f"GUESTAGENT_TEST_SEED={seed()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    records = config.stash.get(_KEPT, [])
    if not records:
        return  # tests of other directories ran alone
    for record in records:
        terminalreporter.write_line(str(record))
        for line in record.wrong:
            terminalreporter.write_line(f"  wrong: {line}")
    runs, wrong = sum(record.runs for record in records), sum(len(record.wrong) for record in records)
    terminalreporter.write_line(f"torture: seed {seed()}, {runs:,} runs, {wrong} wrong")
