"""The guide's story over RPC, on real servers: agents that serve, asked by whoever has only their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guestagent.jobs.record import State
from tests.integration.conftest import MakeGuest
from tests.integration.test_chain import FIRST, SECOND, THIRD
from tests.servers.agent import Agent, local_url, serving

pytestmark = pytest.mark.integration


def _take(agent: Agent, name: str, parent: str | None = None) -> dict[str, Any]:
    """Take a backup over RPC; gives its properties once it is COMPLETED."""
    with agent.client() as client:
        job = client.create(name=name, parent=parent)
        ended = agent.wait_for(job["id"])
        assert ended.state is State.COMPLETED, ended.failure
        shown = client.show(job["id"])
    assert shown == ended.result
    return shown


def test_a_chain_over_rpc_restored_by_another_agent_from_the_newest_id(place: Path, make_guest: MakeGuest) -> None:
    url = local_url(place)
    guest = make_guest(defaults=serving(url))
    other = make_guest("guest2", empty=True, defaults=serving(url))
    with Agent(guest, url) as one, Agent(other, url) as two:
        guest.server.script(FIRST)
        full = _take(one, "backup1")
        guest.server.script(SECOND)
        first = _take(one, "backup1.1", parent=full["id"])
        guest.server.script(THIRD)
        second = _take(one, "backup1.2", parent=first["id"])
        with two.client() as client:
            job = two.wait_for(client.restore(second["id"], start=True)["id"])
        assert job.state is State.COMPLETED, job.failure
        assert job.result["links"] == 3
        assert other.server.content() == guest.server.content()
        assert [row["kind"] for row in guest.json("job", "list")] == ["backup"] * 3
        assert two.terminate() == 0
        assert [row["state"] for row in other.json("job", "list")] == ["completed"]
