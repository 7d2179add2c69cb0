"""moto's S3 server in this process: starts in a moment, knows most of the API, and checks no signature."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY = "testing"
SECRET_KEY = "only-for-tests"


@contextmanager
def moto_s3() -> Iterator[str]:
    """Run the server; gives its endpoint URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_bucket(
    endpoint_url: str, name: str, *, access_key_id: str = ACCESS_KEY, secret_access_key: str = SECRET_KEY
) -> None:
    """Make a bucket at any S3 endpoint."""
    _client(endpoint_url, access_key_id, secret_access_key).create_bucket(Bucket=name)


@functools.cache
def _client(endpoint_url: str, access_key_id: str, secret_access_key: str) -> S3Client:
    session = boto3.session.Session(
        aws_access_key_id=access_key_id, aws_secret_access_key=secret_access_key, region_name="us-east-1"
    )
    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3})
    return session.client("s3", endpoint_url=endpoint_url, config=config)
