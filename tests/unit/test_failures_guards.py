"""What ``scripts/mutants`` found that nobody would have missed for certain: guards without a test that must fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from guestagent.errors import Refused
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import Job, State
from guestagent.streams import orphans
from tests.fakes.bench import Bench
from tests.fakes.stores import Acts
from tests.processes import eventually, is_gone
from tests.unit.jobs_scene import Day, asked

Unchanged = Callable[[], Callable[[], None]]

ROOT = Path(__file__).parents[2]


def test_a_table_that_leaves_the_datadir_during_its_backup(bench: Bench, unchanged: Unchanged) -> None:
    link = bench.datadir / "shop" / "far.isl"

    def leave(_: str, __: str) -> None:
        link.write_bytes(b"/elsewhere/shop/far.ibd")

    check = unchanged()
    bench.wrap = lambda inner: Acts(inner, leave)
    with pytest.raises(Refused, match="1 tables lie outside the datadir, shop/far among them; make them anew without"):
        bench.backup()
    link.unlink()
    check()


_PARENT = """
import sys, time
from guestagent.streams import orphans
from guestagent.streams.process import Child
orphans.ourselves = lambda: sys.argv[1]
child = Child(["sleep", "300"], stream=True)
while open(f"/proc/{child.pid}/comm").read() != "sleep\\n":  # until then the kernel has not been asked for it
    time.sleep(0.01)
print(child.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_the_kernel_ends_a_tool_whose_parent_was_killed() -> None:
    # Marked as a child of the test's process, which lives: nobody who sweeps on this machine takes it for an orphan.
    words = [sys.executable, "-c", _PARENT, str(orphans.ourselves())]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    try:
        assert eventually(lambda: is_gone(child))
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_a_job_that_is_cancelled_as_it_begins_never_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day = Day(Ledger(tmp_path / "state"))
    begin, cancelled, other = day.ledger.begin, asked(), asked()

    def late(wanted: str) -> Job:
        if wanted == cancelled.id:
            day.ledger.cancel(wanted, "just in time")
        return begin(wanted)

    monkeypatch.setattr(day.ledger, "begin", late)
    try:
        work = day.worker()
        work.submit(cancelled)
        assert day.done(work, other).state is State.COMPLETED  # after the other one, whatever became of that
        assert [job.id for job in day.gate.jobs] == [other.id]
        assert day.ledger.get(cancelled.id).state is State.CANCELLED
    finally:
        day.close()
