"""The notify protocol, over real datagram sockets: what systemd reads of each message, and that none can do harm."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestagent import systemd
from guestagent.systemd import Notifier, notifier


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """An address as NOTIFY_SOCKET has it, and the socket there."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@guestagent/{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.settimeout(10)
        ours.bind("\0" + address[1:] if address[0] == "@" else address)
        yield address, ours


@pytest.mark.parametrize(
    ("say", "said"),
    [
        (lambda to: to.ready("idle"), "READY=1\nSTATUS=idle"),
        (lambda to: to.status("backup b1: 40 %"), "STATUS=backup b1: 40 %"),
        (lambda to: to.status("two\nREADY=1\n lines"), "STATUS=two READY=1 lines"),
        (lambda to: to.status("half a \ud800 character"), "STATUS=half a ? character"),
        (lambda to: to.stopping("asked to"), "STOPPING=1\nSTATUS=asked to"),
        (lambda to: to.alive(), "WATCHDOG=1"),
        (lambda to: to.extend(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
    ],
)
def test_each_message_is_one_datagram(
    listening: tuple[str, socket.socket], say: Callable[[Notifier], None], said: str
) -> None:
    address, ours = listening

    say(Notifier(address))

    assert ours.recv(4096).decode() == said
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(1)


def test_a_reload_says_when_it_began_on_systemds_own_clock(listening: tuple[str, socket.socket]) -> None:
    address, ours = listening

    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    Notifier(address).reloading()
    after = time.clock_gettime(time.CLOCK_MONOTONIC)

    first, second = ours.recv(4096).decode().split("\n")
    name, _, value = second.partition("=")
    assert (first, name) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before - 0.001 <= int(value) / 1e6 <= after


def test_what_the_environment_says_is_taken_out_of_it(listening: tuple[str, socket.socket]) -> None:
    address, ours = listening
    environment = {
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }

    found = notifier(environment)
    found.alive()

    assert ours.recv(4096) == b"WATCHDOG=1"
    assert found.watchdog == 30.0
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    ("environment", "watchdog"),
    [
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
def test_only_a_watchdog_that_is_ours_is_fed(environment: dict[str, str], watchdog: float) -> None:
    assert notifier(environment).watchdog == watchdog


def test_without_systemd_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    notifier({}).ready("idle")

    assert caplog.messages == []


def test_an_address_of_another_kind_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    notifier({"NOTIFY_SOCKET": "vsock:2:1"}).ready("idle")

    assert caplog.messages == ["NOTIFY_SOCKET names no UNIX socket: vsock:2:1"]


def test_a_manager_that_went_away_is_mentioned_once_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "notify"
    to = Notifier(str(path))

    to.alive()
    to.alive()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(path))
        to.alive()
    to.alive()
    assert len(caplog.records) == 2


def test_a_manager_that_reads_nothing_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(systemd, "PATIENCE", 0.05)
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(path))
        to = Notifier(str(path))
        before = time.monotonic()
        for _ in range(4096):
            to.alive()
            if caplog.records:
                break
    assert "timed out" in caplog.text
    assert time.monotonic() - before < 10
