"""A worker that only writes down, with the real one's manners towards whoever asks."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime

from guestagent.errors import Busy, GuestagentError, NotFound, Refused
from guestagent.jobs.record import Failure, Job, State, Step


class Desk:
    """``room`` is how many jobs it takes; ``steps`` how far a job is; ``submitted`` counts what it was handed."""

    def __init__(self, *, room: int = 1000) -> None:
        self.room = room
        self.steps: dict[str, Step] = {}
        self.reasons: list[str] = []
        self.submitted = 0
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def submit(self, job: Job) -> Job:
        with self._lock:
            self.submitted += 1
            earlier = self._jobs.get(job.id)
            if earlier is not None:
                if not earlier.same_request(job):
                    raise Refused(f"id {job.id} is taken by another request", hint="use another")
                return earlier
            if job.deadline is not None and job.deadline <= datetime.now(UTC):
                raise Refused(f"the deadline of {job} is over", hint="ask again")
            if len(self._jobs) >= self.room:
                raise Busy("this host is busy", hint="wait")
            self._jobs[job.id] = job
            return job

    def refuse(self, job: Job, error: GuestagentError) -> Job:
        self._jobs[job.id] = job.failed(datetime.now(UTC), Failure.of(error))
        return self._jobs[job.id]

    def cancel(self, wanted: str, reason: str) -> Job:
        self.reasons.append(reason)
        self._jobs[wanted] = replace(self.get(wanted), state=State.CANCELLED)
        return self._jobs[wanted]

    def get(self, wanted: str) -> Job:
        try:
            return self._jobs[wanted]
        except KeyError:
            raise NotFound(f"no job {wanted}") from None

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    def step(self, wanted: str) -> Step | None:
        return self.steps.get(wanted)

    def running(self) -> Job | None:
        return next((job for job in self._jobs.values() if job.state is State.RUNNING), None)

    def begin(self, wanted: str) -> None:
        self._jobs[wanted] = replace(self._jobs[wanted], state=State.RUNNING)
