"""Reconnects to a real broker: the driver really asks our pauses."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from guestagent.transport import spread
from tests.fakes.rpc import Agent, client_of, serving
from tests.processes import eventually
from tests.servers.rabbitmq import shared_rabbitmq


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_listener_whose_connection_is_closed_waits_and_listens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[spread.Pauses] = []

    def short(pauses: spread.Pauses) -> float:
        asked.append(pauses)
        return 0.1

    monkeypatch.setattr(spread.Pauses, "next", short)
    broker = shared_rabbitmq()
    vhost = broker.vhost()
    agent = Agent(tmp_path)
    with serving(agent, broker.url(vhost)):
        broker.command("close_all_connections", "-p", vhost, "a test")
        assert eventually(lambda: bool(asked))
        with client_of(broker.url(vhost)) as client:
            assert eventually(lambda: client.ping()["guest_id"] == agent.instance)
    assert len({id(pauses) for pauses in asked}) == 1
    gc.collect()
