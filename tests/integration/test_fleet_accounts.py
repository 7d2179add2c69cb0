"""What docs/fleet.rst tells to type: an agent's own account lets it work, and reach nobody else's messages."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from amqp import Message  # type: ignore[import-untyped]
from amqp.exceptions import AccessRefused, PreconditionFailed  # type: ignore[import-untyped]
from kombu import Connection  # type: ignore[attr-defined]

from benchmarks.fleet_agents import Agent, Wanted
from benchmarks.fleet_calls import caller, create, ping
from guestagent.conductor import Casts
from guestagent.errors import GuestagentError
from guestagent.outbox.stamps import Stamps
from guestagent.rpc.wire import open_transport, topic_of
from guestagent.transport.oslo import messaging
from tests.fakes.rpc import bare_conf
from tests.processes import eventually
from tests.servers.conductor import Conductor
from tests.servers.rabbitmq import RabbitMQ, shared_rabbitmq

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

PAGE = Path(__file__).parents[2] / "docs" / "fleet.rst"
PROMPT = "   # rabbitmqctl "
PASSWORD = "correct-horse"
MINE, OTHER = "guest1", "guest2"
MOST = 100
"""What the page's policy lets into a queue."""


@dataclass(frozen=True)
class Scene:
    """Two agents, the first of which has the page's account, and a conductor."""

    broker: RabbitMQ
    vhost: str
    url: str
    conductor: Conductor

    def attempt(self, what: Callable[[Any], object], *, user: str = MINE, password: str = PASSWORD) -> None:
        """Do something on a channel as somebody; raises what the broker refuses."""
        broker: Any = Connection
        with broker(f"amqp://{user}:{password}@127.0.0.1:{self.broker.port}/{self.vhost}") as connection:
            channel = connection.channel()
            what(channel)
            channel.basic_qos(0, 1, False)  # whose answer comes after the refusal of a message


def typed() -> list[list[str]]:
    """The page's commands, word by word."""
    lines = [line.removeprefix(PROMPT) for line in PAGE.read_text().splitlines() if line.startswith(PROMPT)]
    return [shlex.split(line) for line in lines]


def obeyed(broker: RabbitMQ, vhost: str) -> None:
    """Type the page's commands."""
    for words in typed():
        meant = [word.replace("VHOST", vhost).replace("GUEST", MINE) for word in words]
        broker.command(*meant, *([PASSWORD] if meant[0] == "add_user" else []))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    broker = shared_rabbitmq()
    vhost = broker.vhost()
    obeyed(broker, vhost)
    place = tmp_path_factory.mktemp("agents")
    durable = "?amqp_durable_queues=true"
    theirs = broker.url(vhost) + durable
    mine = f"rabbit://{MINE}:{PASSWORD}@127.0.0.1:{broker.port}/{vhost}{durable}"
    with Conductor(theirs) as conductor:
        agents = [
            Agent(name, Wanted(url, str(place), number, 1, 1.0, lockstep=False))
            for number, (name, url) in enumerate({MINE: mine, OTHER: theirs}.items())
        ]
        for agent in agents:
            agent.start()
        yield Scene(broker, vhost, theirs, conductor)
        for agent in agents:
            agent.stop()


def test_the_page_has_the_commands() -> None:
    assert [words[0] for words in typed()] == [
        "set_policy",
        "set_policy",
        "add_user",
        "set_permissions",
        "set_topic_permissions",
    ]


def test_an_agent_works_with_an_account_of_its_own(scene: Scene) -> None:
    with caller(scene.url) as client:
        ping(client, MINE)
        create(client, MINE)
    assert eventually(lambda: scene.conductor.instance(MINE).get("status") == "healthy")


@pytest.mark.parametrize(
    "what",
    [
        lambda channel: channel.basic_get(topic_of(OTHER)),
        lambda channel: channel.basic_consume(topic_of(OTHER)),
        lambda channel: channel.basic_consume("trove-conductor"),
        lambda channel: channel.queue_bind(topic_of(MINE), "trove", topic_of(OTHER)),
        lambda channel: channel.queue_bind(topic_of(MINE), "trove", "#"),
        lambda channel: channel.queue_delete(topic_of(OTHER)),
        lambda channel: channel.queue_purge(topic_of(OTHER)),
        lambda channel: channel.queue_declare("mine"),
        lambda channel: channel.basic_publish(Message("x"), "trove", topic_of(OTHER)),
    ],
    ids=["get", "consume", "conductor", "bind", "bind-all", "delete", "purge", "declare", "publish"],
)
def test_an_account_does_not_reach_others(scene: Scene, what: Callable[[Any], object]) -> None:
    with pytest.raises(AccessRefused):
        scene.attempt(what)


def test_what_the_page_says_cannot_be_refused(scene: Scene) -> None:
    with pytest.raises(PreconditionFailed, match="in use"):
        scene.attempt(lambda channel: channel.exchange_delete("trove", if_unused=True))
    scene.attempt(lambda channel: channel.basic_publish(Message('{"oslo.version": "9"}'), "", topic_of(OTHER)))


def test_the_queue_of_an_absent_agent_is_bounded(scene: Scene) -> None:
    name = topic_of("guest3")

    def make(channel: Any) -> None:
        channel.queue_declare(name, durable=True, auto_delete=False)
        channel.queue_bind(name, "trove", name)

    scene.attempt(make, user="guest", password="guest")
    with caller(scene.url) as client:
        for _ in range(MOST + 5):
            client.prepare(topic=name).cast({}, "ping")
    counts: list[int] = []
    scene.attempt(
        lambda channel: counts.append(channel.queue_declare(name, passive=True).message_count),
        user="guest",
        password="guest",
    )
    assert counts == [MOST]


def test_a_message_to_an_agent_that_never_was_is_an_error(scene: Scene) -> None:
    began = time.monotonic()
    with caller(scene.url) as client, pytest.raises(messaging.MessageUndeliverable):
        client.prepare(topic=topic_of("nobody")).cast({}, "ping")
    assert time.monotonic() - began < 30


def test_a_full_queue_of_the_conductors_refuses_what_an_agent_then_keeps(tmp_path: Path) -> None:
    broker = shared_rabbitmq()
    vhost = broker.vhost()
    (page,) = (words for words in typed() if "conductor" in words)
    broker.command(*(word.replace("VHOST", vhost).replace("100000", "2") for word in page))
    transport = open_transport(bare_conf(), broker.url(vhost))
    with Conductor(broker.url(vhost)):
        pass  # it made its queue, and is away
    casts = Casts(transport, Stamps(tmp_path / "stamps"), exchange="trove")
    for _ in range(2):
        casts.send("notify_end", {})
    with pytest.raises(GuestagentError, match="not delivered"):
        casts.send("notify_end", {})
    transport.cleanup()
