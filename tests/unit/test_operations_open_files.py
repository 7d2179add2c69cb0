"""Tables that are too many to be held open: refused before an object is written, and after a dump that made some."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from guestagent.errors import GuestagentError, Refused
from guestagent.operations import open_files
from guestagent.operations.doctor import Finding, doctor
from guestagent.operations.open_files import GROWTH, OWN, OpenFiles
from guestagent.operations.preflight import check_inside
from guestagent.streams.limits import MORE_FILES
from tests.fakes.bench import Bench

LATER = 50


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have a backup allowed that many files."""
    return lambda most: monkeypatch.setattr(open_files, "most_files", lambda: most)


def tables(bench: Bench, count: int, *, name: str = "t") -> int:
    """Make tables; gives how many tablespaces there are then."""
    for number in range(count):
        (bench.datadir / "shop" / f"{name}{number}.ibd").touch()
    return len(list(bench.datadir.rglob("*.ibd")))


def row(bench: Bench) -> Finding:
    return {finding.check: finding for finding in doctor(bench.host(), lambda _: None)}["files"]


def test_what_is_counted_is_what_the_tool_opens(bench: Bench) -> None:
    before = tables(bench, 0)
    for name in ("shop/p#P#p0.ibd", "shop/p#P#p1#SP#p1sp0.ibd", "general.ibd", "#kept/shop/old.ibd", "shop/isam.MYD"):
        (bench.datadir / name).parent.mkdir(parents=True, exist_ok=True)
        (bench.datadir / name).touch()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert open_files.look(bench.datadir) == OpenFiles(before + 3 + OWN + GROWTH, hard)


def test_more_tables_than_may_be_held_open(bench: Bench, allow: Callable[[int], None]) -> None:
    needed = tables(bench, 9) + OWN + GROWTH
    allow(needed)
    made = bench.backup()
    allow(needed - 1)
    before = bench.objects()
    with pytest.raises(Refused) as refused:
        bench.backup(made)
    assert str(refused.value) == (
        f"a backup holds up to {needed} files open, one for each InnoDB table, and may hold {needed - 1}; {MORE_FILES}"
    )
    assert bench.objects() == before
    assert len(bench.runs("backup")) == 1


@pytest.mark.parametrize("more", [LATER, GROWTH, GROWTH + 1])
def test_tables_that_are_made_during_a_backup(
    bench: Bench, allow: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    allow(tables(bench, 0) + OWN + GROWTH)

    def made_meanwhile(where: Path) -> None:
        tables(bench, more, name="late")
        check_inside(where)

    monkeypatch.setattr("guestagent.operations.backup.check_inside", made_meanwhile)
    if more <= GROWTH:
        assert bench.backup().id
        return
    with pytest.raises(Refused, match="a backup holds up to"):
        bench.backup()
    assert bench.objects() == {}
    bench.check_no_child()


def test_a_datadir_that_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(GuestagentError, match=f"cannot look at {tmp_path}/gone: no such file"):
        open_files.check(tmp_path / "gone")


@pytest.mark.parametrize(
    ("share", "ok", "remedy"),
    [(0.79, True, ""), (0.81, True, MORE_FILES), (1, True, MORE_FILES), (1.01, False, MORE_FILES)],
)
def test_the_doctor_warns_before_it_is_too_late(
    bench: Bench, allow: Callable[[int], None], share: float, ok: bool, remedy: str
) -> None:
    needed = tables(bench, 700) + OWN + GROWTH
    allow(int(needed / share))
    found = row(bench)
    assert (found.ok, found.remedy) == (ok, remedy)
    assert found.detail.startswith(f"a backup holds up to {needed} files open")
