"""The agent's parts, put together: requests come in by RPC, the worker performs them, the conductor hears of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job, Step
from guestagent.jobs.worker import Worker
from guestagent.operations.host import Host
from guestagent.progress import Watch
from guestagent.rpc.ours import Ours
from guestagent.rpc.server import RpcServer
from guestagent.rpc.trove import Trove
from guestagent.rpc.wire import open_transport
from guestagent.serve.settings import Settings
from guestagent.serve.telling import Silence, Telling

LOG = logging.getLogger(__name__)

RPC_PATIENCE = 10.0
"""Seconds for requests that are being answered when the end comes."""
NO_REQUESTS = 1.0
"""The same where none can have come in, since the broker is away."""
LAST_WORDS = 10.0
"""Seconds for the conductor to take what it has not got yet; after that it waits for the next start."""


class Parts:
    """Everything that lives beside the main thread.  ``ring`` wakes that, after each change of a job."""

    def __init__(self, settings: Settings, ring: Callable[[], None]) -> None:
        served = settings.served
        self._ring = ring
        self._ledger = Ledger(served.state_dir, history=served.history)
        self._telling = Telling(settings, self._ledger) if served.conductor else Silence()
        self._worker = Worker(
            self._ledger,
            _story(settings.host),
            on_change=self._changed,
            settle=self._settler(settings.host),
            limit=lambda: settings.host().stream.no_progress_limit,
            queue_size=served.queue_size,
            wait_limit=served.wait_limit,
        )
        endpoints = [
            Trove(
                self._worker,
                instance=served.instance,
                host=settings.host,
                on_refused=self._telling.refused,
                on_stopped=self._telling.stopped,
            ),
            Ours(self._worker, instance=served.instance, host=settings.host),
        ]
        self._server = RpcServer(
            open_transport(settings.for_library(), served.transport_url),
            endpoints,
            instance=served.instance,
            exchange=served.exchange,
            key=served.encryption_key,
        )
        self._begun = False

    def start(self) -> None:
        """Take up the jobs that wait, and what the conductor has not heard of."""
        self._telling.start()
        self._worker.start()
        self._begun = True

    def open(self) -> None:
        """Let requests in, as soon as there is a broker; raises what makes that impossible."""
        self._server.start(patience=threading.TIMEOUT_MAX)

    def close(self, reason: str, *, timeout: float) -> None:
        """Let nobody in, cancel what runs, and tell of it."""
        deadline = time.monotonic() + timeout
        self._server.stop(patience=RPC_PATIENCE if self._server.listening else NO_REQUESTS)
        if self._begun and not self._worker.stop(reason, timeout=max(0, deadline - time.monotonic() - LAST_WORDS)):
            LOG.error("the job that runs does not stop; the next start ends it")
        self._telling.stop(timeout=max(1.0, min(LAST_WORDS, deadline - time.monotonic())))

    def healthy(self) -> bool:
        """Whether jobs and their tellings are being worked at."""
        return self._worker.healthy() and self._telling.healthy()

    def running(self) -> Job | None:
        """The job that runs."""
        return self._worker.running()

    def step(self, job_id: str) -> Step | None:
        """How far it is."""
        return self._worker.step(job_id)

    def _changed(self, job: Job) -> None:
        try:
            self._telling.changed(job)
        finally:
            self._ring()

    def _settler(self, host: Callable[[], Host]) -> Callable[[bool], object]:
        def settle(give_up: bool) -> object:
            from guestagent.jobs.settle import settle  # noqa: PLC0415  (see _story)

            return settle(self._ledger, host(), give_up=give_up)

        return settle


def _story(host: Callable[[], Host]) -> Callable[[Job, Watch], dict[str, Any]]:
    """What a job is, by the configuration as it is when the job begins."""

    def story(job: Job, watch: Watch) -> dict[str, Any]:
        from guestagent.jobs.story import tell  # noqa: PLC0415  (an agent that nobody asks for anything stays small)

        here = host()
        with here.catalog:
            return tell(here, job, watch)

    return story
