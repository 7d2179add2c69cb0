"""What an S3 endpoint is asked about itself: whether it keeps conditions, and what the time is."""

from __future__ import annotations

import time
from dataclasses import replace
from email.utils import formatdate

import pytest

from guestagent.errors import StorageDenied, StorageError
from tests.servers.scripted_s3 import Reply, ScriptedS3, refusal

CLOCKS = 5
"""Seconds by which two looks at one clock may differ: a date has whole ones, and the machine may be busy."""

NOTHING = Reply()
EMPTY = Reply(
    body=b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><KeyCount>0</KeyCount>
<IsTruncated>false</IsTruncated></ListBucketResult>"""
)
TAKEN = refusal(412, "PreconditionFailed")


@pytest.mark.parametrize(
    ("replies", "has_it"),
    [
        ((NOTHING, TAKEN), True),
        ((NOTHING, refusal(503, "SlowDown"), TAKEN, Reply(body=b"first")), True),
        ((NOTHING, NOTHING), False),
        ((refusal(501, "NotImplemented"),), False),
    ],
    ids=["kept", "kept at the second try", "ignored", "unknown"],
)
def test_whether_a_store_keeps_conditions_is_seen_by_two_puts(replies: tuple[Reply, ...], has_it: bool) -> None:
    with ScriptedS3(*replies) as server:
        assert server.open("base").has_conditional_put("key") is has_it
        puts = [asked for asked in server.asked if asked.method == "PUT"]
        assert {(asked.path, asked.headers["if-none-match"]) for asked in puts} == {("/bucket/base/key", "*")}
        assert len(puts) == len([reply for reply in replies if reply.body != b"first"])


def test_a_conditional_put_that_is_refused_for_another_reason_tells_it() -> None:
    with ScriptedS3(refusal(403, "AccessDenied")) as server, pytest.raises(StorageDenied, match="cannot write key"):
        server.open().has_conditional_put("key")


def dated(reply: Reply, seconds: float) -> Reply:
    """The reply of a store whose clock is so far ahead."""
    return replace(reply, headers={**reply.headers, "Date": formatdate(time.time() + seconds, usegmt=True)})


@pytest.mark.parametrize("seconds", [0, 300, -300, 86400])
@pytest.mark.parametrize(
    "reply",
    [EMPTY, refusal(403, "RequestTimeTooSkewed"), refusal(404, "NoSuchBucket")],
)
def test_any_answer_tells_the_stores_time(reply: Reply, seconds: int) -> None:
    with ScriptedS3(dated(reply, seconds)) as server:
        ahead = server.open("base").clock_ahead("guest1/")
        (asked,) = server.asked
    assert ahead is not None
    assert abs(ahead.total_seconds() - seconds) < CLOCKS
    assert "prefix=base%2Fguest1%2F" in asked.path
    assert "max-keys=1" in asked.path


@pytest.mark.parametrize("date", ["", "yesterday", "Sun, 99 Nov 2026 20:00:00 GMT"])
def test_a_time_that_nobody_can_read_is_none(date: str) -> None:
    with ScriptedS3(replace(EMPTY, headers={"Date": date})) as server:
        assert server.open().clock_ahead("guest1/") is None


def test_a_time_without_a_zone_is_utc() -> None:
    date = formatdate(time.time(), localtime=False)
    assert date.endswith("-0000")
    with ScriptedS3(replace(EMPTY, headers={"Date": date})) as server:
        ahead = server.open().clock_ahead("guest1/")
    assert ahead is not None
    assert abs(ahead.total_seconds()) < CLOCKS


def test_a_store_that_is_down_tells_no_time() -> None:
    with ScriptedS3(refusal(503, "SlowDown")) as server, pytest.raises(StorageError, match="cannot list guest1/"):
        server.open(max_attempts=1).clock_ahead("guest1/")
