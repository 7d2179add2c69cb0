"""What all commands that ask an agent share: the agent, and tables as Trove's client draws them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TextIO

import prettytable
from cliff.formatters.table import TableFormatter
from stevedore import ExtensionManager

from guestagent import agent
from guestagent.cli.door import Door, Single
from guestagent.model import instance_id
from guestagent.rpc.client import AgentClient


class Asking(Door):
    """A command that asks the agent of one instance."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """The argument that all have."""
        parser = super().get_parser(prog_name)
        parser.add_argument("instance_id", metavar="INSTANCE_ID", help="whose agent to ask: its guest_id")
        return parser

    def client(self, parsed_args: argparse.Namespace) -> AgentClient:
        """The agent; a context manager."""
        instance = instance_id(parsed_args.instance_id)
        conf = agent.load(self.options.config_file)
        return agent.client(conf, instance, timeout=self.options.timeout, transport_url=self.options.transport_url)


class AskingOne(Asking, Single):
    """One that prints a single thing: a table of properties and values."""

    def _load_formatter_plugins(self) -> ExtensionManager[Any]:
        plugins = super()._load_formatter_plugins()
        plugins["table"].obj = _Properties()
        return plugins


class _Properties(TableFormatter):
    """As Trove's client draws one thing."""

    def emit_one(
        self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed_args: argparse.Namespace
    ) -> None:
        """Draw it."""
        table = prettytable.PrettyTable(("Property", "Value"))
        table.align = "l"
        table.add_rows([[name, str(value)] for name, value in zip(column_names, data, strict=True)])
        self._assign_max_widths(table, int(parsed_args.max_width), _NARROWEST, parsed_args.fit_width)
        stdout.write(f"{table.get_string()}\n")


_NARROWEST = 16
"""Characters below which no column is squeezed: wider than the longest name of a property."""
