"""What a story needs to know of this host: the parts and typed values that configuration made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from guestagent.catalog import Catalog
from guestagent.datadir import durable
from guestagent.engines import Connection
from guestagent.errors import ConfigError, GuestagentError
from guestagent.keys import KeyRing
from guestagent.model import InstanceId
from guestagent.streams.crew import Team
from guestagent.streams.process import AS_WE_ARE, Niceness

MAX_WORKERS = 4
"""More cores than this do not make one host's dump faster, and each worker costs a segment of memory."""


@dataclass(frozen=True)
class DatabaseSettings:
    """The server: how it is reached, started and stopped, and how it is dumped (times in seconds)."""

    connection: Connection
    engine: str = "auto"
    datadir: Path | None = None
    os_user: str = "mysql"
    start_command: tuple[str, ...] = ("systemctl", "start", "mariadb")
    stop_command: tuple[str, ...] = ("systemctl", "stop", "mariadb")
    start_timeout: float = 300
    parallel: int = 0
    lock_wait_timeout: int = 60
    block_commit_limit: int = 60
    niceness: Niceness = AS_WE_ARE
    checkpoint_first: str = "never"
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class StreamSettings:
    """The data path, in bytes and seconds; 0 workers: by cores; a rate_limit or no_progress_limit of 0: none."""

    compression: str = "zstd"
    level: int = 1
    segment_size: int = 16 << 20
    workers: int = 0
    no_progress_limit: float = 600
    rate_limit: int = 0


@dataclass(frozen=True)
class RestoreSettings:
    """Restores; ``use_memory`` in bytes (0: from what the host has free), 0 workers: by cores."""

    use_memory: int = 0
    work_dir: Path | None = None
    download_workers: int = 0


@dataclass(frozen=True)
class Host:
    """This host, as configured.  ``instance`` is None where no guest_id is set."""

    instance: InstanceId | None
    catalog: Catalog
    state_dir: Path
    database: DatabaseSettings
    stream: StreamSettings = StreamSettings()
    restore: RestoreSettings = RestoreSettings()
    verify_uploads: str = "sizes"
    keys: KeyRing = field(default_factory=KeyRing)

    def require_instance(self) -> InstanceId:
        """The instance's id; raises ConfigError where none is set."""
        if self.instance is None:
            raise ConfigError("guest_id is not set", hint="set it under [DEFAULT] to the id of this instance")
        return self.instance

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private directory for as long as a story needs it."""
        above = self.state_dir / "scratch"
        try:
            durable.make_private(above, like=self.state_dir)
            path = Path(tempfile.mkdtemp(prefix="job-", dir=above))
        except OSError as error:
            raise unwritable(self.state_dir, error) from error
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def unwritable(state_dir: Path, error: OSError) -> GuestagentError:
    """What to raise when state_dir cannot be written to."""
    return GuestagentError(
        f"cannot write to state_dir {state_dir}: {error.strerror}", hint="run as a user that may, or set state_dir"
    )


def team(host: Host, configured: int) -> Team:
    """The workers of one job: the configured number, or one more than the cores that we may run on.

    One more, since one of them is usually waiting: for the dump, or for the store.
    """
    return Team(configured or cores() + 1, host.database.niceness.cpu)


def cores() -> int:
    """The cores that we may run on, as far as they make one host's dump faster."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS - 1)
