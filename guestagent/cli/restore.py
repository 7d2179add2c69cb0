"""``guestagent restore``: bring a backup back, or only say how."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from cliff.columns import FormattableColumn

from guestagent.cli.backup import Row
from guestagent.cli.door import Single
from guestagent.cli.work import do
from guestagent.errors import GuestagentError, UsageError
from guestagent.jobs.history import restores
from guestagent.jobs.record import Kind
from guestagent.jobs.story import restore_request
from guestagent.model import backup_id
from guestagent.operations.host import Host
from guestagent.operations.outlook import Run, outlook
from guestagent.operations.plan import RestoreRequest, make_plan

LOG = logging.getLogger(__name__)

PLANNED = (
    "backup_id",
    "name",
    "instance_id",
    "chain",
    "links",
    "download",
    "raw_size",
    "objects",
    "objects_whole",
    "keys_needed",
    "keys_missing",
    "expected_seconds",
    "expected_from",
    "space_needed",
    "space_free",
    "datadir",
    "holds_now",
    "server_running",
    "datastore",
    "datastore_version",
    "engine",
    "steps",
    "refused",
)
"""What a plan shows."""

RESTORED = ("backup_id", "name", "links", "datadir", "started", "server_version", "old_data")
"""What a restore shows when it is done."""


class Several(FormattableColumn[list[Any]]):
    """A list for machines, and lines for people."""

    def human_readable(self) -> str:
        """One line each."""
        return "\n".join(map(str, self._value))


class Seconds(FormattableColumn[float | None]):
    """A number for machines, and for people a time."""

    def human_readable(self) -> str:
        """Such as ``about 0:01:23``."""
        return "unknown" if self._value is None else f"about {timedelta(seconds=round(self._value))}"


class Restore(Single):
    """Bring a backup back, with all that it stands on, into a data directory."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The command's arguments."""
        parser = super().get_parser(prog_name)
        parser.add_argument("source", metavar="BACKUP_ID|LOCATION", help="the backup's id, or its locationRef")
        parser.add_argument("--datadir", metavar="DIR", type=_absolute, help="where to (default: [database] datadir)")
        parser.add_argument("--plan", action="store_true", help="only say what would be done, or why it would not")
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
            type=_id,
            help="restore that very backup although it is not encrypted and others of its instance are",
        )
        return parser

    def columns(self, parsed_args: argparse.Namespace) -> Sequence[str]:
        """A plan has others than what is done."""
        return PLANNED if parsed_args.plan else RESTORED

    def take_action(self, parsed_args: argparse.Namespace) -> Row:
        """Restore, or plan to."""
        request = {
            "source": parsed_args.source,
            "datadir": str(parsed_args.datadir) if parsed_args.datadir else None,
            "replace": parsed_args.replace,
            "start": parsed_args.start,
            "accept_unencrypted": parsed_args.accept_unencrypted,
        }
        host = self.host(location=parsed_args.source)
        if parsed_args.plan:
            return self._planned(host, restore_request(request))
        return _row(RESTORED, do(self, host, Kind.RESTORE, request))

    def _planned(self, host: Host, request: RestoreRequest) -> Row:
        with host.catalog:
            plan = make_plan(host, request)
            seen = plan.properties() | outlook(host, plan.chain, self._past())
        self.verdict = next(iter(plan.against), None)
        return _row(PLANNED, seen | {"expected_seconds": Seconds(seen["expected_seconds"])})

    def _past(self) -> Sequence[Run]:
        """The restores of this host, so far as we may read of them: a plan does not need them."""
        try:
            return list(restores(self.ledger().all()))
        except GuestagentError as error:
            LOG.warning("nothing is known of this host's restores: %s", error)
            return ()


def _row(names: Sequence[str], properties: dict[str, Any]) -> Row:
    values = (properties[name] for name in names)
    return names, [Several(value) if isinstance(value, list) else value for value in values]


def _id(text: str) -> str:
    try:
        return backup_id(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(error.what) from error


def _absolute(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a directory without a name")
    return Path(text).absolute()
