"""Limits of single readers: each is kept, and what lies just within it is read."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestagent.datadir import durable, incarnation, journal, layout
from guestagent.engines.facts import dump_facts
from guestagent.errors import LONGEST, Corrupt, GuestagentError, ToolError, UsageError, one_line, printable
from guestagent.jobs.ledger import Ledger
from guestagent.jobs.record import MOST_STEP, Failure, Job, Step
from guestagent.manifest import MAX_FILES, MAX_TEXT, Manifest
from guestagent.operations.backup import read_texts
from guestagent.outbox import box
from guestagent.rpc.trove import NOTIFICATION_DEPTH, _notification
from guestagent.transport.frames import LARGEST, Assembler, pack
from tests.hostile import BIDI, check_line, samples
from tests.manifests import a_manifest, stored

JOB = "00000000-0000-4000-8000-000000000001"


# Messages


@pytest.mark.parametrize("sign", [*BIDI, *"\n\r\0\x1b\x7f\x9b\u2028\u2029", "\ud800"])
def test_an_error_is_one_line_whatever_it_quotes(sign: str) -> None:
    error = Corrupt(f"a{sign}b", hint=f"c{sign}d")
    assert str(error) == "a b; c d"
    assert error.args == ("a b",)
    assert printable(f"a{sign}b") == "a b"


def test_an_error_is_of_bounded_length_and_stays_what_it_is_on_its_way() -> None:
    error = UsageError("x" * 1_000_000, hint="y" * 1_000_000)
    check_line(str(error))
    assert error.what == "x" * (LONGEST - 3) + "..."
    again = UsageError(*error.args, **error.kwargs)
    assert (again.what, again.hint) == (error.what, error.hint)
    assert one_line("x" * LONGEST) == "x" * LONGEST


def test_an_error_that_is_not_ours_is_one_line_in_a_record() -> None:
    failure = Failure.of(RuntimeError("a\nb" * LONGEST))
    check_line(failure.what)


# Manifests


def test_a_text_of_a_manifest_is_bounded() -> None:
    assert Manifest.from_bytes(a_manifest(name="x" * MAX_TEXT).to_bytes()).name == "x" * MAX_TEXT
    with pytest.raises(Corrupt, match=r"^manifest: name has more than 1048576 characters$"):
        Manifest.from_bytes(a_manifest(name="x" * (MAX_TEXT + 1)).to_bytes())


def test_a_manifest_has_only_so_many_files() -> None:
    text = a_manifest().to_bytes().decode().replace('"files":2', f'"files":{MAX_FILES + 1}')
    with pytest.raises(Corrupt, match="stream: files is out of range"):
        Manifest.from_bytes(text.encode())


def test_a_manifest_has_only_so_many_values() -> None:
    with pytest.raises(Corrupt, match="more than 6000000 values"):
        Manifest.from_bytes(b"[" + b"0," * 6_000_000 + b"0]")


def test_what_a_manifest_says_for_people_does_nothing_to_their_terminals() -> None:
    shown = stored(a_manifest(name="\x1b]0;x\x07", description="a\u202eb")).properties()
    assert (shown["name"], shown["description"]) == (" ]0;x ", "a b")


# Jobs and messages


def _job(**changes: Any) -> bytes:
    return json.dumps({**json.loads(samples()["job"]), **changes}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 5},
        {"request": [["a", 1]]},
        {"result": [1]},
        {"notification": None},
        {"phase": None},
        {"created": 5},
        {"failure": {"code": "x", "what": "x", "hint": "x", "exit_status": "1"}},
        {"failure": {"code": "x", "what": 5, "hint": "x", "exit_status": 1}},
        {"failure": {"code": "x"}},
        {"failure": [1]},
    ],
)
def test_a_record_is_what_it_must_be(changes: dict[str, Any]) -> None:
    with pytest.raises(Corrupt, match="a job's record cannot be read"):
        Job.from_bytes(_job(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": 5},
        {"done": "1"},
        {"done": -1},
        {"total": 1.5},
        {"link": True},
        {"rate": "fast"},
        {"rate": -1.0},
        {"rate": True},
        {"unknown": 1},
    ],
)
def test_a_step_is_what_it_must_be(changes: dict[str, Any]) -> None:
    data = json.dumps({**json.loads(samples()["step"]), **changes}).encode()
    with pytest.raises(Corrupt, match="not a step"):
        Step.from_bytes(data)


def test_a_ledger_passes_over_what_is_no_record_and_no_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(tmp_path)
    (place := tmp_path / "jobs").mkdir()
    for data in (b"[" * 100_000, b"", b"x" * (MOST_STEP + 1), b"\xff"):
        (place / f"{JOB}.json").write_bytes(data)
        (place / f"{JOB}.progress").write_bytes(data)
        assert ledger.all() == []
        assert ledger.step(JOB) is None
        with pytest.raises(Corrupt):
            ledger.get(JOB)
    (place / f"{JOB}.cancel").write_bytes(b"a\n\x1b" * LONGEST)
    check_line(ledger.asked_to_stop(JOB) or "")
    assert len(caplog.records) == 4


def test_a_pipe_where_a_record_belongs_holds_nobody_up(tmp_path: Path) -> None:
    (place := tmp_path / "jobs").mkdir()
    os.mkfifo(place / f"{JOB}.json")
    with pytest.raises(GuestagentError):
        Ledger(tmp_path).get(JOB)


@pytest.mark.parametrize("again", [[-1], [1e9], ["1"], [True], 5, [None]])
def test_a_message_that_wants_to_be_sent_at_odd_times_is_put_aside(tmp_path: Path, again: Any) -> None:
    path = tmp_path / box._name("x")
    letter = {"format": 1, "number": 1, "subject": "x", "method": "m", "arguments": {}, "again": again}
    path.write_text(json.dumps(letter))
    assert len(box.Outbox(tmp_path)) == 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name + box.ASIDE]


@pytest.mark.parametrize("deep", [NOTIFICATION_DEPTH, 1000, 100_000])
def test_a_notification_that_is_nested_is_not_kept(deep: int) -> None:
    found: dict[str, Any] = {}
    for _ in range(deep):
        found = {"a": found}
    assert _notification({"trove_notification": found}) == {}


def test_a_notification_with_a_number_that_is_none_is_not_kept() -> None:
    assert _notification({"trove_notification": {"a": float("nan")}}) == {}
    assert _notification({"trove_notification": {"a": 1}}) == {"a": 1}


def test_a_frame_of_many_small_values_is_refused() -> None:
    data = b"[" + b"[]," * (LARGEST // 4) + b"0]"
    assembler = Assembler()
    assembler.feed(b"\x01" + len(data).to_bytes(4, "big") + data)
    with pytest.raises(Corrupt, match="more than 524288 values"):
        assembler.take()
    assembler.feed(pack({"a": 1}))
    assert assembler.take() == {"a": 1}


# In the datadir


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Whoever leaks descriptors runs out of them soon."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / layout.OURS).mkdir()
    (elsewhere := tmp_path / "elsewhere").write_text("{}")
    for path in (tmp_path / layout.OURS / layout.JOURNAL, tmp_path / incarnation.FILE):
        if kind == "link":
            path.symlink_to(elsewhere)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
    for _ in range(300):
        with pytest.raises(GuestagentError):
            journal.read(tmp_path)
        with pytest.raises(GuestagentError):
            incarnation.read(tmp_path)


def test_a_small_file_is_read_to_its_limit_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert durable.read_small(path, most=5) == bytes(6)
    path.write_bytes(b"abc")
    assert durable.read_small(path, most=3) == b"abc"


def test_texts_of_a_tool_are_small_files(tmp_path: Path) -> None:
    (tmp_path / "xtrabackup_info").write_text("tool_version = 1\n")
    (tmp_path / "link_info").symlink_to("/etc/passwd")
    (tmp_path / "other").write_text("x")
    assert read_texts(tmp_path) == {"xtrabackup_info": "tool_version = 1\n"}
    with (tmp_path / "xtrabackup_checkpoints").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Corrupt, match="xtrabackup_checkpoints has more than 1048576 bytes"):
        read_texts(tmp_path)


def test_a_value_over_many_lines_is_one(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no backup_type"):
        dump_facts({"xtrabackup_checkpoints": "a = 1\n2\n3\n", "xtrabackup_info": ""})


def test_a_journal_names_no_place_but_ours() -> None:
    for name in ("../x", "/etc", "a/b", "..", layout.OURS, "\0"):
        data = json.dumps({**json.loads(samples()["journal"]), "new": [name]}).encode()
        with pytest.raises(Corrupt):
            journal.Journal.from_bytes(data)
