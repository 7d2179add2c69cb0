"""The transport ``local://``: oslo.messaging over UNIX sockets, so that one host needs no broker.

``transport_url = local:///run/guestagent`` names a directory.  Whoever listens on a topic has a socket in it, and
one connection carries one message: a request, the word that it was taken, and for a call the answer.

- frames: how a message becomes bytes and comes back
- sockets: the directory, who may listen in it, who may connect
- conversation: one connection, as the server has it
- listener: all connections of one server, in one thread that sleeps when nothing happens
- client: one connection, as the client has it
- driver: the class that oslo.messaging loads
- server: oslo's RPC server on threads that sleep as well
- spread: reconnects to RabbitMQ, the other transport, one agent at a time
- tls: connections to RabbitMQ that verify the broker, and say what is wrong
- oslo: what this package uses of oslo.messaging, imported in one place

Nothing here knows what a backup is, and nothing outside of it knows about sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Options(Protocol):
    """What :func:`prepare` asks of a cfg.ConfigOpts."""

    def register_opts(self, opts: Sequence[Any], group: str) -> None:
        """Make options known."""


def prepare(conf: Options) -> None:
    """Register the options that oslo.messaging reads from any configuration, and registers only on the global one."""
    from guestagent.transport import oslo  # noqa: PLC0415  (a command that speaks to no agent need not load it)

    for group, options in oslo.GLOBAL_OPTIONS.items():
        conf.register_opts(options, group=group)
