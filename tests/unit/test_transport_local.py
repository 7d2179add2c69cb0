"""local:// through oslo.messaging: what its callers see, and what stays behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_config import cfg

from guestagent.errors import ConfigError, NotFound, Refused
from guestagent.transport import driver, frames, oslo, prepare
from guestagent.transport.client import AgentAbsent
from guestagent.transport.frames import pack
from guestagent.transport.oslo import messaging
from guestagent.transport.sockets import Claim, Place, claim, dial, place_of
from tests.fakes.local import (
    EXCHANGE,
    TOPIC,
    Endpoint,
    dialled,
    running,
    said,
    scripted,
    serving,
)
from tests.processes import SOON, belongings, eventually, nothing_more_than
from tests.servers.rpc_agent import RpcAgent, client_of, transport_to


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_of(tmp_path, exchange=EXCHANGE, topic=TOPIC)


@pytest.fixture
def claimed(place: Place) -> Iterator[Claim]:
    made = claim(place)
    yield made
    made.withdraw()


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
        assert eventually(lambda: sorted(endpoint.done, key=str) == [1, "all"]), "each by a thread of its own"


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
    assert eventually(lambda: nothing_more_than(before))
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
    assert eventually(lambda: nothing_more_than(before))


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
        assert any(slept(agent.pid) for _ in range(5))  # at first it may still have things to end
        assert client.call({}, "echo", value="awake")["value"] == "awake"


def slept(pid: int) -> bool:
    """Whether no thread of a process has done anything for a while."""
    before = switches(pid)
    time.sleep(2)
    return switches(pid) == before


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
