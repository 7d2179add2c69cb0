"""A guest: one private MariaDB with an agent's configuration, told its stories in process or through the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guestagent import agent
from guestagent.manifest import Backup
from guestagent.model import backup_id
from guestagent.operations.backup import BackupRequest, backup
from guestagent.operations.host import Host
from guestagent.operations.plan import RestoreRequest
from guestagent.operations.restore import Restored, restore
from guestagent.progress import Watch
from tests.servers.mariadb import MariaDB, server_user

PASSWORD = 'p"a\\ss #1'
PATIENCE = 300
"""Seconds that one command may take."""


@dataclass
class Guest:
    """``place`` holds configuration and state.

    ``defaults`` and ``database`` are further lines of those sections, ``settings`` of further sections, such as [s3].
    """

    name: str
    server: MariaDB
    place: Path
    url: str
    settings: str = ""
    database: str = ""
    defaults: str = ""
    config: Path = field(init=False)

    def __post_init__(self) -> None:
        self.config = self.place / f"{self.name}.conf"
        self.config.write_text(
            f"[DEFAULT]\nguest_id = {self.name}\nstate_dir = {self.state}\n{self.defaults}"
            f"[database]\nsocket = {self.server.socket}\nuser = backup\npassword = {PASSWORD}\n"
            f"datadir = {self.server.datadir}\nos_user = {server_user()}\nstart_timeout = 60\n"
            f"start_command = {self.server.start_script()}\nstop_command = {self.server.stop_script()}\n{self.database}"
            f"[storage]\nurl = {self.url}\n{self.settings}"
        )
        self.config.chmod(0o600)

    @property
    def state(self) -> Path:
        """The agent's state_dir."""
        return self.place / f"{self.name}-state"

    def host(self) -> Host:
        """The parts that the configuration makes."""
        return agent.build(agent.load([str(self.config)]))

    def account(self) -> None:
        """Make the account that the configuration names."""
        self.server.backup_account("backup", PASSWORD)

    def back_up(self, parent: Backup | str | None = None, *, watch: Watch | None = None) -> Backup:
        """Take a backup, on ``parent`` if there is one."""
        on = parent.id if isinstance(parent, Backup) else parent
        request = BackupRequest(id=backup_id(str(uuid.uuid4())), name="test", parent=on)
        with (host := self.host()).catalog:
            return backup(host, request, watch or Watch())

    def restore(self, source: Backup | str, *, watch: Watch | None = None, **options: Any) -> Restored:
        """Restore a backup, into the configured datadir unless told otherwise."""
        wanted = source.id if isinstance(source, Backup) else source
        with (host := self.host()).catalog:
            return restore(host, RestoreRequest(wanted, **options), watch or Watch())

    def command(self, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Type a command; gives what it printed and how it ended."""
        return subprocess.run(
            self.argv(*words),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=os.environ | (environment or {}),
        )

    def argv(self, *words: str) -> list[str]:
        """The command's words, for whoever runs it otherwise."""
        return [sys.executable, "-m", "guestagent", "--config-file", str(self.config), *words]

    def json(self, *words: str) -> Any:
        """What a command prints with ``-f json``; an error if it fails."""
        done = self.command(*words, "-f", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
