"""local:// among clients and servers with bad manners."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Corrupt, GuestagentError, NotFound, Stalled
from guestagent.transport import conversation, frames, listener
from guestagent.transport.client import Patience, ask
from guestagent.transport.conversation import Conversation, Incoming, Request
from guestagent.transport.frames import pack
from guestagent.transport.listener import trusted
from guestagent.transport.oslo import messaging
from guestagent.transport.sockets import Claim, Place, claim, place_of
from tests.fakes.local import (
    EXCHANGE,
    REQUEST,
    TOPIC,
    Endpoint,
    as_somebody_else,
    dialled,
    running,
    said,
    scripted,
    serving,
)
from tests.processes import SOON, eventually
from tests.servers.workplace import workplace


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_of(tmp_path, exchange=EXCHANGE, topic=TOPIC)


@pytest.fixture
def claimed(place: Place) -> Iterator[Claim]:
    made = claim(place)
    yield made
    made.withdraw()


@pytest.fixture
def listening(claimed: Claim) -> Iterator[list[Incoming]]:
    """A listener whose requests arrive in the list that it gives."""
    arrived: list[Incoming] = []
    with running(claimed, arrived.extend):
        yield arrived


# -- clients with bad manners


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\xff\xff\xff\xff",
        b"\x01\0\0\0\x02{}",
        b"\x01\0\0\0\x05nope!",
        bytes(range(255, 0, -1)) * 20,
    ],
)
def test_garbage_hurts_nobody_else(listening: list[Incoming], place: Place, garbage: bytes) -> None:
    with dialled(place) as good, dialled(place) as bad:
        good.sendall(pack(REQUEST)[:10])
        with suppress(BrokenPipeError, ConnectionResetError):
            bad.sendall(garbage)
        assert said(bad) == []
        good.sendall(pack(REQUEST)[10:])
        assert eventually(lambda: len(listening) == 1)
        listening[0].acknowledge()
        listening[0].reply({"done": True})
        assert said(good) == [{"kind": "taken"}, {"kind": "reply", "reply": {"done": True}}]


def test_a_client_that_stops_inside_a_frame_is_cut_off(
    listening: list[Incoming], place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conversation, "REQUEST_PATIENCE", 0.2)
    with dialled(place) as silent, dialled(place) as gone, dialled(place) as slow:
        slow.sendall(pack(REQUEST)[:3])
        gone.sendall(pack(REQUEST)[:7])
        gone.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        assert said(gone) == said(silent) == said(slow) == []
        assert time.monotonic() - begun < SOON
    assert caplog.text.count("did not come in time") == 2
    assert caplog.text.count("the connection ended inside a frame") == 1
    assert listening == []


def test_whoever_only_looks_is_not_worth_a_word(
    listening: list[Incoming], place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with dialled(place):
        pass
    with dialled(place) as second:
        second.shutdown(socket.SHUT_WR)
        assert said(second) == []
    assert caplog.text == ""


def test_strangers_are_not_listened_to(claimed: Claim, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    arrived: list[Any] = []
    with running(claimed, arrived.extend, users=frozenset({os.geteuid() + 1})), dialled(place) as connection:
        assert said(connection) == []
        with pytest.raises(GuestagentError, match="hung up before it took the request"):
            ask(place, REQUEST, Patience(SOON))
    assert f"it runs as user {os.geteuid()}" in caplog.text
    assert arrived == []
    assert trusted() == {0, os.geteuid()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_kernel_says_who_is_a_stranger() -> None:
    endpoint = Endpoint()
    with workplace() as directory, serving(f"local://{directory}", endpoint):
        place = place_of(directory, exchange=EXCHANGE, topic=TOPIC)
        (directory / place.name).chmod(0o666)
        with as_somebody_else(), dialled(place) as connection:
            with suppress(BrokenPipeError):
                connection.sendall(pack(REQUEST | {"message": {"method": "note", "args": {"value": 1}}}))
            assert said(connection) == []
    assert endpoint.done == []


def test_more_clients_than_there_is_room_for_wait(
    claimed: Claim, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MOST", 2)
    arrived: list[Incoming] = []
    with running(claimed, arrived.extend), ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, place, REQUEST, Patience(SOON)) for _ in range(4)]
        for done in range(4):
            assert eventually(lambda done=done: len(arrived) > done)  # type: ignore[misc]
            time.sleep(0.05)
            assert len(arrived) <= done + 2
            arrived[done].reply(done)
        assert sorted(one.result(timeout=SOON)["reply"] for one in asking) == [0, 1, 2, 3]


def test_a_server_without_descriptors_goes_on_when_it_has_some(
    claimed: Claim, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    class Choking(socket.socket):
        failures = 2

        def accept(self) -> tuple[socket.socket, Any]:
            if self.failures:
                self.failures -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    claimed.socket = Choking(fileno=claimed.socket.detach())
    claimed.socket.setblocking(False)
    arrived: list[Incoming] = []
    with running(claimed, arrived.extend), dialled(place) as connection:
        connection.sendall(pack(REQUEST))
        assert eventually(lambda: len(arrived) == 1)
        arrived[0].reply()
    assert caplog.text.count("Too many open files") == 2


def test_a_request_that_cannot_be_handed_on_is_not_taken(
    claimed: Claim, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: list[Any]) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    with running(claimed, full):
        for _ in range(2):
            with pytest.raises(GuestagentError, match="hung up before it took the request; its log says why"):
                ask(place, REQUEST, Patience(SOON))
    assert caplog.text.count("RuntimeError: cannot schedule new futures") == 2


def test_another_servers_request_is_not_taken(listening: list[Incoming], place: Place) -> None:
    with pytest.raises(NotFound, match=f"no agent of that name is listening at {place}"):
        ask(place, REQUEST | {"server": "guest2"}, Patience(SOON))
    assert listening == []


# -- one conversation


@pytest.fixture
def pair() -> Iterator[tuple[Conversation, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(SOON)
    with ours, theirs:
        yield Conversation(ours), theirs


def incoming(talk: Conversation, **changes: Any) -> Incoming:
    return Incoming(Request.of(REQUEST | changes), talk)


def test_nothing_to_hear_yet(pair: tuple[Conversation, socket.socket]) -> None:
    assert pair[0].hear() is None


def test_a_cast_ends_when_it_is_taken(pair: tuple[Conversation, socket.socket]) -> None:
    message = incoming(pair[0], call=False)
    message.acknowledge()
    message.reply("for nobody")
    assert said(pair[1]) == [{"kind": "taken"}]


def test_what_is_put_back_is_not_taken(pair: tuple[Conversation, socket.socket]) -> None:
    incoming(pair[0]).requeue()
    assert pair[0].closed
    assert said(pair[1]) == []


def test_signs_of_life_end_with_the_call(pair: tuple[Conversation, socket.socket]) -> None:
    message = incoming(pair[0], monitor=2)
    assert message.client_timeout == 2
    message.heartbeat()
    message.reply(None)
    with pytest.raises(messaging.MessageDeliveryFailure, match="is gone"):
        message.heartbeat()
    assert said(pair[1]) == [{"kind": "alive"}, {"kind": "reply", "reply": None}]


def test_a_client_that_is_gone_when_its_turn_comes(
    pair: tuple[Conversation, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    pair[1].close()
    message = incoming(pair[0])
    with pytest.raises(messaging.MessageDeliveryFailure, match=r"the client of .* is gone"):
        message.acknowledge()
    assert pair[0].closed
    message.reply("too late")
    assert "cannot answer" in caplog.text


def test_a_client_that_does_not_read_is_left(
    pair: tuple[Conversation, socket.socket], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conversation, "ANSWER_PATIENCE", 0.2)
    incoming(pair[0]).reply("x" * (4 << 20))
    assert "timed out" in caplog.text
    assert pair[0].closed


class Odd(Exception):
    """Nothing that JSON knows how to write."""

    def __init__(self) -> None:
        super().__init__(object())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"reply": object()}, "UsageError"),
        ({"reply": "x" * (frames.LARGEST + 1)}, "Refused"),
        ({"failure": (Odd, Odd(), None)}, "GuestagentError"),
        ({"failure": (ValueError, ValueError("x" * frames.LARGEST), None)}, "Refused"),
    ],
)
def test_what_cannot_be_answered_is_answered_with_the_reason(
    pair: tuple[Conversation, socket.socket], answer: dict[str, Any], kind: str
) -> None:
    incoming(pair[0]).reply(**answer)
    [body] = said(pair[1])
    assert body["kind"] == "failure"
    assert json.loads(body["failure"])["class"] == kind


# -- servers with bad manners


@pytest.mark.parametrize("read", [True, False])
def test_a_server_that_hangs_up(claimed: Claim, place: Place, read: bool) -> None:
    with (
        scripted(claimed, read=read),
        pytest.raises(GuestagentError, match=f"the agent at {place} hung up before it took the request"),
    ):
        ask(place, REQUEST | {"message": {"long": "x" * (1 << 20)}}, Patience(SOON))


@pytest.mark.parametrize(
    ("answers", "kind", "message"),
    [
        ([pack({"kind": "taken"})], Stalled, "went away before it answered"),
        ([pack({"kind": "alive"}), b"\x01"], Stalled, "went away before it answered"),
        ([pack({"kind": "later"})], Corrupt, "answers 'later'"),
        ([pack({})], Corrupt, "answers None"),
        ([b"SSH-2.0-OpenSSH"], Corrupt, "version 83"),
    ],
)
def test_a_server_that_says_something_else(
    claimed: Claim, place: Place, answers: list[bytes], kind: type[GuestagentError], message: str
) -> None:
    with scripted(claimed, *answers), pytest.raises(kind, match=message):
        ask(place, REQUEST, Patience(SOON))


@contextmanager
def telling(claimed: Claim, frame: bytes, *, every: float, times: int, last: bytes = b"") -> Iterator[None]:
    """A server that reads nothing, says something now and then, and one thing at the end."""
    over = threading.Event()

    def serve() -> None:
        claimed.socket.settimeout(SOON)
        with claimed.socket.accept()[0] as connection, suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(times):
                over.wait(every)
                connection.sendall(frame)
            connection.sendall(last)
            over.wait(SOON)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    over.set()
    thread.join(SOON)


def test_each_sign_of_life_renews_the_patience(claimed: Claim, place: Place) -> None:
    reply = pack({"kind": "reply", "reply": "at last"})
    with telling(claimed, pack({"kind": "alive"}), every=0.5, times=4, last=reply):
        assert ask(place, REQUEST, Patience(SOON, monitor=1.9))["reply"] == "at last"


def test_signs_of_life_do_not_put_off_the_deadline(claimed: Claim, place: Place) -> None:
    begun = time.monotonic()
    with telling(claimed, pack({"kind": "alive"}), every=0.2, times=200), pytest.raises(TimeoutError):
        ask(place, REQUEST, Patience(0.5, monitor=SOON))
    assert time.monotonic() - begun < SOON


def test_a_server_that_does_not_read_is_given_up(claimed: Claim, place: Place) -> None:
    with telling(claimed, b"", every=SOON, times=1), pytest.raises(TimeoutError):
        ask(place, REQUEST | {"message": {"long": "x" * (4 << 20)}}, Patience(0.3))


def test_patience_ends() -> None:
    assert Patience(None).left() is None
    assert 0 < (Patience(5).left() or 0) <= 5
    assert 0 < (Patience(None, monitor=2).left() or 0) <= 2
    assert 0 < (Patience(60, monitor=2).left() or 0) <= 2
    with pytest.raises(TimeoutError):
        Patience(0).left()
    short = Patience(60, monitor=0.05)
    time.sleep(0.1)
    with pytest.raises(TimeoutError):
        short.left()
    short.renew()
    assert short.left()
