"""Upload and download as Trove's own guest does them: one stream, small reads, MD5 of everything, one part at a time.

A stand-alone script, the end of a pipeline of ``rivals``::

    gzip | python race_trove.py put BUCKET KEY          python race_trove.py get BUCKET KEY | gzip -d

Trove's Swift driver reads 64 KiB at a time, sums up each segment and the whole, and sends segments one after another;
this does the same with the parts of a multipart upload.
"""

from __future__ import annotations

import hashlib
import os
import sys
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

READ = 64 << 10
PART = 64 << 20


def put(client: S3Client, bucket: str, key: str) -> str:
    """Store what comes on stdin; gives its MD5."""
    whole = hashlib.md5()
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts: list[Any] = []
    while part := _part(whole):
        number = len(parts) + 1
        md5 = b64encode(hashlib.md5(part).digest()).decode("ascii")
        sent = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=part, ContentMD5=md5)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    return whole.hexdigest()


def _part(whole: Any) -> bytes:
    """The next part of stdin, empty at its end."""
    pieces: list[bytes] = []
    size = 0
    while size < PART and (piece := sys.stdin.buffer.read(READ)):
        whole.update(piece)
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def get(client: S3Client, bucket: str, key: str) -> str:
    """Write an object to stdout; gives its MD5."""
    whole = hashlib.md5()
    for piece in client.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(READ):
        whole.update(piece)
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    return whole.hexdigest()


def main() -> None:
    """Do what the command line says."""
    verb, bucket, key = sys.argv[1:]
    # Swift asks for no further checksum.
    plain = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    client = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], config=plain)
    print((put if verb == "put" else get)(client, bucket, key), file=sys.stderr)


if __name__ == "__main__":
    main()
