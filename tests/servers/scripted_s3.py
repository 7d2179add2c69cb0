"""An S3 endpoint that says what a test tells it to: errors, bodies that break off, wrong checksums.

It speaks real HTTP on a real socket (TLS too, if it is given a certificate), and remembers what it was asked.

    with ScriptedS3(Reply(body=b"x" * 100, cut_at=60, reset=True), Reply(body=b"x" * 100)) as server:
        assert server.open().get("key", limit=100) == b"x" * 100
        assert len(server.asked) == 2
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from guestagent.storage import S3Settings
from guestagent.storage.s3 import S3Storage

SECRET = "never-to-be-seen"
"""The secret key of its stores: no error and no log may show it."""


@dataclass(frozen=True)
class Reply:
    """One answer.  ``cut_at``: how many bytes of the body are sent before the connection ends, by a reset or not."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    reset: bool = False
    chunked: bool = False


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


def refusal(status: int, code: str, message: str = "As the test wants it.") -> Reply:
    """An error as S3 answers it."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status=status, body=body.encode(), headers={"Content-Type": "application/xml"})


class ScriptedS3:
    """Answers with the replies in their order, and with the last of them from then on."""

    def __init__(self, *replies: Reply, certificate: Path | None = None) -> None:
        self.asked: list[Asked] = []
        self._replies = list(replies)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def settings(self) -> S3Settings:
        return S3Settings(
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            access_key_id="AKIDTEST",
            secret_access_key=SECRET,
            max_attempts=3,
            connect_timeout=5,
            read_timeout=5,
        )

    def open(self, prefix: str = "", **changes: Any) -> S3Storage:
        """A store at this endpoint, in a bucket named "bucket"; ``changes`` are to the settings."""
        return S3Storage("bucket", prefix=prefix, settings=replace(self.settings(), **changes))

    def answer(self, asked: Asked) -> Reply:
        with self._lock:
            self.asked.append(asked)
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or distrusts the certificate, is part of the tests."""


def _handler(script: ScriptedS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._send(script.answer(Asked(self.command, self.path, headers, body)))

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

        def _send(self, reply: Reply) -> None:
            body = f"{len(reply.body):x}\r\n".encode() + reply.body + b"\r\n0\r\n\r\n" if reply.chunked else reply.body
            self.send_response_only(reply.status)
            for name, value in {"Date": self.date_time_string(), **reply.headers}.items():
                self.send_header(name, value)
            if reply.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: reply.cut_at])
            if reply.cut_at is not None:
                self._end(reset=reply.reset)

        def _end(self, *, reset: bool) -> None:
            self.close_connection = True
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())

        def log_message(self, format: str, *args: Any) -> None:
            """Tests look at what was asked instead."""

    return Handler
