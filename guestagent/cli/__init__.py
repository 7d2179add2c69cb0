"""The command line: a door that translates words and draws; the stories are told elsewhere.

Two programs: ``guestagent`` acts on this host, ``guestagent-ctl`` (in ``control``) asks agents elsewhere.  An error is
one line, what and then the hint, and its family's exit status.  Nothing is imported here that only some of the
commands need.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from guestagent.cli.program import Program, run

COMMANDS: Mapping[str, str] = {
    "serve": "guestagent.cli.serve:Serve",
    "backup create": "guestagent.cli.create:Create",
    "backup list": "guestagent.cli.backup:List",
    "backup show": "guestagent.cli.backup:Show",
    "backup tree": "guestagent.cli.backup:Tree",
    "backup verify": "guestagent.cli.verify:Verify",
    "backup delete": "guestagent.cli.delete:Delete",
    "restore": "guestagent.cli.restore:Restore",
    "key generate": "guestagent.cli.key:Generate",
    "key list": "guestagent.cli.key:List",
    "key rotate": "guestagent.cli.key:Rotate",
    "job list": "guestagent.cli.job:List",
    "job show": "guestagent.cli.job:Show",
    "job cancel": "guestagent.cli.job:CancelJob",
    "doctor": "guestagent.cli.doctor:Doctor",
}
"""Where each command's class is; only the one that is typed gets imported."""


class GuestagentApp(Program):
    """The ``guestagent`` command."""

    NAME = "guestagent"
    LOG = logging.getLogger(NAME)
    DESCRIPTION = "Physical backups of MySQL and MariaDB servers, full and incremental, to object storage and back."
    COMMANDS = COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit status."""
    return run(GuestagentApp, argv)
