"""How long others wait for a dump: each stage has its limit, and what moves has time."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest

from guestagent.engines import Connection, engine_named
from guestagent.errors import Stalled
from guestagent.operations.host import DatabaseSettings
from guestagent.operations.stages import Stages
from guestagent.progress import Watch
from tests.fakes.bench import PATIENCE, Bench

STAMP = "[00] 2026-11-23 06:19:15 "
WANTS = f"{STAMP}Started BACKUP STAGE BLOCK_DDL"
HAS = f"{STAMP}Acquired locks for BACKUP STAGE BLOCK_DDL"
BLOCKS = f"{STAMP}Acquired locks for BACKUP STAGE BLOCK_COMMIT"
FREES = f"{STAMP}All tables unlocked"
SETTINGS = DatabaseSettings(connection=Connection(), lock_wait_timeout=5, block_commit_limit=7)


class Dump:
    """A dump, whose time passes when the test says so."""

    def __init__(self, **changes: Any) -> None:
        self.now = 100.0
        self.watch = Watch(clock=self._clock)
        settings = replace(SETTINGS, **changes)
        self.stages = Stages(engine_named("mariabackup"), settings, self.watch, clock=self._clock)

    def _clock(self) -> float:
        return self.now

    def says(self, line: str, *, for_seconds: float) -> None:
        """Says it, and nothing more for that long."""
        self.stages.hear(line)
        self.now += for_seconds


def test_a_lock_is_waited_for_as_long_as_told() -> None:
    dump = Dump()
    dump.says(WANTS, for_seconds=5)
    dump.stages.check()
    dump.says("and some words on something else", for_seconds=1)
    with pytest.raises(Stalled) as failed:
        dump.stages.check()
    assert "has waited 6 s for a lock" in failed.value.what
    assert failed.value.hint.endswith("or raise [database] lock_wait_timeout")


def test_each_lock_has_its_own_time() -> None:
    dump = Dump()
    for line in (WANTS, HAS, WANTS, HAS, WANTS, BLOCKS):
        dump.says(line, for_seconds=5)
        dump.stages.check()


def test_bytes_do_not_shorten_the_wait_for_a_lock() -> None:
    """Other threads of the tool may copy while one waits, and sessions with it."""
    dump = Dump()
    dump.says(WANTS, for_seconds=6)
    dump.watch.advance(1)
    with pytest.raises(Stalled):
        dump.stages.check()


def test_commits_are_not_blocked_for_long_without_a_byte() -> None:
    dump = Dump()
    dump.says(BLOCKS, for_seconds=7)
    assert dump.stages.blocking
    dump.stages.check()
    dump.watch.advance(1)
    dump.now += 7
    dump.stages.check()
    dump.now += 1
    with pytest.raises(Stalled) as failed:
        dump.stages.check()
    assert failed.value.what == "no progress for 7 s while the server's commits wait for the backup"
    assert "innodb_log_file_size" in failed.value.hint


def test_silence_before_the_block_does_not_count() -> None:
    dump = Dump()
    dump.now += 100
    dump.says(BLOCKS, for_seconds=1)
    dump.stages.check()


def test_after_the_lock_a_dump_may_take_its_time() -> None:
    dump = Dump()
    dump.says(BLOCKS, for_seconds=1)
    dump.says(FREES, for_seconds=1000)
    assert not dump.stages.blocking
    dump.stages.check()


@pytest.mark.parametrize("line", [WANTS, BLOCKS])
def test_without_limits_there_are_none(line: str) -> None:
    dump = Dump(lock_wait_timeout=0, block_commit_limit=0)
    dump.says(line, for_seconds=1e6)
    dump.stages.check()


def _back_up(bench: Bench, limit: str) -> None:
    changes: dict[str, Any] = {limit: 1}
    bench.backup(**changes)


@pytest.mark.parametrize(
    ("fault", "limit", "why"),
    [
        ("waits", "lock_wait_timeout", r"mariabackup has waited [0-9]+ s for a lock"),
        ("blocks", "block_commit_limit", r"no progress for 1 s while the server's commits wait"),
    ],
)
def test_a_backup_is_given_up_when_others_wait_for_too_long(bench: Bench, fault: str, limit: str, why: str) -> None:
    bench.tool(FAULT=fault)
    with pytest.raises(Stalled) as failed:
        _back_up(bench, limit)
    assert re.match(why, failed.value.what)
    bench.check_no_child()
    assert bench.objects() == {}
    bench.tool(FAULT="")
    _back_up(bench, limit)


@pytest.mark.parametrize("fault", ["waits", "blocks"])
def test_without_limits_of_their_own_the_usual_one_ends_it(bench: Bench, fault: str) -> None:
    bench.tool(FAULT=fault)
    with pytest.raises(Stalled, match="no progress for 1 s in phase dump"):
        bench.backup(lock_wait_timeout=0, block_commit_limit=0, watch=Watch(limit=1))


def test_a_rate_limit_does_not_make_commits_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.tool(SIZE=str(4 << 20), DATADIR="")
    monkeypatch.setattr(Stages, "blocking", True)
    began = time.monotonic()
    bench.backup(rate_limit=64 << 10)
    assert time.monotonic() - began < PATIENCE / 2, "it would have taken a minute"
