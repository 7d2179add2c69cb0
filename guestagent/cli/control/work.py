"""The commands that start a job; and job-show, which may wait for the end of one."""

from __future__ import annotations

import argparse
from typing import Any

from guestagent.cli.backup import PROPERTIES as BACKUP
from guestagent.cli.backup import Row
from guestagent.cli.control.starting import Starting, Waiting
from guestagent.cli.door import text
from guestagent.cli.drawn import Properties
from guestagent.cli.restore import RESTORED
from guestagent.jobs.ledger import job_id
from guestagent.model import backup_id
from guestagent.operations.preflight import LATEST
from guestagent.rpc.client import AgentClient


class BackupCreate(Starting):
    """Have an agent take a backup of its server."""

    OUTCOME = BACKUP

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="NAME", type=text, help="a name for people")
        parser.add_argument(
            "--parent",
            metavar="BACKUP_ID|latest",
            help="take an incremental on this backup; latest is the newest that this server went through",
        )
        parser.add_argument("--description", metavar="TEXT", default="", type=text, help="a description for people")
        return parser

    def send(self, client: AgentClient, parsed_args: argparse.Namespace, **common: Any) -> Properties:
        """Ask for the backup."""
        parent = parsed_args.parent
        return client.create(
            name=parsed_args.name,
            description=parsed_args.description,
            parent=parent if parent in (None, LATEST) else backup_id(parent),
            **common,
        )


class BackupVerify(Starting):
    """Have an agent read every byte of a backup's whole chain."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        return _with_backup_id(super().get_parser(prog_name))

    def send(self, client: AgentClient, parsed_args: argparse.Namespace, **common: Any) -> Properties:
        """Ask for it."""
        return client.verify(backup_id(parsed_args.backup_id), **common)


class BackupDelete(Starting):
    """Have an agent delete a backup; one that others stand on only with all of them."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = _with_backup_id(super().get_parser(prog_name))
        parser.add_argument("--cascade", action="store_true", help="and every backup that stands on it")
        return parser

    def send(self, client: AgentClient, parsed_args: argparse.Namespace, **common: Any) -> Properties:
        """Ask for it."""
        return client.delete(backup_id(parsed_args.backup_id), cascade=parsed_args.cascade, **common)


class Restore(Starting):
    """Have an agent bring a backup back, with all that it stands on, into its server's data directory."""

    OUTCOME = RESTORED

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--backup",
            metavar="BACKUP_ID|LOCATION",
            dest="source",
            required=True,
            help="the backup's id, or its locationRef",
        )
        parser.add_argument(
            "--replace",
            action="store_true",
            help="stop the server there if one runs, and keep the old data aside until the restored one has answered",
        )
        parser.add_argument(
            "--start",
            action=argparse.BooleanOptionalAction,
            help="start the restored server and ask it (default: if one ran there before)",
        )
        parser.add_argument(
            "--accept-unencrypted",
            metavar="BACKUP_ID",
            help="restore that very backup although it is not encrypted and others of its instance are",
        )
        return parser

    def send(self, client: AgentClient, parsed_args: argparse.Namespace, **common: Any) -> Properties:
        """Ask for it."""
        source = parsed_args.source
        wanted = source if "://" in source else backup_id(source)
        return client.restore(
            wanted,
            replace=parsed_args.replace,
            start=parsed_args.start,
            accept_unencrypted=parsed_args.accept_unencrypted,
            **common,
        )


class JobShow(Waiting):
    """Show all that is known of a job, or wait for its end."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("job_id", metavar="JOB_ID", help="the job's id")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Show it."""
        wanted = job_id(parsed_args.job_id)
        with self.client(parsed_args) as client:
            return self.printed(client, client.jobs(job_id=wanted)[0], parsed_args)


def _with_backup_id(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("backup_id", metavar="BACKUP_ID", help="the backup's id")
    return parser
