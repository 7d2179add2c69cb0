"""``guestagent-ctl`` through a real broker that comes and goes; its jobs are performed by hand."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import time
from collections.abc import Iterator
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


def accepted(scene: Scene) -> None:
    """Wait until the agent has the job."""
    until = time.monotonic() + PATIENCE
    while not scene.ledger.all():
        assert time.monotonic() < until
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
def test_waiting_outlives_a_broker_that_is_killed(scene: Scene, broker: RabbitMQ) -> None:
    argv = scene.argv("--timeout", "5", *RUN, "--wait", "-f", "json")
    with subprocess.Popen(argv, stdout=-1, stderr=-1) as process:
        try:
            accepted(scene)
            time.sleep(1)
            broker.kill()
            time.sleep(8)
            broker.start()
            scene.ledger.begin(ID)
            scene.ledger.complete(ID, {"id": ID, "status": "COMPLETED"})
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, json.loads(out)["id"]) == (0, ID), err
    assert follow.AWAY in err.decode()
    assert "Traceback" not in err.decode()
