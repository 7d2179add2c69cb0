"""moto's KMS, on the server that ``moto_s3`` runs: keys, aliases, and encryption bound to its context."""

from __future__ import annotations

import functools
from typing import Any, cast

import boto3

from guestagent.keys import KmsSettings
from tests.servers.moto_s3 import ACCESS_KEY, SECRET_KEY

REGION = "eu-west-1"


def kms_settings(endpoint_url: str) -> KmsSettings:
    """How the server is reached."""
    return KmsSettings(endpoint_url=endpoint_url, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)


def make_key(endpoint_url: str, *, alias: str = "") -> str:
    """Make a key; gives its ARN."""
    arn = cast(str, _client(endpoint_url).create_key()["KeyMetadata"]["Arn"])
    if alias:
        _client(endpoint_url).create_alias(AliasName=f"alias/{alias}", TargetKeyId=arn)
    return arn


@functools.cache
def _client(endpoint_url: str) -> Any:
    session = boto3.session.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name=REGION)
    client: Any = session.client("kms", endpoint_url=endpoint_url)
    return client
