"""What every test gets: an environment without the settings of whoever runs it, and the integration mark by place."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

INTEGRATION = Path(__file__).parent / "integration"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if INTEGRATION in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """A program sets levels for its whole process, which tests share, and leaves a handler of a stderr that is gone."""
    before = {name: logger.level for name, logger in _loggers()}
    yield
    for handler in [one for one in logging.root.handlers if type(one) is logging.StreamHandler]:
        logging.root.removeHandler(handler)
    for name, logger in _loggers():
        if logger.level != before.get(name, logging.NOTSET):
            logger.setLevel(before.get(name, logging.NOTSET))


def _loggers() -> list[tuple[str, logging.Logger]]:
    known = logging.root.manager.loggerDict.items()
    return [("", logging.root), *((name, one) for name, one in known if isinstance(one, logging.Logger))]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, proxies or options from outside reach a test."""
    for name in list(os.environ):
        if name.startswith("AWS_") or (name.startswith("OS_") and "__" in name) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
