"""What both programs are made of: options before the command, help, and streams that end no program.

Everything for machines goes to stdout, everything for people to stderr.  Which commands there are, and what they do,
stands with each program.
"""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint
from typing import ClassVar, TextIO

from cliff.app import App
from cliff.commandmanager import CommandManager
from cliff.help import HelpAction, HelpCommand, HelpExit

import guestagent
from guestagent.cli.told import STATUSES, one_line_errors, tell
from guestagent.errors import Cancelled, GuestagentError, UsageError

TELLTALE = ("boto3", "botocore", "s3transfer")
"""The libraries whose debug logs hold secrets: session tokens in headers, data keys in the answers of KMS."""
CHATTY = ("boto3", "botocore", "urllib3", "s3transfer", "stevedore", "cliff", "asyncio", "oslo_config")
MESSAGING = ("amqp", "kombu", "oslo", "oslo_messaging", "oslo.messaging")
"""Those that tell of every attempt to connect; the one line in which a command fails says it all."""

BROKEN_PIPE = 141
"""What a shell makes of a process that SIGPIPE ended: whoever read our output has had enough of it."""
INTERRUPTED = 130
"""What cliff makes of a Ctrl-C outside any of our commands."""


class Help(HelpCommand):
    """Print the help of a command, or of the program."""

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Print it."""
        try:
            return super().take_action(parsed_args)
        except ValueError:
            assert isinstance(self.app, Program)
            return tell(self.app.no_command(parsed_args.cmd), by=self.app.NAME)


class Program(App):
    """A program of ours; each names itself and its commands."""

    DESCRIPTION: ClassVar[str] = ""
    COMMANDS: ClassVar[Mapping[str, str]] = {}
    """Where each command's class is; only the one that is typed gets imported."""
    HUSHED: ClassVar[Mapping[str, int]] = dict.fromkeys(CHATTY, logging.WARNING) | {"urllib3.connection": logging.ERROR}
    """The libraries that chatter, and from which level on they are heard without --debug."""

    def __init__(self) -> None:
        namespace = f"{self.NAME}.commands"
        manager = CommandManager(namespace)
        for name, place in self.COMMANDS.items():
            manager.commands[name] = EntryPoint(name, place, namespace)
        super().__init__(self.DESCRIPTION, guestagent.__version__, manager, deferred_help=True)
        manager.add_command("help", Help)

    def build_option_parser(self, description: str | None, version: str | None, argparse_kwargs=None):  # type: ignore[no-untyped-def]
        """The options that stand before the command."""
        kwargs = {"prog": self.NAME, "epilog": STATUSES, **(argparse_kwargs or {})}
        parser = super().build_option_parser(description, version, kwargs)
        parser.add_argument(
            "--config-file",
            action="append",
            default=[],
            metavar="FILE",
            help="configuration file, may be given several times (default: /etc/guestagent/guestagent.conf)",
        )
        return one_line_errors(parser)

    def configure_logging(self) -> None:
        """Logs to stderr (and to --log-file); the libraries' own chatter only with --debug."""
        try:
            super().configure_logging()
        except OSError as error:
            self.parser.error(f"cannot write to --log-file {self.options.log_file}: {error.strerror}")
        for name, level in self.HUSHED.items():
            loudest = logging.INFO if name in TELLTALE else logging.DEBUG
            logging.getLogger(name).setLevel(loudest if self.options.debug else level)

    def initialize_app(self, argv: list[str]) -> None:
        """Without a command there is help, on stderr since nobody asked for it; never cliff's interactive mode."""
        if argv or self.options.deferred_help:
            return
        self.stdout = self.stderr
        with suppress(HelpExit):
            HelpAction([], argparse.SUPPRESS, default=self)(self.parser, self.options, None, None)
        raise SystemExit(UsageError.exit_status)

    def run_subcommand(self, argv: list[str]) -> int:
        """Run the command that ``argv`` begins with; gives its exit status."""
        try:
            self.command_manager.find_command(argv)
        except ValueError:
            return tell(self.no_command(argv), by=self.NAME)
        return super().run_subcommand(argv)

    def no_command(self, words: Sequence[str]) -> UsageError:
        """What to say of words that begin with no command."""
        if words[0].startswith("-"):
            return UsageError(f"no option {words[0]}", hint=f"see {self.NAME} --help")
        near = [name for name, _ in sorted(self.command_manager) if name.split()[0] == words[0]]
        typed = " ".join(words[: 1 + bool(near)])
        hint = f"there are {', '.join(near)}" if near else f"see {self.NAME} --help"
        return UsageError(f"no command {typed!r}", hint=hint)


GARBAGE = 50_000
"""Objects made before the collector looks for cycles; at Python's 700 it takes a fifth of a command's start."""
PYTHONS = gc.get_threshold()
"""What Python itself sets, for who lives long."""


def run(program: type[Program], argv: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit status."""
    gc.set_threshold(GARBAGE)
    _mend_streams()
    try:
        status = program().run(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:
        status = int(end.code or 0)
    if status == INTERRUPTED:
        status = tell(Cancelled("stopped by SIGINT"), by=program.NAME)
    status = _flushed(program.NAME) or status
    _let_go_of_stderr()
    return status


def _mend_streams() -> None:
    """Nobody listening is no reason to fail, nor is a character that the terminal does not have."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _flushed(name: str) -> int:
    """Bring out what was printed; gives the exit status of the failure to do so, or 0."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _forget(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        return tell(GuestagentError(f"cannot write to stdout: {error.strerror}"), by=name)
    return 0


def _let_go_of_stderr() -> None:
    """What nobody wanted to hear decides no exit status."""
    try:
        sys.stderr.flush()
    except OSError:
        _forget(sys.stderr)


def _forget(stream: TextIO) -> None:
    """What did not get out would be tried again, and complained about with status 120, when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
