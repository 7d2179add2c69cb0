"""Crews: who works when, which failure wins, and that nobody is waited for without end."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from guestagent.errors import Cancelled, Stalled
from guestagent.progress import Watch
from guestagent.streams import crew as module
from guestagent.streams.crew import Crew, Team
from tests.processes import SOON, eventually


class Boom(Exception):
    """A failure of a test's own."""


def counting(stop: int) -> Callable[[object], int | None]:
    numbers = iter(range(stop))
    return lambda space: next(numbers, None)


def idle(space: object, task: object) -> None:
    """Do nothing."""


def alive() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("crew-")}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_task_is_worked_on_once(size: int) -> None:
    done: list[int] = []
    with Crew[object, int](
        Team(size), workspace=object, take=counting(100), work=lambda space, task: done.append(task)
    ) as crew:
        crew.wait(Watch())

    assert sorted(done) == list(range(100))
    assert not alive()


@pytest.mark.parametrize("by", [0, 3])
def test_workers_give_way_to_the_rest_of_the_process_if_they_are_to(by: int) -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: list[int] = []

    def work(space: object, task: int) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    with Crew[object, int](Team(2, niceness=by), workspace=object, take=counting(5), work=work) as crew:
        crew.wait(Watch())

    assert found == [min(19, own + by)] * 5
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


def test_a_crew_without_tasks_is_done_at_once() -> None:
    with Crew[object, int](Team(3), workspace=object, take=lambda space: None, work=idle) as crew:
        crew.wait(Watch())


def test_each_worker_makes_one_workspace_and_keeps_it() -> None:
    made: list[object] = []
    seen: set[tuple[str, int]] = set()
    both = threading.Barrier(2, timeout=SOON)

    def workspace() -> object:
        made.append(object())
        both.wait()
        return made[-1]

    def work(space: object, task: int) -> None:
        seen.add((threading.current_thread().name, id(space)))
        time.sleep(0.001)

    with Crew[object, int](Team(2), workspace=workspace, take=counting(20), work=work) as crew:
        crew.wait(Watch())

    assert len(made) == 2
    assert len(seen) == len({name for name, _ in seen})


def test_the_taker_fills_the_space_that_its_work_gets() -> None:
    numbers = iter(range(50))

    def take(space: list[int]) -> int | None:
        space[:] = [next(numbers, -1)]
        return space[0] if space[0] >= 0 else None

    def work(space: list[int], task: int) -> None:
        time.sleep(0.001)
        assert space == [task]

    with Crew[list[int], int](Team(4), workspace=lambda: [-1], take=take, work=work) as crew:
        crew.wait(Watch())


def test_one_takes_while_others_work() -> None:
    takers = itertools.count()
    inside = 0
    together = threading.Barrier(2, timeout=SOON)

    def take(space: object) -> int | None:
        nonlocal inside
        inside += 1
        assert inside == 1
        time.sleep(0.001)
        inside -= 1
        number = next(takers)
        return number if number < 10 else None

    def work(space: object, task: int) -> None:
        if task < 2:
            together.wait()  # both at once, or the barrier breaks

    with Crew[object, int](Team(2), workspace=object, take=take, work=work) as crew:
        crew.wait(Watch())


# Failures


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def failure_after_a_while(crew: Crew[object, int], until: Callable[[], bool] = lambda: False) -> BaseException:
    """What a crew raises if somebody asks only when all of its workers have failed."""
    with crew:
        assert eventually(lambda: not alive())
        with pytest.raises(Boom) as caught:
            crew.wait(Watch(), until)
    return caught.value


@pytest.mark.parametrize("error", [Boom("x"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_of_work_is_raised_to_the_one_who_waits(error: BaseException) -> None:
    with (
        pytest.raises(type(error)) as caught,
        Crew[object, int](Team(2), workspace=object, take=counting(5), work=failing(error)) as crew,
    ):
        crew.wait(Watch())

    assert caught.value is error


def test_a_failure_of_take_is_raised_to_the_one_who_waits() -> None:
    with pytest.raises(Boom), Crew[object, int](Team(2), workspace=object, take=failing(Boom()), work=idle) as crew:
        crew.wait(Watch())


def test_a_failure_to_make_a_workspace_is_raised_to_the_one_who_waits() -> None:
    with (
        pytest.raises(Boom),
        Crew[object, int](Team(2), workspace=failing(Boom()), take=counting(1), work=idle) as crew,
    ):
        crew.wait(Watch())


def test_the_first_failure_wins_over_one_of_work_that_comes_later() -> None:
    failed = threading.Event()

    def work(space: object, task: int) -> None:
        if task == 0:
            failed.wait(SOON)
            time.sleep(0.05)
            raise Boom("later")
        failed.set()
        raise Boom("first")

    crew = Crew[object, int](Team(2), workspace=object, take=counting(2), work=work)
    assert str(failure_after_a_while(crew)) == "first"


def test_the_first_failure_wins_over_one_of_take_that_comes_later() -> None:
    failed = threading.Event()
    numbers = iter([0])

    def take(space: object) -> int | None:
        if (task := next(numbers, None)) is not None:
            return task
        failed.wait(SOON)
        time.sleep(0.05)
        raise Boom("broken pipe, after the cause")

    def work(space: object, task: int) -> None:
        failed.set()
        raise Boom("cause")

    crew = Crew[object, int](Team(2), workspace=object, take=take, work=work)
    assert str(failure_after_a_while(crew)) == "cause"


def test_after_a_failure_nothing_more_is_taken() -> None:
    taken: list[int] = []
    numbers = itertools.count()

    def take(space: object) -> int:
        taken.append(next(numbers))
        return taken[-1]

    def work(space: object, task: int) -> None:
        if task == 3:
            raise Boom

    with pytest.raises(Boom), Crew[object, int](Team(1), workspace=object, take=take, work=work) as crew:
        crew.wait(Watch())

    assert taken == [0, 1, 2, 3]


def test_after_a_failure_the_others_take_nothing_more_although_nobody_waits() -> None:
    taken: list[int] = []
    numbers = itertools.count()

    def take(space: object) -> int:
        taken.append(next(numbers))
        return taken[-1]

    def work(space: object, task: int) -> None:
        if task == 0:
            raise Boom
        time.sleep(0.02)

    with Crew[object, int](Team(2), workspace=object, take=take, work=work):
        assert eventually(lambda: not alive())

    assert len(taken) < 5


def test_who_waits_for_its_turn_when_the_crew_stops_takes_nothing() -> None:
    taken: list[str] = []
    inside = threading.Event()

    def take(space: object) -> int | None:
        taken.append(threading.current_thread().name)
        inside.set()
        time.sleep(0.3)
        return None

    with Crew[object, int](Team(2), workspace=object, take=take, work=idle):
        assert inside.wait(SOON)

    assert len(taken) == 1
    assert not alive()


# Stopping


def test_a_cancelled_watch_ends_the_wait_and_the_work() -> None:
    watch = Watch()
    crew = Crew[object, int](Team(2), workspace=object, take=lambda space: 1, work=lambda space, task: crew.nap(0.01))
    threading.Timer(0.1, watch.cancel.set, ["stopped by SIGINT"]).start()

    with pytest.raises(Cancelled, match="SIGINT"), crew:
        crew.wait(watch)

    assert crew.stopped()
    assert not alive()


def test_a_stalled_watch_ends_the_wait() -> None:
    crew = Crew[object, int](Team(1), workspace=object, take=lambda space: 1, work=lambda space, task: crew.nap(SOON))

    with pytest.raises(Stalled), crew:
        crew.wait(Watch(limit=0.2))


def test_leaving_early_stops_the_crew() -> None:
    crew = Crew[object, int](Team(2), workspace=object, take=lambda space: 1, work=lambda space, task: crew.nap(SOON))
    with crew:
        assert not crew.stopped()

    assert crew.stopped()
    assert not alive()


def test_a_nap_ends_when_the_crew_stops() -> None:
    begin = time.monotonic()
    crew = Crew[object, int](Team(1), workspace=object, take=lambda space: 1, work=lambda space, task: crew.nap(SOON))
    with crew:
        time.sleep(0.05)
        assert not crew.stopped()

    assert time.monotonic() - begin < SOON / 2


class Hang:
    """Work that does not come back until the test is over."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._inside = threading.Semaphore(0)

    def __call__(self, space: object, task: int) -> None:
        self._inside.release()
        self._over.wait(SOON)

    def wait_for(self, count: int) -> None:
        """Wait until so many hang."""
        for _ in range(count):
            assert self._inside.acquire(timeout=SOON)

    def end(self) -> None:
        self._over.set()


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    hang = Hang()
    yield hang
    hang.end()
    while alive():
        time.sleep(0.01)


def test_who_hangs_is_left_alone_after_a_while(hang: Hang, caplog: pytest.LogCaptureFixture) -> None:
    def work(space: object, task: int) -> None:
        if task:
            raise Boom("the other one")
        hang(space, task)

    begin = time.monotonic()
    with pytest.raises(Boom), Crew[object, int](Team(2), workspace=object, take=counting(2), work=work) as crew:
        crew.wait(Watch())

    assert time.monotonic() - begin < SOON / 2
    (name,) = alive()
    assert [record.getMessage() for record in caplog.records] == [f"{name} does not come back and is left alone"]


def test_the_patience_is_for_all_who_hang_together(hang: Hang, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    monkeypatch.setattr(module, "PATIENCE", 2.0)
    with Crew[object, int](Team(8), workspace=object, take=counting(8), work=hang):
        hang.wait_for(8)

    assert time.monotonic() - begin < 8 * 2.0


def test_who_hangs_does_not_keep_the_process(hang: Hang) -> None:
    with Crew[object, int](Team(1), workspace=object, take=counting(1), work=hang):
        hang.wait_for(1)

    assert [thread.daemon for thread in threading.enumerate() if thread.name in alive()] == [True]


def test_a_nap_is_a_nap() -> None:
    begin = time.monotonic()
    crew = Crew[object, int](Team(1), workspace=object, take=counting(1), work=lambda space, task: crew.nap(0.2))
    with crew:
        crew.wait(Watch())

    assert time.monotonic() - begin >= 0.2


def test_the_one_who_waits_does_not_spin() -> None:
    looks: list[float] = []

    def clock() -> float:
        looks.append(0.0)
        return 0.0

    crew = Crew[object, int](Team(1), workspace=object, take=counting(1), work=lambda space, task: crew.nap(0.5))
    with crew:
        crew.wait(Watch(limit=1, clock=clock))

    assert 1 < len(looks) < 20


# Waiting for a part


def test_the_wait_may_be_for_a_part_of_the_work() -> None:
    done: list[int] = []
    more = threading.Event()

    def work(space: object, task: int) -> None:
        if task == 3:
            more.wait(SOON)
        done.append(task)
        crew.tell()

    crew = Crew[object, int](Team(1), workspace=object, take=counting(5), work=work)
    with crew:
        crew.wait(Watch(), lambda: len(done) == 3)
        assert done == [0, 1, 2]
        more.set()
        crew.wait(Watch())

    assert done == [0, 1, 2, 3, 4]


def test_a_failure_comes_before_the_part_that_is_done() -> None:
    crew = Crew[object, int](Team(1), workspace=object, take=counting(1), work=failing(Boom("cause")))
    assert str(failure_after_a_while(crew, until=lambda: True)) == "cause"


def test_a_worker_that_tells_wakes_the_one_who_waits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", SOON)
    done: list[int] = []

    def work(space: object, task: int) -> None:
        time.sleep(0.1)
        done.append(task)
        crew.tell()
        crew.nap(SOON)

    begin = time.monotonic()
    crew = Crew[object, int](Team(1), workspace=object, take=counting(1), work=work)
    with crew:
        crew.wait(Watch(), lambda: bool(done))

    assert time.monotonic() - begin < SOON / 2


def test_the_end_of_the_work_wakes_the_one_who_waits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", SOON)
    begin = time.monotonic()
    crew = Crew[object, int](Team(1), workspace=object, take=counting(1), work=lambda space, task: crew.nap(0.1))
    with crew:
        crew.wait(Watch())

    assert time.monotonic() - begin < SOON / 2


def test_if_threads_run_out_those_that_run_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def refuse_the_second(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    crew = Crew[object, int](Team(2), workspace=object, take=lambda space: 1, work=lambda space, task: crew.nap(SOON))
    with pytest.raises(RuntimeError, match="can't start new thread"), crew:
        pytest.fail("the crew is not complete")
    started[0].join(SOON)

    assert not alive()
