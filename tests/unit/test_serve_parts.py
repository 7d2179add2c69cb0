"""The parts put together, in this process: requests in, jobs done, and an end in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent.errors import GuestagentError
from guestagent.jobs.record import Job, Kind, State
from guestagent.serve.parts import Parts
from guestagent.serve.settings import Settings
from tests.processes import eventually
from tests.unit.serve_scene import GUEST, Scene, staged

MISSING = "99999999-9999-4999-8999-999999999999"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with staged(tmp_path) as made:
        yield made


def test_a_request_becomes_a_job_and_the_main_thread_hears_of_each_step(scene: Scene) -> None:
    rings: list[int] = []
    parts = Parts(Settings([str(scene.config)]), lambda: rings.append(1))
    parts.start()
    parts.open()
    try:
        assert parts.healthy()
        with scene.client() as client:
            job = client.verify(MISSING)
            assert eventually(lambda: scene.ledger.get(str(job["id"])).state.ended)
        record = scene.ledger.get(str(job["id"]))
        assert record.failure is not None
        assert (record.state, record.failure.code) == (State.FAILED, "not-found")
        assert eventually(lambda: len(rings) >= 3)
        assert parts.running() is None
        assert parts.step(record.id) is None
    finally:
        parts.close("the test is over", timeout=20)
    assert not parts.healthy()


def test_parts_that_were_never_started_can_be_closed(scene: Scene) -> None:
    parts = Parts(Settings([str(scene.config)]), lambda: None)
    began = time.monotonic()
    parts.close("no reason", timeout=20)
    assert time.monotonic() - began < 19


def test_a_job_that_does_not_stop_is_left_to_the_next_start(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, over = threading.Event(), threading.Event()

    def hang(host: object, job: Job, watch: object) -> dict[str, object]:
        begun.set()
        over.wait(30)
        return {}

    monkeypatch.setattr("guestagent.jobs.story.tell", hang)
    parts = Parts(Settings([str(scene.config)]), lambda: None)
    parts.start()
    parts.open()
    with scene.client() as client:
        client.verify(MISSING)
    assert begun.wait(20)

    parts.close("stopped", timeout=11)

    assert "the job that runs does not stop" in caplog.text
    over.set()
    assert eventually(lambda: not parts.healthy())


def test_a_job_goes_by_the_configuration_of_its_beginning(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []

    def look(host: object, job: Job, watch: object) -> dict[str, object]:
        levels.append(host.stream.level)  # type: ignore[attr-defined]
        return {}

    monkeypatch.setattr("guestagent.jobs.story.tell", look)
    settings = Settings([str(scene.config)])
    parts = Parts(settings, lambda: None)
    parts.start()
    parts.open()
    try:
        with scene.client() as client:
            client.verify(MISSING)
            assert eventually(lambda: levels == [1])
            scene.configure(stream="level = 7")
            settings.reload()
            client.delete(MISSING)
            assert eventually(lambda: levels == [1, 7])
    finally:
        parts.close("over", timeout=20)
    assert {job.kind for job in scene.ledger.all()} == {Kind.VERIFY, Kind.DELETE}


def test_a_broken_reload_leaves_the_settings(scene: Scene) -> None:
    settings = Settings([str(scene.config)])
    scene.configure(stream="level = 77")
    with pytest.raises(GuestagentError, match="level is '77'"):
        settings.reload()
    assert settings.host().stream.level == 1
    assert settings.served.instance == GUEST
