"""One job at a time per host: the second is told what the first is, and a dead one holds nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from guestagent.errors import Busy, GuestagentError
from guestagent.jobs.lock import AGENT_LOCK, LOCK, only_agent, only_job
from tests.fakes.bench import PATIENCE, Bench, living
from tests.processes import eventually

HOLDER = """
import sys, time
from pathlib import Path
from guestagent.jobs.lock import only_job
with only_job(Path(sys.argv[1]), "backup 2f"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_job_is_told_what_the_first_one_is(tmp_path: Path) -> None:
    with only_job(tmp_path / "state", "backup 2f"):
        with pytest.raises(Busy, match=rf"this host is busy with backup 2f \(pid {os.getpid()}\); wait for it") as busy:
            only_job(tmp_path / "state", "restore 3a").__enter__()
        assert busy.value.exit_status == 7
    with only_job(tmp_path / "state", "restore 3a"):
        assert (tmp_path / "state" / LOCK).read_text() == f"restore 3a (pid {os.getpid()})"


def test_the_lock_is_free_after_a_job_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_job(tmp_path, "a job with a long name"):
        raise ZeroDivisionError
    with only_job(tmp_path, "b"), pytest.raises(Busy, match=rf"with b \(pid {os.getpid()}\);"):
        only_job(tmp_path, "c").__enter__()


def test_the_state_directory_is_made_for_us_alone(tmp_path: Path) -> None:
    with only_job(tmp_path / "var" / "state", "x"):
        assert stat.S_IMODE((tmp_path / "var" / "state").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "var" / "state" / LOCK).stat().st_mode) == 0o600


def test_a_job_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=rf"busy with backup 2f \(pid {holder.pid}\)"):
            only_job(tmp_path, "x").__enter__()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=PATIENCE)
    with only_job(tmp_path, "x"):
        pass


def test_a_holder_that_has_not_said_its_name_yet(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="busy with another job"):
            only_job(tmp_path, "x").__enter__()


@pytest.mark.parametrize("what", ["restore \udcff", "restore " + "x" * 10_000])
def test_a_name_that_is_no_text_or_very_long(tmp_path: Path, what: str) -> None:
    with only_job(tmp_path, what), pytest.raises(Busy, match="busy with restore"):
        only_job(tmp_path, "y").__enter__()


def test_a_state_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        GuestagentError, match=f"cannot write to state_dir {tmp_path}/file/state: .*; run as a user"
    ) as at:
        only_job(tmp_path / "file" / "state", "x").__enter__()
    assert type(at.value) is GuestagentError


@pytest.mark.parametrize("call", ["flock", "ftruncate", "pwrite"])
def test_a_filesystem_that_fails_is_explained_and_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl if call == "flock" else os, call, fail)
        with pytest.raises(GuestagentError, match=r"cannot write to state_dir .*: no space left on device"):
            only_job(tmp_path, "x").__enter__()
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
    with only_job(tmp_path, "x"):
        pass


def test_a_tool_does_not_inherit_the_lock(bench: Bench) -> None:
    bench.tool(FAULT="hang")
    holder = bench.told_by_another("with only_job(bench.state, 'backup'): bench.backup()")
    try:
        assert eventually(lambda: bool(bench.runs("backup")))
        with pytest.raises(Busy, match=rf"busy with backup \(pid {holder.pid}\)"):
            only_job(bench.state, "x").__enter__()
        tools = [run["pid"] for run in bench.runs("backup")]
        assert bench.state / "lock" in open_files(holder.pid)
        assert not any(bench.state / "lock" in open_files(tool) for tool in tools)
    finally:
        holder.kill()
        holder.wait(PATIENCE)
    with only_job(bench.state, "x"):
        assert eventually(lambda: not living(tools))
    bench.check_no_child()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(("hold", "name"), [(lambda place: only_job(place, "x"), LOCK), (only_agent, AGENT_LOCK)])
def test_a_lock_that_root_makes_belongs_to_whom_the_state_dir_belongs_to(
    tmp_path: Path, hold: Callable[[Path], AbstractContextManager[None]], name: str
) -> None:
    """Else a command typed with sudo would keep the agent out, which is not root."""
    os.chown(tmp_path, 65534, 65534)
    with hold(tmp_path):
        assert (tmp_path / name).stat().st_uid == 65534


def test_there_is_one_agent_for_a_state_dir(tmp_path: Path) -> None:
    with only_agent(tmp_path / "state"):
        with pytest.raises(
            Busy,
            match=rf"the agent with pid {os.getpid()} uses state_dir {tmp_path}/state; stop it, or use another state_",
        ):
            only_agent(tmp_path / "state").__enter__()
        with only_agent(tmp_path / "other"):
            pass
    with only_agent(tmp_path / "state"):
        assert (tmp_path / "state" / AGENT_LOCK).read_text() == f"the agent with pid {os.getpid()}"


def test_an_agent_that_serves_does_not_keep_jobs_from_running(tmp_path: Path) -> None:
    with only_agent(tmp_path), only_job(tmp_path, "x"), pytest.raises(Busy, match="with x "):
        only_job(tmp_path, "y").__enter__()


def open_files(pid: int) -> set[Path]:
    return {Path(os.readlink(entry)) for entry in Path(f"/proc/{pid}/fd").iterdir()}
