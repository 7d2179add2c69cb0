"""Watching long work: what the door sees, and when the job must end."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from types import FrameType

import pytest

from guestagent.errors import Cancelled, Stalled
from guestagent.progress import Cancel, Silent, Span, Watch


class Recorded:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        self.seen.append((name, total, link, links))

    def advance(self, count: int) -> None:
        self.seen.append((count,))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_phases_and_bytes_reach_the_progress() -> None:
    progress = Recorded()
    watch = Watch(progress)

    watch.phase("fetch", total=7, link=2, links=3)
    watch.phase("prepare")
    watch.advance(5)

    assert progress.seen == [("fetch", 7, 2, 3), ("prepare", None, 1, 1), (5,)]


def test_nobody_need_look() -> None:
    watch = Watch()
    watch.phase("dump", total=1)
    watch.advance(1)
    watch.check()

    Silent().phase("dump")
    Silent().advance(1)


def test_a_job_goes_on_until_it_is_cancelled() -> None:
    cancel = Cancel()
    watch = Watch(cancel=cancel)
    watch.check()

    cancel.set("stopped by SIGINT")

    with pytest.raises(Cancelled, match=r"^stopped by SIGINT$"):
        watch.check()


def test_the_first_reason_stays() -> None:
    cancel = Cancel()
    cancel.set("")
    cancel.set("second")

    with pytest.raises(Cancelled, match=r"^$"):
        cancel.check()


def test_a_watch_has_a_cancel_of_its_own_if_none_is_given() -> None:
    watch = Watch()
    watch.cancel.set("enough")

    with pytest.raises(Cancelled, match="enough"):
        watch.check()


class Storm:
    """Signals without end, each of which asks ``cancel`` to stop."""

    def __init__(self) -> None:
        self.cancel = Cancel()
        self.signals = 0

    def __enter__(self) -> Storm:
        self._before = signal.signal(signal.SIGVTALRM, self._handle)
        signal.setitimer(signal.ITIMER_VIRTUAL, 1e-3, 1e-3)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        self.cancel.set(signal.Signals(number).name)


@pytest.mark.timeout(20, method="signal")
def test_a_signal_handler_never_waits_for_the_thread_that_it_interrupts() -> None:
    with Storm() as storm:
        while storm.signals < 300:
            storm.cancel = Cancel()
            storm.cancel.set("enough")
            with pytest.raises(Cancelled):
                storm.cancel.check()


def test_without_a_limit_nothing_is_stalled(clock: Clock) -> None:
    watch = Watch(clock=clock)
    clock.now += 1e9

    watch.check()


def test_how_long_it_has_been_still(clock: Clock) -> None:
    watch = Watch(clock=clock)
    clock.now += 3
    watch.check()
    assert watch.still == 3
    watch.advance(1)
    assert watch.still == 0


def test_another_reason_to_end(clock: Clock) -> None:
    watch, asked = Watch(clock=clock), []

    def also() -> None:
        asked.append(clock.now)
        raise Stalled("enough")

    with watch.asking(also), pytest.raises(Stalled, match="enough"):
        watch.check()
    watch.check()
    assert len(asked) == 1


def test_whoever_was_cancelled_is_not_asked_for_other_reasons(clock: Clock) -> None:
    watch = Watch(clock=clock)
    watch.cancel.set("SIGTERM")
    with watch.asking(lambda: pytest.fail("asked")), pytest.raises(Cancelled):
        watch.check()


def test_no_byte_for_longer_than_the_limit_is_stalled(clock: Clock) -> None:
    watch = Watch(limit=60, clock=clock)
    watch.phase("dump")
    clock.now += 60
    watch.check()
    clock.now += 0.5

    with pytest.raises(Stalled, match="no progress for 60 s in phase dump") as caught:
        watch.check()
    assert caught.value.hint


@pytest.mark.parametrize("life", ["advance", "alive", "phase"])
def test_every_sign_of_life_begins_the_limit_anew(clock: Clock, life: str) -> None:
    watch = Watch(limit=60, clock=clock)
    clock.now += 59
    if life == "advance":
        watch.advance(0)
    elif life == "alive":
        watch.alive()
    else:
        watch.phase("prepare")
    clock.now += 59

    watch.check()


def test_cancelled_comes_before_stalled(clock: Clock) -> None:
    watch = Watch(limit=1, clock=clock)
    clock.now += 5
    watch.cancel.set("enough")

    with pytest.raises(Cancelled):
        watch.check()


@pytest.mark.parametrize("sign", ["phase", "advance", "alive", "check"])
def test_a_job_that_looks_at_its_watch_is_seen(clock: Clock, sign: str) -> None:
    """Even one that only waits; whether a byte moves is another question."""
    watch = Watch(clock=clock)
    assert watch.seen == 100
    clock.now += 50
    acts = {
        "phase": lambda: watch.phase("dump"),
        "advance": lambda: watch.advance(1),
        "alive": watch.alive,
        "check": watch.check,
    }
    acts[sign]()

    assert watch.seen == 150


def test_to_be_seen_is_no_progress(clock: Clock) -> None:
    watch = Watch(limit=60, clock=clock)
    for _ in range(6):
        clock.now += 10
        watch.check()
    clock.now += 1

    with pytest.raises(Stalled):
        watch.check()
    assert watch.seen == clock.now


def test_a_job_that_was_told_to_stop_is_seen_no_more(clock: Clock) -> None:
    watch = Watch(clock=clock)
    clock.now += 5
    watch.cancel.set("enough")

    with pytest.raises(Cancelled):
        watch.check()
    assert watch.seen == 100


def test_how_long_something_takes_is_not_a_matter_of_the_host_s_clock(clock: Clock) -> None:
    began = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
    span = Span(began, clock=clock)
    assert (span.began, span.now) == (began, began)
    clock.now += 2.5
    assert span.now == began + timedelta(seconds=2.5)
