"""No secret in what an agent writes, answers and shows: asked by ours and by Trove, and ended amid a job."""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestagent import agent
from guestagent.errors import GuestagentError
from guestagent.model import InstanceId
from guestagent.rpc.client import AgentClient
from guestagent.transport import frames
from guestagent.transport.oslo import messaging
from tests.canaries import Haul
from tests.integration.running import Writer, wait_until
from tests.integration.secret_scene import PATIENCE, Scene, staged
from tests.servers.agent import Agent, local_url
from tests.servers.rpc_agent import transport_to

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A guest, its server and an object store."""
    with staged() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_leaks(scene: Scene) -> Iterator[None]:
    """After each test, all that it brought to light is searched."""
    with scene.searched():
        yield


def _heard(haul: Haul, patch: pytest.MonkeyPatch) -> None:
    """Keep all that comes over local://."""
    feed = frames.Assembler.feed

    def listen(self: frames.Assembler, piece: bytes) -> None:
        haul.add("frames", piece)
        feed(self, piece)

    patch.setattr(frames.Assembler, "feed", listen)


class Debugged(Agent):
    """An agent at debug level."""

    def __init__(self, scene: Scene, config: Path) -> None:
        self._config = config
        super().__init__(scene.guest, local_url(scene.place), environment=scene.environment)

    def client(self) -> AgentClient:
        return agent.client(agent.load([str(self._config)]), InstanceId("guest1"), timeout=PATIENCE)

    def _spawn(self, log: Any, environment: dict[str, str]) -> None:
        argv, self.guest.argv = self.guest.argv, self._argv  # type: ignore[method-assign]
        try:
            super()._spawn(log, environment)
        finally:
            self.guest.argv = argv  # type: ignore[method-assign]

    def _argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "guestagent", "-vv", "--debug", "--config-file", str(self._config), *words]


def test_an_agent_asked_by_its_commands(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    _heard(scene.haul, monkeypatch)
    with Debugged(scene, scene.guest.config) as served:
        with served.client() as client:
            job = client.create(name="over RPC")
            assert served.wait_for(job["id"]).failure is None
            for answer in (client.list(), client.show(job["id"]), client.jobs(), client.doctor(), client.ping()):
                scene.haul.add("answers", repr(answer))
            with pytest.raises(GuestagentError) as caught:
                client.restore("file:///elsewhere/guest1/" + job["id"])
            scene.haul.add_error("errors over RPC", caught.value)
            with pytest.raises(GuestagentError) as caught:
                client.show("x" * 9)
            scene.haul.add_error("errors over RPC", caught.value)
        for words in (
            ["ping", "guest1"],
            ["doctor", "guest1"],
            ["backup-create", "guest1", "by ctl", "--wait"],
            ["backup-list", "guest1"],
            ["job-list", "guest1"],
            ["backup-delete", "guest1", job["id"], "--wait"],
            ["ping", "nobody"],
        ):
            scene.type(*words, program="guestagent-ctl")
        with pytest.raises(GuestagentError):  # plain, and so refused
            _call(local_url(scene.place), "rpc_ping")
        assert scene.record.read_text().count("--backup") >= 2
        Path(f"{scene.record}.fail").touch()
        with served.client() as client:
            failed = served.wait_for(client.create(name="fails")["id"])
            assert failed.failure is not None
            scene.haul.add("answers", repr(client.jobs()))
        Path(f"{scene.record}.fail").unlink()
        scene.haul.add("agent's log", served.log)
        assert "fails" in served.log or failed.id in served.log
        served.terminate()
    scene.haul.add("agent's log", served.log)


def _call(url: str, method: str, *, cast: bool = False, ctxt: dict[str, Any] | None = None, **arguments: Any) -> Any:
    transport = transport_to(url)
    try:
        target = messaging.Target(exchange="trove", topic="guestagent.guest1", version="1.0")
        client = messaging.get_rpc_client(transport, target, timeout=PATIENCE)
        return (client.cast if cast else client.call)(ctxt or {}, method, **arguments)
    finally:
        transport.cleanup()


def test_what_trove_sends(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    _heard(scene.haul, monkeypatch)
    plant = scene.haul.plant
    url = local_url(scene.place)
    ctxt = {"tenant": "t", "user": "u", "auth_token": plant("auth_token"), "service_catalog": [plant("catalog")]}
    parts = {
        "packages": [],
        "databases": [{"_name": plant("database's name")}],
        "memory_mb": 512,
        "users": [{"_name": "app", "_password": plant("password of a user")}],
        "device_path": None,
        "mount_point": None,
        "config_contents": f"[client]\npassword={plant('config_contents')}\n",
        "root_password": plant("root_password"),
        "overrides": plant("overrides"),
        "cluster_config": {"key": plant("cluster_config")},
        "snapshot": None,
        "modules": [{"contents": plant("module")}],
    }
    config = scene.config("trove", DEFAULT="instance_rpc_encr_key =", conductor="enabled = true")
    with Debugged(scene, config) as served:
        _call(url, "rpc_ping", ctxt=ctxt)
        backup = str(uuid.uuid4())
        info = {"id": backup, "name": "by trove", "instance_id": "guest1", "parent": None, "swift_url": None}
        _call(url, "create_backup", cast=True, ctxt=ctxt, backup_info=info)
        wait_until(lambda: backup in [job.id for job in served.ledger.all()], "trove's backup is accepted")
        assert served.wait_for(backup).failure is None
        restored = {"id": backup, "location": f"{scene.guest.url}/guest1/{backup}", "checksum": "0" * 64}
        for one in (None, restored, {**restored, "location": "s3://other/elsewhere"}, {"id": 5}):
            _call(url, "prepare", cast=True, ctxt=ctxt, backup_info=one, **parts)
        strange: dict[str, Any] = {"password": plant("unknown argument")}
        for method in ("create_backup", "change_passwords", "stop_db"):
            with pytest.raises((GuestagentError, messaging.RemoteError)) as caught:
                _call(url, method, ctxt=ctxt, backup_info=5, users=parts["users"], **strange)
            scene.haul.add_error("errors to Trove", caught.value)
        wait_until(lambda: "refused 'prepare'" in served.log, "a prepare is refused")
        _call(url, "rpc_ping", ctxt=ctxt)
        assert " DEBUG " in served.log
        served.terminate()
    scene.haul.add("agent's log", served.log)
    assert list((scene.guest.state / "outbox").iterdir())


def test_an_agent_that_the_watchdog_ends_amid_a_job(scene: Scene) -> None:
    with Debugged(scene, scene.guest.config) as served, Writer(scene.guest.server) as writer:
        with served.client() as client:
            job = client.create(name="interrupted")["id"]
        served.wait_for_phase(job, "dump")
        served.signal(signal.SIGABRT)
        served._running.wait(PATIENCE)
        writer.end()
        assert "Fatal Python error: Aborted" in served.log
        served.start()
        failed = served.wait_until_told(job)
        assert failed.failure is not None
        assert list((scene.guest.state / "scratch").glob("*")) == []
        served.terminate()
    scene.haul.add("agent's log", served.log)
