"""``guestagent backup`` list, show and tree: what only looks into the store."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cliff.lister import Lister

from guestagent.cli.door import Door, Single
from guestagent.manifest import Backup
from guestagent.model import backup_id

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


def values(properties: Mapping[str, Any], names: Iterable[str]) -> tuple[Any, ...]:
    """Those of a backup's properties that a command shows."""
    return tuple(properties[name] for name in names)


def listed(backups: Iterable[Mapping[str, Any]]) -> Rows:
    """Backups, given by their properties, for a command that lists them."""
    return LISTED, [values(properties, LISTED) for properties in backups]


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
            return listed(one.properties() for one in host.catalog.backups(None if parsed_args.all else host.instance))


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
            return PROPERTIES, values(host.catalog.get(wanted).properties(), PROPERTIES)


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
        rows = [(drawn, *values(one.properties(), self.COLUMNS[1:])) for drawn, one in drawn_tree(found)]
        return self.COLUMNS, rows


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
