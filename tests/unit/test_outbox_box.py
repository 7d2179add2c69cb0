"""The outbox on disk: durable, in order, one message a subject, and safe from kills and strangers."""

from __future__ import annotations

import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import GuestagentError, UsageError
from guestagent.outbox import box
from guestagent.outbox.box import ASIDE, FIRST_PUT_OFF, LARGEST, LONGEST_PUT_OFF, Letter, Outbox
from tests.unit.dying import killed_at


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox"


@pytest.fixture
def outbox(place: Path, clock: Clock) -> Outbox:
    return Outbox(place, clock=clock)


def put(outbox: Outbox, subject: str, **arguments: Any) -> None:
    outbox.put(subject, "update", arguments)


def drained(outbox: Outbox) -> list[tuple[str, Any]]:
    """What is sent, in order."""
    sent = []
    while (letter := outbox.due()) is not None:
        sent.append((letter.subject, letter.arguments.get("n")))
        outbox.done(letter)
    return sent


def test_messages_come_out_in_order(outbox: Outbox) -> None:
    for number in range(5):
        put(outbox, f"s{number}", n=number)
    assert len(outbox) == 5
    assert drained(outbox) == [(f"s{number}", number) for number in range(5)]
    assert len(outbox) == 0


def test_a_message_keeps_all_that_it_says(outbox: Outbox, place: Path) -> None:
    arguments = {"a": [1, None, {"ü\ud800": 0.5}], "b": True}
    outbox.put("s", "update", arguments, again=(1.0, 2.0))
    expected = Letter(1, "s", "update", arguments, (1.0, 2.0))
    assert outbox.due() == expected
    assert Outbox(place).due() == expected


def test_a_later_change_of_the_arguments_changes_nothing(outbox: Outbox) -> None:
    inner = {"n": 1}
    outbox.put("s", "update", {"inner": inner})
    inner["n"] = 2
    letter = outbox.due()
    assert letter is not None
    assert letter.arguments == {"inner": {"n": 1}}


def test_a_newer_message_takes_the_place_of_the_older(outbox: Outbox, place: Path) -> None:
    put(outbox, "a", n=1)
    put(outbox, "b", n=2)
    put(outbox, "a", n=3)
    assert len(list(place.iterdir())) == 2
    assert drained(Outbox(place)) == [("b", 2), ("a", 3)]
    put(outbox, "c", n=4)
    assert drained(outbox) == [("b", 2), ("a", 3), ("c", 4)]


def test_a_newer_message_that_comes_while_the_older_is_sent_is_kept(outbox: Outbox, place: Path) -> None:
    put(outbox, "a", n=1)
    older = outbox.due()
    assert older is not None
    put(outbox, "a", n=2)
    outbox.done(older)
    outbox.put_off(older)
    assert drained(Outbox(place)) == [("a", 2)]
    put(outbox, "a", n=3)
    assert drained(outbox) == [("a", 3)]


def test_order_holds_over_restarts(place: Path) -> None:
    put(Outbox(place), "z", n=1)
    put(Outbox(place), "a", n=2)
    put(Outbox(place), "m", n=3)
    assert drained(Outbox(place)) == [("z", 1), ("a", 2), ("m", 3)]


def test_what_was_sent_is_not_there_after_a_restart(outbox: Outbox, place: Path) -> None:
    put(outbox, "a", n=1)
    drained(outbox)
    assert list(place.iterdir()) == []
    assert len(Outbox(place)) == 0


def test_all_is_on_disk_before_put_returns(outbox: Outbox, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    put(outbox, "a", n=1)
    (file,) = place.iterdir()
    assert synced == [file.stat().st_ino, place.stat().st_ino]


def test_only_the_agent_may_read_it(outbox: Outbox, place: Path) -> None:
    put(outbox, "a", n=1)
    (file,) = place.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_what_is_to_be_sent_anew_waits_for_it(outbox: Outbox, place: Path, clock: Clock) -> None:
    outbox.put("a", "update", {"n": 1}, again=(60.0, 600.0))
    put(outbox, "b", n=2)
    assert drained(outbox) == [("a", 1), ("b", 2)]
    assert outbox.left() == 60
    clock.now += 59
    assert outbox.due() is None
    clock.now += 1
    assert drained(outbox) == [("a", 1)]
    assert outbox.left() == 600
    assert drained(Outbox(place, clock=clock)) == [("a", 1)]
    clock.now += 600
    assert drained(outbox) == [("a", 1)]
    assert len(outbox) == 0
    assert list(place.iterdir()) == []


def test_what_is_put_off_lets_the_others_go_first(outbox: Outbox, clock: Clock) -> None:
    put(outbox, "a", n=1)
    put(outbox, "b", n=2)
    pauses = []
    for _ in range(8):
        letter = outbox.due()
        assert letter is not None
        assert letter.subject == "a"
        outbox.put_off(letter)
        other = outbox.due()
        assert other is not None
        assert other.subject == "b"
        outbox.done(other)
        assert outbox.due() is None
        pause = outbox.left()
        assert pause is not None
        pauses.append(pause)
        clock.now += pause
        put(outbox, "b", n=2)
    assert pauses[:3] == [FIRST_PUT_OFF, 2 * FIRST_PUT_OFF, 4 * FIRST_PUT_OFF]
    assert pauses[-1] == LONGEST_PUT_OFF


def test_nothing_waits_for_nothing(outbox: Outbox) -> None:
    assert outbox.due() is None
    assert outbox.left() is None


def test_beyond_the_limit_the_oldest_is_given_up_and_told(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(place, limit=2)
    for number in range(4):
        put(outbox, f"s{number}", n=number)
        put(outbox, f"s{number}", n=number)
    assert len(list(place.iterdir())) == 2
    assert [line.getMessage() for line in caplog.records] == [
        f"more than 2 messages wait: giving up update on s{number}" for number in (0, 1)
    ]
    assert drained(outbox) == [("s2", 2), ("s3", 3)]


@pytest.mark.parametrize("bad", [object(), {1, 2}, b"bytes", float("nan"), "circular"])
def test_what_no_broker_could_take_is_refused_at_once(outbox: Outbox, place: Path, bad: Any) -> None:
    if bad == "circular":
        bad = []
        bad.append(bad)
    put(outbox, "a", n=1)
    with pytest.raises(UsageError, match="update on a cannot be sent"):
        put(outbox, "a", n=bad)
    assert drained(Outbox(place)) == [("a", 1)]


def test_what_is_too_big_is_refused_at_once(outbox: Outbox) -> None:
    with pytest.raises(UsageError, match=r"update on a has \d+ bytes; at most 1048576"):
        put(outbox, "a", n="x" * LARGEST)
    put(outbox, "a", n="x" * (LARGEST - 200))
    assert len(outbox) == 1


def test_a_disk_that_refuses_is_an_error_and_leaves_what_was_there(
    outbox: Outbox, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(outbox, "a", n=1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(GuestagentError, match="cannot write down update on a: no space left on device; make room"):
            put(outbox, "a", n=2)
        with pytest.raises(GuestagentError):
            put(outbox, "b", n=3)
    assert len(list(place.iterdir())) == 1
    assert drained(Outbox(place)) == [("a", 1)]
    put(outbox, "b", n=4)
    assert drained(outbox) == [("a", 1), ("b", 4)]


def no_space(handle: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_directory_that_vanished_is_made_again(outbox: Outbox, place: Path) -> None:
    place.rmdir()
    put(outbox, "a", n=1)
    assert drained(Outbox(place)) == [("a", 1)]


def test_a_place_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GuestagentError, match="cannot open the outbox"):
        Outbox(tmp_path / "file" / "outbox")


def test_a_file_that_cannot_be_deleted_is_told(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(outbox, "a", n=1)

    def unlink(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "unlink", unlink)
    assert drained(outbox) == [("a", 1)]
    assert "cannot forget update on a, which will be sent again" in caplog.text


TORN: tuple[bytes, ...] = (
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b'{"format": 2}',
    b'{"format": 1, "number": "x", "subject": "a", "method": "m", "arguments": {}, "again": []}',
    b'{"format": 1, "number": 1, "subject": "a", "method": "m", "arguments": 5, "again": []}',
    b'{"format": 1, "number": 1, "subject": "a", "method": "m", "arguments": {}, "again": 7}',
    b'{"format": 1, "number": 1, "subject": "another", "method": "m", "arguments": {}, "again": []}',
)


@pytest.mark.parametrize("content", TORN)
def test_a_torn_file_is_put_aside_and_told(place: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(place)
    put(outbox, "a", n=1)
    (file,) = place.iterdir()
    file.write_bytes(content)
    put(outbox, "b", n=2)
    again = Outbox(place)
    assert f"{file.name} in the outbox is put aside" in caplog.text
    assert (place / (file.name + ASIDE)).read_bytes() == content
    put(again, "a", n=3)
    caplog.clear()
    assert drained(Outbox(place)) == [("b", 2), ("a", 3)]
    assert caplog.records == []


def test_strangers_are_put_aside_and_told(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(place)
    put(outbox, "a", n=1)
    (place / "directory").mkdir()
    (place / "x.json.new").mkdir()
    (place / "link").symlink_to("/etc/passwd")
    (place / "README").write_text("hello")
    os.mkfifo(place / "fifo.json")
    os.mkfifo(os.fsencode(place) + b"/\xff")
    assert drained(Outbox(place)) == [("a", 1)]
    assert len(caplog.records) == 6
    assert {entry.name for entry in place.iterdir()} == {
        os.fsdecode(name) + ASIDE for name in (b"directory", b"x.json.new", b"link", b"README", b"fifo.json", b"\xff")
    }


def test_a_stranger_that_cannot_be_moved_stays(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(Outbox(place), "a", n=1)
    (place / ("x" * 255)).write_text("")
    assert drained(Outbox(place)) == [("a", 1)]
    assert "it stays where it is" in caplog.text


def test_a_message_that_was_being_written_is_forgotten(place: Path) -> None:
    put(Outbox(place), "a", n=1)
    (place / (box._name("b") + ".new")).write_bytes(b'{"form')
    assert len(Outbox(place)) == 1
    assert [file.name for file in place.iterdir()] == [box._name("a")]


@pytest.mark.parametrize("step", range(12))
def test_a_kill_at_any_moment_loses_nothing_that_was_promised(place: Path, step: int) -> None:
    put(Outbox(place), "a", n=1)
    promised = place.with_name("promised")

    def work() -> None:
        outbox = Outbox(place)
        for number, subject in ((2, "b"), (3, "a")):
            put(outbox, subject, n=number)
            with promised.open("a") as file:
                file.write(f"{subject} ")

    killed_at(step, work)
    done = promised.read_text().split() if promised.exists() else []
    found = dict(drained(Outbox(place)))
    assert found.get("b") in ([2] if "b" in done else [2, None])
    assert found["a"] in ([3] if "a" in done else [1, 3])
    assert list(place.iterdir()) == []


def test_threads_may_put_at_once(outbox: Outbox, place: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: put(outbox, f"s{number % 10}", n=number), range(80)))
    assert len(outbox) == 10
    numbers = [json.loads(file.read_bytes())["number"] for file in place.iterdir()]
    assert len(set(numbers)) == 10


def test_who_waits_is_woken_by_a_message_and_by_hurry(outbox: Outbox) -> None:
    put(outbox, "a", n=1)
    begun = time.monotonic()
    outbox.wait(30)
    outbox.hurry()
    outbox.wait(30)
    assert time.monotonic() - begun < 25
    assert [outbox.hurried(), outbox.hurried()] == [True, False]
    outbox.wait(0.01)
