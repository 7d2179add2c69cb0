"""Trove drives real agents over RabbitMQ, and its conductor ends with the right rows, whatever happened between."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MakeGuest
from tests.integration.running import Writer, wait_until
from tests.integration.test_chain import FIRST, SECOND, THIRD
from tests.servers.agent import Agent, serving
from tests.servers.conductor import Conductor, Row
from tests.servers.guest import Guest
from tests.servers.rabbitmq import fragile_rabbitmq, shared_rabbitmq
from tests.servers.trove import Trove

pytestmark = pytest.mark.integration

CONDUCTOR = "[conductor]\nenabled = true\nheartbeat_interval = 1\n"
HOUR = 3600
SECRETS = ("not-to-be-logged", "secret-of-a-user", "secret-of-root")


def _finished(conductor: Conductor, backup_id: str) -> Row:
    """The row of a backup, once it has ended."""
    wait_until(lambda: conductor.backup(backup_id).get("state") in ("COMPLETED", "FAILED"), "the row has its end")
    return conductor.backup(backup_id)


def _completed(row: Row, guest: Guest, backup_id: str) -> None:
    """The row says all that Trove shows, and it is true."""
    shown = guest.json("backup", "show", backup_id)
    assert {name: row[name] for name in ("state", "success", "location", "checksum", "size", "backup_type")} == {
        "state": "COMPLETED",
        "success": True,
        "location": shown["locationRef"],
        "checksum": shown["checksum"],
        "size": shown["size"],
        "backup_type": shown["type"],
    }


def _status(conductor: Conductor, instance: str) -> Any:
    return conductor.instance(instance).get("status")


def test_trove_takes_a_chain_and_prepares_an_instance_from_it(place: Path, make_guest: MakeGuest) -> None:
    url = shared_rabbitmq().url(shared_rabbitmq().vhost())
    guest = make_guest(defaults=serving(url), settings=CONDUCTOR)
    other = make_guest("guest2", empty=True, defaults=serving(url), settings=CONDUCTOR)
    with (
        Conductor(url, slowness=0.02, workers=1) as conductor,
        Trove(url, conductor) as trove,
        Agent(guest, url) as one,
    ):
        assert trove.call("guest1", "rpc_ping") is True
        stats = trove.call("guest1", "get_filesystem_stats", fs_path=str(guest.server.datadir))
        assert stats["total"] > stats["used"] > 0
        rows: list[Row] = []
        for name, script in (("backup1", FIRST), ("backup1.1", SECOND), ("backup1.2", THIRD)):
            guest.server.script(script)
            newest = trove.create_backup("guest1", name, parent=rows[-1] if rows else None)
            rows.append(_finished(conductor, newest))
            _completed(rows[-1], guest, newest)
        assert [row["backup_type"] for row in rows] == ["full", "incremental", "incremental"]
        wait_until(lambda: _status(conductor, "guest1") == "healthy", "guest1's heartbeats are heard")

        trove.make_queue("guest2")
        trove.prepare("guest2", newest, rows[-1])  # waits in the queue until the instance has booted
        with Agent(other, url) as two:
            wait_until(lambda: _status(conductor, "guest2") == "healthy" and other.server.running, "guest2 is up")
            (job,) = two.ledger.all()
            assert two.wait_for(job.id).failure is None
            assert other.server.content() == guest.server.content()
            assert "not done" in two.log
            assert [secret for secret in SECRETS if secret in one.log + two.log] == []
        assert conductor.unhandled == []
        assert conductor.dropped == []


def test_ends_are_told_whatever_was_away_meanwhile_and_whatever_the_clock_says(
    place: Path, make_guest: MakeGuest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # libraries tell of the outage, at length
    with fragile_rabbitmq() as broker:
        url = broker.url(broker.vhost())
        guest = make_guest(defaults=serving(url), settings=CONDUCTOR)
        guest.server.script("CREATE DATABASE d; CREATE TABLE d.my (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM;")
        with Conductor(url, workers=1) as conductor, Trove(url, conductor) as trove, Agent(guest, url) as agent:
            # The conductor is away while a backup begins and ends.
            wait_until(lambda: _status(conductor, "guest1") == "healthy", "heartbeats are heard")
            conductor.stop()
            unheard = trove.create_backup("guest1", "while nobody listened")
            assert agent.wait_for(_job(agent, unheard)).failure is None
            conductor.start()
            _completed(_finished(conductor, unheard), guest, unheard)

            # The broker dies in the middle of a backup, which goes on and ends without it.
            with Writer(guest.server) as writer:
                orphaned = trove.create_backup("guest1", "while the broker was away")
                wait_until(lambda: conductor.backup(orphaned).get("state") == "BUILDING", "the row is BUILDING")
                broker.kill()
                writer.end()
                assert agent.wait_for(orphaned).failure is None
            broker.start()
            _completed(_finished(conductor, orphaned), guest, orphaned)

            # The clock is an hour behind what the last life of the agent, and so the conductor, has seen.
            assert agent.terminate() == 0
            ahead = time.time() + HOUR
            (guest.state / "stamps").write_text(json.dumps({"format": 1, "reserved": ahead}))
            for method in ("heartbeat", "update_backup"):
                conductor.tables.save({"sent": ahead}, "seen", "guest1", method)
            agent.start()
            stepped = trove.create_backup("guest1", "while the clock was behind")
            _completed(_finished(conductor, stepped), guest, stepped)
            wait_until(lambda: _status(conductor, "guest1") == "healthy", "heartbeats are heard")
            assert conductor.dropped == []
            assert agent.terminate() == 0


def _job(agent: Agent, backup_id: str) -> str:
    """The id of the backup's job, once the request has come in."""
    wait_until(lambda: any(job.id == backup_id for job in agent.ledger.all()), "the request is written down")
    return backup_id
