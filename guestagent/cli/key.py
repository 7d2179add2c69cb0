"""``guestagent key``: the keys that backups are encrypted with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cliff.lister import Lister

from guestagent.cli.backup import Row, Rows
from guestagent.cli.door import Door, Single
from guestagent.errors import Busy, Corrupt
from guestagent.jobs.lock import only_job
from guestagent.operations.rotate import Rewrapped, keys_in_use, outdated, rotate
from guestagent.progress import Watch

ALL = "of all instances that the credentials may list, not of this one alone"


class Generate(Single):
    """Make a new key in a new file.  Keep a copy elsewhere: whoever loses the key loses its backups."""

    COLUMNS = ("key_id", "file")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("file", metavar="FILE", type=Path, help="the file, which must not be there yet")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Make it."""
        from guestagent.keys.file import generate  # noqa: PLC0415  (cryptography for this command alone)

        path = parsed_args.file.absolute()
        return self.COLUMNS, (generate(path), str(path))


class List(Door, Lister):
    """List the keys that are configured or in use, with the number of backups under each."""

    COLUMNS = ("key_id", "state", "backups")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--all", action="store_true", help=f"count backups {ALL}")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """List them."""
        host = self.host()
        with host.catalog:
            found = keys_in_use(host, everything=parsed_args.all)
        return self.COLUMNS, [(key.id, key.state, key.backups) for key in found]


class Rotate(Door, Lister):
    """Wrap the data keys of existing backups by the current key; no data moves, and none is encrypted anew."""

    COLUMNS = ("id", "instance_id", "old_key_id", "outcome")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--all", action="store_true", help=f"backups {ALL}")
        parser.add_argument("--dry-run", action="store_true", help="only list what would be rewrapped")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """Rotate."""
        host = self.host()
        with host.catalog:
            if parsed_args.dry_run:
                return self._told(outdated(host, everything=parsed_args.all), done="would be rewrapped")
            with only_job(host.state_dir, "key rotate"), self.attended() as (progress, cancel):
                watch = Watch(progress, cancel=cancel)
                return self._told(rotate(host, watch, everything=parsed_args.all), done="rewrapped")

    def _told(self, found: Sequence[Rewrapped], *, done: str) -> Rows:
        """The rows; the first that cannot be rewrapped decides the exit status."""
        self.verdict = next((one.error for one in found if one.error), None)
        return self.COLUMNS, [_row(one, done) for one in found]


def _row(one: Rewrapped, done: str) -> tuple[str, ...]:
    if one.error is not None:
        kept = {Corrupt.code: "it cannot be read", Busy.code: "another rotation is at it"}
        done = kept.get(one.error.code, "its key is not here")
    return (one.backup.id, one.instance_id, one.key_id, done)
