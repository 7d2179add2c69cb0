"""An agent that knows nothing of databases: what the transports' tests talk to, in a process of its own.

``python -m tests.servers.rpc_agent serve URL GUEST`` serves until SIGTERM; ``... client URL GUEST NAME COUNT`` calls it
COUNT times and prints how often the answer was right.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from oslo_config import cfg

from guestagent import errors
from guestagent.transport import prepare
from guestagent.transport.oslo import expose, messaging
from guestagent.transport.server import QuietServer

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
READY = b"ready\n"
ERRORS = "guestagent.errors"
"""The module whose classes may travel."""


def transport_to(url: str, *, errors_from: tuple[str, ...] = (ERRORS,)) -> Any:
    """oslo.messaging on a private configuration."""
    conf = cfg.ConfigOpts()
    conf([], project="guestagent", default_config_files=[], default_config_dirs=[])
    prepare(conf)
    return messaging.get_rpc_transport(conf, url, allowed_remote_exmods=list(errors_from))


@contextmanager
def client_of(url: str, guest: str, *, errors_from: tuple[str, ...] = (ERRORS,), **options: Any) -> Iterator[Any]:
    """A client of that guest's agent."""
    transport = transport_to(url, errors_from=errors_from)
    try:
        target = messaging.Target(topic=f"guestagent.{guest}", version="1.0")
        yield messaging.get_rpc_client(transport, target, timeout=PATIENCE, **options)
    finally:
        transport.cleanup()


class Plain:
    """As Trove's endpoint: no namespace, version 1.3."""

    target = messaging.Target(version="1.3")

    def __init__(self) -> None:
        self._noted: list[Any] = []

    @expose
    def echo(self, ctxt: dict[str, Any], value: Any) -> Any:
        return {"ctxt": ctxt, "value": value, "pid": os.getpid()}

    @expose
    def note(self, ctxt: dict[str, Any], value: Any) -> None:
        self._noted.append(value)

    @expose
    def noted(self, ctxt: dict[str, Any]) -> list[Any]:
        return self._noted

    @expose
    def sleep(self, ctxt: dict[str, Any], seconds: float) -> str:
        self._noted.append(f"asleep for {seconds}")
        time.sleep(seconds)
        return "slept"

    @expose
    def fail(self, ctxt: dict[str, Any], name: str, text: str) -> None:
        kind: type[Exception] = getattr(errors, name, ValueError)
        raise kind(text)

    def hidden(self, ctxt: dict[str, Any]) -> str:
        return "must not be told"


class Backup:
    """As our own endpoint: namespace ``backup``, version 1.0."""

    target = messaging.Target(namespace="backup", version="1.0")

    @expose
    def echo(self, ctxt: dict[str, Any], value: Any) -> Any:
        return ["backup", value]


class RpcAgent:
    """The server's process; a context manager that has it running inside and nothing left afterwards."""

    def __init__(self, url: str, guest: str) -> None:
        self.url = url
        self.guest = guest
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv("serve", self.url, self.guest)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        if not self._says(READY):
            self.kill()
            raise RuntimeError("the agent does not start")

    def terminate(self) -> None:
        """Ask it to end."""
        self._running.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it hang until it is killed."""
        self._running.send_signal(signal.SIGSTOP)

    def ending(self) -> int:
        """Its exit status, once it has ended."""
        return self._running.wait(timeout=PATIENCE)

    def kill(self) -> None:
        """End it as a crash would; a second time does nothing."""
        self._running.kill()
        self._running.wait(timeout=PATIENCE)
        assert self._running.stdout is not None
        self._running.stdout.close()

    def _says(self, line: bytes) -> bool:
        assert self._running.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._running.stdout, selectors.EVENT_READ)
            return bool(selector.select(PATIENCE)) and self._running.stdout.readline() == line


def argv(*words: str) -> list[str]:
    """The command that runs this module."""
    return [sys.executable, "-W", "ignore", "-m", "tests.servers.rpc_agent", *words]


def serve(url: str, guest: str) -> None:
    """Serve until SIGTERM, then finish what runs."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    transport = transport_to(url)
    server = messaging.get_rpc_server(
        transport,
        messaging.Target(topic=f"guestagent.{guest}", server=guest),
        [Plain(), Backup()],
        access_policy=messaging.ExplicitRPCAccessPolicy,
        server_cls=QuietServer,
    )
    server.start()
    os.write(sys.stdout.fileno(), READY)
    over.wait()
    server.stop()
    server.wait()
    transport.cleanup()


def call_often(url: str, guest: str, name: str, count: str) -> None:
    """Call COUNT times, and print how many answers were right."""
    with client_of(url, guest) as client:
        right = 0
        for number in range(int(count)):
            client.cast({}, "note", value=f"{name} {number}")
            right += client.call({}, "echo", value=[name, number])["value"] == [name, number]
    print(right)


if __name__ == "__main__":
    {"serve": serve, "client": call_often}[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
