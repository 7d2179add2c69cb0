"""``guestagent doctor``: may I back up and restore here?"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from cliff.lister import Lister

from guestagent.cli.backup import Rows
from guestagent.cli.door import Door
from guestagent.cli.program import MESSAGING
from guestagent.errors import GuestagentError
from guestagent.jobs.lock import holder
from guestagent.operations.doctor import Finding, doctor

YES = "yes"


class Judging(Door, Lister):
    """A command that prints a doctor's findings, and fails if one of them is bad."""

    COLUMNS = ("check", "ok", "detail", "remedy")

    def judged(self, findings: Iterable[Mapping[str, Any]]) -> Rows:
        """The findings for a listing."""
        rows = [[_yes_or_no(finding.get(name)) for name in self.COLUMNS] for finding in findings]
        wrong = [str(check) for check, ok, *_ in rows if ok != YES]
        if wrong:
            self.verdict = GuestagentError(f"not all is well: {', '.join(wrong)}", hint="do what the remedies say")
        return self.COLUMNS, rows


def _yes_or_no(value: Any) -> Any:
    return (YES if value else "no") if isinstance(value, bool) else value


class Doctor(Judging):
    """Check server, grants, tool, datadir, store, disk and broker, and say what to do about what is wrong."""

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        """Check."""
        host = self.host()
        with host.catalog:
            findings = doctor(host, holder)
        return self.judged([asdict(finding) for finding in (*findings, *self._of_broker())])

    def _of_broker(self) -> Iterator[Finding]:
        if not self.options.debug:
            for name in MESSAGING:
                logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            found = self.broker()
        except GuestagentError as error:
            yield Finding("broker", False, error.what, error.hint)
            return
        if found:
            yield Finding("broker", True, found)
