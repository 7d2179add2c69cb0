"""What an agent costs while nobody asks it for anything: memory, and how often it wakes up.

Several agents (``guestagent serve``) run beside each other, over ``local://`` and over a private RabbitMQ, with a store
on disk and one on S3, one of them with a conductor and a database that answers.  Each is given time to settle; then
the context switches of all its threads are counted for a while::

    python -m benchmarks.idle --seconds 60

A wake-up is a context switch of any of its threads, wanted or not, as /proc counts them.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.conductor import Conductor
from tests.servers.mariadb import MariaDB
from tests.servers.rabbitmq import RabbitMQ

PATIENCE = 60.0
"""Seconds that an agent may take to start or to stop."""
KIB_A_MIB = 1024
STORES = {
    "file": "url = file://{place}/store\n",
    "s3": "url = s3://bucket/prefix\n[s3]\naccess_key_id = somebody\nsecret_access_key = secret\n",
}
CONDUCTOR = "[conductor]\nenabled = true\n[database]\nsocket = {socket}\n"


@dataclass(frozen=True)
class Case:
    """An agent that is measured."""

    name: str
    url: str
    settings: str


@dataclass(frozen=True)
class Cost:
    """What one agent takes; memory in KiB: resident, of that its own, and its share with what others use too."""

    rss: int
    own: int
    share: int
    threads: int
    wakeups: int


@contextmanager
def agent(case: Case, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that is ready."""
    place.mkdir()
    (place / "store").mkdir()
    file = place / "guestagent.conf"
    file.write_text(
        f"[DEFAULT]\nguest_id = {place.name}\nstate_dir = {place}/state\n"
        f"transport_url = {case.url}\n[storage]\n{case.settings.format(place=place)}"
    )
    file.chmod(0o600)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (place / "log").open("wb") as log:
        notify.bind(str(place / "notify"))
        notify.settimeout(PATIENCE)
        # Fed as often as the shipped unit asks for.
        environment = os.environ | {"NOTIFY_SOCKET": str(place / "notify"), "WATCHDOG_USEC": "120000000"}
        argv = [sys.executable, "-m", "guestagent", "--config-file", str(file), "serve"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while not notify.recv(4096).startswith(b"READY=1"):
                pass
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def switches(pid: int) -> int:
    """Context switches so far of all threads of a process that are alive."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                count += int(line.split()[1])
    return count


def memory(pid: int, name: str) -> int:
    """A figure of smaps_rollup in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def cost(pid: int, before: int) -> Cost:
    """What a process takes now, and took since it had switched ``before`` times."""
    return Cost(
        rss=memory(pid, "Rss"),
        own=memory(pid, "Private_Dirty") + memory(pid, "Private_Clean"),
        share=memory(pid, "Pss"),
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
        wakeups=switches(pid) - before,
    )


def cases(stack: ExitStack, place: Path) -> list[Case]:
    """The agents, with the servers that they need."""
    broker = stack.enter_context(RabbitMQ())
    database = stack.enter_context(MariaDB())
    plain = broker.url(broker.vhost())
    told = broker.url(broker.vhost())
    stack.enter_context(Conductor(told))
    conducted = STORES["file"] + CONDUCTOR.format(socket=database.socket)
    return [
        *(Case(f"local://, {name} store", f"local://{place}/run-{name}", text) for name, text in STORES.items()),
        *(Case(f"rabbit://, {name} store", plain, text) for name, text in STORES.items()),
        Case("rabbit://, conductor", told, conducted),
    ]


def measure(seconds: float, settle: float) -> list[tuple[Case, Cost]]:
    """What each agent costs."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idle-")))
        wanted = cases(stack, place)
        running = [
            (case, stack.enter_context(agent(case, place / f"guest{number}")).pid) for number, case in enumerate(wanted)
        ]
        time.sleep(settle)
        before = {pid: switches(pid) for _, pid in running}
        time.sleep(seconds)
        return [(case, cost(pid, before[pid])) for case, pid in running]


def show(found: list[tuple[Case, Cost]], seconds: float, write: Callable[[str], object] = print) -> None:
    """A table for docs/benchmarks.rst."""
    rule = f"{'=' * 23}  {'=' * 7}  {'=' * 11}  {'=' * 17}  {'=' * 7}  {'=' * 10}"
    write(rule)
    write(f"{'agent':23}  {'RSS MiB':7}  {'private MiB':11}  {'proportional MiB':17}  {'threads':7}  wake-ups/s")
    write(rule)
    for case, one in found:
        sizes = f"{one.rss / KIB_A_MIB:7.1f}  {one.own / KIB_A_MIB:11.1f}  {one.share / KIB_A_MIB:17.1f}"
        write(f"{case.name:23}  {sizes}  {one.threads:7}  {one.wakeups / seconds:10.2f}")
    write(rule)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long wake-ups are counted")
    parser.add_argument("--settle", type=float, default=20, help="how long the agents are left alone before that")
    given = parser.parse_args()
    show(measure(given.seconds, given.settle), given.seconds)


if __name__ == "__main__":
    main()
