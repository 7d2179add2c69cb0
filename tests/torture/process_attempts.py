"""Jobs that are asked for, by a command or of an agent, while something is about to be done to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from guestagent.errors import GuestagentError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job
from tests.integration.running import Running
from tests.servers.agent import Agent
from tests.servers.guest import Guest

PATIENCE = 150.0
"""Seconds that any job may take, whatever is done to it."""
LOOK = 0.002


class Attempt(Protocol):
    """One job."""

    guest: Guest
    id: str

    @property
    def pid(self) -> int:
        """The process that runs it."""

    def over(self) -> bool:
        """Whether it has ended, or who runs it."""

    def finish(self) -> int | None:
        """Wait until it has ended and is told; gives the exit status of what was typed."""


def wait(over: Callable[[], bool], seconds: float = PATIENCE, *, pause: float = 0.02) -> bool:
    """Whether it is over in time."""
    limit = time.monotonic() + seconds
    while not over():
        if time.monotonic() > limit:
            return False
        time.sleep(pause)
    return True


class ByCommand:
    """A command that was typed; ``id`` is its job's, as soon as that is known."""

    def __init__(self, guest: Guest, *words: str, environment: Mapping[str, str]) -> None:
        self.guest = guest
        self.id = ""
        self._before = _jobs(guest.state)
        self.command = Running(guest, *words, environment=dict(environment))

    @property
    def pid(self) -> int:
        return self.command.process.pid

    def over(self) -> bool:
        self._learn()
        return self.command.process.poll() is not None

    def finish(self) -> int | None:
        ended = wait(self.over)
        if not ended:
            self.command.process.kill()
        status = self.command.finish()
        assert ended, f"job {self.id} does not end within {PATIENCE:g} s: {self.command.err[-1000:]}"
        self._learn()
        return status

    def _learn(self) -> None:
        self.id = self.id or next(iter(_jobs(self.guest.state) - self._before), "")


class ByAgent:
    """A request that was sent to an agent, which may be another process later on; ``status`` is the first one's."""

    def __init__(self, agent: Agent, wanted: str) -> None:
        self.agent, self.guest, self.id = agent, agent.guest, wanted
        self.pid, self.status = agent.pid, 0

    def over(self) -> bool:
        return _ended(self.agent.ledger, self.id) or not alive(self.pid)

    def finish(self) -> int | None:
        if not alive(self.pid):
            self.status = self.agent.terminate()  # which only gathers it
            self.agent.start()
        job = self.agent.wait_until_told(self.id)
        return 0 if job.result else 1


def aim(attempt: Attempt, phase: str, seconds: float) -> bool:
    """Wait for the moment at which an attempt is to be struck; False if it was over before."""
    ledger = Ledger(attempt.guest.state)

    def there() -> bool:
        return _phase(ledger, attempt.id) == phase or attempt.over()

    wait(there, pause=LOOK)
    if _phase(ledger, attempt.id) != phase:
        return False
    time.sleep(seconds)
    return not attempt.over()


def _phase(ledger: Ledger, wanted: str) -> str:
    step = ledger.step(wanted) if wanted else None
    return step.phase if step else ""


def _jobs(state: Path) -> set[str]:
    return {path.stem for path in (state / "jobs").glob("*.json")}


def _ended(ledger: Ledger, wanted: str) -> bool:
    return (job := _job(ledger, wanted)) is not None and job.state.ended


def _job(ledger: Ledger, wanted: str) -> Job | None:
    with suppress(GuestagentError):
        return ledger.get(wanted)
    return None


def alive(pid: int) -> bool:
    """Whether that process lives, and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def send(pid: int | None, number: signal.Signals) -> bool:
    """Whether there was somebody to signal."""
    with suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)
            return True
    return False
