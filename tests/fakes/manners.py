"""How the fake tools behave beside their work: knobs, words on stderr, signals, and the ways to go wrong."""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False  # typing, as pathlib and datetime, takes longer to import than a tool to run
if TYPE_CHECKING:
    from typing import NoReturn

MARIABACKUP = os.path.basename(sys.argv[0]).startswith("maria")
HANG = 600


class Failed(Exception):
    """An error that ends the tool with exit code 1."""


def knob(name: str, otherwise: str = "") -> str:
    return os.environ.get(f"FAKE_TOOL_{name}", otherwise)


def faults(phase: str) -> set[str]:
    return set(knob("FAULT").split(",")) - {""} if knob("PHASE", "backup") == phase else set()


def say(text: str) -> None:
    now = time.time_ns()
    if MARIABACKUP:
        line = f"[00] {timestamp(now)} {text}"
    else:
        micros = now // 1000 % 1_000_000
        line = f"{timestamp(now, between='T')}.{micros:06}-00:00 0 [Note] [MY-011825] [Xtrabackup] {text}"
    print(line, file=sys.stderr, flush=True)


def timestamp(now: int, between: str = " ") -> str:
    return time.strftime(f"%Y-%m-%d{between}%H:%M:%S", time.gmtime(now // 1_000_000_000))


def banner() -> str:
    if MARIABACKUP:
        return f"mariabackup based on MariaDB server {tool_version()} debian-linux-gnu (x86_64)"
    number = tool_version().partition("-")[0]
    return f"xtrabackup version {tool_version()} based on MySQL server {number} Linux (x86_64) (revision id: 55ec21d7)"


def tool_version() -> str:
    return knob("VERSION", "10.11.19-MariaDB" if MARIABACKUP else "8.0.35-31")


def make_noise(wrong: set[str]) -> None:
    if "loud" in wrong:
        line = b"[01] ...copying, and telling everybody about it at great length".ljust(99, b".") + b"\n"
        for _ in range(1000):
            sys.stderr.buffer.write(line * 100)
    if "long-line" in wrong:
        sys.stderr.buffer.write(b"x" * 1_000_000 + b"\n")
    if "binary" in wrong:
        sys.stderr.buffer.write(b"table \xff\xfe\x80 \xc3( copied\n")
    sys.stderr.flush()


# -- the ways to go wrong


def listen_to_signals(wrong: set[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN if "deaf" in wrong else signal.SIG_DFL)


def begin(phase: str) -> set[str]:
    wrong = faults(phase)
    listen_to_signals(wrong)
    make_noise(wrong)
    if "start-exit-1" in wrong:
        raise Failed("failed to execute query 'BACKUP STAGE START': the server has gone away")
    if "table-gone" in wrong:
        say("FATAL ERROR: 2026-11-23 03:53:55 Failed to validate first page of the file shop/orders, error 61")
        sys.exit(1)
    if "hang-start" in wrong:
        hang()
    return wrong


def go_wrong_halfway(wrong: set[str]) -> None:
    if "killed" in wrong:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in wrong:
        hang()
    if "half" in wrong:
        raise Failed("error writing file: no space left on device")


def block(wrong: set[str]) -> None:
    """Take the lock that keeps transactions from being committed."""
    if MARIABACKUP:
        say("Starting BACKUP STAGE BLOCK_COMMIT")
        if "waits" in wrong:
            hang()
        say("Acquired locks for BACKUP STAGE BLOCK_COMMIT")
    else:
        say("Executing FLUSH TABLES WITH READ LOCK...")
    if "blocks" in wrong:
        hang()


def unblock() -> None:
    if not MARIABACKUP:
        say("Executing UNLOCK TABLES")
    say("All tables unlocked")


def halts(wrong: set[str]) -> bool:
    return bool(wrong & {"killed", "hang", "half", "cut"})


def hang() -> NoReturn:
    limit = time.monotonic() + HANG
    while time.monotonic() < limit:
        time.sleep(1)
    sys.exit(99)


def finish(wrong: set[str]) -> None:
    if "unconfirmed" not in wrong:
        say("completed OK!")
    if "words-after" in wrong:
        say("and something went wrong after all")
    sys.exit(3 if "exit-3" in wrong else 0)
