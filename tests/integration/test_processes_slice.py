"""A slice of the faults in processes: some cases on a real server, and a judge that sees what it must.

Hundreds are played by tests/torture/test_processes.py; jobs have more time here, since a slow machine is no fault.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.torture import process_judge as judge
from tests.torture.process_attempts import Attempt
from tests.torture.process_cases import Case, Victim, cells, make_case
from tests.torture.process_judge import Verdict
from tests.torture.process_run import impossible
from tests.torture.process_scene import Scene, scene

CASES = (
    "incremental command s3 sealed tool:flood-lines@dump+0",
    "full command s3 sealed runner:kill@dump+0.100",
    "replace command s3 sealed runner:term@prepare+0.010",
    "replace rpc s3 sealed tool:kill@prepare+0.010",
    "incremental rpc s3 sealed clock:back@dump+0.010",
    "full rpc s3 sealed state:full@preflight+0.010",
)
PATIENT = 120
RECORD = {
    "state": "failed",
    "started": "2026-11-22T14:00:00.000Z",
    "finished": "2026-11-22T14:00:01.000Z",
    "failure": {"code": "tool", "what": "mariabackup died by SIGKILL", "hint": "", "exit_status": 1},
}
KILLED = Case.parse("replace rpc file plain tool:kill@prepare+0.010")


@pytest.fixture(scope="module")
def played() -> Iterator[Scene]:
    with scene("s3", sealed=True, limit=PATIENT) as made:
        yield made


@pytest.mark.parametrize("line", CASES)
def test_a_process_to_which_something_happens(played: Scene, line: str) -> None:
    case = Case.parse(line)
    if case.fault.victim in impossible():
        pytest.skip("nobody may mount here, so no disk is full")
    verdict = played.play(case)
    assert verdict.wrong == [], verdict


def test_the_judge_sees_what_is_left_and_what_is_missing(played: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup that is said to be complete, without one of its segments; a tool that lives on; rubbish in the store."""
    really, planted = Scene._told, []

    def plant(scene: Scene, attempt: Attempt, verdict: Verdict) -> list[str]:
        scene.store.drop([f"guest1/{attempt.id}/data/00000000"])
        scene.store.put({"guest1/0a0b0c0d-0000-4000-8000-000000000001/data/00000000": b"whose?"})
        planted.append(
            subprocess.Popen([sys.executable, "-c", "input()", str(scene.bench.place)], stdin=subprocess.PIPE)
        )
        return really(scene, attempt, verdict)

    monkeypatch.setattr(Scene, "_told", plant)
    try:
        verdict = played.play(Case.parse("full command s3 sealed tool:flood-line@dump+0"))
    finally:
        for one in planted:
            one.communicate()  # which ends its input
    for words in ("data/00000000 is missing", "processes live on", "a sweep leaves"):
        assert [one for one in verdict.wrong if words in one], (words, verdict)


@pytest.mark.parametrize(
    ("changed", "struck", "wrong"),
    [
        ({}, True, None),
        ({}, False, "nothing was struck"),
        ({"state": "cancelled"}, True, "it is cancelled"),
        ({"failure": RECORD["failure"] | {"what": "something is wrong"}}, True, "the cause is not named"),  # type: ignore[operator]
        ({"state": "completed"}, True, "it is completed, and has failed"),
    ],
)
def test_the_judge_of_ends(changed: dict[str, Any], struck: bool, wrong: str | None) -> None:
    found = judge.end_of(KILLED, RECORD | changed, struck=struck)
    assert found == [] if wrong is None else wrong in found[0]


def test_the_judge_of_what_may_not_fail() -> None:
    for line in ("full rpc file plain clock:back@dump+0", "replace rpc file plain server:kill@fetch+0"):
        assert "the cause is not named" in judge.end_of(Case.parse(line), RECORD, struck=True)[0]


@pytest.mark.parametrize(
    ("old", "new", "state", "line", "fine"),
    [
        (True, False, "failed", str(KILLED), True),
        (False, True, "failed", str(KILLED), False),
        (False, False, "failed", str(KILLED), False),
        (False, True, "completed", str(KILLED), True),
        (True, False, "completed", str(KILLED), False),
        (False, True, "failed", "replace rpc file plain runner:kill@start+0", True),
        (False, False, "failed", "replace rpc file plain runner:kill@start+0", False),
    ],
)
def test_the_judge_of_data(old: bool, new: bool, state: str, line: str, fine: bool) -> None:
    assert (judge.fits(Case.parse(line), old=old, new=new, state=state, kept=False) == []) == fine


def test_the_judge_of_a_host(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    assert judge.host(tmp_path) == []
    (tmp_path / "jobs" / "a.json").write_text('{"state": "running"}')
    (tmp_path / "jobs" / "a.progress").touch()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "x").touch()
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = judge.host(tmp_path)
    for words in ("lock is held", "scratch is left", "a is stuck", "only a running job needs"):
        assert [one for one in found if words in one], words


def test_the_judge_of_a_datadir(tmp_path: Path) -> None:
    ours = tmp_path / judge.OURS
    assert judge.datadir(tmp_path, completed=True) == []
    for name in ("README", ".old-1"):
        ours.mkdir(exist_ok=True)
        (ours / name).touch()
        assert judge.datadir(tmp_path, completed=True)
        assert judge.datadir(tmp_path, completed=False) == []
    (ours / "journal.json").touch()
    assert judge.datadir(tmp_path, completed=False) == ["left in the datadir: ['journal.json']"]


def test_the_judge_of_times_rows_statuses_and_secrets() -> None:
    backup = Case.parse("full rpc file plain tool:kill@dump+0")
    assert judge.times_of(RECORD, RECORD) == []
    back, forth = ({**RECORD, "finished": f"2026-11-22T{hour}:00:01.000Z"} for hour in ("11", "17"))
    assert len(judge.times_of(back, back)) == 2
    assert judge.times_of(RECORD, forth) == ["the backup took 10801 s by its manifest"]
    row = {"state": "FAILED", "note": "mariabackup died by SIGKILL"}
    assert judge.row(backup, row, RECORD, None) == []
    assert judge.row(backup, row | {"note": "no"}, RECORD, None)
    assert judge.row(backup, row | {"state": "BUILDING"}, RECORD, None)
    completed = {"state": "COMPLETED", "success": True, "checksum": "c"}
    assert judge.row(backup, completed, RECORD | {"state": "completed"}, "c") == []
    assert judge.row(backup, completed, RECORD | {"state": "completed"}, "d")
    assert judge.agrees(0, RECORD)
    assert judge.agrees(1, RECORD) == judge.agrees(None, RECORD) == []
    own, others = (
        f"2026-11-22 14:00:00,000 ERROR {name}: no\nTraceback (most recent" for name in ("guestagent.x", "amqp")
    )
    assert judge.tracebacks(["no"], [others]) == []
    assert judge.tracebacks([], [own]) == judge.tracebacks([others], []) == ["a traceback"]
    assert judge.secrets(["nothing"], {"the key": "0123456789"}) == []
    assert judge.secrets(["the first half, 0123456"], {"the key": "0123456789"}) == ["the key was told"]


def test_a_case_is_made_of_a_seed_and_read_back_from_its_line() -> None:
    every = cells()
    cases = [make_case(7, number) for number in range(2 * len(every))]
    assert cases == [make_case(7, number) for number in range(2 * len(every))]
    assert [Case.parse(str(case)) for case in cases] == cases
    assert len({case.row for case in cases}) > len(every) // 4
    without = [make_case(7, number, but=[Victim.BROKER]) for number in range(len(every))]
    assert not [case for case in without if case.fault.victim is Victim.BROKER]
