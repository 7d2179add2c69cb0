"""The main thread's life: start the parts, sleep, reload, end the parts; and what systemd hears of it.

It sleeps until a signal or another thread wakes it, until the watchdog wants to be fed and, while a job runs, for a
few seconds at most, to say how far that is.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Protocol

from guestagent.errors import GuestagentError
from guestagent.jobs.record import Job, Step
from guestagent.serve.signals import Signals
from guestagent.systemd import Notifier

LOG = logging.getLogger(__name__)

ENDED_BY = (signal.SIGTERM, signal.SIGINT)
HEARD = (*ENDED_BY, signal.SIGHUP)

STATUS_PERIOD = 3.0
"""Seconds between two status texts, at least; a running job is looked at as often."""
HEALTH_PERIOD = 60.0
"""Seconds between two looks at the worker where systemd's watchdog asks for none."""
START_PATIENCE = 15.0
"""Seconds for the doors to open before the agent calls itself started: a broker may be down for long, jobs go on."""
STOP_PATIENCE = 75.0
"""Seconds in which the stop ends: the unit's TimeoutStopSec leaves some more."""


class Parts(Protocol):
    """What the main thread starts, looks at and stops."""

    def start(self) -> None:
        """Bring everything up that works without the outer world."""

    def open(self) -> None:
        """Let requests in; may take as long as the broker is away."""

    def close(self, reason: str, *, timeout: float) -> None:
        """End everything, a running job included, within about ``timeout`` seconds."""

    def healthy(self) -> bool:
        """Whether the worker works."""

    def running(self) -> Job | None:
        """The job that runs."""

    def step(self, job_id: str) -> Step | None:
        """How far it is."""


class Thread:
    """A thread that may never end; ``ring`` is called when it does."""

    def __init__(self, name: str, work: Callable[[], None], ring: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self.over = False
        self._work = work
        self._ring = ring
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def check(self) -> bool:
        """Whether it is over; raises its error."""
        if self.over and self.error is not None:
            raise self.error
        return self.over

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.error = error
        self.over = True
        self._ring()


class Daemon:
    """The agent's main thread."""

    def __init__(self, parts: Parts, *, reload: Callable[[], None], notifier: Notifier, signals: Signals) -> None:
        self._parts = parts
        self._reload = reload
        self._notifier = notifier
        self._signals = signals
        self._doors: Thread | None = None
        self._status = ""
        self._status_at = self._fed_at = self._looked_at = float("-inf")
        self._lively = self._sick = False
        self._note = ""

    def run(self) -> None:
        """Serve until a signal asks for the end; raises what keeps the parts from starting or serving."""
        reason = ""
        try:
            self._parts.start()
            self._doors = Thread("doors", self._parts.open, self._signals.ring)
            reason = self._wait_for_doors() or self._serve()
        finally:
            self._stop(reason or "the agent cannot go on")

    def _wait_for_doors(self) -> str:
        """Wait until requests can come in, or long enough; gives the signal that came instead."""
        assert self._doors is not None
        deadline = time.monotonic() + START_PATIENCE
        while not self._doors.check() and (left := deadline - time.monotonic()) > 0:
            if ended := self._obey(self._signals.wait(left)):
                return ended
        return ""

    def _serve(self) -> str:
        """Sleep and obey; gives the reason to stop."""
        self._status = self._text()
        self._notifier.ready(self._status)
        LOG.info("ready: %s", self._status)
        while True:
            self._look()
            if ended := self._obey(self._signals.wait(self._pause())):
                return ended

    def _obey(self, asked: frozenset[signal.Signals]) -> str:
        """Do what signals ask for; gives the reason to stop, if one does."""
        for number in ENDED_BY:
            if number in asked:
                return f"stopped by {number.name}"
        if signal.SIGHUP in asked:
            self._read_again()
        return ""

    def _read_again(self) -> None:
        self._notifier.reloading()
        try:
            self._reload()
            self._note = ""
            LOG.info("configuration reloaded; the next job goes by it")
        except GuestagentError as error:
            self._note = "the last reload was refused"
            LOG.error("configuration not reloaded, the old one stays: %s", error)
        except Exception:
            self._note = "the last reload failed"
            LOG.exception("configuration not reloaded, the old one stays")
        self._status = self._text()
        self._notifier.ready(self._status)

    # -- what systemd hears

    def _look(self) -> None:
        """See how the parts are, feed the watchdog, and tell what runs."""
        if self._doors is not None and self._doors.check():
            self._doors = None
        now = time.monotonic()
        if now >= self._looked_at + self._period():
            self._looked_at = now
            self._feed()
        self._tell(now)

    def _feed(self) -> None:
        """Feed the watchdog, unless the worker hangs: then systemd is to end and restart us."""
        sick = not self._parts.healthy()
        if sick and not self._sick:
            LOG.error("the worker shows no sign of life; the watchdog is not fed any more")
        self._sick = sick
        if self._notifier.watchdog and not sick:
            self._notifier.alive()

    def _tell(self, now: float) -> None:
        """Say what is going on if that is something new, and remember whether there may be more to say soon."""
        busy = self._parts.running() is not None
        text = self._text()
        if text != self._status and now >= self._status_at + STATUS_PERIOD:
            self._notifier.status(text)
            self._status, self._status_at = text, now
        self._lively = busy or text != self._status

    def _text(self) -> str:
        """What is going on, in one line."""
        job = self._parts.running()
        words = [describe(job, self._parts.step(job.id)) if job else "idle"]
        if self._doors is not None and not self._doors.over:
            words.append("the broker does not answer yet")
        return "; ".join([*words, self._note] if self._note else words)

    def _period(self) -> float:
        return self._notifier.watchdog / 2 or HEALTH_PERIOD

    def _pause(self) -> float:
        """Seconds to sleep at most."""
        next_look = self._looked_at + self._period() - time.monotonic()
        return min(next_look, STATUS_PERIOD) if self._lively else next_look

    # -- the end

    def _stop(self, reason: str) -> None:
        """End the parts in a thread, and go on feeding the watchdog; further signals change nothing."""
        job = self._parts.running()
        LOG.info("%s; ending%s", reason, f", with {job}" if job else "")
        self._notifier.stopping(f"stopping: cancelling {job}" if job else "stopping")
        ending = Thread("ending", lambda: self._parts.close(reason, timeout=STOP_PATIENCE), self._signals.ring)
        deadline = time.monotonic() + STOP_PATIENCE
        while not ending.over and (left := deadline - time.monotonic()) > 0:
            self._signals.wait(min(left, self._period()))
            self._notifier.alive()
        if not ending.over:
            LOG.error("not everything ended within %g s", STOP_PATIENCE)
        ending.check()


def describe(job: Job, step: Step | None) -> str:
    """A running job in a few words, such as ``backup 2f...: dump, 40 %``."""
    if step is None or not step.phase:
        return str(job)
    words = [step.phase]
    if step.links > 1:
        words.append(f"link {step.link} of {step.links}")
    if step.percent is not None:
        words.append(f"{step.percent} %")
    return f"{job}: {', '.join(words)}"
