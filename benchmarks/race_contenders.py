"""Who takes part in a race: the agent's commands, and the pipelines that an operator would type.

Both take backups and restore chains; each run is one command, and its cost is that of the command with all that it
starts.  What stays between the runs of a contender lies in a directory of its own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
import uuid
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.dataset import DataSet, change
from benchmarks.measure import Cost, cost_of
from benchmarks.race_store import BUCKET, KEY, Store
from benchmarks.rivals import PIPELINES, Pipeline, Place, variables
from tests.servers.mariadb import server_user

ROOT = Path(__file__).resolve().parents[1]
GUEST = "race"
CHECKPOINTS = ("xtrabackup_checkpoints", "mariadb_backup_checkpoints")


@dataclass(frozen=True)
class Made:
    """A backup that was taken: its name in the store, where its LSNs end, its bytes there; ``raw`` if it is known."""

    key: str
    prefix: str
    to_lsn: int
    stored: int
    raw: int = 0


@dataclass(frozen=True)
class Scene:
    """What all contenders share."""

    data: DataSet
    store: Store
    target: Path
    """Where restores go; not there before."""
    place: Path
    """Room for the files of all contenders."""
    expected: int
    """Bytes of the data set, about."""
    tools: Path | None = None
    """A venv whose programs come first."""

    def socket(self) -> Path | None:
        """Where the server listens; None while it is down, as it is during restores."""
        try:
            return self.data.socket
        except RuntimeError:
            return None

    def checkpoint(self) -> None:
        """Have every changed page on disk: until then a change is in the redo log, which every backup carries along."""
        with self.data.session() as session, session.cursor() as cursor:
            cursor.execute("SET GLOBAL innodb_log_checkpoint_now = 1")

    def change(self, share: float, seed: int) -> None:
        """Change that share of the pages, on disk."""
        with self.data.session() as session:
            change(session, share, seed=seed)
        self.checkpoint()

    def environment(self) -> dict[str, str]:
        """What every command gets."""
        words = [] if self.tools is None else [str(self.tools / "bin")]
        return os.environ | {"PATH": os.pathsep.join([*words, os.environ["PATH"]]), "PYTHONPATH": ""}


class Contender(Protocol):
    """Takes backups and restores them."""

    name: str

    def backup(self, on: Made | None = None) -> tuple[Cost, Made]:
        """Take a full backup, or an incremental on one."""

    def restore(self, chain: Sequence[Made]) -> Cost:
        """Restore the last of a chain, whose base is its first."""


class Ours:
    """The agent's commands.

    ``settings`` are lines for its configuration, by section; ``before`` stands before the command, such as nice.
    """

    def __init__(
        self,
        scene: Scene,
        name: str = "ours",
        *,
        encrypted: bool = False,
        settings: str = "",
        before: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._before = before
        self._scene = scene
        self._home = scene.place / name
        self._home.mkdir()
        self._settings = settings
        if encrypted:
            key = self._home / "key"
            key.touch(mode=0o600)
            key.write_bytes(b64encode(secrets.token_bytes(32)) + b"\n")
            self._settings += f"[encryption]\nkey_file = {key}\n"

    def backup(self, on: Made | None = None) -> tuple[Cost, Made]:
        """As in the protocol."""
        wanted = str(uuid.uuid4())
        parent = [] if on is None else ["--parent", on.key]
        cost, printed = self._run("backup", "create", "race", "--id", wanted, *parent)
        made = json.loads(printed)
        prefix = f"{self.name}/{GUEST}/{wanted}/"
        return cost, Made(wanted, prefix, int(made["to_lsn"]), int(made["stored_size"]), int(made["raw_size"]))

    def restore(self, chain: Sequence[Made]) -> Cost:
        """As in the protocol."""
        return self._run("restore", chain[-1].key, "--datadir", str(self._scene.target), "--no-start")[0]

    def _run(self, *words: str) -> tuple[Cost, str]:
        agent = [*self._before, sys.executable, "-m", "guestagent", "--config-file", str(self._configured())]
        return cost_of([*agent, *words, "-f", "json"], self._home / "run.log", env=self._scene.environment(), cwd=ROOT)

    def _configured(self) -> Path:
        """The configuration, written anew since ports and sockets change when servers are started again."""
        file = self._home / "guestagent.conf"
        access, secret = KEY
        socket = self._scene.socket()
        server = "" if socket is None else f"socket = {socket}\nuser = {self._scene.data.user}\n"
        file.write_text(
            f"[DEFAULT]\nguest_id = {GUEST}\nstate_dir = {self._home / 'state'}\n"
            f"[database]\n{server}datadir = {self._scene.data.datadir}\nos_user = {server_user()}\n"
            "engine = mariabackup\n"
            f"[storage]\nurl = s3://{BUCKET}/{self.name}\n"
            f"[s3]\nendpoint_url = {self._scene.store.url}\nregion_name = us-east-1\naccess_key_id = {access}\n"
            f"secret_access_key = {secret}\naddressing_style = path\n{self._settings}"
        )
        file.chmod(0o600)
        return file


class Rival:
    """A pipeline; ``before`` as in ours."""

    def __init__(
        self, scene: Scene, pipeline: Pipeline, name: str | None = None, *, before: Sequence[str] = ()
    ) -> None:
        self.name = name or pipeline.name
        self._before = before
        self._pipeline = pipeline
        self._scene = scene
        self._home = scene.place / self.name
        self._home.mkdir()

    def backup(self, on: Made | None = None) -> tuple[Cost, Made]:
        """As in the protocol."""
        key = f"{self.name}/{uuid.uuid4()}"
        since = [] if on is None else [str(on.to_lsn)]
        cost = self._run(self._pipeline.backup(incremental=on is not None), key, *since)
        return cost, Made(key, key, self._to_lsn(), self._scene.store.size(key))

    def restore(self, chain: Sequence[Made]) -> Cost:
        """As in the protocol."""
        return self._run(self._pipeline.restore(), *(made.key for made in chain))

    def _run(self, text: str, *words: str) -> Cost:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        env = self._scene.environment() | variables(self._at())
        return cost_of(
            [*self._before, *self._pipeline.argv(text, *words)], self._home / "run.log", env=env, cwd=self._home
        )[0]

    @property
    def _scratch(self) -> Path:
        return self._home / "scratch"

    def _at(self) -> Place:
        data, store = self._scene.data, self._scene.store
        return Place(
            socket=self._scene.socket() or Path("no-server"),
            user=data.user,
            os_user=server_user(),
            endpoint=store.url,
            bucket=BUCKET,
            key=KEY,
            expected=self._scene.expected,
            scratch=self._scratch,
            target=self._scene.target,
        )

    def _to_lsn(self) -> int:
        """Where the last backup ended, as an operator would look it up."""
        file = next(path for name in CHECKPOINTS if (path := self._scratch / name).exists())
        found = re.search(r"^to_lsn = (\d+)$", file.read_text(), re.MULTILINE)
        assert found is not None, f"{file} has no to_lsn"
        return int(found[1])


def contenders(scene: Scene, rivals: Sequence[str], *, encrypt: bool) -> list[Contender]:
    """Ours first, then the rivals."""
    ours: list[Contender] = [Ours(scene)]
    if encrypt:
        ours.append(Ours(scene, "ours-encrypted", encrypted=True))
    return [*ours, *(Rival(scene, PIPELINES[name]) for name in rivals)]
