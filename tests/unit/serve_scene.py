"""A real ``guestagent serve`` over local://, with what it tells systemd, and a restore whose tool never ends."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from guestagent import agent
from guestagent.jobs.ledger import Ledger
from guestagent.rpc.client import AgentClient
from tests.fakes.bench import Bench

PATIENCE = 90.0
GUEST = "guest1"


class Scene:
    """A configuration, and the agent that serves by it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.state = place / "state"
        self.config = place / "guestagent.conf"
        self.datadir = place / "target"
        self.log = place / "log"
        self.heard: list[str] = []
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(place / "notify"))
        self.configure()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def configure(self, **more: str) -> None:
        """Write the configuration; ``more`` are lines by section, the later of which win."""
        sections = {
            "DEFAULT": f"guest_id = {GUEST}\nstate_dir = {self.state}\ntransport_url = local://{self.place}/run\n",
            "database": f"datadir = {self.datadir}\nos_user = {pwd.getpwuid(os.geteuid()).pw_name}\n"
            f"socket = {self.place}/no-server\n",
            "storage": f"url = file://{self.place}/store\n",
            "restore": "use_memory = 8M\n",
        }
        for name, lines in more.items():
            sections[name] = sections.get(name, "") + lines + "\n"
        self.config.write_text("".join(f"[{name}]\n{lines}" for name, lines in sections.items()))
        self.config.chmod(0o600)

    def argv(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "guestagent", *options, "--config-file", str(self.config), "serve"]

    def begin(self, *options: str, **environment: str) -> None:
        """Start the agent."""
        given = {"NOTIFY_SOCKET": str(self.place / "notify"), **self.environment, **environment}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv(*options), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | given
            )

    def hear(self, wanted: str, *, within: float = PATIENCE) -> str:
        """Wait until systemd is told something with these words; gives that message."""
        deadline = time.monotonic() + within
        while (left := deadline - time.monotonic()) > 0:
            self._notify.settimeout(left)
            try:
                self.heard.append(self._notify.recv(4096).decode())
            except TimeoutError:
                break
            if wanted in self.heard[-1]:
                return self.heard[-1]
        raise AssertionError(f"nobody says {wanted!r}: {self.heard[-20:]}\n{self.logged()[-3000:]}")

    def forget(self) -> None:
        """Throw away what systemd was told so far."""
        self._notify.setblocking(False)
        try:
            while self._notify.recv(4096):
                pass
        except BlockingIOError:
            self.heard.clear()

    def logged(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the agent to end; gives its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        print(self.logged()[-5000:])  # for whoever looks at a failure
        return status

    def client(self) -> AgentClient:
        conf = agent.for_library(agent.load([str(self.config)]))
        return AgentClient(f"local://{self.place}/run", GUEST, conf=conf, timeout=PATIENCE)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.state)

    def close(self) -> None:
        self._notify.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)

    # A job that does not end

    def stock(self, patch: pytest.MonkeyPatch) -> str:
        """Put a backup into the store, and the fake tool on the agent's PATH; gives the backup's id."""
        (bench_place := self.place / "bench").mkdir()
        with patch.context() as within:
            bench = Bench(bench_place, within)
            try:
                found = bench.backup()
            finally:
                bench.close()
            self.environment |= {"PATH": os.environ["PATH"]}
        self.datadir.mkdir()
        (self.place / "store").rmdir()
        bench.store.rename(self.place / "store")
        return found.id

    def hang(self, wanted: str) -> str:
        """Have the agent restore a backup with a tool that never ends; gives the job's id as soon as it hangs."""
        with self.client() as client:
            job = str(client.restore(wanted, start=False)["id"])
        deadline = time.monotonic() + PATIENCE
        while not any("--prepare" in words for words in children_of(self.process.pid).values()):
            assert time.monotonic() < deadline, self.logged()[-3000:]
            time.sleep(0.01)
        return job


def children_of(pid: int) -> dict[int, str]:
    """The processes that a process has started, and their commands."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread or a child that has ended since
            for child in map(int, thread.read_text().split()):
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


@contextmanager
def staged(place: Path) -> Iterator[Scene]:
    """A scene, and nothing of it afterwards."""
    (place / "store").mkdir()
    made = Scene(place)
    try:
        yield made
    finally:
        made.close()
