"""``restore --plan`` and ``doctor`` as typed: what they show of objects, keys, time and the lock, and how they end."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guestagent.cli import main
from guestagent.cli.restore import Seconds
from guestagent.jobs.lock import only_job
from guestagent.keys import KeyRing, KeySettings
from guestagent.keys.file import generate
from guestagent.manifest import Backup
from tests.fakes.bench import USER, Bench

NEW = ("objects", "objects_whole", "keys_needed", "keys_missing")
TIME = ("expected_seconds", "expected_from")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Scene:
    """A workbench, and commands typed over it."""

    def __init__(self, bench: Bench, capture: pytest.CaptureFixture[str]) -> None:
        self.bench = bench
        self.target = bench.top / "target"
        self._capture = capture
        self._config = bench.top / "guestagent.conf"
        self.configure()

    def configure(self, more: str = "") -> None:
        self._config.write_text(
            f"[DEFAULT]\nguest_id = guest1\nstate_dir = {self.bench.state}\n"
            f"[storage]\nurl = file://{self.bench.store}\n"
            f"[database]\nsocket = /nowhere\nuser = backup\nos_user = {USER}\n{more}"
        )
        self._config.chmod(0o600)

    def type(self, *words: str) -> Done:
        self._capture.readouterr()
        status = main(["--config-file", str(self._config), *words])
        return Done(status, *self._capture.readouterr())

    def plan(self, source: Backup, *words: str) -> Done:
        return self.type("restore", source.id, "--plan", "--datadir", str(self.target), *(words or ("-f", "json")))

    def restore(self, source: Backup) -> Done:
        return self.type("-q", "restore", source.id, "--datadir", str(self.target), "-f", "json")


@pytest.fixture
def scene(bench: Bench, capsys: pytest.CaptureFixture[str]) -> Scene:
    return Scene(bench, capsys)


def test_a_plan_looks_at_objects_and_keys(scene: Scene) -> None:
    links = [made for made, _ in scene.bench.chain(2)]
    plan = scene.plan(links[1]).json
    count = sum(len(link.manifest.segments) for link in links)
    assert [plan[name] for name in NEW] == [count, True, [], []]
    assert set(plan) >= {*NEW, *TIME}


def test_the_past_tells_how_long_it_takes(scene: Scene) -> None:
    made = scene.bench.backup()
    assert scene.plan(made).json["expected_from"] == "how long its full backup took"
    assert scene.restore(made).status == 0
    (job,) = scene.type("job", "list", "-f", "json").json
    assert scene.type("job", "show", job["id"], "-f", "json").json["result"]["raw_size"] == made.manifest.raw_size
    scene.target = scene.bench.top / "another"
    plan = scene.plan(made).json
    assert plan["expected_from"] == "1 restore on this host"
    assert 0 < plan["expected_seconds"] < 60
    table = scene.plan(made, "-c", "expected_seconds", "-c", "expected_from").out
    assert re.search(r"expected_seconds +\| about 0:00:\d\d ", table)


def test_a_plan_does_without_a_past_that_it_may_not_read(scene: Scene) -> None:
    made = scene.bench.backup()
    (scene.bench.state / "jobs").write_text("in the way")
    done = scene.plan(made)
    assert (done.status, done.json["expected_from"]) == (0, "how long its full backup took")
    assert "nothing is known of this host's restores: cannot read state_dir" in done.err


def test_how_long_is_a_number_for_machines_and_a_time_for_people() -> None:
    assert [Seconds(value).human_readable() for value in (None, 0.4, 83.2, 86400.0)] == [
        "unknown",
        "about 0:00:00",
        "about 0:01:23",
        "about 1 day, 0:00:00",
    ]
    assert [Seconds(value).machine_readable() for value in (None, 83.2)] == [None, 83.2]


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [remove, shorten])
def test_a_plan_says_no_to_a_backup_that_is_not_whole(scene: Scene, damage: Callable[[Path], None]) -> None:
    full, tip = (made for made, _ in scene.bench.chain(2))
    damage(scene.bench.object(full, "data/00000001"))
    done = scene.plan(tip)
    assert (done.status, done.json["objects_whole"], len(done.json["refused"])) == (6, False, 1)
    assert f"{full.location}/data/00000001 is " in done.json["refused"][0]
    restored = scene.restore(tip)
    assert (restored.status, restored.out) == (6, "")
    assert restored.err == done.err
    assert not scene.target.exists()


def test_a_plan_names_the_key_that_is_missing_and_never_the_key(scene: Scene) -> None:
    path = scene.bench.top / "lost.key"
    identity = generate(path)
    scene.bench.keys = KeyRing(KeySettings(key_file=path))
    made = scene.bench.backup()
    scene.configure(f"[encryption]\nkey_file = {path}\n")
    found = scene.plan(made)
    assert (found.status, found.json["keys_needed"], found.json["keys_missing"]) == (0, [identity], [])
    scene.configure()
    lost = scene.plan(made)
    assert (lost.status, lost.json["keys_needed"], lost.json["keys_missing"]) == (2, [identity], [identity])
    assert lost.err == (
        f"guestagent: backup {made.id} is encrypted with key {identity}, which is not here; "
        "name its file in [encryption] key_file or old_key_files\n"
    )
    assert scene.restore(made).err == lost.err
    secret = path.read_text().strip()
    assert secret not in found.out + found.err + lost.out + lost.err


def test_the_doctor_tells_who_holds_the_lock(scene: Scene) -> None:
    with only_job(scene.bench.state, "restore 3a"):
        done = scene.type("doctor", "-f", "json")
    (row,) = (row for row in done.json if row["check"] == "lock")
    assert (row["ok"], row["remedy"]) == ("yes", "")
    assert row["detail"].startswith(f"held by restore 3a (pid {os.getpid()})")


def test_a_warning_has_a_remedy_and_is_no_failure(scene: Scene) -> None:
    base, _ = (made for made, _ in scene.bench.chain(2))
    scene.bench.object(base, "manifest.json").unlink()
    done = scene.type("doctor", "-f", "json")
    (row,) = (row for row in done.json if row["check"] == "disk")
    assert (row["ok"], row["remedy"], done.status, done.err) == ("yes", "take a full backup", 0, "")
