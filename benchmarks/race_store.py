"""The store of a race: a local S3 sink, and what a benchmark asks it for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config

from benchmarks.sink import Sink

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "backups"
KEY = ("benchmark", "not-a-secret")


class Store:
    """A sink that runs inside the context; ``slow`` puts another link before what it holds."""

    def __init__(self, directory: Path, *, reserve: int = 0) -> None:
        self._directory = directory
        self._reserve = reserve
        self._sink: Sink | None = None
        self._client: S3Client | None = None

    def __enter__(self) -> Self:
        self.serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.sink.url

    @property
    def sink(self) -> Sink:
        """The sink that runs."""
        assert self._sink is not None, "the store is not running"
        return self._sink

    def serve(self, *, rate: float | None = None, latency: float = 0.0) -> None:
        """Serve what is there from now on over this link: ``rate`` in bytes a second, ``latency`` in seconds."""
        self._stop()
        self._sink = Sink(self._directory, rate, latency=latency, reserve=self._reserve)
        self._sink.__enter__()
        self._client = self._made()

    def size(self, prefix: str) -> int:
        """Bytes of all objects below a prefix."""
        return sum(one["Size"] for one in self._objects(prefix))

    def remove(self, prefix: str) -> None:
        """Remove all objects below a prefix."""
        for one in list(self._objects(prefix)):
            self.client.delete_object(Bucket=BUCKET, Key=one["Key"])

    @property
    def client(self) -> S3Client:
        """A client of the benchmark's own."""
        assert self._client is not None, "the store is not running"
        return self._client

    def _objects(self, prefix: str) -> Iterator[Any]:
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            yield from page.get("Contents", [])

    def _made(self) -> S3Client:
        access, secret = KEY
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}),
        )

    def _stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._sink is not None:
            self._sink.__exit__(None, None, None)
            self._sink = None
