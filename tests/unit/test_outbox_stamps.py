"""Stamps: strictly increasing, whatever the clock, the disk and restarts do."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestagent.outbox import stamps
from guestagent.outbox.stamps import Stamps
from tests.unit.dying import killed_at

NOW = 1_800_000_000.0
HOUR = 3600.0


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sent"


def noted(path: Path) -> float:
    return float(json.loads(path.read_bytes())["reserved"])


def test_a_stamp_is_the_time(path: Path, clock: Clock) -> None:
    made = Stamps(path, clock=clock)
    assert made.next() == NOW
    clock.now += 5
    assert made.next() == NOW + 5


def test_the_real_clock_is_the_default(path: Path) -> None:
    assert Stamps(path).next() > 1_700_000_000


def test_stamps_increase_while_the_clock_stands_or_steps_back(path: Path, clock: Clock) -> None:
    made = Stamps(path, clock=clock)
    given = [made.next() for _ in range(100)]
    clock.now -= HOUR
    given += [made.next() for _ in range(3000)]
    clock.now += 2 * HOUR
    given.append(made.next())
    assert given == sorted(set(given))
    assert given[-1] == NOW + HOUR


def test_stamps_increase_over_restarts_with_a_clock_an_hour_behind(path: Path, clock: Clock) -> None:
    given = [Stamps(path, clock=clock).next()]
    clock.now -= HOUR
    for _ in range(20):
        made = Stamps(path, clock=clock)
        given += [made.next(), made.next()]
    assert given == sorted(set(given))
    # A crash loop does not drive them away from the time.
    assert given[-1] < NOW + stamps.RESERVED + 20 * 2 * stamps.RESERVED_AHEAD


def test_a_stamp_is_reserved_before_it_is_given(path: Path, clock: Clock) -> None:
    made = Stamps(path, clock=clock)
    for step in (0.0, 59.0, 2.0, -HOUR, HOUR + 61):
        clock.now += step
        assert made.next() <= noted(path)


def test_few_stamps_cost_a_write(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        writes.append(handle)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    made = Stamps(path, clock=clock)
    made.next()
    begun = len(writes)
    for _ in range(50):
        clock.now += 1
        made.next()
    assert len(writes) == begun > 0


def test_threads_get_different_stamps(path: Path, clock: Clock) -> None:
    made = Stamps(path, clock=clock)
    with ThreadPoolExecutor(4) as threads:
        given = list(threads.map(lambda _: made.next(), range(400)))
    assert len(set(given)) == 400


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"reserved": null}',
        b'{"reserved": "NaN"}',
        b'{"reserved": -1}',
        b'{"reserved": 1e300}',
        b'{"reserved": 1' + b"0" * 400 + b"}",
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_note_that_cannot_be_read_is_told(
    path: Path, clock: Clock, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert Stamps(path, clock=clock).next() == NOW
    assert "cannot read the last stamp" in caplog.text
    assert noted(path) == NOW + stamps.RESERVED


def test_a_directory_in_its_place_is_told_and_stamps_go_on(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir(parents=True)
    made = Stamps(path, clock=clock)
    assert [made.next(), made.next()] == [NOW, NOW + stamps.STEP]
    assert "cannot read the last stamp" in caplog.text
    assert "updates may be taken for old ones" in caplog.text


def test_a_disk_that_is_back_is_used_again(path: Path, clock: Clock) -> None:
    path.mkdir(parents=True)
    made = Stamps(path, clock=clock)
    made.next()
    path.rmdir()
    assert made.next() <= noted(path)


@pytest.mark.parametrize("step", range(9))
def test_a_kill_at_any_moment_gives_no_stamp_twice(path: Path, clock: Clock, step: int) -> None:
    last = Stamps(path, clock=clock).next()
    clock.now += 2 * stamps.RESERVED
    told = path.with_name("told")

    def one() -> None:
        told.write_text(repr(Stamps(path, clock=clock).next()))

    killed_at(step, one)
    clock.now -= HOUR
    given = float(told.read_text()) if told.exists() and told.read_text() else last
    assert Stamps(path, clock=clock).next() > given
