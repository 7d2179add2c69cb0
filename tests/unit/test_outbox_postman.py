"""The postman: nothing lost, nothing blocked, no time wasted, and an end in time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import GuestagentError
from guestagent.outbox import box
from guestagent.outbox.box import Outbox
from guestagent.outbox.postman import Message, Postman
from tests.processes import SOON, eventually

NEVER = 1000.0


class Broker:
    """Takes messages, or fails in a way that a test chooses."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Any]] = []
        self.attempts: list[float] = []
        self.failure: Callable[[Mapping[str, Any]], Exception | None] = lambda _: None
        self.open = threading.Event()
        self.open.set()

    def send(self, method: str, arguments: Mapping[str, Any]) -> None:
        self.attempts.append(time.monotonic())
        self.open.wait(SOON)
        failure = self.failure(arguments)
        if failure is not None:
            raise failure
        self.taken.append((method, arguments.get("n")))


def away(_: Mapping[str, Any]) -> Exception:
    return GuestagentError("the broker is away")


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker()
    yield made
    made.open.set()


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


Make = Callable[..., Postman]


@pytest.fixture
def make(outbox: Outbox, broker: Broker) -> Iterator[Make]:
    made: list[Postman] = []

    def postman_of(**options: Any) -> Postman:
        quick: dict[str, Any] = {"pauses": (0.01, 0.05), "gap": 0.0, "interval": NEVER}
        made.append(Postman(outbox, broker.send, **(quick | options)))
        made[-1].start()
        return made[-1]

    yield postman_of
    broker.open.set()
    for one in made:
        one.stop(SOON)
        assert not one.healthy()


def put(outbox: Outbox, number: int) -> None:
    outbox.put(f"s{number}", "update", {"n": number})


def updates(*numbers: int) -> list[tuple[str, Any]]:
    return [("update", number) for number in numbers]


def beat() -> Message:
    return "heartbeat", {}


def test_all_that_waits_is_sent_in_order_and_what_comes_later(make: Make, outbox: Outbox, broker: Broker) -> None:
    put(outbox, 1)
    put(outbox, 2)
    running = make()
    assert running.healthy()
    assert eventually(lambda: broker.taken == updates(1, 2))
    put(outbox, 3)
    assert eventually(lambda: broker.taken == updates(1, 2, 3))
    assert eventually(lambda: len(outbox) == 0)


def test_a_broker_that_is_away_loses_nothing_and_is_told_once(
    make: Make, outbox: Outbox, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.failure = away
    put(outbox, 1)
    make()
    assert eventually(lambda: len(broker.attempts) > 5)
    put(outbox, 2)
    assert len(outbox) == 2
    broker.failure = lambda _: None
    assert eventually(lambda: broker.taken == updates(1, 2))
    lines = [line.getMessage() for line in caplog.records]
    assert lines[0] == "cannot send, and go on trying: the broker is away"
    assert lines[1].startswith("messages are taken again, after ")
    assert len(lines) == 2


def test_pauses_grow_with_jitter_up_to_a_limit(outbox: Outbox, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5000.0]
    limits: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        limits.append((low, high))
        return high

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(random, "uniform", uniform)
    broker.failure = away
    put(outbox, 1)
    idle = Postman(outbox, broker.send)
    for _ in range(100):
        pause = idle._turn()
        assert pause == limits[-1][1]
        # Neither a message that comes in nor a wake-up makes it try sooner.
        put(outbox, 2)
        now[0] += 0.1
        assert idle._turn() == pytest.approx(pause - 0.1)
        now[0] += pause
    assert limits[:7] == [(0.5, 1), (0.5, 2), (0.5, 4), (0.5, 8), (0.5, 16), (0.5, 30), (0.5, 30)]
    assert len(broker.attempts) == len(limits) == 100


def test_a_broker_that_is_away_costs_no_cpu(make: Make, outbox: Outbox, broker: Broker) -> None:
    broker.failure = away
    put(outbox, 1)
    running = make(pauses=(0.5, 30.0), heartbeat=beat)
    assert eventually(lambda: len(broker.attempts) > 0)
    clock = time.pthread_getcpuclockid(running._thread.ident or 0)
    spent = time.clock_gettime(clock)
    time.sleep(1)
    assert time.clock_gettime(clock) - spent < 0.2
    assert len(broker.attempts) <= 4


def test_who_has_nothing_to_do_sleeps(make: Make, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[float | None] = []
    real = Outbox.wait

    def wait(self: Outbox, timeout: float | None) -> None:
        turns.append(timeout)
        real(self, timeout)

    monkeypatch.setattr(Outbox, "wait", wait)
    make()
    time.sleep(0.3)
    assert turns == [None]


def test_an_error_that_nobody_foresaw_lets_the_others_go_first(
    make: Make, outbox: Outbox, broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box, "FIRST_PUT_OFF", 0.3)
    broken = [True]
    broker.failure = lambda arguments: ZeroDivisionError("odd") if broken[0] and arguments["n"] == 1 else None
    for number in (1, 2, 3):
        put(outbox, number)
    make()
    assert eventually(lambda: broker.taken == updates(2, 3))
    assert "update on s1 lets others go first" in caplog.text
    assert "ZeroDivisionError: odd" in caplog.text
    assert len(outbox) == 1
    broken[0] = False
    assert eventually(lambda: broker.taken == updates(2, 3, 1))


def test_an_error_of_the_outbox_does_not_end_the_postman(
    make: Make, outbox: Outbox, broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Outbox, "due", lambda _: 1 / 0)
        running = make()
        assert eventually(lambda: "the postman goes on after an error" in caplog.text)
    put(outbox, 1)
    assert eventually(lambda: broker.taken == updates(1))
    assert running.healthy()


def test_an_error_of_the_outbox_at_the_end_is_told(
    make: Make, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = make()
    monkeypatch.setattr(Outbox, "due", lambda _: 1 / 0)
    running.stop(SOON)
    assert "the postman ends with an error" in caplog.text


# Heartbeats


def test_heartbeats_go_on_and_are_not_kept(make: Make, outbox: Outbox, broker: Broker) -> None:
    make(heartbeat=beat, interval=0.05)
    assert eventually(lambda: len(broker.taken) > 3)
    broker.failure = away
    time.sleep(0.2)
    taken = len(broker.taken)
    assert len(outbox) == 0
    broker.failure = lambda _: None
    assert eventually(lambda: len(broker.taken) > taken)
    assert set(broker.taken) == {("heartbeat", None)}


def test_a_heartbeat_that_is_taken_brings_the_messages_at_once(make: Make, outbox: Outbox, broker: Broker) -> None:
    broker.failure = away
    put(outbox, 1)
    make(heartbeat=beat, interval=0.2, pauses=(NEVER, NEVER))
    assert eventually(lambda: len(broker.attempts) > 1)
    broker.failure = lambda _: None
    assert eventually(lambda: ("update", 1) in broker.taken)


def test_a_heartbeat_may_have_nothing_to_say_or_fail(
    make: Make, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[int] = []

    def odd() -> Message | None:
        said.append(1)
        if len(said) == 1:
            return None
        if len(said) == 2:
            raise ZeroDivisionError
        return beat()

    make(heartbeat=odd, interval=0.02)
    assert eventually(lambda: bool(broker.taken))
    assert "no heartbeat this time" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_hurry_sends_a_heartbeat_now(make: Make, outbox: Outbox, broker: Broker) -> None:
    running = make(heartbeat=beat)
    outbox.hurry()
    assert eventually(lambda: broker.taken == [("heartbeat", None)])
    running.stop(SOON)
    assert len(broker.taken) == 1


def test_heartbeats_are_spread(outbox: Outbox, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def highest(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", highest)
    one = Postman(outbox, broker.send, heartbeat=beat, interval=1000)
    begun = time.monotonic()
    one.start()
    assert 1000 <= one._next_beat - begun < 1050
    begun = time.monotonic()
    one._beat(beat)
    assert 1100 <= one._next_beat - begun < 1150
    one.stop(SOON)
    assert asked == [(0, 1000), (0.9, 1.1)]


def test_the_interval_may_change(make: Make, outbox: Outbox, broker: Broker) -> None:
    running = make(heartbeat=beat, interval=NEVER)
    running.interval = 0.02
    outbox.hurry()
    assert eventually(lambda: len(broker.taken) > 3)


def test_messages_keep_their_distance(make: Make, outbox: Outbox, broker: Broker) -> None:
    put(outbox, 1)
    put(outbox, 2)
    make(gap=0.3)
    assert eventually(lambda: broker.taken == updates(1, 2))
    assert broker.attempts[1] - broker.attempts[0] >= 0.3


def test_what_is_to_be_told_anew_is(make: Make, outbox: Outbox, broker: Broker) -> None:
    outbox.put("s", "update", {"n": 1}, again=(0.1, 0.2))
    make()
    assert eventually(lambda: broker.taken == updates(1, 1, 1))
    assert eventually(lambda: len(outbox) == 0)


# The end


def test_a_stop_sends_what_waits(outbox: Outbox, broker: Broker) -> None:
    broker.failure = away
    running = Postman(outbox, broker.send, pauses=(NEVER, NEVER), gap=0.05)
    for number in (1, 2, 3):
        put(outbox, number)
    running.start()
    assert eventually(lambda: len(broker.attempts) == 1)
    broker.failure = lambda _: None
    running.stop(SOON)
    assert broker.taken == updates(1, 2, 3)
    assert len(outbox) == 0
    assert broker.attempts[-1] - broker.attempts[-2] >= 0.05


def test_a_stop_tries_once_and_leaves_the_rest(outbox: Outbox, broker: Broker) -> None:
    broker.failure = away
    running = Postman(outbox, broker.send, pauses=(NEVER, NEVER))
    put(outbox, 1)
    put(outbox, 2)
    running.start()
    assert eventually(lambda: len(broker.attempts) == 1)
    begun = time.monotonic()
    running.stop(SOON)
    assert time.monotonic() - begun < SOON / 2
    assert len(broker.attempts) == 2
    assert len(outbox) == 2
    assert not running.healthy()


def test_a_stop_is_in_time_whatever_waits(outbox: Outbox, broker: Broker) -> None:
    for number in range(20):
        put(outbox, number)
    running = Postman(outbox, broker.send, gap=SOON)
    running.start()
    assert eventually(lambda: broker.taken == updates(0))
    begun = time.monotonic()
    running.stop(0.5)
    assert time.monotonic() - begun < SOON / 2
    assert eventually(lambda: not running.healthy())
    assert len(broker.taken) == 1
    assert len(outbox) == 20 - len(broker.taken)


def test_a_stop_is_in_time_when_the_broker_hangs(
    make: Make, outbox: Outbox, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.open.clear()
    put(outbox, 1)
    put(outbox, 2)
    running = make()
    assert eventually(lambda: len(broker.attempts) == 1)
    begun = time.monotonic()
    running.stop(0.2)
    assert time.monotonic() - begun < SOON / 2
    assert "the broker does not answer; 2 messages stay in the outbox" in caplog.text
    broker.open.set()
    assert eventually(lambda: not running.healthy())


def test_a_postman_that_never_began_may_be_stopped(outbox: Outbox, broker: Broker) -> None:
    Postman(outbox, broker.send).stop(SOON)
