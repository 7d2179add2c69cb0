"""Cases of the load: what server, what is written to it, and how long a chain is taken meanwhile; values alone.

A case is made of a seed and a number; the same two make the same case, and writers that draw the same numbers.
What a backup meets in them depends on the machine.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ACCOUNTS = 40
FUNDS = 1000
"""What each account has in the beginning."""
MIB = 1 << 20
INNODB = ("InnoDB", "InnoDB", "InnoDB ROW_FORMAT=COMPRESSED")


@dataclass(frozen=True)
class LoadCase:
    """One server with its writers, and a chain of one full and ``links`` incrementals.

    ``flush`` is the server's innodb_flush_log_at_trx_commit; ``redo`` and ``rotate`` are the sizes of its redo log and
    of its binary log's files, ``blob`` that of the greatest value written, in bytes; ``pause`` is what a writer waits
    at most between two transactions, and ``gap`` what the one who takes backups waits between two, in seconds.
    """

    seed: int
    number: int
    redo: int
    flush: int
    binlog_format: str
    isolation: str
    writers: int
    links: int
    blob: int
    pause: float
    gap: float
    rotate: int
    checkpoint_first: str
    copy_interval: int
    """Of the tool, which looks after so many ms whether there is more redo: with 1000, a small log is gone by then."""
    engines: tuple[str, ...]
    """Of the tables that are made, altered and dropped beside the writers."""

    @property
    def row(self) -> str:
        """The configuration that its runs are counted under."""
        size = "small" if self.redo < 8 * MIB else "big"
        flushed = "at commit" if self.flush == 1 else "each second"
        return f"{size} redo log, flushed {flushed}, DDL of {'InnoDB' if self.engines == INNODB else 'all engines'}"

    @property
    def options(self) -> tuple[str, ...]:
        """Options of mariadbd."""
        return (
            f"--innodb-log-file-size={self.redo}",
            f"--innodb-flush-log-at-trx-commit={self.flush}",
            f"--binlog-format={self.binlog_format}",
            f"--transaction-isolation={self.isolation}",
            "--innodb-lock-wait-timeout=2",
            "--max-allowed-packet=64M",
            f"--max-binlog-size={self.rotate}",
        )

    def dice(self, who: str) -> random.Random:
        """The random numbers of one writer."""
        return random.Random(f"{self.seed}/{self.number}/{who}")

    def __str__(self) -> str:
        return f"case {self.seed} {self.number}"


def make_case(seed: int, number: int) -> LoadCase:
    """The case of that number: eight in a row have each size of the log, way to flush it, and kind of DDL."""
    dice = random.Random(f"{seed}/{number}")
    return LoadCase(
        seed=seed,
        number=number,
        redo=4 * MIB if number % 2 == 0 else 96 * MIB,
        flush=1 + number // 2 % 2,
        binlog_format=dice.choice(("ROW", "MIXED")),
        isolation=dice.choice(("REPEATABLE-READ", "READ-COMMITTED")),
        writers=dice.randint(3, 6),
        links=dice.randint(1, 4),
        blob=dice.choice((20_000, 100_000, 400_000)),
        pause=dice.choice((0, 0.002, 0.02)),
        gap=dice.choice((0.1, 0.5, 2.0)),
        rotate=dice.choice((MIB, 8 * MIB, 64 * MIB)),
        engines=INNODB if number // 4 % 2 == 0 else (*INNODB, "MyISAM", "Aria"),
        checkpoint_first=dice.choice(("never", "incremental", "always")),
        copy_interval=dice.choice((1000, 100, 100)),
    )
