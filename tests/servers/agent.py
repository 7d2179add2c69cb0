"""The agent of a guest: a real ``guestagent serve`` as systemd would run it, with its notifications heard."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from guestagent import agent
from guestagent.errors import GuestagentError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job
from guestagent.rpc.client import AgentClient
from tests.servers.guest import Guest

PATIENCE = 60.0
"""Seconds that the agent may take for anything that is not a job."""
JOB_PATIENCE = 120.0
"""Seconds that a job on a test's data may take."""
LOOK = 0.02


class Agent:
    """A context manager that has the agent running inside; ``environment`` is added to its own at the next start."""

    def __init__(self, guest: Guest, url: str, *, environment: dict[str, str] | None = None) -> None:
        self.guest = guest
        self.url = url
        self.heard: list[str] = []
        self.environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = guest.place / f"{guest.name}-agent.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def log(self) -> str:
        """What it has logged, over all its lives."""
        return self._log.read_text(errors="replace")

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.guest.state)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it, and wait until it says that it is ready."""
        address = self.guest.place / f"{self.guest.name}-notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, self._log.open("ab") as log:
            address.unlink(missing_ok=True)
            listener.bind(str(address))
            listener.settimeout(PATIENCE)
            self._spawn(log, {"NOTIFY_SOCKET": str(address)})
            listener.settimeout(0.5)
            self._wait_for_ready(listener)

    def start_and_kill(self, seconds: float) -> None:
        """Start it, and end it as a crash would before it has come far."""
        with self._log.open("ab") as log:
            self._spawn(log, {})
        time.sleep(seconds)
        self.kill()

    def _spawn(self, log: IO[bytes], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self.guest.argv("serve")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | environment | self.environment,
        )

    def _wait_for_ready(self, listener: socket.socket) -> None:
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit and self._running.poll() is None:
            try:
                words = listener.recv(4096).decode()
            except TimeoutError:
                continue
            self.heard.append(words)
            if "READY=1" in words:
                return
        self.kill()
        raise AssertionError(f"the agent does not get ready: {self.log[-3000:]}")

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        """Signal it."""
        self._running.send_signal(number)

    def terminate(self) -> int:
        """Ask it to end, as systemd does; gives its exit status."""
        self.signal(signal.SIGTERM)
        return self._running.wait(PATIENCE + 30)

    def client(self) -> AgentClient:
        """Somebody who asks it for things."""
        conf = agent.for_library(agent.load([str(self.guest.config)]))
        return AgentClient(self.url, self.guest.name, conf=conf, timeout=PATIENCE)

    def wait_for_phase(self, job_id: str, *phases: str) -> str:
        """Wait until a job is in one of ``phases``, or over; gives the phase that was seen, or the state."""
        limit = time.monotonic() + JOB_PATIENCE
        while time.monotonic() < limit:
            step = self.ledger.step(job_id)
            if step is not None and step.phase in phases:
                return step.phase
            job = self._job(job_id)
            if job is not None and job.state.ended:
                return job.state.value
            time.sleep(0.002)
        raise AssertionError(f"job {job_id} is in none of {phases}: {self._job(job_id)}")

    def wait_for(self, job_id: str) -> Job:
        """Wait for the end of a job; gives its record."""
        limit = time.monotonic() + JOB_PATIENCE
        while time.monotonic() < limit:
            job = self._job(job_id)
            if job is not None and job.state.ended:
                return job
            time.sleep(LOOK)
        raise AssertionError(f"job {job_id} does not end: {self._job(job_id)}; {self.log[-3000:]}")

    def wait_until_told(self, job_id: str) -> Job:
        """Wait until a job has ended and whoever listens has heard of it: what it left is then swept, too."""
        limit = time.monotonic() + JOB_PATIENCE
        while not self.wait_for(job_id).told:
            if time.monotonic() > limit:
                raise AssertionError(f"nobody is told of job {job_id}: {self.log[-3000:]}")
            time.sleep(LOOK)
        return self.wait_for(job_id)

    def _job(self, job_id: str) -> Job | None:
        try:
            return self.ledger.get(job_id)
        except GuestagentError:
            return None


def local_url(place: Path) -> str:
    """A transport over sockets in a directory of the test's own."""
    directory = place / "run"
    directory.mkdir(mode=0o700, exist_ok=True)
    return f"local://{directory}"


def serving(url: str, **options: Any) -> str:
    """Lines for ``Guest.defaults`` with which an agent serves at ``url``."""
    return f"transport_url = {url}\n" + "".join(f"{name} = {value}\n" for name, value in options.items())
