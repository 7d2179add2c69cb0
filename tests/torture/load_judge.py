"""Who judges what was restored from under a load; knows nothing of the product, and imports nothing of it.

It reads the source's binary log with the server's own tools, replays it into a bare server up to the position that a
backup names, and finds what that server and the restored one do not have in common.  Beside that it asks the restored
server alone whether the promises hold that every transaction kept, and compares it with what clients were told.

For engines without transactions the same holds, and is judged alike: a MyISAM or Aria table has exactly the rows of the
statements before the position, since those that write to it and to the binary log hold off the tool's last locks.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from pymysql.cursors import Cursor

from tests.servers import content
from tests.torture.load_cases import ACCOUNTS, FUNDS

PATIENCE = 300
"""Seconds that a tool may take."""
FEW = 3
"""Differences of a kind that are told."""
FIRST = 4
"""Where a binary log's first event begins."""
KEYS: Mapping[str, str] = {
    "ledger": "SELECT writer, n FROM bank.ledger",
    "pending": "SELECT txn, id FROM bank.pending WHERE id = 0",
    "loose_my": "SELECT n, 0 FROM bank.loose_my",
    "loose_ar": "SELECT n, 0 FROM bank.loose_ar",
}
"""What tells of each table's rows which of those are there that clients were told of."""

Told = Mapping[tuple[str, int, int], int]
"""For each table and key, the number of the transaction that wrote it."""
_EVENT = re.compile(r"# at (\d+)\n.*?end_log_pos (\d+)[^\t\n]*\t(.*)")
_GTID = re.compile(r"GTID (\d+-\d+-\d+)")
_APART = re.compile(r"GTID \d|Rotate|Stop|Binlog checkpoint")
"""Events that come between two transactions, and no other events do."""


@dataclass(frozen=True, order=True)
class Position:
    """Where a binary log stood."""

    file: str
    position: int
    gtid: str

    @classmethod
    def of_manifest(cls, manifest: Path) -> Position:
        """What a backup's manifest says."""
        said = json.loads(manifest.read_text())["binlog"]
        return cls(said["file"], said["position"], said["gtid"])

    @classmethod
    def of_tool(cls, datadir: Path) -> Position:
        """What the tool has left in a restored datadir."""
        file, position, gtid = (datadir / "xtrabackup_binlog_info").read_text().split()
        return cls(file, int(position), gtid)

    def moved(self, position: int) -> Position:
        """Another place in the same file."""
        return replace(self, position=position)


@dataclass(frozen=True)
class Event:
    """An event of the binary log."""

    begin: int
    end: int
    what: str

    @property
    def gtid(self) -> str:
        """Of the transaction that it begins, if it does."""
        found = _GTID.match(self.what)
        return found[1] if found else ""


class Binlogs:
    """The binary logs that a server has left in its datadir."""

    def __init__(self, datadir: Path) -> None:
        self._datadir = datadir

    def files(self, first: str, last: str) -> list[Path]:
        """The files from one to another."""
        names = [Path(line).name for line in (self._datadir / "binlog.index").read_text().split()]
        return [self._datadir / name for name in names[names.index(first) : names.index(last) + 1]]

    def first(self) -> Position:
        """Before all events."""
        return Position(Path((self._datadir / "binlog.index").read_text().split()[0]).name, FIRST, "")

    def events(self, file: str) -> list[Event]:
        """The events of a file, in order."""
        text = subprocess.run(
            ["mariadb-binlog", "--no-defaults", "--base64-output=decode-rows", str(self._datadir / file)],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        ).stdout.decode(errors="replace")
        return [Event(int(found[1]), int(found[2]), found[3]) for found in _EVENT.finditer(text)]

    def beside(self, position: Position, known: Container[int]) -> tuple[Position, Position]:
        """Where the last transaction before a position began, and where the next one ended, of those that are known."""
        groups = [event for event in self.events(position.file) if _APART.match(event.what)]
        pairs = [(one, two.begin) for one, two in pairwise(groups) if one.gtid and _number(one.gtid) in known]
        before = [begin for begin, end in pairs if end <= position.position][-1]
        after, end = next((begin, end) for begin, end in pairs if begin.begin >= position.position)
        earlier = f"{before.gtid.rpartition('-')[0]}-{_number(before.gtid) - 1}"
        return Position(position.file, before.begin, earlier), Position(position.file, end, after.gtid)

    def replay(self, begin: Position, end: Position, socket: Path) -> None:
        """Have the server at ``socket`` do what the source did between two positions."""
        argv = [
            "mariadb-binlog",
            "--no-defaults",
            f"--start-position={begin.position}",
            f"--stop-position={end.position}",
            *map(str, self.files(begin.file, end.file)),
        ]
        client = ["mariadb", "--no-defaults", f"--socket={socket}", "--user=root", "--binary-mode"]
        with tempfile.TemporaryFile() as said, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=said) as reader:
            done = subprocess.run(client, stdin=reader.stdout, capture_output=True, timeout=PATIENCE, check=False)
            status = reader.wait(PATIENCE)
            said.seek(0)
            if status or done.returncode:
                raise RuntimeError(f"the binary log cannot be replayed: {said.read()!r} {done.stderr!r}")


def wrong_position(binlogs: Binlogs, position: Position, datadir: Path) -> Iterator[str]:
    """What is wrong with a position by itself: the tool's own file, and the events before and after it."""
    if (tool := Position.of_tool(datadir)) != position:
        yield f"the manifest says {position}, and the restored datadir {tool}"
    last, apart = "", set[int]()
    for path in binlogs.files(binlogs.first().file, position.file):
        events = binlogs.events(path.name)
        within = [event for event in events if path.name != position.file or event.end <= position.position]
        last = next((event.gtid for event in reversed(within) if event.gtid), last)
        apart = {event.begin for event in events if _APART.match(event.what)} | {events[-1].end}
    if position.position not in apart:
        yield f"no transaction ends at {position.file}:{position.position}"
    if last != position.gtid:
        yield f"the last transaction before {position.file}:{position.position} is {last}, not {position.gtid}"


def broken_promises(cursor: Cursor) -> Iterator[str]:
    """What no transaction could have left behind, whatever the position."""
    cursor.execute("SELECT COUNT(*), SUM(balance) FROM bank.accounts")
    if (found := cursor.fetchone()) != (ACCOUNTS, ACCOUNTS * FUNDS):
        yield f"accounts and their sum are {found}, not {(ACCOUNTS, ACCOUNTS * FUNDS)}"
    cursor.execute("SELECT writer, n, amount, hash FROM bank.ledger ORDER BY writer, n")
    yield from _few("the ledger", broken_chains(cursor.fetchall()))
    for less, more in (("ledger", "journal"), ("journal", "ledger")):
        cursor.execute(f"SELECT writer, n FROM bank.{less} EXCEPT SELECT writer, n FROM bank.{more}")
        yield from _few(f"in the {less} alone", cursor.fetchall())


def broken_chains(rows: Iterable[tuple[int, int, int, str]]) -> Iterator[str]:
    """Where a writer's rows are not 1, 2, 3, ... each with the hash of the one before in its own."""
    last: dict[int, tuple[int, str]] = {}
    for writer, n, amount, said in rows:
        before, chained = last.get(writer, (0, ""))
        if n != before + 1:
            yield f"{n} of writer {writer} comes after {before}"
        elif hashlib.sha256(f"{chained}|{writer}|{n}|{amount}".encode()).hexdigest()[:32] != said:
            yield f"the hash of {n} of writer {writer} does not hold the one before"
        last[writer] = n, said


def untrue(cursor: Cursor, told: Told, gtid: str) -> Iterator[str]:
    """Where the server has not exactly what clients were told of transactions up to ``gtid``."""
    limit = _number(gtid)
    for table, query in KEYS.items():
        there = _rows(cursor, query)
        known = {(first, second): number for (name, first, second), number in told.items() if name == table}
        before = {key for key, number in known.items() if number <= limit}
        yield from _few(f"lost from {table} before {gtid}", sorted(before - there))
        yield from _few(f"in {table} after {gtid}", sorted((known.keys() - before) & there))


def different(restored: Cursor, replayed: Cursor) -> Iterator[str]:
    """What one of two servers has and the other has not: rows by their keys, definitions, and every table's content."""
    for table, query in KEYS.items():
        ours, theirs = (_rows(cursor, query) for cursor in (restored, replayed))
        yield from _few(f"in {table} and not in the binary log", sorted(ours - theirs))
        yield from _few(f"in the binary log and not in {table}", sorted(theirs - ours))
    for values in (content.definitions, content.checksums):
        ours_all, theirs_all = values(restored), values(replayed)
        unequal = {name for name in ours_all.keys() | theirs_all.keys() if ours_all.get(name) != theirs_all.get(name)}
        yield from _few("not as the binary log has it", sorted(unequal))


def damaged(cursor: Cursor) -> Iterator[str]:
    """What CHECK TABLE finds."""
    cursor.execute("SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'")
    names = [f"{content.quoted(schema)}.{content.quoted(table)}" for schema, table in cursor.fetchall()]
    for name in names:
        cursor.execute(f"CHECK TABLE {name} EXTENDED")
        yield from (f"{table}: {text}" for table, _, kind, text in cursor.fetchall() if kind.lower() == "error")


def _rows(cursor: Cursor, query: str) -> set[tuple[int, int]]:
    cursor.execute(query)
    return set(cursor.fetchall())


def _number(gtid: str) -> int:
    """A transaction's number, where there is one domain alone."""
    return int(gtid.rpartition("-")[2])


def _few(what: str, found: Iterable[object]) -> Iterator[str]:
    """One line for all, with some of them."""
    several = [str(one) for one in found]
    if several:
        yield f"{what}: {len(several)}, such as {'; '.join(several[:FEW])}"
