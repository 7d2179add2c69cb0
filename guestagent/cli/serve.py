"""``guestagent serve``."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress

from cliff.command import Command

from guestagent.cli.door import Door
from guestagent.cli.program import PYTHONS
from guestagent.systemd import notifier

LOG = logging.getLogger(__name__)

PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
HUSHED: Mapping[str, int] = {"stevedore": logging.ERROR, "oslo_service": logging.WARNING, "amqp": logging.WARNING}
"""Libraries that say what we say better, and from which level on they are heard without --debug."""
_SYSLOG: Mapping[int, int] = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}


class ForJournal(logging.Formatter):
    """Lines as systemd's journal wants them: it adds time and name itself, and reads the priority from ``<N>``."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record, each with its priority."""
        priority = _SYSLOG.get(record.levelno, 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


class Serve(Door, Command):
    """Be this host's agent: take requests by RPC, do them one after the other, and say how they went."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """No arguments of its own: all of it is configuration."""
        parser = super().get_parser(prog_name)
        parser.set_defaults(columns=())
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Serve; gives the exit status."""
        status = super().run(parsed_args)
        _leave_behind(status)
        return status

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Serve until a signal ends it."""
        if not self.options.debug:
            for name, level in HUSHED.items():
                logging.getLogger(name).setLevel(level)
        dress_logs()
        # Where every thread is, should the watchdog or a crash end us.
        with suppress(OSError, ValueError):  # no stderr to write it to
            faulthandler.enable()
        from guestagent.serve import serve  # noqa: PLC0415  (what it imports talks, and is hushed now)

        live_long()
        serve(self.options.config_file, notifier())


def live_long() -> None:
    """Look for cycles as often as Python does, and never again in what stays until the end: the modules.

    A tenth less memory than with the threshold of other commands, and shorter pauses, for the same CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*PYTHONS)


def dress_logs() -> None:
    """Give lines on stderr the form that whoever keeps them expects."""
    form = ForJournal() if "JOURNAL_STREAM" in os.environ else logging.Formatter(PLAIN)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            handler.setFormatter(form)


def _leave_behind(status: int) -> None:
    """End the process, without the threads that hang: Python would wait for them."""
    others = set(threading.enumerate()) - {threading.current_thread(), threading.main_thread()}
    hanging = sorted(thread.name for thread in others if not thread.daemon)
    if hanging:
        LOG.warning("left behind: %s", ", ".join(hanging))
        logging.shutdown()
        os._exit(status)
