"""``guestagent-ctl`` and the agent's real endpoint over local://, with a real ledger between them and the test."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from guestagent.cli import backup, drawn
from guestagent.cli.control import COMMANDS, follow
from guestagent.cli.control.follow import Following
from guestagent.cli.restore import RESTORED
from guestagent.errors import ChainBroken, GuestagentError
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Failure, Job, Kind, State, Step
from tests.processes import eventually
from tests.unit.control_scene import GUEST, PATIENCE, Scene, one_line

ID = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"
BACKUP = "00000001-0000-4000-8000-000000000000"
RUN = ["backup-create", GUEST, "nightly"]
STARTERS = [
    RUN,
    ["backup-verify", GUEST, BACKUP],
    ["backup-delete", GUEST, BACKUP],
    ["restore", GUEST, "--backup", BACKUP],
]


@pytest.fixture
def idle(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A host on which no agent serves."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(follow, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(follow, "LONGEST_PAUSE", 0.05)
    return Scene(tmp_path, capsys)


@pytest.fixture
def scene(idle: Scene) -> Iterator[Scene]:
    """One on which it does."""
    with idle.serving():
        yield idle


def accept(scene: Scene, wanted: str = ID, kind: Kind = Kind.BACKUP, **request: Any) -> str:
    """A job that somebody asked for before."""
    job = Job(wanted, kind, request or {"name": "b", "parent": None}, created=datetime.now(UTC), origin="trove")
    return scene.ledger.accept(job)[0].id


def properties(done_id: str) -> dict[str, Any]:
    return dict.fromkeys(backup.PROPERTIES) | {"id": done_id, "status": "COMPLETED", "size": 0.5}


def taken(scene: Scene) -> Callable[[Ledger, str], None]:
    """A backup goes well, and each of its phases is seen."""

    def story(ledger: Ledger, wanted: str) -> None:
        ledger.begin(wanted)
        for step in (Step("dump", 10, 100, rate=5.0), Step("publish")):
            ledger.note(wanted, step)
            looked_at(scene)
        ledger.complete(wanted, properties(wanted))

    return story


def looked_at(scene: Scene) -> None:
    """Wait until somebody has been told of the job as it is now."""
    before = scene.looks
    assert eventually(lambda: scene.looks > before + 1)


# -- what starts a job


def test_a_request_answers_the_job_at_once(scene: Scene) -> None:
    done = scene.ask(*RUN, "--parent", "latest", "--description", "of tonight", "-f", "json")
    assert (done.status, done.err) == (0, "")
    assert list(done.json) == list(drawn.PROPERTIES)
    job = scene.ledger.get(done.json["id"])
    assert (job.kind, job.state, job.origin) == (Kind.BACKUP, State.QUEUED, "rpc")
    assert job.request == {"name": "nightly", "description": "of tonight", "parent": "latest", "parent_checksum": None}


def test_one_thing_is_drawn_as_troves_client_draws_it(scene: Scene) -> None:
    lines = scene.ask(*RUN, "--id", ID).out.splitlines()
    assert re.fullmatch(r"\| Property +\| Value +\|", lines[1])
    assert [line.split()[1] for line in lines[3 : 3 + 3]] == ["id", "kind", "state"]
    assert f"| {ID} " in lines[3]
    assert scene.ask("job-show", GUEST, ID, "-f", "value", "-c", "id").out == f"{ID}\n"
    heading, row = csv.reader(io.StringIO(scene.ask("job-show", GUEST, ID, "-f", "csv").out))
    assert (heading, row[0]) == (list(drawn.PROPERTIES), ID)


def test_each_verb_asks_for_its_kind(scene: Scene) -> None:
    found = [scene.ledger.get(scene.ask(*words, "-f", "json").json["id"]) for words in STARTERS]
    assert [job.kind for job in found] == [Kind.BACKUP, Kind.VERIFY, Kind.DELETE, Kind.RESTORE]
    assert found[1].request == {"backup_id": BACKUP}
    assert found[2].request == {"backup_id": BACKUP, "cascade": False}
    wanted = {"source": BACKUP, "replace": False, "start": None}
    assert {name: found[3].request[name] for name in wanted} == wanted


def test_options_of_restore_and_delete_arrive(scene: Scene) -> None:
    location = scene.publish(1).location
    words = ["restore", GUEST, "--backup", location, "--replace", "--no-start", "-f", "json"]
    request = scene.ledger.get(scene.ask(*words).json["id"]).request
    assert (request["source"], request["replace"], request["start"]) == (location, True, False)
    words = ["backup-delete", GUEST, BACKUP.upper(), "--cascade", "-f", "json"]
    assert scene.ledger.get(scene.ask(*words).json["id"]).request == {"backup_id": BACKUP, "cascade": True}
    words = [*RUN, "--parent", BACKUP.upper(), "-f", "json"]
    assert scene.ledger.get(scene.ask(*words).json["id"]).request["parent"] == BACKUP


def test_the_same_id_again_is_the_same_job(scene: Scene) -> None:
    first = scene.ask(*RUN, "--id", ID.upper(), "-f", "json").json
    assert scene.ask(*RUN, "--id", ID, "-f", "json").json == first
    assert len(scene.ledger.all()) == 1
    one_line(scene.ask(*RUN[:2], "other", "--id", ID), 3, f"id {ID} is taken by another request")


@pytest.mark.parametrize(("options", "seconds"), [([], 3600), (["--deadline", "7.5"], 7.5)])
def test_a_request_carries_its_deadline(scene: Scene, options: list[str], seconds: float) -> None:
    before = datetime.now(UTC)
    job = scene.ledger.get(scene.ask(*options, *RUN, "-f", "json").json["id"])
    assert job.deadline is not None
    assert timedelta(0) <= job.deadline - before - timedelta(seconds=seconds) < timedelta(seconds=PATIENCE)


# -- nobody, nothing, no answer


@pytest.mark.parametrize("words", [*STARTERS, ["ping", GUEST], ["job-list", GUEST], [*RUN, "--wait"]])
def test_a_wrong_instance_is_an_error_at_once(scene: Scene, words: list[str]) -> None:
    begun = time.monotonic()
    done = scene.ask(words[0], "guest2", *words[2:])
    one_line(done, 4, "no agent of guest2 is listening")
    assert "may have been accepted" not in done.err
    assert time.monotonic() - begun < PATIENCE / 2
    assert scene.ledger.all() == []


def test_no_answer_tells_the_id_and_how_to_ask(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted, over = Ledger.accept, threading.Event()

    def slow(ledger: Ledger, job: Job) -> tuple[Job, bool]:
        found = accepted(ledger, job)
        over.wait(PATIENCE)
        return found

    monkeypatch.setattr(Ledger, "accept", slow)
    done = scene.ask("--timeout", "0.5", *RUN, "--wait")
    assert eventually(lambda: len(scene.ledger.all()) == 1)
    over.set()
    (job,) = scene.ledger.all()
    one_line(done, 1, "did not answer within 0.5 s", f"job {job.id} may have been accepted all the same")
    assert f"`guestagent-ctl job-show {GUEST} {job.id}` tells" in done.err
    assert f"--id {job.id} is safe" in done.err


def test_the_transport_may_be_named(scene: Scene) -> None:
    scene.configure(DEFAULT="transport_url = local:///nowhere/at/all")
    one_line(scene.ask("ping", GUEST), 4, "no agent of guest1 is listening")
    assert scene.ask("--transport-url", scene.url, "ping", GUEST).status == 0
    scene.configure(DEFAULT="transport_url =")
    one_line(scene.ask("ping", GUEST), 2, "[DEFAULT] transport_url is empty")
    one_line(scene.ask("--transport-url", "gopher://hole", "ping", GUEST), 2, "gopher")


def test_a_broker_that_is_away_is_one_line_without_its_password(scene: Scene) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"rabbit://user:w0rd@127.0.0.1:{closed.getsockname()[1]}/"
        done = scene.ask("--transport-url", url, "--timeout", "0.5", *RUN)
    one_line(done, 1, "no broker", "may have been accepted all the same")
    assert "w0rd" not in done.err


# -- waiting


def test_waiting_ends_with_the_backup(scene: Scene) -> None:
    with scene.performing(taken(scene)):
        done = scene.ask(*RUN, "--wait", "-f", "json", "--id", ID)
    assert done.status == 0
    assert done.json == properties(ID)
    phases = re.findall(r"^ +\d+\.\d s  (.+)$", done.err, re.MULTILINE)
    assert phases in (["dump (100 bytes)", "publish"], ["queued", "dump (100 bytes)", "publish"])
    assert f"backup {ID} of {GUEST}\n" in done.err


def test_quiet_waiting_says_nothing(scene: Scene) -> None:
    with scene.performing(taken(scene)):
        done = scene.ask("-q", *RUN, "--wait", "-f", "value", "-c", "status")
    assert (done.status, done.out, done.err) == (0, "COMPLETED\n", "")


def test_waiting_for_a_restore_shows_what_was_restored(scene: Scene) -> None:
    result = dict.fromkeys(RESTORED) | {"backup_id": BACKUP, "datadir": "/var/lib/mysql", "links": 3}

    def restored(ledger: Ledger, wanted: str) -> None:
        ledger.begin(wanted)
        ledger.complete(wanted, result)

    with scene.performing(restored):
        done = scene.ask("restore", GUEST, "--backup", BACKUP, "--wait", "-f", "json")
    assert (done.status, done.json) == (0, result)


@pytest.mark.parametrize("words", STARTERS[1:3])
def test_waiting_for_other_work_shows_the_job(scene: Scene, words: list[str]) -> None:
    def done_well(ledger: Ledger, wanted: str) -> None:
        ledger.begin(wanted)
        ledger.complete(wanted, {"deleted": [{"id": BACKUP}]})

    with scene.performing(done_well):
        done = scene.ask(*words, "--wait", "-f", "json")
    assert done.status == 0
    assert (done.json["state"], done.json["result"]) == ("completed", {"deleted": [{"id": BACKUP}]})


def test_a_failure_is_the_jobs_own_with_its_exit_status(scene: Scene) -> None:
    def broken(ledger: Ledger, wanted: str) -> None:
        ledger.begin(wanted)
        ledger.fail(wanted, Failure.of(ChainBroken("chain broken at b7", hint="take a full backup")))

    with scene.performing(broken):
        done = scene.ask("-q", *RUN, "--wait", "-f", "json", "--id", ID)
    one_line(done, 5, f"backup {ID} failed: chain broken at b7; take a full backup")


def test_a_cancelled_job_has_the_status_of_a_cancel(scene: Scene) -> None:
    def cancelled(ledger: Ledger, wanted: str) -> None:
        ledger.cancel(wanted, "enough")

    with scene.performing(cancelled):
        done = scene.ask("-q", *RUN, "--wait", "--id", ID)
    one_line(done, 10, f"backup {ID} was cancelled", "enough")


def test_a_job_that_has_ended_is_waited_for_at_once(scene: Scene) -> None:
    accept(scene)
    scene.ledger.begin(ID)
    scene.ledger.complete(ID, properties(ID))
    done = scene.ask("-q", "job-show", GUEST, ID, "--wait", "-f", "json")
    assert (done.status, done.json["state"], done.err) == (0, "completed", "")
    scene.ledger.accept(Job(OTHER, Kind.BACKUP, {"name": "x"}, created=datetime.now(UTC), origin="rpc"))
    scene.ledger.cancel(OTHER, "enough")
    assert scene.ask("job-show", GUEST, OTHER).status == 0, "showing is no failure"
    one_line(scene.ask("-q", "job-show", GUEST, OTHER, "--wait"), 10, f"backup {OTHER} was cancelled")


def test_an_agent_that_restarts_meanwhile_is_waited_for(idle: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(idle)
    first = idle.serving()
    first.__enter__()
    missed, bear = threading.Event(), Following._bear

    def bearing(following: Following, error: GuestagentError) -> None:
        bear(following, error)
        missed.set()

    monkeypatch.setattr(Following, "_bear", bearing)

    def restarted(ledger: Ledger, wanted: str) -> None:
        looked_at(idle)
        first.__exit__(None, None, None)
        assert missed.wait(PATIENCE)
        with idle.serving():
            ledger.begin(wanted)
            ledger.complete(wanted, {"done": True})
            before = idle.looks
            assert eventually(lambda: idle.looks > before)

    with idle.performing(restarted):
        done = idle.ask("job-show", GUEST, ID, "--wait", "-f", "json")
    assert (done.status, done.json["state"]) == (0, "completed")
    assert follow.AWAY in done.err


def test_an_agent_that_stays_away_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(scene)
    monkeypatch.setattr("guestagent.cli.control.starting.PATIENCE", 0.5)

    def gone(ledger: Ledger, wanted: str) -> None:
        time.sleep(0.2)
        (scene.place / "run").rename(scene.place / "away")

    try:
        with scene.performing(gone):
            done = scene.ask("-q", "job-show", GUEST, ID, "--wait")
    finally:
        (scene.place / "away").rename(scene.place / "run")
    one_line(done, 1, "has not been heard of for", f"backup {ID} goes on if the agent does")
    assert f"`guestagent-ctl job-show {GUEST} {ID} --wait` waits again" in done.err


# -- stopped while waiting


@contextmanager
def waiting(scene: Scene, *words: str, looks: int = 0, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process of its own, once its agent has the job and was asked for it so many times."""
    with subprocess.Popen(scene.argv(*words), stdout=-1, start_new_session=True, **options) as process:
        try:
            assert eventually(lambda: bool(scene.ledger.all()))
            assert eventually(lambda: scene.looks >= looks)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_stops_waiting_is_told_that_the_job_goes_on(scene: Scene, number: signal.Signals) -> None:
    with waiting(scene, *RUN, "--wait", "-f", "json", "--id", ID, looks=1, stderr=-1) as process:
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=PATIENCE)
    told = err.decode().splitlines()[-1]
    assert (process.returncode, out) == (10, b"")
    assert told == (
        f"guestagent-ctl: stopped by {number.name}, but backup {ID} goes on; "
        f"`guestagent-ctl job-show {GUEST} {ID} --wait` waits again, "
        f"`guestagent-ctl job-cancel {GUEST} {ID}` cancels it"
    )
    assert scene.ledger.get(ID).state is State.QUEUED


def test_whoever_stops_before_the_answer_is_told_the_id(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted, over = Ledger.accept, threading.Event()

    def slow(ledger: Ledger, job: Job) -> tuple[Job, bool]:
        found = accepted(ledger, job)
        over.wait(PATIENCE)
        return found

    monkeypatch.setattr(Ledger, "accept", slow)
    with waiting(scene, *RUN, "--id", ID, stderr=-1) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        over.set()
    assert process.returncode == 10
    assert f"stopped by SIGINT, but job {ID} may have been accepted all the same; " in err.decode()
    assert err.count(b"\n") == 1


def test_a_terminal_gets_a_bar_with_rate_and_time_left(scene: Scene) -> None:
    accept(scene)
    scene.ledger.begin(ID)
    mib = 1 << 20
    scene.ledger.note(ID, Step("prepare", 50 * mib, 200 * mib, 2, 3, 10.0 * mib))
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with waiting(scene, "job-show", GUEST, ID, "--wait", "-f", "json", looks=3, stderr=theirs) as process:
        os.close(theirs)
        scene.ledger.complete(ID, properties(ID))
        out, _ = process.communicate(timeout=PATIENCE)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert (process.returncode, json.loads(out)["state"]) == (0, "completed")
    assert "prepare link 2 of 3" in seen
    assert "25%" in seen
    assert "50.0M/200M [00:05<00:15, 10.5MB/s]" in seen


# -- what only asks


def test_backups_are_listed_and_shown(scene: Scene) -> None:
    first, second = scene.publish(1), scene.publish(2)
    rows = scene.ask("backup-list", GUEST, "-f", "json").json
    assert [list(row) for row in rows] == [list(backup.LISTED)] * 2
    assert [row["id"] for row in rows] == [first.id, second.id]
    assert [row["name"] for row in scene.ask("backup-list", GUEST, "--all", "-f", "json").json] == ["b1", "b2"]
    shown = scene.ask("backup-show", GUEST, first.id, "-f", "json").json
    assert shown == first.properties()
    one_line(scene.ask("backup-show", GUEST, OTHER), 4, OTHER)


def test_jobs_are_listed_the_newest_last_and_no_more_than_asked(scene: Scene) -> None:
    for number in range(5):
        accept(scene, f"{number:08d}-0000-4000-8000-000000000000")
    rows = scene.ask("job-list", GUEST, "-f", "json").json
    assert list(rows[0]) == list(drawn.LISTED)
    assert [row["id"][7] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["id"][7] for row in scene.ask("job-list", GUEST, "--limit", "2", "-f", "json").json] == ["3", "4"]


def test_a_job_is_cancelled_or_asked_to_stop(scene: Scene) -> None:
    accept(scene)
    done = scene.ask("job-cancel", GUEST, ID, "-f", "json")
    assert (done.status, done.json["state"], done.err) == (0, "cancelled", "")
    one_line(scene.ask("job-cancel", GUEST, ID), 3, f"job {ID} has already ended: cancelled")
    accept(scene, OTHER)
    scene.ledger.begin(OTHER)
    done = scene.ask("job-cancel", GUEST, OTHER, "-f", "json")
    assert (done.status, done.json["state"]) == (0, "running")
    assert scene.ledger.asked_to_stop(OTHER)
    scene.ledger.fail(OTHER, Failure.of(GuestagentError("broken")))
    one_line(scene.ask("job-cancel", GUEST, OTHER), 3, f"job {OTHER} has already ended: failed")
    one_line(scene.ask("job-cancel", GUEST, BACKUP), 4, f"no job {BACKUP}")
    one_line(scene.ask("job-show", GUEST, BACKUP), 4, f"no job {BACKUP}")


def test_a_job_that_ends_just_before_the_cancel(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(scene)
    scene.ledger.begin(ID)
    cancel = Ledger.cancel

    def too_late(ledger: Ledger, one: str, reason: str) -> Job:
        ledger.complete(one, {})
        return cancel(ledger, one, reason)

    monkeypatch.setattr(Ledger, "cancel", too_late)
    one_line(scene.ask("job-cancel", GUEST, ID), 3, f"job {ID} has already ended: completed")


def test_the_doctor_is_asked_and_judges(scene: Scene) -> None:
    done = scene.ask("doctor", GUEST, "-f", "json")
    assert (done.status, done.err) == (1, "guestagent-ctl: not all is well: server; do what the remedies say\n")
    assert {row["check"]: row["ok"] for row in done.json}["store"] == "yes"


def test_a_ping_tells_who_is_there_and_what_it_does(scene: Scene) -> None:
    shown = scene.ask("ping", GUEST, "-f", "json").json
    assert (list(shown), shown["guest_id"], shown["job"]) == (["guest_id", "version", "now", "job"], GUEST, None)
    accept(scene)
    scene.ledger.begin(ID)
    assert scene.ask("ping", GUEST, "-f", "json").json["job"]["id"] == ID
    assert f"id: {ID}" in scene.ask("ping", GUEST).out


# -- words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ping"], "INSTANCE_ID"),
        (["ping", "../x"], "not an instance id: '../x'"),
        (["backup-create", GUEST], "NAME"),
        (["backup-create", GUEST, "two\nlines"], "argument NAME"),
        ([*RUN, "--parent", "newest"], "not a backup id: 'newest'"),
        ([*RUN, "--id", "7"], "not a job id: '7'"),
        (["backup-show", GUEST, "7"], "not a backup id: '7'"),
        (["backup-verify", GUEST, "7"], "not a backup id: '7'"),
        (["backup-delete", GUEST, "7"], "not a backup id: '7'"),
        (["restore", GUEST], "--backup"),
        (["restore", GUEST, "--backup", "7"], "not a backup id: '7'"),
        (["restore", GUEST, "--backup", BACKUP, "-c", "id", "--wait"], "no column 'id'; there are backup_id,"),
        (["restore", GUEST, "--backup", BACKUP, "-c", "datadir"], "no column 'datadir'; there are id,"),
        (["job-show", GUEST, "7"], "not a job id: '7'"),
        (["job-cancel", GUEST, "7"], "not a job id: '7'"),
        (["job-list", GUEST, "--limit", "0"], "--limit: '0' is not a number from 1 to 1000"),
        (["job-list", GUEST, "--limit", "²"], "--limit: '²'"),
        (["job-list", GUEST, "--limit", "1001"], "--limit: '1001'"),
        (["--timeout", "0", "ping", GUEST], "argument --timeout: '0' is not a number of seconds above 0"),
        (["--timeout", "nan", "ping", GUEST], "argument --timeout"),
        (["--deadline", "-1", "ping", GUEST], "argument --deadline"),
        (["--deadline", "soon", "ping", GUEST], "argument --deadline: 'soon' is not"),
        (["backup", "list"], "no command 'backup'; see guestagent-ctl --help"),
        (["--wat", "ping"], "no option --wat; see guestagent-ctl --help"),
    ],
)
def test_words_that_make_no_sense_are_told_in_one_line(idle: Scene, words: list[str], told: str) -> None:
    done = idle.ask(*words)
    one_line(done, 2, told)
    assert len(done.err) < 400


def test_help_knows_the_commands_and_the_exit_statuses(idle: Scene) -> None:
    done = idle.ask("--help")
    listed = re.findall(r"^  ([a-z]+(?:-[a-z]+)?)  ", done.out.partition("Commands:")[2], re.MULTILINE)
    assert (done.status, listed) == (0, sorted([*COMMANDS, "complete", "help"]))
    assert "9 database, 10 cancelled." in " ".join(done.out.split())
    for name in COMMANDS:
        assert "INSTANCE_ID" in idle.ask(name, "--help").out
    assert idle.ask().status == 2
