"""``guestagent key``: typed as people type it, over a store in a directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guestagent.catalog import Catalog
from guestagent.cli import main
from guestagent.errors import Busy, ObjectExists
from guestagent.jobs.lock import only_job
from guestagent.keys import KeySettings, open_keys
from guestagent.keys.file import generate
from guestagent.manifest import Backup
from guestagent.storage import open_storage
from guestagent.storage.file import FileStorage
from tests.fakes.backups import GUEST, manifest


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Scene:
    """A configuration, its keys, and the commands typed over it."""

    place: Path
    capture: pytest.CaptureFixture[str]

    def configure(self, **encryption: str) -> None:
        """Write the configuration, with these options of [encryption]."""
        lines = [
            f"[DEFAULT]\nguest_id = guest1\nstate_dir = {self.place}/state",
            f"[storage]\nurl = file://{self.place}/store\n[encryption]",
            *(f"{name} = {value}" for name, value in encryption.items()),
        ]
        path = self.place / "guestagent.conf"
        path.write_text("\n".join(lines))
        path.chmod(0o600)

    def type(self, *words: str) -> Done:
        self.capture.readouterr()
        status = main(["--config-file", str(self.place / "guestagent.conf"), *words])
        return Done(status, *self.capture.readouterr())

    def taken(self, number: int, key: str) -> Backup:
        """A backup under the key of that file."""
        keys = open_keys(KeySettings(self.place / key))
        with Catalog(f"file://{self.place}/store", instance=GUEST, open_storage=open_storage, keys=keys) as catalog:
            made = manifest(number)
            return catalog.publish(made, data_key=catalog.new_data_key(GUEST, made.id))


@pytest.fixture
def scene(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("COLUMNS", "200")
    made = Scene(tmp_path, capsys)
    made.configure()
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield made
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


@pytest.fixture
def ids(scene: Scene) -> dict[str, str]:
    return {name: generate(scene.place / name) for name in ("one", "two")}


def test_a_key_is_made_and_its_id_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene.place)

    done = scene.type("key", "generate", "my.key", "-f", "json")

    scene.configure(key_file=str(scene.place / "my.key"))
    assert (done.status, done.err) == (0, "")
    assert done.json["file"] == str(scene.place / "my.key")
    assert scene.type("key", "list", "-f", "json").json == [
        {"key_id": done.json["key_id"], "state": "current", "backups": 0}
    ]
    text = (scene.place / "my.key").read_text().strip()
    assert text not in done.out


def test_a_key_is_never_made_over_another(scene: Scene, ids: dict[str, str]) -> None:
    before = (scene.place / "one").read_bytes()

    done = scene.type("key", "generate", str(scene.place / "one"))

    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(f"guestagent: {scene.place}/one is there already; give another name: ")
    assert (scene.place / "one").read_bytes() == before


def test_a_rotation_from_one_key_to_another(scene: Scene, ids: dict[str, str]) -> None:
    backup = scene.taken(1, "one")
    scene.configure(key_file=f"{scene.place}/two", old_key_files=f"{scene.place}/one")
    row = {"id": backup.id, "instance_id": "guest1", "old_key_id": ids["one"]}

    looked = scene.type("key", "rotate", "--dry-run", "-f", "json")
    rotated = scene.type("key", "rotate", "-f", "json")
    again = scene.type("key", "rotate", "-f", "json")

    assert (looked.status, looked.json) == (0, [row | {"outcome": "would be rewrapped"}])
    assert (rotated.status, rotated.json) == (0, [row | {"outcome": "rewrapped"}])
    assert f"rotate {backup.id}" in rotated.err
    assert (again.status, again.json) == (0, [])
    assert [(key["key_id"], key["state"], key["backups"]) for key in scene.type("key", "list", "-f", "json").json] == [
        (ids["two"], "current", 1),
        (ids["one"], "old", 0),
    ]
    assert scene.type("key", "list", "--all", "-f", "value", "-c", "backups").out == "1\n0\n"


def test_a_backup_whose_key_is_missing_is_listed_and_fails_the_command(scene: Scene, ids: dict[str, str]) -> None:
    backup = scene.taken(1, "one")
    scene.configure(key_file=f"{scene.place}/two")

    for words in (["--all"], ["--dry-run"]):
        done = scene.type("key", "rotate", *words, "-f", "json")
        assert done.status == 2
        assert [row["outcome"] for row in done.json] == ["its key is not here"]
        assert f"guestagent: backup {backup.id} stays under key {ids['one']}, which is not here; name it" in done.err


def test_a_backup_that_another_host_rotates_is_listed_and_fails_the_command(
    scene: Scene, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = scene.taken(1, "one")
    scene.configure(key_file=f"{scene.place}/two", old_key_files=f"{scene.place}/one")

    def taken(_: FileStorage, key: str, body: bytes) -> None:
        raise ObjectExists(f"{key} is there already")

    monkeypatch.setattr(FileStorage, "put_new", taken)
    done = scene.type("key", "rotate", "-f", "json")
    assert [(row["old_key_id"], row["outcome"]) for row in done.json] == [(ids["one"], "another rotation is at it")]
    assert done.status == Busy.exit_status
    assert f"guestagent: another rotation of the key of backup {backup.id} has just begun; " in done.err


def test_a_backup_that_cannot_be_read_is_listed_and_fails_the_command(scene: Scene, ids: dict[str, str]) -> None:
    backup = scene.taken(1, "one")
    scene.configure(key_file=f"{scene.place}/two", old_key_files=f"{scene.place}/one")
    folder = scene.place / "store" / "guest1" / backup.id
    (folder / "manifest.json").write_bytes(b"{")

    rotated = scene.type("key", "rotate", "-f", "json")
    (folder / "key.json").write_bytes(b"{")
    untold = scene.type("key", "list")

    row = {"id": backup.id, "instance_id": "guest1", "old_key_id": ids["one"], "outcome": "it cannot be read"}
    assert (rotated.status, rotated.json) == (6, [row])
    assert f"guestagent: backup {backup.id} stays under key {ids['one']}: " in rotated.err
    assert (untold.status, untold.out) == (6, "")
    assert f"guestagent: nobody can tell which key backup {backup.id} needs: " in untold.err


def test_no_rotation_beside_another_job(scene: Scene, ids: dict[str, str]) -> None:
    backup = scene.taken(1, "one")
    scene.configure(key_file=f"{scene.place}/two", old_key_files=f"{scene.place}/one")

    with only_job(scene.place / "state", "backup 7"):
        done = scene.type("key", "rotate")
        assert scene.type("key", "rotate", "--dry-run", "-f", "value", "-c", "id").out == f"{backup.id}\n"

    assert (done.status, done.out) == (7, "")
    assert "this host is busy with backup 7" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no key for new backups is configured; set [encryption] key_file or key"),
        ({"key_file": "{place}/absent"}, "cannot read key file {place}/absent: No such file or directory; correct the"),
        ({"key_file": "{place}/one", "key": "kms://alias/x"}, "key_file and key are both set; keep the one"),
        ({"key": "{secret}"}, "[encryption] names a key by something that is not a kms:// URL"),
        ({"key_file": "{secret}"}, "not an absolute path; give the path of the file, not the key in it"),
        ({"old_keys": "{secret}", "key_file": "{place}/one"}, "something that is not a kms:// URL"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_shows_no_key(
    scene: Scene, ids: dict[str, str], options: dict[str, str], words: str
) -> None:
    secret = (scene.place / "one").read_text().strip()
    told = {"place": str(scene.place), "secret": secret}
    scene.configure(**{name: value.format(**told) for name, value in options.items()})

    scene.taken(1, "two")
    done = scene.type("--debug", "key", "rotate")

    assert secret not in done.out + done.err
    assert done.status == 2
    assert words.format(**told) in done.err.splitlines()[-1]
