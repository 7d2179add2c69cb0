"""``guestagent job``: what this host was asked to do, does and did, whether an agent serves or not."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

from cliff.lister import Lister

from guestagent import agent
from guestagent.cli import drawn
from guestagent.cli.backup import Row, Rows
from guestagent.cli.door import Door, Single
from guestagent.errors import GuestagentError, Refused
from guestagent.jobs.ledger import Ledger, is_interrupted, job_id
from guestagent.jobs.record import Failure, Job, State

LOG = logging.getLogger(__name__)


class List(Door, Lister):
    """List this host's jobs, the newest last."""

    COLUMNS = drawn.LISTED

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """List them."""
        ledger = _ledger(self)
        return drawn.listed(_facts(ledger, job) for job in ledger.all())


class Show(Single):
    """Show all that is known of a job."""

    COLUMNS = drawn.PROPERTIES

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        return _with_job_id(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Show it."""
        ledger = _ledger(self)
        return drawn.shown(_facts(ledger, ledger.get(job_id(parsed_args.job_id))))


class CancelJob(Single):
    """Cancel a job that waits, or ask one that runs to stop."""

    COLUMNS = drawn.PROPERTIES

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        return _with_job_id(super().get_parser(prog_name))

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Cancel it."""
        ledger, wanted = _ledger(self), job_id(parsed_args.job_id)
        _refuse_if_ended(_as_it_is(ledger, ledger.get(wanted)))
        job = ledger.cancel(wanted, "stopped by `guestagent job cancel`")
        if job.state is State.RUNNING:
            LOG.info("job %s is asked to stop; `guestagent job show` says when it has", wanted)
        elif job.state is not State.CANCELLED:
            _refuse_if_ended(job)
        return drawn.shown(_facts(ledger, job))


def _refuse_if_ended(job: Job) -> None:
    """Raise Refused for a job that nobody can cancel any more."""
    if job.state.ended:
        raise Refused(f"job {job.id} has already ended: {job.state.value}", hint="there is nothing left to cancel")


def _with_job_id(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("job_id", metavar="ID", help="the job's id; that of a backup's job is the backup's")
    return parser


def _ledger(command: Door) -> Ledger:
    return agent.ledger(agent.load(command.options.config_file))


def _facts(ledger: Ledger, job: Job) -> drawn.Properties:
    """What is told of a job, with how far it is if it runs."""
    now = _as_it_is(ledger, job)
    return now.properties(ledger.step(now.id) if now.state is State.RUNNING else None)


def _as_it_is(ledger: Ledger, job: Job) -> Job:
    """The job as its record has it; as failed if that says that it runs, and nobody does so any more."""
    if not is_interrupted(job):
        return job
    now = ledger.get(job.id)  # its process may have ended well, after the record was read
    return replace(now, state=State.FAILED, failure=_interrupted(now)) if is_interrupted(now) else now


def _interrupted(job: Job) -> Failure:
    where = f" in phase {job.phase}" if job.phase else ""
    return Failure(
        GuestagentError.code,
        f"interrupted: the process that ran it died{where}, or could not note its end",
        "what it left is settled when the agent starts, or before the next job",
        GuestagentError.exit_status,
    )
