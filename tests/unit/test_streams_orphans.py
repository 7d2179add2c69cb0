"""Names for processes, and the children that outlived their parent: ended, and nobody else."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from guestagent.errors import ToolError
from guestagent.progress import Watch
from guestagent.streams import orphans
from guestagent.streams.orphans import Name, alive, end_orphans, ourselves
from guestagent.streams.process import Child, clean_environment, run_command
from tests.fakes.bench import PATIENCE
from tests.processes import eventually, is_gone, state

PARENT = """
import os, sys
from guestagent.streams import orphans, process
orphans.MARK = sys.argv[1]
process._bound = lambda argv: argv  # as where there is no setpriv
child = process.Child(["sh", "-c", "trap '' INT TERM; sleep 60 & echo ready; wait"], stream=True)
os.read(child._stream.fileno(), 6)
print(child.pid, flush=True)
sys.stdin.read()
os._exit(1)
"""


@pytest.fixture(autouse=True)
def our_own_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else looks for orphans on this machine, such as another run of these tests, finds none of ours."""
    monkeypatch.setattr(orphans, "MARK", f"{orphans.MARK}_{os.getpid()}")


@contextmanager
def process(*, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits to be ended."""
    argv = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | (environment or {})
    ) as made:
        try:
            assert made.stdout is not None
            assert made.stdout.readline() == b"up\n"
            yield made
        finally:
            made.kill()


def a_dead_one() -> Name:
    return replace(ourselves(), start=1)


# Names


def test_a_process_has_one_name_for_life() -> None:
    with process() as one:
        name = Name.of(one.pid)
        assert name is not None
        assert (name.pid, name.boot, name.namespace) == (one.pid, ourselves().boot, os.readlink("/proc/self/ns/pid"))
        assert name == Name.of(one.pid) != ourselves()
        assert name.alive
        one.kill()
        assert eventually(lambda: state(one.pid) == "Z")
        assert Name.of(one.pid) is None, "a zombie does nothing any more"
    assert not alive(str(name))
    assert Name.of(one.pid) is None


def test_the_same_pid_is_not_the_same_process() -> None:
    assert ourselves().alive
    for other in (a_dead_one(), replace(ourselves(), boot="x"), replace(ourselves(), namespace="pid:[1]")):
        assert not other.alive


def test_a_name_there_and_back() -> None:
    assert Name.parse(str(ourselves())) == ourselves()
    assert alive(str(ourselves()))
    assert not alive(str(a_dead_one()))


@pytest.mark.parametrize("text", ["", "1", "1 2 3", "1 2 3 4 5", "x 2 boot pid:[1]", "1 x boot pid:[1]"])
def test_what_is_no_name(text: str) -> None:
    assert Name.parse(text) is None
    assert not alive(text)


@pytest.mark.parametrize("name", ["a) R 1", "(((", "x y\nz", "Z) Z"])
def test_the_name_of_a_program_may_be_anything(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as one:
        try:
            assert eventually(lambda: Path(f"/proc/{one.pid}/comm").read_text() == f"{name}\n")
            found = Name.of(one.pid)
            assert found is not None
            assert found.alive
            assert found.start >= ourselves().start
        finally:
            one.kill()


@pytest.mark.parametrize("text", [b"", b"7 (x) X 1 1"])
def test_a_process_that_is_all_but_gone_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_bytes(text)
    monkeypatch.setattr(orphans, "_PROC", tmp_path)
    assert Name.of(7) is None


# Orphans


def _tools_of(parent: int) -> list[int]:
    """A process that is just becoming another program shows no environment for a moment, and is not among them."""
    return [pid for pid in orphans._pids() if state(pid) and orphans._parent_of(pid) == Name.of(parent)]


def test_a_tool_of_a_dead_parent_is_ended_with_its_children() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, orphans.MARK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        tool = int(parent.stdout.readline())
        assert eventually(lambda: len(_tools_of(parent.pid)) == 2)
        inner = _tools_of(parent.pid)
        assert tool in inner
        assert end_orphans() == [], "its parent lives"
        assert not is_gone(tool)
        parent.kill()
    assert sorted(end_orphans()) == sorted(inner)
    assert all(map(is_gone, inner))
    assert end_orphans() == []


def test_the_children_of_the_living_are_left_alone() -> None:
    with Child(["sleep", "60"]) as tool:
        assert eventually(lambda: orphans._parent_of(tool.pid) == ourselves())
        assert end_orphans() == []
        assert not is_gone(tool.pid)


def test_a_server_that_a_command_has_started_is_no_orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if we were started by such a tool ourselves."""
    monkeypatch.setenv(orphans.MARK, str(a_dead_one()))
    assert orphans.MARK not in clean_environment()
    run_command(["sh", "-c", f"sleep 60 & echo $! >{tmp_path}/pid"], Watch())
    server = int((tmp_path / "pid").read_text())
    try:
        assert end_orphans() == []
        assert not is_gone(server)
    finally:
        os.kill(server, signal.SIGKILL)


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "nonsense",
        "\udcff 1 2 3",
        str(replace(a_dead_one(), namespace="pid:[1]")),
        str(replace(a_dead_one(), boot="before")),
    ],
    ids=["empty", "nonsense", "bytes", "namespace", "boot"],
)
def test_who_is_marked_by_nobody_that_we_can_judge_is_left_alone(mark: str) -> None:
    with process(environment={orphans.MARK: mark}) as one:
        assert end_orphans() == []
        assert one.poll() is None


def test_a_name_that_only_resembles_the_mark() -> None:
    with process(environment={f"X{orphans.MARK}": str(a_dead_one()), f"{orphans.MARK}_X": str(a_dead_one())}) as one:
        assert end_orphans() == []
        assert one.poll() is None


def test_a_process_that_vanishes_before_we_look_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(environment={orphans.MARK: str(a_dead_one())}) as one:
        judge = orphans._orphaned

        def vanish(pid: int) -> bool:
            found = judge(pid)
            if pid == one.pid:
                one.kill()
                one.wait(PATIENCE)
            return found

        monkeypatch.setattr(orphans, "_orphaned", vanish)
        assert end_orphans() == []


def test_a_pid_that_was_given_out_again_before_we_held_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with process() as innocent:
        answers = iter([True, False])
        judge = orphans._orphaned
        monkeypatch.setattr(orphans, "_orphaned", lambda pid: next(answers) if pid == innocent.pid else judge(pid))
        before = len(os.listdir("/proc/self/fd"))
        assert end_orphans() == []
        assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert innocent.poll() is None
        assert next(answers, None) is None


def test_an_orphan_that_ends_just_before_the_blow(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(environment={orphans.MARK: str(a_dead_one())}) as one:
        send = signal.pidfd_send_signal

        def too_late(handle: int, number: int) -> None:
            one.kill()
            one.wait(PATIENCE)
            send(handle, number)

        monkeypatch.setattr(signal, "pidfd_send_signal", too_late)
        assert end_orphans() == [one.pid]


def test_an_orphan_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "GRACE", 0.01)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_: None)
    with process(environment={orphans.MARK: str(a_dead_one())}) as one:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ToolError, match=rf"process {one.pid}, left behind by a dead guestagent, does not end; "):
            end_orphans()
        assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize(("module", "call"), [(os, "pidfd_open"), (signal, "pidfd_send_signal")])
def test_a_kernel_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch, module: object, call: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(module, call, refuse)
    with process(environment={orphans.MARK: str(a_dead_one())}) as one:
        with pytest.raises(ToolError, match=rf"process {one.pid}, .*, cannot be ended: Function not implemented"):
            end_orphans()
        assert one.poll() is None


def test_many_open_files_are_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """select() knows no descriptor beyond 1023."""
    opened = os.pidfd_open

    def high(pid: int) -> int:
        handle = opened(pid)
        os.dup2(handle, 1500)
        os.close(handle)
        return 1500

    monkeypatch.setattr(os, "pidfd_open", high)
    with process(environment={orphans.MARK: str(a_dead_one())}) as one:
        with pytest.raises(ValueError, match="range"):
            select.select([1500], [], [], 0)
        assert end_orphans() == [one.pid]
