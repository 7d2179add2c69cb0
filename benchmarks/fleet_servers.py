"""The processes of a fleet as its benchmark sees them: the broker, those of many agents, and real agents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.fleet_agents import Wanted
from benchmarks.fleet_figures import MIB, MILLI, Real
from benchmarks.idle import KIB_A_MIB, Case, agent, cost
from tests.servers.rabbitmq import RabbitMQ

QUEUES: Mapping[str, str] = {
    "transient": "",
    "durable": "?amqp_durable_queues=true",
    "quorum": "?rabbit_quorum_queue=true",
}
"""What oslo.messaging takes in a transport_url for each kind of queues."""
PATIENCE = 300.0
ESTABLISHED = "01"


class Told:
    """A Python module in a process of its own that answers lines by lines of JSON; a context manager."""

    def __init__(self, module: str, **first: object) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(json.dumps(first))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def heard(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the fleet has ended with {self._process.wait(PATIENCE)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def look(self) -> dict[str, Any]:
        """What it has seen."""
        self._say("look")
        return self.heard()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


# The broker


class Broker(RabbitMQ):
    """A broker that is looked at; ``queues`` is a kind of QUEUES."""

    def address(self, queues: str) -> str:
        """The URL of a vhost of its own."""
        return self.url(self.vhost()) + QUEUES[queues]

    def cpu(self) -> float:
        """Seconds that it has taken since it was started."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Its resident memory, in MiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB

    def queues_of(self, url: str) -> int:
        """How many queues there are in the vhost of ``url``."""
        vhost = url.rpartition("/")[2].partition("?")[0]
        return len(self._listed("queues", "-p", vhost, "name"))

    def listeners(self, pids: set[int]) -> list[float]:
        """When it took those connections of the processes that listen, in seconds of the wall clock."""
        consuming = {
            row["connection"]
            for row in self._listed("channels", "connection", "consumer_count")
            if row["consumer_count"]
        }
        rows = self._listed("connections", "pid", "connected_at", "client_properties")
        return [
            row["connected_at"] / MILLI
            for row in rows
            if row["pid"] in consuming and _pid_of(row["client_properties"]) in pids
        ]

    def _listed(self, what: str, *columns: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.command(f"list_{what}", "--formatter", "json", *columns))
        return found


def _pid_of(properties: list[list[Any]]) -> int:
    """oslo.messaging calls a connection PROGRAM:PID:ID."""
    name = next((value for key, _, value in properties if key == "connection_name"), "")
    pid = name.rpartition(":")[0].rpartition(":")[2]
    return int(pid) if pid.isdecimal() else 0


# Agents


@contextmanager
def crowds(wanted: list[Wanted]) -> Iterator[list[Told]]:
    """Processes of many agents, which begin at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(Told("benchmarks.fleet_agents", **vars(one))) for one in wanted]


@contextmanager
def real_agents(count: int, url: str, place: Path, interval: float) -> Iterator[dict[str, int]]:
    """``guestagent serve`` as systemd runs it, without a database; their process ids by instance id."""
    settings = f"url = file://{{place}}/store\n[conductor]\nenabled = true\nheartbeat_interval = {interval:g}\n"
    with ExitStack() as stack:
        names = [f"real{number}" for number in range(count)]
        yield {name: stack.enter_context(agent(Case(name, url, settings), place / name)).pid for name in names}


def real(pid: int, port: int) -> Real:
    """What a real agent takes."""
    found = cost(pid, 0)
    return Real(
        rss=round(found.rss / KIB_A_MIB, 1),
        private=round(found.own / KIB_A_MIB, 1),
        proportional=round(found.share / KIB_A_MIB, 1),
        threads=found.threads,
        connections=connections_to(port, pid),
    )


def connections_to(port: int, pid: int) -> int:
    """How many connections a process has to a port."""
    remote = f":{port:04X}"
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[2].endswith(remote) and row[3] == ESTABLISHED}
    return sum(_inode(path) in inodes for path in Path(f"/proc/{pid}/fd").iterdir())


def _inode(path: Path) -> str:
    return os.readlink(path).removeprefix("socket:[").removesuffix("]")
