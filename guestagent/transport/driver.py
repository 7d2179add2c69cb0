"""The class that oslo.messaging loads for ``local://``, by the entry point of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from guestagent.errors import ConfigError
from guestagent.transport.client import Patience, ask, in_oslos_words
from guestagent.transport.frames import Word
from guestagent.transport.listener import Listener, trusted
from guestagent.transport.oslo import base, common
from guestagent.transport.sockets import Place, claim, place_of

CAST_PATIENCE = 30.0
"""Seconds to wait until a server has taken a cast, for which oslo.messaging names no limit."""


class LocalDriver(base.BaseDriver):  # type: ignore[misc]
    """RPC over UNIX sockets.

    - A topic has one server; a fanout reaches that one.
    - A cast returns when a thread of the server has taken it, so one that is sent to nobody fails at once, whether
      or not it asks for at_least_once; there is no queue in which it could wait, and nothing to retry.
    - After MessagingTimeout the outcome is unknown; but what no thread had taken by then is not done any more.
    """

    def __init__(
        self,
        conf: Any,
        url: Any,
        default_exchange: str | None = None,
        allowed_remote_exmods: list[str] | None = None,
    ) -> None:
        super().__init__(conf, url, default_exchange, allowed_remote_exmods)
        self._directory = directory_of(url)
        self._listeners: list[Listener] = []

    def send(
        self,
        target: Any,
        ctxt: dict[str, Any],
        message: dict[str, Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> Any:
        """Send a message, and wait until it is taken or, with ``wait_for_reply``, answered."""
        place = self._place(target)
        monitor = call_monitor_timeout or None
        request = {
            "ctxt": ctxt,
            "message": message,
            "server": None if target.fanout else target.server,
            "call": bool(wait_for_reply),
            "monitor": monitor,
        }
        if not wait_for_reply and timeout is None:
            timeout = CAST_PATIENCE
        with in_oslos_words(place, target, self._exchange(target)):
            answer = ask(place, request, Patience(timeout, monitor=monitor))
        if answer["kind"] == Word.FAILURE:
            raise common.deserialize_remote_exception(answer["failure"], self._allowed_remote_exmods)
        return answer.get("reply")

    def listen(self, target: Any, batch_size: int, batch_timeout: float | None) -> Listener:
        """Listen for a target; raises Refused if another server does."""
        listener = Listener(claim(self._place(target)), server=target.server, users=trusted())
        self._listeners = [one for one in self._listeners if not one.ended] + [listener]
        return listener

    def send_notification(
        self, target: Any, ctxt: Any, message: Any, version: float, retry: int | None = None
    ) -> NoReturn:
        """Refuse: a notification has to wait for whoever comes to read it, and there is no broker to keep it."""
        raise NotImplementedError("local:// carries no notifications")

    def listen_for_notifications(
        self, targets_and_priorities: Any, pool: Any, batch_size: int, batch_timeout: float | None
    ) -> NoReturn:
        """Refuse, as send_notification does."""
        raise NotImplementedError("local:// carries no notifications")

    def cleanup(self) -> None:
        """End every listener that is still there."""
        while self._listeners:
            self._listeners.pop().cleanup()

    def _exchange(self, target: Any) -> str:
        return target.exchange or self._default_exchange or ""

    def _place(self, target: Any) -> Place:
        return place_of(self._directory, exchange=self._exchange(target), topic=target.topic)


def directory_of(url: Any) -> Path:
    """The directory in a parsed transport URL; raises ConfigError."""
    if url.hosts or not url.virtual_host:
        raise ConfigError("no directory in a transport_url of local://", hint="three slashes: local:///run/guestagent")
    return Path("/", url.virtual_host)
