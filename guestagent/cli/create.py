"""``guestagent backup create``."""

from __future__ import annotations

import argparse
import uuid

from guestagent.cli.backup import PROPERTIES, Row, values
from guestagent.cli.door import Single, text
from guestagent.cli.work import do
from guestagent.jobs.record import Kind
from guestagent.model import backup_id
from guestagent.operations.preflight import LATEST


class Create(Single):
    """Take a backup of this server and store it."""

    COLUMNS = PROPERTIES

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "name", nargs="?", metavar="NAME", default="", type=text, help="a name for people (default: the id)"
        )
        parser.add_argument(
            "--parent",
            metavar="BACKUP_ID|latest",
            help="take an incremental on this backup; latest is the newest that this server went through",
        )
        parser.add_argument("--id", metavar="UUID", help="the backup's id (default: a new one)")
        parser.add_argument("--description", metavar="TEXT", default="", type=text, help="a description for people")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Take the backup."""
        wanted = backup_id(str(uuid.uuid4()) if parsed_args.id is None else parsed_args.id)
        parent = parsed_args.parent
        request = {
            "name": parsed_args.name or wanted,
            "description": parsed_args.description,
            "parent": parent if parent in (None, LATEST) else backup_id(parent),
        }
        return PROPERTIES, values(do(self, self.host(), Kind.BACKUP, request, id=wanted), PROPERTIES)
