"""The rate limit: exact over time, one piece ahead at most, first come first served, and never in the way of an end."""

from __future__ import annotations

import threading
import time

import pytest

from guestagent.errors import Cancelled, Stalled
from guestagent.progress import Watch
from guestagent.streams.pace import LOOK, Gate, Pace
from tests.processes import eventually


class Clock:
    """A time that passes while somebody sleeps, and a little longer each time, as it does."""

    def __init__(self, late: float = 0) -> None:
        self.now = 100.0
        self.naps: list[float] = []
        self._late = late

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds + self._late


def going_on() -> bool:
    return False


def pace(rate: float, clock: Clock) -> Pace:
    return Pace(rate, clock=clock, sleep=clock.sleep)


def test_the_first_piece_passes_at_once_and_the_next_when_that_has_had_its_time() -> None:
    clock = Clock()
    limited = pace(1000, clock)
    limited.spend(500, going_on)
    assert clock.now == 100
    limited.spend(2000, going_on)
    assert clock.now == pytest.approx(100.5)
    limited.spend(1, going_on)
    assert clock.now == pytest.approx(102.5)


def test_it_is_exact_over_a_long_time_however_late_one_wakes_up() -> None:
    clock = Clock(late=0.037)
    limited = pace(1_000_000, clock)
    for _ in range(1000):
        limited.spend(777_777, going_on)
    assert clock.now - 100 == pytest.approx(999 * 0.777777, abs=0.1)


def test_a_time_in_which_nobody_asks_is_not_made_up_for() -> None:
    clock = Clock()
    limited = pace(100, clock)
    limited.spend(100, going_on)
    clock.now += 3600
    limited.spend(100, going_on)
    limited.spend(100, going_on)
    assert clock.now == pytest.approx(3701)


def test_no_limit() -> None:
    clock = Clock()
    free = pace(0, clock)
    for _ in range(3):
        free.spend(1 << 40, lambda: True)
    assert (clock.now, clock.naps) == (100, [])


def test_who_waits_looks_often_whether_to_stop() -> None:
    clock = Clock()
    limited = pace(1, clock)
    limited.spend(10, lambda: True)
    with pytest.raises(Cancelled, match="stopped while it waited for its turn under the rate limit"):
        limited.spend(10, lambda: clock.now > 101)
    assert clock.now == pytest.approx(101 + LOOK)
    assert max(clock.naps) == LOOK


def test_several_share_it_and_pass_in_the_order_in_which_they_came() -> None:
    limited = Pace(20_000)
    moments: list[float] = []

    def worker() -> None:
        limited.spend(1000, going_on)
        moments.append(time.monotonic())

    threads = [threading.Thread(target=worker) for _ in range(6)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for number, moment in enumerate(sorted(moments)):
        assert moment - begin >= number * 1000 / 20_000


def test_who_came_first_passes_first() -> None:
    clock = Clock()
    limited = pace(1000, clock)
    assert [limited._turn(1000) for _ in range(3)] == [100, 101, 102]


@pytest.mark.parametrize("how", ["the gate ends", "the crew stops"])
def test_who_waits_at_a_gate_is_turned_away_at_the_end(how: str) -> None:
    turned_away: list[BaseException] = []
    stop = threading.Event()

    def worker(gate: Gate) -> None:
        try:
            gate.let(100)
        except Cancelled as error:
            turned_away.append(error)

    with Gate(1, Watch()) as gate:
        if how == "the crew stops":
            gate.heed(stop.is_set)
        gate.let(100)
        thread = threading.Thread(target=worker, args=(gate,))
        thread.start()
        time.sleep(2 * LOOK)
        assert not turned_away
        stop.set()
        if how == "the crew stops":
            assert eventually(lambda: bool(turned_away))
    thread.join(10)
    assert len(turned_away) == 1


def test_nobody_waits_at_a_gate_while_it_is_urgent() -> None:
    urgent = threading.Event()
    with Gate(1, Watch(), urgent=urgent.is_set) as gate:
        gate.let(10**9)
        waiting = threading.Thread(target=gate.let, args=(1,))
        waiting.start()
        time.sleep(2 * LOOK)
        assert waiting.is_alive()
        urgent.set()
        waiting.join(10)
        assert not waiting.is_alive()
        gate.let(10**9)


def test_who_waits_at_a_gate_is_not_stalled() -> None:
    now = [0.0]

    def later() -> bool:
        now[0] += 3
        return False

    watch = Watch(limit=5, clock=lambda: now[0])
    with Gate(100, watch) as gate:
        gate.heed(later)
        gate.let(100)
        gate.let(1)
        assert now[0] >= 3
        watch.check()
        now[0] += 5
        with pytest.raises(Stalled):
            watch.check()
