"""The control plane of a fleet: calls to random agents, and waiting until each of them answers again."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from benchmarks.fleet_figures import Latency, latency
from guestagent.rpc.ours import NAMESPACE, VERSION
from guestagent.rpc.wire import EXCHANGE, topic_of
from guestagent.transport.oslo import messaging
from tests.servers.rpc_agent import transport_to

TIMEOUT = 30.0
AGAIN = 20.0
"""Seconds after which an agent that has not answered is asked again."""
ABSENT = 1.0
"""Seconds after which an agent without a queue is asked again."""
WARM_UP = 20
SENDERS = 4
"""Connections that calls go out on."""

Names = list[str]


@contextmanager
def caller(url: str) -> Iterator[Any]:
    """A client of all agents; for any number of threads."""
    # Threads share few connections: what is measured is the agents', not how fast a client makes its own.
    transport = transport_to(f"{url}{'&' if '?' in url else '?'}rpc_conn_pool_size={SENDERS}")
    try:
        target = messaging.Target(exchange=EXCHANGE, topic="guestagent", namespace=NAMESPACE, version=VERSION)
        options = messaging.TransportOptions(at_least_once=True)
        yield messaging.get_rpc_client(transport, target, timeout=TIMEOUT, retry=0, transport_options=options)
    finally:
        transport.cleanup()


def ping(client: Any, name: str) -> None:
    """Ask who is there."""
    client.prepare(topic=topic_of(name)).call({}, "ping")


def create(client: Any, name: str) -> None:
    """Ask for a backup."""
    client.prepare(topic=topic_of(name)).call({}, "create", id=str(uuid.uuid4()), name="nightly")


def measure(client: Any, names: Names, ask: Callable[[Any, str], None], *, calls: int, callers: int) -> Latency:
    """Let ``callers`` ask agents at random, one after the other, until ``calls`` have been answered."""

    def timed(name: str) -> float:
        began = time.monotonic()
        ask(client, name)
        return time.monotonic() - began

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(timed, random.choices(names, k=WARM_UP)))
        began = time.monotonic()
        found = list(pool.map(timed, random.choices(names, k=calls)))
        return latency(found, took=time.monotonic() - began)


def answering(client: Any, names: Names, *, limit: float) -> list[float]:
    """When each agent answers, asked from now on; those are left out that do not within ``limit`` seconds."""
    deadline = time.monotonic() + limit
    came: list[float] = []

    def wait(name: str) -> None:
        while time.monotonic() < deadline:
            try:
                client.prepare(topic=topic_of(name), timeout=AGAIN).call({}, "ping")
            except messaging.MessageUndeliverable:
                time.sleep(ABSENT)
            except messaging.MessagingException:
                continue
            else:
                came.append(time.monotonic())
                return

    threads = [threading.Thread(target=wait, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(limit + 2 * AGAIN)
    return came
