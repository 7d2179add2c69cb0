"""Waiting for a job that an agent performs: how far it is, and that it ended; through restarts of agent and broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from guestagent.cli.drawn import Properties
from guestagent.cli.told import FAMILIES
from guestagent.errors import Cancelled, Corrupt, GuestagentError, Stalled
from guestagent.jobs.record import State
from guestagent.progress import Progress
from guestagent.rpc.client import Unreachable

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.5, 2.0, 1.25
"""Seconds between two looks at a job; and by how much each pause is longer than the one before."""
PATIENCE = 300.0
"""Seconds that an agent may be away: long enough for a host or a broker to start anew."""

_FAMILIES: Mapping[Any, type[GuestagentError]] = {family.exit_status: family for family in FAMILIES}

AWAY = "waiting for the agent"


class Shown(Progress, Protocol):
    """A progress that can be told where the work is, instead of each byte."""

    def stands(self, done: int, rate: float) -> None:
        """Show that ``done`` bytes of the phase are done, at ``rate`` bytes a second."""


class Following:
    """Follows one job; ``ask`` asks the agent for it, which may be away for ``patience`` seconds."""

    def __init__(
        self,
        ask: Callable[[], Properties],
        shown: Shown,
        *,
        patience: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._shown = shown
        self._patience = patience
        self._sleep = sleep
        self._clock = clock
        self._heard = clock()
        self._phase: tuple[str, tuple[int, int]] | None = None
        self._total: int | None = None
        self._done = 0

    def end_of(self, job: Properties) -> Properties:
        """Wait until the job has ended; gives it as it is then.  Raises Stalled if nothing is heard for too long."""
        pauses = _pauses()
        while not state_of(job).ended:
            self._show(job)
            self._sleep(next(pauses))
            job = self._news(pauses)
        return job

    def _news(self, pauses: Iterator[float]) -> Properties:
        """The job as it is now, however long it takes to be told."""
        while True:
            try:
                job = self._ask()
            except Unreachable as error:
                self._bear(error)
            else:
                self._heard = self._clock()
                return job
            self._sleep(next(pauses))

    def _bear(self, error: GuestagentError) -> None:
        silence = self._clock() - self._heard
        if silence > self._patience:
            raise Stalled(f"the agent has not been heard of for {silence:.0f} s: {error.what}") from error
        self._enter(AWAY, None, 0)

    def _show(self, job: Properties) -> None:
        """Draw how far the job is."""
        name, done = str(job.get("phase") or state_of(job).value), int(job.get("done") or 0)
        total = job.get("total")
        self._enter(name, total, done, links=(int(job.get("link") or 1), int(job.get("links") or 1)))
        if done or total is not None:
            self._shown.stands(done, float(job.get("rate") or 0))

    def _enter(self, name: str, total: int | None, done: int, *, links: tuple[int, int] = (1, 1)) -> None:
        """Tell a phase that is new, and its size unless it is counted on from the phase before."""
        anew = total is not None and (total != self._total or done < self._done)
        if anew or (name, links) != self._phase:
            self._shown.phase(name, total=total if anew else None, link=links[0], links=links[1])
        self._phase, self._done = (name, links), done
        self._total = self._total if total is None else total


def state_of(job: Properties) -> State:
    """How a job stands; raises Corrupt for what is no job, or that of an agent far newer than we are."""
    try:
        return State(job["state"])
    except (KeyError, ValueError, TypeError) as error:
        raise Corrupt("the agent answers something that is no job", hint="are agent and client of one age?") from error


def failure_of(job: Properties) -> GuestagentError:
    """Why a job that has ended made nothing, with the exit status of its family."""
    error: Properties = job.get("error") or {}
    family = Cancelled if state_of(job) is State.CANCELLED else _FAMILIES.get(error.get("exit_status"), GuestagentError)
    ended = "was cancelled" if family is Cancelled else "failed"
    what = f"{job.get('kind')} {job.get('id')} {ended}: {error.get('what') or 'the agent does not say why'}"
    return family(what, hint=error.get("hint") or "")


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * GROWTH, LONGEST_PAUSE)
