"""The server as a whole: one topic, both endpoints, started and stopped within bounds.

oslo.messaging waits for ever where a broker is away: for the first connection, and for a call that does not end.  An
agent must start without its broker, and stop with a call that hangs, so both happen in a thread of their own.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from guestagent.errors import GuestagentError, one_line
from guestagent.rpc.dispatch import Dispatcher
from guestagent.rpc.wire import EXCHANGE, Alone, topic_of
from guestagent.transport.oslo import messaging
from guestagent.transport.server import QuietServer
from guestagent.transport.spread import spread_reconnects
from guestagent.transport.tls import go_on

LOG = logging.getLogger(__name__)

THREADS = 4
"""Requests that are answered at a time; further ones wait in the queue."""


class RpcServer:
    """The agent's ear.  ``transport`` becomes its own; ``key`` is Trove's for this instance, or empty."""

    def __init__(
        self, transport: Any, endpoints: list[Any], *, instance: str, exchange: str = EXCHANGE, key: str = ""
    ) -> None:
        spread_reconnects(transport)
        go_on(transport)
        self._transport = transport
        self._topic = topic_of(instance)
        target = messaging.Target(exchange=exchange, topic=self._topic, server=instance)
        dispatcher = Dispatcher(endpoints, _serializer(key))
        self._server = QuietServer(transport, target, dispatcher)
        self._alone = Alone("rpc server")
        self._given_up = threading.Event()
        self.listening = False

    def start(self, *, patience: float) -> bool:
        """Begin to listen; False if that has not come about within ``patience`` seconds, and goes on to be tried.

        Raises what keeps it from ever listening, such as another agent at the same place.
        """
        try:
            self._alone.run(self._start, patience=patience, late=_told)
        except TimeoutError:
            LOG.warning("no broker within %g s; %s is listened on once there is one", patience, self._topic)
        return self.listening

    def stop(self, *, patience: float) -> bool:
        """Take no more requests, and let those that run come to an end.

        False if that has not happened within ``patience`` seconds: the process must then end without waiting for its
        threads.
        """
        self._given_up.set()
        try:
            self._alone.run(self._stop, patience=patience)
        except TimeoutError:
            LOG.warning("a request or a connection has not ended within %g s; it is left behind", patience)
            return False
        return True

    def _start(self) -> None:
        if self._given_up.is_set():
            return
        try:
            self._server.start(override_pool_size=THREADS)
        except Exception as error:
            raise _explained(self._topic, error) from error
        self.listening = True
        LOG.info("listening on %s", self._topic)
        if self._given_up.is_set():
            self._stop()

    def _stop(self) -> None:
        if self.listening:
            self.listening = False
            self._server.stop()
            self._server.wait()
        self._transport.cleanup()


def _told(error: BaseException) -> None:
    LOG.error("%s", one_line(str(error)))


def _explained(topic: str, error: Exception) -> GuestagentError:
    if isinstance(error, GuestagentError):
        return error
    return GuestagentError(f"cannot listen on {topic}: {error}", hint="look at transport_url, and at the broker's log")


def _serializer(key: str) -> Any:
    """What decrypts messages, if they are encrypted."""
    if not key:
        return None
    from guestagent.rpc.secure import GuestSerializer  # noqa: PLC0415  (7 MB that few agents need)

    return GuestSerializer(key)
