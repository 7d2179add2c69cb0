"""A checkpoint before an incremental, on a real server: little redo to carry, by an account that may ask for it."""

from __future__ import annotations

import pytest

from guestagent.errors import DatabaseError
from guestagent.manifest import Backup
from tests.integration.conftest import MakeGuest
from tests.servers.guest import PASSWORD, Guest
from tests.servers.mariadb import BACKUP_GRANTS

CHANGES = 40
ROWS = 500
MUCH = 1 << 20
"""Bytes of redo, of a log that holds 8 MiB: much more, and it would have been written out by then."""
LITTLE = 1 << 19
"""Bytes of redo: more than a server writes that has nothing but old versions of rows to remove."""
ATTEMPTS = 10
"""Backups of which one has to carry much: the server may flush pages, and so make checkpoints, when it likes."""


def with_option(guest: Guest, option: str) -> Guest:
    """The same guest, asked for checkpoints or not."""
    database = f"checkpoint_first = {option}\n"
    return Guest(guest.name, guest.server, guest.place, guest.url, settings=guest.settings, database=database)


def churned(guest: Guest) -> None:
    """The same few rows, over and over: much redo, few changed pages."""
    guest.server.script(
        "SET GLOBAL innodb_log_checkpoint_now = 1; USE d;"
        + CHANGES * "UPDATE t SET n = n + 1; UPDATE t SET v = MD5(n);"
    )


def redo_in(backup: Backup) -> int:
    """Bytes of redo that a backup carries: it begins at a checkpoint, and ends where the log did."""
    return backup.manifest.lsn.last - backup.manifest.lsn.end


def with_much_redo(guest: Guest, parent: Backup) -> Backup:
    """An incremental that is not asked to begin with a checkpoint, and carries the redo of all that was changed."""
    for _ in range(ATTEMPTS):
        churned(guest)
        taken = guest.back_up(parent)
        if redo_in(taken) > MUCH:
            return taken
    raise AssertionError(f"the server made a checkpoint of its own before each of {ATTEMPTS} backups")


def test_an_incremental_that_begins_with_a_checkpoint_carries_little_redo(guest: Guest, make_guest: MakeGuest) -> None:
    guest.server.script(
        "CREATE DATABASE d; USE d; CREATE TABLE t (id INT PRIMARY KEY, n INT, v CHAR(32)) ENGINE=InnoDB;"
        f"INSERT INTO t SELECT seq, seq, '' FROM seq_1_to_{ROWS};"
    )
    full = guest.back_up()
    without = with_much_redo(guest, full)
    asking = with_option(guest, "incremental")
    with pytest.raises(DatabaseError, match=r"lacks SUPER.*GRANT SUPER ON \*\.\* TO 'backup'@'localhost'"):
        asking.back_up(without)
    guest.server.backup_account("backup", PASSWORD, grants=(*BACKUP_GRANTS, "SUPER"))
    churned(guest)
    asked = asking.back_up(without)
    assert redo_in(asked) < LITTLE
    other = make_guest("guest2", empty=True)
    other.restore(asked, start=True)
    assert other.server.content() == guest.server.content()
