"""The sink's connections: HTTP/1.1 over sockets, as if over a link of some rate and latency.

Bodies go right into blobs and come right out of them; what they mean is not known here.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

from benchmarks.sink_shelf import BLOCK, Arena, Blob, Refused

HEAD_LIMIT = 64 << 10
LINE_LIMIT = 4096
LOOK = 128
"""Bytes to receive where a line is awaited and what follows it should go right to its block."""

BURST = 0.05
"""Seconds that the link may catch up on."""

LINK_BUFFER = 256 << 10
SMALLEST_PIECE = 16 << 10
PIECES_A_SECOND = 100
XMLNS = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class Pace:
    """Lets no more than ``rate`` bytes a second pass, from all threads together."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        """Until ``count`` more bytes have passed."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - BURST) + count / self._rate
            pause = self._free - now
        time.sleep(max(pause, 0))


class Link:
    """What lies between the clients and us."""

    def __init__(self, rate: float | None, latency: float) -> None:
        self.latency = latency
        self.limited = rate is not None
        self.piece = BLOCK if rate is None else max(SMALLEST_PIECE, min(BLOCK, int(rate / PIECES_A_SECOND)))
        self.up, self.down = Pace(rate), Pace(rate)

    def listen(self, port: int) -> socket.socket:
        """A listener; its connections take little ahead of the link's pace."""
        listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.limited:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LINK_BUFFER)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINK_BUFFER)
        return listener


class Request(NamedTuple):
    """One request, its body received."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Blob

    def text(self) -> bytes:
        """The body of a request that is not an object's."""
        return b"".join(self.body.slices(0, self.body.size))

    def named(self, *prefixes: str) -> dict[str, str]:
        """The headers that begin with one of ``prefixes``."""
        return {name: value for name, value in self.headers.items() if name.startswith(prefixes)}


class Answer(NamedTuple):
    """One answer."""

    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = {}
    body: Iterable[memoryview | bytes] = ()
    size: int = 0


def xml(name: str, content: str, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """A document as an answer; clients know an error by its bare name only."""
    space = XMLNS if status == HTTPStatus.OK else ""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}{space}>{content}</{name}>'.encode()
    return Answer(status, {"Content-Type": "application/xml"}, [body], len(body))


def tag(name: str, content: object) -> str:
    """An element of text."""
    return f"<{name}>{escape(str(content))}</{name}>"


class Connection:
    """One connection: requests in, answers out."""

    def __init__(self, sock: socket.socket, link: Link, arena: Arena) -> None:
        self._sock, self._link, self._arena = sock, link, arena
        self._ahead = bytearray()

    def request(self) -> Request | None:
        """The next one; None if the client hangs up instead."""
        head = self._until(b"\r\n\r\n", HEAD_LIMIT, HEAD_LIMIT)
        return self._request(head.decode("latin-1").split("\r\n")) if head else None

    def answer(self, method: str, answer: Answer) -> None:
        """Send an answer."""
        time.sleep(self._link.latency)
        headers = {"Date": formatdate(usegmt=True), "Content-Length": str(answer.size), **answer.headers}
        lines = [f"HTTP/1.1 {answer.status} {answer.status.phrase}", *(f"{name}: {headers[name]}" for name in headers)]
        self._sock.sendall("\r\n".join([*lines, "\r\n"]).encode("latin-1"))
        for block in answer.body if method != "HEAD" else ():
            for at in range(0, len(block), self._link.piece):
                piece = block[at : at + self._link.piece]
                self._link.down.wait(len(piece))
                self._sock.sendall(piece)

    def _request(self, lines: list[str]) -> Request:
        try:
            method, target, _ = lines[0].split(" ")
            headers = dict(map(_header, lines[1:]))
            length = int(headers.get("content-length", "0"))
        except ValueError:
            raise Refused(HTTPStatus.BAD_REQUEST, "BadRequest") from None
        if "transfer-encoding" in headers or "x-amz-copy-source" in headers:
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented")
        if headers.get("expect", "").lower() == "100-continue":
            time.sleep(self._link.latency)
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = Blob(self._arena)
        if "aws-chunked" in headers.get("content-encoding", ""):
            headers |= self._framed(body)
        else:
            self._fill(body, length)
        path, _, query = target.partition("?")
        return Request(method, unquote(path)[1:], dict(parse_qsl(query, keep_blank_values=True)), headers, body)

    def _framed(self, body: Blob) -> dict[str, str]:
        """Receive a body in frames; gives the headers that follow it."""
        while size := self._frame():
            self._fill(body, size)
            self._line()
        return dict(_header(line) for line in iter(self._line, ""))

    def _frame(self) -> int:
        try:
            return int(self._line().partition(";")[0], 16)
        except ValueError:
            raise Refused(HTTPStatus.BAD_REQUEST, "BadRequest") from None

    def _fill(self, body: Blob, size: int) -> None:
        while size:
            room = body.grow(size)
            self._receive(room)
            size -= len(room)

    def _receive(self, room: memoryview) -> None:
        done = min(len(self._ahead), len(room))
        room[:done] = self._ahead[:done]
        del self._ahead[:done]
        while done < len(room):
            count = self._sock.recv_into(room[done : done + self._link.piece], 0, socket.MSG_WAITALL)
            if not count:
                raise ConnectionResetError("the client hung up in a body")
            self._link.up.wait(count)
            done += count

    def _line(self) -> str:
        line = self._until(b"\r\n", LOOK, LINE_LIMIT)
        if line is None:
            raise ConnectionResetError("the client hung up in a body")
        return line.decode("latin-1")

    def _until(self, mark: bytes, look: int, limit: int) -> bytes | None:
        """What comes before ``mark``; None if nothing comes any more."""
        while (end := self._ahead.find(mark, 0, limit)) < 0:
            if len(self._ahead) >= limit:
                raise Refused(HTTPStatus.BAD_REQUEST, "RequestHeaderSectionTooLarge")
            more = self._sock.recv(look)
            if not more:
                return None
            self._ahead += more
        line = bytes(self._ahead[:end])
        del self._ahead[: end + len(mark)]
        return line


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()
