"""The server's life during a restore: stopped for certain, started quietly, and believed only when it answers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from guestagent.engines import Connection
from guestagent.errors import Cancelled, DatabaseError, GuestagentError, ToolError
from guestagent.operations import service
from guestagent.operations.host import DatabaseSettings
from guestagent.progress import Cancel, Watch
from guestagent.streams.process import run_command
from tests.fakes.bench import PATIENCE, Bench, when

SYSTEMCTL = """#!/bin/sh
echo "$*" >> {calls}
case $1 in
  set-environment) printf %s "${{2#MYSQLD_OPTS=}}" > {manager} ;;
  unset-environment) rm {manager} ;;
  start) MYSQLD_OPTS=$(cat {manager} 2>/dev/null) exec {start} ;;
esac
"""


@pytest.fixture
def settings(bench: Bench) -> DatabaseSettings:
    return bench.host().database


@pytest.fixture
def systemd(bench: Bench, settings: DatabaseSettings) -> DatabaseSettings:
    """The settings of a host whose systemctl hands nothing of our environment to the server, as the real one."""
    program = bench.top / "systemctl"
    program.write_text(
        SYSTEMCTL.format(
            calls=bench.top / "systemctl.calls",
            manager=bench.top / "manager",
            start=" ".join(bench.server.command("start")),
        )
    )
    program.chmod(0o755)
    return replace(settings, start_command=(str(program), "start", "mariadb"))


def start(bench: Bench, settings: DatabaseSettings, watch: Watch | None = None) -> str:
    return service.start_quietly(settings, bench.datadir, bench.server.datastore, watch or Watch())


# Stopping


def test_a_server_that_was_stopped_runs_no_more(bench: Bench, settings: DatabaseSettings) -> None:
    service.stop(settings, bench.datadir, Watch())
    assert not bench.server.running


def test_a_server_that_still_runs_after_it_was_stopped(bench: Bench, settings: DatabaseSettings) -> None:
    bench.server.knob("ignore-stop")
    with pytest.raises(
        DatabaseError, match=f"a server still runs on {bench.datadir} after .*fake-server stop"
    ) as error:
        service.stop(settings, bench.datadir, Watch())
    assert "stop_command" in error.value.hint


def test_a_stop_command_that_fails(bench: Bench, settings: DatabaseSettings) -> None:
    bench.server.knob("refuse-stop")
    with pytest.raises(ToolError, match=r"fake-server stop .* failed with exit status 1: access denied"):
        service.stop(settings, bench.datadir, Watch())


def test_a_server_that_takes_its_time_to_go_is_stopped_again_until_it_is_gone(
    bench: Bench, settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "LEAVES", PATIENCE)
    monkeypatch.setattr(service, "LOOK", 0.01)
    bench.server.knob("ignore-stop")
    when(lambda: len(bench.server.calls()) > 1, lambda: (bench.server.place / "ignore-stop").rename(bench.top / "knob"))
    service.stop(settings, bench.datadir, Watch())
    assert not bench.server.running
    assert "cannot stop" not in caplog.text


@pytest.mark.parametrize("boots", ["no-locks", "no-pid"])
def test_a_server_that_is_still_starting_as_its_start_is_cancelled_is_stopped(
    bench: Bench, settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch, boots: str
) -> None:
    """The stop command finds no pid file, and says that it is done."""
    for name, value in (("LEAVES", PATIENCE), ("TURNS_UP", PATIENCE), ("LOOK", 0.01)):
        monkeypatch.setattr(service, name, value)
    bench.server.halt()
    bench.server.knob(boots)
    booting, cancel = bench.server.place / "booting", Cancel()
    booting.unlink()
    when(lambda: booting.exists() and booting.read_text() == boots, lambda: cancel.set("stopped by SIGINT"))
    with pytest.raises(Cancelled):
        start(bench, settings, Watch(cancel=cancel))

    def then_it_boots(argv: Sequence[str], watch: Watch) -> None:
        run_command(argv, watch)
        (bench.server.place / boots).unlink(missing_ok=True)

    monkeypatch.setattr(service, "run_command", then_it_boots)
    service.stop(settings, bench.datadir, Watch())
    assert bench.server.calls().count("stop") > 1
    assert not bench.server.running
    assert not bench.server.up


def test_a_stop_that_fails_while_the_server_goes_is_only_reported(
    bench: Bench, settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a second shutdown does, by a client that nobody answers any more."""
    monkeypatch.setattr(service, "LEAVES", PATIENCE)
    monkeypatch.setattr(service, "LOOK", 0.01)
    bench.server.knob("ignore-stop")

    def refuse() -> None:
        bench.server.knob("refuse-stop")
        when(lambda: "cannot stop" in caplog.text, bench.server.end)

    when(lambda: len(bench.server.calls()) > 1, refuse)
    service.stop(settings, bench.datadir, Watch())
    assert f"cannot stop the server on {bench.datadir} as yet: " in caplog.text
    assert not bench.server.running


@pytest.mark.parametrize("up", [True, False])
def test_a_cancel_ends_the_wait_for_a_server_that_stops(
    bench: Bench, settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch, up: bool
) -> None:
    for name, value in (("LEAVES", 600), ("TURNS_UP", 600), ("LOOK", 0.01)):
        monkeypatch.setattr(service, name, value)
    bench.server.knob("ignore-stop") if up else bench.server.halt()
    cancel = Cancel()
    when(lambda: "stop" in bench.server.calls(), lambda: cancel.set("stopped by SIGINT"))
    with pytest.raises(Cancelled, match="stopped by SIGINT"):
        service.stop(settings, bench.datadir, Watch(cancel=cancel))


def test_no_server_at_all_is_not_waited_for_longer_than_one_takes_to_turn_up(
    bench: Bench, settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LEAVES", 600), ("TURNS_UP", 0.1), ("LOOK", 0.01)):
        monkeypatch.setattr(service, name, value)
    bench.server.halt()
    service.stop(settings, bench.datadir, Watch())
    assert bench.server.calls() == ["stop"]


# Starting quietly


@pytest.mark.parametrize("datastore", ["mariadb", "mysql"])
def test_events_and_replication_are_off_in_a_restored_server(
    bench: Bench, settings: DatabaseSettings, datastore: str
) -> None:
    bench.server.halt()
    bench.server.datastore = datastore
    assert start(bench, settings) == bench.server.version_text
    skip = {"mariadb": "--skip-slave-start", "mysql": "--skip-replica-start"}[datastore]
    assert bench.server.options() == f"--event-scheduler=OFF {skip}"


def test_systemctl_is_told_through_its_manager_and_only_for_this_start(bench: Bench, systemd: DatabaseSettings) -> None:
    bench.server.halt()
    start(bench, systemd)
    assert bench.server.options() == "--event-scheduler=OFF --skip-slave-start"
    assert (bench.top / "systemctl.calls").read_text().splitlines() == [
        "set-environment MYSQLD_OPTS=--event-scheduler=OFF --skip-slave-start",
        "start mariadb",
        "unset-environment MYSQLD_OPTS",
    ]
    assert not (bench.top / "manager").exists()
    bench.server.halt()
    service.start(systemd, Watch())
    assert bench.server.options() == ""


@pytest.mark.parametrize("how", ["refused", "cancelled"])
def test_the_manager_forgets_the_options_after_a_start_that_failed(
    bench: Bench, systemd: DatabaseSettings, how: str
) -> None:
    bench.server.halt()
    cancel = Cancel()
    if how == "refused":
        bench.server.knob("refuse-start")
    else:
        bench.server.mute_on = b""
        when(lambda: bench.server.up, lambda: cancel.set("stopped"))
    with pytest.raises(ToolError if how == "refused" else Cancelled):
        start(bench, systemd, Watch(cancel=cancel))
    assert not (bench.top / "manager").exists()


def test_a_manager_that_does_not_forget_is_reported(
    bench: Bench, systemd: DatabaseSettings, caplog: pytest.LogCaptureFixture
) -> None:
    bench.server.halt()
    program = Path(systemd.start_command[0])
    program.write_text(program.read_text().replace("rm ", "exit 4; rm "))
    assert start(bench, systemd) == bench.server.version_text
    assert "later starts of the server get MYSQLD_OPTS too: " in caplog.text


def test_a_server_that_is_loud_is_quieted(
    bench: Bench, settings: DatabaseSettings, caplog: pytest.LogCaptureFixture
) -> None:
    bench.server.halt()
    bench.server.loud = ["the event scheduler"]
    start(bench, settings)
    assert bench.server.loud == []
    assert caplog.text == ""


def test_a_server_that_stays_loud_is_reported(
    bench: Bench, settings: DatabaseSettings, caplog: pytest.LogCaptureFixture
) -> None:
    bench.server.halt()
    bench.server.loud, bench.server.stubborn = ["the event scheduler", "replication"], True
    start(bench, settings)
    assert "the restored server runs replication already; does start_command pass $MYSQLD_OPTS on?" in caplog.text


def test_a_server_that_answers_and_does_not_let_us_in_has_answered(
    bench: Bench, settings: DatabaseSettings, caplog: pytest.LogCaptureFixture
) -> None:
    bench.server.halt()
    bench.server.denied = True
    assert start(bench, settings) == bench.server.version_text
    assert "cannot look whether events and replication are off: access denied" in caplog.text


# Believing


def test_a_server_that_never_answers(bench: Bench, settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PATIENCE", 0.05)
    bench.server.halt()
    bench.server.mute_on = b""
    begun = time.monotonic()
    with pytest.raises(DatabaseError, match=r"no answer within 0\.4 s: .*nobody is there.*; look at the log"):
        start(bench, replace(settings, start_timeout=0.4))
    assert 0.35 < time.monotonic() - begun < PATIENCE


def test_what_kept_a_server_from_answering_is_quoted_once(
    settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(*_: object, timeout: float) -> str:
        raise DatabaseError(f"no answer within {timeout:g} s: it is down", hint="look") from DatabaseError("it is down")

    monkeypatch.setattr(service, "answers", answers)
    with pytest.raises(DatabaseError) as failed:
        service.start(replace(settings, start_command=("true",), start_timeout=2), Watch())
    assert str(failed.value) == "no answer within 2 s: it is down; look"


def test_a_server_that_takes_its_time(
    bench: Bench, settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "PATIENCE", 0.05)
    bench.server.halt()
    bench.server.mute_on = b""
    threading.Timer(0.4, setattr, [bench.server, "mute_on", None]).start()
    assert start(bench, settings) == bench.server.version_text


def test_a_server_that_answers_from_another_datadir_is_not_believed(bench: Bench, settings: DatabaseSettings) -> None:
    bench.server.halt()
    bench.server.knob("elsewhere")
    bench.server.always_answers = True
    with pytest.raises(
        DatabaseError, match=f"fake-server start .*, and none runs on {bench.datadir}; set .*start_command"
    ):
        start(bench, settings)


@pytest.mark.parametrize("verb", ["start", "answer"])
def test_a_cancel_ends_the_wait_within_seconds(bench: Bench, settings: DatabaseSettings, verb: str) -> None:
    bench.server.halt()
    bench.server.mute_on = b""
    cancel = Cancel()
    if verb == "start":
        settings = replace(settings, start_command=("sleep", "60"))
    begun = time.monotonic()
    when(lambda: bench.server.up or time.monotonic() > begun + 0.4, lambda: cancel.set("stopped by SIGINT"))
    with pytest.raises(Cancelled, match="stopped by SIGINT"):
        start(bench, replace(settings, start_timeout=600), Watch(cancel=cancel))
    assert time.monotonic() - begun < PATIENCE


def test_the_no_progress_limit_is_not_for_a_server_that_recovers(
    bench: Bench, settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def answers(connection: Connection, *, timeout: float) -> str:
        if not now[0]:
            now[0] = 10_000
            raise DatabaseError("it recovers")
        return bench.server.answers(connection, timeout=timeout)

    monkeypatch.setattr(service, "answers", answers)
    bench.server.halt()
    assert start(bench, settings, Watch(limit=1, clock=lambda: now[0])) == bench.server.version_text


# Undoing


def test_what_fails_after_a_failure_is_only_reported(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise GuestagentError("the disk is gone", hint="look")

    done: list[int] = []
    assert not service.undo(fails, "cannot put it back")
    assert service.undo(lambda: done.append(1), "cannot do it")
    assert (done, [record.getMessage() for record in caplog.records]) == (
        [1],
        ["cannot put it back: the disk is gone; look"],
    )


def test_what_is_no_failure_of_ours_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        service.undo(lambda: os.truncate("/", 1 // 0), "cannot")
