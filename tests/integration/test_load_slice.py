"""A slice of the load: one chain taken while clients write, every link restored; and a judge that sees what is planted.

Hundreds of links are taken and restored by tests/torture/test_load.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.servers.mariadb import MariaDB
from tests.torture.load_cases import INNODB, MIB, LoadCase
from tests.torture.load_judge import Position, broken_chains, wrong_position
from tests.torture.load_run import READ_ONLY, Scene, scene
from tests.torture.load_writers import chained

ROOT = Path(__file__).resolve().parents[2]
CASE = LoadCase(
    seed=6,
    number=5,
    redo=32 * MIB,
    flush=2,
    binlog_format="MIXED",
    isolation="REPEATABLE-READ",
    writers=3,
    links=2,
    blob=20_000,
    pause=0.01,
    gap=0.1,
    rotate=64 * MIB,
    checkpoint_first="incremental",
    copy_interval=1000,
    engines=INNODB,
)
PLANTED: Mapping[str, set[str]] = {
    "DELETE FROM ledger WHERE n = 1 AND writer = 1": {
        "the ledger: 1, such as 2 of writer 1 comes after 0",
        "in the journal alone: 1, such as (1, 1)",
        "lost from ledger",
        "in the binary log and not in ledger: 1, such as (1, 1)",
        "not as the binary log has it: 1, such as bank.ledger",
    },
    "UPDATE accounts SET balance = balance + 1 WHERE id = 3": {
        "accounts and their sum",
        "not as the binary log has it: 1, such as bank.accounts",
    },
    "UPDATE ledger SET amount = amount + 1 WHERE n = 1 AND writer = 0": {
        "the ledger: 1, such as the hash of 1 of writer 0",
        "not as the binary log has it: 1, such as bank.ledger",
    },
    "INSERT INTO pending VALUES (900000, 0, 'open')": {
        "in pending and not in the binary log: 1, such as (900000, 0)",
        "not as the binary log has it: 1, such as bank.pending",
    },
    "UPDATE filler SET v = 'other' WHERE id = 9": {"not as the binary log has it: 1, such as bank.filler"},
    "INSERT INTO loose_my VALUES (900000, '')": {
        "in loose_my and not in the binary log: 1, such as (900000, 0)",
        "not as the binary log has it: 1, such as bank.loose_my",
    },
    "DELETE FROM loose_ar WHERE n = 2": {
        "lost from loose_ar",
        "in the binary log and not in loose_ar: 1, such as (2, 0)",
        "not as the binary log has it",
    },
}
"""What the judge says of a change that a restored server has in it; it is rolled back where the engine can."""


@pytest.fixture(scope="module")
def taken() -> Iterator[Scene]:
    """A chain of three that was taken under a load."""
    with scene(CASE) as made:
        assert [str(run) for run in made.refused if run.wrong] == []
        yield made


def test_every_link_is_what_its_position_names_and_the_judge_sees_what_is_planted(taken: Scene) -> None:
    """One story, since the server that replays can only go on."""
    first, second, third = taken.taken
    with taken.restored(first, *READ_ONLY) as server:
        assert taken.wrong(server, taken.position(first)) == []
    with taken.restored(second, *READ_ONLY) as server:
        _assert_position_seen(taken, server, taken.position(second))
    with taken.restored(third, *READ_ONLY) as server:
        assert taken.wrong(server, taken.position(third)) == []
        _assert_rows_seen(taken, server, taken.position(third))


def _assert_position_seen(taken: Scene, server: MariaDB, position: Position) -> None:
    """One that is off by an event; and one by a transaction, which would not be seen without the rows."""
    events = taken.binlogs.events(position.file)
    earlier = max(event.begin for event in events if event.end <= position.position)
    later = min(event.end for event in events if event.begin >= position.position)
    for moved in (earlier, later):
        assert len(list(wrong_position(taken.binlogs, position.moved(moved), server.datadir))) > 1
    ledger = {number for (table, _, _), number in taken.load.told.committed.items() if table == "ledger"}
    before, after = taken.binlogs.beside(position, ledger)
    for place, seen in (
        (before, ("in ledger and not in the binary log: ", "in ledger after ")),
        (position, ()),
        (after, ("in the binary log and not in ledger: ", "lost from ledger before ")),
    ):
        taken.replay(place)
        with server.session() as session:
            said = taken.wrong_rows(session.cursor(), place)
        assert bool(said) == bool(seen)
        assert all(any(words in line for line in said) for words in seen), said


def _assert_rows_seen(taken: Scene, server: MariaDB, position: Position) -> None:
    with server.session() as session, session.cursor() as cursor:
        cursor.execute("USE bank")
        for statement, wanted in PLANTED.items():
            cursor.execute("BEGIN")
            cursor.execute(statement)
            said = taken.wrong_rows(cursor, position)
            cursor.execute("ROLLBACK")
            for one in wanted:
                assert any(line.startswith(one) for line in said), f"{statement}: {said}"


def test_a_servers_own_transaction_is_seen_to_be_damaged() -> None:
    """Chains without a number, and with another one before."""
    rows = [(1, 1, 5, chained("", 1, 1, 5)), (1, 3, 5, chained("", 1, 3, 5)), (2, 1, 4, chained("", 2, 1, 5))]
    assert list(broken_chains(rows)) == [
        "3 of writer 1 comes after 1",
        "the hash of 1 of writer 2 does not hold the one before",
    ]


def test_the_judge_imports_nothing_of_the_product() -> None:
    names = "[name for name in sys.modules if name.startswith('guestagent')]"
    code = f"import sys, tests.torture.load_judge; sys.exit(str({names}) if {names} else 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
