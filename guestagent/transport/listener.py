"""All connections of one server, in one thread: it reads requests, hands them on, and sleeps when nothing happens."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from guestagent.errors import Corrupt
from guestagent.transport.conversation import Conversation, Incoming, Request
from guestagent.transport.frames import Word, pack
from guestagent.transport.oslo import base
from guestagent.transport.sockets import Claim, peer_uid

LOG = logging.getLogger(__name__)

MOST = 128
"""Connections at a time, calls that run included; further clients wait to be let in."""
PAUSE = 0.2
"""Seconds between two looks at whether there is room again, or descriptors."""


def trusted() -> frozenset[int]:
    """The users that may talk to us: root, and the one that we run as."""
    return frozenset({0, os.geteuid()})


class Listener(base.Listener):  # type: ignore[misc]
    """What oslo's RPC server gets its requests from.  ``server`` is the name that a request may ask for."""

    def __init__(self, claim: Claim, *, server: str, users: frozenset[int]) -> None:
        super().__init__(batch_size=1, batch_timeout=None)
        self._claim = claim
        self._server = server
        self._users = users
        self._stopping = False
        self._open: set[Conversation] = set()
        self._reading: set[Conversation] = set()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ, self._note_bell)
        self._selector.register(claim.socket, selectors.EVENT_READ, self._admit)
        self._thread = threading.Thread(target=self._run, name=f"local {claim.place.name}", daemon=True)

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left."""
        return self._bell < 0

    def start(self, on_incoming_callback: Callable[[list[Any]], None]) -> None:
        """Begin to hand requests to ``on_incoming_callback``."""
        super().start(on_incoming_callback)
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests; clients hear at once that nobody listens, and calls that run go on."""
        if self.ended or self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._bell, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._hang_up()
        super().stop()

    def cleanup(self) -> None:
        """Release everything; a second time does nothing."""
        if self.ended:
            return
        self.stop()
        self._selector.close()
        os.close(self._bell)
        self._bell = -1

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(self._rest()):
                key.data()
            self._drop_silent()
            self._make_room()

    def _rest(self) -> float | None:
        """Seconds to sleep: for ever, unless a client owes the rest of a request or is kept waiting."""
        now = time.monotonic()
        rests = [max(0.0, one.deadline - now) for one in self._reading]
        if self._is_full():
            rests.append(PAUSE)
        return min(rests, default=None)

    def _note_bell(self) -> None:
        os.eventfd_read(self._bell)

    def _admit(self) -> None:
        try:
            connection, _ = self._claim.socket.accept()
            self._greet(connection)
        except OSError as error:
            LOG.warning("cannot take a connection at %s: %s", self._claim.place, error)
            time.sleep(PAUSE)

    def _greet(self, connection: socket.socket) -> None:
        uid = peer_uid(connection)
        if uid not in self._users:
            LOG.warning("refused a client at %s: it runs as user %d", self._claim.place, uid)
            connection.close()
            return
        conversation = Conversation(connection)
        self._open.add(conversation)
        self._reading.add(conversation)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._hear, conversation))

    def _hear(self, conversation: Conversation) -> None:
        try:
            request = conversation.hear()
            if request is not None:
                self._forget(conversation)
                self._hand_on(request, conversation)
        except EOFError:
            self._drop(conversation)
        except (Corrupt, OSError) as error:
            LOG.warning("cut off a client at %s: %s", self._claim.place, error)
            self._drop(conversation)
        except Exception:
            # Whatever one request does must not make the agent deaf to all others.
            LOG.exception("cannot hand on a request at %s", self._claim.place)
            self._drop(conversation)

    def _hand_on(self, request: Request, conversation: Conversation) -> None:
        if request.server not in (None, self._server):
            conversation.tell(pack({"kind": Word.UNKNOWN}))
            conversation.close()
            return
        self.on_incoming_callback([Incoming(request, conversation)])

    def _forget(self, conversation: Conversation) -> None:
        """Read no more from it."""
        if conversation in self._reading:
            self._reading.remove(conversation)
            self._selector.unregister(conversation.connection)

    def _drop(self, conversation: Conversation) -> None:
        self._forget(conversation)
        conversation.close()

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for conversation in [one for one in self._reading if one.deadline <= now]:
            LOG.warning("cut off a client at %s: its request did not come in time", self._claim.place)
            self._drop(conversation)

    def _make_room(self) -> None:
        """Let clients in, or not."""
        self._open = {one for one in self._open if not one.closed}
        admitting = self._claim.socket in self._selector.get_map()
        if admitting and self._is_full():
            self._selector.unregister(self._claim.socket)
        elif not admitting and not self._is_full():
            self._selector.register(self._claim.socket, selectors.EVENT_READ, self._admit)

    def _is_full(self) -> bool:
        return len(self._open) >= MOST

    def _hang_up(self) -> None:
        for conversation in list(self._reading):
            self._drop(conversation)
        self._claim.withdraw()
