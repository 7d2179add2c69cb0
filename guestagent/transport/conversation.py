"""One connection as the server has it: a request comes in, the word that it was taken and an answer go out."""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from guestagent.errors import Corrupt, GuestagentError
from guestagent.transport.frames import PIECE, Assembler, Body, Word, pack
from guestagent.transport.oslo import base, common, messaging

LOG = logging.getLogger(__name__)

REQUEST_PATIENCE = 10.0
"""Seconds that a client may take to send its request."""
ANSWER_PATIENCE = 30.0
"""Seconds that a client may take to read an answer."""
LONGEST_MONITOR = 86400.0
"""Seconds that a client may wait for a sign of life."""


@dataclass(frozen=True)
class Request:
    """What a client sends; ``monitor`` is how many seconds it waits for a sign of life during a call."""

    ctxt: Body
    message: Body
    server: str | None
    is_call: bool
    monitor: float | None

    @classmethod
    def of(cls, body: Body) -> Request:
        """The request in a frame; raises Corrupt."""
        kinds = {"ctxt": dict, "message": dict, "server": str | None, "call": bool, "monitor": int | float | None}
        wrong = [name for name, kind in kinds.items() if not isinstance(body.get(name), kind)]
        if wrong:
            raise Corrupt(f"a request with a wrong {wrong[0]!r}")
        if not 0 <= (body.get("monitor") or 0) <= LONGEST_MONITOR:
            raise Corrupt("a request with a wrong 'monitor'")
        return cls(body["ctxt"], body["message"], body.get("server"), body["call"], body.get("monitor"))


class Conversation:
    """One client's connection.  ``hear`` is for the listener's thread; the rest may be used from several threads."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.deadline = time.monotonic() + REQUEST_PATIENCE
        self._assembler = Assembler()
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether it has ended, from our side."""
        return self.connection.fileno() < 0

    def hear(self) -> Request | None:
        """The request, or None while it is not whole; raises Corrupt, EOFError if nothing was said, and OSError."""
        try:
            piece = self.connection.recv(PIECE)
        except BlockingIOError:
            return None
        if not piece:
            raise EOFError if self._assembler.empty else Corrupt("the connection ended inside a frame")
        self._assembler.feed(piece)
        body = self._assembler.take()
        return None if body is None else Request.of(body)

    def tell(self, frame: bytes) -> None:
        """Send a frame; raises OSError if the client is gone or does not read."""
        with self._lock:
            self.connection.settimeout(ANSWER_PATIENCE)
            self.connection.sendall(frame)

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            self.connection.close()


class Incoming(base.RpcIncomingMessage):  # type: ignore[misc]
    """A request on its way through oslo's RPC server."""

    def __init__(self, request: Request, conversation: Conversation) -> None:
        super().__init__(request.ctxt, request.message)
        self.client_timeout = request.monitor
        self._is_call = request.is_call
        self._conversation = conversation

    def acknowledge(self) -> None:
        """Tell the client that a thread has taken the request.

        Raises MessageDeliveryFailure if nobody is there any more: oslo's server drops the request then, and so what
        a client gave up on is not done behind its back.
        """
        try:
            self._conversation.tell(pack({"kind": Word.TAKEN}))
        except OSError as error:
            self._conversation.close()
            raise messaging.MessageDeliveryFailure(f"the client of {self.msg_id} is gone: {error}") from error
        if not self._is_call:
            self._conversation.close()

    def requeue(self) -> None:
        """Hang up instead of taking the request, so that the client may ask somebody else."""
        self._conversation.close()

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        """Answer a call; one that cannot be answered with what it made is answered with that error."""
        if not self._is_call:
            return
        try:
            frame = _answer(reply, failure)
        except GuestagentError as error:
            LOG.warning("cannot answer %s as asked: %s", self.msg_id, error)
            frame = _answer(None, (type(error), error, None))
        try:
            self._conversation.tell(frame)
        except OSError as error:
            LOG.warning("cannot answer %s: %s", self.msg_id, error)
        self._conversation.close()

    def heartbeat(self) -> None:
        """Tell the client that the call is worked on; raises MessageDeliveryFailure once it is over."""
        try:
            self._conversation.tell(pack({"kind": Word.ALIVE}))
        except OSError as error:
            raise messaging.MessageDeliveryFailure(f"the client of {self.msg_id} is gone: {error}") from error


def _answer(reply: Any, failure: Any) -> bytes:
    """The frame with the reply, or with the failure in the form that oslo.messaging builds exceptions from."""
    if failure is None:
        return pack({"kind": Word.REPLY, "reply": reply})
    try:
        words = common.serialize_remote_exception(failure)
    except (TypeError, ValueError) as error:
        raise GuestagentError(f"{failure[0].__name__}: {failure[1]}") from error
    return pack({"kind": Word.FAILURE, "failure": words})
