"""The agent's RPC as its callers meet it: both endpoints on a real transport, with a worker that only writes down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oslo_config import cfg

from guestagent.catalog import Catalog
from guestagent.engines import Connection
from guestagent.errors import GuestagentError
from guestagent.model import InstanceId
from guestagent.operations.host import DatabaseSettings, Host
from guestagent.rpc.client import AgentClient
from guestagent.rpc.ours import Ours
from guestagent.rpc.secure import GuestSerializer
from guestagent.rpc.server import RpcServer
from guestagent.rpc.trove import Trove
from guestagent.rpc.wire import open_transport, topic_of
from guestagent.storage import open_storage
from guestagent.transport.oslo import messaging
from tests.fakes.backups import GUEST
from tests.fakes.desk import Desk
from tests.processes import SOON
from tests.servers.rpc_agent import transport_to

PASSWORD = "correct horse battery staple"
"""What must be in no log and no reply."""
CONTEXT = {
    "user": "8b1e",
    "tenant": "6c0d",
    "auth_token": PASSWORD,
    "is_admin": False,
    "request_id": "req-1",
    "service_catalog": None,
    "trove_notification": {"notification_classname": "trove.common.notification.DBaaSBackupCreate", "request_id": "r"},
}


class Agent:
    """What stands behind the endpoints: a desk, a host whose store is a directory, and what was told."""

    def __init__(self, top: Path, *, instance: InstanceId = GUEST) -> None:
        self.instance = instance
        self.desk = Desk()
        self.store = top / "store"
        self.state = top / "state"
        self.datadir: Path | None = top / "datadir"
        self.refused: list[tuple[str, str, bool]] = []
        self.stopped: list[bool] = []
        self.url = f"file://{self.store}"

    def catalog(self) -> Catalog:
        return Catalog(self.url, instance=self.instance, open_storage=open_storage)

    def host(self) -> Host:
        database = DatabaseSettings(
            connection=Connection(socket="/nowhere", user="backup", password=PASSWORD), datadir=self.datadir
        )
        return Host(instance=self.instance, catalog=self.catalog(), state_dir=self.state, database=database)

    def ours(self) -> Ours:
        return Ours(self.desk, instance=self.instance, host=self.host)

    def trove(self) -> Trove:
        return Trove(
            self.desk,
            instance=self.instance,
            host=self.host,
            on_refused=self._note,
            on_stopped=self.stopped.append,
        )

    def _note(self, backup_id: str, error: GuestagentError, /, *, incremental: bool) -> None:
        self.refused.append((backup_id, error.what, incremental))


def bare_conf() -> Any:
    """A configuration of a library's own, from no file."""
    conf = cfg.ConfigOpts()
    conf([], project="guestagent", default_config_files=[], default_config_dirs=[])
    return conf


@contextmanager
def serving(agent: Agent, url: str, *, key: str = "") -> Iterator[RpcServer]:
    """The agent's server, for as long as the block lasts."""
    server = RpcServer(
        open_transport(bare_conf(), url), [agent.trove(), agent.ours()], instance=agent.instance, key=key
    )
    assert server.start(patience=SOON)
    try:
        yield server
    finally:
        assert server.stop(patience=SOON)


@contextmanager
def client_of(url: str, instance: str = GUEST, **options: Any) -> Iterator[AgentClient]:
    """As guestagent-ctl has it."""
    with AgentClient(url, instance, conf=bare_conf(), **({"timeout": SOON} | options)) as client:
        yield client


@contextmanager
def trove_client(url: str, instance: str = GUEST, *, key: str = "", **target: Any) -> Iterator[Any]:
    """As Trove's control plane has it: its exchange, no namespace, and no errors that it would know."""
    transport = transport_to(url, errors_from=())
    aimed = messaging.Target(**({"exchange": "trove", "topic": topic_of(instance), "version": "1.0"} | target))
    serializer = GuestSerializer(key) if key else None
    try:
        yield messaging.get_rpc_client(transport, aimed, timeout=SOON, serializer=serializer)
    finally:
        transport.cleanup()
