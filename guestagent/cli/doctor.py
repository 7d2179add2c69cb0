"""``guestagent doctor``: may I back up and restore here?"""

from __future__ import annotations

import argparse

from cliff.lister import Lister

from guestagent.cli.backup import Rows
from guestagent.cli.door import Door
from guestagent.errors import GuestagentError
from guestagent.operations.doctor import doctor


class Doctor(Door, Lister):
    """Check server, grants, tool, datadir, store and disk, and say what to do about what is wrong."""

    COLUMNS = ("check", "ok", "detail", "remedy")

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """Check."""
        host = self.host()
        with host.catalog:
            findings = doctor(host)
        wrong = [finding.check for finding in findings if not finding.ok]
        if wrong:
            self.verdict = GuestagentError(f"not all is well: {', '.join(wrong)}", hint="do what the remedies say")
        return self.COLUMNS, [
            (finding.check, "yes" if finding.ok else "no", finding.detail, finding.remedy) for finding in findings
        ]
