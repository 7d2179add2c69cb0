"""``guestagent backup delete``."""

from __future__ import annotations

import argparse

from cliff.lister import Lister

from guestagent.cli.backup import LISTED, Rows, listed
from guestagent.cli.door import Door
from guestagent.cli.work import do
from guestagent.jobs.record import Kind
from guestagent.model import backup_id
from guestagent.operations.delete import doomed


class Delete(Door, Lister):
    """Delete a backup; one that others stand on only with all of them."""

    COLUMNS = LISTED

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backup_id", metavar="BACKUP_ID", help="the backup's id")
        parser.add_argument("--cascade", action="store_true", help="and every backup that stands on it")
        parser.add_argument("--dry-run", action="store_true", help="only list what would be deleted")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """Delete it."""
        wanted, cascade = backup_id(parsed_args.backup_id), parsed_args.cascade
        host = self.host()
        if parsed_args.dry_run:
            with host.catalog:
                return listed(one.properties() for one in doomed(host, wanted, cascade=cascade))
        return listed(do(self, host, Kind.DELETE, {"backup_id": wanted, "cascade": cascade})["deleted"])
