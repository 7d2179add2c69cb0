"""``guestagent serve`` as a process: what systemd hears of it, what signals do to it, and how it refuses to start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent.jobs.record import State
from tests.processes import eventually, is_gone
from tests.unit.serve_scene import PATIENCE, Scene, children_of, staged

HANG = {"FAKE_TOOL_FAULT": "hang-start", "FAKE_TOOL_PHASE": "prepare"}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with staged(tmp_path) as made:
        yield made


@pytest.fixture
def ready(scene: Scene) -> Scene:
    """An agent that is up and idle."""
    scene.begin()
    scene.hear("READY=1")
    return scene


@pytest.fixture
def busy(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> tuple[Scene, str]:
    """An agent with a job that hangs, and the job's id."""
    backup = scene.stock(monkeypatch)
    scene.begin(**HANG)
    scene.hear("READY=1")
    return scene, scene.hang(backup)


# -- the start and the end


def test_it_is_ready_when_it_answers_and_leaves_nothing_behind(ready: Scene) -> None:
    assert ready.heard == ["READY=1\nSTATUS=idle"]
    with ready.client() as client:
        assert client.ping()["guest_id"] == "guest1"

    assert ready.end() == 0

    assert ready.hear("STOPPING=1") == "STOPPING=1\nSTATUS=stopping"
    assert list((ready.place / "run").iterdir()) == []
    assert "Traceback" not in ready.logged()


def test_ctrl_c_ends_it_as_well(ready: Scene) -> None:
    assert ready.end(signal.SIGINT) == 0
    assert "stopped by SIGINT" in ready.logged()


def test_a_signal_during_the_start_is_not_lost(scene: Scene) -> None:
    scene.begin()
    assert eventually((scene.state / "agent.lock").exists)

    assert scene.end() == 0


def test_a_second_agent_on_the_same_state_dir_is_refused(ready: Scene) -> None:
    ready.configure(DEFAULT=f"transport_url = local://{ready.place}/elsewhere")

    done = subprocess.run(ready.argv(), capture_output=True, text=True, timeout=PATIENCE, check=False)

    pid = ready.process.pid
    remedy = "stop it, or use another state_dir"
    assert (
        done.stderr.splitlines()[-1] == f"guestagent: the agent with pid {pid} uses state_dir {ready.state}; {remedy}"
    )
    assert done.returncode == 7
    assert ready.process.poll() is None


def test_the_lock_of_a_killed_agent_is_free(ready: Scene) -> None:
    ready.process.kill()
    ready.process.wait(PATIENCE)

    ready.begin()
    assert ready.hear("READY=1")


def test_a_start_that_fails_is_one_line_on_stderr_and_a_status(scene: Scene) -> None:
    scene.configure(DEFAULT="guest_id =")

    scene.begin()

    assert scene.process.wait(PATIENCE) == 2
    told = "guest_id is not set; set it under [DEFAULT] to the id of this instance"
    assert scene.logged().splitlines() == [f"guestagent: {told}"]
    assert scene.hear("STATUS=") == f"STATUS=failed: {told}"
    assert len(scene.heard) == 1


def test_its_log_suits_the_journal_or_a_file(scene: Scene) -> None:
    scene.begin(JOURNAL_STREAM="1:2")
    scene.hear("READY=1")
    assert scene.end() == 0
    lines = scene.logged().splitlines()
    assert "<6>ready: idle" in lines
    assert all(re.match(r"<\d>", line) for line in lines)

    scene.begin()
    scene.hear("READY=1")
    assert scene.end() == 0
    assert re.search(r"^\d{4}-\d\d-\d\d [\d:,]+ INFO guestagent.serve.daemon: ready: idle$", scene.logged(), re.M)


# -- reload


def test_a_reload_is_announced_and_the_next_job_goes_by_it(ready: Scene) -> None:
    (ready.place / "other").mkdir()
    ready.configure(storage=f"url = file://{ready.place}/other")

    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    ready.process.send_signal(signal.SIGHUP)

    name, _, began = ready.hear("RELOADING=1").partition("\n")[2].partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(began) / 1e6 <= time.clock_gettime(time.CLOCK_MONOTONIC)
    assert ready.hear("READY=1") == "READY=1\nSTATUS=idle"
    assert "[storage] url is changed" in ready.logged()
    with ready.client() as client:
        findings = client.doctor()
    assert any(f"{ready.place}/other" in str(finding) for finding in findings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[stream]\nlevel = 77\n", "level is '77'; give integer value from 1 to 19"),
        ("[strorage]\n", "unknown section [strorage]"),
        ("no sense", "no ':' or '=' found"),
        ("[storage]\nurl =\n", "no store is configured"),
        ("[database]\ndatadir = here\n", "datadir is not an absolute path"),
        (None, "cannot read"),
    ],
)
def test_a_broken_file_leaves_the_old_configuration(ready: Scene, text: str | None, words: str) -> None:
    good = ready.config.read_text()
    ready.config.unlink() if text is None else ready.config.write_text(good + text)

    ready.process.send_signal(signal.SIGHUP)

    ready.hear("RELOADING=1")
    assert ready.hear("READY=1") == "READY=1\nSTATUS=idle; the last reload was refused"
    refusal = [line for line in ready.logged().splitlines() if " ERROR " in line]
    assert len(refusal) == 1
    assert "configuration not reloaded, the old one stays: " in refusal[0]
    assert words in refusal[0]
    ready.config.write_text(good)
    with ready.client() as client:
        assert client.ping()["guest_id"] == "guest1"
    ready.process.send_signal(signal.SIGHUP)
    ready.hear("RELOADING=1")
    assert ready.hear("READY=1") == "READY=1\nSTATUS=idle"


def test_what_takes_a_restart_is_named_and_stays(ready: Scene) -> None:
    ready.configure(DEFAULT="guest_id = another\ntransport_url = rabbit://user:hush@host/", stream="level = 3")

    ready.process.send_signal(signal.SIGHUP)

    ready.hear("RELOADING=1")
    ready.hear("READY=1")
    log = ready.logged()
    assert "[DEFAULT] guest_id stays as it was; a restart of the agent takes the new value" in log
    assert "[DEFAULT] transport_url stays as it was" in log
    assert "[stream] level is changed" in log
    assert "hush" not in log
    ready.configure()
    with ready.client() as client:
        assert client.ping()["guest_id"] == "guest1"


def test_a_reload_does_not_touch_the_job_that_runs(busy: tuple[Scene, str]) -> None:
    scene, job = busy
    scene.configure(storage="url = file:///nowhere", restore="use_memory = 9M")

    scene.process.send_signal(signal.SIGHUP)

    scene.hear("RELOADING=1")
    assert f"(job {job}): prepare" in scene.hear("READY=1")
    assert scene.ledger.get(job).state is State.RUNNING


# -- what runs


def test_the_tools_of_a_job_do_not_hear_of_systemd(busy: tuple[Scene, str]) -> None:
    scene, _ = busy
    for pid in children_of(scene.process.pid):
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert children_of(scene.process.pid)


def test_the_status_says_what_runs_and_how_far(busy: tuple[Scene, str]) -> None:
    scene, job = busy
    source = scene.ledger.get(job).request["source"]
    scene.hear("prepare")
    assert scene.heard[-1].startswith(f"STATUS=restore {source} (job {job}): prepare")

    with scene.client() as client:
        client.cancel(job)

    assert scene.hear("STATUS=idle") == "STATUS=idle"
    assert scene.ledger.get(job).state is State.CANCELLED


def test_a_job_that_runs_is_cancelled_and_noted_before_the_end(busy: tuple[Scene, str]) -> None:
    scene, job = busy
    tools = children_of(scene.process.pid)
    assert tools

    began = time.monotonic()
    assert scene.end() == 0

    assert time.monotonic() - began < PATIENCE / 2
    assert f"cancelling restore {scene.ledger.get(job).request['source']}" in scene.hear("STOPPING=1")
    record = scene.ledger.get(job)
    assert record.state is State.CANCELLED
    assert record.failure is not None
    assert "stopped by SIGTERM" in record.failure.what
    assert all(eventually(lambda pid=pid: is_gone(pid)) for pid in tools)  # type: ignore[misc]


def test_a_storm_of_signals_is_one_reload_at_a_time_and_one_end(busy: tuple[Scene, str]) -> None:
    scene, job = busy
    for number in range(300):
        scene.process.send_signal(signal.SIGHUP)
        if number % 50 == 0:
            time.sleep(0.01)
    for _ in range(50):
        scene.process.send_signal(signal.SIGTERM)
        scene.process.send_signal(signal.SIGHUP)
        scene.process.send_signal(signal.SIGINT)
    scene.hear("STOPPING=1")  # systemd listens all the time: it keeps nobody waiting

    assert scene.process.wait(PATIENCE) == 0

    assert scene.ledger.get(job).state is State.CANCELLED
    assert "Traceback" not in scene.logged()


# -- the watchdog


def test_the_watchdog_is_fed_twice_in_its_time(scene: Scene) -> None:
    scene.begin(WATCHDOG_USEC="4000000")
    scene.hear("READY=1")
    scene.hear("WATCHDOG=1")

    began = time.monotonic()
    for _ in range(2):
        scene.hear("WATCHDOG=1", within=4.0)

    assert time.monotonic() - began >= 2.0


def test_a_watchdog_of_another_process_is_not_fed(scene: Scene) -> None:
    scene.begin(WATCHDOG_USEC="200000", WATCHDOG_PID=str(os.getpid()))
    scene.hear("READY=1")
    with pytest.raises(AssertionError, match="nobody says"):
        scene.hear("WATCHDOG=1", within=1.0)


def test_a_killed_watchdog_says_where_every_thread_was(ready: Scene) -> None:
    """As systemd does it when the watchdog was not fed: by SIGABRT."""
    assert ready.end(signal.SIGABRT) == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in ready.logged()
    assert "guestagent/serve/daemon.py" in ready.logged()
    assert ready.logged().count("Thread 0x") >= 2


# -- a broker that is away


def test_an_agent_whose_broker_is_away_ends_at_once_and_leaves_its_threads_behind(scene: Scene) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        scene.configure(DEFAULT=f"transport_url = rabbit://user:hush@127.0.0.1:{nobody.getsockname()[1]}/")
        scene.begin()
        assert eventually(lambda: "refused" in scene.logged().lower())
        began = time.monotonic()

        assert scene.end() == 0

    assert time.monotonic() - began < PATIENCE / 2
    assert "hush" not in scene.logged()
    assert "Traceback" not in scene.logged()
