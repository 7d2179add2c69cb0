"""Tables that are many, on a real server: the tool gets the files that it needs, or the backup is refused."""

from __future__ import annotations

from guestagent.errors import Refused
from guestagent.operations.open_files import GROWTH, OWN
from tests.integration.conftest import MakeGuest
from tests.integration.running import Running, assert_nothing_left
from tests.servers.guest import Guest

TABLES = 300
FEW = 200
"""Files, of which a dump needs more."""


def limited(guest: Guest, hard: int, *words: str) -> tuple[int, str]:
    """A command of a host whose soft limit is too low, and whose hard limit is as told: its exit status and stderr."""
    with Running(guest, *words, before=["prlimit", f"--nofile={FEW}:{hard}"]) as command:
        return command.finish(), command.err


def test_a_tool_may_open_as_many_files_as_the_hard_limit_allows(guest: Guest, make_guest: MakeGuest) -> None:
    tables = "".join(f"CREATE TABLE t{number} (n INT) ENGINE=InnoDB;" for number in range(TABLES))
    guest.server.script(f"CREATE DATABASE d; USE d; {tables} INSERT INTO t{TABLES - 1} VALUES (1), (2);")
    needed = len(list(guest.server.datadir.rglob("*.ibd"))) + OWN + GROWTH
    status, err = limited(guest, needed - 1, "backup", "create", "many")
    assert status == Refused.exit_status
    assert (
        f"a backup holds up to {needed} files open, one for each InnoDB table, and may hold {needed - 1}; allow" in err
    )
    assert_nothing_left(guest)
    rows = {row["check"]: row for row in guest.json("doctor")}
    assert rows["files"]["ok"] == "yes"
    status, err = limited(guest, needed, "backup", "create", "many")
    assert status == 0, err
    made = guest.json("backup", "list")[0]["id"]
    other = make_guest("guest2", empty=True)
    status, err = limited(other, FEW, "restore", made, "--no-start")
    assert status == 0, err
    other.server.start()  # not by a command with so low a limit, which would be the server's, too
    assert other.server.content() == guest.server.content()
