"""What every test gets: an environment without the settings of whoever runs it, and the integration mark by place.

What tests write lies in memory where there is enough of it: syncing it to a disk is most of what they would wait for.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore import loaders, session

INTEGRATION = Path(__file__).parent / "integration"
MEMORY = Path("/dev/shm")
ENOUGH = 3 << 30
"""Bytes that all tests at work may fill."""


def pytest_configure() -> None:
    """Nobody's TMPDIR is overruled; tests that are about a disk ask for one."""
    if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
        tempfile.tempdir = str(MEMORY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if INTEGRATION in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session", autouse=True)
def descriptions_read_once() -> Iterator[None]:
    """boto3 reads its descriptions of services, megabytes of JSON, once and not for each client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "create_loader", functools.cache(loaders.create_loader))
        yield


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
