"""The main thread's life with parts that a test works by hand: what starts, what systemd hears, and what ends it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from guestagent.errors import ConfigError, GuestagentError
from guestagent.jobs.record import Job, Kind, Step
from guestagent.serve import daemon
from guestagent.serve.daemon import Daemon, describe
from guestagent.serve.signals import Signals
from guestagent.systemd import Notifier
from tests.processes import eventually

BACKUP = "11111111-1111-4111-8111-111111111111"
JOB = Job(BACKUP, Kind.BACKUP, {}, created=datetime(2026, 11, 22, tzinfo=UTC), origin="rpc")


class Told(Notifier):
    """A notifier that keeps what it would send."""

    def __init__(self, watchdog: float = 0) -> None:
        super().__init__("", watchdog=watchdog)
        self.said: list[str] = []

    def _tell(self, *lines: str) -> None:
        self.said.append(" ".join(lines))

    def count(self, words: str) -> int:
        return sum(words in line for line in self.said)


class Parts:
    """Parts that do as a test says, and note what they were asked to do."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.opened: Callable[[], None] = lambda: None
        self.ended: Callable[[], None] = lambda: None
        self.refusal: Exception | None = None
        self.well = True
        self.job: Job | None = None
        self.how_far: Step | None = None

    def start(self) -> None:
        self.calls.append("start")
        if self.refusal:
            raise self.refusal

    def open(self) -> None:
        self.opened()
        self.calls.append("open")

    def close(self, reason: str, *, timeout: float) -> None:
        self.ended()
        self.calls.append(f"close: {reason}")

    def healthy(self) -> bool:
        return self.well

    def running(self) -> Job | None:
        return self.job

    def step(self, job_id: str) -> Step | None:
        return self.how_far


class Scene:
    """A daemon whose main thread is the test's."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.parts = Parts()
        self.told = Told()
        self.reload: Callable[[], None] = lambda: None

    def run(self, script: Callable[[], object]) -> None:
        """Serve; the script runs beside, and SIGTERM ends it all."""
        errors: list[BaseException] = []

        def act() -> None:
            try:
                script()
            except BaseException as error:
                errors.append(error)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=act)
        thread.start()
        try:
            Daemon(self.parts, reload=self.reload, notifier=self.told, signals=self.signals).run()
        finally:
            thread.join()
        if errors:
            raise errors[0]

    def says(self, words: str) -> bool:
        return eventually(lambda: self.told.count(words) > 0)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    monkeypatch.setattr(daemon, "STATUS_PERIOD", 0.05)
    monkeypatch.setattr(daemon, "HEALTH_PERIOD", 30.0)
    caplog.set_level(logging.INFO)
    with Signals(daemon.HEARD) as signals:
        yield Scene(signals)


def test_it_starts_opens_is_ready_and_ends(scene: Scene) -> None:
    scene.run(lambda: scene.says("READY=1"))

    assert scene.parts.calls == ["start", "open", "close: stopped by SIGTERM"]
    assert scene.told.said == ["READY=1 STATUS=idle", "STOPPING=1 STATUS=stopping"]


def test_parts_that_do_not_start_end_it_and_are_closed(scene: Scene) -> None:
    scene.parts.refusal = GuestagentError("no room")

    with pytest.raises(GuestagentError, match="no room"):
        scene.run(lambda: None)

    assert scene.parts.calls[0] == "start"
    assert scene.parts.calls[-1].startswith("close: ")
    assert not scene.told.count("READY")


def test_doors_that_cannot_open_end_it(scene: Scene) -> None:
    def refuse() -> None:
        raise ConfigError("directory belongs to somebody else")

    scene.parts.opened = refuse
    with pytest.raises(ConfigError, match="somebody else"):
        scene.run(lambda: None)
    assert not scene.told.count("READY")


def test_without_a_broker_it_is_ready_all_the_same_and_says_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "START_PATIENCE", 0.1)
    broker = threading.Event()
    scene.parts.opened = lambda: assert_soon(broker)

    def script() -> None:
        assert scene.says("READY=1 STATUS=idle; the broker does not answer yet")
        broker.set()
        assert scene.says("STATUS=idle")
        assert eventually(lambda: scene.told.said[-1] == "STATUS=idle")

    scene.run(script)


def test_doors_that_turn_out_to_be_shut_for_good_end_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "START_PATIENCE", 0.05)
    broker = threading.Event()

    def refuse() -> None:
        assert_soon(broker)
        raise GuestagentError("the queue is of another type")

    def script() -> None:
        assert scene.says("READY")
        broker.set()
        assert eventually(lambda: any(call.startswith("close") for call in scene.parts.calls))

    scene.parts.opened = refuse
    with pytest.raises(GuestagentError, match="another type"):
        scene.run(script)


def test_a_signal_ends_the_wait_for_a_broker(scene: Scene) -> None:
    broker = threading.Event()
    scene.parts.opened = lambda: assert_soon(broker)
    scene.parts.ended = broker.set
    began = time.monotonic()

    scene.run(lambda: eventually(lambda: "start" in scene.parts.calls))

    assert time.monotonic() - began < daemon.START_PATIENCE / 2
    assert not scene.told.count("READY")
    assert "close: stopped by SIGTERM" in scene.parts.calls


def test_a_job_is_told_as_it_goes_on_and_its_end_too(scene: Scene) -> None:
    def script() -> None:
        assert scene.says("READY")
        scene.parts.job, scene.parts.how_far = JOB, Step("dump", 40, 100)
        scene.signals.ring()
        assert scene.says(f"STATUS=backup {BACKUP}: dump, 40 %")
        scene.parts.how_far = Step("dump", 90, 100)
        assert scene.says(f"STATUS=backup {BACKUP}: dump, 90 %")
        scene.parts.job = None
        assert eventually(lambda: scene.told.said[-1] == "STATUS=idle")

    scene.run(script)


def test_an_end_that_comes_too_soon_after_the_last_word_is_told_later(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "STATUS_PERIOD", 0.4)

    def script() -> None:
        assert scene.says("READY")
        scene.parts.job = JOB
        scene.signals.ring()
        assert scene.says(f"STATUS=backup {BACKUP}")
        scene.parts.job = None
        scene.signals.ring()
        assert eventually(lambda: scene.told.said[-1] == "STATUS=idle")

    scene.run(script)


def test_an_idle_agent_sleeps(scene: Scene) -> None:
    looks = []
    wait = scene.signals.wait

    def counted(seconds: float | None) -> frozenset[signal.Signals]:
        looks.append(seconds)
        return wait(seconds)

    scene.signals.wait = counted  # type: ignore[method-assign]

    def script() -> None:
        assert scene.says("READY")
        time.sleep(0.5)

    scene.run(script)
    assert len(looks) < 6


def test_a_worker_that_hangs_starves_the_watchdog_until_it_works_again(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.told.watchdog = 0.1

    def script() -> None:
        assert eventually(lambda: scene.told.count("WATCHDOG=1") > 2)
        scene.parts.well = False
        assert eventually(lambda: "the worker shows no sign of life" in caplog.text)
        fed = scene.told.count("WATCHDOG=1")
        time.sleep(0.4)
        assert scene.told.count("WATCHDOG=1") == fed
        assert caplog.text.count("the worker shows no sign of life") == 1
        scene.parts.well = True
        assert eventually(lambda: scene.told.count("WATCHDOG=1") > fed)

    scene.run(script)


def test_the_watchdog_is_fed_while_the_parts_end(scene: Scene) -> None:
    scene.told.watchdog = 0.1

    def fed() -> int:
        return scene.told.said[scene.told.said.index("STOPPING=1 STATUS=stopping") :].count("WATCHDOG=1")

    def end() -> None:
        assert eventually(lambda: fed() >= 3)

    scene.parts.ended = end
    scene.run(lambda: scene.says("READY"))
    assert fed() >= 3


def test_parts_that_do_not_end_are_left_behind(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon, "STOP_PATIENCE", 0.2)
    for_good = threading.Event()
    scene.parts.ended = lambda: assert_soon(for_good)
    scene.parts.job = JOB
    began = time.monotonic()

    scene.run(lambda: scene.says("READY"))

    assert time.monotonic() - began < 15
    assert "not everything ended within 0.2 s" in caplog.text
    assert scene.told.count(f"STOPPING=1 STATUS=stopping: cancelling backup {BACKUP}")
    for_good.set()


def test_an_error_of_the_end_is_raised(scene: Scene) -> None:
    def fail() -> None:
        raise GuestagentError("cannot end")

    scene.parts.ended = fail
    with pytest.raises(GuestagentError, match="cannot end"):
        scene.run(lambda: scene.says("READY"))


@pytest.mark.parametrize(
    ("error", "note"),
    [(ConfigError("level is 77"), "the last reload was refused"), (ValueError("a bug"), "the last reload failed")],
)
def test_a_reload_that_fails_ends_nothing(scene: Scene, error: Exception, note: str) -> None:
    errors = [error]

    def reload() -> None:
        if errors:
            raise errors.pop()

    scene.reload = reload

    def script() -> None:
        assert scene.says("READY")
        os.kill(os.getpid(), signal.SIGHUP)
        assert scene.says(f"READY=1 STATUS=idle; {note}")
        os.kill(os.getpid(), signal.SIGHUP)
        assert eventually(lambda: scene.told.said[-1] == "READY=1 STATUS=idle" and scene.told.count("RELOADING") == 2)

    scene.run(script)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (None, ""),
        (Step(""), ""),
        (Step("lock"), ": lock"),
        (Step("fetch", 5, 10), ": fetch, 50 %"),
        (Step("prepare", 5, 10, link=2, links=3), ": prepare, link 2 of 3, 50 %"),
    ],
)
def test_a_job_in_a_few_words(step: Step | None, words: str) -> None:
    assert describe(JOB, step) == f"backup {BACKUP}{words}"


def assert_soon(event: threading.Event) -> None:
    assert event.wait(20)
