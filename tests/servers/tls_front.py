"""TLS in front of a server that speaks none: bytes go through as they are, so that it sees what its client wrote."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

PATIENCE = 30.0
"""Seconds for a connection that nothing moves on, and for the threads to end."""
_CHUNK = 1 << 16


class TlsFront:
    """Takes TLS connections and hands them on to ``behind``; a context manager.

    ``context`` is what it shows at the next connection, and may be changed at any time.
    """

    def __init__(self, behind: int, context: ssl.SSLContext, *, host: str = "127.0.0.1") -> None:
        self.context = context
        self.taken = 0
        """Connections on which a client has said something."""
        self._behind = behind
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def url(self, host: str = "127.0.0.1") -> str:
        """What an S3 client takes as its endpoint."""
        return f"https://{host}:{self.port}"

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            _shut(one)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _begin(self, what: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                taken, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._serve, taken)

    def _serve(self, taken: socket.socket) -> None:
        taken.settimeout(PATIENCE)
        with (
            suppress(OSError),
            taken,
            self.context.wrap_socket(taken, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self._behind), timeout=PATIENCE) as server,
        ):
            self._open |= {client, server}
            self._relay(client, server)
            self._open -= {client, server}

    def _relay(self, client: ssl.SSLSocket, server: socket.socket) -> None:
        """In one thread, since a TLS connection is not for two."""
        first = 1
        while True:
            ready = [client] if client.pending() else select.select([client, server], [], [], PATIENCE)[0]
            for source, sink in ((client, server), (server, client)):
                if source in ready:
                    data = source.recv(_CHUNK)
                    if not data:
                        return
                    if source is client:
                        self.taken, first = self.taken + first, 0
                    sink.sendall(data)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
