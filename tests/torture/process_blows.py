"""The blows: how each victim is struck in the midst of a job, and how the world is put right again afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.integration.running import tool_of, tool_on_path
from tests.servers.guest import PASSWORD
from tests.servers.mariadb import MariaDB, give_to_server
from tests.servers.rabbitmq import RabbitMQ
from tests.torture.process_attempts import Attempt, alive, send, wait
from tests.torture.process_cases import FLOODS, Case, Face, Fault, Story, Victim

NUMBERS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
STEPS = {"forth": 3 * 3600.0, "back": -3 * 3600.0}
FLOOD = 2 << 20
"""Bytes."""
MIB = 1 << 20
HOLDS: Mapping[tuple[Victim, str], float] = {
    (Victim.RUNNER, "stop"): 1.0,
    (Victim.SERVER, "stop"): 12.0,
    (Victim.STATE, "full"): 4.0,
    (Victim.DATA, "full"): 4.0,
    (Victim.BROKER, "kill"): 2.0,
}
"""Seconds after which the world is put right, where that is not when the job has ended."""
_SERVER_UP = 5.0
"""Seconds for the restored server to be there, once it is to be started."""
FLOODER = Path(__file__).parents[1] / "servers" / "faults" / "flood.py"
CLOCK = Path(__file__).parents[1] / "servers" / "faults" / "clock"

Relief = Callable[[], object]


class Bench:
    """What can be struck: the places of a scene, a server for each story, and the broker if there is one."""

    def __init__(self, place: Path, servers: Mapping[Story, MariaDB], disks: Mapping[Victim, Path]) -> None:
        self.place, self.servers, self.disks = place, servers, disks
        self.broker: RabbitMQ | None = None
        self.clock = place / "clock"

    def environment(self) -> dict[str, str]:
        """What the processes under test get: a clock that may step."""
        return {"PYTHONPATH": str(CLOCK), "GUESTAGENT_TEST_CLOCK": str(self.clock)}

    @contextmanager
    def prepared(self, fault: Fault) -> Iterator[dict[str, str]]:
        """What lies in wait before the job begins; gives the environment."""
        if fault.what not in FLOODS:
            yield self.environment()
            return
        word = "--prepare" if fault.phase == "prepare" else "--backup"
        words = self.place / "words"
        words.write_text(PASSWORD if word == "--backup" else "")  # who prepares knows no password
        end = "exit 3" if fault.what == "flood-end" else ""
        flood = f"/usr/bin/env python3 {FLOODER} {fault.what} {FLOOD} {words}"
        script = f'case "$*" in *{word}*) touch {self.place}/flooded; {flood}; {end};; esac; exec $real "$@"'
        with tool_on_path(self.place, script) as path:
            yield self.environment() | path

    def flooded(self) -> bool:
        """Whether a flood has come since this was asked before."""
        mark = self.place / "flooded"
        there = mark.exists()
        mark.unlink(missing_ok=True)
        return there

    def strike(self, case: Case, attempt: Attempt) -> Relief | None:
        """Strike; gives what puts the world right again, or None if there was nobody to strike."""
        return _BLOWS[case.fault.victim](self, case, attempt)

    def _tool(self, case: Case, attempt: Attempt) -> Relief | None:
        word = "--prepare" if case.fault.phase == "prepare" else "--backup"
        found: list[int] = []

        def there() -> bool:
            found[:] = [pid for pid in [tool_of(self.place, word)] if pid]
            return bool(found) or attempt.over()

        wait(there, pause=0.002)
        return _signalled(found[0] if found else None, case.fault.what)

    def _runner(self, case: Case, attempt: Attempt) -> Relief | None:
        pid, relief = attempt.pid, _signalled(attempt.pid, case.fault.what)
        return relief if relief is None or case.fault.what == "stop" else lambda: wait(lambda: not alive(pid))

    def _server(self, case: Case, attempt: Attempt) -> Relief | None:
        server = self.servers[case.story]
        if case.fault.phase == "start":
            wait(lambda: server.pid is not None or attempt.over(), _SERVER_UP, pause=0.002)
            time.sleep(case.fault.seconds)
        relief = _signalled(None if attempt.over() else server.pid, case.fault.what)
        if case.fault.what == "kill" and relief is not None:
            wait(lambda: server.pid is None)
            (server.home / "pid").unlink(missing_ok=True)  # a service manager would have taken note of its end
        return relief

    def _disk(self, case: Case, attempt: Attempt) -> Relief | None:
        balloon = self.disks.get(case.fault.victim, attempt.guest.state) / "balloon"
        fill(balloon)
        return balloon.unlink

    def _clock(self, case: Case, attempt: Attempt) -> Relief | None:
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(str(STEPS[case.fault.what]))
        fresh.replace(self.clock)
        return lambda: self.clock.unlink(missing_ok=True)

    def _broker(self, case: Case, attempt: Attempt) -> Relief | None:
        assert self.broker is not None
        self.broker.kill()
        return self.broker.start


_BLOWS: Mapping[Victim, Callable[[Bench, Case, Attempt], Relief | None]] = {
    Victim.TOOL: Bench._tool,
    Victim.RUNNER: Bench._runner,
    Victim.SERVER: Bench._server,
    Victim.STORE: Bench._disk,
    Victim.STATE: Bench._disk,
    Victim.DATA: Bench._disk,
    Victim.CLOCK: Bench._clock,
    Victim.BROKER: Bench._broker,
}


def _signalled(pid: int | None, what: str) -> Relief | None:
    if pid is None or not send(pid, NUMBERS[what]):
        return None
    return lambda: send(pid, signal.SIGCONT) if what == "stop" else None


def hold(case: Case) -> float:
    """Seconds for which the world stays wrong, unless the job ends before; what a command fills, it leaves full."""
    fault = case.fault
    if fault.victim is Victim.STATE and case.face is Face.COMMAND:
        return 60.0
    return HOLDS.get((fault.victim, fault.what), 60.0)


def fill(balloon: Path) -> None:
    """Leave no room where a file is put."""
    with balloon.open("wb", buffering=0) as file:
        for piece in (MIB, 4096):
            with suppress(OSError):
                while file.write(bytes(piece)) == piece:
                    pass


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[bool]:
    """A filesystem of its own at ``place``, the server's to write to; False where nobody may mount."""
    place.mkdir(exist_ok=True)
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    mounted = os.geteuid() == 0 and not subprocess.run(argv, capture_output=True, check=False).returncode
    give_to_server(place)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
