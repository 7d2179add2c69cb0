"""Jobs that a command does itself, here and now: as the agent does them, and in the same ledger."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from guestagent.cli.door import Door
from guestagent.jobs.lock import only_job
from guestagent.jobs.perform import perform
from guestagent.jobs.record import Job, Kind
from guestagent.jobs.settle import settle_locked
from guestagent.jobs.story import Outcome, tell
from guestagent.operations.host import Host


def do(command: Door, host: Host, kind: Kind, request: dict[str, Any], *, id: str | None = None) -> Outcome:
    """Do a job of this kind, with an id of its own or the given one, for whoever typed the command; gives its result.

    Raises Busy if the host does something else, and what the operation raises.
    """
    job = Job(id or str(uuid.uuid4()), kind, request, created=datetime.now(tz=UTC), origin="cli", told=True)
    ledger = command.ledger()
    with ExitStack() as stack:
        stack.enter_context(host.catalog)
        stack.enter_context(only_job(host.state_dir, str(job)))
        progress, cancel = stack.enter_context(command.attended())
        settle_locked(ledger, host)
        begun = ledger.open(job)
        ended = perform(
            ledger,
            begun,
            lambda watch: tell(host, begun, watch),
            cancel=cancel,
            limit=host.stream.no_progress_limit,
            shown=progress,
        )
        return dict(ended.result)
