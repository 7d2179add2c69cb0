"""Tables of Aria that are newer than the control file knows: it is told, or a server would refuse them."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from guestagent.errors import GuestagentError
from guestagent.operations import moved
from tests.fakes.bench import Bench

CONTROL = bytes.fromhex(
    "fefe0c012d7b704fe6f611f1992a02fc000000011e001600002049b968d9e5764f1a010000919054000100000047020000000000"
)
"""As 10.11.19 wrote it; the newest transaction was 583."""
NEWEST = 583


def index(made_by: int) -> bytes:
    """The beginning of an index file of Aria whose table was repaired by that transaction."""
    return bytes.fromhex("fefe0903").ljust(137, b"\0") + made_by.to_bytes(8) + bytes(100)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "aria_log_control").write_bytes(CONTROL)
    (tmp_path / "shop" / "old.MAI").write_bytes(index(5))
    return tmp_path


def newest(base: Path) -> int:
    """What the control file says, whose sum must be right."""
    body = (base / "aria_log_control").read_bytes()
    assert len(body) == len(CONTROL)
    assert int.from_bytes(body[30:34], "little") == zlib.crc32(body[34:])
    assert body[:30] == CONTROL[:30]
    assert body[34:45] + body[51:] == CONTROL[34:45] + CONTROL[51:]
    return int.from_bytes(body[45:51], "little")


def test_a_table_that_is_newer_is_admitted(base: Path) -> None:
    (base / "shop" / "repaired.MAI").write_bytes(index(653))
    moved.admit(base)
    assert newest(base) == 653


@pytest.mark.parametrize("made_by", [0, NEWEST - 1, NEWEST])
def test_no_table_is_newer(base: Path, made_by: int) -> None:
    (base / "shop" / "repaired.MAI").write_bytes(index(made_by))
    moved.admit(base)
    assert (base / "aria_log_control").read_bytes() == CONTROL


def test_what_is_no_index_of_aria_does_not_count(base: Path) -> None:
    (base / "shop" / "short.MAI").write_bytes(b"")
    (base / "shop" / "other.MAI").write_bytes(index(653).replace(b"\xfe\xfe\x09\x03", b"\xfe\xfe\x07\x01"))
    (base / "shop" / "t.MYI").write_bytes(index(653))
    moved.admit(base)
    assert newest(base) == NEWEST


@pytest.mark.parametrize(
    "control",
    [
        b"",
        CONTROL[:-1],
        CONTROL + b"\0",
        CONTROL.replace(b"\xfe\xfe\x0c\x01", b"\xfe\xfe\x0c\x02"),
        CONTROL[:10] + b"\x01" + CONTROL[11:],
        CONTROL[:40] + b"\x01" + CONTROL[41:],
    ],
)
def test_a_control_file_of_another_kind_is_left_alone(
    base: Path, caplog: pytest.LogCaptureFixture, control: bytes
) -> None:
    (base / "aria_log_control").write_bytes(control)
    (base / "shop" / "repaired.MAI").write_bytes(index(653))
    moved.admit(base)
    assert (base / "aria_log_control").read_bytes() == control
    assert "not as expected" in caplog.text


def test_a_base_without_aria_has_nothing_to_admit(base: Path) -> None:
    (base / "aria_log_control").unlink()
    moved.admit(base)
    assert not (base / "aria_log_control").exists()


def test_what_cannot_be_read_is_an_error(base: Path) -> None:
    (base / "shop" / "loop.MAI").symlink_to("loop.MAI")
    with pytest.raises(GuestagentError, match=r"look at .*aria_log_control"):
        moved.admit(base)


def test_a_restore_does_so(bench: Bench) -> None:
    bench.write("first")
    (bench.source / "aria_log_control").write_bytes(CONTROL)
    (bench.source / "shop" / "repaired.MAI").write_bytes(index(653))
    bench.restore(bench.backup(), replace=True)
    assert newest(bench.datadir) == 653
