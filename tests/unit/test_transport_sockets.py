"""Frames, and the sockets of local://: what they are called, who may listen, who may connect."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Busy, ConfigError, Corrupt, GuestagentError, NotFound, Refused, Stalled, UsageError
from guestagent.transport import frames, sockets
from guestagent.transport.conversation import Request
from guestagent.transport.frames import Assembler, pack
from guestagent.transport.sockets import Claim, Place, claim, dial, peer_uid, place_of
from tests.fakes.local import (
    EXCHANGE,
    REQUEST,
    TOPIC,
    as_somebody_else,
    dialled,
)
from tests.processes import SOON
from tests.servers.workplace import workplace

# -- frames


def test_a_frame_comes_back_however_it_is_cut() -> None:
    bodies: list[dict[str, Any]] = [{"a": "ünïcode \U0001f600"}, {}, {"deep": [[{"b": None}]], "big": 2**70}]
    stream = b"".join(pack(body) for body in bodies)
    for step in (1, 3, 7, len(stream)):
        assembler = Assembler()
        taken: list[Any] = []
        for at in range(0, len(stream), step):
            assembler.feed(stream[at : at + step])
            taken += list(iter(assembler.take, None))
        assert taken == bodies
        assert assembler.empty


def test_a_frame_has_the_layout_that_is_documented() -> None:
    assert pack({"a": 1}) == b"\x01" + struct.pack("!I", 8) + b'{"a": 1}'


def test_what_is_no_json_is_not_packed() -> None:
    circle: dict[str, Any] = {}
    circle["itself"] = circle
    bodies: list[dict[str, Any]] = [{"a": object()}, circle]
    for body in bodies:
        with pytest.raises(UsageError, match="a message that is no JSON"):
            pack(body)


def test_a_frame_that_is_too_big_is_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = pack({"a": "x" * 100})
    monkeypatch.setattr(frames, "LARGEST", len(fits) - 5)
    assert pack({"a": "x" * 100}) == fits
    with pytest.raises(Refused, match=r"a message of 110 bytes is too big; local:// carries at most 109 bytes"):
        pack({"a": "x" * 101})
    monkeypatch.setattr(frames, "LARGEST", len(fits) - 6)
    assembler = Assembler()
    assembler.feed(fits[:5])
    with pytest.raises(Corrupt, match="a frame of 109 bytes, where at most 108"):
        assembler.take()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"\x02\0\0\0\x02{}", "a frame of version 2; this side speaks version 1"),
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of version 71"),
        (b"\x01\0\0\0\x02{]", "no JSON"),
        (b"\x01\0\0\0\x02\xff\xff", "no JSON"),
        (b"\x01\0\0\0\0", "no JSON"),
        (b"\x01\0\x01\x86\xa0" + b"[" * 100_000, "no JSON"),
        (b"\x01\0\0\0\x02[]", "no object but list"),
        (b"\x01\0\0\0\x04null", "no object but NoneType"),
    ],
)
def test_what_is_no_frame_is_corrupt(stream: bytes, message: str) -> None:
    assembler = Assembler()
    assembler.feed(stream)
    with pytest.raises(Corrupt, match=message):
        assembler.take()


@pytest.mark.parametrize(
    ("name", "value"),
    [("ctxt", None), ("ctxt", []), ("message", "x"), ("server", 1), ("call", None), ("call", 1), ("monitor", "1")],
)
def test_a_request_of_wrong_kinds_is_corrupt(name: str, value: Any) -> None:
    assert Request.of(REQUEST | {"server": "x", "monitor": 2}).server == "x"
    with pytest.raises(Corrupt, match=f"a wrong '{name}'"):
        Request.of(REQUEST | {name: value})
    with pytest.raises(Corrupt):
        Request.of({})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_of(tmp_path, exchange=EXCHANGE, topic=TOPIC)


@pytest.fixture
def claimed(place: Place) -> Iterator[Claim]:
    made = claim(place)
    yield made
    made.withdraw()


# -- sockets


def test_names_are_readable_and_never_too_long(tmp_path: Path) -> None:
    def name(exchange: str, topic: str) -> str:
        return place_of(tmp_path, exchange=exchange, topic=topic).name

    guest = "2f8c0a4e-1111-2222-3333-444455556666"
    assert name("trove", f"guestagent.{guest}") == f"trove:guestagent.{guest}"
    assert name("a/..", "../b:c\n") == "a%2F..:..%2Fb%3Ac%0A"
    pairs = [("a", "b:c"), ("a:b", "c"), ("", "a:b:c"), ("ü" * 60, "t"), ("ü" * 60, "u")]
    names = [name(*pair) for pair in [*pairs, ("x", "g" * 71), ("x", "g" * 70)]]
    assert len(set(names)) == len(names)
    assert max(len(one) for one in names) == 72
    for one in names:
        claim(Place(tmp_path, one)).withdraw()


def test_a_directory_may_be_deep_and_is_made_for_us_alone(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 200) / "ünï code" / "run"
    place = place_of(directory, exchange="e", topic="t")
    claimed = claim(place)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / place.name).stat().st_mode & 0o777 == 0o600
    with dialled(place) as connection:
        assert peer_uid(connection) == os.geteuid()
    claimed.withdraw()
    assert list(directory.iterdir()) == []


def test_nobody_there(place: Place, tmp_path: Path) -> None:
    for nowhere in (place, place_of(tmp_path / "missing", exchange="e", topic="t")):
        with pytest.raises(NotFound, match=f"no agent is listening at {nowhere}; start it"):
            dial(nowhere, patience=None)


def test_a_dead_servers_socket_is_taken_over(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as dead, short(place) as path:
        dead.bind(path)
        dead.listen()
    with pytest.raises(NotFound, match="no agent is listening"):
        dial(place, patience=1)
    claimed = claim(place)
    with dialled(place):
        pass
    claimed.withdraw()


@contextmanager
def short(place: Place) -> Iterator[str]:
    """The place's path, by a way that a socket takes."""
    descriptor = os.open(place.directory, os.O_PATH)
    try:
        yield f"/proc/self/fd/{descriptor}/{place.name}"
    finally:
        os.close(descriptor)


def test_a_live_servers_place_is_not_taken(claimed: Claim, place: Place) -> None:
    with pytest.raises(Refused, match=f"another agent listens at {place}; stop it"):
        claim(place)
    with dialled(place):
        pass


def test_a_server_without_room_is_alive_and_makes_clients_wait(claimed: Claim, place: Place) -> None:
    waiting = [dial(place, patience=1) for _ in range(sockets.BACKLOG + 1)]
    begun = time.monotonic()
    with pytest.raises(Stalled, match="takes no more connections"):
        dial(place, patience=0.3)
    assert 0.2 < time.monotonic() - begun < SOON
    with pytest.raises(Refused, match="another agent listens"):
        claim(place)
    for one in waiting:
        one.close()


def test_what_is_no_socket_is_left_alone(place: Place) -> None:
    (place.directory / place.name).write_text("mine")
    with pytest.raises(Refused, match="is no socket; move it away"):
        claim(place)
    assert (place.directory / place.name).read_text() == "mine"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    place = place_of(tmp_path / "run", exchange="e", topic="t")
    claimed = claim(place)
    place.directory.chmod(mode)
    for use in (claim, lambda place: dial(place, patience=1)):
        with pytest.raises(ConfigError, match=f"others may write to directory {place.directory}; chmod go-w"):
            use(place)
    place.directory.chmod(0o755)
    with dialled(place):
        pass
    claimed.withdraw()


def test_a_directory_of_somebody_else_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = claim(place)
    if os.geteuid() == 0:
        os.chown(place.directory, 4321, -1)
        with dialled(place):
            pass  # root goes wherever it is told to
    owner = place.directory.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 4322)
    with pytest.raises(ConfigError, match=f"belongs to user {owner}; give it to user 4322"):
        claim(place)
    with pytest.raises(ConfigError, match=f"belongs to user {owner}; be root or its owner"):
        dial(place, patience=1)
    claimed.withdraw()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot use directory .*: Not a directory; make it"):
        claim(place_of(tmp_path / "file" / "run", exchange="e", topic="t"))
    with pytest.raises(GuestagentError, match=r"cannot reach the agent at .*: Not a directory"):
        dial(place_of(tmp_path / "file", exchange="e", topic="t"), patience=1)


def test_a_place_where_nothing_can_be_bound(tmp_path: Path) -> None:
    with pytest.raises(GuestagentError, match=r"cannot listen at .*: AF_UNIX path too long"):
        claim(Place(tmp_path, "n" * 120))
    with pytest.raises(GuestagentError, match=r"cannot reach the agent at .*: AF_UNIX path too long"):
        dial(Place(tmp_path, "n" * 120), patience=1)


def test_whoever_may_not_connect_is_told_so() -> None:
    with workplace() as directory:
        place = place_of(directory, exchange="e", topic="t")
        claimed = claim(place)
        (directory / place.name).chmod(0)
        with (
            as_somebody_else(),
            pytest.raises(Refused, match=r"not allowed to talk to .*; be root or the agent's user"),
        ):
            dial(place, patience=1)
        claimed.withdraw()


def test_two_that_start_at_once_do_not_disturb_each_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LOCK_PATIENCE", 0.1)
    descriptor = os.open(place.directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(Busy, match=f"directory {place.directory} is locked"):
        claim(place)
    monkeypatch.setattr(sockets, "LOCK_PATIENCE", SOON)
    with ThreadPoolExecutor(8) as threads:
        starts = [threads.submit(claim, place) for _ in range(8)]
        time.sleep(0.1)
        os.close(descriptor)
        refusals = [start.exception(timeout=SOON) for start in starts]
    assert sum(isinstance(one, Refused) for one in refusals) == 7
    next(start for start, refusal in zip(starts, refusals, strict=True) if not refusal).result().withdraw()


def test_a_withdrawal_removes_our_own_socket_only(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    first = claim(place)
    (place.directory / place.name).unlink()
    second = claim(place)
    first.withdraw()
    with dialled(place):
        pass
    (place.directory / place.name).unlink()
    assert caplog.text == ""
    second.withdraw()
    second.withdraw()
    assert caplog.text.count(f"cannot remove {place}: No such file") == 1
    assert list(place.directory.iterdir()) == []
