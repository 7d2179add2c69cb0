"""Chains taken from a server that is written to all the time, and each of their links restored and judged.

As a program, to play one case again, or a seed's cases from one number to another:

    python -m tests.torture.load_run case SEED NUMBER
    python -m tests.torture.load_run SEED FROM TO
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pymysql import MySQLError
from pymysql.cursors import Cursor

from guestagent.errors import GuestagentError, one_line
from guestagent.manifest import Backup
from guestagent.progress import Watch
from tests.integration.running import in_memory
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace
from tests.torture import load_judge
from tests.torture.load_cases import LoadCase, make_case
from tests.torture.load_judge import Binlogs, Position
from tests.torture.load_writers import Load
from tests.torture.soak import Record

REFUSALS: Mapping[str, re.Pattern[str]] = {
    "the dump ended at its checkpoint": re.compile("ended its copy of the redo log [0-9]+ bytes beyond"),
    "no lock in time": re.compile("[Ll]ock wait timeout|for a lock|Deadlock found|Unable to obtain lock"),
    "the redo log was overwritten": re.compile("Was only able to copy log"),
    "the tool stood still": re.compile("no progress for .* (in phase dump|while the server's commits wait)"),
    "a table was being rebuilt when the parent was taken": re.compile("were being rebuilt when the parent was taken"),
    "a table was changed while the tool read it": re.compile(r"beside/\S+ (twice|among them)"),
}
"""Why a backup may be refused under a load."""
STILL = 60.0
"""Seconds without a byte after which a backup is given up, as by [stream] no_progress_limit."""
TRIES = 5
"""How often a link is tried before a chain goes without."""
TOLD = 8
"""Lines of a tool that are told."""
BARE = ("--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--max-allowed-packet=64M")
READ_ONLY = ("--read-only", "--event-scheduler=OFF", "--skip-slave-start")


@dataclass
class Run:
    """One link: refused, or restored and judged."""

    case: LoadCase
    link: str
    ended: str
    told: str = ""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.case}, {self.link}: {self.ended} {self.told}{'; '.join(self.wrong)}".rstrip()


@dataclass
class Scene:
    """A source that was written to while ``taken`` were taken, and a server that replays what it did."""

    case: LoadCase
    place: Path
    guest: Guest
    mirror: MariaDB
    load: Load
    taken: list[Backup] = field(default_factory=list)
    refused: list[Run] = field(default_factory=list)
    replayed: Position | None = None

    @property
    def binlogs(self) -> Binlogs:
        """What the source has written."""
        return Binlogs(self.guest.server.datadir)

    def position(self, taken: Backup) -> Position:
        """What its manifest says."""
        root = Path(self.guest.url.removeprefix("file://"))
        return Position.of_manifest(root / self.guest.name / taken.id / "manifest.json")

    def replay(self, to: Position) -> None:
        """Bring the mirror to a position that is not before the one where it is."""
        self.binlogs.replay(self.replayed or self.binlogs.first(), to, self.mirror.socket)
        self.replayed = to

    @contextmanager
    def restored(self, taken: Backup, *options: str) -> Iterator[MariaDB]:
        """A server on what was restored of a backup; nothing of it is left."""
        with workplace() as place, MariaDB(datadir=place / "data", running=False) as server:
            Guest("reader", server, place, self.guest.url).restore(taken, start=False)
            server.start(*options)
            yield server

    def wrong(self, server: MariaDB, position: Position) -> list[str]:
        """What the judge finds of a restored server, if ``position`` is what its backup names."""
        found = list(load_judge.wrong_position(self.binlogs, position, server.datadir))
        self.replay(position)
        with server.session() as session, session.cursor() as cursor:
            return [*found, *self.wrong_rows(cursor, position), *load_judge.damaged(cursor)]

    def wrong_rows(self, cursor: Cursor, position: Position) -> list[str]:
        """What the judge finds of rows, if the mirror is where ``position`` says."""
        with self.mirror.session() as session, session.cursor() as mirrored:
            return [
                *load_judge.broken_promises(cursor),
                *load_judge.untrue(cursor, self.load.told.committed, position.gtid),
                *load_judge.different(cursor, mirrored),
            ]


@contextmanager
def scene(case: LoadCase) -> Iterator[Scene]:
    """A chain that was taken under a load, which is over; the source is down."""
    with (
        in_memory(),
        workplace() as place,
        MariaDB(options=case.options) as source,
        MariaDB(options=BARE) as mirror,
    ):
        database = (
            f"checkpoint_first = {case.checkpoint_first}\nextra_args = --log-copy-interval={case.copy_interval}\n"
        )
        guest = Guest("source", source, place, f"file://{place}/store", database=database)
        guest.account()
        source.query("GRANT SUPER ON *.* TO backup@localhost")
        with Load(source, case) as load:
            made = Scene(case, place, guest, mirror, load)
            _take(made)
        source.stop()
        yield made


def _take(made: Scene) -> None:
    """Take a full backup and incrementals, as many as the case has."""
    dice = made.case.dice("chain")
    made.load.wait_for(20)
    for number in range(made.case.links + 1):
        taken = _taken(made, f"link {number}")
        if taken is None:
            return
        made.taken.append(taken)
        time.sleep(dice.random() * made.case.gap)
        made.load.wait_for(5)


def _taken(made: Scene, link: str) -> Backup | None:
    for _ in range(TRIES):
        try:
            return made.guest.back_up(made.taken[-1] if made.taken else None, watch=Watch(limit=STILL))
        except GuestagentError as error:
            run = Run(made.case, link, *_reason(error))
            made.refused.append(run)
            if run.wrong:
                return None
    return None


def _reason(error: GuestagentError) -> tuple[str, str, list[str]]:
    """How it ended, why, and what is wrong with that."""
    said = "\n".join([str(error), *getattr(error, "tail", ())])
    why = next((why for why, pattern in REFUSALS.items() if pattern.search(said)), "")
    return ("refused", f"({why}) ", []) if why else ("failed", "", [_told(error)])


def _told(error: Exception) -> str:
    """An error with the last lines of the tool, if it is a tool's."""
    return one_line("; ".join([f"{type(error).__name__}: {error}", *getattr(error, "tail", ())[-TOLD:]]))


def play(case: LoadCase) -> Iterator[Run]:
    """Take a chain, then restore and judge each of its links."""
    with scene(case) as made:
        yield from made.refused
        for number, taken in enumerate(made.taken):
            yield _judged(made, taken, f"link {number} of {len(made.taken)}")


def _judged(made: Scene, taken: Backup, link: str) -> Run:
    run = Run(made.case, link, "equal")
    try:
        with made.restored(taken, *READ_ONLY) as server:
            run.wrong = made.wrong(server, made.position(taken))
    except (GuestagentError, RuntimeError, MySQLError) as error:
        run.wrong = [_told(error)]
    if run.wrong:
        run.ended = "wrong"
    return run


def count(record: Record, run: Run) -> None:
    """Count a run, and keep the line of one that was wrong."""
    record.runs += 1
    record.count(run.case.row, "runs", "wrong" if run.wrong else run.ended)
    if run.ended == "refused":
        record.count(f"refused: {run.told.strip(' ()')}", "runs")
    if run.wrong:
        record.wrong.append(f"{run}; replay: python -m tests.torture.load_run {run.case}")


def soaked(seed: int, numbers: Iterable[int], told: Callable[[Run], object] = lambda _: None) -> Record:
    """Play a seed's cases of these numbers."""
    record, began = Record("load", seed), time.monotonic()
    for number in numbers:
        for run in play(make_case(seed, number)):
            told(run)
            count(record, run)
    record.seconds = time.monotonic() - began
    return record


def main(*words: str) -> int:
    """Play what the words say; gives 1 if anything was wrong."""
    logging.basicConfig(level=logging.WARNING)
    seed, first = (int(word) for word in (words[1:] if words[0] == "case" else words[:2]))
    numbers = range(first, first + 1 if words[0] == "case" else int(words[2]))
    record = soaked(seed, numbers, lambda run: print(run, flush=True))
    print(record, {row: dict(columns) for row, columns in record.counts.items()})
    return int(bool(record.wrong))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
