"""Who holds the host's lock is told without being in anybody's way."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guestagent.errors import GuestagentError
from guestagent.jobs import lock
from guestagent.jobs.lock import LOCK, holder, only_agent, only_job

HOLDER = """
import sys, time
from pathlib import Path
from guestagent.jobs.lock import only_job
with only_job(Path(sys.argv[1]), "backup 2f"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_that_nobody_ever_held_is_free_and_not_made(tmp_path: Path) -> None:
    assert holder(tmp_path / "state") is None
    assert not (tmp_path / "state").exists()


def test_whoever_holds_the_lock_is_named_until_they_let_go(tmp_path: Path) -> None:
    for what in ("backup 2f", "restore 3a"):
        with only_job(tmp_path, what):
            assert holder(tmp_path) == f"{what} (pid {os.getpid()})"
        assert holder(tmp_path) is None


def test_another_process_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert holder(tmp_path) == f"backup 2f (pid {other.pid})"
    finally:
        other.kill()
        other.communicate()
    assert holder(tmp_path) is None
    assert (tmp_path / LOCK).read_text() == f"backup 2f (pid {other.pid})"


def test_other_locks_do_not_count(tmp_path: Path) -> None:
    with only_job(tmp_path, "backup 2f"):
        pass
    with only_agent(tmp_path), (tmp_path / "else").open("w") as other, (tmp_path / LOCK).open("r+") as own:
        fcntl.flock(other, fcntl.LOCK_EX)
        fcntl.lockf(own, fcntl.LOCK_EX)
        assert holder(tmp_path) is None


def test_to_ask_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_job(tmp_path, "backup 2f"):
        pass
    monkeypatch.setattr(fcntl, "flock", None)
    assert holder(tmp_path) is None


def test_what_cannot_be_seen_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GuestagentError, match=f"cannot see what holds {tmp_path}/file/lock: not a directory"):
        holder(tmp_path / "file")
    monkeypatch.setattr(lock, "KERNELS", tmp_path / "nowhere")
    with pytest.raises(GuestagentError, match=f"cannot see what holds {tmp_path}/lock: no such file"):
        holder(tmp_path)
