"""A guest with a canary wherever a secret can lie, whose commands run at debug level, and all that is seen of them."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.canaries import Haul, awkward, recording, watched
from tests.integration.serving import SMALL_DATA
from tests.servers.agent import local_url, serving
from tests.servers.guest import Guest
from tests.servers.mariadb import MariaDB, workplace
from tests.servers.moto_s3 import ACCESS_KEY, make_bucket, moto_s3

PATIENCE = 60
_CONTROL = "import sys; from guestagent.cli.control import main; sys.exit(main())"


@dataclass
class Scene:
    """A guest with a canary wherever a secret can lie, and all that was seen of what it did."""

    guest: Guest
    haul: Haul
    place: Path
    environment: dict[str, str]
    record: Path
    endpoint: str

    def type(self, *words: str, config: Path | None = None, program: str = "guestagent", **more: str) -> Any:
        """A command at debug level, with what it says kept."""
        log = self.place / "logs" / f"{len(self.haul.found)}-{uuid.uuid4().hex}.log"
        log.parent.mkdir(exist_ok=True)
        module = "guestagent" if program == "guestagent" else "guestagent.cli.control"
        start = [sys.executable, "-m", module] if program == "guestagent" else [sys.executable, "-c", _CONTROL]
        argv = [
            *start,
            "-vv",
            "--debug",
            "--log-file",
            str(log),
            "--config-file",
            str(config or self.guest.config),
            *words,
        ]
        return self._run(argv, " ".join(words), log, more)

    def _run(self, argv: list[str], label: str, log: Path, more: dict[str, str]) -> Any:
        done = subprocess.run(
            argv, capture_output=True, timeout=PATIENCE, check=False, env=os.environ | self.environment | more
        )
        self.haul.add(f"stdout of {label}", done.stdout)
        self.haul.add(f"stderr of {label}", done.stderr)
        if log.exists():
            self.haul.add(f"log file of {label}", log.read_bytes())
        return done

    def config(self, name: str, **sections: str) -> Path:
        """The guest's configuration with further lines."""
        text = self.guest.config.read_text() + "".join(f"[{one}]\n{lines}\n" for one, lines in sections.items())
        path = self.place / f"{name}.conf"
        path.write_text(text)
        path.chmod(0o600)
        return path

    @contextmanager
    def searched(self) -> Iterator[None]:
        """All that comes to light inside is searched at the end."""
        self.haul.found.clear()
        self.record.write_text("")
        with watched(self.haul):
            yield
        self.haul.add("what the tool was called with, and saw", self.record.read_text())
        self.haul.add_tree("state_dir", self.guest.state)
        assert self.haul.leaks() == []


@contextmanager
def staged() -> Iterator[Scene]:
    """A guest, its server and an object store."""
    haul = Haul()
    with pytest.MonkeyPatch.context() as patch, workplace() as place, MariaDB() as server, moto_s3() as endpoint:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        make_bucket(endpoint, "bucket")
        password = awkward(haul.plant("database password"))
        key = os.urandom(32)
        haul.planted["key file"], haul.planted["key file, as text"] = key, base64.b64encode(key)
        key_file = place / "key"
        key_file.write_text(base64.b64encode(key).decode() + "\n")
        key_file.chmod(0o600)
        guest = Guest(
            "guest1",
            server,
            place,
            "s3://bucket/prefix",
            database=f"password = {password}\n",
            settings=f"[s3]\nendpoint_url = {endpoint}\nregion_name = us-east-1\naccess_key_id = {ACCESS_KEY}\n"
            f"secret_access_key = {haul.plant('S3 secret key')}\naddressing_style = path\n"
            f"[encryption]\nkey_file = {key_file}\n[stream]\nsegment_size = 1M\n",
            defaults=serving(local_url(place)) + f"instance_rpc_encr_key = {haul.plant('RPC key')}\n",
        )
        server.backup_account("backup", password.replace("$$", "$"))
        server.script(SMALL_DATA)
        (record := place / "tool.log").touch()
        record.chmod(0o666)
        path = recording(place, "mariabackup", shutil.which("mariabackup") or "mariabackup", record)
        environment = {
            name: haul.plant(f"environment's {name}")
            for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OS_PASSWORD", "MYSQL_PWD", "MY_API_TOKEN")
        }
        environment |= {"PATH": f"{path}:{os.environ['PATH']}", "AWS_ACCESS_KEY_ID": "AKIDTEST"}
        yield Scene(guest, haul, place, environment, record, endpoint)
