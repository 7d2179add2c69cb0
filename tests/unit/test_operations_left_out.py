"""Tables of InnoDB that are rebuilt while a backup is taken: the next incremental would lack most of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guestagent.errors import BadLuck, GuestagentError, Refused
from guestagent.manifest import Manifest
from guestagent.model import Checkpoints, Lsn
from guestagent.operations import left_out
from guestagent.operations.tablespace import page_size
from guestagent.streams.chunks import MBSTREAM, whole_chunks
from tests import wire
from tests.fakes.backups import manifest
from tests.fakes.bench import Bench

FULL_CRC32 = b"\0\0\0\x15"
"""Of a tablespace with pages of 16 KiB."""
COMPRESSED = b"\0\0\0\x29"
"""Of one with ROW_FORMAT=COMPRESSED and pages of 8 KiB."""


def page(space: int, lsn: int, *, size: int = 16 << 10, flags: bytes = FULL_CRC32) -> bytes:
    """A page of a tablespace; one that was never written has an LSN of 0."""
    head = bytes(16) + lsn.to_bytes(8, "big") + bytes(10) + space.to_bytes(4, "big") + bytes(16) + flags
    return head.ljust(size, b"\0") if lsn else bytes(size)


def table(space: int, *lsns: int) -> bytes:
    """A tablespace whose pages have these LSNs."""
    return b"".join(page(space, lsn) for lsn in lsns)


def lay(place: Path, name: str, data: bytes) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (FULL_CRC32, 16 << 10),
        (b"\0\0\0\x14", 8 << 10),
        (b"\0\0\0\x17", 64 << 10),
        (COMPRESSED, 8 << 10),
        (b"\0\0\0\x23", 1 << 10),
        (b"\0\0\0\x21", 16 << 10),
        (b"\0\0\0\xc1", 4 << 10),
        (b"\0\0\0\0", 16 << 10),
    ],
)
def test_how_large_a_page_is(flags: bytes, size: int) -> None:
    assert page_size(flags) == size


def test_what_a_stream_brings() -> None:
    seen = left_out.Brought()
    stream = b"".join(
        [
            wire.payload(b"d/whole.ibd", table(7, 5, 5)),
            wire.payload(b"d/whole.ibd", table(99, 5), 32 << 10),
            wire.end(b"d/whole.ibd"),
            wire.payload(b"d/new.new", table(8, 5)),
            wire.payload(b"d/never.ibd", bytes(16 << 10)),
            wire.payload(b"d/changed.ibd.meta", b"page_size = 16384\nzip_size = 0 \nspace_id = 31\n"),
            wire.payload(b"d/changed.ibd.delta", table(98, 5)),
            wire.payload(b"d/odd.ibd.meta", b"nothing of the kind"),
            wire.payload(b"ibdata1.meta", b"page_size = 16384\nzip_size = 0 \nspace_id = 0\n"),
            wire.payload(b"d/short.ibd", b"x"),
            wire.payload(b"d/t.frm", table(97, 5)),
        ]
    )
    for chunk in whole_chunks(memoryview(stream), dialect=MBSTREAM):
        seen.note(memoryview(stream), chunk)
    assert seen.spaces == {7, 8, 31}


def test_what_was_there_and_was_not_brought(tmp_path: Path) -> None:
    lay(tmp_path, "d/brought.ibd", table(1, 50))
    lay(tmp_path, "d/#sql-alter-1-2.ibd", table(2, 101, 0, 100))
    lay(tmp_path, "d/later.ibd", table(3, 101, 0, 102))
    lay(tmp_path, "e/small.ibd", page(4, 101, size=8 << 10, flags=COMPRESSED) + page(4, 99, size=8 << 10))
    lay(tmp_path, "e/never.ibd", bytes(64 << 10))
    lay(tmp_path, "e/short.ibd", b"x")
    assert left_out.find(tmp_path, {1}, Lsn(100)) == (2, 4)


def test_a_rebuild_that_ends_while_we_look_is_seen_by_its_other_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both names were listed; the table's was looked at before, and the other one is not there any more."""
    lay(tmp_path, "d/t.ibd", table(1, 50))
    lay(tmp_path, "d/#sql-alter-1-2.ibd", table(2, 50))
    real, seen = Path.open, []

    def late(path: Path, *words: Any) -> Any:
        if path.name == "#sql-alter-1-2.ibd":
            path.rename(tmp_path / "d" / "t.ibd")
        seen.append(path.name)
        return real(path, *words)

    monkeypatch.setattr(Path, "open", late)
    listed = [[tmp_path / "d" / "t.ibd", tmp_path / "d" / "#sql-alter-1-2.ibd"], [tmp_path / "d" / "t.ibd"]]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed.pop(0)))
    assert left_out.find(tmp_path, {1}, Lsn(100)) == (2,)
    assert seen == ["t.ibd", "#sql-alter-1-2.ibd", "t.ibd"]


def test_tables_that_go_each_time_are_bad_luck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter([tmp_path / "d" / "gone.ibd"]))
    with pytest.raises(BadLuck, match="each time that they were looked at"):
        left_out.find(tmp_path, (), Lsn(100))


def test_what_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    (tmp_path / "d" / "t.ibd").mkdir(parents=True)
    with pytest.raises(GuestagentError, match="look at the tablespaces"):
        left_out.find(tmp_path, (), Lsn(100))


def parent_of(*spaces: int) -> Manifest:
    """A backup that ended at LSN 100."""
    return replace(manifest(1), left_out=spaces, lsn=Checkpoints(Lsn(0), Lsn(100), Lsn(100)))


def test_a_rebuild_that_ended_before_its_table_would_be_brought(tmp_path: Path) -> None:
    lay(tmp_path, "d/#sql-alter-1-2.ibd", table(2, 101, 0, 100))
    lay(tmp_path, "d/other.ibd", table(3, 5))
    assert left_out.halves(tmp_path, parent_of(2)) == {2: "d/#sql-alter-1-2"}
    (tmp_path / "d" / "#sql-alter-1-2.ibd").rename(tmp_path / "d" / "t.ibd")
    with pytest.raises(Refused) as failed:
        left_out.halves(tmp_path, parent_of(2, 4))
    assert "1 tables were being rebuilt when the parent was taken, d/t among them" in failed.value.what
    assert failed.value.hint == "take a full backup"


def test_a_table_whose_pages_have_all_changed_since_comes_whole(tmp_path: Path) -> None:
    lay(tmp_path, "d/t.ibd", table(2, 101, 0, 102))
    assert left_out.halves(tmp_path, parent_of(2)) == {}


def test_without_anything_left_out_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("looked"))
    assert left_out.halves(tmp_path, parent_of()) == {}


def test_a_rebuild_that_ended_while_its_table_was_brought() -> None:
    left_out.check({2: "d/t"}, {3})
    with pytest.raises(Refused, match="d/t among them"):
        left_out.check({2: "d/t"}, {2, 3})


# The story

REBUILT = table(77, 5)
"""What lies in the datadir while the table is being rebuilt, and in the source once it is there."""


def test_a_backup_notes_what_is_being_rebuilt(bench: Bench) -> None:
    lay(bench.datadir, "shop/#sql-alter-1-2.ibd", REBUILT)
    full = bench.backup()
    assert full.manifest.left_out == (77,)
    assert bench.catalog().get(full.id).manifest == full.manifest
    child = bench.backup(full)
    assert child.manifest.left_out == (77,), "it is still at work"
    (bench.datadir / "shop/#sql-alter-1-2.ibd").unlink()
    assert bench.backup(child).manifest.left_out == ()


def test_no_incremental_begins_after_a_rebuild_that_its_parent_has_seen(bench: Bench) -> None:
    lay(bench.datadir, "shop/#sql-alter-1-2.ibd", REBUILT)
    full = bench.backup()
    (bench.datadir / "shop/#sql-alter-1-2.ibd").rename(bench.datadir / "shop/rebuilt.ibd")
    runs = len(bench.runs("backup"))
    with pytest.raises(Refused, match="shop/rebuilt among them: no incremental on it would have the whole of them"):
        bench.backup(full)
    assert len(bench.runs("backup")) == runs
    lay(bench.source, "shop/rebuilt.ibd", REBUILT)
    again = bench.backup()
    assert again.manifest.left_out == ()
    bench.backup(again)


def test_no_incremental_brings_what_its_parent_has_left_out(bench: Bench) -> None:
    """The statement ends while the tool runs."""
    lay(bench.datadir, "shop/#sql-alter-1-2.ibd", REBUILT)
    full = bench.backup()
    before = bench.objects()
    lay(bench.source, "shop/rebuilt.ibd", REBUILT)
    with pytest.raises(Refused, match="shop/#sql-alter-1-2 among them"):
        bench.backup(full)
    assert bench.objects() == before


def test_xtrabackup_lets_no_table_be_rebuilt(mysql: Bench) -> None:
    lay(mysql.datadir, "shop/#sql-alter-1-2.ibd", REBUILT)
    assert mysql.backup().manifest.left_out == ()
