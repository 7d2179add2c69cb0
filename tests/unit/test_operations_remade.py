"""Tables of Aria and MyISAM that are made anew during a dump: it is made once more, and never taken for a backup."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from guestagent.errors import BadLuck, GuestagentError, Refused, ToolError
from guestagent.operations import remade
from guestagent.operations.backup import DUMPS
from guestagent.progress import Watch
from tests.fakes.bench import Bench, Told

HEADER = bytes.fromhex("fefe09030c0001c000d7008700ef00010000010000000303")
"""The first bytes of an index file as 10.11.19 writes it; what follows are two counters and the place."""

Change = Callable[[Path], object]


def index(made: int, *, flushed: int = 0, emptied: int = 0, counters: bytes = b"\0\0\1\0") -> bytes:
    """The beginning of an index file of Aria, with these places in the log."""
    places = b"".join(b"\1\0\0" + place.to_bytes(4, "little") for place in (made, flushed, emptied))
    return HEADER + counters + places + b"state".ljust(100)


def isam(second: int, *, keys: int = 2, rows: bytes = b"") -> bytes:
    """The beginning of an index file of MyISAM, whose table was made at that second."""
    header = b"\xfe\xfe\7\1".ljust(18, b"\0") + bytes([keys, 0, 8, 1, 0, 0])
    return header + rows.ljust(120 + 8 * (keys + 1), b"\0") + second.to_bytes(8) + b"state".ljust(100)


@pytest.fixture
def tables(bench: Bench) -> Path:
    """The directory of a schema with a table of each engine that counts here."""
    for name, body in {
        "aria.MAI": index(1000),
        "isam.MYI": isam(50),
        "rows.MAD": b"",
        "t.frm": b"",
    }.items():
        (bench.datadir / "shop" / name).write_bytes(body)
    return bench.datadir / "shop"


def anew(path: Path) -> None:
    """Put another file of the same content in its place, as ALTER TABLE does."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(path.read_bytes())
    fresh.rename(path)


HARMFUL: list[tuple[str, str, Change]] = [
    ("made", "new", lambda shop: (shop / "new.MAI").write_bytes(index(2000))),
    ("made", "new", lambda shop: (shop / "new.MYI").touch()),
    ("renamed", "moved", lambda shop: (shop / "aria.MAI").rename(shop / "moved.MAI")),
    ("renamed", "moved", lambda shop: (shop / "isam.MYI").rename(shop / "moved.MYI")),
    ("altered", "aria", lambda shop: anew(shop / "aria.MAI")),
    ("altered", "isam", lambda shop: anew(shop / "isam.MYI")),
    ("emptied", "aria", lambda shop: (shop / "aria.MAI").write_bytes(index(1001))),
    ("emptied", "aria", lambda shop: (shop / "aria.MAI").write_bytes(index(1000, emptied=1001))),
    ("emptied", "isam", lambda shop: (shop / "isam.MYI").write_bytes(isam(51))),
]
HARMLESS: list[Change] = [
    lambda shop: (shop / "aria.MAI").write_bytes(index(1000, flushed=1500, counters=b"\0\1\1\xb9")),
    lambda shop: (shop / "isam.MYI").write_bytes(isam(50, rows=b"more rows")),
    lambda shop: (shop / "aria.MAI").unlink(),
    lambda shop: (shop / "isam.MYI").unlink(),
    lambda shop: (shop / "#sql-alter-1-2.MAI").write_bytes(index(3000)),
    lambda shop: (shop / "more.ibd").touch(),
    lambda shop: anew(shop / "rows.MAD"),
]


class Statement(Told):
    """Does something to tables during the first dumps."""

    def __init__(self, change: Change, shop: Path, *, dumps: int) -> None:
        super().__init__()
        self.done = False
        self._change, self._shop, self._left = change, shop, dumps

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.phases[-1][0] == "dump" and self.dumps <= self._left and not self.done:
            self.done = True
            self._change(self._shop)

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        super().phase(name, total=total, link=link, links=links)
        self.done = False

    @property
    def dumps(self) -> int:
        return sum(name == "dump" for name, _ in self.phases)


@pytest.mark.parametrize(("what", "table", "change"), HARMFUL)
def test_a_dump_beside_which_a_table_was_made_anew_is_made_again(
    bench: Bench, tables: Path, caplog: pytest.LogCaptureFixture, what: str, table: str, change: Change
) -> None:
    told = Statement(change, tables, dumps=1)
    taken = bench.backup(watch=Watch(told))
    assert told.dumps == 2
    assert f"{what}" in caplog.text
    assert f"during the dump, shop/{table} among them; dumping once more" in caplog.text
    assert len(bench.objects()) == len(taken.manifest.segments) + 1


@pytest.mark.parametrize("change", HARMLESS)
def test_what_the_tool_copies_rightly_costs_no_dump(bench: Bench, tables: Path, change: Change) -> None:
    told = Statement(change, tables, dumps=1)
    bench.backup(watch=Watch(told))
    assert told.dumps == 1


def test_a_server_where_that_goes_on_gets_no_backup(bench: Bench, tables: Path) -> None:
    told = Statement(lambda shop: anew(shop / "aria.MAI"), tables, dumps=DUMPS)
    with pytest.raises(ToolError) as failed:
        bench.backup(watch=Watch(told))
    assert str(failed.value) == (
        "1 tables of Aria or MyISAM were made, altered, renamed or emptied during the dump, shop/aria among them; "
        "the tool may lose such tables: back up while nobody does that, or make them InnoDB"
    )
    assert told.dumps == DUMPS
    assert bench.objects() == {}


def test_a_table_that_is_dropped_while_we_look(tables: Path) -> None:
    os.symlink("nowhere", tables / "gone.MAI")
    os.symlink("nowhere", tables / "gone.MYI")
    assert sorted(remade.look(tables.parent)) == ["shop/aria", "shop/isam"]


def test_a_datadir_that_cannot_be_looked_at(tables: Path) -> None:
    (tables / "odd.MAI").mkdir()
    with pytest.raises(GuestagentError, match=r"cannot look at .*: is a directory \(.*odd.MAI\)") as failed:
        remade.look(tables.parent)
    assert not isinstance(failed.value, Refused)


# The same second


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.5
        patch.setattr(remade, "time", self)

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("second", "waits"), [(1000, True), (999, False), (1001, False), (5000, False)], ids=["now", "past", "next", "step"]
)
def test_a_table_of_this_second_could_be_emptied_in_it(
    tables: Path, monkeypatch: pytest.MonkeyPatch, second: int, waits: bool
) -> None:
    clock = Clock(monkeypatch)
    (tables / "isam.MYI").write_bytes(isam(second))
    found = remade.settled(tables.parent)
    assert found["shop/isam"].second == second
    assert (clock.now > 1001 + remade.SLACK) is waits


def test_a_clock_that_is_a_tick_behind_is_thought_of(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.now = 1001.01
    (tables / "isam.MYI").write_bytes(isam(1000))
    remade.settled(tables.parent)
    assert clock.now >= 1001 + remade.SLACK


def test_tables_that_are_made_all_the_time_count_as_changed(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    sleep = clock.sleep

    def remake(seconds: float) -> None:
        sleep(seconds)
        (tables / "isam.MYI").write_bytes(isam(int(clock.now)))

    monkeypatch.setattr(clock, "sleep", remake)
    (tables / "isam.MYI").write_bytes(isam(int(clock.now)))
    before = remade.settled(tables.parent)
    assert "shop/isam" not in before
    assert "shop/aria" in before
    assert clock.now < 1001 + 2 * remade.PATIENCE
    with pytest.raises(BadLuck, match="shop/isam among them"):
        remade.check(tables.parent, before)
