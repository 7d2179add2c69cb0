"""The faces by which a story of the matrix is asked for; here that of the commands, which perform it themselves.

The other one is the agent's, see matrix_agent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guestagent.errors import GuestagentError
from guestagent.jobs import record
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.lock import only_job
from guestagent.jobs.perform import perform
from guestagent.jobs.settle import settle_locked
from guestagent.jobs.story import tell
from guestagent.manifest import Backup
from guestagent.operations.host import Host
from guestagent.operations.rotate import rotate
from guestagent.progress import Cancel, Watch
from tests.fakes.bench import INSTANCE, Tree
from tests.torture.matrix_cases import BACKUPS, Story

HISTORY = 20
"""Jobs that a scene remembers."""
LIMIT = 60
"""Seconds that a job may go on without a byte."""


@dataclass(frozen=True)
class Known:
    """A backup of the scene, and what it holds; one that is still to be taken has neither location nor checksum."""

    id: str
    tree: Tree
    location: str = ""
    checksum: str = ""

    @property
    def place(self) -> str:
        """Where its objects lie."""
        return f"{INSTANCE}/{self.id}"

    @classmethod
    def of(cls, backup: Backup, tree: Tree) -> Known:
        """What was taken."""
        return cls(backup.id, tree, backup.location, backup.checksum)


@dataclass(frozen=True)
class Asked:
    """What a story asks for: a backup under the victim's id, or something to be done with the victim."""

    story: Story
    job: str
    victim: Known
    target: Path
    parent: Known | None = None


@dataclass(frozen=True)
class Said:
    """An error as it was told: its family, and the line."""

    code: str
    line: str

    def __str__(self) -> str:
        return self.line


@dataclass
class Played:
    """How a story ended, as far as it told."""

    id: str
    result: dict[str, Any] | None = None
    error: Said | None = None
    wrong: list[str] = field(default_factory=list)

    @property
    def completed(self) -> bool:
        """Whether it was said to be done."""
        return self.error is None and not self.wrong

    def failed(self, error: Exception) -> None:
        """Note how it failed; what is not ours is wrong, and the next case must be played all the same."""
        if isinstance(error, GuestagentError):
            self.error = Said(error.code, str(error))
        else:
            self.wrong.append(f"an error that is not ours: {type(error).__name__}: {error}")


class Command:
    """Tells a story as a command does: under the lock, in the ledger, in this very process."""

    def __init__(self, state: Path, host: Callable[..., Host]) -> None:
        self._ledger = Ledger(state, history=HISTORY)
        self._host = host

    def tell(self, asked: Asked) -> Played:
        """Tell it to its end."""
        played = Played(asked.job)
        kind, request = _request(asked)
        job = record.Job(played.id, kind, request, created=datetime.now(tz=UTC), origin="cli", told=True)
        host = self._host()
        try:
            with host.catalog, only_job(host.state_dir, str(job)):
                settle_locked(self._ledger, host)
                begun = self._ledger.open(job)
                ended = perform(
                    self._ledger, begun, lambda watch: tell(host, begun, watch), cancel=Cancel(), limit=LIMIT
                )
                played.result = dict(ended.result)
        except Exception as error:
            played.failed(error)
        return played

    def rotate(self) -> Played:
        """Have the backups' keys sealed by the key that is configured now, which is no job."""
        played = Played("")
        host = self._host()
        try:
            with host.catalog:
                found = rotate(host, Watch())
            for one in found:
                if one.error and played.completed:
                    played.failed(one.error)
        except Exception as error:
            played.failed(error)
        return played


def _request(asked: Asked) -> tuple[record.Kind, dict[str, Any]]:
    story, wanted = asked.story, asked.victim.id
    if story in BACKUPS:
        parent = asked.parent.id if asked.parent else None
        return record.Kind.BACKUP, {"name": "a case", "description": "", "parent": parent}
    if story is Story.VERIFY:
        return record.Kind.VERIFY, {"backup_id": wanted}
    if story in (Story.DELETE, Story.REFUSED):
        return record.Kind.DELETE, {"backup_id": wanted, "cascade": False}
    request = {"source": wanted, "datadir": str(asked.target), "replace": story is Story.REPLACE, "start": False}
    return record.Kind.RESTORE, request
