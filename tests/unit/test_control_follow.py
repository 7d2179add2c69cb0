"""Waiting for a job elsewhere: what is drawn, how long it is waited, and how its end is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from guestagent.cli.control.follow import (
    AWAY,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    PATIENCE,
    Following,
    failure_of,
    state_of,
)
from guestagent.errors import Busy, Cancelled, Corrupt, GuestagentError, NotFound, Refused, Stalled
from guestagent.jobs.record import State
from guestagent.rpc.client import Absent, NoAnswer, Unreachable

Job = dict[str, Any]


class Drawn:
    """What would have been drawn."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        self.seen.append((name, total, link, links))

    def advance(self, count: int) -> None:
        raise AssertionError("bytes are not told one by one")

    def stands(self, done: int, rate: float) -> None:
        self.seen.append((done, rate))


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def running(phase: str = "", done: int = 0, total: int | None = None, **more: Any) -> Job:
    return {"id": "j1", "kind": "backup", "state": "running", "phase": phase, "done": done, "total": total, **more}


def ended(state: str = "completed", **more: Any) -> Job:
    return {"id": "j1", "kind": "backup", "state": state, "phase": "publish", **more}


def script(*answers: Job | Exception) -> Callable[[], Job]:
    left: Iterator[Job | Exception] = iter(answers)

    def ask() -> Job:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


def follow(*answers: Job | Exception, first: Job | None = None) -> tuple[Job, list[Any], Time]:
    drawn, time = Drawn(), Time()
    following = Following(script(*answers), drawn, patience=PATIENCE, sleep=time.sleep, clock=lambda: time.now)
    return dict(following.end_of(first or running())), drawn.seen, time


def test_the_pauses_grow_up_to_a_limit() -> None:
    job, _, time = follow(*[running()] * 20, ended())
    assert job["state"] == "completed"
    assert time.slept[0] == FIRST_PAUSE == 0.5
    assert time.slept == sorted(time.slept)
    assert time.slept[-1] == LONGEST_PAUSE == 2.0


def test_a_job_that_has_ended_is_not_waited_for() -> None:
    job, seen, time = follow(first=ended("failed"))
    assert (job["state"], seen, time.slept) == ("failed", [], [])


def test_each_phase_is_told_once_with_where_it_stands() -> None:
    _, seen, _ = follow(
        {**running(), "state": "queued"},
        running("dump", 10, 100, rate=5.0),
        running("dump", 60, 100, rate=6.0),
        running("publish"),
        ended(),
        first={**running(), "state": "queued"},
    )
    assert seen == [
        ("queued", None, 1, 1),
        ("dump", 100, 1, 1),
        (10, 5.0),
        (60, 6.0),
        ("publish", None, 1, 1),
    ]


def test_a_prepare_beside_the_download_goes_on_with_its_bytes() -> None:
    _, seen, _ = follow(
        running("download", 10, 100, links=3),
        running("prepare", 40, 100, link=1, links=3),
        running("prepare", 70, 100, link=2, links=3),
        ended(),
        first=running("plan"),
    )
    assert seen == [
        ("plan", None, 1, 1),
        ("download", 100, 1, 3),
        (10, 0.0),
        ("prepare", None, 1, 3),
        (40, 0.0),
        ("prepare", None, 2, 3),
        (70, 0.0),
    ]


def test_a_phase_that_begins_anew_is_counted_anew() -> None:
    _, seen, _ = follow(running("download", 90, 100), running("download", 5, 100), ended(), first=running("plan"))
    assert seen[1:] == [("download", 100, 1, 1), (90, 0.0), ("download", 100, 1, 1), (5, 0.0)]


def test_bytes_of_an_unknown_whole_are_shown() -> None:
    _, seen, _ = follow(running("dump", 7, None, rate=1.5), ended(), first=running("plan"))
    assert seen[1:] == [("dump", None, 1, 1), (7, 1.5)]


@pytest.mark.parametrize("error", [Absent("nobody"), NoAnswer("no answer"), Unreachable("broker away")])
def test_an_agent_that_comes_back_is_followed_on(error: Exception) -> None:
    job, seen, time = follow(error, error, running("dump", 60, 100), ended(), first=running("dump", 50, 100))
    assert job["state"] == "completed"
    assert seen == [("dump", 100, 1, 1), (50, 0.0), (AWAY, None, 1, 1), ("dump", None, 1, 1), (60, 0.0)]
    assert len(time.slept) == 4


def test_patience_ends_and_is_renewed_by_each_answer() -> None:
    drawn, time = Drawn(), Time()
    absences = int(PATIENCE * 0.9 / LONGEST_PAUSE)
    away: list[Job | Exception] = [Absent("nobody is listening")]
    answers = [*away * absences, running()] * 3
    ask = script(*answers, *away * 1000)
    following = Following(ask, drawn, patience=PATIENCE, sleep=time.sleep, clock=lambda: time.now)
    with pytest.raises(Stalled, match=r"not been heard of for 30\d s: nobody is listening") as caught:
        following.end_of(running())
    assert isinstance(caught.value.__cause__, Absent)
    assert time.now > 3 * 0.8 * PATIENCE


@pytest.mark.parametrize("error", [NotFound("no job"), Stalled("of the agent's own"), GuestagentError("broken")])
def test_what_the_agent_says_itself_ends_the_waiting(error: GuestagentError) -> None:
    with pytest.raises(type(error), match=error.what):
        follow(error)


@pytest.mark.parametrize("job", [{}, {"state": "sleeping"}, {"state": []}, None, []])
def test_what_is_no_job_is_told(job: Any) -> None:
    with pytest.raises(Corrupt, match="something that is no job"):
        state_of(job)


def test_states_are_those_of_the_record() -> None:
    assert [state_of({"state": state.value}) for state in State] == list(State)


@pytest.mark.parametrize(
    ("state", "exit_status", "family", "told"),
    [
        ("failed", 3, Refused, "backup j1 failed: what; do this"),
        ("failed", 7, Busy, "backup j1 failed: what; do this"),
        ("failed", 1, GuestagentError, "backup j1 failed: what; do this"),
        ("failed", 200, GuestagentError, "backup j1 failed: what; do this"),
        ("cancelled", 10, Cancelled, "backup j1 was cancelled: what; do this"),
        ("cancelled", 1, Cancelled, "backup j1 was cancelled: what; do this"),
    ],
)
def test_an_end_is_an_error_of_its_family(
    state: str, exit_status: int, family: type[GuestagentError], told: str
) -> None:
    error = failure_of(ended(state, error={"what": "what", "hint": "do this", "exit_status": exit_status}))
    assert (type(error), str(error)) == (family, told)


def test_an_end_without_a_reason() -> None:
    assert str(failure_of(ended("failed", error=None))) == "backup j1 failed: the agent does not say why"
    assert failure_of(ended("cancelled")).exit_status == 10
