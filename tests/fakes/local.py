"""Both ends of local:// for its tests: listeners, raw clients, servers that follow a script, and an endpoint."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from guestagent.transport import frames
from guestagent.transport.frames import Assembler
from guestagent.transport.listener import Listener, trusted
from guestagent.transport.oslo import expose, messaging
from guestagent.transport.server import QuietServer
from guestagent.transport.sockets import Claim, Place, dial
from tests.processes import SOON
from tests.servers.rpc_agent import transport_to

EXCHANGE = "openstack"
"""oslo.messaging's default."""
TOPIC = "guestagent.guest1"
REQUEST: dict[str, Any] = {"ctxt": {}, "message": {"method": "ping"}, "server": None, "call": True, "monitor": None}


@contextmanager
def running(
    claimed: Claim, callback: Callable[[list[Any]], None], users: frozenset[int] | None = None
) -> Iterator[Listener]:
    made = Listener(claimed, server="guest1", users=trusted() if users is None else users)
    made.start(callback)
    try:
        yield made
    finally:
        made.cleanup()


@contextmanager
def dialled(place: Place) -> Iterator[socket.socket]:
    with dial(place, patience=SOON) as connection:
        connection.settimeout(SOON)
        yield connection


def said(connection: socket.socket) -> list[Any]:
    """What the other side says until it hangs up."""
    assembler = Assembler()
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            assembler.feed(piece)
    return list(iter(assembler.take, None))


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root becomes a user who owns nothing; others stay who they are."""
    us = os.geteuid()
    if us == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(us)


@contextmanager
def scripted(claimed: Claim, *answers: bytes, read: bool = True) -> Iterator[None]:
    """A server that says this to one client, whatever it asks, and hangs up."""

    def serve() -> None:
        claimed.socket.settimeout(SOON)
        with claimed.socket.accept()[0] as connection:
            connection.settimeout(SOON)
            if read:
                connection.recv(65536)
            connection.sendall(b"".join(answers))

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join(SOON)


class Endpoint:
    def __init__(self) -> None:
        self.done: list[Any] = []
        self.open = threading.Event()

    @expose
    def note(self, ctxt: dict[str, Any], value: Any) -> str:
        self.done.append(value)
        return "noted"

    @expose
    def hold(self, ctxt: dict[str, Any]) -> None:
        self.done.append("held")
        self.open.wait(SOON)

    @expose
    def big(self, ctxt: dict[str, Any]) -> str:
        return "x" * (frames.LARGEST + 1)


@contextmanager
def serving(url: str, endpoint: Endpoint, *, threads: int = 4) -> Iterator[Any]:
    transport = transport_to(url)
    target = messaging.Target(topic=TOPIC, server="guest1")
    server = messaging.get_rpc_server(
        transport,
        target,
        [endpoint],
        server_cls=QuietServer,
        access_policy=messaging.ExplicitRPCAccessPolicy,
    )
    server.start(override_pool_size=threads)
    try:
        yield server
    finally:
        endpoint.open.set()
        server.stop()
        server.wait()
        transport.cleanup()
