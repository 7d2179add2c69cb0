"""What the jobs of the past say about those to come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from guestagent.jobs.record import Job, Kind, State
from guestagent.operations.outlook import Run


def restores(jobs: Iterable[Job]) -> Iterator[Run]:
    """The restores among them that were done, in their order; older agents did not note the size, and do not count."""
    for job in jobs:
        size = job.result.get("raw_size")
        if (
            job.kind is Kind.RESTORE
            and job.state is State.COMPLETED
            and job.started
            and job.finished
            and type(size) is int
        ):
            yield Run(size, (job.finished - job.started).total_seconds())
