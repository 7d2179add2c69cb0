"""A dump of bad luck is made once more, and nothing of it is left among the next one's; for tests/unit/."""

from __future__ import annotations

import pytest

from guestagent.errors import StorageDenied, ToolError
from guestagent.manifest import Backup
from guestagent.operations.backup import DUMPS
from guestagent.operations.verify import verify
from guestagent.progress import Watch
from tests.fakes.bench import Bench, Told
from tests.fakes.stores import Refuses, Through
from tests.unit.test_operations_encrypted import ring

BAD_LUCK = r"ended its copy of the redo log 0 bytes beyond the checkpoint"


@pytest.fixture
def parent(bench: Bench) -> Backup:
    """What the incrementals of this file go on from; a full has luck at once."""
    return bench.backup()


class Lucky(Told):
    """Has the tool be lucky from the ``number``th dump on, and looks for what is new in the store as each begins."""

    def __init__(self, bench: Bench, number: int) -> None:
        super().__init__()
        self.stored: list[dict[str, bytes]] = []
        self._bench, self._number, self._before = bench, number, bench.objects()

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        super().phase(name, total=total, link=link, links=links)
        if name == "dump":
            self.stored.append(dict(self._bench.objects().items() - self._before.items()))
            self._bench.tool(REDO="16" if len(self.stored) >= self._number else "0")


@pytest.mark.parametrize("number", [2, DUMPS])
def test_a_dump_that_ended_at_its_checkpoint_is_made_again(
    bench: Bench, parent: Backup, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    before = bench.objects()
    told = Lucky(bench, number)
    taken = bench.backup(parent, watch=Watch(told))
    assert [name for name, _ in told.phases] == ["preflight", *["dump"] * number, "publish"]
    assert told.stored == [{}] * number
    assert len(bench.objects()) == len(before) + len(taken.manifest.segments) + 1
    assert caplog.text.count("; dumping once more") == number - 1
    assert not list((bench.state / "unfinished").iterdir())
    bench.check_scratch()
    assert len(verify(bench.host(), taken.id, Watch())) == 2


def test_bad_luck_that_stays_is_a_failure(bench: Bench, parent: Backup) -> None:
    before = bench.objects()
    bench.tool(REDO="0")
    with pytest.raises(ToolError, match=BAD_LUCK):
        bench.backup(parent)
    assert len(bench.runs("backup")) == 1 + DUMPS
    assert bench.objects() == before


def test_each_dump_is_encrypted_under_a_key_of_its_own(bench: Bench) -> None:
    """The nonces are made of the segments' numbers, which two dumps have in common."""
    bench.keys = ring(bench.top, "first")
    parent = bench.backup()
    told = Lucky(bench, 2)
    taken = bench.backup(parent, watch=Watch(told))
    first, second = (body for stored in told.stored for body in stored.values())
    assert first != second
    assert bench.object(taken, "key.json").read_bytes() == second
    assert len(verify(bench.host(), taken.id, Watch())) == 2


def test_no_dump_is_made_on_top_of_what_cannot_be_removed(
    bench: Bench, parent: Backup, caplog: pytest.LogCaptureFixture
) -> None:
    bench.tool(REDO="0")
    bench.wrap = lambda store: Refuses(store, "delete", error=StorageDenied("not yours to delete"))
    with pytest.raises(ToolError, match=BAD_LUCK):
        bench.backup(parent)
    assert len(bench.runs("backup")) == 2
    assert "not dumping once more, as what was stored cannot be removed: not yours to delete" in caplog.text


class SentAgain(Through):
    """Has had an answer that got lost."""

    sent_again = True


def test_no_dump_is_made_where_a_put_of_the_last_one_may_still_arrive(
    bench: Bench, parent: Backup, caplog: pytest.LogCaptureFixture
) -> None:
    before = bench.objects()
    bench.tool(REDO="0")
    bench.wrap = SentAgain
    with pytest.raises(ToolError, match=BAD_LUCK):
        bench.backup(parent)
    assert len(bench.runs("backup")) == 2
    assert "a put that was sent again may still arrive" in caplog.text
    assert bench.objects() == before


class Dropped(Told):
    """A table is dropped as the first dump begins, and none as others do."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self._bench = bench

    def phase(self, name: str, *, total: int | None = None, link: int = 1, links: int = 1) -> None:
        self._bench.tool(FAULT="table-gone" if name == "dump" and "dump" not in dict(self.phases) else "")
        super().phase(name, total=total, link=link, links=links)


def test_a_table_that_goes_while_the_tool_lists_them_costs_a_second_dump(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    taken = bench.backup(watch=Watch(Dropped(bench)))
    assert len(bench.runs("backup")) == 2
    assert "Failed to validate first page of the file shop/orders" in caplog.text
    assert len(verify(bench.host(), taken.id, Watch())) == 1


def test_a_table_whose_first_page_stays_bad_is_a_failure(bench: Bench) -> None:
    bench.tool(FAULT="table-gone")
    with pytest.raises(ToolError, match="Failed to validate first page"):
        bench.backup()
    assert len(bench.runs("backup")) == DUMPS


def test_another_failure_of_the_tool_is_no_bad_luck(bench: Bench) -> None:
    bench.tool(FAULT="half")
    with pytest.raises(ToolError, match="no space left"):
        bench.backup()
    assert len(bench.runs("backup")) == 1
