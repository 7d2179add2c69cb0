"""One connection as the client has it: a request, the word that it was taken, and for a call the answer.

The errors are oslo.messaging's, since its clients are the callers.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from guestagent.errors import Corrupt, GuestagentError, NotFound, Stalled
from guestagent.transport.frames import PIECE, Assembler, Body, Word, pack
from guestagent.transport.oslo import messaging
from guestagent.transport.sockets import Place, dial


class AgentAbsent(messaging.MessageDeliveryFailure, messaging.MessageUndeliverable):  # type: ignore[misc]
    """Nobody listens there: what RabbitMQ says of a target without a queue, and a delivery that failed, in one."""

    def __init__(self, what: str, *, exchange: str, topic: str) -> None:
        messaging.MessageUndeliverable.__init__(self, what, exchange, topic, None)
        self.args = (what,)


class Patience:
    """How long a client waits: until a deadline, and ``monitor`` seconds for each sign of life; None is for ever."""

    def __init__(self, timeout: float | None, *, monitor: float | None = None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._monitor = monitor
        self.renew()

    def renew(self) -> None:
        """Note a sign of life."""
        self._next_sign = None if self._monitor is None else time.monotonic() + self._monitor

    def left(self) -> float | None:
        """Seconds to wait now; raises TimeoutError if there are none."""
        ends = [end for end in (self._deadline, self._next_sign) if end is not None]
        if not ends:
            return None
        left = min(ends) - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def ask(place: Place, request: Body, patience: Patience) -> Body:
    """Send a request; gives the answer to a call (REPLY or FAILURE), and TAKEN for a cast."""
    frame = pack(request)
    with dial(place, patience=patience.left()) as connection:
        connection.settimeout(patience.left())
        # A server that hangs up on us may have said why before.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(frame)
        return _answer(place, _bodies(connection, patience), patience, is_call=request["call"])


def _answer(place: Place, bodies: Iterator[Body], patience: Patience, *, is_call: bool) -> Body:
    taken = False
    for body in bodies:
        match body.get("kind"):
            case Word.REPLY | Word.FAILURE:
                return body
            case Word.TAKEN if not is_call:
                return body
            case Word.TAKEN | Word.ALIVE:
                taken = True
                patience.renew()
            case Word.UNKNOWN:
                raise NotFound(f"no agent of that name is listening at {place}", hint="look at the id")
            case other:
                raise Corrupt(f"the agent at {place} answers {other!r}")
    if taken:
        raise Stalled(f"the agent at {place} went away before it answered")
    raise GuestagentError(f"the agent at {place} hung up before it took the request", hint="its log says why")


def _bodies(connection: socket.socket, patience: Patience) -> Iterator[Body]:
    """What the server says, until it hangs up."""
    assembler = Assembler()
    while True:
        while (body := assembler.take()) is not None:
            yield body
        connection.settimeout(patience.left())
        try:
            piece = connection.recv(PIECE)
        except ConnectionResetError:
            return
        if not piece:
            return
        assembler.feed(piece)


@contextmanager
def in_oslos_words(place: Place, target: Any, exchange: str) -> Iterator[None]:
    """Errors as oslo.messaging's callers expect them: nobody there, not delivered, or outcome unknown."""
    try:
        yield
    except NotFound as error:
        raise AgentAbsent(str(error), exchange=exchange, topic=target.topic) from error
    except TimeoutError as error:
        raise messaging.MessagingTimeout(f"no answer from the agent at {place} in time") from error
    except Stalled as error:
        raise messaging.MessagingTimeout(str(error)) from error
    except (GuestagentError, OSError) as error:
        raise messaging.MessageDeliveryFailure(str(error)) from error
