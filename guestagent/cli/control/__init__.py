"""``guestagent-ctl``: the control plane's side.  It asks agents over RPC, and prints as Trove's client does.

- asking: what all its commands share: the agent that is asked, and tables of properties
- follow: waiting for a job that an agent performs
- work: the commands that start a job
- answers: the commands that only want to know, and job-cancel
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import ClassVar

from guestagent.cli.program import MESSAGING, Program, run

COMMANDS: Mapping[str, str] = {
    "backup-create": "guestagent.cli.control.work:BackupCreate",
    "backup-delete": "guestagent.cli.control.work:BackupDelete",
    "backup-list": "guestagent.cli.control.answers:BackupList",
    "backup-show": "guestagent.cli.control.answers:BackupShow",
    "backup-verify": "guestagent.cli.control.work:BackupVerify",
    "doctor": "guestagent.cli.control.answers:Doctor",
    "job-cancel": "guestagent.cli.control.answers:JobCancel",
    "job-list": "guestagent.cli.control.answers:JobList",
    "job-show": "guestagent.cli.control.work:JobShow",
    "ping": "guestagent.cli.control.answers:Ping",
    "restore": "guestagent.cli.control.work:Restore",
}
"""Where each command's class is; only the one that is typed gets imported."""

TIMEOUT = 60.0
DEADLINE = 3600.0


class ControlApp(Program):
    """The ``guestagent-ctl`` command."""

    NAME = "guestagent-ctl"
    LOG = logging.getLogger(NAME)
    DESCRIPTION = "Asks the agents on database hosts for backups and restores, over RPC."
    COMMANDS = COMMANDS
    HUSHED: ClassVar[Mapping[str, int]] = {
        **Program.HUSHED,
        **dict.fromkeys((*MESSAGING, "stevedore"), logging.CRITICAL),
    }

    def build_option_parser(self, description: str | None, version: str | None, argparse_kwargs=None):  # type: ignore[no-untyped-def]
        """The options that stand before the command."""
        parser = super().build_option_parser(description, version, argparse_kwargs)
        parser.add_argument(
            "--transport-url",
            metavar="URL",
            default="",
            help="where agents are spoken to (default: as configured, else local:///run/guestagent); one with a "
            "password belongs into the configuration, or into OS_DEFAULT__TRANSPORT_URL, where no other user sees it",
        )
        parser.add_argument(
            "--timeout",
            metavar="SECONDS",
            type=_seconds,
            default=TIMEOUT,
            help="how long to wait for an answer (default: %(default)g)",
        )
        parser.add_argument(
            "--deadline",
            metavar="SECONDS",
            type=_seconds,
            default=DEADLINE,
            help="how old a request may get before its work begins; after that it is refused (default: %(default)g)",
        )
        return parser


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit status."""
    return run(ControlApp, argv)
