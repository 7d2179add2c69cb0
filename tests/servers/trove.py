"""Trove's side of the wire, written from the description of its messages and not from ours: API and task manager."""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import Any, Self

from guestagent.transport.oslo import messaging
from guestagent.transport.server import QuietServer
from tests.servers.conductor import EXCHANGE, Conductor, Row
from tests.servers.rpc_agent import transport_to

CALL_TIMEOUT = 15.0
CONTEXT = {
    "tenant": "9f2c", "user": "7d1e", "auth_token": "not-to-be-logged", "is_admin": False, "request_id": "req-1",
    "roles": ["member"], "service_catalog": [], "marker": None, "limit": None, "project_id": "9f2c",
}  # fmt: skip


class Trove:
    """A control plane that knows instances by their ids; its rows are the conductor's."""

    def __init__(self, url: str, conductor: Conductor) -> None:
        self._transport = transport_to(url)
        self._conductor = conductor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transport.cleanup()

    def make_queue(self, instance: str) -> None:
        """What precedes ``prepare``: the guest's queue, for a guest that has not booted yet."""
        target = messaging.Target(exchange=EXCHANGE, topic=f"guestagent.{instance}", server=instance)
        server = messaging.get_rpc_server(self._transport, target, [], server_cls=QuietServer)
        server.start(override_pool_size=1)
        server.stop()
        server.wait()

    def create_backup(self, instance: str, name: str, *, parent: Row | None = None) -> str:
        """Ask for a backup, on the row of another if it is to be incremental; gives its id."""
        backup_id = str(uuid.uuid4())
        self._conductor.expect(backup_id, instance)
        info = {
            "id": backup_id,
            "name": name,
            "description": None,
            "instance_id": instance,
            "backup_type": "incremental" if parent else "full",
            "checksum": None,
            "parent": {"location": parent["location"], "checksum": parent["checksum"]} if parent else None,
            "datastore": "mariadb",
            "datastore_version": "10.11",
            "storage_driver": "swift",
            "swift_container": None,
            "swift_url": None,
        }
        self.cast(instance, "create_backup", version="1.0", backup_info=info)
        return backup_id

    def prepare(self, instance: str, backup_id: str, row: Row) -> None:
        """Ask a new instance to begin its life with a backup's data."""
        info = {
            "id": backup_id,
            "instance_id": row["instance_id"],
            "location": row["location"],
            "type": row["backup_type"],
            "checksum": row["checksum"],
            "storage_driver": "swift",
            "swift_url": None,
        }
        self.cast(
            instance,
            "prepare",
            version="1.1",
            packages=["mariadb"],
            databases=[{"_name": "wanted"}],
            memory_mb=512,
            users=[{"_name": "app", "_password": "secret-of-a-user"}],
            device_path="/dev/vdb",
            mount_point="/var/lib/mysql",
            backup_info=info,
            config_contents="[mysqld]",
            root_password="secret-of-root",
            overrides=None,
            cluster_config=None,
            snapshot=None,
            modules=[],
            ds_version="10.11",
        )

    def cast(self, instance: str, method: str, *, version: str, **arguments: Any) -> None:
        """Send a message that is not answered."""
        self._client(instance, version).cast(CONTEXT, method, **arguments)

    def call(self, instance: str, method: str, *, version: str = "1.0", **arguments: Any) -> Any:
        """Send one that is."""
        return self._client(instance, version).call(CONTEXT, method, **arguments)

    def _client(self, instance: str, version: str) -> Any:
        target = messaging.Target(exchange=EXCHANGE, topic=f"guestagent.{instance}", version=version)
        return messaging.get_rpc_client(self._transport, target, timeout=CALL_TIMEOUT)
