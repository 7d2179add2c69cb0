"""The commands whose answer is all that they want: lists, a backup, the doctor, a ping; and job-cancel."""

from __future__ import annotations

import argparse

from cliff.lister import Lister

from guestagent.cli import backup, drawn
from guestagent.cli.backup import Row, Rows
from guestagent.cli.control.asking import Asking, AskingOne
from guestagent.cli.control.follow import state_of
from guestagent.cli.doctor import Judging
from guestagent.errors import Refused
from guestagent.jobs.ledger import job_id
from guestagent.jobs.record import State
from guestagent.model import backup_id
from guestagent.rpc.ours import JOBS, MOST_JOBS


class BackupList(Asking, Lister):
    """List an instance's backups, oldest first."""

    COLUMNS = backup.LISTED

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--all", action="store_true", help="of all instances that its agent may list")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """List them."""
        with self.client(parsed_args) as client:
            found = client.list(all=parsed_args.all)
        return self.COLUMNS, [[one.get(name) for name in self.COLUMNS] for one in found]


class BackupShow(AskingOne):
    """Show all that is known of a backup."""

    COLUMNS = backup.PROPERTIES

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backup_id", metavar="BACKUP_ID", help="the backup's id")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Show it."""
        wanted = backup_id(parsed_args.backup_id)
        with self.client(parsed_args) as client:
            return drawn.shown(client.show(wanted), self.COLUMNS)


class JobList(Asking, Lister):
    """List the jobs that a host was asked to do, the newest last."""

    COLUMNS = drawn.LISTED

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--limit",
            metavar="COUNT",
            type=_count,
            default=JOBS,
            help="no more than the newest COUNT (default: %(default)d)",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """List them."""
        with self.client(parsed_args) as client:
            newest_first = client.jobs(limit=parsed_args.limit)
        return drawn.listed(reversed(newest_first))


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_JOBS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_JOBS}")
    return int(text)


class JobCancel(AskingOne):
    """Cancel a job that waits, or ask one that runs to stop."""

    COLUMNS = drawn.PROPERTIES

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("job_id", metavar="JOB_ID", help="the job's id")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Cancel it."""
        wanted = job_id(parsed_args.job_id)
        with self.client(parsed_args) as client:
            _refuse_if_ended(client.jobs(job_id=wanted)[0])
            job = client.cancel(wanted)
        if state_of(job) is not State.CANCELLED:
            _refuse_if_ended(job)
        return drawn.shown(job)


def _refuse_if_ended(job: drawn.Properties) -> None:
    """Raise Refused for a job that nobody can cancel any more."""
    if state_of(job).ended:
        raise Refused(
            f"job {job.get('id')} has already ended: {state_of(job).value}", hint="there is nothing left to cancel"
        )


class Doctor(Asking, Judging):
    """Have an agent check server, grants, tool, datadir, store and disk."""

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """Check."""
        with self.client(parsed_args) as client:
            return self.judged(client.doctor())


class Ping(AskingOne):
    """Ask whether an agent is there, and what it does."""

    COLUMNS = ("guest_id", "version", "now", "job")

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Ask."""
        with self.client(parsed_args) as client:
            return drawn.shown(client.ping(), self.COLUMNS)
