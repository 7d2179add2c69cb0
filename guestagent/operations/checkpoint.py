"""A checkpoint of the server right before a dump, so that this has less redo to carry: if it is wanted, and may be.

A dump begins its redo at the server's last checkpoint.  MariaDB makes one on demand; MySQL only in debug builds.
"""

from __future__ import annotations

import logging
import time

from guestagent.database import connect
from guestagent.engines import Connection
from guestagent.errors import DatabaseError, Refused
from guestagent.model import ServerFacts
from guestagent.operations.host import Host
from guestagent.progress import Watch
from guestagent.streams.crew import Crew, Team

LOG = logging.getLogger(__name__)

ASK_TIMEOUT = 10.0
PATIENCE = 60.0
"""Seconds that a dump waits for its checkpoint.

A server that is written to all the time goes on for as long as its log does not stand still for a moment, and ignores
KILL meanwhile (tried with 10.11.19); by then it has long written what was there to write when it began.
"""
INSTEAD = "or set [database] checkpoint_first = never"


def wanted(host: Host, *, incremental: bool) -> bool:
    """Whether a backup of that kind is to begin with a checkpoint."""
    return host.database.checkpoint_first in (("incremental", "always") if incremental else ("always",))


def check(host: Host, server: ServerFacts) -> None:
    """Raise Refused if the server makes no checkpoint on demand, and DatabaseError if the account may not ask."""
    if server.datastore != "mariadb":
        raise Refused(
            f"a server of {server.datastore} makes no checkpoint on demand",
            hint="set [database] checkpoint_first = never",
        )
    if not {"SUPER", "ALL PRIVILEGES"} & server.grants:
        raise DatabaseError(
            f"{server.account} lacks SUPER, which a checkpoint before a backup takes",
            hint=f"GRANT SUPER ON *.* TO {server.account}, {INSTEAD}",
        )
    with connect(host.database.connection, timeout=ASK_TIMEOUT) as database:
        if not database.knows_checkpoint():
            raise Refused(
                f"server {server.version_text} makes no checkpoint on demand", hint=f"upgrade the server, {INSTEAD}"
            )


def make(host: Host, watch: Watch) -> None:
    """Have the server make a checkpoint, and wait for it, though not without end."""
    watch.phase("checkpoint")
    begin, once = time.monotonic(), iter([host.database.connection])
    crew = Crew(Team(1), workspace=lambda: None, take=lambda _: next(once, None), work=lambda _, place: _ask(place))
    try:
        with crew:
            crew.wait(watch)
    except DatabaseError as error:
        if time.monotonic() - begin < PATIENCE:
            raise
        LOG.warning(
            "the server is still busy with its checkpoint after %g s; the dump begins without: %s", PATIENCE, error
        )


def _ask(place: Connection) -> None:
    with connect(place, timeout=PATIENCE) as database:
        database.checkpoint()
