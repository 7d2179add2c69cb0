"""``guestagent-ctl`` through a real broker that comes and goes; its jobs are performed by hand."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestagent.cli.control import follow
from tests.servers.rabbitmq import RabbitMQ, shared_rabbitmq
from tests.unit.control_scene import GUEST, Scene, one_line

pytestmark = pytest.mark.integration

ID = "11111111-1111-4111-8111-111111111111"
RUN = ["backup-create", GUEST, "nightly", "--id", ID]
PATIENCE = 120.0


@pytest.fixture
def broker() -> RabbitMQ:
    """The test session's broker."""
    return shared_rabbitmq()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """amqp leaves the socket of a connection that broke to the garbage collector; a captured log holds on to it."""
    caplog.set_level(logging.CRITICAL)
    yield
    gc.collect()


@pytest.fixture
def scene(tmp_path: Path, capsys: pytest.CaptureFixture[str], broker: RabbitMQ) -> Iterator[Scene]:
    """A host whose agent listens there."""
    made = Scene(tmp_path, capsys, url=broker.url(broker.vhost()))
    with made.serving():
        yield made


def until(happened: Callable[[], bool]) -> None:
    """Wait until it has happened."""
    limit = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_a_request_and_a_wrong_instance(scene: Scene) -> None:
    done = scene.ask(*RUN, "-f", "json")
    assert (done.status, done.err, done.json["state"]) == (0, "", "queued")
    assert scene.ask("ping", GUEST).status == 0
    begun = time.monotonic()
    one_line(scene.ask("backup-create", "guest2", "nightly"), 4, "no agent of guest2 is listening")
    assert time.monotonic() - begun < 30
    assert len(scene.ledger.all()) == 1


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_waiting_outlives_a_broker_that_is_killed(scene: Scene, broker: RabbitMQ, tmp_path: Path) -> None:
    argv, told = scene.argv("--timeout", "5", *RUN, "--wait", "-f", "json"), tmp_path / "told"
    with told.open("wb") as err, subprocess.Popen(argv, stdout=-1, stderr=err) as process:
        try:
            until(lambda: scene.looks > 0)
            broker.kill()
            until(lambda: follow.AWAY in told.read_text())
            broker.start()
            scene.ledger.begin(ID)
            scene.ledger.complete(ID, {"id": ID, "status": "COMPLETED"})
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, json.loads(out)["id"]) == (0, ID), told.read_text()
    assert "Traceback" not in told.read_text()
