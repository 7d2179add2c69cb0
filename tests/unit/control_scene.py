"""An agent that answers over local:// from a real ledger, and whose jobs a test performs by hand; and its caller."""

from __future__ import annotations

import json
import logging
import os
import pwd
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from guestagent import agent
from guestagent.catalog import Catalog
from guestagent.cli import main
from guestagent.cli.control import main as control
from guestagent.errors import Refused
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job, State, Step
from guestagent.manifest import Backup, Manifest, Segment, StreamFacts, digest
from guestagent.model import Binlog, Checkpoints, Kind, Lsn, backup_id, instance_id
from guestagent.rpc.ours import Ours
from guestagent.rpc.server import RpcServer
from guestagent.rpc.wire import open_transport
from guestagent.storage import open_storage

GUEST = "guest1"
PATIENCE = 60.0
BEGUN = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Worker:
    """What an agent's worker is to its endpoint, without a thread: jobs begin and end as the test says."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.looks = 0

    def submit(self, job: Job) -> Job:
        if job.deadline is not None and job.deadline < datetime.now(UTC):
            raise Refused("the deadline is over")
        return self.ledger.accept(job)[0]

    def cancel(self, wanted: str, reason: str) -> Job:
        return self.ledger.cancel(wanted, reason)

    def get(self, wanted: str) -> Job:
        self.looks += 1
        return self.ledger.get(wanted)

    def all(self) -> list[Job]:
        return self.ledger.all()

    def step(self, wanted: str) -> Step | None:
        return self.ledger.step(wanted)

    def running(self) -> Job | None:
        return next((job for job in self.ledger.all() if job.state is State.RUNNING), None)


class Scene:
    """A configured host with an empty store, and commands typed on it; its agent serves while ``serving``."""

    def __init__(self, place: Path, capture: pytest.CaptureFixture[str], *, url: str = "") -> None:
        self.place = place
        self.url = url or f"local://{place}/run"
        self.ledger = Ledger(place / "state")
        self._capture = capture
        self._worker = Worker(self.ledger)
        self.configure()

    @property
    def looks(self) -> int:
        """How often its agent was asked for a job."""
        return self._worker.looks

    @property
    def config(self) -> Path:
        return self.place / "guestagent.conf"

    @property
    def store(self) -> str:
        return f"file://{self.place}/store"

    def configure(self, **more: str) -> None:
        """Write the configuration; ``more`` are lines by section."""
        (self.place / "store").mkdir(exist_ok=True)
        sections = {
            "DEFAULT": f"guest_id = {GUEST}\nstate_dir = {self.place}/state\ntransport_url = {self.url}\n",
            "database": f"socket = {self.place}/no-server\nos_user = {pwd.getpwuid(os.geteuid()).pw_name}\n",
            "storage": f"url = {self.store}\n",
        }
        for name, lines in more.items():
            sections[name] = sections.get(name, "") + lines + "\n"
        self.config.write_text("".join(f"[{name}]\n{lines}" for name, lines in sections.items()))
        self.config.chmod(0o600)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The agent listens."""
        conf = agent.load([str(self.config)])
        host = agent.build(conf)
        endpoint = Ours(self._worker, instance=instance_id(GUEST), host=lambda: host)
        server = RpcServer(open_transport(agent.for_library(conf), self.url), [endpoint], instance=GUEST)
        # What the agent logs goes to its own stderr, and not to that of its caller.
        log = logging.getLogger("guestagent.rpc")
        log.setLevel(logging.CRITICAL)
        assert server.start(patience=PATIENCE)
        try:
            yield
        finally:
            assert server.stop(patience=PATIENCE)
            log.setLevel(logging.NOTSET)

    @contextmanager
    def performing(self, story: Callable[[Ledger, str], None]) -> Iterator[None]:
        """Perform the first job that comes as ``story`` has it, from its id."""
        failures: list[BaseException] = []

        def perform() -> None:
            try:
                story(self.ledger, self._first_job())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=perform)
        thread.start()
        try:
            yield
        finally:
            thread.join(PATIENCE)
            assert not thread.is_alive()
            assert not failures

    def _first_job(self) -> str:
        until = time.monotonic() + PATIENCE
        while not self.ledger.all():
            assert time.monotonic() < until, "nobody has asked for a job"
            time.sleep(0.01)
        return self.ledger.all()[0].id

    def type(self, *words: str) -> Done:
        """Run ``guestagent`` in this process."""
        return self._run(main, words)

    def ask(self, *words: str) -> Done:
        """Run ``guestagent-ctl`` in this process."""
        return self._run(control, words)

    def _run(self, program: Callable[[list[str]], int], words: tuple[str, ...]) -> Done:
        self._capture.readouterr()
        with _own_logging():
            status = program(["--config-file", str(self.config), *words])
        return Done(status, *self._capture.readouterr())

    def argv(self, *words: str) -> list[str]:
        """``guestagent-ctl``'s words for a process of its own, in which no signal is ignored."""
        program = "import sys; from guestagent.cli.control import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "--config-file", str(self.config), *words]
        return ["env", "--default-signal=INT,TERM,HUP", *command]

    def publish(self, number: int) -> Backup:
        """Make a backup that can be listed and shown."""
        wanted, instance = backup_id(f"{number:08d}-0000-4000-8000-000000000000"), instance_id(GUEST)
        started = BEGUN + timedelta(hours=number)
        manifest = Manifest(
            id=wanted,
            name=f"b{number}",
            description="of an evening",
            instance_id=instance,
            kind=Kind.FULL,
            parent=None,
            incarnation="11111111-1111-4111-8111-111111111111",
            engine="mariabackup",
            tool_version="10.11.19",
            datastore="mariadb",
            server_version="10.11.19-MariaDB",
            lsn=Checkpoints(begin=Lsn(0), end=Lsn(number * 100), last=Lsn(number * 100 + 9)),
            binlog=Binlog("binlog.000001", 328, "0-1-7"),
            compression="none",
            encryption=None,
            stream=StreamFacts("mbstream", 1, None),
            started=started,
            finished=started + timedelta(seconds=12.5),
            segments=(Segment(0, 4, 4, digest(b"data")),),
        )
        with Catalog(self.store, instance=instance, open_storage=open_storage) as catalog:
            catalog.put_segment(instance, wanted, 0, b"data", digest(b"data"))
            return catalog.publish(manifest)


def one_line(done: Done, status: int, *words: str, by: str = "guestagent-ctl") -> None:
    """What every error looks like, once progress is taken away."""
    assert done.status == status, done
    assert done.err.startswith(f"{by}: ")
    assert done.err.count("\n") == 1
    assert done.out == ""
    for word in words:
        assert word in done.err


@contextmanager
def _own_logging() -> Iterator[None]:
    """Whatever a program does to the root logger is undone."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    for handler in set(root.handlers) - set(before[1]):
        root.removeHandler(handler)
        handler.close()
