"""Reconnects to RabbitMQ: when a listener tries again, and who is not held back."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from guestagent.rpc.server import RpcServer
from guestagent.rpc.wire import open_transport
from guestagent.transport import spread
from guestagent.transport.oslo import common
from guestagent.transport.spread import FIRST_PAUSE, LONGEST_PAUSE, QUIET, SHORTEST, Pauses, spread_reconnects
from tests.fakes.rpc import bare_conf

CONFIGURED = (1, 2, 30)
"""Seconds as oslo.messaging has them: the first distance, what is added to each, the longest."""


class Clock:
    """A clock that moves when somebody sleeps; ``slept`` says how long that was each time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Connection:
    """A driver's connection whose broker is away for ``failures`` attempts."""

    failures = 3

    def __init__(self, purpose: str) -> None:
        self.purpose = purpose
        self.given: tuple[Any, ...] = ()
        self._consume_loop_stopped = False
        self.interval_start, self.interval_stepping, self.interval_max = CONFIGURED
        self.tried: list[tuple[float, ...]] = []
        self.ensure_connection()

    def ensure_connection(self) -> None:
        self.tried.append((self.interval_start, self.interval_stepping, self.interval_max))

    def ensure(
        self, method: Callable[[], object], retry: int | None, recoverable_error_callback: Any, **options: Any
    ) -> object:
        self.given = (retry, options)
        for _ in range(self.failures):
            recoverable_error_callback(OSError("refused"))
        return method()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(spread, "time", made)
    monkeypatch.setattr(spread, "SLICE", float("inf"))
    return made


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Chance always takes the upper bound; gives the bounds that it was asked for."""
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr(spread, "random", SimpleNamespace(uniform=uniform))
    return asked


def made(purpose: str) -> Any:
    """A connection of a pool that spreads."""
    pool = SimpleNamespace(connection_cls=Connection)
    spread_reconnects(SimpleNamespace(_driver=SimpleNamespace(_connection_pool=pool)))
    return pool.connection_cls(purpose)


def test_pauses_are_random_from_nothing_to_a_limit_that_doubles(
    clock: Clock, longest: list[tuple[float, float]]
) -> None:
    pauses = Pauses()
    for _ in range(20):
        clock.sleep(pauses.next())
    assert longest == [(0, limit) for limit in (FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE)] + 17 * [
        (0, LONGEST_PAUSE)
    ]


def test_pauses_begin_anew_after_quiet(clock: Clock, longest: list[tuple[float, float]]) -> None:
    pauses = Pauses()
    for _ in range(3):
        clock.sleep(pauses.next())
    clock.sleep(QUIET + 1)
    pauses.next()
    assert longest[-1] == (0, FIRST_PAUSE)


def test_pauses_go_on_growing_until_it_was_quiet(clock: Clock, longest: list[tuple[float, float]]) -> None:
    pauses = Pauses()
    clock.sleep(pauses.next() + QUIET - 1)
    pauses.next()
    assert longest[-1] == (0, 2 * FIRST_PAUSE)


@pytest.mark.usefixtures("longest")
def test_a_listener_waits_before_each_attempt(clock: Clock) -> None:
    connection = made(common.PURPOSE_LISTEN)
    assert connection.ensure(lambda: "done", error_callback=print) == "done"
    assert clock.slept == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert connection.given == (None, {"error_callback": print})


@pytest.mark.usefixtures("longest")
def test_attempts_of_one_listener_count_over_calls(clock: Clock) -> None:
    connection = made(common.PURPOSE_LISTEN)
    connection.failures = 1
    for _ in range(2):
        connection.ensure(lambda: None)
    assert clock.slept == [FIRST_PAUSE, 2 * FIRST_PAUSE]


@pytest.mark.usefixtures("longest")
def test_a_listener_that_is_stopped_waits_no_longer(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = made(common.PURPOSE_LISTEN)

    def sleep(seconds: float) -> None:
        clock.slept.append(seconds)
        connection._consume_loop_stopped = True

    monkeypatch.setattr(clock, "sleep", sleep)
    monkeypatch.setattr(spread, "SLICE", 0.5)
    connection.ensure(lambda: None)
    assert clock.slept == [0.5]


def test_a_sender_does_not_wait(clock: Clock) -> None:
    connection = made(common.PURPOSE_SEND)
    assert connection.ensure(lambda: "sent", 0) == "sent"
    assert clock.slept == []
    assert connection.given == (0, {})


@pytest.mark.parametrize("purpose", [common.PURPOSE_LISTEN, common.PURPOSE_SEND])
def test_connections_are_not_made_in_step(purpose: str) -> None:
    connection = made(purpose)
    for _ in range(20):
        connection.ensure_connection()
    parts = [longest / CONFIGURED[2] for _, _, longest in connection.tried]
    assert len(set(parts)) > 1
    assert all(SHORTEST <= part <= 1 for part in parts)
    for (start, step, _), part in zip(connection.tried, parts, strict=True):
        assert (start, step) == pytest.approx((part * CONFIGURED[0], part * CONFIGURED[1]))


def test_the_drivers_own_callback_comes_first(clock: Clock) -> None:
    def no_more(error: Exception) -> None:
        raise TimeoutError from error

    connection = made(common.PURPOSE_LISTEN)
    with pytest.raises(TimeoutError):
        connection.ensure(lambda: None, None, no_more)
    assert clock.slept == []


def test_two_agents_do_not_come_back_together(clock: Clock) -> None:
    first, second = ([pauses.next() for _ in range(3)] for pauses in (Pauses(), Pauses()))
    assert first != second
    assert all(0 <= pause <= LONGEST_PAUSE for pause in first + second)


@pytest.mark.parametrize(("url", "kind"), [("rabbit://guest:guest@127.0.0.1:1/", "Spread"), ("local:///run/x", None)])
def test_the_agents_ear_spreads_where_that_is_possible(url: str, kind: str | None) -> None:
    transport = open_transport(bare_conf(), url)
    RpcServer(transport, [], instance="guest1")
    pool = getattr(transport._driver, "_connection_pool", None)
    assert getattr(getattr(pool, "connection_cls", None), "__name__", None) == kind
    transport.cleanup()
