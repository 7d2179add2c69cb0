"""Updates and heartbeats over a real RabbitMQ: outages of the broker and of the conductor, and steps of the clock."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from guestagent.conductor import Casts
from guestagent.conductor import Conductor as Reporter
from guestagent.errors import GuestagentError
from guestagent.jobs.record import Failure, Job, Kind
from guestagent.outbox.box import Outbox
from guestagent.outbox.postman import Postman
from guestagent.outbox.stamps import Stamps
from tests.processes import eventually
from tests.servers.conductor import EXCHANGE, Conductor
from tests.servers.rabbitmq import fragile_rabbitmq, shared_rabbitmq
from tests.servers.rpc_agent import transport_to

GUEST = "guest-1"
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
HOUR = 3600.0
RESULT = {"type": "full", "size": 0.25, "checksum": "c" * 64, "locationRef": f"file:///srv/{GUEST}/b1", "note": None}
COMPLETED = {
    "instance_id": GUEST,
    "state": "COMPLETED",
    "success": True,
    "size": 0.25,
    "checksum": "c" * 64,
    "location": f"file:///srv/{GUEST}/b1",
    "backup_type": "full",
    "note": "",
}


class Guest:
    """The part of an agent that speaks to the conductor."""

    def __init__(
        self,
        url: str,
        state_dir: Path,
        *,
        clock: Callable[[], float] = time.time,
        interval: float = 60,
        gap: float = 0.2,
    ) -> None:
        self._later = 0.0
        self.outbox = Outbox(state_dir / "outbox", clock=lambda: time.monotonic() + self._later)
        self._transport = transport_to(url)
        self.casts = Casts(self._transport, Stamps(state_dir / "sent", clock=clock), exchange=EXCHANGE)
        self.reporter = Reporter(self.outbox, GUEST, ask=lambda: None, used=lambda: 1.5)
        self.postman = Postman(
            self.outbox,
            self.casts.send,
            heartbeat=self.reporter.heartbeat,
            interval=interval,
            pauses=(0.1, 0.5),
            gap=gap,
        )
        self.postman.start()

    def pass_time(self) -> None:
        """Have an hour pass for what is to be told anew."""
        self._later += HOUR
        self.outbox.ring()

    def close(self) -> None:
        self.postman.stop(5)
        self._transport.cleanup()


@contextmanager
def running(*arguments: Any, **options: Any) -> Iterator[Guest]:
    guest = Guest(*arguments, **options)
    try:
        yield guest
    finally:
        guest.close()


@pytest.fixture
def url() -> str:
    return shared_rabbitmq().url(shared_rabbitmq().vhost())


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    # amqp leaves the socket of a connection that broke to the garbage collector, and a captured log holds on to it.
    caplog.set_level(logging.CRITICAL)
    yield
    gc.collect()


def backup(backup_id: str = "b1", **facts: Any) -> Job:
    return Job(backup_id, Kind.BACKUP, {"parent": None}, NOW, "trove", **facts).begun(NOW, "runner")


def completed(job: Job) -> Job:
    return job.completed(NOW, RESULT)


def failed(job: Job) -> Job:
    return job.failed(NOW, Failure("tool", "mariabackup exited with 1"))


def sent(conductor: Conductor, method: str = "update_backup") -> list[float]:
    return [stamp for _, name, stamp in conductor.messages if name == method and stamp is not None]


def beats(conductor: Conductor) -> int:
    return int(conductor.instance(GUEST).get("beats", 0))


def all_is_told(guest: Guest) -> bool:
    guest.pass_time()
    return len(guest.outbox) == 0


def is_empty(guest: Guest) -> Callable[[], bool]:
    return lambda: guest.outbox.due() is None


def test_a_backup_and_a_heartbeat_as_trove_knows_them(url: str, tmp_path: Path) -> None:
    with Conductor(url) as conductor, running(url, tmp_path) as guest:
        conductor.expect("b1", GUEST)
        guest.reporter.changed(backup())
        assert eventually(lambda: conductor.backup("b1").get("state") == "BUILDING")
        assert conductor.backup("b1")["size"] == 1.5
        guest.outbox.hurry()
        assert eventually(lambda: conductor.instance(GUEST).get("status") == "healthy")
        job = {"id": "b1", "kind": "backup", "phase": "", "percent": None}
        assert conductor.instance(GUEST)["payload"] == {"service_status": "healthy", "job": job}
        guest.reporter.changed(completed(backup()))
        assert eventually(lambda: conductor.backup("b1") == COMPLETED)
        assert sent(conductor) == sorted(set(sent(conductor)))


def test_notifications_go_without_a_stamp(url: str, tmp_path: Path) -> None:
    with Conductor(url, workers=1) as conductor, running(url, tmp_path) as guest:
        conductor.expect("b1", GUEST)
        conductor.expect("b2", GUEST)
        guest.reporter.changed(completed(backup(notification={"request_id": "req-1"})))
        guest.reporter.changed(failed(backup("b2", notification={"request_id": "req-2"})))
        assert eventually(lambda: len(conductor.notifications) == 2)
        why = "mariabackup exited with 1"
        assert conductor.notifications == [
            ("notify_end", {"request_id": "req-1"}),
            ("notify_exc_info", {"request_id": "req-2", "instance_id": GUEST}, why, why),
        ]


def test_two_quick_updates_of_a_slow_conductor_do_not_undo_each_other(url: str, tmp_path: Path) -> None:
    with Conductor(url, slowness=0.1) as conductor, running(url, tmp_path, gap=2.0) as guest:
        conductor.expect("b1", GUEST)
        guest.reporter.changed(backup())
        assert eventually(lambda: bool(sent(conductor)))
        guest.reporter.changed(completed(backup()))
        assert eventually(lambda: len(sent(conductor)) == 2 and conductor.backup("b1") == COMPLETED)
        time.sleep(0.3)
        assert conductor.backup("b1") == COMPLETED


def test_a_conductor_that_was_never_there_misses_nothing(url: str, tmp_path: Path) -> None:
    conductor = Conductor(url, workers=1)
    for name in ("b1", "b2"):
        conductor.expect(name, GUEST)
    with running(url, tmp_path) as guest:
        guest.reporter.changed(completed(backup()))
        guest.reporter.changed(failed(backup("b2")))
        time.sleep(1)
        assert len(guest.outbox) == 2
    with conductor, running(url, tmp_path):
        assert eventually(lambda: conductor.backup("b2").get("state") == "FAILED")
        assert conductor.backup("b1") == COMPLETED
        assert conductor.dropped == []


def test_a_conductor_that_was_down_for_a_while_ends_with_the_right_rows(url: str, tmp_path: Path) -> None:
    with Conductor(url) as conductor, running(url, tmp_path, interval=0.3, gap=1.0) as guest:
        for name in ("b1", "b2"):
            conductor.expect(name, GUEST)
        guest.reporter.changed(backup())
        assert eventually(lambda: conductor.backup("b1")["state"] == "BUILDING")
        conductor.stop()
        guest.reporter.changed(completed(backup()))
        guest.reporter.changed(backup("b2"))
        assert eventually(is_empty(guest))
        guest.reporter.changed(failed(backup("b2")))
        assert eventually(is_empty(guest))
        before = beats(conductor)
        conductor.start()
        assert eventually(lambda: beats(conductor) > before)
        # Several workers may have taken the queue in any order; what is told anew settles that.
        guest.pass_time()
        assert eventually(lambda: conductor.backup("b2")["state"] == "FAILED")
        assert eventually(lambda: conductor.backup("b1") == COMPLETED)
        assert eventually(lambda: all_is_told(guest))
        assert conductor.backup("b2")["note"] == "mariabackup exited with 1"


def test_a_conductor_that_dies_with_what_it_took_is_told_again(url: str, tmp_path: Path) -> None:
    with Conductor(url) as conductor, running(url, tmp_path) as guest:
        guest.reporter.changed(completed(backup()))
        # The row comes later than the message, which is as if nobody had handled it.
        assert eventually(lambda: len(conductor.unhandled) == 1 and is_empty(guest)())
        conductor.expect("b1", GUEST)
        guest.pass_time()
        assert eventually(lambda: conductor.backup("b1") == COMPLETED)
        assert eventually(lambda: all_is_told(guest))


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_broker_that_dies_during_a_backup_costs_nothing(tmp_path: Path) -> None:
    with fragile_rabbitmq() as broker:
        url = broker.url(broker.vhost())
        with Conductor(url, workers=1) as conductor, running(url, tmp_path, interval=0.5) as guest:
            conductor.expect("b1", GUEST)
            guest.reporter.changed(backup())
            assert eventually(lambda: conductor.backup("b1")["state"] == "BUILDING")
            broker.kill()
            guest.reporter.changed(completed(backup()))
            spent = time.process_time()
            time.sleep(3)
            assert time.process_time() - spent < 2
            assert len(guest.outbox) == 1
            assert conductor.backup("b1")["state"] == "BUILDING"
            before = beats(conductor)
            broker.start()
            assert eventually(lambda: conductor.backup("b1") == COMPLETED)
            assert eventually(lambda: beats(conductor) > before)
            assert conductor.dropped == []


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_broker_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with fragile_rabbitmq() as broker:
        url = broker.url(broker.vhost())
        with Conductor(url) as conductor:
            conductor.expect("b1", GUEST)
            guest = Guest(url, tmp_path)
            guest.reporter.changed(backup())
            assert eventually(lambda: conductor.backup("b1")["state"] == "BUILDING")
            os.kill(broker.pid, signal.SIGSTOP)
            guest.reporter.changed(completed(backup()))
            time.sleep(0.5)
            begun = time.monotonic()
            guest.postman.stop(1)
            assert time.monotonic() - begun < 15
            os.kill(broker.pid, signal.SIGCONT)
            assert eventually(lambda: conductor.backup("b1") == COMPLETED)
            guest.close()


def test_a_clock_that_stepped_back_an_hour_drops_nothing(url: str, tmp_path: Path) -> None:
    with Conductor(url, workers=1) as conductor:
        conductor.expect("b1", GUEST)
        with running(url, tmp_path, interval=0.2) as guest:
            guest.reporter.changed(backup())
            assert eventually(lambda: conductor.backup("b1")["state"] == "BUILDING")
            assert eventually(lambda: beats(conductor) > 1)
        before = beats(conductor)
        with running(url, tmp_path, interval=0.2, clock=lambda: time.time() - HOUR) as guest:
            guest.reporter.changed(completed(backup()))
            assert eventually(lambda: conductor.backup("b1") == COMPLETED)
            assert eventually(lambda: beats(conductor) > before + 1)
        assert conductor.dropped == []
        for method in ("update_backup", "heartbeat"):
            assert sent(conductor, method) == sorted(set(sent(conductor, method)))


def test_a_stamp_of_a_clock_alone_would_have_been_dropped(url: str, tmp_path: Path) -> None:
    """The stub keeps the rule that all this is about."""
    with Conductor(url, workers=1) as conductor, running(url, tmp_path) as guest:
        conductor.expect("b1", GUEST)
        for stamp in (2000.0, 2000.0, 1999.0):
            guest.casts._client.cast(
                {}, "update_backup", instance_id=GUEST, backup_id="b1", sent=stamp, state="BUILDING", note=str(stamp)
            )
        assert eventually(lambda: conductor.dropped == [("update_backup", 2000.0), ("update_backup", 1999.0)])
        assert conductor.backup("b1")["note"] == "2000.0"


def test_an_unknown_queue_is_an_error_and_not_silence(url: str, tmp_path: Path) -> None:
    with running(url, tmp_path) as guest, pytest.raises(GuestagentError, match="heartbeat was not delivered"):
        guest.casts.send("heartbeat", {"instance_id": GUEST, "payload": {}})
