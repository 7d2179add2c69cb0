"""local:// without its agent: frames, sockets, bad manners on both sides, and what it leaves behind."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_config import cfg

from guestagent.errors import Busy, ConfigError, Corrupt, GuestagentError, NotFound, Refused, Stalled, UsageError
from guestagent.transport import conversation, driver, frames, listener, oslo, prepare, sockets
from guestagent.transport.client import AgentAbsent, Patience, ask
from guestagent.transport.conversation import Conversation, Incoming, Request
from guestagent.transport.frames import Assembler, pack
from guestagent.transport.listener import Listener, trusted
from guestagent.transport.oslo import expose, messaging
from guestagent.transport.server import QuietServer
from guestagent.transport.sockets import Claim, Place, claim, dial, peer_uid, place_of
from tests.processes import SOON, belongings, eventually
from tests.servers.rpc_agent import RpcAgent, client_of, transport_to
from tests.servers.workplace import workplace

EXCHANGE = "openstack"
"""oslo.messaging's default."""
TOPIC = "guestagent.guest1"
REQUEST: dict[str, Any] = {"ctxt": {}, "message": {"method": "ping"}, "server": None, "call": True, "monitor": None}


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


@contextmanager
def running(
    claimed: Claim, callback: Callable[[list[Any]], None], users: frozenset[int] | None = None
) -> Iterator[Listener]:
    made = Listener(claimed, server="guest1", users=trusted() if users is None else users)
    made.start(callback)
    try:
        yield made
    finally:
        made.cleanup()


@contextmanager
def dialled(place: Place) -> Iterator[socket.socket]:
    with dial(place, patience=SOON) as connection:
        connection.settimeout(SOON)
        yield connection


def said(connection: socket.socket) -> list[Any]:
    """What the other side says until it hangs up."""
    assembler = Assembler()
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            assembler.feed(piece)
    return list(iter(assembler.take, None))


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
    assert 0.2 < time.monotonic() - begun < 5
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


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Root becomes a user who owns nothing; others stay who they are."""
    us = os.geteuid()
    if us == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(us)


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


# -- clients with bad manners


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x01\xff\xff\xff\xff", b"\x01\0\0\0\x02{}", b"\x01\0\0\0\x05nope!", os.urandom(5000)],
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
        assert time.monotonic() - begun < 5
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


@contextmanager
def scripted(claimed: Claim, *answers: bytes, read: bool = True) -> Iterator[None]:
    """A server that says this to one client, whatever it asks, and hangs up."""

    def serve() -> None:
        claimed.socket.settimeout(SOON)
        with claimed.socket.accept()[0] as connection:
            connection.settimeout(SOON)
            if read:
                connection.recv(65536)
            connection.sendall(b"".join(answers))

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join(SOON)


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
    with telling(claimed, pack({"kind": "alive"}), every=0.2, times=4, last=reply):
        assert ask(place, REQUEST, Patience(SOON, monitor=0.5))["reply"] == "at last"


def test_signs_of_life_do_not_put_off_the_deadline(claimed: Claim, place: Place) -> None:
    begun = time.monotonic()
    with telling(claimed, pack({"kind": "alive"}), every=0.2, times=20), pytest.raises(TimeoutError):
        ask(place, REQUEST, Patience(0.5, monitor=2))
    assert time.monotonic() - begun < 2


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


# -- through oslo.messaging


class Endpoint:
    def __init__(self) -> None:
        self.done: list[Any] = []
        self.open = threading.Event()

    @expose
    def note(self, ctxt: dict[str, Any], value: Any) -> str:
        self.done.append(value)
        return "noted"

    @expose
    def hold(self, ctxt: dict[str, Any]) -> None:
        self.done.append("held")
        self.open.wait(SOON)

    @expose
    def big(self, ctxt: dict[str, Any]) -> str:
        return "x" * (frames.LARGEST + 1)


@contextmanager
def serving(url: str, endpoint: Endpoint, *, threads: int = 4) -> Iterator[Any]:
    transport = transport_to(url)
    target = messaging.Target(topic=TOPIC, server="guest1")
    server = messaging.get_rpc_server(
        transport,
        target,
        [endpoint],
        server_cls=QuietServer,
        access_policy=messaging.ExplicitRPCAccessPolicy,
    )
    server.start(override_pool_size=threads)
    try:
        yield server
    finally:
        endpoint.open.set()
        server.stop()
        server.wait()
        transport.cleanup()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"local://{tmp_path}/run"


def test_what_a_client_gave_up_on_is_not_done_later(url: str) -> None:
    endpoint = Endpoint()
    with serving(url, endpoint, threads=1), client_of(url, "guest1") as client, ThreadPoolExecutor(1) as threads:
        holding = threads.submit(client.call, {}, "hold")
        assert eventually(lambda: endpoint.done == ["held"])
        for name in ("call", "cast"):
            with pytest.raises(messaging.MessagingTimeout, match=r"no answer from the agent at .* in time"):
                hurried(client, name, timeout=0.2)
        endpoint.open.set()
        assert holding.result(timeout=SOON) is None
        assert client.call({}, "note", value="last") == "noted"
    assert endpoint.done == ["held", "last"]


def test_a_cast_waits_until_a_thread_has_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint()
    with serving(url, endpoint, threads=1), client_of(url, "guest1") as client, ThreadPoolExecutor(2) as threads:
        threads.submit(client.call, {}, "hold")
        assert eventually(lambda: endpoint.done == ["held"])
        with monkeypatch.context() as patched:
            patched.setattr(driver, "CAST_PATIENCE", 0.2)
            with pytest.raises(messaging.MessagingTimeout):
                client.cast({}, "note", value="given up")
        casting = threads.submit(client.cast, {}, "note", value="waits")
        time.sleep(0.3)
        assert not casting.done()
        endpoint.open.set()
        casting.result(timeout=SOON)
        assert eventually(lambda: endpoint.done == ["held", "waits"])


def test_a_servers_name_is_part_of_the_address_unless_all_are_meant(url: str) -> None:
    endpoint = Endpoint()
    with serving(url, endpoint), client_of(url, "guest1") as client:
        with pytest.raises(AgentAbsent, match="no agent of that name"):
            client.prepare(server="guest2").cast({}, "note", value=2)
        client.prepare(server="guest1").cast({}, "note", value=1)
        client.prepare(server="guest2", fanout=True).cast({}, "note", value="all")
        assert eventually(lambda: endpoint.done == [1, "all"])


def hurried(client: Any, name: str, *, timeout: float) -> Any:
    """As client.call or client.cast of ``note``, with a timeout that oslo's cast has no word for."""
    message = {"method": "note", "args": {"value": name}}
    return client.transport._send(client.target, {}, message, wait_for_reply=name == "call", timeout=timeout)


def test_a_message_that_is_too_big_is_refused_on_both_ways(url: str) -> None:
    endpoint = Endpoint()
    with serving(url, endpoint), client_of(url, "guest1") as client:
        with pytest.raises(messaging.MessageDeliveryFailure, match="is too big; local:// carries at most 16777216"):
            client.call({}, "note", value="x" * frames.LARGEST)
        with pytest.raises(Refused, match="is too big"):
            client.call({}, "big")
        assert endpoint.done == []


def test_nobody_there_is_both_of_oslos_errors(url: str) -> None:
    with client_of(url, "guest1") as client:
        for send in (client.call, client.cast, client.prepare(fanout=True).cast):
            with pytest.raises(AgentAbsent, match="no agent is listening at") as caught:
                send({}, "note", value=1)
            assert isinstance(caught.value, messaging.MessageUndeliverable)
            assert isinstance(caught.value, messaging.MessageDeliveryFailure)
            assert caught.value.routing_key == TOPIC
            assert caught.value.exchange == EXCHANGE


def test_a_busy_server_and_one_that_dies_are_timeouts_to_oslo(claimed: Claim, place: Place) -> None:
    with client_of(f"local://{place.directory}", "guest1") as client:
        with scripted(claimed, pack({"kind": "taken"})), pytest.raises(messaging.MessagingTimeout, match="went away"):
            client.call({}, "note", value=1)
        with scripted(claimed, b"??????"), pytest.raises(messaging.MessageDeliveryFailure, match="a frame of version"):
            client.call({}, "note", value=1)


def test_a_second_server_of_the_topic_is_refused(url: str) -> None:
    endpoint = Endpoint()
    with serving(url, endpoint), client_of(url, "guest1") as client:
        with pytest.raises(Refused, match="another agent listens at"), serving(url, Endpoint()):
            pass
        assert client.call({}, "note", value=1) == "noted"


def test_a_stop_tells_clients_at_once_and_lets_calls_end(url: str) -> None:
    endpoint = Endpoint()
    with serving(url, endpoint) as server, client_of(url, "guest1") as client, ThreadPoolExecutor(1) as threads:
        holding = threads.submit(client.call, {}, "hold")
        assert eventually(lambda: endpoint.done == ["held"])
        server.stop()
        with pytest.raises(AgentAbsent):
            client.call({}, "note", value=1)
        assert not holding.done()
        endpoint.open.set()
        assert holding.result(timeout=SOON) is None
        server.wait()
        server.start()
        assert client.call({}, "note", value=2) == "noted"


def test_a_stop_hangs_up_on_requests_that_are_not_whole(claimed: Claim, place: Place) -> None:
    with running(claimed, lambda _: None) as made, dialled(place) as connection:
        connection.sendall(b"\x01")
        assert eventually(lambda: len(made._reading) == 1)
        made.stop()
        made.stop()
        assert said(connection) == []
        with pytest.raises(NotFound):
            dial(place, patience=1)


def test_a_cleanup_ends_servers_that_nobody_stopped(url: str) -> None:
    before = belongings()
    transport = transport_to(url)
    target = messaging.Target(topic=TOPIC, server="guest1")
    started = transport._driver.listen(target, 1, None)
    started.start(lambda _: None)
    transport._driver.listen(target(topic="another"), 1, None)
    assert any(thread.name == f"local {EXCHANGE}:{TOPIC}" for thread in threading.enumerate())
    transport.cleanup()
    assert belongings() == before
    assert list(Path(url.removeprefix("local://")).iterdir()) == []


def test_nothing_stays_behind(url: str) -> None:
    before = belongings()
    endpoint = Endpoint()
    with serving(url, endpoint), client_of(url, "guest1") as client:
        for number in range(10):
            client.call({}, "note", value=number)
            client.cast({}, "note", value=number)
        with pytest.raises(messaging.RemoteError):
            client.prepare(call_monitor_timeout=2).call({}, "missing")
        with pytest.raises(messaging.RemoteError):
            client.prepare(call_monitor_timeout=0).call({}, "missing")
    assert eventually(lambda: belongings() == before)


@pytest.mark.parametrize("bad", ["local://", "local:///", "local://run/guestagent", "local://user:secret@host/run"])
def test_a_url_without_a_directory_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="three slashes: local:///run/guestagent") as caught:
        transport_to(bad)
    assert "secret" not in str(caught.value)


def test_notifications_are_refused(url: str) -> None:
    made = transport_to(url)._driver
    target = messaging.Target(topic="t")
    with pytest.raises(NotImplementedError, match="local:// carries no notifications"):
        made.send_notification(target, {}, {}, 2.0)
    with pytest.raises(NotImplementedError, match="local:// carries no notifications"):
        made.listen_for_notifications([(target, "info")], None, 1, None)
    made.require_features()
    with pytest.raises(NotImplementedError):
        made.require_features(requeue=True)


def test_the_exchange_is_part_of_the_address(url: str) -> None:
    with serving(url, Endpoint()), client_of(url, "guest1") as client:
        with pytest.raises(AgentAbsent):
            client.prepare(exchange="trove").call({}, "note", value=1)
        assert client.prepare(exchange=EXCHANGE).call({}, "note", value=1) == "noted"
    bare = driver.LocalDriver(None, messaging.TransportURL(cfg.ConfigOpts(), "local", "run/x"))
    assert str(bare._place(messaging.Target(topic="t"))) == "/run/x/:t"


def test_an_idle_agent_sleeps(url: str) -> None:
    with RpcAgent(url, "guest1") as agent, client_of(url, "guest1") as client:
        for number in range(100):
            client.call({}, "echo", value=number)
        time.sleep(0.3)
        before = switches(agent.pid)
        time.sleep(2)
        assert switches(agent.pid) == before
        assert client.call({}, "echo", value="awake")["value"] == "awake"


def switches(pid: int) -> int:
    """How often the threads of a process went to sleep."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("voluntary"))


# -- oslo.messaging itself


def test_a_private_configuration_is_made_fit() -> None:
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    prepare(conf)
    prepare(conf)
    assert conf.oslo_messaging_metrics.metrics_enabled is False


def test_older_versions_have_fewer_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oslo, "find_spec", lambda name: None)
    assert oslo._global_options() == {}


def test_eventlet_stays_where_it_is_in_use_or_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "oslo_messaging")
    monkeypatch.setitem(sys.modules, "eventlet", threading)
    assert not oslo.keep_eventlet_out()
    monkeypatch.delitem(sys.modules, "eventlet")
    monkeypatch.setattr(oslo, "_THREADING", ("no_such_module",))
    assert not oslo.keep_eventlet_out()
    assert "eventlet" not in sys.modules


def test_eventlet_is_hidden_where_threads_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    backend = SimpleNamespace(BackendType=SimpleNamespace(THREADING="threading"), init_backend=chosen.append)
    for name in ("eventlet", "oslo_messaging"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(oslo, "_THREADING", ())
    monkeypatch.setattr(oslo, "import_module", {"oslo_service.backend": backend}.__getitem__)
    assert oslo.keep_eventlet_out()
    assert chosen == ["threading"]
    with pytest.raises(ImportError):
        import_module("eventlet")
    monkeypatch.delitem(sys.modules, "eventlet")


@pytest.mark.skipif(find_spec("cotyledon") is None, reason="oslo.service[threading] is not installed")
def test_the_agent_runs_without_eventlet() -> None:
    code = "from guestagent.transport import oslo; import sys; print(sys.modules['eventlet'])"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("None\n", "")
