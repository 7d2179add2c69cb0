"""What the stories' tests share: a workbench, and the proof that a failure left no trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.bench import Bench, staying

# The same examples each time, however long one takes where all is slow: tests/torture looks for new ones.
settings.register_profile(
    "unit", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unit")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A host with a MariaDB server, whose store is empty."""
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def mysql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A host with a MySQL server, whose store is empty."""
    made = Bench(tmp_path, monkeypatch, datastore="mysql")
    yield made
    made.close()


@pytest.fixture
def unchanged(bench: Bench, caplog: pytest.LogCaptureFixture) -> Callable[[], Callable[[], None]]:
    """Call it before a story, and what it gives after the story's failure: it fails if anything stayed behind."""
    caplog.set_level(logging.DEBUG)
    return lambda: staying(bench, caplog)
