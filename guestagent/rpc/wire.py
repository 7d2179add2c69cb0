"""oslo.messaging's transport, opened for both sides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from guestagent.errors import ConfigError, GuestagentError
from guestagent.transport import prepare
from guestagent.transport.oslo import messaging
from guestagent.transport.tls import secure

Outcome = TypeVar("Outcome")

EXCHANGE = "trove"
"""Where the control plane's messages go, unless it is configured otherwise."""
ERRORS = ["guestagent.errors"]
"""The modules whose errors may travel as what they are."""


def open_transport(conf: Any, url: str) -> Any:
    """The transport of a URL; ``conf`` is a cfg.ConfigOpts of its own, from which libraries read their sections.

    Raises ConfigError.  Nothing is asked of a broker yet.
    """
    if "://" not in url:
        raise _unusable(url)
    prepare(conf)
    try:
        transport = messaging.get_rpc_transport(conf, url, allowed_remote_exmods=ERRORS)
    except GuestagentError:
        raise
    except (messaging.InvalidTransportURL, messaging.DriverLoadFailure, ValueError):
        # Not from what oslo says: it quotes the URL, and there is a password in that.
        raise _unusable(url) from None
    secure(transport)
    return transport


def _unusable(url: str) -> ConfigError:
    scheme, found, _ = url.partition("://")
    what = f"of {scheme}://" if found and scheme.isalnum() else "without a scheme"
    return ConfigError(
        f"a transport_url {what} that cannot be used",
        hint="give rabbit://USER:PASSWORD@HOST:PORT/VHOST, or local:///run/guestagent",
    )


class Alone:
    """A thread of its own for what may never end, one such thing at a time.

    oslo.messaging waits for ever where a broker is away, whatever its timeouts say: for the first connection, for the
    queue that answers come to, and for a call that does not end.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something still runs that has not ended in time."""
        return self._thread is not None and self._thread.is_alive()

    def run(
        self, what: Callable[[], Outcome], *, patience: float, late: Callable[[BaseException], object] = lambda _: None
    ) -> Outcome:
        """What ``what`` gives or raises; TimeoutError if it, or what ran before it, does not end in time.

        It goes on then, and ends with the process at the latest; ``late`` is told of the error that it ends with.
        """
        limit = time.monotonic() + patience
        outcome: Future[Outcome] = Future()
        thread = threading.Thread(target=_settle, args=(outcome, what), name=self._name, daemon=True)
        while (earlier := self._begin(thread)) is not None:
            earlier.join(max(0, limit - time.monotonic()))
            if earlier.is_alive():
                raise TimeoutError
        thread.join(max(0, limit - time.monotonic()))
        if not outcome.done():
            outcome.add_done_callback(lambda ended: late(error) if (error := ended.exception()) else None)
            raise TimeoutError
        return outcome.result()

    def _begin(self, thread: threading.Thread) -> threading.Thread | None:
        """Start the thread, unless another one runs: gives that one."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return self._thread
            thread.start()
            self._thread = thread
            return None


def _settle(outcome: Future[Outcome], what: Callable[[], Outcome]) -> None:
    try:
        outcome.set_result(what())
    except Exception as error:
        outcome.set_exception(error)


def topic_of(instance: str) -> str:
    """The topic that an instance's agent listens on."""
    return f"guestagent.{instance}"
