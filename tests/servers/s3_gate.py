"""An S3 endpoint that keeps a policy, in front of one that keeps none: what AWS's IAM does with our requests.

It knows the actions that guestagent needs, the condition ``s3:prefix`` and the effects Allow and Deny; what it does
not know is denied.  As at AWS, a key that is not there is denied to who may not list the whole bucket.
"""

from __future__ import annotations

import fnmatch
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

PATIENCE = 30.0
_DENIED, _MISSING, _OK = 403, 404, 200
_ERROR = (
    "<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
)
_SKEWED = _ERROR.replace("AccessDenied", "RequestTimeTooSkewed").replace("Access Denied", "The difference is too large")
TOO_SKEWED = timedelta(minutes=15)
EVERYTHING: dict[str, Any] = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
"""A policy that denies nothing that is known."""
_OBJECT = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass(frozen=True)
class Wish:
    """One thing that a request asks for."""

    action: str
    resource: str
    prefix: str | None = None


class S3Gate:
    """Lets through to ``behind`` what ``policy`` allows; a context manager.  Both may be changed at any time.

    ``ahead`` is how wrong its clock is, for which it refuses requests as AWS does; without ``knows_conditions`` it
    drops them from puts, as stores do that have never heard of them.
    """

    def __init__(self, behind: int, policy: dict[str, Any]) -> None:
        self.policy = policy
        self.behind = behind
        self.ahead = timedelta()
        self.knows_conditions = True
        self.allowed: set[str] = set()
        self.denied: list[Wish] = []
        gate = self

        class Handler(_Handler):
            kept = gate

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """What an S3 client takes as its endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)

    def allows(self, wish: Wish) -> bool:
        """Whether the policy allows it: a statement does, and none denies it."""
        effects = {one["Effect"] for one in self.policy["Statement"] if _concerns(one, wish)}
        if effects != {"Allow"}:
            self.denied.append(wish)
            return False
        self.allowed.add(wish.action)
        return True


def _concerns(statement: dict[str, Any], wish: Wish) -> bool:
    wanted = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
    return (
        _matches(statement["Action"], wish.action)
        and _matches(statement["Resource"], wish.resource)
        and (wanted is None or (wish.prefix is not None and _matches(wanted, wish.prefix)))
    )


def _matches(patterns: str | list[str], text: str) -> bool:
    return any(fnmatch.fnmatchcase(text, one) for one in ([patterns] if isinstance(patterns, str) else patterns))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept: S3Gate

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bucket, _, key = urlsplit(self.path).path.lstrip("/").partition("/")
        wishes = list(self._wishes(bucket, unquote(key), body))
        denied = [wish for wish in wishes if not self.kept.allows(wish)]
        if abs(self.kept.ahead) > TOO_SKEWED:
            self._answer(_DENIED, _SKEWED)
        elif denied and self.command == "POST":
            self._answer(_OK, _undeleted(bucket, denied))
        elif denied or not wishes:
            self._answer(_DENIED, _ERROR)
        else:
            self._hand_on(bucket, body)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _serve

    def _wishes(self, bucket: str, key: str, body: bytes) -> Iterator[Wish]:
        arn = f"arn:aws:s3:::{bucket}"
        asked = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if self.command == "POST" and "delete" in asked:
            for found in ElementTree.fromstring(body).iter(f"{_NAMESPACE}Key"):
                yield Wish("s3:DeleteObject", f"{arn}/{found.text}")
        elif key and self.command in _OBJECT:
            yield Wish(_OBJECT[self.command], f"{arn}/{key}")
        elif not key and "list-type" in asked:
            yield Wish("s3:ListBucket", arn, asked.get("prefix", [""])[0])

    def _hand_on(self, bucket: str, body: bytes) -> None:
        onward = HTTPConnection("127.0.0.1", self.kept.behind, timeout=PATIENCE)
        passed = {name: value for name, value in self.headers.items() if name.lower() not in self._dropped()}
        try:
            onward.request(self.command, self.path, body or None, passed)
            answer = onward.getresponse()
            found = answer.read()
        finally:
            onward.close()
        lists = Wish("s3:ListBucket", f"arn:aws:s3:::{bucket}")
        if answer.status == _MISSING and self.command in ("GET", "HEAD") and not self.kept.allows(lists):
            self._answer(_DENIED, _ERROR)
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(found)

    def _dropped(self) -> set[str]:
        return set() if self.kept.knows_conditions else {"if-none-match"}

    def date_time_string(self, timestamp: float | None = None) -> str:
        """What it says the time is."""
        return super().date_time_string((timestamp or time.time()) + self.kept.ahead.total_seconds())

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())


def _undeleted(bucket: str, denied: list[Wish]) -> str:
    keys = [wish.resource.removeprefix(f"arn:aws:s3:::{bucket}/") for wish in denied]
    errors = [f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>no</Message></Error>" for key in keys]
    return f'<DeleteResult xmlns="{_NAMESPACE[1:-1]}">{"".join(errors)}</DeleteResult>'


def policy_of(page: str, *, bucket: str, prefix: str, instance: str) -> dict[str, Any]:
    """The first policy on a page of documentation, with its placeholders filled in."""
    lines = page.partition(".. code-block:: json\n\n")[2].splitlines()
    block: list[str] = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        block.append(line)
    text = "\n".join(block)
    for name, value in (("BUCKET", bucket), ("PREFIX", prefix), ("INSTANCE", instance)):
        text = text.replace(name, value)
    found: dict[str, Any] = json.loads(text)
    return found
