"""What every transport does for the agent: the same tests over local:// and over a real RabbitMQ.

The agent is a process of its own; it holds oslo.messaging's RPC server with an explicit access policy.
"""

from __future__ import annotations

import gc
import itertools
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import Busy
from guestagent.transport.oslo import messaging
from tests.processes import eventually
from tests.servers.rabbitmq import RabbitMQ, shared_rabbitmq
from tests.servers.rpc_agent import PATIENCE, ROOT, RpcAgent, argv, client_of, transport_to

MIB = 1 << 20
GUEST = "guest-ünïcode 1"
CONTEXT = {"user": "jürgen", "tenant": "日本", "auth_token": "", "is_admin": False, "service_catalog": None}
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1.5,
    "",
    "ünïcode-日本-\U0001f600\n\t\0",
    [],
    {},
    {"a": [{"b": None}]},
    2**70,
)

_number = itertools.count(1)


@dataclass(frozen=True)
class Wire:
    """A transport: its URL, and whether a sender knows at once that nobody is there."""

    url: str
    knows_at_once: bool


def _local(request: pytest.FixtureRequest) -> Wire:
    directory: Path = request.getfixturevalue("tmp_path_factory").mktemp("a directory")
    return Wire(f"local://{directory}", knows_at_once=True)


def _rabbit(_: pytest.FixtureRequest) -> Wire:
    return Wire(shared_rabbitmq().url(shared_rabbitmq().vhost()), knows_at_once=False)


@pytest.fixture(
    scope="module",
    params=[pytest.param(_local, id="local"), pytest.param(_rabbit, id="rabbit", marks=pytest.mark.integration)],
)
def wire(request: pytest.FixtureRequest) -> Wire:
    make: Callable[[pytest.FixtureRequest], Wire] = request.param
    return make(request)


@pytest.fixture(scope="module")
def standing(wire: Wire) -> Iterator[RpcAgent]:
    """An agent that all tests share which leave it as it is."""
    with RpcAgent(wire.url, GUEST) as agent:
        yield agent


@pytest.fixture
def client(standing: RpcAgent) -> Iterator[Any]:
    with client_of(standing.url, GUEST) as made:
        yield made


@pytest.fixture
def agent(wire: Wire) -> Iterator[RpcAgent]:
    """An agent that a test may do anything to."""
    with RpcAgent(wire.url, f"guest{next(_number)}") as made:
        yield made


def noted(client: Any) -> Any:
    return client.call({}, "noted")


def test_a_call_brings_its_arguments_there_and_the_answer_back(client: Any, standing: RpcAgent) -> None:
    for value in ODD_VALUES:
        answer = client.call(CONTEXT, "echo", value=value)
        assert answer["value"] == value
        assert answer["pid"] == standing.pid
        assert {name: answer["ctxt"][name] for name in CONTEXT} == CONTEXT


def test_a_mebibyte_goes_both_ways(client: Any) -> None:
    value = "0123456789abcdeß" * (MIB // 16)
    assert client.call({}, "echo", value=value)["value"] == value


def test_a_cast_is_done_once(client: Any) -> None:
    client.cast({}, "note", value="cast")
    client.prepare(fanout=True).cast({}, "note", value="to all")
    client.prepare(server=GUEST).cast({}, "note", value="to one")
    assert eventually(lambda: {"cast", "to all", "to one"} <= set(noted(client)))
    assert [noted(client).count(value) for value in ("cast", "to all", "to one")] == [1, 1, 1]


def test_a_server_is_reached_by_its_name(client: Any) -> None:
    assert client.prepare(server=GUEST).call({}, "echo", value=1)["value"] == 1


def test_an_error_arrives_with_its_class(client: Any) -> None:
    with pytest.raises(Busy, match="bäckup 2f runs") as caught:
        client.call({}, "fail", name="Busy", text="bäckup 2f runs")
    assert caught.value.what == "bäckup 2f runs"
    assert "Traceback" in str(caught.value)
    with pytest.raises(ValueError, match="of Python's"):
        client.call({}, "fail", name="", text="of Python's")


def test_an_error_of_a_module_that_is_not_allowed_arrives_as_words(standing: RpcAgent) -> None:
    with client_of(standing.url, GUEST, errors_from=()) as client:
        with pytest.raises(messaging.RemoteError, match="2f runs") as caught:
            client.call({}, "fail", name="Busy", text="2f runs")
        assert caught.value.exc_type == "Busy"


@pytest.mark.parametrize("method", ["hidden", "_noted", "__init__", "target", "nothing"])
def test_a_method_that_is_not_exposed_is_refused(client: Any, method: str) -> None:
    with pytest.raises(messaging.RemoteError) as caught:
        client.call({}, method)
    assert caught.value.exc_type == "NoSuchMethod"


@pytest.mark.parametrize("arguments", [{}, {"value": 1, "other": 2}])
def test_wrong_arguments_are_an_error_of_the_callers(client: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="argument"):
        client.call({}, "echo", **arguments)


def test_namespaces_and_versions_choose_the_endpoint(client: Any) -> None:
    for version in ("1.0", "1.3"):
        assert client.prepare(version=version).call({}, "echo", value=1)["value"] == 1
    assert client.prepare(namespace="backup").call({}, "echo", value=1) == ["backup", 1]


@pytest.mark.parametrize(
    ("namespace", "version"), [(None, "1.4"), (None, "2.0"), ("backup", "1.1"), ("other", "1.0"), ("", "1.0")]
)
def test_other_namespaces_and_versions_are_refused(client: Any, namespace: str | None, version: str) -> None:
    with pytest.raises(messaging.RemoteError) as caught:
        client.prepare(namespace=namespace, version=version).call({}, "echo", value=1)
    assert caught.value.exc_type == "UnsupportedVersion"


def test_a_call_that_takes_too_long_times_out(client: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(messaging.MessagingTimeout):
        client.prepare(timeout=0.5).call({}, "sleep", seconds=15)
    assert time.monotonic() - begun < 14
    assert client.call({}, "echo", value="goes on")["value"] == "goes on"


def test_a_monitored_call_may_take_its_time(client: Any) -> None:
    assert client.prepare(call_monitor_timeout=4).call({}, "sleep", seconds=5) == "slept"


def test_a_monitored_call_notices_that_the_agent_hangs(agent: RpcAgent) -> None:
    with client_of(agent.url, agent.guest) as client, ThreadPoolExecutor(1) as threads:
        assert noted(client) == []
        sleeping = threads.submit(client.prepare(call_monitor_timeout=2).call, {}, "sleep", seconds=20)
        assert eventually(lambda: noted(client) == ["asleep for 20"])
        agent.freeze()
        with pytest.raises(messaging.MessagingTimeout):
            sleeping.result(timeout=PATIENCE - 10)


def test_a_call_to_nobody_fails_in_time(wire: Wire) -> None:
    with client_of(wire.url, "nobody") as client:
        begun = time.monotonic()
        with pytest.raises((messaging.MessagingTimeout, messaging.MessageDeliveryFailure)) as caught:
            client.prepare(timeout=15 if wire.knows_at_once else 1).call({}, "echo", value=1)
    assert time.monotonic() - begun < 14
    assert ("no agent is listening at" in str(caught.value)) is wire.knows_at_once


@pytest.mark.parametrize("name", ["cast", "call"])
@pytest.mark.parametrize("target", [{"topic": "guestagent.nobody"}, {"server": "nobody"}, {"exchange": "elsewhere"}])
def test_a_wrong_target_is_an_error_if_it_must_arrive(standing: RpcAgent, name: str, target: dict[str, str]) -> None:
    options = messaging.TransportOptions(at_least_once=True)
    with client_of(standing.url, GUEST, transport_options=options) as client:
        with pytest.raises(messaging.MessageUndeliverable):
            getattr(client.prepare(retry=0, **target), name)({}, "note", value="lost")
        getattr(client, name)({}, "note", value=f"arrived by {name}")
        assert eventually(lambda: f"arrived by {name}" in noted(client))
        assert "lost" not in noted(client)


def test_many_clients_at_once(standing: RpcAgent, client: Any) -> None:
    commands = [argv("client", standing.url, GUEST, f"client {number}", "20") for number in range(8)]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for command in commands]
    with ExitStack() as undo:
        for one in clients:
            undo.callback(one.wait, timeout=PATIENCE)
            undo.callback(one.kill)
        told = [one.communicate(timeout=2 * PATIENCE)[0] for one in clients]
    assert told == [b"20\n"] * 8
    expected = {f"client {number} {count}" for number in range(8) for count in range(20)}
    assert eventually(lambda: expected <= set(noted(client)))
    assert len([one for one in noted(client) if one in expected]) == len(expected)


def test_threads_share_a_client(client: Any) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: client.call({}, "echo", value=number)["value"], range(80)))
    assert answers == list(range(80))


def test_a_stop_lets_running_calls_end(agent: RpcAgent) -> None:
    with client_of(agent.url, agent.guest) as client, ThreadPoolExecutor(2) as threads:
        sleeping = [threads.submit(client.call, {}, "sleep", seconds=2) for _ in range(2)]
        assert eventually(lambda: len(noted(client)) == 2)
        agent.terminate()
        assert [one.result(timeout=PATIENCE) for one in sleeping] == ["slept", "slept"]
        assert agent.ending() == 0
        with pytest.raises((messaging.MessagingTimeout, messaging.MessageDeliveryFailure)):
            client.prepare(timeout=1).call({}, "echo", value=1)


def test_an_agent_that_was_killed_is_reached_again_when_it_is_back(agent: RpcAgent) -> None:
    with client_of(agent.url, agent.guest) as client:
        first = client.call({}, "echo", value=1)["pid"]
        agent.kill()
        agent.start()
        assert client.call({}, "echo", value=2)["pid"] == agent.pid != first


@pytest.mark.parametrize("wire", [pytest.param(_local, id="local")], indirect=True)
def test_a_call_whose_agent_dies_ends_at_once(agent: RpcAgent) -> None:
    with client_of(agent.url, agent.guest) as client, ThreadPoolExecutor(1) as threads:
        sleeping = threads.submit(client.call, {}, "sleep", seconds=20)
        assert eventually(lambda: noted(client) == ["asleep for 20"])
        agent.kill()
        with pytest.raises(messaging.MessagingTimeout, match="went away before it answered"):
            sleeping.result(timeout=15)


# amqp leaves the socket of a connection that broke to the garbage collector, and a captured log holds on to it.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.integration
def test_a_broker_that_was_killed_is_reached_again_by_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with RabbitMQ() as broker, RpcAgent(broker.url(broker.vhost()), "guest") as agent:
        with client_of(agent.url, "guest") as client:
            assert client.call({}, "echo", value=1)["value"] == 1
            broker.kill()
            with pytest.raises((messaging.MessagingTimeout, messaging.MessageDeliveryFailure)):
                client.prepare(timeout=1, retry=0).call({}, "echo", value="during")
            broker.start()
            assert eventually(lambda: answered(client))
            client.cast({}, "note", value="after")
            assert eventually(lambda: noted(client) == ["after"])
        agent.terminate()
        assert agent.ending() == 0
    gc.collect()


def answered(client: Any) -> bool:
    try:
        return bool(client.prepare(timeout=2, retry=0).call({}, "echo", value="again")["value"] == "again")
    except (messaging.MessagingTimeout, messaging.MessageDeliveryFailure):
        return False


def test_a_transport_leaves_no_thread_behind(wire: Wire, standing: RpcAgent) -> None:
    before = set(threading.enumerate())
    transport = transport_to(wire.url)
    client = messaging.get_rpc_client(transport, messaging.Target(topic=f"guestagent.{GUEST}"), timeout=PATIENCE)
    client.call({}, "echo", value=1)
    transport.cleanup()
    assert eventually(lambda: set(threading.enumerate()) <= before)
