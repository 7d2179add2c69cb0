"""Gentleness in the stories: the rate limit both ways, tools that give way, and neither keeps a story from ending."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from guestagent.errors import Cancelled, GuestagentError, StorageError
from guestagent.manifest import Backup
from guestagent.operations.verify import verify
from guestagent.progress import Cancel, Progress, Watch
from guestagent.streams.process import Niceness
from tests.fakes.bench import PATIENCE, Bench, data_in, settled, when
from tests.fakes.stores import Refuses

Unchanged = Callable[[], Callable[[], None]]
RATE = 50_000
SLOW_RATE = 10_000
LIMIT = 2.0
"""Seconds without progress that are too many, and fewer than a large segment takes at the slow rate."""
NEVER = 1
"""Bytes a second at which a second segment does not come to pass while a test lasts."""


def least(taken: Backup) -> float:
    """Seconds that a job may not be faster than: one segment runs ahead."""
    sizes = [segment.stored_size for segment in taken.manifest.segments]
    return (sum(sizes) - max(sizes)) / RATE


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.monotonic()
    done = act()
    return done, time.monotonic() - begin


def test_the_limit_holds_both_ways_and_nobody_takes_a_wait_for_a_standstill(bench: Bench) -> None:
    tree = bench.write("limited")
    limited: dict[str, Any] = {"rate_limit": RATE, "compression": "none"}
    taken, took = timed(lambda: bench.backup(**limited))
    assert least(taken) > 0.5
    assert took > least(taken)
    large = bench.backup(compression="none", segment_size=40_000)
    assert least(large) * RATE / SLOW_RATE > LIMIT
    _, took = timed(lambda: verify(bench.host(rate_limit=SLOW_RATE), large.id, Watch(limit=LIMIT)))
    assert took > LIMIT
    _, took = timed(lambda: bench.restore(taken, replace=True, **limited))
    assert took > least(taken)
    assert data_in(bench.datadir) == tree


def test_what_is_read_back_is_limited_too(bench: Bench) -> None:
    taken, took = timed(lambda: bench.backup(verify_uploads="bytes", rate_limit=RATE, compression="none"))
    assert took > 2 * least(taken)


def test_a_limit_that_is_not_reached_costs_nothing(bench: Bench) -> None:
    _, took = timed(lambda: bench.backup(rate_limit=1 << 40))
    assert took < PATIENCE


class AtPhase:
    """A progress that cancels soon after a phase began."""

    def __init__(self, phase: str) -> None:
        self.cancel = Cancel()
        self._wanted = phase

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        if name == self._wanted:
            begin = time.monotonic()
            when(lambda: time.monotonic() - begin > 1, lambda: self.cancel.set("the test says so"))

    def advance(self, count: int) -> None:
        pass

    def watch(self) -> Watch:
        shown: Progress = self
        return Watch(shown, cancel=self.cancel)


def ending(bench: Bench, story: str, watch: Watch, taken: Backup) -> None:
    slow: dict[str, Any] = {"rate_limit": NEVER, "compression": "none"}
    if story == "backup":
        bench.backup(watch=watch, **slow)
    elif story == "verify":
        verify(bench.host(**slow), taken.id, watch)
    else:
        bench.restore(taken, replace=True, watch=watch, **slow)


@pytest.mark.parametrize(("story", "phase"), [("backup", "dump"), ("verify", "verify"), ("restore", "fetch")])
def test_a_cancel_ends_the_wait_at_once_and_leaves_no_worker_behind(
    bench: Bench, unchanged: Unchanged, caplog: pytest.LogCaptureFixture, story: str, phase: str
) -> None:
    taken = bench.backup(compression="none")
    check = unchanged()
    begin = time.monotonic()
    with pytest.raises(Cancelled, match="the test says so"):
        ending(bench, story, AtPhase(phase).watch(), taken)
    assert time.monotonic() - begin < PATIENCE
    assert "is left alone" not in caplog.text
    settled()
    check()


def test_a_failure_elsewhere_ends_the_wait_and_is_the_one_that_is_told(
    bench: Bench, unchanged: Unchanged, caplog: pytest.LogCaptureFixture
) -> None:
    bench.tool(SIZE=str(1 << 20))
    bench.wrap = lambda inner: Refuses(inner, "put")
    check = unchanged()
    begin = time.monotonic()
    with pytest.raises(GuestagentError) as failed:
        bench.backup(rate_limit=NEVER, workers=3)
    assert isinstance(failed.value, StorageError)
    assert time.monotonic() - begin < PATIENCE
    assert "is left alone" not in caplog.text
    check()


def test_the_tools_children_give_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    log = bench.top / "words"
    wrapper = bench.top / "wrapped" / "ionice"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho "$(nice) $*" >>{log}\nshift 4\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    taken = bench.backup(niceness=Niceness(6, "best-effort:7"))
    bench.restore(taken, replace=True, niceness=Niceness(6, "best-effort:7"))
    ours = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 6)
    told = log.read_text().splitlines()
    assert [line.split()[:6] for line in told] == [[str(ours), "-c", "best-effort", "-n", "7", "mariabackup"]] * 2
    assert ["--backup" in told[0], "--prepare" in told[1]] == [True, True]
