"""Guests on real servers, with a store in a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace

MakeGuest = Callable[..., Guest]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the server's user may pass through."""
    with workplace() as path:
        yield path


@pytest.fixture
def make_guest(place: Path) -> Iterator[MakeGuest]:
    """Makes guests that share a store; ``empty`` ones have no datadir and no server yet."""
    with ExitStack() as stack:

        def make(name: str = "guest1", *, empty: bool = False, url: str = "", **options: str) -> Guest:
            datadir = place / f"{name}-data" if empty else None
            server = stack.enter_context(MariaDB(datadir=datadir, running=not empty))
            guest = Guest(name, server, place, url or f"file://{place}/store", **options)
            if not empty:
                guest.account()
            return guest

        yield make


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    """A running guest with an account for backups."""
    return make_guest()
