"""``guestagent backup`` list, show, tree and delete: what needs the store alone.  Create and verify stand elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from cliff.lister import Lister

from guestagent.cli.door import Door, Single
from guestagent.jobs import only_job
from guestagent.manifest import Backup
from guestagent.model import backup_id
from guestagent.operations.delete import delete, doomed

PROPERTIES = (
    "created",
    "description",
    "id",
    "instance_id",
    "locationRef",
    "name",
    "parent_id",
    "size",
    "status",
    "updated",
    "type",
    "checksum",
    "datastore",
    "datastore_version",
    "from_lsn",
    "to_lsn",
    "stored_size",
    "raw_size",
    "binlog",
    "gtid",
    "duration",
    "note",
)
"""What a backup shows: the names of Trove's client, in its order, and then ours."""

LISTED = ("id", "name", "type", "status", "parent_id", "size", "updated", "instance_id")

Row = tuple[Sequence[str], Sequence[Any]]
Rows = tuple[Sequence[str], Iterable[Sequence[Any]]]


def shown(backup: Backup) -> Row:
    """All of a backup's properties, for a command that shows one."""
    return PROPERTIES, _values(backup, PROPERTIES)


def _values(backup: Backup, names: Iterable[str]) -> tuple[Any, ...]:
    properties = backup.properties()
    return tuple(properties[name] for name in names)


def _listed(backups: Iterable[Backup]) -> Rows:
    return LISTED, [_values(backup, LISTED) for backup in backups]


class List(Door, Lister):
    """List backups, oldest first: this instance's, or all that the credentials may list."""

    COLUMNS = LISTED

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--all", action="store_true", help="of all instances, not of this one alone")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """List them."""
        host = self.host()
        with host.catalog:
            return _listed(host.catalog.backups(None if parsed_args.all else host.instance))


class Show(Single):
    """Show all that is known of a backup."""

    COLUMNS = PROPERTIES

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("backup_id", metavar="BACKUP_ID", help="the backup's id")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Show it."""
        wanted = backup_id(parsed_args.backup_id)
        host = self.host()
        with host.catalog:
            return shown(host.catalog.get(wanted))


class Tree(Door, Lister):
    """Draw the chains: every backup below the one that it was taken on."""

    COLUMNS = ("tree", "id", "type", "size", "updated")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--all", action="store_true", help="of all instances, not of this one alone")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """Draw them."""
        host = self.host()
        with host.catalog:
            found = host.catalog.backups(None if parsed_args.all else host.instance)
        return self.COLUMNS, [(drawn, *_values(backup, self.COLUMNS[1:])) for drawn, backup in drawn_tree(found)]


def drawn_tree(backups: Sequence[Backup]) -> list[tuple[str, Backup]]:
    """Each backup with its name behind the lines that lead to it; one whose parent is gone stands at the left."""
    known = {backup.id for backup in backups}
    below: dict[str | None, list[Backup]] = {}
    for backup in backups:
        parent = backup.manifest.parent
        below.setdefault(parent.id if parent and parent.id in known else None, []).append(backup)
    drawn: list[tuple[str, Backup]] = []
    stack = [("", "", root) for root in reversed(below.get(None, []))]
    while stack:
        indent, branch, backup = stack.pop()
        drawn.append((indent + branch + backup.manifest.name, backup))
        inner = indent + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        children = below.get(backup.id, [])
        for place, child in enumerate(reversed(children)):
            stack.append((inner, "├─ " if place else "└─ ", child))
    return drawn


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
        with host.catalog:
            if parsed_args.dry_run:
                return _listed(doomed(host, wanted, cascade=cascade))
            with only_job(host.state_dir, f"delete {wanted}"), self.watch(host) as watch:
                return _listed(delete(host, wanted, watch, cascade=cascade))
