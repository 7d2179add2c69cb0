"""Child processes: how they end, what they say, and that nothing of them is left."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent.errors import Cancelled, Stalled, ToolError
from guestagent.progress import Watch
from guestagent.streams import process
from guestagent.streams.process import Child, clean_environment, output_of, run_command
from tests.processes import SOON, belongings, eventually, is_gone, nothing_more_than, state

DEAF = "trap '' INT TERM HUP; "
"""For a shell: do not listen to any signal that can be ignored, and hand that on."""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor, child, zombie or thread is left by any test here."""
    before = belongings()
    yield
    assert eventually(lambda: nothing_more_than(before)), (before, belongings())


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.3)


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def goes_on() -> bool:
    return False


def everything(child: Child) -> bytes:
    """All of a child's stream."""
    found, view = b"", memoryview(bytearray(1 << 16))
    while count := child.read_into(view, stopped=goes_on):
        found += view[:count]
    return found


def failure(script: str) -> ToolError:
    with pytest.raises(ToolError) as caught, Child(shell(script)) as child:
        child.finish(Watch())
    return caught.value


def written(path: Path) -> int:
    """The number that a child writes to a file, once it is there."""
    assert eventually(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def took(begin: float) -> float:
    return time.monotonic() - begin


# How it ends


def test_exit_status_0_is_success() -> None:
    with Child(shell("echo on stdout; echo on stderr >&2")) as child:
        child.finish(Watch())
        child.finish(Watch())

    assert sorted(child.tail) == ["on stderr", "on stdout"]


@pytest.mark.parametrize("status", [1, 3, 127])
def test_any_other_exit_status_is_a_failure(status: int) -> None:
    error = failure(f"echo first >&2; echo the reason >&2; exit {status}")

    assert str(error) == f"sh failed with exit status {status}: the reason"
    assert error.tail == ("first", "the reason")


def test_a_failure_without_words_is_told_too() -> None:
    assert str(failure("exit 1")) == "sh failed with exit status 1"


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV"), (35, "signal 35")]
)
def test_death_by_signal_is_a_failure(number: int, name: str) -> None:
    assert str(failure(f"ulimit -c 0; echo working >&2; kill -{int(number)} $$")) == f"sh died by {name}: working"


def test_success_after_words_of_success_is_still_judged_by_the_exit_status() -> None:
    assert "exit status 3" in str(failure("echo 'completed OK!' >&2; exit 3"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_missing_program_is_named(stream: bool) -> None:
    with pytest.raises(ToolError) as caught:
        Child(["no-such-tool", "--backup"], stream=stream)

    assert str(caught.value) == (
        "no-such-tool is not installed; install the package that has no-such-tool, or put it on PATH"
    )


def test_a_program_that_cannot_be_executed_is_named(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    with pytest.raises(ToolError, match=f"cannot start {tool}: Permission denied"):
        Child([str(tool)])


def test_who_ignores_the_ends_of_children_learns_nothing_and_is_told_so() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(ToolError, match="cannot learn how sh ended"), Child(shell("exit 1")) as child:
            child.finish(Watch())
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_silent_child_is_stalled_in_the_end() -> None:
    with pytest.raises(Stalled), Child(["sleep", "60"]) as child:
        child.finish(Watch(limit=0.2))

    assert is_gone(child.pid)


def test_every_line_is_a_sign_of_life() -> None:
    now = [0.0]
    watch = Watch(limit=5, clock=lambda: now[0])

    told = []

    def heard(line: str) -> None:
        told.append(line)
        watch.alive()
        now[0] += 3

    with Child(shell("for i in 1 2 3 4 5 6; do sleep 0.1; echo $i >&2; done"), on_line=heard) as child:
        child.finish(watch)

    assert now[0] == 18
    assert told == list("123456")


# What it says


def test_ten_megabytes_of_stderr_are_drained_in_bounded_memory() -> None:
    script = "import sys\nfor i in range(100_000): print(f'line {i} '.ljust(99, '.'), file=sys.stderr)"
    lines = itertools.count()

    def count(_: str) -> None:
        next(lines)

    tracemalloc.start()
    try:
        with Child(python(script), on_line=count) as child:
            child.finish(Watch())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert next(lines) == 100_000
    assert [line.split(" .")[0] for line in child.tail] == [f"line {i}" for i in range(99_960, 100_000)]
    assert peak < 4 << 20


def test_one_line_of_a_megabyte_is_cut_in_bounded_memory() -> None:
    tracemalloc.start()
    try:
        with Child(python("import sys; sys.stderr.write('x' * (16 << 20) + '\\nlast\\n')")) as child:
            child.finish(Watch())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert child.tail == ("x" * process.LINE_LIMIT, "last")
    assert peak < 2 << 20


def test_a_last_line_without_an_end_is_heard_and_cut() -> None:
    with Child(python("import sys; sys.stderr.write('first\\n' + 'y' * 9999)")) as child:
        child.finish(Watch())

    assert child.tail == ("first", "y" * process.LINE_LIMIT)


def test_what_is_not_utf8_is_shown_as_well_as_can_be() -> None:
    error = failure(r"printf 'table \377\376 \303( copied\r\n\n  \n' >&2; exit 1")

    assert error.tail == ("table \ufffd\ufffd \ufffd( copied",)


def test_lines_are_logged_as_they_come(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger=process.__name__)
    with Child(shell("echo hello >&2")) as child:
        child.finish(Watch())

    assert "sh: hello" in caplog.messages
    assert any(re.fullmatch(r"starting .*sh -c echo hello >&2", message) for message in caplog.messages)


def test_a_child_outside_the_group_that_keeps_stderr_does_not_keep_us(short_grace: None, tmp_path: Path) -> None:
    script = f"setsid sleep 60 & echo $! > {tmp_path}/pid; echo done >&2"
    begin = time.monotonic()
    with Child(shell(script)) as child:
        child.finish(Watch())
    os.kill(written(tmp_path / "pid"), signal.SIGKILL)

    assert took(begin) < SOON / 2
    assert child.tail == ("done",)


# The stream


def test_a_stream_is_read_to_its_end_and_words_go_beside_it() -> None:
    with Child(shell("echo words >&2; printf stream; echo more >&2; printf ' goes on'"), stream=True) as child:
        assert everything(child) == b"stream goes on"
        child.finish(Watch())

    assert child.tail == ("words", "more")


def test_no_more_is_read_than_there_is_room_for() -> None:
    with Child(shell("printf abcdef"), stream=True) as child:
        view = memoryview(bytearray(4))
        child_says = [bytes(view[: child.read_into(view, stopped=goes_on)]) for _ in range(3)]

    assert child_says == [b"abcd", b"ef", b""]


def test_a_stream_that_ends_in_the_middle_ends_in_a_failure() -> None:
    with Child(shell("head -c 300000 /dev/zero; echo 'no space left' >&2; exit 1"), stream=True) as child:
        assert len(everything(child)) == 300_000
        with pytest.raises(ToolError, match="sh failed with exit status 1: no space left"):
            child.finish(Watch())


@pytest.mark.parametrize(
    "script", ["exec sleep 60", "while :; do printf x; sleep 0.02; done"], ids=["silent", "dripping"]
)
def test_a_read_ends_when_it_is_told_to(script: str) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    begin = time.monotonic()
    with Child(shell(script), stream=True) as child:
        view = memoryview(bytearray(10))
        while child.read_into(view, stopped=stop.is_set):
            assert took(begin) < SOON
        assert stop.is_set()

    assert took(begin) < SOON / 2


def test_the_tool_goes_on_while_nobody_reads(tmp_path: Path) -> None:
    with Child(shell(f"head -c 100000 /dev/zero; touch {tmp_path}/done"), stream=True) as child:
        assert eventually((tmp_path / "done").exists)
        assert len(everything(child)) == 100_000


def test_a_tool_that_cannot_be_started_leaves_no_end_of_a_stream() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ToolError):
        Child(["/nowhere/tool"], stream=True)
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


# The way out


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT as it is in a terminal: whoever is run in the background by a shell ignores it, and so do the children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_a_child_is_asked_to_end_before_it_is_made_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 60)
    script = f"trap 'echo asked > {tmp_path}/asked; exit 0' INT; echo ready >&2; while :; do sleep 0.05; done"
    with Child(shell(script)) as child:
        assert eventually(lambda: child.tail == ("ready",))
        begin = time.monotonic()

    assert (tmp_path / "asked").read_text() == "asked\n"
    assert took(begin) < process.GRACE
    assert is_gone(child.pid)


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("stream", [False, True])
def test_a_deaf_child_and_its_own_children_are_gone_soon(stream: bool, tmp_path: Path) -> None:
    with Child(shell(f"{DEAF} sleep 60 & echo $! > {tmp_path}/pid; wait; sleep 60"), stream=stream) as child:
        grandchild = written(tmp_path / "pid")
        begin = time.monotonic()

    assert 0.3 <= took(begin) < SOON / 2
    assert is_gone(child.pid)
    assert eventually(lambda: is_gone(grandchild))


def test_what_a_child_leaves_in_its_group_is_gone_too(tmp_path: Path) -> None:
    with Child(shell(f"{DEAF} sleep 60 2>/dev/null >&2 & echo $! > {tmp_path}/pid")) as child:
        child.finish(Watch())
        grandchild = written(tmp_path / "pid")

        assert eventually(lambda: is_gone(grandchild))


def test_a_failure_in_the_middle_ends_the_child() -> None:
    with pytest.raises(ZeroDivisionError), Child(["sleep", "60"], stream=True) as child:
        child.read_into(memoryview(bytearray(1)), stopped=lambda: bool(1 // 0))

    assert is_gone(child.pid)


def test_a_cancelled_wait_ends_the_child() -> None:
    watch = Watch()
    threading.Timer(0.2, watch.cancel.set, ["stopped by SIGTERM"]).start()
    with pytest.raises(Cancelled), Child(["sleep", "60"]) as child:
        child.finish(watch)

    assert is_gone(child.pid)


def test_a_group_is_signalled_only_while_its_id_is_the_childs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id may belong to somebody else as soon as its owner is gathered; we may run as root."""
    states: list[str] = []
    kill = os.killpg

    def note(group: int, number: int) -> None:
        states.append(state(group))
        kill(group, number)

    monkeypatch.setattr(os, "killpg", note)
    with Child(shell("exit 0")) as child:
        child.finish(Watch())
        assert states == ["Z"]
    child.end()

    assert states == ["Z"]


def test_a_group_that_is_not_ours_to_signal_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(group: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "killpg", refuse)
    with Child(shell("exit 0")) as child:
        child.finish(Watch())


def test_a_child_has_a_group_of_its_own_so_that_ctrl_c_is_ours_alone() -> None:
    with Child(["sleep", "60"]) as child:
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
        assert os.getsid(child.pid) == child.pid


def test_a_child_has_no_stdin() -> None:
    with Child(shell("cat; echo over >&2")) as child:
        child.finish(Watch())

    assert child.tail == ("over",)


def test_a_child_inherits_no_descriptors() -> None:
    inherited = os.open("/dev/null", os.O_RDONLY)
    try:
        with Child(shell("ls /proc/self/fd"), stream=True) as child:
            numbers = {int(number) for number in everything(child).split()}
    finally:
        os.close(inherited)

    assert numbers <= {0, 1, 2, 3}


# Secrets


SECRETS = [
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "OS_S3__SECRET_ACCESS_KEY",
    "OS_PASSWORD",
    "GUESTAGENT_PASSWORD",
    "MYSQL_PWD",
    "DB_PWD",
    "some_secret",
    "API_TOKEN",
    "X_APIKEY",
    "X_API_KEY",
    "PRIVATE_KEY",
    "KEY_PASSPHRASE",
    "GOOGLE_CREDENTIALS",
]


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    for name in SECRETS:
        monkeypatch.setenv(name, "hunter2")
    return "hunter2"


def test_the_clean_environment_has_the_rest(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    for name in ("PATH", "HOME", "LANG", "TMPDIR", "PWD", "OLDPWD", "COMPASS"):
        monkeypatch.setenv(name, "/kept")

    assert secret not in clean_environment().values()
    assert {name for name, value in clean_environment().items() if value == "/kept"} == {
        "PATH", "HOME", "LANG", "TMPDIR", "PWD", "OLDPWD", "COMPASS",
    }  # fmt: skip


def test_no_secret_reaches_a_child(secret: str) -> None:
    with Child(["env"], stream=True) as child:
        seen = everything(child).decode()

    assert secret not in seen
    assert "PATH=" in seen
    assert secret not in output_of(["env"])


def test_no_secret_reaches_a_command_but_what_is_meant_for_it(secret: str, tmp_path: Path) -> None:
    run_command(shell(f"env > {tmp_path}/env"), Watch(), environment={"GUESTAGENT_DATADIR": "/data"})
    seen = (tmp_path / "env").read_text()

    assert secret not in seen
    assert "GUESTAGENT_DATADIR=/data" in seen


# Short answers


def test_both_outputs_of_a_short_command_are_its_answer() -> None:
    assert output_of(shell("echo one; echo two >&2")) == "one\ntwo\n"
    assert output_of(shell(r"printf '\377'")) == "\ufffd"


def test_a_short_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(ToolError) as caught:
        output_of(shell("echo unknown option; exit 2"))

    assert (str(caught.value), caught.value.tail) == (
        "sh failed with exit status 2: unknown option",
        ("unknown option",),
    )


def test_a_short_command_that_is_missing_is_named() -> None:
    with pytest.raises(ToolError, match="no-such-tool is not installed"):
        output_of(["no-such-tool"])


def test_a_short_command_that_cannot_be_executed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"cannot run .*Permission denied"):
        output_of([str(tmp_path)])


def test_a_short_command_that_takes_too_long_is_ended() -> None:
    begin = time.monotonic()
    with pytest.raises(ToolError, match=r"cannot run sleep: .*timed out"):
        output_of(["sleep", "60"], timeout=0.2)

    assert took(begin) < SOON / 2


# The operator's commands


def test_a_command_that_succeeds_says_nothing() -> None:
    run_command(shell("echo started"), Watch())


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(ToolError) as caught:
        run_command(shell("echo starting; echo no such unit >&2; exit 5"), Watch())

    assert str(caught.value) == (
        "sh -c echo starting; echo no such unit >&2; exit 5 failed with exit status 5: no such unit"
    )
    assert caught.value.tail == ("starting", "no such unit")


def test_a_command_that_is_missing_is_named() -> None:
    with pytest.raises(ToolError, match="no-such-tool is not installed"):
        run_command(["no-such-tool"], Watch())


def test_of_a_command_that_says_very_much_only_the_end_is_read() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ToolError) as caught:
            run_command(python("import sys; sys.stderr.write('x' * (16 << 20) + '\\nlast\\n'); sys.exit(1)"), Watch())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert caught.value.tail[-1] == "last"
    assert peak < 2 << 20


def test_a_server_that_a_command_leaves_behind_lives_on_and_is_not_waited_for(tmp_path: Path) -> None:
    begin = time.monotonic()
    run_command(shell(f"setsid sleep 60 & echo $! > {tmp_path}/pid; echo started"), Watch())
    server = written(tmp_path / "pid")
    try:
        assert took(begin) < SOON / 2
        assert not is_gone(server)
    finally:
        os.kill(server, signal.SIGKILL)


@pytest.mark.parametrize("ending", [Cancelled, Stalled])
def test_a_command_is_ended_when_the_watch_says_so_and_its_server_is_not(
    ending: type[Exception], tmp_path: Path
) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/server; {DEAF} echo $$ > {tmp_path}/command; while :; do sleep 0.1; done"
    now = [0.0]
    watch = Watch(limit=1, clock=lambda: now[0])

    def end() -> None:
        written(tmp_path / "command")
        if ending is Cancelled:
            watch.cancel.set("stopped by SIGINT")
        else:
            now[0] = 2

    threading.Thread(target=end).start()
    with pytest.raises(ending):
        run_command(shell(script), watch)
    server = written(tmp_path / "server")
    try:
        assert is_gone(written(tmp_path / "command"))
        assert not is_gone(server)
    finally:
        os.kill(server, signal.SIGKILL)


def test_a_command_has_a_session_of_its_own(tmp_path: Path) -> None:
    run_command(shell(f"ps -o sid= -p $$ > {tmp_path}/sid; echo $$ > {tmp_path}/pid"), Watch())

    assert written(tmp_path / "sid") == written(tmp_path / "pid")


def test_the_helpers_of_these_tests_see_what_is_left() -> None:
    before = belongings()
    left = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE)
    try:
        assert belongings() != before
    finally:
        left.kill()
        assert eventually(lambda: state(left.pid) == "Z")
        assert left.pid in belongings()[1]
        left.communicate()
    with contextlib.suppress(ProcessLookupError):
        os.kill(left.pid, signal.SIGKILL)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_child_does_not_outlive_a_killed_parent() -> None:
    program = (
        "import time; from guestagent.streams.process import Child\n"
        "child = Child(['sleep', '300'], stream=True); print(child.pid, flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert eventually(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n"), "setpriv has done its work"
        parent.kill()
    assert eventually(lambda: is_gone(child))


def test_without_setpriv_a_child_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestagent.streams.process.shutil.which", lambda name: None)
    with Child(["true"]) as child:
        child.finish(Watch())
