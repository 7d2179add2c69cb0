"""One job from its beginning to its end, told in the ledger all the while.

A thread of the job's own writes how far it is and looks whether anybody asked it to stop: the story's
threads, which count bytes, must not wait for a disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from guestagent.errors import GuestagentError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Failure, Job, Step
from guestagent.progress import Cancel, Progress, Silent, Span, Watch

LOG = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between two looks at whether a running job is to stop, and between two notes of how far it is."""


class Attendant:
    """The progress of a running job, for its ledger and for whoever draws it; a context manager."""

    def __init__(
        self,
        ledger: Ledger,
        job: Job,
        cancel: Cancel,
        *,
        shown: Progress | None = None,
        on_change: Callable[[Job], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._job = job
        self._cancel = cancel
        self._shown = shown or Silent()
        self._on_change = on_change or _nobody
        self._clock = clock
        self._lock = threading.Lock()
        self._step = Step(job.phase)
        self._since = clock()
        self._noted: Step | None = None
        self._complained = False
        self._over = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._attend, name=f"attendant-{job.id}", daemon=True)

    def __enter__(self) -> Attendant:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._wake.set()
        self._thread.join()

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        """Begin a phase; a prepare goes on beside the download, so a phase without a size keeps the bytes."""
        with self._lock:
            known = self._step
            if total is None and known.total is not None and name == "prepare":
                self._step = Step(name, known.done, known.total, link, links, known.rate)
            else:
                self._step, self._since = Step(name, 0, total, link, links), self._clock()
        self._wake.set()
        self._shown.phase(name, total=total, link=link, links=links)

    def advance(self, count: int) -> None:
        """Count bytes."""
        with self._lock:
            step = self._step
            done = step.done + count
            rate = done / max(self._clock() - self._since, 0.001)
            self._step = Step(step.phase, done, step.total, step.link, step.links, rate)
        self._shown.advance(count)

    @property
    def step(self) -> Step:
        """How far the job is."""
        with self._lock:
            return self._step

    def _attend(self) -> None:
        """The thread's work; a ledger that cannot be written to must not end the job."""
        phase = self._job.phase
        while True:
            self._wake.wait(LOOK)
            self._wake.clear()
            over = self._over
            reason = self._ledger.asked_to_stop(self._job.id)
            if reason is not None:
                self._cancel.set(reason)
            phase = self._note(phase)
            if over:
                return

    def _note(self, phase: str) -> str:
        """Write down what is new; gives the phase that the record has now."""
        step = self.step
        if step != self._noted:
            self._ledger.note(self._job.id, step)
            self._noted = step
        return phase if step.phase == phase else self._entered(step.phase, phase)

    def _entered(self, phase: str, before: str) -> str:
        try:
            record = self._ledger.enter(self._job.id, phase)
        except GuestagentError as error:
            if not self._complained:
                LOG.warning("cannot note how far %s is: %s", self._job, error)
            self._complained = True
            return before
        self._complained = False
        self._on_change(record)
        return phase


def perform(
    ledger: Ledger,
    job: Job,
    story: Callable[[Watch], dict[str, Any]],
    *,
    cancel: Cancel,
    limit: float = 0,
    shown: Progress | None = None,
    on_change: Callable[[Job], object] | None = None,
    insist: Callable[[Callable[[], Job]], Job] = lambda write: write(),
) -> Job:
    """Run the story of a job that has begun, and note its end; gives the record, and raises what the story raised.

    ``limit`` is the number of seconds that may pass without a byte (0: no limit).  ``insist`` writes
    the end down; one who cannot is told so, and may try again.  A failure is told as it is, written down or not.
    """
    span = Span(job.started or datetime.now(tz=UTC))
    try:
        with Attendant(ledger, job, cancel, shown=shown, on_change=on_change) as attendant:
            result = story(Watch(attendant, cancel=cancel, limit=limit))
    except BaseException as error:
        failure = Failure.of(error)
        try:
            insist(lambda: ledger.fail(job.id, failure, now=span.now))
        except GuestagentError as unwritten:
            LOG.error("cannot note that %s has failed: %s", job, unwritten)
        raise
    try:
        return insist(lambda: ledger.complete(job.id, result, now=span.now))
    except GuestagentError as error:
        raise GuestagentError(f"{job} is done, and that cannot be noted: {error.what}", hint=error.hint) from error


def _nobody(_: Job) -> None:
    """Who listens where nobody does."""
