"""What the commands that start a job share, and those that wait for the end of one."""

from __future__ import annotations

import argparse
import logging
import sys
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from guestagent.cli import bar, drawn
from guestagent.cli.backup import Row
from guestagent.cli.control.asking import AskingOne
from guestagent.cli.control.follow import PATIENCE, Following, failure_of, state_of
from guestagent.cli.door import stopped_by_signals
from guestagent.cli.drawn import Properties
from guestagent.errors import Cancelled, Stalled
from guestagent.jobs.ledger import job_id
from guestagent.jobs.record import State
from guestagent.rpc.client import Absent, AgentClient, Unreachable

LOG = logging.getLogger(__name__)


class Waiting(AskingOne):
    """A command that can wait for the end of a job."""

    OUTCOME: ClassVar[tuple[str, ...]] = ()
    """What is printed of the job's result once it has completed; of the job itself where this is empty."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The argument that all have."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--wait", action="store_true", help="until the job has ended, and end as it did")
        return parser

    def columns(self, parsed_args: argparse.Namespace) -> Sequence[str]:
        """A result has others than the job."""
        return self.OUTCOME if parsed_args.wait and self.OUTCOME else drawn.PROPERTIES

    def printed(self, client: AgentClient, job: Properties, parsed_args: argparse.Namespace) -> Row:
        """The job as it is, or what it has made once it has ended; raises the reason if it has made nothing."""
        if parsed_args.wait:
            job = self._end_of(client, job, parsed_args.instance_id)
            if state_of(job) is not State.COMPLETED:
                raise failure_of(job)
            if self.OUTCOME:
                job = job.get("result") or {}
        return drawn.shown(job, self.columns(parsed_args))

    def _end_of(self, client: AgentClient, job: Properties, instance: str) -> Properties:
        wanted = job.get("id", "")
        name = f"{job.get('kind')} {wanted}"
        LOG.info("%s of %s", name, instance)
        cancels = f"`{self.app.NAME} job-cancel {instance} {wanted}` cancels it"
        asks = f"`{self.app.NAME} job-show {instance} {wanted} --wait` waits again"
        with bar.shown(sys.stderr, quiet=self.options.verbose_level == 0) as shown, _interruptible():
            try:
                following = Following(lambda: client.jobs(job_id=wanted)[0], shown, patience=PATIENCE)
                return following.end_of(job)
            except KeyboardInterrupt as stop:
                raise Cancelled(f"{stop}, but {name} goes on", hint=f"{asks}, {cancels}") from stop
            except Stalled as error:
                raise Stalled(f"{error.what}; {name} goes on if the agent does", hint=asks) from error


class Starting(Waiting):
    """A command that starts a job, under an id that is made here, so that a repeat means the same job."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The argument that all have."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--id", metavar="UUID", help="the job's id; one that the agent knows means that job (default: a new one)"
        )
        return parser

    @abstractmethod
    def send(self, client: AgentClient, parsed_args: argparse.Namespace, **common: Any) -> Properties:
        """Ask the agent for the job; ``common`` is its id, and how long the request is good for."""

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Start it, and wait for its end if told so."""
        wanted = job_id(str(uuid.uuid4()) if parsed_args.id is None else parsed_args.id)
        with self.client(parsed_args) as client:
            job = self._sent(client, parsed_args, wanted)
            return self.printed(client, job, parsed_args)

    def _sent(self, client: AgentClient, parsed_args: argparse.Namespace, wanted: str) -> Properties:
        """The job that was accepted; where no answer came, the error says how to learn what became of it."""
        deadline = datetime.now(tz=UTC) + timedelta(seconds=self.options.deadline)
        unsure = f"job {wanted} may have been accepted all the same"
        hint = (
            f"`{self.app.NAME} job-show {parsed_args.instance_id} {wanted}` tells, "
            f"and to send it again with --id {wanted} is safe"
        )
        try:
            with _interruptible():
                return self.send(client, parsed_args, id=wanted, deadline=deadline)
        except KeyboardInterrupt as stop:
            raise Cancelled(f"{stop}, but {unsure}", hint=hint) from stop
        except Absent:
            raise
        except Unreachable as error:
            raise type(error)(f"{error.what}; {unsure}", hint=hint) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Whichever signal asks us to end raises KeyboardInterrupt, with the reason: an answer may be long in coming."""

    def stop(reason: str) -> None:
        raise KeyboardInterrupt(reason)

    with stopped_by_signals(stop):
        yield
