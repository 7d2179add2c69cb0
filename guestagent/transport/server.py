"""oslo's RPC server, on threads that sleep until there is work.

The pool that oslo.messaging takes by itself adds a thread for every request until it is full, and each wakes up once
a second for ever: 64 wake-ups a second for an agent that answered 64 pings last week.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from guestagent.transport.oslo import messaging


class QuietServer(messaging.rpc.server.RPCServer):  # type: ignore[misc]
    """For ``oslo_messaging.get_rpc_server(..., server_cls=QuietServer)``."""

    def __init__(self, transport: Any, target: Any, dispatcher: Any, executor: Any = None) -> None:
        super().__init__(transport, target, dispatcher)
        self._executor_cls = partial(ThreadPoolExecutor, thread_name_prefix="rpc")
