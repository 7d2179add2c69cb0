"""``guestagent backup delete``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cliff.lister import Lister

from guestagent.cli.backup import LISTED, Rows, values
from guestagent.cli.door import Door
from guestagent.cli.work import do
from guestagent.jobs.record import Kind
from guestagent.model import BackupId, backup_id
from guestagent.operations.delete import doomed, ruined
from guestagent.operations.host import Host

OF_DAMAGED = (*LISTED, "note")


class Delete(Door, Lister):
    """Delete a backup; one that others stand on only with all of them."""

    COLUMNS = LISTED

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backup_id", metavar="BACKUP_ID", help="the backup's id")
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--cascade", action="store_true", help="and every backup that stands on it")
        which.add_argument(
            "--damaged",
            action="store_true",
            help="one that cannot be read any more, and that nothing readable stands on",
        )
        parser.add_argument("--dry-run", action="store_true", help="only list what would be deleted")
        return parser

    def columns(self, parsed_args: argparse.Namespace) -> Sequence[str]:
        """Of a damaged one also what is wrong with it."""
        return OF_DAMAGED if parsed_args.damaged else LISTED

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """Delete it."""
        wanted = backup_id(parsed_args.backup_id)
        work = _looked if parsed_args.dry_run else self._done
        names = self.columns(parsed_args)
        return names, [values(one, names) for one in work(self.host(), wanted, parsed_args)]

    def _done(self, host: Host, wanted: BackupId, parsed_args: argparse.Namespace) -> Iterable[Mapping[str, Any]]:
        request: dict[str, Any] = {"backup_id": wanted, "cascade": parsed_args.cascade}
        if parsed_args.damaged:
            request["damaged"] = True
        deleted: list[dict[str, Any]] = do(self, host, Kind.DELETE, request)["deleted"]
        return deleted


def _looked(host: Host, wanted: BackupId, parsed_args: argparse.Namespace) -> Iterable[Mapping[str, Any]]:
    with host.catalog:
        if parsed_args.damaged:
            return [ruined(host, wanted).properties()]
        return [one.properties() for one in doomed(host, wanted, cascade=parsed_args.cascade)]
