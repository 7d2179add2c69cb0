"""How children and threads give way to others: from their first instruction, whatever the kernel groups by."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from guestagent.errors import ToolError
from guestagent.progress import Watch
from guestagent.streams.process import NICEST, Child, Niceness, lower_thread

AUTOGROUP = Path("/proc/self/autogroup")
TELLING = "import os; print(os.getpriority(os.PRIO_PROCESS, 0), os.getpid())"


def tail_of(argv: list[str], niceness: Niceness) -> tuple[int, str]:
    """The child's process id, and what it said."""
    with Child(argv, niceness=niceness) as child:
        child.finish(Watch())
    return child.pid, child.tail[0]


def test_a_child_is_as_we_are_unless_told_otherwise() -> None:
    pid, said = tail_of([sys.executable, "-c", TELLING], Niceness())
    assert said == f"{os.getpriority(os.PRIO_PROCESS, 0)} {pid}"


def test_a_nice_child_is_the_same_process_and_nicer_than_we() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    pid, said = tail_of([sys.executable, "-c", TELLING], Niceness(3))
    assert said == f"{min(NICEST, ours + 3)} {pid}"


@pytest.mark.parametrize(
    ("disk", "said"),
    [("idle", "idle"), ("best-effort:7", "best-effort: prio 7"), ("best-effort:0", "best-effort: prio 0")],
)
@pytest.mark.skipif(shutil.which("ionice") is None, reason="needs ionice")
def test_a_child_is_of_the_class_for_its_disk(disk: str, said: str) -> None:
    _, found = tail_of(["sh", "-c", "ionice -p $$"], Niceness(1, disk))
    assert found == said


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel does not group by sessions")
def test_the_session_of_a_nice_child_gives_way_as_a_whole() -> None:
    ours = AUTOGROUP.read_text()
    with Child(["sleep", "60"], niceness=Niceness(4)) as child:
        found = Path(f"/proc/{child.pid}/autogroup").read_text()
    wanted = min(NICEST, os.getpriority(os.PRIO_PROCESS, 0) + 4)
    assert found.split()[-1] == str(wanted)
    assert AUTOGROUP.read_text() == ours


def test_a_session_that_cannot_be_told_is_no_hindrance(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    gone = subprocess.Popen(["true"])
    gone.wait()
    Niceness(5).of_session(gone.pid)
    assert f"process {gone.pid} is a nice one among its own session alone" in caplog.text
    caplog.clear()
    Niceness().of_session(gone.pid)
    assert not caplog.text


def test_a_missing_tool_is_still_named() -> None:
    with pytest.raises(ToolError, match="no-such-tool is not installed"):
        Child(["no-such-tool"], niceness=Niceness(5, "idle"))


def test_a_missing_setpriv_leaves_a_child_nice(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(
        "guestagent.streams.process.shutil.which", lambda name: None if name == "setpriv" else which(name)
    )
    pid, said = tail_of([sys.executable, "-c", TELLING], Niceness(2))
    assert said == f"{min(NICEST, os.getpriority(os.PRIO_PROCESS, 0) + 2)} {pid}"


def test_one_thread_is_lowered_and_not_the_others() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []

    def work() -> None:
        for by in (0, 2, 90):
            lower_thread(by)
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [ours, min(NICEST, ours + 2), NICEST]
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours
