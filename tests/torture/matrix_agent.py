"""The agent's face of the matrix: the parts of ``serve`` in this process, and Trove's side of the wire around them.

Backups and the restore into an empty directory are asked for in Trove's own words, the rest in ours.  What is told to
the conductor is told at once, and once more a moment later: the pauses between are shortened.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from guestagent.agent import Served
from guestagent.conductor import Conductor as Telling
from guestagent.engines import Connection
from guestagent.errors import GuestagentError
from guestagent.operations import plan, service
from guestagent.operations.host import Host
from guestagent.outbox.postman import Postman
from guestagent.rpc.client import AgentClient
from guestagent.serve import telling
from guestagent.serve.parts import Parts
from guestagent.serve.settings import Settings
from tests.fakes.bench import INSTANCE
from tests.fakes.rpc import CONTEXT, bare_conf, client_of, trove_client
from tests.fakes.server import Server
from tests.servers.conductor import Conductor
from tests.torture import matrix_checker as checker
from tests.torture.matrix_cases import BACKUPS, Story
from tests.torture.matrix_faces import HISTORY, Asked, Played, Said

PATIENCE = 180.0
"""Seconds within which a job must have ended: far more than any takes."""
SOON = 30.0
"""Seconds within which its end must be told."""
LOOK = 0.01
"""Seconds between two looks."""
ANSWER = 60.0
"""Seconds for the agent to answer."""
BEAT = 0.5
"""Seconds between two heartbeats."""
NOTIFIED = {"completed": "notify_end", "failed": "notify_exc_info", "cancelled": "notify_exc_info"}
STATUS = {"completed": "healthy", "failed": "failed to spawn", "cancelled": "failed to spawn"}
"""What Trove must hear of an instance that was to begin its life with a backup's data."""
_BUG = "the log shows where"


def _at(name: str) -> str:
    """Where the threads of that name are in their work."""
    threads = {thread.ident for thread in threading.enumerate() if thread.name == name}
    stacks = [traceback.format_stack(frame) for ident, frame in sys._current_frames().items() if ident in threads]
    return f"{name} is at " + "; ".join(" ".join(line.split()) for stack in stacks for line in stack[-8:])


class _Given(Settings):
    """A configuration that no file holds."""

    def __init__(self, served: Served, host: Callable[[], Host]) -> None:
        self.served = served
        self._given = host

    def host(self) -> Host:
        return self._given()

    def for_library(self) -> Any:
        return bare_conf()


class Agent:
    """An agent at work; ``host`` gives the host as it is configured, ``server`` is its database."""

    def __init__(self, top: Path, state: Path, host: Callable[..., Host], server: Server, stack: ExitStack) -> None:
        self._state, self._host, self._server = state, host, server
        self._place = top / "guest-server"
        self._changes: dict[str, Any] = {}
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setitem(Postman.__init__.__kwdefaults__ or {}, "gap", 0.02)
        patch.setitem(Telling.__init__.__kwdefaults__ or {}, "again", (0.1,))
        patch.setattr(telling, "answers", self._answers)
        url = f"local://{top}/run"
        self.conductor = stack.enter_context(Conductor(url))
        served = Served(
            INSTANCE, state, transport_url=url, conductor=True, heartbeat_interval=BEAT, history=HISTORY, queue_size=4
        )
        parts = Parts(_Given(served, lambda: self._host(**self._changes)), lambda: None)
        stack.callback(parts.close, "the scene is over", timeout=SOON)
        parts.start()
        parts.open()
        self._trove = stack.enter_context(trove_client(url, INSTANCE, version="1.1"))
        self._client: AgentClient = stack.enter_context(client_of(url, INSTANCE, timeout=ANSWER))

    def _answers(self, connection: Connection, *, timeout: float) -> str:
        return self._server.answers(connection, timeout=timeout)

    def clear(self) -> None:
        """Forget what was heard before the next case."""
        self.conductor.notifications.clear()
        self.conductor.unhandled.clear()

    def tell(self, asked: Asked) -> Played:
        """Have a story told to its end, and give it as its record has it."""
        played = Played(asked.job)
        with self._configured(asked):
            try:
                played.id = self._ask(asked)
                self._follow(played)
            except GuestagentError as error:
                played.failed(error)
            played.wrong += self._judged(asked, played)
        return played

    @contextmanager
    def _configured(self, asked: Asked) -> Iterator[None]:
        """A restore goes where the configuration says, and a database begins its life there."""
        if asked.story not in (Story.RESTORE, Story.REPLACE):
            yield
            return
        server, before = Server(self._place, asked.target), self._server
        self._changes = {"datadir": asked.target, "start_command": server.command("start")}
        with pytest.MonkeyPatch.context() as patch:
            for module in (plan, service):
                patch.setattr(module, "answers", server.answers)
            patch.setattr(service, "connect", server.connect)
            self._server = server
            try:
                yield
            finally:
                self._server, self._changes = before, {}
                if server.up:
                    server.halt()

    # -- asking

    def _ask(self, asked: Asked) -> str:
        """Ask for it; gives the job's id."""
        story, wanted = asked.story, asked.victim.id
        if story in BACKUPS:
            return self._create(asked)
        if story is Story.RESTORE:
            return self._prepare(asked)
        if story is Story.REPLACE:
            return str(self._client.restore(wanted, id=asked.job, replace=True, start=False)["id"])
        if story is Story.VERIFY:
            return str(self._client.verify(wanted, id=asked.job)["id"])
        return str(self._client.delete(wanted, id=asked.job)["id"])

    def _create(self, asked: Asked) -> str:
        parent = asked.parent
        self.conductor.expect(asked.job, INSTANCE)
        info = {
            "id": asked.job,
            "name": "a case",
            "description": None,
            "instance_id": INSTANCE,
            "backup_type": "incremental" if parent else "full",
            "checksum": None,
            "parent": {"location": parent.location, "checksum": parent.checksum} if parent else None,
            "storage_driver": "swift",
        }
        self._trove.cast(CONTEXT, "create_backup", backup_info=info)
        return asked.job

    def _prepare(self, asked: Asked) -> str:
        """Trove gives no id for that, so the job is the one that is new; an agent restores the same but once."""
        for path in (self._state / "jobs").glob("*.json"):
            if json.loads(path.read_bytes())["state"] == "completed":
                path.unlink()
        before = set(checker.jobs(self._state))
        victim = asked.victim
        info = {"id": victim.id, "instance_id": INSTANCE, "location": victim.location, "checksum": victim.checksum}
        self._trove.cast(CONTEXT, "prepare", backup_info=info, memory_mb=512, ds_version="10.11")
        self._until(lambda: bool(set(checker.jobs(self._state)) - before), SOON)
        return next(iter(set(checker.jobs(self._state)) - before), asked.job)

    def _follow(self, played: Played) -> None:
        """Wait for the end of a job; one that does not come to it is cancelled, for the sake of the next case."""
        if not self._until(lambda: checker.ended(self._state, played.id), PATIENCE):
            played.wrong.append("a stuck job")
            if played.id in checker.jobs(self._state):
                self._client.cancel(played.id)
                self._until(lambda: checker.ended(self._state, played.id), SOON)
            return
        found = json.loads((self._state / "jobs" / f"{played.id}.json").read_bytes())
        failure = found["failure"]
        if found["state"] == "completed":
            played.result = found["result"]
        elif failure["hint"] == _BUG:
            played.wrong.append(f"an error that is not ours: {failure['what']}")
        else:
            played.error = Said(failure["code"], "; ".join(filter(None, (failure["what"], failure["hint"]))))

    # -- judging

    def _judged(self, asked: Asked, played: Played) -> list[str]:
        """Whether all who are to hear of the end have heard of it, and of the same."""
        if not checker.ended(self._state, played.id):
            return ["an unreported end"]
        job = checker.job(self._state, played.id)
        wrong = []
        if not self._until(lambda: not checker.letters(self._state), SOON):
            wrong.append(f"nobody takes what the outbox holds: {checker.letters(self._state)}; {_at('postman')}")
        if not self._until(lambda: bool(checker.job(self._state, played.id)["told"]), SOON):
            wrong.append("the record says that nobody has heard of the end")
        shown = self._client.jobs(job_id=played.id)[0]
        if shown["state"] != job["state"]:
            wrong.append(f"who asks for the job is told that it is {shown['state']}")
        if self.conductor.unhandled:
            wrong.append(f"the conductor hears of backups that it has no row of: {self.conductor.unhandled}")
        return wrong + self._judged_news(asked, job)

    def _judged_news(self, asked: Asked, job: dict[str, Any]) -> list[str]:
        """Notifications and heartbeats."""
        wrong = []
        wanted = {NOTIFIED[job["state"]]} if asked.story in (*BACKUPS, Story.RESTORE) else set()
        if not self._until(lambda: self._notified() == wanted, SOON):
            wrong.append(f"Trove is notified by {self._notified()}, and the job is {job['state']}")
        if asked.story is Story.RESTORE and not self._until(lambda: self._status() == STATUS[job["state"]], SOON):
            wrong.append(f"the heartbeat says {self._status()}, and the job is {job['state']}")
        return wrong

    def _notified(self) -> set[str]:
        return {str(one[0]) for one in list(self.conductor.notifications)}

    def _status(self) -> object:
        return self.conductor.instance(INSTANCE).get("status")

    def row(self, wanted: str) -> dict[str, Any]:
        """What the conductor believes of a backup."""
        return self.conductor.backup(wanted)

    @staticmethod
    def _until(happened: Callable[[], bool], patience: float) -> bool:
        # Counted, since a machine that stands still for half a minute is nobody's fault.
        for _ in range(int(patience / LOOK)):
            if happened():
                return True
            time.sleep(LOOK)
        return happened()
