"""The server's life during a restore: stopped before the swap, started and asked after it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from guestagent.database import answers, connect
from guestagent.datadir.place import server_running
from guestagent.errors import DatabaseError, GuestagentError
from guestagent.operations.host import DatabaseSettings
from guestagent.progress import Watch
from guestagent.streams.process import run_command

LOG = logging.getLogger(__name__)

QUIET = {"mariadb": "--event-scheduler=OFF --skip-slave-start", "mysql": "--event-scheduler=OFF --skip-replica-start"}
"""Server options with which nothing that a restored server did before goes on by itself."""
OPTIONS = "MYSQLD_OPTS"
"""The variable that the units of MariaDB and MySQL pass to their servers; a start command of one's own must too."""
ASK_TIMEOUT = 10.0
PATIENCE = 5.0
"""Seconds between two looks at whether the wait for an answer was cancelled."""
LEAVES = 10.0
"""Seconds for which a server that was stopped may still hold its files; the command is given again meanwhile."""
TURNS_UP = 3.0
"""Seconds for which a server that nobody saw, and a stop command did not find, may only be on its way up."""
LOOK = 0.5
"""Seconds between two looks at a server that is stopped."""


def stop(settings: DatabaseSettings, datadir: Path, watch: Watch) -> None:
    """Stop the server that runs on ``datadir``; raises DatabaseError if it still runs afterwards.

    One that is still starting, as after a start that was cancelled, may have no pid file by which the command could
    find it: then there was nothing to stop for the command, which says that it is done.
    """
    seen = server_running(datadir)
    run_command(settings.stop_command, watch)
    turned_up = time.monotonic() + TURNS_UP
    while not seen and not server_running(datadir) and time.monotonic() < turned_up:
        _look_later(watch)
    limit = time.monotonic() + LEAVES
    while server_running(datadir):
        if time.monotonic() >= limit:
            raise _still_running(settings, datadir)
        _look_later(watch)
        undo(lambda: run_command(settings.stop_command, watch), f"cannot stop the server on {datadir} as yet")


def _still_running(settings: DatabaseSettings, datadir: Path) -> DatabaseError:
    return DatabaseError(
        f"a server still runs on {datadir} after {' '.join(settings.stop_command)}",
        hint="set [database] stop_command to the one that stops it",
    )


def _look_later(watch: Watch) -> None:
    watch.cancel.check()
    time.sleep(LOOK)


def start_quietly(settings: DatabaseSettings, datadir: Path, datastore: str, watch: Watch) -> str:
    """Start the server on ``datadir`` with events and replication off, and wait for its answer; gives its version."""
    watch.check()
    with _quiet(settings.start_command, QUIET[datastore], watch) as environment:
        run_command(settings.start_command, watch, environment=environment)
        version = _answer(settings, watch)
    if not server_running(datadir):
        raise DatabaseError(
            f"a server answers after {' '.join(settings.start_command)}, and none runs on {datadir}",
            hint="set [database] start_command and socket to those of the server on that datadir",
        )
    for what in _still_loud(settings):
        LOG.warning("the restored server runs %s already; does start_command pass $%s on?", what, OPTIONS)
    return version


def start(settings: DatabaseSettings, watch: Watch) -> None:
    """Start the server as it always is, such as after an old datadir was put back."""
    run_command(settings.start_command, watch)
    _answer(settings, watch)


def _answer(settings: DatabaseSettings, watch: Watch) -> str:
    """The server's version as soon as it answers, within start_timeout; a cancel ends the wait within seconds."""
    limit = time.monotonic() + settings.start_timeout
    while True:
        watch.cancel.check()
        left = limit - time.monotonic()
        try:
            return answers(settings.connection, timeout=max(0, min(left, PATIENCE)))
        except DatabaseError as error:
            if left <= PATIENCE:
                waited = f"no answer within {settings.start_timeout:g} s"
                raise DatabaseError(f"{waited}: {error.__cause__ or error}", hint=error.hint) from error


def _still_loud(settings: DatabaseSettings) -> list[str]:
    """What runs by itself although it must not, after it was told to stop."""
    try:
        with connect(settings.connection, timeout=ASK_TIMEOUT) as database:
            return database.set_quiet() if database.quiet() else []
    except DatabaseError as error:  # the accounts are those of the backup, and ours may not be among them
        LOG.warning("cannot look whether events and replication are off: %s", error)
        return []


@contextmanager
def _quiet(command: Sequence[str], options: str, watch: Watch) -> Iterator[dict[str, str]]:
    """The environment for a quiet start; systemd passes none on, so its manager is told for as long."""
    environment = {OPTIONS: options}
    if os.path.basename(command[0]) != "systemctl":
        yield environment
        return
    run_command([command[0], "set-environment", f"{OPTIONS}={options}"], watch)
    try:
        yield environment
    finally:
        unset = [command[0], "unset-environment", OPTIONS]
        undo(lambda: run_command(unset, Watch()), f"later starts of the server get {OPTIONS} too")


def undo(attempt: Callable[[], None], what: str) -> bool:
    """Do what must be tried after a failure without hiding that failure: its own is only logged; says how it went."""
    try:
        attempt()
    except GuestagentError as error:
        LOG.error("%s: %s", what, error)
        return False
    return True
