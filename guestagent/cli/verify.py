"""``guestagent backup verify``."""

from __future__ import annotations

import argparse

from cliff.lister import Lister

from guestagent.cli.backup import Rows
from guestagent.cli.door import Door
from guestagent.manifest import Backup
from guestagent.model import backup_id
from guestagent.operations.verify import verify
from guestagent.progress import Watch


class Verify(Door, Lister):
    """Read every byte of a backup's whole chain and hold it against the manifests."""

    COLUMNS = ("id", "name", "type", "segments", "stored_size", "verified")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backup_id", metavar="BACKUP_ID", help="the backup's id")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """Verify it."""
        wanted = backup_id(parsed_args.backup_id)
        host = self.host()
        with host.catalog, self.attended() as (progress, cancel):
            watch = Watch(progress, cancel=cancel, limit=host.stream.no_progress_limit)
            return self.COLUMNS, [_row(link) for link in verify(host, wanted, watch)]


def _row(link: Backup) -> tuple[str | int, ...]:
    manifest = link.manifest
    return (link.id, manifest.name, manifest.kind.value, len(manifest.segments), manifest.stored_size, "whole")
