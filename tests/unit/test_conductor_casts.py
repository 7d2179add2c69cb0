"""Messages on their way to Trove's conductor: their stamps, and what becomes of those that nobody takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from guestagent.conductor import Casts
from guestagent.errors import GuestagentError
from guestagent.outbox.stamps import Stamps
from guestagent.transport.oslo import expose, messaging
from guestagent.transport.server import QuietServer
from tests.processes import eventually
from tests.servers.rpc_agent import transport_to


class Endpoint:
    """A conductor's ears."""

    target = messaging.Target(version="1.0")

    def __init__(self) -> None:
        self.heard: list[Mapping[str, Any]] = []

    @expose
    def heartbeat(self, ctxt: Any, **arguments: Any) -> None:
        self.heard.append(arguments)

    @expose
    def notify_end(self, ctxt: Any, **arguments: Any) -> None:
        self.heard.append(arguments)


def test_casts_are_stamped_where_the_conductor_wants_it(tmp_path: Path) -> None:
    url = f"local://{tmp_path}/run"
    listening, transport, endpoint = transport_to(url), transport_to(url), Endpoint()
    target = messaging.Target(exchange="trove", topic="trove-conductor", server="conductor")
    server = messaging.get_rpc_server(
        listening,
        target,
        [endpoint],
        server_cls=QuietServer,
        access_policy=messaging.ExplicitRPCAccessPolicy,
    )
    server.start(override_pool_size=1)
    casts = Casts(transport, Stamps(tmp_path / "sent", clock=lambda: 5.0), exchange="trove")
    try:
        casts.send("heartbeat", {"n": 1})
        casts.send("heartbeat", {"n": 2})
        casts.send("notify_end", {"n": 3})
        assert eventually(lambda: len(endpoint.heard) == 3)
    finally:
        server.stop()
        server.wait()
        listening.cleanup()
        transport.cleanup()
    assert endpoint.heard == [{"n": 1, "sent": 5.0}, {"n": 2, "sent": 5.001}, {"n": 3}]


@pytest.mark.parametrize("url", ["local://{place}/run", "rabbit://guest:guest@127.0.0.1:9/none"])
def test_nobody_there_is_an_error_of_ours(tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    transport = transport_to(url.format(place=tmp_path))
    casts = Casts(transport, Stamps(tmp_path / "sent"))
    with pytest.raises(GuestagentError, match=r"heartbeat was not delivered: .*; look at transport_url"):
        casts.send("heartbeat", {})
    transport.cleanup()
