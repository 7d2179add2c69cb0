"""The fake tools do what they say, also when they are told to misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from guestagent.engines import DumpRequest, Engine, engine_named
from guestagent.errors import ToolError

FAKES = Path(__file__).parents[1] / "fakes"


@pytest.fixture(params=["mariabackup", "xtrabackup"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_named(request.param)


def started(engine: Engine, tmp_path: Path, **knobs: str) -> subprocess.Popen[bytes]:
    (tmp_path / "client.cnf").write_text("[client]\n")
    request = DumpRequest(tmp_path / "client.cnf", tmp_path / "dump", tmp_path / "facts", None)
    environment = {"PATH": f"{FAKES}:{os.environ['PATH']}", **{f"FAKE_TOOL_{key}": knobs[key] for key in knobs}}
    pipe = subprocess.PIPE
    return subprocess.Popen(engine.dump_argv(request), env=environment, stdout=pipe, stderr=pipe)


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()} if directory.exists() else {}


@pytest.mark.parametrize(
    ("fault", "code", "confirmed"),
    [
        ("", 0, True),
        ("start-exit-1", 1, False),
        ("half", 1, False),
        ("killed", -signal.SIGKILL, False),
        ("unconfirmed", 0, False),
        ("exit-3", 3, True),
        ("words-after", 0, False),
        ("cut", 0, True),
        ("unended", 0, True),
        ("empty", 0, True),
        ("flip", 0, True),
        ("loud", 0, True),
        ("long-line", 0, True),
        ("binary", 0, True),
    ],
)
def test_how_a_run_ends(engine: Engine, tmp_path: Path, fault: str, code: int, confirmed: bool) -> None:
    child = started(engine, tmp_path, FAULT=fault)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == code
    assert engine.confirmed(errors.decode(errors="replace").splitlines()) is confirmed


@pytest.mark.parametrize("fault", ["no-checkpoints", "bad-checkpoints", "wrong-from", "behind"])
def test_facts_that_cannot_be_true(engine: Engine, tmp_path: Path, fault: str) -> None:
    started(engine, tmp_path, FAULT=fault, LSN="5").communicate(timeout=30)
    with pytest.raises(ToolError):
        engine.facts(texts(tmp_path / "facts"))


def test_streams_that_are_not_whole(engine: Engine, tmp_path: Path) -> None:
    streams = {
        fault: started(engine, tmp_path, FAULT=fault).communicate(timeout=30)[0]
        for fault in ("", "half", "cut", "unended", "empty", "flip")
    }
    whole = len(streams[""])
    assert streams["empty"] == b""
    assert 0 < len(streams["half"]) == len(streams["cut"]) < whole
    assert len(streams["unended"]) < whole == len(streams["flip"])
    assert zlib.crc32(streams["flip"]) != zlib.crc32(streams[""])
    assert (b"XBSTCK01\0S" in streams[""]) is (engine.name == "xtrabackup")


@pytest.mark.parametrize("deaf", [False, True])
def test_only_an_interrupt_or_a_kill_ends_it(engine: Engine, tmp_path: Path, deaf: bool) -> None:
    child = started(engine, tmp_path, FAULT="hang,deaf" if deaf else "hang")
    assert child.stdout is not None
    child.stdout.read(1)
    for number in (signal.SIGTERM, signal.SIGHUP, *([signal.SIGINT] if deaf else [])):
        child.send_signal(number)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL if deaf else signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == (-signal.SIGKILL if deaf else -signal.SIGINT)
