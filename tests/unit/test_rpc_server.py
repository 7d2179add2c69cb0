"""The server as a whole, the dispatcher's manners, the client's errors, and brokers that are away."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guestagent.errors import Busy, ConfigError, GuestagentError, Refused, UsageError
from guestagent.rpc import client as client_module
from guestagent.rpc.client import AgentClient, Unreachable
from guestagent.rpc.dispatch import Dispatcher
from guestagent.rpc.server import RpcServer
from guestagent.rpc.wire import Alone, open_transport
from guestagent.transport.oslo import expose, messaging
from tests.fakes.backups import number
from tests.fakes.rpc import CONTEXT, PASSWORD, Agent, bare_conf, client_of, serving
from tests.processes import SOON, eventually
from tests.servers.ports import free_ports

QUICK = 0.3


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"local://{tmp_path}/rpc"


@pytest.fixture
def nowhere() -> str:
    """The URL of a broker that is away."""
    return f"rabbit://guest:{PASSWORD.replace(' ', '-')}@127.0.0.1:{free_ports(1)[0]}/v"


def dispatched(agent: Agent, **message: Any) -> Any:
    """What the dispatcher gives, or the error that a caller gets."""
    ctxt = message.pop("ctxt", CONTEXT)
    incoming = SimpleNamespace(ctxt=ctxt, message=message, client_timeout=message.pop("client_timeout", None))
    try:
        return Dispatcher([agent.trove(), agent.ours()], None).dispatch(incoming)
    except messaging.ExpectedException as expected:
        kind, error, trace = expected.exc_info
        assert kind is type(error)
        assert trace is error.__cause__ is None
        assert error.__suppress_context__
        return error


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, "the method must be a name"),
        ({"method": 5}, "the method must be a name"),
        ({"method": ["ping"]}, "the method must be a name"),
        ({"method": "rpc_ping", "args": None}, "the arguments of 'rpc_ping' must be a table"),
        ({"method": "rpc_ping", "args": ["x"]}, "the arguments of 'rpc_ping' must be a table"),
        ({"method": "rpc_ping", "namespace": ["backup"]}, "the namespace of 'rpc_ping' must be a name"),
        ({"method": "rpc_ping", "version": "x"}, "the version of 'rpc_ping' must be a number"),
        ({"method": "rpc_ping", "version": None}, "the version of 'rpc_ping' must be a number"),
        ({"method": "rpc_ping", "version": "1" * 5000}, "the version of 'rpc_ping' must be a number"),
        ({"method": "rpc_ping", "version": "\u0661.0"}, "the version of 'rpc_ping' must be a number"),
        ({"method": "rpc_ping", "ctxt": "x"}, "the context must be a table"),
    ],
)
def test_an_odd_message_is_refused(
    agent: Agent, message: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = dispatched(agent, **message)
    assert isinstance(error, UsageError)
    assert words in str(error)
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert record.exc_info is None


def test_a_method_with_an_endless_name_is_refused_in_short(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    error = dispatched(agent, method="x\n" * 1_000_000)
    assert isinstance(error, messaging.NoSuchMethod)
    (record,) = caplog.records
    assert len(record.getMessage()) < 300
    assert "\n" not in record.getMessage()


def test_an_unknown_method_leaves_no_thread_that_tells_of_work(agent: Agent) -> None:
    before = set(threading.enumerate())
    assert isinstance(dispatched(agent, method="nothing", client_timeout=30), messaging.NoSuchMethod)
    assert set(threading.enumerate()) <= before


def test_a_bug_is_logged_with_its_place_and_answered_without(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        target = messaging.Target()

        @expose
        def ping(self, context: dict[str, Any]) -> None:
            raise KeyError(PASSWORD)

    incoming = SimpleNamespace(ctxt={}, message={"method": "ping"}, client_timeout=None)
    with pytest.raises(messaging.ExpectedException) as caught:
        Dispatcher([Broken()], None).dispatch(incoming)
    error = caught.value.exc_info[1]
    assert (type(error), error.what) == (GuestagentError, "KeyError in 'ping'")
    (record,) = caplog.records
    assert record.exc_info is not None


# The server


def test_a_second_agent_at_the_same_place_is_refused(agent: Agent, url: str) -> None:
    with serving(agent, url):
        second = RpcServer(open_transport(bare_conf(), url), [], instance=agent.instance)
        with pytest.raises(Refused, match="another agent listens"):
            second.start(patience=SOON)
        assert not second.listening
        assert second.stop(patience=SOON)
    with serving(agent, url) as again:
        assert again.listening
    assert not again.listening


def test_a_server_may_be_stopped_before_it_started_and_twice(agent: Agent, url: str) -> None:
    server = RpcServer(open_transport(bare_conf(), url), [agent.ours()], instance=agent.instance)
    assert server.stop(patience=SOON)
    assert server.stop(patience=SOON)


def test_a_start_after_the_stop_listens_to_nobody(agent: Agent, url: str) -> None:
    server = RpcServer(open_transport(bare_conf(), url), [agent.ours()], instance=agent.instance)
    assert server.stop(patience=SOON)
    assert not server.start(patience=SOON)
    assert not server.listening


def test_a_stop_waits_for_what_runs_and_no_longer_than_it_may(
    agent: Agent, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(SOON)

    monkeypatch.setattr(agent.desk, "running", slow)
    server = RpcServer(open_transport(bare_conf(), url), [agent.ours()], instance=agent.instance)
    assert server.start(patience=SOON)
    answers: list[Any] = []

    def ask() -> None:
        with client_of(url) as client:
            answers.append(client.ping()["guest_id"])

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(SOON)
    began = time.monotonic()
    assert not server.stop(patience=QUICK)
    assert time.monotonic() - began < SOON / 2
    assert "it is left behind" in caplog.text
    release.set()
    asking.join(SOON)
    assert answers == ["guest1"]
    assert server.stop(patience=SOON)


def test_a_start_and_a_stop_without_a_broker_are_bounded(
    agent: Agent, nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = RpcServer(open_transport(bare_conf(), nowhere), [agent.ours()], instance=agent.instance)
    began = time.monotonic()
    assert not server.start(patience=QUICK)
    assert not server.stop(patience=QUICK)
    assert time.monotonic() - began < SOON
    assert "no broker within 0.3 s; guestagent.guest1 is listened on once there is one" in caplog.text
    assert "correct" not in caplog.text


def test_a_start_that_fails_late_is_logged(
    agent: Agent, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    def late(**_: Any) -> None:
        release.wait(SOON)
        raise OSError("no\nmore")

    server = RpcServer(open_transport(bare_conf(), url), [agent.ours()], instance=agent.instance)
    monkeypatch.setattr(server._server, "start", late)
    assert not server.start(patience=QUICK)
    release.set()
    assert eventually(lambda: "cannot listen on guestagent.guest1: no more" in caplog.text)
    assert server.stop(patience=SOON)


def test_a_start_that_comes_about_after_the_end_was_asked_for_is_undone(
    agent: Agent, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    server = RpcServer(open_transport(bare_conf(), url), [agent.ours()], instance=agent.instance)
    really = server._server.start
    monkeypatch.setattr(server._server, "start", lambda **options: (release.wait(SOON), really(**options)))
    assert not server.start(patience=QUICK)
    assert not server.stop(patience=QUICK)
    release.set()
    assert server.stop(patience=SOON)
    with serving(agent, url):
        pass


# The client


def test_a_broker_that_is_away_is_told_within_bounds(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT", QUICK)
    began = time.monotonic()
    with client_of(nowhere, timeout=QUICK) as client:
        with pytest.raises(Unreachable, match="no broker between us and the agent of guest1") as caught:
            client.create(id=number(1))
        assert str(number(1)) in caught.value.hint
        with pytest.raises(Unreachable):
            client.ping()
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (messaging.RemoteError("NoSuchMethod", "ping"), UsageError, "does not know this request"),
        (messaging.RemoteError("UnsupportedVersion", "1.0"), UsageError, "does not know this request"),
        (messaging.RemoteError("Strange", "a\nb"), GuestagentError, "the agent of guest1: a b"),
        (messaging.MessageDeliveryFailure("gone\nhome"), Unreachable, "cannot reach the agent of guest1: gone home"),
        (messaging.MessageUndeliverable("x", "e", "t", None), Unreachable, "no agent of guest1 is listening"),
        (type("Newer_Remote", (Busy,), {})("x", hint="y"), GuestagentError, "x"),
    ],
)
def test_errors_come_in_our_words(
    url: str, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[Exception], words: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    with client_of(url) as client:
        monkeypatch.setattr(client._client, "call", fail)
        with pytest.raises(kind, match=words) as caught:
            client.ping()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "x",
        f"rabbit://u:{PASSWORD}@h:notaport/",
        f"bogus://u:{PASSWORD}@h",
        "local://x",
        f"{PASSWORD}",
        "rabbit://u:p@[::1/",
    ],
)
def test_a_url_that_cannot_be_used_is_a_config_error_without_it(odd: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AgentClient(odd, "guest1", conf=bare_conf())
    assert "horse" not in str(caught.value)
    assert "local:///run/guestagent" in caught.value.hint


# Alone


def test_what_runs_alone_gives_and_raises() -> None:
    alone = Alone("test")
    assert alone.run(lambda: 5, patience=SOON) == 5
    with pytest.raises(KeyError):
        alone.run(lambda: CONTEXT["x"], patience=SOON)
    assert not alone.busy


def test_only_one_thing_runs_alone_at_a_time() -> None:
    alone, release = Alone("test"), threading.Event()
    late: list[Any] = []

    def fail() -> None:
        release.wait(SOON)
        raise KeyError("late")

    with pytest.raises(TimeoutError):
        alone.run(fail, patience=0.05, late=late.append)
    with pytest.raises(TimeoutError):
        alone.run(lambda: late.append("never"), patience=0.05)
    assert alone.busy
    release.set()
    assert alone.run(lambda: "next", patience=SOON) == "next"
    assert [type(error) for error in late] == [KeyError]
