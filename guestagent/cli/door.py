"""What all commands share: the host from the configuration, errors as one line, Ctrl-C as a cancel, progress."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

from cliff.command import Command
from cliff.formatters.commaseparated import CSVLister
from cliff.show import ShowOne
from stevedore import ExtensionManager
from stevedore.extension import Extension

from guestagent import agent
from guestagent.cli.bar import shown
from guestagent.cli.told import STATUSES, one_line_errors, tell
from guestagent.errors import Cancelled, GuestagentError, UsageError
from guestagent.jobs.ledger import Ledger
from guestagent.operations.host import Host
from guestagent.progress import Cancel, Progress

LOG = logging.getLogger(__name__)

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Door(Command):
    """A command whose errors are told in one line on stderr, and decide its exit status."""

    COLUMNS: ClassVar[tuple[str, ...]] = ()
    """What the command prints of each thing, in order."""

    verdict: GuestagentError | None = None
    """What is told, and decides the exit status, after the command has printed what it found."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The arguments that all commands have."""
        parser = one_line_errors(super().get_parser(prog_name))
        parser.set_defaults(print_empty=True)
        return parser

    def get_epilog(self) -> str:
        """What stands at the end of the command's help (cliff's own looks through all installed packages for it)."""
        return STATUSES

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; gives its exit status."""
        try:
            self._check_columns(parsed_args)
            super().run(parsed_args)
        except GuestagentError as error:
            return self._failed(error)
        except KeyboardInterrupt:
            return self._failed(Cancelled("stopped by SIGINT"))
        except BrokenPipeError:
            raise
        except Exception as error:
            return self._failed(_unforeseen(error))
        return tell(self.verdict, by=self.app.NAME) if self.verdict else 0

    def _failed(self, error: GuestagentError) -> int:
        if self.options.debug:
            LOG.exception("%s", error)
        return tell(error, by=self.app.NAME)

    def columns(self, parsed_args: argparse.Namespace) -> Sequence[str]:
        """The names that ``-c`` may ask for."""
        return self.COLUMNS

    def _check_columns(self, parsed_args: argparse.Namespace) -> None:
        """A mistyped column is told before the work, and not after it or never."""
        known = self.columns(parsed_args)
        for wanted in [*parsed_args.columns, *getattr(parsed_args, "sort_columns", ())]:
            if wanted.lower().strip() not in [name.lower() for name in known]:
                raise UsageError(f"no column {wanted!r}", hint=f"there are {', '.join(known)}")

    @property
    def options(self) -> argparse.Namespace:
        """The options that stood before the command."""
        assert self.app_args is not None
        return self.app_args

    def host(self, *, location: str = "") -> Host:
        """This host's parts, from the configuration files that were named."""
        return agent.build(self._conf, location=location)

    def broker(self) -> str:
        """What was found of the broker, empty where none is configured."""
        return agent.broker(self._conf)

    def ledger(self) -> Ledger:
        """The records of this host's jobs."""
        return agent.ledger(self._conf)

    @cached_property
    def _conf(self) -> Any:
        return agent.load(self.options.config_file)

    @contextmanager
    def attended(self) -> Iterator[tuple[Progress, Cancel]]:
        """Somebody is there: progress on stderr, and signals as a cancel."""
        cancel = Cancel()
        with stopped_by_signals(cancel.set), shown(sys.stderr, quiet=self.options.verbose_level == 0) as progress:
            yield progress, cancel


class Single(Door, ShowOne):
    """A command that prints one thing; it can do so as csv, too, which cliff leaves to lists."""

    def _load_formatter_plugins(self) -> ExtensionManager[Any]:
        plugins = super()._load_formatter_plugins()
        plugins.extensions.append(Extension("csv", None, _OneRow, _OneRow()))  # type: ignore[arg-type]
        return plugins


class _OneRow(CSVLister):
    """A heading and one row."""

    def emit_one(self, column_names: Sequence[str], data: Sequence[Any], stdout: Any, parsed_args: Any) -> None:
        """Print them."""
        self.emit_list(column_names, [data], stdout, parsed_args)


def text(value: str) -> str:
    """An argument that is stored, and printed in tables; for argparse."""
    if _UNPRINTABLE.search(value):
        raise argparse.ArgumentTypeError(f"{value!r} holds a line break, a control character or half a character")
    return value


def _unforeseen(error: Exception) -> GuestagentError:
    whose = "" if isinstance(error, OSError) else "this is a bug; "
    return GuestagentError(f"{type(error).__name__}: {error}", hint=f"{whose}--debug shows where")


@contextmanager
def stopped_by_signals(stop: Callable[[str], object]) -> Iterator[None]:
    """Call ``stop`` with the reason at whichever signal asks us to end; one ignored, as by nohup, stays ignored."""

    def heard(number: int, _: Any) -> None:
        stop(f"stopped by {signal.Signals(number).name}")

    wanted = [number for number in STOPPED_BY if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, heard) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
