"""An S3 server for benchmarks that costs as little as Python on Linux lets it, so that it hides nothing of its clients.

Bodies are received right into a mapped file, and sent right out of it: one copy each way.  Its blocks are used again
when an object is deleted or replaced, for what costs most in memory is a page that was never touched: ``--reserve``
touches them beforehand.  The directory is best one of ``/dev/shm``.  What is stored outlives a stop by SIGTERM, so
that it may be written without limits and read, by the next sink, over an emulated link::

    python -m benchmarks.sink --directory /dev/shm/sink --rate 50Mbit --latency 0.02

prints its URL and serves until SIGTERM; ``Sink`` does that in a process of its own.  The link is one for all
connections, with the same rate in each direction; the latency is that of a round trip.

It is no store for anything else: signatures, MD5s and checksums are NOT checked (checksums are handed back as they
came), every bucket exists, parts may be of any size, whoever reaches the port may do everything.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.sink_s3 import Service
from benchmarks.sink_shelf import Refused, Shelf
from benchmarks.sink_wire import Answer, Connection, Link, tag, xml

LOG = logging.getLogger(__name__)
PATIENCE = 120.0
BITS = 8
HERE = Path(__file__).resolve().parent.parent


def serve(listener: socket.socket, link: Link, shelf: Shelf) -> None:
    """Take connections, each in a thread of its own."""
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=converse, args=(sock, link, shelf), daemon=True).start()


def converse(sock: socket.socket, link: Link, shelf: Shelf) -> None:
    """Answer one client until it hangs up, or sends what cannot be understood."""
    with sock:
        time.sleep(link.latency)
        connection = Connection(sock, link, shelf.arena)
        try:
            while turn(connection, Service(shelf)):
                pass
        except ConnectionError as error:
            LOG.info("a client has left: %s", error)


def turn(connection: Connection, service: Service) -> bool:
    """One request and its answer; False if it is the last.  Nothing holds the body after it."""
    try:
        request = connection.request()
    except Refused as refused:
        # What follows on the connection may be the rest of a body.
        connection.answer("", refusal(refused))
        return False
    if request is None:
        return False
    try:
        answer = service.answer(request)
    except Refused as refused:
        answer = refusal(refused)
    connection.answer(request.method, answer)
    return request.headers.get("connection", "").lower() != "close"


def refusal(refused: Refused) -> Answer:
    """An error as S3 tells it."""
    return xml("Error", tag("Code", refused) + tag("Message", refused.status.phrase), refused.status)


class Sink:
    """The server in a process of its own, which ends with the thread that began it; ``rate`` in bytes a second."""

    def __init__(self, directory: Path, rate: float | None = None, *, latency: float = 0.0, reserve: int = 0) -> None:
        words = [f"--directory={directory.absolute()}", f"--latency={latency}", f"--reserve={reserve}"]
        words += [] if rate is None else [f"--rate={rate}"]
        self._command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "benchmarks.sink", *words]
        self.url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, cwd=HERE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        self.url = self._process.stdout.readline().strip() if ready else ""
        if not self.url:
            self._process.kill()
            self._process.communicate()
            raise RuntimeError(f"the sink has not started: {self._process.returncode}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the sink has not stopped well: {self._process.returncode}")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """What the process has taken so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rate(text: str) -> float:
    """Bytes per second: a number of them, or of bits as in 50Mbit."""
    return float(text.removesuffix("Mbit")) * (10**6 / BITS if text.endswith("Mbit") else 1)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--directory", type=Path, required=True, help="holds the objects; made if missing")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rate", type=rate, help="bytes per second each way, or bits as in 50Mbit")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of a round trip")
    parser.add_argument("--reserve", type=int, default=0, help="bytes of storage to touch beforehand")
    given = parser.parse_args()
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    given.directory.mkdir(parents=True, exist_ok=True)
    shelf = Shelf(given.directory, reserve=given.reserve)
    link = Link(given.rate, given.latency)
    listener = link.listen(given.port)
    threading.Thread(target=serve, args=(listener, link, shelf), daemon=True).start()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    signal.sigwait(ends)
    shelf.save()


if __name__ == "__main__":
    main()
