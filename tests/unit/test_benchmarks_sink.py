"""The S3 server of the benchmarks: what clients ask of it, whose bytes it keeps apart, and its link."""

from __future__ import annotations

import base64
import gc
import http.client
import itertools
import random
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from benchmarks.sink import Sink, rate
from benchmarks.sink_shelf import BLOCK, Blob, Refused, Shelf, Stored
from tests.processes import is_gone

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

ETAG = '"0-1"'


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def client(url: str) -> S3Client:
    session = boto3.session.Session(aws_access_key_id="any", aws_secret_access_key="any", region_name="us-east-1")
    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
    return session.client("s3", endpoint_url=url, config=config)


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with Sink(tmp_path_factory.mktemp("sink")) as running:
        yield running


@pytest.fixture
def s3(sink: Sink) -> Iterator[S3Client]:
    with closing(client(sink.url)) as found:
        yield found


def got(s3: S3Client, key: str, **asked: str) -> bytes:
    return s3.get_object(Bucket="b", Key=key, **asked)["Body"].read()  # type: ignore[arg-type]


def status(call: Callable[[], object]) -> int:
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def upload(s3: S3Client, key: str, bodies: dict[int, bytes], **condition: str) -> None:
    made = s3.create_multipart_upload(Bucket="b", Key=key, Metadata={"made": "in parts"})
    where = {"Bucket": "b", "Key": key, "UploadId": made["UploadId"]}
    parts: list[CompletedPartTypeDef] = [
        {"PartNumber": number, "ETag": s3.upload_part(**where, PartNumber=number, Body=body)["ETag"]}  # type: ignore[arg-type]
        for number, body in bodies.items()
    ]
    parts.sort(key=lambda part: part["PartNumber"])
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts}, **condition)  # type: ignore[arg-type]


# What is stored


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
def test_an_object_comes_back_as_it_was_put(s3: S3Client, size: int) -> None:
    put = s3.put_object(Bucket="b", Key="some/one", Body=noise(size), Metadata={"colour": "blue"})
    head = s3.head_object(Bucket="b", Key="some/one")
    assert (head["ContentLength"], head["Metadata"], head["ETag"]) == (size, {"colour": "blue"}, put["ETag"])
    assert got(s3, "some/one") == noise(size)
    assert got(s3, "some/one", ChecksumMode="ENABLED") == noise(size)


def test_parts_make_one_object_whatever_their_order(s3: S3Client) -> None:
    bodies = {2: noise(BLOCK + 5), 1: noise(3 * BLOCK), 7: noise(11)}
    upload(s3, "parts", bodies)
    whole = bodies[1] + bodies[2] + bodies[7]
    assert got(s3, "parts") == whole
    assert s3.head_object(Bucket="b", Key="parts")["Metadata"] == {"made": "in parts"}
    for start, stop in (
        (0, 1),
        (BLOCK - 1, 2 * BLOCK + 1),
        (3 * BLOCK - 1, len(whole) - 5),
        (len(whole) - 1, len(whole)),
    ):
        assert got(s3, "parts", Range=f"bytes={start}-{stop - 1}") == whole[start:stop]


def test_ranges_may_be_open(s3: S3Client) -> None:
    s3.put_object(Bucket="b", Key="range", Body=b"0123456789")
    assert got(s3, "range", Range="bytes=7-") == b"789"
    assert got(s3, "range", Range="bytes=-2") == b"89"
    assert got(s3, "range", Range="bytes=8-99") == b"89"
    assert s3.get_object(Bucket="b", Key="range", Range="bytes=2-3")["ContentRange"] == "bytes 2-3/10"
    assert status(lambda: got(s3, "range", Range="bytes=10-")) == 416


def test_what_is_not_there_is_not_found(s3: S3Client) -> None:
    with pytest.raises(s3.exceptions.NoSuchKey):
        got(s3, "nothing")
    assert status(lambda: s3.head_object(Bucket="b", Key="nothing")) == 404
    assert status(lambda: s3.upload_part(Bucket="b", Key="k", UploadId="u", PartNumber=1, Body=b"x")) == 404
    assert status(lambda: s3.get_bucket_acl(Bucket="b")) == 501


def test_a_condition_is_kept(s3: S3Client) -> None:
    s3.put_object(Bucket="b", Key="once", Body=b"first", IfNoneMatch="*")
    assert status(lambda: s3.put_object(Bucket="b", Key="once", Body=b"second", IfNoneMatch="*")) == 412
    assert status(lambda: upload(s3, "once", {1: b"second"}, IfNoneMatch="*")) == 412
    assert status(lambda: got(s3, "once", IfMatch=ETAG)) == 412
    assert got(s3, "once", IfMatch=s3.head_object(Bucket="b", Key="once")["ETag"]) == b"first"


def test_an_upload_needs_its_parts(s3: S3Client) -> None:
    where = {"Bucket": "b", "Key": "half", "UploadId": s3.create_multipart_upload(Bucket="b", Key="half")["UploadId"]}
    parts = {"Parts": [{"PartNumber": 1, "ETag": ETAG}]}
    assert status(lambda: s3.complete_multipart_upload(**where, MultipartUpload=parts)) == 400  # type: ignore[arg-type]
    s3.abort_multipart_upload(**where)  # type: ignore[arg-type]
    assert status(lambda: s3.upload_part(**where, PartNumber=1, Body=b"x")) == 404  # type: ignore[arg-type]


def test_keys_are_listed_by_page_and_by_folder(s3: S3Client) -> None:
    keys = ["a/1", "a/2 & <3>", "a/b/1", "a/b/2", "a/c/1", "a/ü"]
    for key in keys:
        s3.put_object(Bucket="listed", Key=key, Body=b"123")
    s3.put_object(Bucket="listed2", Key="a/other", Body=b"")
    pages = list(
        s3.get_paginator("list_objects_v2").paginate(Bucket="listed", Prefix="a/", PaginationConfig={"PageSize": 2})
    )
    assert [found["Key"] for page in pages for found in page["Contents"]] == sorted(keys)
    assert {found["Size"] for page in pages for found in page["Contents"]} == {3}
    assert len(pages) == 3
    pages = list(
        s3.get_paginator("list_objects_v2").paginate(
            Bucket="listed", Prefix="a/", Delimiter="/", PaginationConfig={"PageSize": 2}
        )
    )
    assert [found["Prefix"] for page in pages for found in page.get("CommonPrefixes", ())] == ["a/b/", "a/c/"]
    assert [found["Key"] for page in pages for found in page.get("Contents", ())] == ["a/1", "a/2 & <3>", "a/ü"]
    old = s3.get_paginator("list_objects").paginate(Bucket="listed", PaginationConfig={"PageSize": 4})
    assert [found["Key"] for page in old for found in page["Contents"]] == sorted(keys)


def test_objects_are_deleted_one_by_one_and_many_at_once(s3: S3Client) -> None:
    for number in range(4):
        s3.put_object(Bucket="gone", Key=f"k{number}", Body=b"x")
    s3.delete_object(Bucket="gone", Key="k0")
    answer = s3.delete_objects(Bucket="gone", Delete={"Objects": [{"Key": "k1"}, {"Key": "k2"}, {"Key": "never"}]})
    assert not answer.get("Errors")
    assert [found["Key"] for found in s3.list_objects_v2(Bucket="gone")["Contents"]] == ["k3"]


def test_every_bucket_is_there(s3: S3Client) -> None:
    s3.create_bucket(Bucket="any")
    s3.head_bucket(Bucket="other")
    assert "LocationConstraint" in s3.get_bucket_location(Bucket="any")
    assert "Status" not in s3.get_bucket_versioning(Bucket="any")
    assert s3.list_objects_v2(Bucket="any")["KeyCount"] == 0
    s3.delete_bucket(Bucket="any")


# What is said on the wire


def said(sink: Sink, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(sink.url).netloc, timeout=10)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    return answer


def test_a_body_in_frames_is_decoded(sink: Sink, s3: S3Client) -> None:
    body = noise(BLOCK + 100)
    frames = b"".join(
        b"%x;chunk-signature=0\r\n%s\r\n" % (len(piece), piece) for piece in (body[:77], body[77:-9], body[-9:])
    )
    headers = {
        "Content-Encoding": "aws-chunked",
        "X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "X-Amz-Decoded-Content-Length": str(len(body)),
    }
    checksum = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
    end = f"0\r\nx-amz-checksum-crc32:{checksum}\r\n\r\n".encode()
    answer = said(sink, "PUT", "/b/framed", headers, frames + end)
    assert (answer.status, answer.getheader("x-amz-checksum-crc32")) == (200, checksum)
    assert got(s3, "framed", ChecksumMode="ENABLED") == body
    assert s3.head_object(Bucket="b", Key="framed", ChecksumMode="ENABLED")["ChecksumCRC32"] == checksum


def test_a_client_that_waits_is_told_to_continue(sink: Sink) -> None:
    connection = http.client.HTTPConnection(urlsplit(sink.url).netloc, timeout=10)
    connection.putrequest("PUT", "/b/waited")
    connection.putheader("Expect", "100-continue")
    connection.putheader("Content-Length", "3")
    connection.endheaders()
    assert connection.sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(b"abc")
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({"Content-Length": "many"}, b"", 400),
        ({"Content-Encoding": "aws-chunked", "Content-Length": "4"}, b"xy\r\n", 400),
        ({"X": "y" * 70000}, b"", 400),
        ({"Transfer-Encoding": "chunked"}, b"0\r\n\r\n", 501),
        ({"x-amz-copy-source": "b/one"}, b"", 501),
    ],
)
def test_what_is_not_understood_is_refused(sink: Sink, headers: dict[str, str], body: bytes, code: int) -> None:
    assert said(sink, "PUT", "/b/odd", headers, body).status == code


# The process and its storage


def test_objects_outlive_a_stop_and_the_process_does_not(tmp_path: Path) -> None:
    with Sink(tmp_path) as first, closing(client(first.url)) as s3:
        s3.put_object(Bucket="b", Key="kept", Body=noise(BLOCK + 1), Metadata={"colour": "blue"})
        s3.put_object(Bucket="b", Key="dropped", Body=noise(BLOCK))
        s3.delete_object(Bucket="b", Key="dropped")
        assert first.cpu_seconds() > 0
    assert is_gone(first.pid)
    with Sink(tmp_path) as second, closing(client(second.url)) as s3:
        s3.put_object(Bucket="b", Key="new", Body=noise(5 * BLOCK))
        assert s3.head_object(Bucket="b", Key="kept")["Metadata"] == {"colour": "blue"}
        assert got(s3, "kept") == noise(BLOCK + 1)
        assert got(s3, "new") == noise(5 * BLOCK)
        assert "dropped" not in {found["Key"] for found in s3.list_objects_v2(Bucket="b")["Contents"]}


def test_a_sink_that_cannot_start_says_so(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("no json")
    with pytest.raises(RuntimeError, match="has not started"), Sink(tmp_path):
        pass


def test_room_is_used_again_and_never_under_a_reader(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, reserve=2 * BLOCK)
    assert (tmp_path / "arena").stat().st_blocks * 512 == 2 * BLOCK
    for number in range(5):
        shelf.put("b/k", stored(shelf, bytes([number])), new=False)
    reader = shelf.find("b/k").slices(0, 3)
    del shelf.objects["b/k"]
    shelf.put("b/k", stored(shelf, b"x"), new=False)
    assert bytes(next(reader)) == b"\4" * 3
    del reader
    gc.collect()
    del shelf.objects["b/k"]
    assert sorted(shelf.arena.spare) == [0, 1]


def stored(shelf: Shelf, letter: bytes) -> Stored:
    blob = Blob(shelf.arena)
    blob.grow(3)[:] = letter * 3
    return Stored((blob,), {})


def test_a_full_arena_refuses(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, reserve=0, most=1)
    held = stored(shelf, b"a")
    with pytest.raises(Refused, match="InsufficientStorage"):
        stored(shelf, b"b")
    assert held.size == 3


# The link


def test_rates_are_bytes_or_bits() -> None:
    assert (rate("50Mbit"), rate("1000")) == (6_250_000, 1000)


def test_all_connections_share_the_rate(tmp_path: Path) -> None:
    half = noise(2 * 10**6)
    with ExitStack() as stack:
        sink, pool = stack.enter_context(Sink(tmp_path, rate=2e6)), stack.enter_context(ThreadPoolExecutor(2))
        clients = [stack.enter_context(closing(client(sink.url))) for _ in range(2)]
        began = time.monotonic()
        list(pool.map(lambda s3: s3.put_object(Bucket="b", Key=f"{id(s3)}", Body=half), clients))
        between = time.monotonic()
        bodies = list(pool.map(lambda s3: got(s3, f"{id(s3)}"), clients))
        ended = time.monotonic()
    assert bodies == [half, half]
    assert between - began >= 1.5
    assert ended - between >= 1.5


def test_every_answer_is_late_by_the_latency(tmp_path: Path) -> None:
    with Sink(tmp_path, latency=0.25) as sink, closing(client(sink.url)) as s3:
        times = [time.monotonic()]
        for _ in range(10):
            s3.head_bucket(Bucket="b")
            times.append(time.monotonic())
    # A new connection is late by itself, and only that.
    first, *others = (later - earlier for earlier, later in itertools.pairwise(times))
    assert first >= 0.5
    assert 0.25 <= min(others) < 0.5
