"""A proxy before a real S3 server, over real sockets, that goes wrong as a script says.

What the script does not strike goes through as it came, its signature with it.

    with FaultGate(port) as gate:
        play = gate.begin(Script.parse("put-segment@2*1:lost-ack"))
        ...
        assert len(play.hits) == 1
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import unescape

from tests.servers.faults.script import Fault, Kind, Play, Script, What

PATIENCE = 30.0
STALL = 1.5
"""Seconds that a request stalls: more than its client's read_timeout has to be."""
SLOWLY = 0.2
"""Seconds that a slow body takes."""
PIECES = 8
_OK = 200
_DROPPED = ("transfer-encoding", "connection", "content-length", "date", "server")
_CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>(.*?)</Key>")
_ERRORS = {
    What.ERROR: (500, "InternalError"),
    What.SLOW_DOWN: (503, "SlowDown"),
    What.EXPIRED: (403, "ExpiredToken"),
    What.SKEWED: (403, "RequestTimeTooSkewed"),
    What.FULL: (507, "QuotaExceeded"),
    What.OK_ERROR: (_OK, "InternalError"),
}


@dataclass(frozen=True)
class Answer:
    """What goes back; ``size`` is the Content-Length where it is not that of the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    size: int | None = None


@dataclass(frozen=True)
class Request:
    """A request as it came, but for what concerns its connection alone."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


def forwarded(port: int, request: Request) -> Answer:
    """Have the server at ``port`` obey a request."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as onward:
        onward.request(request.method, request.path, request.body or None, dict(request.headers))
        answer = onward.getresponse()
        found = answer.read()
        size = answer.getheader("Content-Length") if request.method == "HEAD" else None
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in _DROPPED}
        return Answer(answer.status, kept, found, int(size) if size else None)


class FaultGate:
    """Lets requests through to the server on port ``behind``, but for what a script says; a context manager."""

    def __init__(self, behind: int, *, stall: float = STALL) -> None:
        self.behind = behind
        self.stall = stall
        self.lately: set[str] = set()
        """The keys that were put since the script began."""
        self.play = Play(Script())
        self.kept_back: list[Request] = []
        """What is obeyed late."""
        self._busy = 0
        self._lock = threading.Lock()
        gate = self

        class Handler(_Handler):
            kept = gate

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """What an S3 client takes as its endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def busy(self) -> int:
        """How many requests are under way, those included for which nobody waits any more."""
        with self._lock:
            return self._busy

    def count(self, change: int) -> None:
        """A request begins, or ends."""
        with self._lock:
            self._busy += change

    def deliver(self) -> None:
        """Obey what was kept back."""
        while self.kept_back:
            forwarded(self.behind, self.kept_back.pop(0))

    def begin(self, script: Script, *, lately: Iterable[str] = ()) -> Play:
        """Count from one again, and go wrong as this script says; ``lately`` are keys put a moment ago."""
        self.lately = set(lately)
        self.play = Play(script)
        return self.play

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)


def kind_of(method: str, path: str) -> Kind | None:
    """What a request is for; None if it concerns no backup."""
    parts = urlsplit(path)
    key = unquote(parts.path.lstrip("/").partition("/")[2])
    asked = parse_qs(parts.query, keep_blank_values=True)
    if method == "POST" and "delete" in asked:
        return Kind.DELETE
    if not key:
        return Kind.LIST if method == "GET" and "list-type" in asked else None
    if method == "PUT":
        return _kind_of_put(key)
    return {"GET": Kind.GET, "HEAD": Kind.HEAD, "DELETE": Kind.DELETE}.get(method)


def _kind_of_put(key: str) -> Kind | None:
    names = {"manifest.json": Kind.PUT_MANIFEST, "key.json": Kind.PUT_KEY, "key.next.json": Kind.PUT_KEY}
    return names.get(key.rpartition("/")[2], Kind.PUT_SEGMENT if "/data/" in key else None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is what the tests want."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    kept: FaultGate
    _fault: Fault | None
    _met: bool

    def log_message(self, *_: object) -> None:
        pass

    def parse_request(self) -> bool:
        self._fault, self._met = None, False
        return super().parse_request()

    def handle_expect_100(self) -> bool:
        if self._what() is What.RESET_BEFORE:
            self._reset()
            return False
        return super().handle_expect_100()

    def _what(self) -> What | None:
        """How this request goes wrong; it is counted once."""
        kind = kind_of(self.command, self.path)
        if kind is not None and not self._met:
            self._fault = self.kept.play.meet(kind, self._key())
        self._met = True
        return self._fault.what if self._fault else None

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path.lstrip("/").partition("/")[2])

    # -- before the request is obeyed

    def _serve(self) -> None:
        self.kept.count(+1)
        try:
            self._go_on()
        finally:
            self.kept.count(-1)

    def _go_on(self) -> None:
        what = self._what()
        size = int(self.headers.get("Content-Length") or 0)
        if what is What.RESET_BEFORE:
            self._reset()
            return
        body = self.rfile.read(size // 2 if what is What.RESET_IN else size)
        if what is What.LATE:
            self.kept.kept_back.append(self._request(body))
        if what in (What.RESET_IN, What.RESET_AFTER, What.LATE):
            self._reset()
        elif what in _ERRORS:
            self._send(_error(*_ERRORS[what]))
        elif what is What.SWALLOW:
            self._send(Answer(_OK, {"ETag": '"0123456789abcdef0123456789abcdef"'}))
        else:
            self._obey(what, body)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _serve

    # -- once it is

    def _obey(self, what: What | None, body: bytes) -> None:
        if what is What.STALL:
            time.sleep(self.kept.stall)
        if what is What.TWICE:
            self._forwarded(body)
        answer = self._forwarded(body)
        if self.command == "PUT":
            self.kept.lately.add(self._key())
        if what is What.LOST_ACK:
            self._reset()
        elif what is What.LOST_ACK_ERROR:
            self._send(_error(*_ERRORS[What.ERROR]))
        elif what in _CHANGED:
            self._send(_CHANGED[what](self.kept, answer))
        else:
            self._send_wrong(what, answer)

    def _forwarded(self, body: bytes) -> Answer:
        return forwarded(self.kept.behind, self._request(body))

    def _request(self, body: bytes) -> Request:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        return Request(self.command, self.path, headers, body)

    def _send_wrong(self, what: What | None, answer: Answer) -> None:
        """Send the answer, or so much of it as the fault lets through."""
        half = len(answer.body) // 2
        if what is What.SLOW:
            self._send(answer, pause=SLOWLY / PIECES)
        elif what in (What.RESET_ANSWER, What.SHORT, What.STALL_ANSWER):
            self._send(replace(answer, body=answer.body[:half], size=len(answer.body)))
            if what is What.STALL_ANSWER:
                time.sleep(self.kept.stall)
            self.close_connection = True
            if what is What.RESET_ANSWER:
                self._reset()
        else:
            self._send(answer)

    def _send(self, answer: Answer, *, pause: float = 0) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body) if answer.size is None else answer.size))
        self.end_headers()
        step = max(1, len(answer.body) // PIECES if pause else len(answer.body))
        for start in range(0, len(answer.body) if self.command != "HEAD" else 0, step):
            time.sleep(pause)
            self.wfile.write(answer.body[start : start + step])

    def _reset(self) -> None:
        """End the connection as a machine does that knows nothing of it."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            os.close(self.connection.detach())


def _error(status: int, code: str) -> Answer:
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>as scripted</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


def _less(_: FaultGate, answer: Answer) -> Answer:
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def _flipped(_: FaultGate, answer: Answer) -> Answer:
    middle = len(answer.body) // 2
    if not answer.body:
        return answer
    return replace(answer, body=answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :])


def _lagging(gate: FaultGate, answer: Answer) -> Answer:
    """The listing without what was put lately; prefixes that stand for several keys stay."""

    def kept(found: re.Match[bytes]) -> bytes:
        key = _KEY.search(found[0])
        return b"" if key and unquote(unescape(key[1].decode())) in gate.lately else found[0]

    return replace(answer, body=_CONTENTS.sub(kept, answer.body))


_CHANGED: Mapping[What | None, Callable[[FaultGate, Answer], Answer]] = {
    What.LESS: _less,
    What.FLIP: _flipped,
    What.LAG: _lagging,
}
