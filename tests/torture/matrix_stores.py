"""The stores of the matrix: one face for a directory and for an S3 server behind a gate, on good days and bad."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import boto3
from botocore.config import Config

from guestagent.storage import S3Settings, Storage, open_storage
from tests.servers.faults.disk import TEMPORARY, disk
from tests.servers.faults.gate import FaultGate
from tests.servers.faults.script import Play, Script
from tests.servers.moto_s3 import ACCESS_KEY, SECRET_KEY

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "matrix"
PATIENCE = 20.0
READ_TIMEOUT = 2
STALL = 2.6
ATTEMPTS = 3


class Place(Protocol):
    """A store that can be made to go wrong, and looked into without the code under test."""

    @property
    def url(self) -> str:
        """What the configuration names."""

    def open(self, root: str) -> Storage:
        """The store as the code under test sees it."""

    def going_wrong(self, script: Script, *, lately: Iterable[str] = ()) -> AbstractContextManager[Play]:
        """Have it go wrong for as long, and settle afterwards; ``lately`` are keys that were put a moment ago."""

    def objects(self) -> dict[str, bytes]:
        """What really lies in it."""

    def drop(self, keys: Iterable[str]) -> None:
        """Remove objects."""

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Put objects there."""


class Directory:
    """A store in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def open(self, root: str) -> Storage:
        return open_storage(root)

    @contextmanager
    def going_wrong(self, script: Script, *, lately: Iterable[str] = ()) -> Iterator[Play]:
        with disk(self.root, script, stall=STALL) as play:
            yield play

    def objects(self) -> dict[str, bytes]:
        found = (path for path in self.root.rglob("*") if path.is_file() and TEMPORARY not in path.name)
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            (self.root / key).unlink()

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, body in objects.items():
            (self.root / key).parent.mkdir(parents=True, exist_ok=True)
            (self.root / key).write_bytes(body)


class Bucket:
    """A prefix of a bucket, on a server that listens on port ``behind``; the code under test comes by a gate."""

    def __init__(self, gate: FaultGate, prefix: str, *, bucket: str = BUCKET) -> None:
        self.gate = gate
        self.url = f"s3://{bucket}/{prefix}"
        self._bucket, self._prefix = bucket, prefix
        self._client = direct(gate.behind)
        self._kept: dict[tuple[str, str], bytes] = {}
        try:
            self._client.create_bucket(Bucket=bucket)
        except self._client.exceptions.BucketAlreadyOwnedByYou:
            return

    def settings(self) -> S3Settings:
        return S3Settings(
            endpoint_url=self.gate.url,
            region_name="us-east-1",
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            max_attempts=ATTEMPTS,
            connect_timeout=5,
            read_timeout=READ_TIMEOUT,
        )

    def open(self, root: str) -> Storage:
        return open_storage(root, s3=self.settings())

    @contextmanager
    def going_wrong(self, script: Script, *, lately: Iterable[str] = ()) -> Iterator[Play]:
        try:
            yield self.gate.begin(script, lately=(f"{self._prefix}/{key}" for key in lately))
        finally:
            settle(lambda: not self.gate.busy)
            self.gate.deliver()
            self.gate.begin(Script())

    def objects(self) -> dict[str, bytes]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/")
        found = [(one["Key"], one["ETag"]) for page in pages for one in page.get("Contents", ())]
        self._kept = {one: self._kept.get(one) or self._body(one[0]) for one in found}
        return {key.removeprefix(f"{self._prefix}/"): body for (key, _), body in self._kept.items()}

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}")

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, body in objects.items():
            self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}", Body=body)

    def _body(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()


def direct(port: int) -> S3Client:
    """A client that no fault reaches."""
    session = boto3.session.Session(
        aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name="us-east-1"
    )
    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3})
    return session.client("s3", endpoint_url=f"http://127.0.0.1:{port}", config=config)


def settle(happened: Callable[[], bool]) -> None:
    """Wait until something is so."""
    limit = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > limit:
            raise RuntimeError("requests that stall do not come to an end")
        time.sleep(0.02)
