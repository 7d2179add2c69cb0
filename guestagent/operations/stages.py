"""How long others may wait for a dump: while it waits for a lock, and while it has stopped the server's commits."""

from __future__ import annotations

import time
from collections.abc import Callable

from guestagent.engines import Engine, Stage
from guestagent.errors import Stalled
from guestagent.operations.host import DatabaseSettings
from guestagent.progress import Watch


class Stages:
    """The stage that one dump is in, by what its tool says, and the limit of each."""

    def __init__(
        self, engine: Engine, settings: DatabaseSettings, watch: Watch, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._watch = watch
        self._clock = clock
        self._present = (Stage.COPYING, clock())

    def hear(self, line: str) -> None:
        """Take note of a line of the tool's stderr; from any thread."""
        stage = self._engine.stage(line)
        if stage is not None:
            self._present = (stage, self._clock())

    @property
    def blocking(self) -> bool:
        """Whether the server's commits wait for the dump."""
        return self._present[0] is Stage.BLOCKING

    def check(self) -> None:
        """Raise Stalled if others have waited for too long."""
        stage, since = self._present
        lasted = self._clock() - since
        if stage is Stage.WAITING and _over(lasted, self._settings.lock_wait_timeout):
            raise Stalled(
                f"{self._engine.tool} has waited {lasted:.0f} s for a lock that a session of the server holds",
                hint="end that session (SHOW FULL PROCESSLIST), or raise [database] lock_wait_timeout",
            )
        if stage is Stage.BLOCKING and _over(min(lasted, self._watch.still), self._settings.block_commit_limit):
            raise Stalled(
                f"no progress for {self._settings.block_commit_limit} s while the server's commits wait for the backup",
                hint="look for a small redo log (innodb_log_file_size), overloaded processors or a store that hangs",
            )


def _over(seconds: float, limit: int) -> bool:
    return bool(limit) and seconds > limit
